// One job: its log as it is printed, its attempts, why it waits, what it left behind, and how to run it again.
import { ask, bytes, html, lasted, link, refine, route, to, useEffect, useMay, useRead, useSignal, useState } from '../kit.js';
import { Act, Actor, Badge, Card, Dialog, Facts, Glyph, Head, Icon, Menu, Problem, Read, Running, Segments, Spinner, Tags, Time } from '../parts.js';
import { LogView, useJobLog } from '../log.js';
import { FINISHED, REASONS, WAITS, cancel, outcomeWords, retry, statusOf, titleOf } from '../words.js';

export default function Job({ parts: [, id] }) {
  const mine = (event) => event.jobId === id;
  const read = useRead(`/api/jobs/status?jobId=${encodeURIComponent(id)}`, { about: mine });
  return html`<${Read} of=${read}>${({ job }) => html`<${Known} job=${job} reload=${read.reload} />`}<//>`;
}

function Known({ job, reload }) {
  const id = job.jobId;
  const operator = useMay('w');
  const log = useJobLog(id, (message) => { if (message.type !== 'job.progress') reload(); });
  const status = statusOf(job);
  const over = FINISHED.has(job.status);
  const command = job.command || (job.argv ?? []).join(' ');
  const file = `/api/jobs/${encodeURIComponent(id)}/log`;
  const { query } = useSignal(route);
  const tools = html`<button class="button tiny" aria-pressed=${query.view === 'terminal'} title="Show cursor movements, progress bars and whole screens as a terminal does" onClick=${() => refine({ view: query.view === 'terminal' ? '' : 'terminal' })}><${Icon} name="terminal" /><span class="label">Terminal</span></button>`;
  return html`<${Head} back=${['Jobs', '#/jobs']} title=${job.name || command.split('\n')[0].slice(0, 100) || id} badge=${html`<${Badge} status=${status}>${status === 'failed' && job.exitCode ? `exit code ${job.exitCode}` : undefined}<//>`}>
      ${operator && !over && html`<${Act} kind="danger" icon="ban" disabled=${job.cancelRequested} do=${() => cancel(job)}>Cancel<//>`}
      ${operator && over && html`<${Act} kind="primary" icon="again" do=${async () => { location.hash = to('jobs', await retry(job)); }}>Run again<//>`}
      ${operator && command && html`<a class="button" href=${link('/submit', { from: id })}><${Icon} name="edit" />Edit and run</a>`}
      <${Menu} label="More" items=${[{ label: 'Download the log', icon: 'download', href: file, download: `${id}.log` }, job.workerId && { label: 'Its worker', icon: 'node', href: to('workers', job.workerId) }, { label: 'Jobs like it', icon: 'search', href: link('/jobs', { search: job.name || command.slice(0, 100) }) }]} /><//>
    ${command && html`<div class="command"><pre tabIndex="0">${command}</pre></div>`}
    ${job.status === 'running' && job.progress != null && html`<div class="meter" role="progressbar" aria-label="Progress" aria-valuenow=${job.progress} aria-valuemin="0" aria-valuemax="100" style=${{ marginBottom: 16, flex: 'none' }}><i style=${{ width: `${job.progress}%` }}></i></div>`}
    <div class="job"><section class="card">${query.view === 'terminal' ? html`<${Terminal} jobId=${id} tools=${tools} />` : html`<${LogView} tools=${tools} lines=${log.lines} version=${log.version} download=${file} filename=${`${id}.log`} live=${log.state}
        waiting=${over ? 'It printed nothing.' : job.status === 'queued' ? 'What it prints will appear here once it runs.' : html`<span><${Spinner} /> Nothing printed yet.</span>`} />`}</section>
      <div class="job-aside" tabIndex="0" role="region" aria-label="About this job">${job.status === 'queued' && html`<${Why} id=${id} />`}${job.reason && REASONS[job.reason] && over && html`<${Outcome} job=${job} />`}<${Attempts} job=${job} /><${Artifacts} job=${job} /><${About} job=${job} /></div></div>`;
}

/** The view by xterm.js, which is fetched when somebody asks for it. */
function Terminal(props) {
  const [View, setView] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => { import('../terminal.js').then((module) => setView(() => module.default), setProblem); }, []);
  if (problem) return html`<div class="card-body"><${Problem} of=${problem} /></div>`;
  return View ? html`<${View} ...${props} />` : html`<div class="log"><div class="loading"><${Spinner} /> Loading…</div></div>`;
}

const Outcome = ({ job }) => html`<div class=${`note ${job.status === 'failed' ? 'warn' : ''}`}>${job.message || REASONS[job.reason]}${job.reason === 'quarantined' && html` <a href="#/quarantine">Quarantine</a>`}</div>`;

function Why({ id }) {
  const read = useRead(`/api/jobs/${encodeURIComponent(id)}/why`, { every: 3000, about: (event) => event.jobId === id || event.type.startsWith('worker.') });
  return html`<${Card} title="Why it waits"><${Read} of=${read}>${({ reasons }) => (reasons.length ? html`<ul class="files">${reasons.map((reason) => html`<li key=${reason.code}><${Icon} name="clock" /><span>${reason.message}${reason.notBefore && html` <${Time} at=${reason.notBefore} />`}${reason.jobId && html` <a href=${to('jobs', reason.jobId)}>See it</a>`}</span></li>`)}</ul>` : html`<span class="soft">It is about to start.</span>`)}<//><//>`;
}

