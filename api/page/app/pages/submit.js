// Submit: a command, files by drag and drop, and all that a job can say; also one that was there before, edited.
import { bytes, html, me, post, route, to, upload, useEffect, useMay, useRead, useRef, useSignal, useState } from '../kit.js';
import { Field, Head, Icon, Problem, Read, Spinner, complain, toast, useForm } from '../parts.js';

const EMPTY = { command: '', name: '', priority: 'normal', tags: '', timeout: 600, retries: 0, artifacts: '', env: [], when: 'now', runAt: '', cron: '', timezone: Intl.DateTimeFormat().resolvedOptions().timeZone || 'UTC', workingDirectory: '', concurrencyKey: '', dependsOn: '', fileUrl: '', atMostOnce: false };
const words = (text) => text.split(/[\s,]+/).filter(Boolean);

function orderOf(values) {
  const order = { timeout: Number(values.timeout), priority: values.priority };
  if (values.argv) order.argv = values.argv; else order.command = values.command;
  for (const name of ['name', 'workingDirectory', 'concurrencyKey', 'fileUrl']) if (values[name]?.trim()) order[name] = values[name].trim();
  for (const name of ['tags', 'artifacts', 'dependsOn']) if (values[name].trim()) order[name] = words(values[name]);
  if (Number(values.retries)) order.retries = Number(values.retries);
  if (values.atMostOnce) order.atMostOnce = true;
  if (values.metadata) order.metadata = values.metadata;
  const env = Object.fromEntries(values.env.filter((each) => each.name.trim()).map((each) => [each.name.trim(), each.value]));
  if (Object.keys(env).length) order.env = env;
  if (values.when === 'at' && values.runAt) order.runAt = new Date(values.runAt).toISOString();
  if (values.when === 'cron') order.schedule = { cron: values.cron, timezone: values.timezone };
  return order;
}

