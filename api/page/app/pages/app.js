// One app: what it does, its processes and what they use, its log, its configuration, its releases, its own view of itself.
import { React, ask, bytes, get, html, lasted, refine, route, to, useEffect, useMay, useMemo, useRead, useRef, useSignal, useState } from '../kit.js';
import { Act, Badge, Card, Dialog, Empty, Facts, Head, Icon, List, Loading, Menu, Problem, Read, Segments, Spark, Spinner, Time, complain, confirm, toast } from '../parts.js';
import { Lines, LogView } from '../log.js';
import { change } from '../words.js';

export default function App({ parts: [, id] }) {
  const mine = (event) => event.instanceId === id;
  const path = `/api/apps/${encodeURIComponent(id)}`;
  const read = useRead(path, { about: (event) => mine(event) || event.type.startsWith('worker.'), every: 15_000 });
  return html`<${Read} of=${read}>${(app) => html`<${Known} app=${app} reload=${read.reload} />`}<//>`;
}

const BUSY = new Set(['installing', 'updating', 'removing', 'starting', 'stopping']);

function Known({ app, reload }) {
  const id = app.instanceId;
  const { query } = useSignal(route);
  const operator = useMay('w');
  const has = useRead(`/api/products/${encodeURIComponent(id)}/has-config`).data;
  const detail = useRead(`/api/products/${encodeURIComponent(id)}/has-detail`).data;
  const [asking, setAsking] = useState('');
  const views = [['state', 'State'], ['log', 'Log'], (has?.hasConfig || app.configured) && ['configuration', 'Configuration'], detail?.hasDetail && ['own', app.name], ['releases', 'Releases'], app.processes.some((each) => each.schedule || each.type === 'oneshot') && ['runs', 'Runs']].filter(Boolean);
  const view = query.view ?? (app.status === 'needs_config' ? 'configuration' : 'state');
  const act = (action, told, body) => async () => { await change(id, action, body); toast(told); reload(); };
  const uninstall = async (keepData) => {
    await ask('DELETE', `/api/apps/${encodeURIComponent(id)}?keepData=${keepData}`);
    toast('It is being removed.');
    location.hash = '#/apps';
  };
  const up = ['running', 'starting', 'crashed'].includes(app.status);
  return html`<${Head} back=${['Apps', '#/apps']} title=${id} sub=${`${app.name} ${app.version} on ${app.node}`} badge=${html`<${Badge} status=${app.status} steady />`}>
      ${operator && !BUSY.has(app.phase) && html`${up ? html`<${Act} icon="again" do=${act('restart', 'It is being restarted.')}>Restart<//><${Act} icon="stop" do=${act('stop', 'It is being stopped.')}>Stop<//>` : app.phase === 'ready' && html`<${Act} kind="primary" icon="play" do=${act('start', 'It is being started.')}>Start<//>`}
        ${app.phase === 'failed' && html`<${Act} kind="primary" icon="again" do=${act('install', 'It is being installed again.')}>Try again<//>`}
        <button class="button" onClick=${() => setAsking('update')}><${Icon} name="upload" />Update</button>`}
      ${operator && html`<${Menu} label="More" items=${[app.releases.length > 1 && { label: 'Roll back', icon: 'left', act: () => setAsking('rollback') }, { label: app.autostart ? 'Do not start after a reboot' : 'Start after a reboot', icon: 'gear', act: () => ask('PUT', `/api/apps/${encodeURIComponent(id)}/autostart`, { autostart: !app.autostart }).then(reload, complain) },
        app.jobId && { label: 'The job at work', icon: 'jobs', href: to('jobs', app.jobId) }, { label: 'Uninstall', icon: 'trash', danger: true, act: () => setAsking('uninstall') }]} />`}<//>
    ${(app.error || (BUSY.has(app.phase) && app.message)) && html`<div class=${`note ${app.error ? 'warn' : ''}`} style=${{ marginBottom: 16 }}>${app.error || html`<${Spinner} /> ${app.message}`}${app.jobId && html` <a href=${to('jobs', app.jobId)}>What happens</a>`}${BUSY.has(app.phase) && app.progress > 0 && html`<div class="meter" role="progressbar" aria-label="Progress" aria-valuenow=${app.progress} style=${{ marginTop: 8 }}><i style=${{ width: `${app.progress}%` }}></i></div>`}</div>`}
    ${app.status === 'needs_config' && view !== 'configuration' && html`<div class="note warn" style=${{ marginBottom: 16 }}>It waits to be configured before it starts.</div>`}
    <div class="bar"><${Segments} label="View" value=${view} onChange=${(name) => refine({ view: name })} options=${views} /></div>
    ${view === 'state' && html`<${State} app=${app} act=${act} operator=${operator} />`}${view === 'log' && html`<${Log} app=${app} />`}
    ${view === 'configuration' && html`<${Configuration} app=${app} operator=${operator} reload=${reload} />`}${view === 'own' && html`<${Card} title=${app.name}><div class="own-component"><${Own} which="detail" id=${id} productId=${app.product} version=${app.version} /></div><//>`}
    ${view === 'releases' && html`<${Releases} app=${app} operator=${operator} reload=${reload} />`}${view === 'runs' && html`<${Runs} id=${id} />`}
    ${asking === 'update' && html`<${Update} app=${app} close=${() => setAsking('')} reload=${reload} />`}${asking === 'rollback' && html`<${Rollback} app=${app} close=${() => setAsking('')} reload=${reload} />`}
    ${asking === 'uninstall' && html`<${Uninstall} app=${app} close=${() => setAsking('')} go=${uninstall} />`}`;
}

// What runs ----------------------------------------------------------------------------------------------------------

function State({ app, act, operator }) {
  const samples = useRead(`/api/apps/${encodeURIComponent(app.instanceId)}/samples?limit=720`, { every: 10_000 }).data?.samples ?? [];
  return html`<div class="grid">${app.processes.map((process) => html`<${Process} key=${process.name} app=${app} process=${process} act=${act} operator=${operator} samples=${samples.filter((each) => each.process === process.name)} />`)}
    <${Card} title="Details"><${Facts} of=${[['Product', app.product], ['Alias', app.alias], ['Kind', app.kind], ['Node', html`<a href=${to('workers', app.node)}>${app.node}</a>`], ['Source', app.source?.package ? `${app.source.kind}: ${app.source.package}` : app.source?.kind], ['Starts after a reboot', app.autostart ? 'yes' : 'no'], ['Installed', html`<${Time} at=${app.installedAt} />`], ['Changed', html`<${Time} at=${app.updatedAt} />`]]} /><//></div>`;
}

