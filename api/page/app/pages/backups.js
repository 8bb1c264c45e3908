// Backups: what is kept, how old and how large it is, whether a restore of it was proven, and the way back.
import { bytes, count, get, html, lasted, plural, post, put, remove, to, useEffect, useMay, useMemo, useRead, useState } from '../kit.js';
import { Act, Badge, Card, Dialog, Empty, Field, Head, Icon, List, Menu, Problem, Read, Search, Spinner, Time, complain, confirm, toast, useForm } from '../parts.js';
import { FINISHED } from '../words.js';

const about = (event) => event.type.startsWith('backup.');
const ROOT = '/api/backup-jobs';
const SHOWN = 1000;
const volumeName = (volume) => (typeof volume === 'string' ? volume.replace(/^app:/, 'app ') : `${volume.type} ${volume.database ?? volume.name ?? ''}`);

export default function Backups() {
  const operator = useMay('w');
  const read = useRead(`${ROOT}?limit=500`, { about, every: 15_000 });
  const [making, setMaking] = useState(null);
  const [shown, setShown] = useState(null);
  if (read.error?.status === 404) return html`<${Head} title="Backups" /><div class="note">Backups are switched off here (HOSTLER_MODULES_OFF).</div>`;
  const begin = (backup, what, told) => async () => { const { job_id: job } = await post(`${ROOT}/${backup.id}/${what}`); toast(told, { link: ['See its job', to('jobs', job)] }); read.reload(); };
  return html`<${Head} title="Backups">${operator && html`<button class="button primary" onClick=${() => setMaking({})}><${Icon} name="plus" />New backup</button>`}<//>
    <${Read} of=${read}>${({ backup_jobs: list }) => (list.length === 0 ? html`<${Card}><${Empty} icon="backup" title="Nothing is backed up" command="hostler backup create nightly app:hello-web --node NODE --cron '0 2 * * *'" acts=${operator && html`<button class="button primary" onClick=${() => setMaking({})}>Make the first backup</button>`}>The data of apps, paths and databases of a node are kept encrypted in the object store, by a schedule; and a rehearsed restore proves that they come back.<//><//>`
      : html`<${Card} flush><${List} label="Backups" rows=${list} keyOf=${(each) => each.id} columns=${[
        { name: 'Backup', show: (each) => html`<button class="button quiet tiny strong" style=${{ color: 'var(--accent)', padding: 0 }} onClick=${() => setShown(each)}>${each.name}</button><div class="faint small">${each.volumes.map(volumeName).join(', ')} on ${each.node_id}</div>` },
        { name: 'Last run', show: (each) => (each.running ? html`<${Badge} status="running">${each.running.percent} %${each.running.eta_s ? `, ${lasted(each.running.eta_s * 1000)} left` : ''}<//>` : each.last_status ? html`<${Badge} status=${each.last_status === 'completed' ? 'completed' : 'failed'}>${each.last_status}<//> <span class="faint small"><${Time} at=${each.last_run_at} /></span>${each.last_error && html`<div class="bad small">${each.last_error}</div>`}` : html`<span class="faint">never</span>`) },
        { name: 'Newest good', named: true, show: (each) => html`<${Time} at=${each.last_success_at} otherwise="none" />` },
        { name: 'Proven', show: (each) => (each.last_proven_at ? html`<${Badge} status="proven">proven <${Time} at=${each.last_proven_at} /><//>` : html`<${Badge} status="unproven">not proven<//>`) },
        { name: 'Next', named: true, show: (each) => (each.enabled && each.next_run_at ? html`<${Time} at=${each.next_run_at} future /> <span class="faint small mono">${each.schedule}</span>` : html`<span class="faint">${each.enabled ? 'by hand' : 'paused'}</span>`) },
        { name: 'Actions', unseen: true, right: true, show: (each) => operator && html`<span class="acts"><${Act} kind="tiny" icon="play" disabled=${Boolean(each.running)} do=${begin(each, 'run', 'The backup is under way.')}>Run<//><${Menu} label=${`More about ${each.name}`} items=${[{ label: 'Records and restore', icon: 'clock', act: () => setShown(each) }, { label: 'Prove a restore', icon: 'shield', act: () => begin(each, 'drill', 'A restore is being rehearsed.')().catch(complain) }, { label: each.enabled ? 'Pause' : 'Resume', icon: each.enabled ? 'pause' : 'play', act: () => put(`${ROOT}/${each.id}`, { enabled: !each.enabled }).then(read.reload, complain) },
          each.running && { label: 'Its job', icon: 'jobs', href: to('jobs', each.running.job_id) }, { label: 'Delete', icon: 'trash', danger: true, act: () => discard(each, read.reload) }]} /></span>` },
      ]} /><//>`)}<//>
    ${making && html`<${Make} close=${() => setMaking(null)} done=${read.reload} />`}${shown && html`<${Records} backup=${shown} operator=${operator} close=${() => setShown(null)} />`}`;
}

async function discard(backup, reload) {
  if (!(await confirm({ title: `Delete ${backup.name}?`, body: 'It does not run any more; what it has kept is deleted after some days.', action: 'Delete it', danger: true }))) return;
  try { await remove(`${ROOT}/${backup.id}`); reload(); } catch (problem) { complain(problem); }
}

function Make({ close, done }) {
  const admin = useMay('a');
  const apps = useRead('/api/apps?limit=1000').data?.apps ?? [];
  const workers = useRead('/api/workers/list?limit=1000').data?.workers.filter((each) => each.status === 'online') ?? [];
  const form = useForm({ name: '', what: 'app', app: '', node: '', path: '', schedule: '0 2 * * *', keep: 7, drill: true }, async (values) => {
    const app = apps.find((each) => each.instanceId === values.app);
    const body = {
      name: values.name, node_id: values.what === 'app' ? app?.node ?? '' : values.node, volumes: values.what === 'app' ? [`app:${values.app}`] : values.path.split('\n').map((each) => each.trim()).filter(Boolean),
      schedule: values.schedule.trim() || null, timezone: Intl.DateTimeFormat().resolvedOptions().timeZone || 'UTC', retention_count: Number(values.keep), drill: values.drill ? { schedule: '0 5 * * 0' } : null,
    };
    await post(ROOT, body);
    toast(`${values.name} is made.`);
    done();
    close();
  });
  const { values, set } = form;
  return html`<${Dialog} title="New backup" onClose=${close}><form class="form" onSubmit=${form.submit}>${form.problem && html`<${Problem} of=${form.problem} />`}
    <${Field} label="Name" required maxLength="100" autoFocus ...${form.bind('name')} />
    ${admin && html`<div class="segments" role="group" aria-label="What" style=${{ justifySelf: 'start' }}>${[['app', 'The data of an app'], ['path', 'Paths of a node']].map(([name, text]) => html`<button key=${name} type="button" aria-pressed=${values.what === name} onClick=${() => set('what', name)}>${text}</button>`)}</div>`}
    ${values.what === 'app' ? html`<${Field} label="App" hint=${apps.length ? '' : 'No app is installed yet.'}>${(shared) => html`<select class="input" required value=${values.app} onChange=${(event) => { set('app', event.target.value); if (!values.name) set('name', event.target.value); }} ...${shared}><option value="">Choose…</option>${apps.map((app) => html`<option key=${app.instanceId} value=${app.instanceId}>${app.instanceId} on ${app.node}</option>`)}</select>`}<//>`
      : html`<${Field} label="Node">${(shared) => html`<select class="input" required value=${values.node} onChange=${(event) => set('node', event.target.value)} ...${shared}><option value="">Choose…</option>${workers.map((each) => html`<option key=${each.workerId}>${each.workerId}</option>`)}</select>`}<//><${Field} label="Paths, one a line">${(shared) => html`<textarea class="input mono" required rows="3" value=${values.path} onChange=${(event) => set('path', event.target.value)} ...${shared}></textarea>`}<//>`}
    <div class="pair"><${Field} label="Cron" hint="Empty: by hand alone." class="input mono" ...${form.bind('schedule')} /><${Field} label="Keep the newest" type="number" min="1" max="10000" ...${form.bind('keep')} /></div>
    <label class="tick"><input type="checkbox" checked=${values.drill} onChange=${(event) => set('drill', event.target.checked)} /><span>Prove it each Sunday<br /><span class="faint small">A restore is rehearsed beside the data, and compared.</span></span></label>
    <div class="acts"><button class="button primary" disabled=${form.busy}>${form.busy && html`<${Spinner} />`}Make it</button></div></form><//>`;
}

