// All jobs, however many: filtered, searched, picked, cancelled and run again; a window on pages that are fetched as they come into view.
import { React, count, get, go, html, listen, plural, refine, route, to, useCallback, useEffect, useMay, useMedia, useMemo, useRef, useRead, useSignal, useState } from '../kit.js';
import { Act, Badge, Card, Empty, Head, Icon, Problem, Running, Search, Segments, Tags, Time, confirm, useRoving, useWindow } from '../parts.js';
import { FINISHED, REASONS, WAITS, PORTION, many, patched, statusOf, titleOf } from '../words.js';

const BLOCK = 100;
/** So many blocks are fetched at once: whoever flies through the list gets what is in view where they land. */
const AT_ONCE = 3;
const KEPT = 40;
const MOST_PICKED = 10_000;
const STATES = [['', 'All'], ['queued', 'Queued'], ['running', 'Running'], ['completed', 'Completed'], ['failed', 'Failed'], ['cancelled', 'Cancelled']];

/** Jobs in blocks of the list that `query` asks for: what is in view is fetched, what changes is patched in place. */
class Blocks {
  constructor(query, changed) {
    Object.assign(this, { query, changed, blocks: new Map(), busy: new Set(), total: null, problem: null, over: false, timer: 0 });
  }

  row(index) { return this.blocks.get(Math.floor(index / BLOCK))?.jobs[index % BLOCK]; }

  want(first, last) {
    this.view = [first, last];
    for (let block = Math.floor(first / BLOCK); block <= Math.floor(Math.max(first, last - 1) / BLOCK); block += 1) {
      if (this.busy.size < AT_ONCE && (this.blocks.get(block)?.stale ?? true)) this.fetch(block);
    }
  }

  async fetch(block) {
    if (this.busy.has(block)) return;
    this.busy.add(block);
    try {
      const words = new URLSearchParams({ limit: BLOCK, offset: block * BLOCK, ...this.query });
      const { jobs, total } = await get(`/api/jobs/list?${words}`);
      if (this.over) return;
      this.blocks.set(block, { jobs, stale: false });
      const middle = (this.view[0] + this.view[1]) / 2 / BLOCK;
      if (this.blocks.size > KEPT) this.blocks.delete([...this.blocks.keys()].reduce((far, each_) => (Math.abs(each_ - middle) > Math.abs(far - middle) ? each_ : far)));
      this.total = total;
      this.problem = null;
    } catch (problem) {
      this.problem = problem;
      if (problem.status === 0 || problem.status >= 429) setTimeout(() => !this.over && this.want(...this.view), 2000);
    } finally { this.busy.delete(block); }
    this.changed();
    if (!this.problem) this.want(...this.view);
  }

  refresh() {
    for (const block of this.blocks.values()) block.stale = true;
    this.want(...(this.view ?? [0, 1]));
  }

  hear(event) {
    if (event.type === 'stream.gap' || event.type === 'page.back') { this.refresh(); return; }
    if (!event.type.startsWith('job.') || !event.jobId) return;
    let found = false;
    for (const block of this.blocks.values()) {
      const at = block.jobs.findIndex((job) => job.jobId === event.jobId);
      if (at >= 0) {
        block.jobs = block.jobs.with(at, patched(block.jobs[at], event));
        found = true;
      }
    }
    if (found) this.changed();
    if (event.type === 'job.queued' && !found || (event.type !== 'job.progress' && (this.query.status || event.type === 'job.completed'))) {
      this.timer ||= setTimeout(() => { this.timer = 0; if (!this.over) this.refresh(); }, this.query.search ? 3000 : 400);  // a search looks at thousands of jobs
    }
  }
}

function useJobs(query) {
  const [, redraw] = useState(0);
  const key = JSON.stringify(query);
  const blocks = useMemo(() => new Blocks(query, () => redraw((number) => number + 1)), [key]);
  useEffect(() => {
    blocks.over = false;
    blocks.want(...(blocks.view ?? [0, 1]));
    const stop = listen((event) => blocks.hear(event));
    return () => { blocks.over = true; stop(); };
  }, [blocks]);
  return blocks;
}

const COLUMNS = '24px 128px minmax(160px, 1fr) minmax(0, 150px) 110px 90px 90px';