const byTime = (samples, value) => {
  const sums = new Map();
  for (const each of samples) { const at = Math.floor(each.timestamp / 5000); sums.set(at, (sums.get(at) ?? 0) + value(each)); }
  return [...sums].sort(([one], [other]) => one - other).map(([, sum]) => sum);
};

function Process({ app, process, act, operator, samples }) {
  const cpu = useMemo(() => byTime(samples, (each) => each.cpuPercent), [samples]);
  const memory = useMemo(() => byTime(samples, (each) => each.memoryBytes), [samples]);
  const one = { process: process.name };
  return html`<${Card} title=${html`${process.name} <span class="faint small">${process.type}</span>`} acts=${html`<${Badge} status=${process.status} steady />${operator && app.phase === 'ready' && html`
      ${process.type === 'longrun' || process.maxScale > 1 ? html`<${Act} kind="tiny icon" label=${`One instance of ${process.name} fewer`} disabled=${process.scale < 1} do=${act('scale', 'It is being scaled.', { ...one, delta: -1 })}>−<//><span class="nowrap small">${process.scale}</span><${Act} kind="tiny icon" label=${`One instance of ${process.name} more`} disabled=${process.scale >= process.maxScale} do=${act('scale', 'It is being scaled.', { ...one, delta: 1 })}>+<//>` : null}
      ${(process.schedule || process.type === 'oneshot') && html`<${Act} kind="tiny" icon="play" do=${act('trigger', 'It runs now.', one)}>Run now<//>`}
      ${process.schedule && html`<${Act} kind="tiny" icon=${process.schedule.paused ? 'play' : 'pause'} do=${act(process.schedule.paused ? 'resume' : 'pause', process.schedule.paused ? 'It runs at its times again.' : 'It misses its times until it is resumed.', one)}>${process.schedule.paused ? 'Resume' : 'Pause'}<//>`}`}`}>
    <div class="two"><div>${process.instances.length ? html`<div class="wide-table"><table class="list"><thead><tr><th scope="col">Instance</th><th scope="col">Up</th><th scope="col" class="right">CPU</th><th scope="col" class="right">Memory</th></tr></thead><tbody>${process.instances.map((each) => html`<tr key=${each.id}><td><${Badge} status=${each.state} steady>${each.index}, ${each.state}<//>${each.health !== 'unknown' && html` <span class=${`small ${each.health === 'healthy' ? 'good' : 'bad'}`}>${each.health}</span>`}${each.message && html`<div class="faint small">${each.message}</div>`}${each.restartCount > 0 && html`<div class="warn small">restarted ${each.restartCount} times</div>`}</td>
        <td class="nowrap">${each.startedAt && each.uptime != null ? lasted(each.uptime * 1000) : each.exitCode != null ? `exit ${each.exitCode}` : '–'}</td><td class="right nowrap">${each.cpuPercent == null ? '–' : `${each.cpuPercent.toFixed(1)} %`}</td><td class="right nowrap">${bytes(each.memoryBytes)}</td></tr>`)}</tbody></table></div>`
      : html`<span class="soft">No instance runs.</span>`}
      ${process.schedule && html`<p class="small soft"><span class="mono">${process.schedule.cron}</span> ${process.schedule.timezone}${process.schedule.paused ? ', paused' : html`, next <${Time} at=${process.schedule.nextRun} />`}; ${process.schedule.runCount} runs so far</p>`}</div>
      ${cpu.length > 1 ? html`<div class="grid" style=${{ gap: 8 }}><div><div class="small soft">CPU, ${cpu.at(-1).toFixed(1)} %</div><${Spark} label="CPU over the last hour" values=${cpu} most=${Math.max(10, ...cpu)} /></div><div><div class="small soft">Memory, ${bytes(memory.at(-1))}</div><${Spark} label="Memory over the last hour" values=${memory} most=${Math.max(1, ...memory) * 1.15} /></div></div>` : html`<span class="faint small">What it uses is drawn here once there are a few samples.</span>`}</div><//>`;
}