function Records({ backup, operator, close }) {
  const read = useRead(`${ROOT}/${backup.id}/records?limit=200`, { about, every: 15_000 });
  const [restoring, setRestoring] = useState(null);
  if (restoring) return html`<${Restore} backup=${backup} record=${restoring} close=${close} back=${() => setRestoring(null)} />`;
  const verify = (record) => async () => { const { job_id: job } = await post(`${ROOT}/${backup.id}/records/${record.id}/verify`); toast('It is being read and compared.', { link: ['See its job', to('jobs', job)] }); };
  return html`<${Dialog} broad title=${`Records of ${backup.name}`} onClose=${close}><${Read} of=${read}>${({ records }) => (records.length === 0 ? html`<${Empty} icon="backup" title="Nothing is kept yet">Run it, and what it keeps is listed here.<//>` : html`<${List} label="Records" rows=${records} keyOf=${(each) => each.id} columns=${[
    { name: 'Made', show: (each) => html`<span class="strong"><${Time} at=${each.started_at} /></span>` }, { name: 'State', show: (each) => html`<${Badge} status=${each.status === 'completed' ? 'completed' : 'failed'}>${each.status}<//>${each.error && html`<div class="bad small">${each.error}</div>`}` },
    { name: 'Size', named: true, show: (each) => html`${bytes(each.size_bytes)} <span class="faint small">${plural(each.files, 'file')}, ${bytes(each.added_bytes)} new</span>` }, { name: 'Took', named: true, show: (each) => lasted(each.duration_s * 1000) },
    { name: 'Proof', show: (each) => (each.proven_at ? html`<${Badge} status="proven">restored <${Time} at=${each.proven_at} /><//>` : each.verified_at ? html`<${Badge} status="ok">read <${Time} at=${each.verified_at} /><//>` : html`<${Badge} status="unproven">not proven<//>`) },
    { name: 'Actions', unseen: true, right: true, show: (each) => each.status === 'completed' && html`<span class="acts">${operator && html`<button class="button tiny primary" onClick=${() => setRestoring(each)}>Restore</button><${Act} kind="tiny" do=${verify(each)}>Verify<//>`}<a class="button icon tiny" download href=${`${ROOT}/${backup.id}/records/${each.id}/download`} aria-label="Download"><${Icon} name="download" /></a></span>` }]} />`)}<//><//>`;
}

// The way back: which files, to where ------------------------------------------------------------------------------------

/** Read the lines in which a rehearsal says what it would bring: `[hostler] file          120 /data/a b.txt`. */
export const listed = (log) => new Map(Array.from(log.matchAll(/^\[hostler\] (\w+) +(\d+) (\/.*)$/gm), ([, type, size, path]) => [path, { isFolder: type === 'dir', size: Number(size) }]));

/** What a restore would bring: a rehearsal without writing says it in its log. */
function useContents(backup, record) {
  const [state, setState] = useState({ entries: null, problem: null });
  useEffect(() => {
    let over = false;
    const look = async () => {
      const { job_id: job } = await post(`${ROOT}/${backup.id}/records/${record.id}/restore`, { dry_run: true });
      for (;;) {
        const { job: found } = await get(`/api/jobs/status?jobId=${job}`);
        if (over) return;
        if (FINISHED.has(found.status)) {
          const log = await get(`/api/jobs/${job}/log`, { text: true });
          if (found.status !== 'completed') throw Object.assign(new Error(found.message || 'What it holds could not be listed.'), { remedy: 'The whole record can be restored all the same.' });
          if (!over) setState({ entries: listed(log), problem: null });
          return;
        }
        await new Promise((go) => { setTimeout(go, 400); });
      }
    };
    look().catch((problem) => !over && setState({ entries: null, problem }));
    return () => { over = true; };
  }, [record.id]);
  return state;
}

function Restore({ backup, record, close, back }) {
  const admin = useMay('a');
  const contents = useContents(backup, record);
  const [picked, setPicked] = useState(new Set());
  const [folder, setFolder] = useState('');
  const [text, setText] = useState('');
  const [target, setTarget] = useState('');
  const entries = useMemo(() => {
    const found = new Map();
    for (const [path, entry] of contents.entries ?? []) {
      if (text) { if (path.toLowerCase().includes(text.toLowerCase())) found.set(path, entry); continue; }
      if (!path.startsWith(`${folder}/`)) continue;
      const [name, ...rest] = path.slice(folder.length + 1).split('/');
      if (name && !found.has(`${folder}/${name}`)) found.set(`${folder}/${name}`, rest.length ? { isFolder: true } : entry);
    }
    return [...found].sort(([one, a], [other, b]) => b.isFolder - a.isFolder || one.localeCompare(other));
  }, [contents.entries, folder, text]);
  useEffect(() => {  // begin where there is something to choose
    const paths = [...contents.entries ?? []].filter(([, entry]) => !entry.isFolder).map(([path]) => path.split('/').slice(0, -1));
    if (paths.length) setFolder(paths.reduce((shared, path) => { const at = shared.findIndex((step, index) => step !== path[index]); return at < 0 ? shared : shared.slice(0, at); }).join('/'));
  }, [contents.entries]);
  const toggle = (path) => setPicked((before) => { const after = new Set(before); if (!after.delete(path)) after.add(path); return after; });
  const restore = async () => {
    const include = [...picked];
    if (!(await confirm({ title: 'Restore?', body: `${include.length ? `${include.length} picked` : 'Everything of this record'}, ${target ? `to ${target}` : 'to where it was; what is there now is overwritten'}.`, action: 'Restore', danger: !target }))) return;
    const { job_id: job } = await post(`${ROOT}/${backup.id}/records/${record.id}/restore`, { include, ...(target && { target }) });
    toast('The restore is under way.');
    close();
    location.hash = to('jobs', job);
  };
  const steps = folder.split('/').filter(Boolean);
  return html`<${Dialog} broad title=${`Restore from ${backup.name}`} onClose=${close} foot=${html`<button class="button" onClick=${back}>Back</button><${Act} kind="primary" icon="again" do=${restore}>${picked.size ? `Restore ${picked.size} picked` : 'Restore everything'}<//>`}>
    <p class="soft">Made <${Time} at=${record.started_at} />, ${bytes(record.size_bytes)} in ${plural(record.files, 'file')}. Pick what shall come back; nothing picked means everything.</p>
    ${contents.problem ? html`<${Problem} of=${contents.problem} />` : !contents.entries ? html`<div class="loading" role="status"><${Spinner} /> Its files are being listed…</div>` : html`<div class="bar"><${Search} placeholder="Search its files" value=${text} onChange=${setText} /></div>
      <nav aria-label="Folder" class="small"><button class="button quiet tiny" onClick=${() => setFolder('')}>/</button>${steps.map((step, index) => html`<button key=${index} class="button quiet tiny" onClick=${() => setFolder(`/${steps.slice(0, index + 1).join('/')}`)}>${step} ›</button>`)}</nav>
      <ul class="files preview" style=${{ padding: '4px 12px', maxHeight: 320 }}>${entries.slice(0, SHOWN).map(([path, { isFolder, size }]) => html`<li key=${path}><input type="checkbox" class="pick" aria-label=${`Pick ${path}`} checked=${picked.has(path)} onChange=${() => toggle(path)} /><${Icon} name=${isFolder ? 'folder' : 'file'} />${isFolder ? html`<button class="name" onClick=${() => setFolder(path)}>${path.slice(path.lastIndexOf('/') + 1)}</button>` : html`<span class="cut">${text ? path : path.slice(path.lastIndexOf('/') + 1)}</span><span class="faint small nowrap" style=${{ marginLeft: 'auto' }}>${bytes(size)}</span>`}</li>`)}${entries.length === 0 && html`<li class="soft">Nothing here.</li>`}${entries.length > SHOWN && html`<li class="soft">${count(entries.length - SHOWN)} more; search for what you look for.</li>`}</ul>`}
    ${admin && html`<${Field} label="Somewhere else" hint="A directory on its node; empty: where everything was." placeholder="/srv/restored" value=${target} onChange=${(event) => setTarget(event.target.value)} />`}<//>`;
}