export default function Jobs() {
  const { query } = useSignal(route);
  const operator = useMay('w');
  const small = useMedia('(max-width: 760px)');
  const filters = Object.fromEntries(Object.entries({ status: query.status, search: query.search, workerId: query.worker, tags: query.tags }).filter(([, value]) => value));
  const jobs = useJobs(filters);
  const box = useRef(null);
  const height = small ? 64 : 44;
  const [first, last] = useWindow(box, jobs.total ?? 30, height);
  const [picked, setPicked] = useState(new Map());
  useEffect(() => { jobs.want(first, last); }, [jobs, first, last]);
  useEffect(() => { setPicked(new Map()); }, [jobs]);
  const counts = useRead('/api/overview', {}).data?.jobs;
  const pick = (index) => {
    const job = jobs.row(index);
    if (job) setPicked((before) => { const after = new Map(before); if (!after.delete(job.jobId)) after.set(job.jobId, job); return after; });
  };
  const picking = useRef(pick);
  picking.current = pick;
  const pickRow = useCallback((index) => picking.current(index), []);
  const [at] = useRoving(jobs.total ?? 0, {
    open: (index) => { const job = jobs.row(index); if (job) location.hash = to('jobs', job.jobId); },
    pick: operator && pick,
    reveal: (index) => {
      const top = index * height;
      if (top < box.current.scrollTop) box.current.scrollTop = top;
      else if (top + height > box.current.scrollTop + box.current.clientHeight) box.current.scrollTop = top + height - box.current.clientHeight;
    },
  });
  const loaded = new Map(picked.size ? [...jobs.blocks.values()].flatMap((block) => block.jobs).map((job) => [job.jobId, job]) : []);
  const chosen = [...picked.values()].map((job) => loaded.get(job.jobId) ?? job);
  const cancellable = chosen.filter((job) => !FINISHED.has(job.status));
  const again = chosen.filter((job) => FINISHED.has(job.status));
  const cancelAll = async () => {
    if (!(await confirm({ title: `Cancel ${plural(cancellable.length, 'job')}?`, body: 'Those that wait will not run; the commands of those that run are ended.', action: 'Cancel them', danger: true }))) return;
    await many('/api/jobs/cancel-batch', cancellable.map((job) => job.jobId), (number) => `${plural(number, 'job')} cancelled.`);
    setPicked(new Map());
  };
  const retryAll = async () => {
    if (again.length > 20 && !(await confirm({ title: `Run ${plural(again.length, 'job')} again?`, body: 'Each becomes a new job with the same order.', action: 'Run them' }))) return;
    await many('/api/jobs/retry-batch', again.map((job) => job.jobId), (number) => `${plural(number, 'job')} will run again.`);
    setPicked(new Map());
  };
  const pickAll = async () => {
    const found = new Map();
    for (let offset = 0, more = true; more && found.size < MOST_PICKED; offset += PORTION) {
      const page = await get(`/api/jobs/list?${new URLSearchParams({ ...filters, limit: PORTION, offset })}`);
      for (const { jobId, status } of page.jobs) found.set(jobId, { jobId, status });
      more = page.hasMore;
    }
    setPicked(found);
  };
  const filtered = Object.keys(filters).length > 0;
  const rows = [];
  for (let index = first; index < Math.min(last, jobs.total ?? 0); index += 1) rows.push(index);
  return html`<${Head} title="Jobs">${operator && html`<a class="button primary" href="#/submit"><${Icon} name="plus" />Submit</a>`}<//>
    <div class="bar"><${Segments} label="State" value=${query.status ?? ''} onChange=${(status) => refine({ status })} options=${STATES.map(([name, text]) => [name, text, counts && name && ['queued', 'running'].includes(name) ? counts[name] || null : null])} />
      <${Search} placeholder="Search name, command, id, tag" value=${query.search ?? ''} onChange=${(search) => refine({ search })} />
      ${query.worker && html`<button class="button tiny" onClick=${() => refine({ worker: '' })}>on ${query.worker}<${Icon} name="cross" size=${12} /><span class="unseen">Take this filter away</span></button>`}
      ${query.tags && html`<button class="button tiny" onClick=${() => refine({ tags: '' })}>tagged ${query.tags}<${Icon} name="cross" size=${12} /><span class="unseen">Take this filter away</span></button>`}
      <span class="faint small" role="status">${jobs.total == null ? '' : plural(jobs.total, 'job')}</span></div>
    <${Card} flush class="table" >
      <div class="row header" style=${{ '--columns': COLUMNS }} aria-hidden="true"><span></span><span>State</span><span>Job</span><span>Worker</span><span>Submitted</span><span class="right">Waited</span><span class="right">Ran</span></div>
      ${jobs.problem && jobs.total == null && html`<div class="card-body"><${Problem} of=${jobs.problem} again=${() => jobs.want(first, last)} /></div>`}
      <div class="rows" ref=${box} role="table" aria-label="Jobs" aria-rowcount=${jobs.total ?? -1} tabIndex="0">
        ${jobs.total === 0 ? html`<div role="row"><div role="cell">${filtered ? html`<${Empty} icon="search" title="No job is like that" acts=${html`<button class="button" onClick=${() => go('/jobs')}>Show all jobs</button>`}>${filters.search ? 'The newest 20,000 jobs were searched by name, command, id, worker and tags.' : 'Another state or another worker may have some.'}<//>`
          : html`<${Empty} icon="jobs" title="No jobs yet" command="hostler submit 'uname -a' --follow" acts=${operator && html`<a class="button primary" href="#/submit">Submit the first one</a>`}>A job is a command that runs on one of your workers.<//>`}</div></div>`
          : html`<div class="rows-space" role="rowgroup" style=${{ height: (jobs.total ?? 0) * height }}>${rows.map((index) => {
            const job = jobs.row(index);
            return job ? html`<${Row} key=${job.jobId} job=${job} index=${index} height=${height} at=${index === at} small=${small} picked=${picked.has(job.jobId)} pick=${operator ? pickRow : null} />` : html`<${Ghost} key=${`g${index}`} index=${index} height=${height} />`;
          })}</div>`}
      </div>
      ${picked.size > 0 && html`<div class="bulk" role="region" aria-label="Picked jobs"><span class="strong">${count(picked.size)} picked</span>
        <${Act} kind="tiny danger" icon="ban" disabled=${!cancellable.length} do=${cancelAll}>Cancel ${cancellable.length ? count(cancellable.length) : ''}<//><${Act} kind="tiny" icon="again" disabled=${!again.length} do=${retryAll}>Run ${again.length ? count(again.length) : ''} again<//>
        <${Act} kind="tiny quiet" do=${pickAll}>${jobs.total > MOST_PICKED ? `Pick the newest ${count(MOST_PICKED)}` : `Pick all ${count(jobs.total)}`}<//><button class="button tiny quiet" onClick=${() => setPicked(new Map())}>Pick none</button></div>`}
    <//>`;
}