function Attempts({ job }) {
  const read = useRead(`/api/jobs/${encodeURIComponent(job.jobId)}/attempts`, { about: (event) => event.jobId === job.jobId && event.type !== 'job.progress' });
  return html`<${Card} title="Timeline"><${Read} of=${read}>${({ attempts }) => html`<ol class="timeline">
    <li><${Glyph} status="installed" /><div>Submitted <${Time} at=${job.createdAt} /><div class="faint small">by <${Actor} of=${job.submittedBy} />${job.retryOf && html`, again after <a href=${to('jobs', job.retryOf)}>the one before</a>`}${job.scheduleId && html`, by a <a href="#/schedules">schedule</a>`}</div></div></li>
    ${attempts.map((each) => html`<li key=${each.attempt}><${Glyph} status=${each.outcome === 'running' ? 'running' : each.outcome === 'completed' ? 'completed' : each.outcome === 'cancelled' ? 'cancelled' : 'failed'} /><div>
      <span class="strong">Attempt ${each.attempt}</span> ${each.outcome === 'running' ? 'runs' : outcomeWords(each.outcome)}${each.exitCode ? `, exit code ${each.exitCode}` : ''}
      <div class="faint small">${each.workerId && html`on <a href=${to('workers', each.workerId)}>${each.workerId}</a>, `}<${Time} at=${each.startedAt} />, <${Running} ms=${each.ranMs} since=${each.startedAt} until=${each.endedAt} /></div></div></li>`)}
    ${job.status === 'queued' && html`<li><${Glyph} status="queued" /><div>${job.wait ? `It ${WAITS[job.wait] ?? 'waits'}` : 'It stands in its queue'}${job.notBefore && html`: <${Time} at=${job.notBefore} future />`}</div></li>`}
    ${job.cancelRequested && job.status === 'running' && html`<li><${Glyph} status="cancelling" /><div>Its end was asked for</div></li>`}</ol>`}<//><//>`;
}

const About = ({ job }) => html`<${Card} title="Details"><${Facts} of=${[
  ['Id', html`<span class="mono small">${job.jobId}</span>`], ['Priority', job.priority], ['Tags', job.tags.length ? html`<${Tags} of=${job.tags} />` : null],
  ['Timeout', job.timeout && lasted(job.timeout * 1000)], ['Waited', lasted(job.waitedMs)], ['Ran', job.ranMs != null ? lasted(job.ranMs) : null], ['CPU time', job.cpuMs && lasted(job.cpuMs)], ['Memory, most', job.maxRssBytes && bytes(job.maxRssBytes)],
  ['Directory', job.workingDirectory], ['Submitted', html`<${Time} at=${job.createdAt} />`],
  Object.keys(job.metadata ?? {}).length && ['Metadata', html`<pre class="small">${JSON.stringify(job.metadata, null, 2)}</pre>`],
]} /><//>`;

// What it left behind ------------------------------------------------------------------------------------------------

function Artifacts({ job }) {
  const read = useRead(`/api/jobs/${encodeURIComponent(job.jobId)}/artifacts`, { about: (event) => event.jobId === job.jobId && event.type === 'job.completed' });
  const [shown, setShown] = useState(null);
  const close = () => setShown(null);
  return html`<${Card} title="Artifacts"><${Read} of=${read}>${({ artifacts }) => (artifacts.length
    ? html`<ul class="files">${artifacts.map((each) => html`<li key=${each.name}><${Icon} name="file" /><button class="name cut" title=${each.name} onClick=${() => setShown(each)}>${each.name}</button><span class="faint small nowrap">${bytes(each.size)}</span>
      <a class="button quiet icon tiny" href=${each.url} download aria-label=${`Download ${each.name}`}><${Icon} name="download" size=${14} /></a></li>`)}</ul>`
    : html`<span class="soft small">${FINISHED.has(job.status) ? html`It kept no files. <code>--artifact 'reports/**'</code> names what to keep.` : 'Files that it keeps appear here when it ends.'}</span>`)}<//>
    ${shown && html`<${Preview} of=${shown} close=${close} />`}<//>`;
}

const PREVIEWED = 512 * 1024;
const REPORTED = 16 * 1024 * 1024;
const PICTURED = 32 * 1024 * 1024;
const PICTURES = { png: 'png', jpg: 'jpeg', jpeg: 'jpeg', gif: 'gif', webp: 'webp', avif: 'avif', svg: 'svg+xml' };
const pictureOf = ({ name, contentType }) => PICTURES[/\.(\w+)$/.exec(name)?.[1].toLowerCase()] ?? /^image\/(png|jpeg|gif|webp|avif)$/.exec(contentType)?.[1];
const kindOf = (of) => (pictureOf(of) ? (of.size > PICTURED ? 'other' : 'image') : /\.(zip|gz|tgz|zst|bz2|xz|tar|whl|pdf|exe|so|o|bin|sqlite3?|db|pyc|jar|woff2?)$/i.test(of.name) ? 'other' : 'text');

