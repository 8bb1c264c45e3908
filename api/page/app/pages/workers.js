// Workers and nodes: who is there, what each does, and what each is for.
import { ask, bytes, get, html, link, plural, to, useEffect, useMay, useRead, useRef, useState } from '../kit.js';
import { Act, Badge, Card, Empty, Head, List, Read, Search, Spark, Tags, Time, confirm, toast } from '../parts.js';

const about = (event) => event.type.startsWith('worker.') || event.type === 'job.started' || event.type === 'job.completed';
const POINTS = 60;
const STEP_MS = 5000;

/** What each worker ran before the page was opened, by what the jobs say that ended last and those that run. */
async function past(workers) {
  const [ended, running] = await Promise.all(['sort=-completedAt', 'status=running'].map((words) => get(`/api/jobs/list?limit=1000&${words}`)));
  const until = Date.now();
  const known = ended.hasMore ? Date.parse(ended.jobs.at(-1).completedAt) : 0;  // of what ended before that nothing was read
  const spans = new Map(workers.map(({ workerId }) => [workerId, []]));
  for (const job of [...ended.jobs, ...running.jobs]) if (job.startedAt) spans.get(job.workerId)?.push([Date.parse(job.startedAt), job.completedAt ? Date.parse(job.completedAt) : Infinity]);
  const points = Math.min(POINTS - 1, Math.floor((until - known) / STEP_MS));
  return new Map(workers.map(({ workerId, slots }) => [workerId, Array.from({ length: points }, (_, index) => {
    const at = until - (points - index) * STEP_MS;
    const ran = spans.get(workerId).filter(([began, ended_]) => began <= at && at < ended_).length;
    return Math.min(1, ran / Math.max(1, slots));
  })]));
}

/** What each worker ran in the past five minutes, looked at every few seconds while a page shows it. */
export function useLoads(workers) {
  const [, redraw] = useState(0);
  const loads = useRef(new Map()).current;
  const latest = useRef(workers);
  latest.current = workers;
  const there = Boolean(workers);
  useEffect(() => {
    if (!there) return undefined;
    const note = () => {
      for (const worker of latest.current) {
        const list = loads.get(worker.workerId) ?? [];
        list.push(worker.status === 'online' ? worker.running / Math.max(1, worker.slots) : 0);
        loads.set(worker.workerId, list.slice(-POINTS));
      }
      redraw((number) => number + 1);
    };
    note();
    let over = false;
    past(latest.current).then((before) => {
      if (over) return;
      for (const [id, list] of before) loads.set(id, [...list, ...(loads.get(id) ?? [])].slice(-POINTS));
      redraw((number) => number + 1);
    }, () => {});  // then it begins now
    const timer = setInterval(note, STEP_MS);
    return () => { over = true; clearInterval(timer); };
  }, [there]);
  return (id) => loads.get(id) ?? [0];
}

export async function drain(worker, reload) {
  const on = !worker.draining;
  if (on && !(await confirm({ title: `Drain ${worker.workerId}?`, body: 'It takes no more jobs; what runs there ends as it would. Its apps go on.', action: 'Drain it' }))) return;
  await ask('PUT', `/api/workers/${encodeURIComponent(worker.workerId)}/draining`, { draining: on });
  toast(on ? `${worker.workerId} takes no more jobs.` : `${worker.workerId} takes jobs again.`);
  reload();
}

export default function Workers() {
  const operator = useMay('w');
  const read = useRead('/api/workers/list?limit=1000', { about, every: 15_000 });
  const [text, setText] = useState('');
  const load = useLoads(read.data?.workers);
  return html`<${Head} title="Workers" sub="The machines that run jobs and keep apps." />
    <${Read} of=${read}>${({ workers }) => {
      if (!workers.length) return html`<${Card}><${Empty} icon="node" title="No worker has ever been here" command=${`hostler agent --url ${location.origin} --name my-machine`}>A worker runs beside Redis; an agent on any machine that reaches this address by HTTP. It registers with an operator’s API key.<//><//>`;
      const shown = workers.filter((each) => `${each.workerId} ${each.hostname} ${each.tags.join(' ')} ${each.status}`.toLowerCase().includes(text.toLowerCase()));
      return html`<div class="bar"><${Search} placeholder="Search workers" value=${text} onChange=${setText} wait_ms=${60} /><span class="faint small" role="status">${plural(workers.filter((each) => each.status === 'online').length, 'worker')} online of ${workers.length}</span></div>
        <${Card} flush><${List} label="Workers" rows=${shown} keyOf=${(each) => each.workerId} open=${(each) => to('workers', each.workerId)} columns=${[
          { name: 'Worker', show: (each) => html`<a class="strong" href=${to('workers', each.workerId)}>${each.workerId}</a><div class="faint small">${each.hostname} ${each.kind === 'agent' ? ', an agent' : ''}</div>` },
          { name: 'State', show: (each) => html`<${Badge} status=${each.draining && each.status === 'online' ? 'draining' : each.status} />${each.offlineReason && html`<div class="faint small">${each.offlineReason}</div>`}` },
          { name: 'Slots', named: true, show: (each) => html`<a class="soft" href=${link('/jobs', { worker: each.workerId, status: 'running' })}>${each.running} of ${each.slots}</a>` },
          { name: 'Load', show: (each) => html`<div style=${{ width: 120 }}><${Spark} values=${load(each.workerId)} most=${1} label=${`Share of the slots of ${each.workerId} in use, in the past five minutes`} /></div>` },
          { name: 'Tags', show: (each) => html`<${Tags} of=${each.tags} />` },
          { name: 'Machine', show: (each) => html`<span class="soft nowrap">${each.cpuCount ? plural(each.cpuCount, 'core') : ''}${each.totalMemoryMb ? `, ${bytes(each.totalMemoryMb * 1024 * 1024)}` : ''}</span>` },
          { name: 'Seen', named: true, show: (each) => html`<span class="soft nowrap"><${Time} at=${each.lastHeartbeat} /></span>` },
          { name: 'Actions', unseen: true, right: true, show: (each) => operator && each.status === 'online' && html`<${Act} kind="tiny" do=${() => drain(each, read.reload)}>${each.draining ? 'Take jobs again' : 'Drain'}<//>` },
        ]} /><//>`;
    }}<//>`;
}