// What it prints -----------------------------------------------------------------------------------------------------

function Log({ app }) {
  const lines = useRef(null);
  const [version, setVersion] = useState(0);
  const [process, setProcess] = useState('');
  const [problem, setProblem] = useState(null);
  const feed = useMemo(() => new Lines(), [process]);
  lines.current = feed;
  useEffect(() => {
    let after = '';
    let over = false;
    let timer = 0;
    let number = 0;
    const look = async () => {
      try {
        const words = new URLSearchParams({ limit: 1000, ...(after && { after }), ...(process && { process }) });
        const told = await get(`/api/apps/${encodeURIComponent(app.instanceId)}/logs?${words}`);
        if (over) return;
        for (const line of told.lines) {
          after = line.id;
          number += 1;
          const prefix = app.processes.length > 1 || line.index > 0 ? `\x1b[2m${line.process}/${line.index}\x1b[0m ` : '';
          feed.take({ data: `${prefix}${line.text}\n`, stream: line.stream, seq: number, attempt: 1, at: line.timestamp });
        }
        if (told.lines.length) setVersion((before) => before + 1);
        setProblem(null);
      } catch (refusal) { if (!over) setProblem(refusal); }
      if (!over) timer = setTimeout(look, document.hidden ? 5000 : 1000);
    };
    look();
    return () => { over = true; clearTimeout(timer); };
  }, [feed]);
  const names = app.processes.map((each) => each.name);
  return html`${problem && html`<${Problem} of=${problem} />`}<section class="card" style=${{ height: 'max(420px, calc(100dvh - 260px))', display: 'flex', flexDirection: 'column' }}><${LogView} lines=${feed} version=${version} waiting="It has printed nothing yet."
    download=${`/api/apps/${encodeURIComponent(app.instanceId)}/logfile?lines=10000${process ? `&process=${encodeURIComponent(process)}` : ''}`} filename=${`${app.instanceId}.log`}
    tools=${names.length > 1 && html`<select class="input" style=${{ width: 'auto' }} aria-label="Process" value=${process} onChange=${(event) => setProcess(event.target.value)}><option value="">All processes</option>${names.map((name) => html`<option key=${name}>${name}</option>`)}</select>`} /></section>`;
}

