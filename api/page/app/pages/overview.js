// The first look: what runs, what waits, what went wrong, and whether everything is there to go on.
import { count, get, html, lasted, link, plural, post, to, upload, useMay, useModule, useRead, useState } from '../kit.js';
import { Act, Badge, Card, Chart, Copy, Glyph, Head, Icon, Read, Time, toast } from '../parts.js';
import { titleOf } from '../words.js';

const aboutJobs = (event) => event.type.startsWith('job.') && event.type !== 'job.progress';
const aboutAll = (event) => aboutJobs(event) || /^(app|worker)\./.test(event.type);
const total = (list) => list.reduce((sum, each) => sum + (each ?? 0), 0);

const Figure = ({ name, value, note, href, status }) => html`<a class="figure" href=${href}><span class="name">${status && html`<${Glyph} status=${status} size=${14} />`}${name}</span><span class="value">${value}</span><span class="under">${note}</span></a>`;

export default function Overview() {
  const overview = useRead('/api/overview', { about: aboutAll, every: 15_000 });
  return html`<${Head} title="Overview" /><${Read} of=${overview}>${(data) => (data.jobs.ended + data.jobs.queued + data.jobs.running === 0 ? html`<${Beginning} data=${data} />` : html`<${Numbers} data=${data} />`)}<//>`;
}

function Numbers({ data }) {
  const { jobs, minutes, latency, workers, apps } = data;
  const from = Date.parse(minutes.from);
  const failed = total(minutes.failed);
  const ended = total(minutes.ended);
  const installed = total(Object.values(apps));
  const ill = (apps.failed ?? 0) + (apps.crashed ?? 0) + (apps.unknown ?? 0);
  return html`<div class="grid">
    <div class="figures">
      <${Figure} name="Running" status=${jobs.running ? 'running' : 'queued'} value=${count(jobs.running)} note=${`of ${plural(workers.slots, 'slot')}`} href=${link('/jobs', { status: 'running' })} />
      <${Figure} name="Queued" value=${count(jobs.queued)} note=${jobs.waiting ? `${count(jobs.waiting)} wait for others` : 'none waits for others'} href=${link('/jobs', { status: 'queued' })} />
      <${Figure} name="Ended, 1 h" value=${count(ended)} note=${`${(ended / 60).toFixed(ended < 60 ? 1 : 0)} a minute`} href=${link('/jobs')} />
      <${Figure} name="Failed, 1 h" status=${failed ? 'failed' : 'completed'} value=${count(failed)} note=${ended ? `${((100 * failed) / Math.max(ended, failed)).toFixed(1)} % of these` : 'nothing ended'} href=${link('/jobs', { status: 'failed' })} />
      <${Figure} name="Wait, middle" value=${lasted(latency.waitedP50)} note=${`95 of 100: ${lasted(latency.waitedP95)}`} href=${link('/jobs', { status: 'completed' })} />
      <${Figure} name="Workers" status=${workers.online === workers.total && workers.total ? 'online' : 'warn'} value=${`${workers.online} of ${workers.total}`} note=${workers.draining ? `${workers.draining} draining` : 'online'} href="#/workers" />
      <${Figure} name="Apps" status=${ill ? 'failed' : installed ? 'ready' : ''} value=${count(installed)} note=${ill ? `${ill} need a look` : installed ? `${apps.running ?? 0} running` : 'none installed'} href="#/apps" />
      <${BackupFigure} />
    </div>
    <div class="two">
      <${Card} title="Jobs, each minute" acts=${html`<${Legend} of=${[['Ended', '--accent'], ['Failed', '--bad']]} />`}>
        <${Chart} label="Jobs that ended and failed in each minute of the last hour" from=${from} series=${[{ name: 'Ended', colour: '--accent', values: minutes.ended, filled: true }, { name: 'Failed', colour: '--bad', values: minutes.failed }]} /><//>
      <${Card} title="Time, middle of each minute" acts=${html`<${Legend} of=${[['Waited', '--warn'], ['Ran', '--busy']]} />`}>
        <${Chart} label="How long jobs waited and ran, in each minute of the last hour" from=${from} format=${(ms) => lasted(ms)} series=${[{ name: 'Ran', colour: '--busy', values: minutes.ran, filled: true }, { name: 'Waited', colour: '--warn', values: minutes.waited }]} /><//>
    </div>
    <div class="two"><${Failures} /><div class="stack"><${Queues} queues=${data.queues} workers=${workers} /><${Standing} /></div></div>
  </div>`;
}

const Legend = ({ of }) => html`<span class="legend">${of.map(([name, colour]) => html`<span key=${name}><i style=${{ background: `var(${colour})` }}></i>${name}</span>`)}</span>`;

function BackupFigure() {
  const { data } = useRead(useModule('backups') ? '/api/backup-jobs?limit=500' : null, { about: (event) => event.type.startsWith('backup.'), every: 60_000 });
  const found = data?.backup_jobs;
  if (!found?.length) return null;
  const newest = found.map((each) => each.last_success_at).filter(Boolean).sort().at(-1);
  return html`<${Figure} name="Newest backup" status=${newest ? 'ok' : 'warn'} value=${newest ? html`<${Time} at=${newest} />` : 'none'} note=${`${found.filter((each) => each.last_proven_at).length} of ${found.length} proven`} href="#/backups" />`;
}