export default function Submit() {
  const { query } = useSignal(route);
  const operator = useMay('w');
  const before = useRead(query.from && operator ? `/api/jobs/${encodeURIComponent(query.from)}/order` : null);
  if (!operator) return html`<${Problem} of=${{ message: 'You may look, but not submit.', remedy: 'Ask an admin for the operator role.' }} />`;
  if (!query.from) return html`<${Form} initial=${{ ...EMPTY, when: query.when ?? 'now' }} />`;
  return html`<${Read} of=${before}>${({ order, envNames }) => html`<${Form} from=${query.from} initial=${{
    ...EMPTY, ...order, argv: order.argv, command: order.command ?? (order.argv ?? []).map((word) => (/^[\w./:=@%+-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`)).join(' '),
    tags: (order.tags ?? []).join(' '), artifacts: (order.artifacts ?? []).join(' '), env: envNames.map((name) => ({ name, value: '' })),
  }} hidden=${envNames} />`}<//>`;
}

/** What somebody had typed when their session ended, for when they are back. */
let draft = null;

function Form({ initial, from, hidden = [] }) {
  const [author] = useState(() => me.get().id);
  const [kept] = useState(() => (draft?.author === author && draft.from === from ? draft.values : null));
  const form = useForm(kept ?? initial, async (values) => {
    const { jobId, status } = await post('/api/jobs/submit', orderOf(values));
    if (values.when === 'cron') { toast('It recurs from now on.', { link: ['Its first run', to('jobs', jobId)] }); location.hash = '#/schedules'; } else location.hash = to('jobs', jobId);
    return status;
  });
  const { values, set } = form;
  const typed = useRef(values);
  typed.current = values;
  useEffect(() => {
    draft = null;
    return () => { if (me.get() === null) draft = { author, from, values: typed.current }; };
  }, []);
  const [more, setMore] = useState(Boolean((from || kept) && (values.retries || values.workingDirectory || values.concurrencyKey || values.env.length)));
  const pickCommand = (event) => { set('command', event.target.value); if (values.argv) set('argv', undefined); };
  return html`<${Head} back=${from && ['The job it is made from', to('jobs', from)]} title=${from ? 'Edit and run' : 'Submit a job'} />
    <form class="form" onSubmit=${form.submit} onKeyDown=${(event) => { if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.submit(event); }}>
    ${form.problem && html`<${Problem} of=${form.problem} />`}
    ${hidden.length > 0 && html`<div class="note warn">The values of its environment are secret, so they are not filled in: ${hidden.join(', ')}. Type those that it needs.</div>`}
    <${Field} label="Command" wrong=${form.wrong.command ?? form.wrong.argv} hint="Run by a shell in the job’s own directory. Ctrl+Enter submits.">${(shared) => html`<textarea class="input mono" rows="3" required autoFocus spellCheck="false" placeholder="python3 -m pytest --junitxml reports/junit.xml" value=${values.command} onChange=${pickCommand} ...${shared}></textarea>`}<//>
    <${Files} url=${values.fileUrl} set=${(url) => set('fileUrl', url)} wrong=${form.wrong.fileUrl} />
    <div class="pair"><${Field} label="Name" placeholder="optional" maxLength="200" ...${form.bind('name')} /><${Field} label="Tags" hint="Only a worker that has all of them runs it." placeholder="linux gpu" ...${form.bind('tags')} /></div>
    <${Field} label="Files to keep" hint="Patterns, relative to its directory." placeholder="reports/** *.log" ...${form.bind('artifacts')} />
    <${When} form=${form} />
    <div><button type="button" class="button quiet" aria-expanded=${more} onClick=${() => setMore(!more)}><${Icon} name=${more ? 'down' : 'right'} />Environment, retries and more</button></div>
    ${more && html`<${Environment} values=${values} set=${set} wrong=${form.wrong.env} />
      <div class="pair"><${Field} label="Priority">${(shared) => html`<select class="input" value=${values.priority} onChange=${(event) => set('priority', event.target.value)} ...${shared}><option value="high">High</option><option value="normal">Normal</option><option value="low">Low</option></select>`}<//>
        <${Field} label="Timeout, seconds" type="number" min="1" max="604800" required ...${form.bind('timeout')} /><${Field} label="Retries" type="number" min="0" max="100" hint="After a failure or a timeout." ...${form.bind('retries')} /></div>
      <div class="pair"><${Field} label="Working directory" placeholder="as unpacked" ...${form.bind('workingDirectory')} /><${Field} label="Concurrency key" hint="Jobs that share one run one at a time." ...${form.bind('concurrencyKey')} /></div>
      <${Field} label="After these jobs" hint="Ids of jobs that must complete first." ...${form.bind('dependsOn')} />
      <label class="tick"><input type="checkbox" checked=${values.atMostOnce} onChange=${(event) => set('atMostOnce', event.target.checked)} /><span>At most once<br /><span class="faint small">If its worker is lost it ends as lost, instead of running again.</span></span></label>`}
    <div class="acts"><button class="button primary" disabled=${form.busy}>${form.busy ? html`<${Spinner} />` : html`<${Icon} name="play" />`}${values.when === 'cron' ? 'Schedule' : 'Submit'}</button><a class="button quiet" href=${from ? to('jobs', from) : '#/jobs'}>Back</a></div></form>`;
}

// A file that is there already, one that is dropped here, or an address ------------------------------------------------

function Files({ url, set, wrong }) {
  const [going, setGoing] = useState(null);
  const [name, setName] = useState('');
  const [over, setOver] = useState(false);
  const input = useRef(null);
  useEffect(() => () => going?.stop?.(), []);
  const send = async (files) => {
    const file = files[0];
    if (!file) return;
    if (files.length > 1) toast('One file at a time.', { kind: 'busy', hint: 'Pack several into a zip or a tar archive; it is unpacked into the job’s directory.' });
    const sending = upload(file, (share) => setGoing((before) => before && { ...before, share }));
    setGoing({ name: file.name, size: file.size, share: 0, stop: sending.stop });
    try {
      const kept = await sending.done;
      setName(`${kept.filename}, ${bytes(kept.size)}`);
      set(kept.url);
    } catch (problem) { if (problem.code !== 'ABORTED') complain(problem); } finally { setGoing(null); }
  };
  return html`<div class="field"><span class="label">File to work on</span>
    ${going ? html`<div class="card card-body grid" style=${{ gap: 8 }}><div style=${{ display: 'flex', gap: 12 }}><span class="cut">${going.name}</span><span class="faint nowrap" style=${{ marginLeft: 'auto' }}>${Math.round(going.share * 100)} % of ${bytes(going.size)}</span></div><div class="meter" role="progressbar" aria-label="Upload" aria-valuenow=${Math.round(going.share * 100)}><i style=${{ width: `${going.share * 100}%` }}></i></div><div><button type="button" class="button tiny" onClick=${going.stop}>Stop</button></div></div>`
      : url ? html`<div class="card card-body" style=${{ display: 'flex', gap: 8, alignItems: 'center' }}><${Icon} name="file" /><span class="cut">${name || url}</span><button type="button" class="button quiet icon tiny" style=${{ marginLeft: 'auto' }} aria-label="Take the file away" onClick=${() => { set(''); setName(''); }}><${Icon} name="cross" /></button></div>`
        : html`<div class=${`drop ${over ? 'over' : ''}`} onDragOver=${(event) => { event.preventDefault(); setOver(true); }} onDragLeave=${() => setOver(false)} onDrop=${(event) => { event.preventDefault(); setOver(false); send([...event.dataTransfer.files]); }} onClick=${(event) => { if (event.target === event.currentTarget) input.current.click(); }}>
          <${Icon} name="upload" size=${22} /><div>Drop a file here, or <button type="button" class="button tiny" onClick=${() => input.current.click()}>choose one</button></div><span class="faint small">An archive is unpacked into the job’s directory.</span>
          <input ref=${input} type="file" hidden onChange=${(event) => send([...event.target.files])} /></div>`}
    ${!url && !going && html`<${Known} set=${set} setName=${setName} />`}${wrong && html`<span class="wrong">${wrong}</span>`}</div>`;
}

function Known({ set, setName }) {
  const { data } = useRead('/api/files/list?limit=30');
  if (!data?.files.length) return null;
  return html`<select class="input" aria-label="A file that is here already" value="" onChange=${(event) => { const file = data.files.find((each) => each.fileId === event.target.value); if (file) { set(file.url); setName(`${file.filename}, ${bytes(file.size)}`); } }}>
    <option value="">or one that is here already…</option>${data.files.map((file) => html`<option key=${file.fileId} value=${file.fileId}>${file.filename}, ${bytes(file.size)}</option>`)}</select>`;
}

const PRESETS = [['0 * * * *', 'each hour'], ['0 3 * * *', 'each night at 3'], ['0 9 * * 1-5', 'weekdays at 9'], ['*/15 * * * *', 'each quarter of an hour'], ['0 6 1 * *', 'the 1st of each month']];

function When({ form }) {
  const { values, set } = form;
  const zones = typeof Intl.supportedValuesOf === 'function' ? Intl.supportedValuesOf('timeZone') : [];
  return html`<div class="field"><span class="label" id="when">When</span><div class="segments" role="group" aria-labelledby="when" style=${{ justifySelf: 'start' }}>${[['now', 'Now'], ['at', 'At a time'], ['cron', 'Again and again']].map(([name, text]) => html`<button key=${name} type="button" aria-pressed=${values.when === name} onClick=${() => set('when', name)}>${text}</button>`)}</div>
    ${values.when === 'at' && html`<${Field} label="Time, as this browser counts it" type="datetime-local" required ...${form.bind('runAt')} />`}
    ${values.when === 'cron' && html`<div class="pair"><${Field} label="Cron" required placeholder="0 3 * * *" hint="Minute, hour, day, month, weekday." class="input mono" ...${form.bind('cron')} wrong=${form.wrong['schedule.cron'] ?? form.wrong.schedule} />
      <${Field} label="Time zone" list="zones" wrong=${form.wrong['schedule.timezone']} ...${form.bind('timezone')} /></div><datalist id="zones">${zones.map((zone) => html`<option key=${zone} value=${zone}></option>`)}</datalist>
      <div class="acts">${PRESETS.map(([cron, text]) => html`<button key=${cron} type="button" class="button tiny" onClick=${() => set('cron', cron)}>${text}</button>`)}</div>`}</div>`;
}

function Environment({ values, set, wrong }) {
  const change = (index, part) => set('env', values.env.map((each, at) => (at === index ? { ...each, ...part } : each)));
  return html`<div class="field"><span class="label">Environment</span><div class="pairs">${values.env.map((each, index) => html`<div key=${index}><input class="input mono" aria-label="Name" placeholder="NAME" value=${each.name} onChange=${(event) => change(index, { name: event.target.value })} />
    <input class="input mono" aria-label=${`Value of ${each.name || 'it'}`} placeholder="value" value=${each.value} onChange=${(event) => change(index, { value: event.target.value })} />
    <button type="button" class="button quiet icon" aria-label=${`Take ${each.name || 'it'} away`} onClick=${() => set('env', values.env.filter((_, at) => at !== index))}><${Icon} name="cross" /></button></div>`)}
    <button type="button" class="button tiny" style=${{ justifySelf: 'start' }} onClick=${() => set('env', [...values.env, { name: '', value: '' }])}><${Icon} name="plus" />Add a variable</button></div><span class="hint">Kept sealed; shown to nobody again.</span>${wrong && html`<span class="wrong">${wrong}</span>`}</div>`;
}