function Runs({ id }) {
  const read = useRead(`/api/apps/${encodeURIComponent(id)}/runs?limit=100`, { about: (event) => event.instanceId === id, every: 10_000 });
  return html`<${Card} flush><${Read} of=${read}>${({ runs }) => (runs.length ? html`<${List} label="Runs" rows=${runs} keyOf=${(run) => run.id} columns=${[
    { name: 'Process', show: (run) => html`<span class="strong">${run.process}</span>` }, { name: 'Ended', show: (run) => (run.exitCode === 0 ? html`<${Badge} status="completed" />` : html`<${Badge} status="failed">${run.signal ? `signal ${run.signal}` : `exit ${run.exitCode}`}<//>`) },
    { name: 'Began', named: true, show: (run) => html`<${Time} at=${run.startedAt} />` }, { name: 'Ran', named: true, show: (run) => lasted(Date.parse(run.endedAt) - Date.parse(run.startedAt)) }, { name: 'Why', named: true, show: (run) => run.cause }]} />` : html`<${Empty} icon="clock" title="It has not run yet" />`)}<//><//>`;
}

// Components that products bring, in the same React --------------------------------------------------------------------

class Held extends React.Component {
  state = { problem: null };
  static getDerivedStateFromError(problem) { return { problem }; }
  render() { return this.state.problem ? html`<${Problem} of=${{ message: `The product’s own component broke: ${this.state.problem.message}`, remedy: 'Its authors can mend that; the command line configures it too.' }} />` : this.props.children; }
}

export function Own({ which, id, version, ...props }) {
  const [found, setFound] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    let over = false;
    const address = `/api/products/${encodeURIComponent(id)}/${which}-component.js`;
    import(`${address}?of=${encodeURIComponent(version)}`).then((module) => !over && setFound(() => module.default), async () => {
      const refusal = await get(address, { text: true }).then(() => ({ message: 'The product’s component is no module that a browser understands.', remedy: 'Its authors can mend that; the command line configures it too.' }), (told) => told);
      if (!over) setProblem(refusal);
    });
    return () => { over = true; };
  }, [id, which, version]);
  if (problem) return html`<${Problem} of=${problem} />`;
  return found ? html`<${Held}>${React.createElement(found, { instanceId: id, ...props })}<//>` : html`<${Loading} />`;
}

