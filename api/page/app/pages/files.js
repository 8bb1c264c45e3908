// Files: what has been uploaded, for jobs to work on and as releases.
import { bytes, html, plural, remove, upload, useMay, useRead, useRef, useState } from '../kit.js';
import { Act, Actor, Card, Empty, Head, Icon, List, Read, Search, Time, complain, confirm, toast } from '../parts.js';

export default function Files() {
  const operator = useMay('w');
  const [pages, setPages] = useState(1);
  const read = useRead(`/api/files/list?limit=${Math.min(1000, pages * 100)}`, { about: (event) => event.type.startsWith('file.') });
  const [text, setText] = useState('');
  const [going, setGoing] = useState([]);
  const [over, setOver] = useState(false);
  const input = useRef(null);
  const send = async (files) => {
    for (const file of files) {
      const key = `${file.name}${Math.random()}`;
      const change = (share) => setGoing((before) => before.map((each) => (each.key === key ? { ...each, share } : each)));
      setGoing((before) => [...before, { key, name: file.name, share: 0 }]);
      try { await upload(file, change).done; } catch (problem) { complain(problem); }
      setGoing((before) => before.filter((each) => each.key !== key));
      read.reload();
    }
  };
  const discard = async (file) => {
    if (!(await confirm({ title: `Delete ${file.filename}?`, body: 'Jobs that have not ended and releases keep what they need; else it is gone.', action: 'Delete it', danger: true }))) return;
    await remove(`/api/files/${file.fileId}`);
    toast(`${file.filename} is gone.`);
    read.reload();
  };
  return html`<${Head} title="Files">${operator && html`<button class="button primary" onClick=${() => input.current.click()}><${Icon} name="upload" />Upload</button><input ref=${input} type="file" multiple hidden onChange=${(event) => { send([...event.target.files]); event.target.value = ''; }} />`}<//>
    <div onDragOver=${operator ? (event) => { event.preventDefault(); setOver(true); } : undefined} onDragLeave=${() => setOver(false)} onDrop=${operator ? (event) => { event.preventDefault(); setOver(false); send([...event.dataTransfer.files]); } : undefined}>
    ${going.map((each) => html`<div key=${each.key} class="note" style=${{ marginBottom: 8 }}><div style=${{ display: 'flex' }}><span class="cut">${each.name}</span><span style=${{ marginLeft: 'auto' }}>${Math.round(each.share * 100)} %</span></div><div class="meter" role="progressbar" aria-label=${`Upload of ${each.name}`} aria-valuenow=${Math.round(each.share * 100)}><i style=${{ width: `${each.share * 100}%` }}></i></div></div>`)}
    ${over && html`<div class="drop over" style=${{ marginBottom: 12 }}><${Icon} name="upload" size=${22} />Drop them to upload.</div>`}
    <${Read} of=${read}>${({ files, total, hasMore }) => (files.length === 0 ? html`<${Card}><${Empty} icon="file" title="No files" command="hostler files up project.zip" acts=${operator && html`<button class="button primary" onClick=${() => input.current.click()}>Upload one</button>`}>An upload is what a job works on: it is unpacked into the job’s directory. Drop files anywhere on this page.<//><//>`
      : html`<div class="bar"><${Search} placeholder="Search files" value=${text} onChange=${setText} wait_ms=${60} /><span class="faint small" role="status">${plural(total, 'file')}</span></div>
      <${Card} flush><${List} label="Files" rows=${files.filter((file) => file.filename.toLowerCase().includes(text.toLowerCase()))} keyOf=${(file) => file.fileId} columns=${[
        { name: 'Name', show: (file) => html`<a class="strong" href=${`/api/files/download/${file.fileId}`} download=${file.filename}>${file.filename}</a><div class="faint small mono cut" style=${{ maxWidth: 300 }} title=${`SHA-256 ${file.sha256}`}>${file.sha256.slice(0, 16)}…</div>` },
        { name: 'Size', named: true, show: (file) => bytes(file.size) }, { name: 'Uploaded', named: true, show: (file) => html`<${Time} at=${file.uploadedAt} /> <span class="faint small">by <${Actor} of=${file.uploadedBy} /></span>` }, { name: 'Kept until', named: true, show: (file) => html`<${Time} at=${file.expiresAt} />` },
        { name: 'Actions', unseen: true, right: true, show: (file) => html`<span class="acts"><a class="button tiny icon quiet" href=${`/api/files/download/${file.fileId}`} download=${file.filename} aria-label=${`Download ${file.filename}`}><${Icon} name="download" /></a>${operator && html`<${Act} kind="tiny icon quiet danger" icon="trash" label=${`Delete ${file.filename}`} do=${() => discard(file)} />`}</span>` }]} />
        ${hasMore && pages < 10 && html`<div class="card-body"><button class="button" onClick=${() => setPages(pages + 1)}>Show more</button></div>`}<//>`)}<//></div>`;
}