const Ghost = ({ index, height }) => html`<div class="row line ghost" role="row" aria-rowindex=${index + 1} style=${{ '--columns': COLUMNS, top: index * height, height }}><span role="cell"></span><span role="cell"></span><span role="cell" style=${{ width: `${30 + ((index * 37) % 50)}%` }}></span></div>`;

/** Drawn anew only when something of it changes, and not with every step of scrolling. */
const Row = React.memo(({ job, index, height, at, small, picked, pick }) => {
  const status = statusOf(job);
  const title = titleOf(job);
  const style = { '--columns': small ? '24px minmax(0, 1fr)' : COLUMNS, top: index * height, height };
  const choose = html`<span role="cell">${pick && html`<input type="checkbox" class="pick" checked=${picked} onChange=${() => pick(index)} aria-label=${`Pick ${title}`} />`}</span>`;
  const badge = html`<${Badge} status=${status}>${status === 'failed' && job.exitCode ? `exit ${job.exitCode}` : status === 'running' && job.progress != null ? `${job.progress} %` : undefined}<//>`;
  const hint = job.reason ? REASONS[job.reason] : job.wait ? WAITS[job.wait] : undefined;
  if (small) {
    return html`<div class=${`row line ${at ? 'at' : ''}`} role="row" aria-rowindex=${index + 1} style=${style}>${choose}<div role="cell" style=${{ minWidth: 0 }}><div class="cut"><a class="title" href=${to('jobs', job.jobId)}>${title}</a></div>
      <div class="faint small" style=${{ display: 'flex', gap: 8, alignItems: 'center', marginTop: 3 }}>${badge}<${Time} at=${job.createdAt} />${job.ranMs != null && html`<${Running} ms=${job.ranMs} since=${job.startedAt} until=${job.completedAt} />`}</div></div></div>`;
  }
  return html`<div class=${`row line ${at ? 'at' : ''}`} role="row" aria-rowindex=${index + 1} style=${style}>${choose}
    <span role="cell" title=${hint}>${badge}</span>
    <span role="cell" class="cut" title=${title}><a class="title" href=${to('jobs', job.jobId)}>${title}</a> ${job.name && job.command && html`<span class="faint mono small">${job.command}</span>`} <${Tags} of=${job.tags} /></span>
    <span role="cell" class="cut soft">${job.workerId ? html`<a class="soft" href=${to('workers', job.workerId)}>${job.workerId}</a>` : html`<span class="faint">–</span>`}</span>
    <span role="cell" class="soft nowrap"><${Time} at=${job.createdAt} /></span>
    <span role="cell" class="right soft nowrap">${job.startedAt ? html`<${Running} ms=${job.waitedMs} since=${job.createdAt} until=${job.startedAt} />` : job.status === 'queued' ? html`<${Running} since=${job.createdAt} />` : '–'}</span>
    <span role="cell" class="right nowrap">${job.startedAt && job.status !== 'queued' ? html`<${Running} ms=${job.ranMs} since=${job.startedAt} until=${job.completedAt} />` : '–'}</span></div>`;
});