function Configuration({ app, operator, reload }) {
  const read = useRead(`/api/products/${encodeURIComponent(app.instanceId)}/config`);
  const save = async (config) => {
    await ask('POST', `/api/products/${encodeURIComponent(app.instanceId)}/configure`, { config });
    toast(app.status === 'needs_config' ? 'Saved; it starts now.' : 'Saved; it starts anew with it.');
    reload();
    read.reload();
  };
  return html`<${Card} title="Configuration"><${Read} of=${read}>${({ config, schema, productId }) => (operator ? html`<div class="own-component" style=${{ maxWidth: 640 }}><${Own} which="config" id=${app.instanceId} version=${app.version} productId=${productId} config=${config} schema=${schema} onSave=${save} /></div>`
    : html`<pre class="preview" style=${{ padding: 12 }}>${JSON.stringify(config, null, 2)}</pre>`)}<//><//>`;
}

// Releases -----------------------------------------------------------------------------------------------------------

function Releases({ app, operator, reload }) {
  return html`<${Card} title="Kept on its node" flush><${List} label="Releases" rows=${app.releases} keyOf=${(each) => each.directory} columns=${[{ name: 'Version', show: (each) => html`<span class="mono">${each.version}</span> ${each.version === app.version && html`<${Badge} status="ready">runs<//>`}` }, { name: 'Since', named: true, show: (each) => html`<${Time} at=${each.since} />` },
    { name: 'Actions', unseen: true, right: true, show: (each) => operator && each.version !== app.version && html`<${Act} kind="tiny" icon="left" do=${() => rollBack(app, each.version, reload)}>Go back to it<//>` }]} /><//>`;
}

async function rollBack(app, version, reload) {
  if (!(await confirm({ title: `Go back to ${version}?`, body: 'The older release runs again, on the data as they are now.', action: 'Roll back' }))) return;
  await change(app.instanceId, 'rollback', { version });
  toast('It is being rolled back.');
  reload();
}

function Rollback({ app, close, reload }) {
  const others = app.releases.filter((each) => each.version !== app.version);
  return html`<${Dialog} title="Roll back" onClose=${close}><p class="soft">The node has kept these releases. The data stay as they are.</p><div class="grid" style=${{ gap: 8 }}>${others.map((each) => html`<button key=${each.directory} class="option" onClick=${() => { close(); rollBack(app, each.version, reload).catch(complain); }}><span class="strong mono">${each.version}</span><span class="faint" style=${{ marginLeft: 'auto' }}>since <${Time} at=${each.since} /></span></button>`)}</div><//>`;
}

function Update({ app, close, reload }) {
  const read = useRead(`/api/releases/${encodeURIComponent(app.product)}`);
  const update = async (version) => { await change(app.instanceId, 'update', version ? { version } : {}); toast('It is being updated.', { hint: 'If the new release does not become healthy, the old one runs again.' }); close(); reload(); };
  return html`<${Dialog} title="Update" onClose=${close}><p class="soft">The new release is installed beside the old one, started on a copy of the data, and takes over once it is healthy; otherwise the old one runs again.</p>
    <${Read} of=${read}>${({ releases }) => html`<div class="grid" style=${{ gap: 8 }}>${releases.map((each) => html`<div key=${each.version} class="option" style=${{ cursor: 'default' }}><div><span class="strong mono">${each.version}</span><div class="faint small">published <${Time} at=${each.publishedAt} /></div></div><span style=${{ marginLeft: 'auto' }}>${each.version === app.version ? html`<${Badge} status="ready">runs<//>` : html`<${Act} kind="tiny primary" do=${() => update(each.version)}>Update to it<//>`}</span></div>`)}</div>`}<//><//>`;
}

function Uninstall({ app, close, go }) {
  const [keep, setKeep] = useState(false);
  return html`<${Dialog} title=${`Uninstall ${app.instanceId}?`} onClose=${close} foot=${html`<button class="button" onClick=${close}>Back</button><${Act} kind="primary danger" icon="trash" do=${() => go(keep)}>Uninstall<//>`}><p>It is stopped and removed from <span class="strong">${app.node}</span>, with its releases and its log.</p><label class="tick"><input type="checkbox" checked=${keep} onChange=${(event) => setKeep(event.target.checked)} /><span>Keep its data on the node</span></label><//>`;
}