function Preview({ of, close }) {
  const kind = kindOf(of);
  const [got, setGot] = useState(null);
  const [problem, setProblem] = useState(null);
  const [view, setView] = useState('report');
  useEffect(() => {
    if (kind === 'other') return undefined;
    let over = false;
    const load = async () => {
      const most = /\.xml$/i.test(of.name) ? REPORTED : PREVIEWED;  // half a report is none
      const range = kind === 'text' && of.size > most ? { Range: `bytes=0-${PREVIEWED - 1}` } : {};
      const answer = await fetch(of.url, { headers: range });
      if (!answer.ok) throw await ask('GET', of.url).catch((refusal) => refusal);
      if (kind === 'image') {
        const blob = new Blob([await answer.arrayBuffer()], { type: `image/${pictureOf(of)}` });
        // an image runs no script; and where it is opened by itself, a data: address has none of our origin's rights
        const url = await new Promise((done, fail) => { const reader = new FileReader(); reader.onload = () => done(reader.result); reader.onerror = () => fail(reader.error); reader.readAsDataURL(blob); });
        if (!over) setGot({ url });
      } else {
        const text = await answer.text();
        if (!over) setGot({ text: text.slice(0, PREVIEWED), report: /\.xml$/i.test(of.name) ? reportOf(text) : null });
      }
    };
    load().catch((refusal) => !over && setProblem(refusal));
    return () => { over = true; };
  }, [of.url]);
  return html`<${Dialog} broad title=${of.name} onClose=${close} foot=${html`<a class="button primary" href=${of.url} download><${Icon} name="download" />Download, ${bytes(of.size)}</a>`}>
    ${problem && html`<${Problem} of=${problem} />`}
    ${got?.report && html`<${Segments} label="View" value=${view} onChange=${setView} options=${[['report', 'Test report'], ['text', 'Text']]} />`}
    ${kind === 'other' ? html`<p class="soft">This kind of file, or one so large, is not shown here.</p>` : !got && !problem ? html`<div class="loading"><${Spinner} /> Loading…</div>` : null}
    ${got?.url && html`<div class="preview"><img src=${got.url} alt=${of.name} /></div>`}
    ${got?.report && view === 'report' && html`<${Report} of=${got.report} />`}
    ${got?.text !== undefined && (view === 'text' || !got.report) && html`<div class="preview" tabIndex="0"><pre>${got.text}</pre></div>${of.size > PREVIEWED && html`<p class="faint small">The first ${bytes(PREVIEWED)} are shown.</p>`}`}
    <p class="faint small mono">SHA-256 ${of.sha256}</p><//>`;
}

/** Read a test report in JUnit's XML; null when it is another kind of XML. */
export function reportOf(text) {
  const document_ = new DOMParser().parseFromString(text, 'application/xml');
  if (document_.querySelector('parsererror') || !/^testsuites?$/.test(document_.documentElement.tagName)) return null;
  const cases = [...document_.querySelectorAll('testcase')].map((node) => {
    const wrong = node.querySelector('failure, error');
    return {
      name: node.getAttribute('name'), suite: node.getAttribute('classname') || node.closest('testsuite')?.getAttribute('name') || '', ms: Number(node.getAttribute('time')) * 1000,
      status: wrong ? 'failed' : node.querySelector('skipped') ? 'cancelled' : 'completed', words: wrong && `${wrong.getAttribute('message') ?? ''}\n${wrong.textContent}`.trim(),
    };
  });
  return cases.length ? cases : null;
}

function Report({ of: cases }) {
  const of = (status) => cases.filter((each) => each.status === status).length;
  const order = { failed: 0, completed: 2, cancelled: 1 };
  const sorted = [...cases].sort((one, other) => order[one.status] - order[other.status]);
  return html`<div class="acts"><${Badge} status="completed">${of('completed')} passed<//>${of('failed') > 0 && html`<${Badge} status="failed">${of('failed')} failed<//>`}${of('cancelled') > 0 && html`<${Badge} status="cancelled">${of('cancelled')} skipped<//>`}<span class="faint small">${lasted(cases.reduce((sum, each) => sum + (each.ms || 0), 0))}</span></div>
    <div class="preview" tabIndex="0"><table class="list"><thead class="unseen"><tr><th>Test</th><th>Time</th></tr></thead><tbody>${sorted.slice(0, 2000).map((each, index) => html`<tr key=${index}><td><${Glyph} status=${each.status} size=${14} /> <span class="faint">${each.suite && `${each.suite} › `}</span>${each.name}${each.words && html`<details open=${index < 3}><summary class="small bad">What went wrong</summary><pre class="small">${each.words}</pre></details>`}</td><td class="right faint nowrap">${lasted(each.ms || 0)}</td></tr>`)}</tbody></table></div>`;
}
