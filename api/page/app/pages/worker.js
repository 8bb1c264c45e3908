// One worker: what it runs, which apps it has, what it is.
import { bytes, html, link, plural, remove, to, useMay, useRead } from '../kit.js';
import { Act, Badge, Card, Facts, Head, Read, Running, Spark, Tags, Time, confirm, toast } from '../parts.js';
import { statusOf, titleOf } from '../words.js';
import { drain, useLoads } from './workers.js';

export default function Worker({ parts: [, id] }) {
  const operator = useMay('w');
  const about = (event) => event.workerId === id;
  const read = useRead(`/api/workers/${encodeURIComponent(id)}`, { about, every: 10_000 });
  const jobs = useRead(`/api/jobs/list?workerId=${encodeURIComponent(id)}&limit=30`, { about: (event) => event.type.startsWith('job.') && event.type !== 'job.progress', every: 30_000 });
  const apps = useRead(`/api/apps?node=${encodeURIComponent(id)}&limit=200`, { about: (event) => event.node === id });
  const load = useLoads(read.data && [read.data.worker]);
  const forget = async (worker) => {
    if (!(await confirm({ title: `Forget ${worker.workerId}?`, body: 'It leaves the list; what it still holds is given to others. It is back when it registers again.', action: 'Forget it', danger: true }))) return;
    await remove(`/api/workers/${encodeURIComponent(worker.workerId)}`);
    toast(`${worker.workerId} is forgotten.`);
    location.hash = '#/workers';
  };
  return html`<${Read} of=${read}>${({ worker }) => html`<${Head} back=${['Workers', '#/workers']} title=${worker.workerId} sub=${worker.hostname} badge=${html`<${Badge} status=${worker.draining && worker.status === 'online' ? 'draining' : worker.status} />`}>
      ${operator && worker.status === 'online' && html`<${Act} do=${() => drain(worker, read.reload)}>${worker.draining ? 'Take jobs again' : 'Drain'}<//>`}${operator && worker.status !== 'online' && html`<${Act} kind="danger" icon="trash" do=${() => forget(worker)}>Forget<//>`}<//>
    <div class="two"><div class="stack"><${Card} title="Load"><div class="grid"><div>${worker.running} of ${plural(worker.slots, 'slot')} in use</div><${Spark} values=${load(worker.workerId)} most=${1} label="Share of its slots in use, in the past five minutes" /></div><//>
      <${Card} title="Details"><${Facts} of=${[['Kind', worker.kind], ['Tags', worker.tags.length ? html`<${Tags} of=${worker.tags} />` : 'none'], ['Cores', worker.cpuCount], ['Memory', worker.totalMemoryMb && bytes(worker.totalMemoryMb * 1024 * 1024)], ['Keeps jobs apart by', worker.isolation], ['Version', worker.version], ['Jobs done', worker.jobsCompleted], ['Seen', html`<${Time} at=${worker.lastHeartbeat} />`], ['Registered', html`<${Time} at=${worker.registeredAt} />`], worker.offlineSince && ['Offline', html`<${Time} at=${worker.offlineSince} />, ${worker.offlineReason}`]]} /><//></div>
      <div class="stack"><${Card} title="Jobs here" flush acts=${html`<a class="small" href=${link('/jobs', { worker: id })}>All</a>`}><${Read} of=${jobs}>${({ jobs: list }) => (list.length ? html`<table class="list"><thead class="unseen"><tr><th>Job</th><th>State</th><th>Ran</th></tr></thead><tbody>${list.slice(0, 10).map((job) => html`<tr key=${job.jobId}><td style=${{ maxWidth: 0, width: '100%' }}><div class="cut"><a href=${to('jobs', job.jobId)}>${titleOf(job)}</a></div></td><td><${Badge} status=${statusOf(job)} /></td><td class="right nowrap"><${Running} ms=${job.ranMs} since=${job.startedAt} until=${job.completedAt} /></td></tr>`)}</tbody></table>` : html`<div class="card-body soft">It has run none that is still known.</div>`)}<//><//>
        <${Card} title="Apps here"><${Read} of=${apps}>${({ apps: list }) => (list.length ? html`<div class="acts">${list.map((app) => html`<a key=${app.instanceId} href=${to('apps', app.instanceId)}><${Badge} status=${app.status} steady>${app.instanceId}<//></a>`)}</div>` : html`<span class="soft">None.</span>`)}<//><//></div></div>`}<//>`;
}