function Failures() {
  const read = useRead('/api/jobs/list?status=failed&sort=-completedAt&limit=8', { about: (event) => event.type === 'job.completed' });
  return html`<${Card} title="Failed last" flush acts=${html`<a class="small" href=${link('/jobs', { status: 'failed' })}>All</a>`}><${Read} of=${read}>${({ jobs }) => (jobs.length ? html`<table class="list"><thead class="unseen"><tr><th>Job</th><th>Reason</th><th>When</th></tr></thead><tbody>${jobs.map((job) => html`<tr key=${job.jobId}>
    <td style=${{ maxWidth: 0, width: '100%' }}><div class="cut"><a class="strong" href=${to('jobs', job.jobId)}>${titleOf(job)}</a></div></td>
    <td class="nowrap"><${Badge} status=${job.reason === 'quarantined' ? 'quarantined' : 'failed'}>${job.reason === 'exit_code' ? `exit code ${job.exitCode}` : job.reason ?? 'failed'}<//></td>
    <td class="nowrap right faint"><${Time} at=${job.completedAt} /></td></tr>`)}</tbody></table>` : html`<div class="card-body soft"><${Icon} name="check" class="good" /> No job that is still known has failed.</div>`)}<//><//>`;
}

function Queues({ queues, workers }) {
  const shown = queues.filter((queue) => queue.waiting || /^jobs\.(high|normal|low)$/.test(queue.name));
  const most = Math.max(1, ...shown.map((queue) => queue.waiting));
  const names = { 'jobs.high': 'high priority', 'jobs.normal': 'normal', 'jobs.low': 'low priority' };
  return html`<${Card} title="Queues"><div class="grid" style=${{ gap: 12 }}>${shown.map((queue) => html`<div key=${queue.name}><div style=${{ display: 'flex', justifyContent: 'space-between' }}><span class="soft">${names[queue.name] ?? queue.name.replace(/^jobs\./, '').replace(/\.(\w+)$/, ', $1')}</span><span>${count(queue.waiting)}</span></div><div class="meter"><i style=${{ width: `${(100 * queue.waiting) / most}%` }}></i></div></div>`)}
    <div><div style=${{ display: 'flex', justifyContent: 'space-between' }}><span class="soft">slots in use</span><span>${workers.running} of ${workers.slots}</span></div><div class="meter"><i style=${{ width: `${Math.min(100, (100 * workers.running) / Math.max(1, workers.slots))}%` }}></i></div></div></div><//>`;
}

const NAMES = { redis: 'Redis', objectStore: 'Object store', scheduler: 'Scheduler', workers: 'Workers' };
function Standing() {
  const read = useRead('/api/health/ready', { every: 20_000, about: (event) => event.type.startsWith('worker.') });
  return html`<${Card} title="What it stands on" acts=${html`<a class="small" href="#/health">Health</a>`}><${Read} of=${read}>${({ checks }) => html`<ul class="files">${checks.map((check) => html`<li key=${check.name}><${Glyph} status=${check.status === 'ok' ? 'ok' : 'fail'} />${NAMES[check.name] ?? check.name}<span class="faint small" style=${{ marginLeft: 'auto' }}>${check.message ?? lasted(check.latencyMs)}</span></li>`)}</ul>`}<//><//>`;
}

// A Hostler in which nothing has happened yet ------------------------------------------------------------------------

const EXAMPLE = 'echo "Hello from $(hostname)"; for n in 1 2 3 4 5; do echo "::progress $((n * 20))"; echo "step $n of 5"; sleep 0.4; done; echo "All done."';

/** Publish the example that comes with the page, unless it is there. */
export async function publishExample() {
  const { products } = await get('/api/releases?limit=1000');
  if (!products.some((each) => each.product === 'hello-web')) {
    const blob = await (await fetch(new URL('../hello-web.zip', import.meta.url))).blob();
    const file = await upload(new File([blob], 'hello-web.zip', { type: 'application/zip' })).done;
    await post('/api/releases', { fileId: file.fileId });
    toast('The example app is in the catalogue.');
  }
  location.hash = '#/catalogue?install=hello-web';
}

function Beginning({ data }) {
  const operator = useMay('w');
  const run = async () => {
    const { jobId } = await post('/api/jobs/submit', { command: EXAMPLE, name: 'First job' });
    location.hash = to('jobs', jobId);
  };
  return html`<div class="grid"><div class="two">
    <${Card}><div class="grid"><div><h2>Run a job</h2><p class="soft">A command runs on a worker, its output is shown as it is printed, and what it leaves is kept. ${data.workers.online ? html`${plural(data.workers.online, 'worker')} with ${plural(data.workers.slots, 'slot')} ${data.workers.online === 1 ? 'waits' : 'wait'} for one.` : 'No worker is online yet; the job waits until one is.'}</p></div>
      ${operator && html`<div class="acts"><${Act} kind="primary" icon="play" do=${run}>Run an example job<//><a class="button" href="#/submit">Submit your own</a></div>`}<div><${Copy} text="hostler submit 'uname -a' --follow" /></div></div><//>
    <${Card}><div class="grid"><div><h2>Install an app</h2><p class="soft">A product from the catalogue is installed on a node, configured, kept running, updated and rolled back. The example greets whoever asks it.</p></div>
      ${operator && html`<div class="acts"><${Act} kind="primary" icon="box" do=${publishExample}>Install the example app<//><a class="button" href="#/catalogue">Catalogue</a></div>`}<div><${Copy} text="hostler products publish examples/hello-web" /></div></div><//>
  </div><div class="two"><${Standing} /><${Card} title="From your terminal"><p class="soft">A key lets programs act for you. Make one under <a href="#/people?new=key">Users and keys</a>, then:</p><div style=${{ marginTop: 12 }}><${Copy} wrap text=${`export HOSTLER_URL=${location.origin} HOSTLER_API_KEY=…`} /></div><//></div></div>`;
}
