// Schedules: what recurs, when it comes next, and the coming day as a strip.
import { dayTime, html, link, plural, remove, shortTime, to, useMay, useRead, useSignal, now } from '../kit.js';
import { Act, Actor, Card, Empty, Head, Icon, List, Read, Time, confirm, toast } from '../parts.js';

const DAY_MS = 86_400_000;
const RUNS = 48;
const about = (event) => event.type.startsWith('schedule.') || event.type === 'job.queued';

export default function Schedules() {
  const operator = useMay('w');
  const read = useRead('/api/schedules?limit=500', { about, every: 60_000 });
  const coming = useRead(`/api/schedules?limit=12&runs=${RUNS}`, { about, every: 60_000 });
  const end = async (schedule) => {
    if (!(await confirm({ title: 'End this schedule?', body: 'The run that waits is cancelled; one that runs goes on.', action: 'End it', danger: true }))) return;
    await remove(`/api/schedules/${schedule.scheduleId}`);
    toast('The schedule has ended.');
    read.reload();
  };
  return html`<${Head} title="Schedules">${operator && html`<a class="button primary" href=${link('/submit', { when: 'cron' })}><${Icon} name="plus" />New schedule</a>`}<//>
    <${Read} of=${read}>${({ schedules }) => (schedules.length === 0 ? html`<${Card}><${Empty} icon="clock" title="Nothing recurs" command="hostler submit './backup.sh' --cron '0 3 * * *' --timezone Europe/Berlin">A schedule submits the same job again and again, by a cron expression in a time zone.<//><//>` : html`<div class="grid">
      <${Card} title="The next 24 hours"><${Read} of=${coming}>${(soonest) => html`<${Strip} schedules=${soonest.schedules} />`}<//><//>
      <${Card} flush><${List} label="Schedules" rows=${schedules} keyOf=${(row) => row.scheduleId} open=${(row) => to('jobs', row.jobId)} columns=${[
        { name: 'Job', show: (row) => html`<div class="strong">${row.name || row.command}</div>${row.name && html`<div class="faint mono small cut" style=${{ maxWidth: 460 }}>${row.command}</div>`}` },
        { name: 'Recurs', named: true, show: (row) => html`<span class="mono">${row.cron}</span> <span class="faint small">${row.timezone}</span>` },
        { name: 'Next', named: true, show: (row) => html`<a href=${to('jobs', row.jobId)}><${Time} at=${row.nextAt} future /></a> <span class="faint small">${dayTime(Date.parse(row.nextAt))}</span>` },
        { name: 'By', named: true, show: (row) => html`<span class="faint small"><${Actor} of=${row.createdBy} /></span>` },
        { name: 'Actions', unseen: true, right: true, show: (row) => operator && html`<${Act} kind="tiny danger" icon="stop" do=${() => end(row)}>End<//>` },
      ]} /><//></div>`)}<//>`;
}

/** One line a schedule, a mark a run. */
function Strip({ schedules }) {
  const from = Math.floor(useSignal(now) / 60_000) * 60_000;
  const at = (time) => `${(100 * (Date.parse(time) - from)) / DAY_MS}%`;
  const hours = [3, 6, 9, 12, 15, 18, 21];
  const shown = schedules.map((schedule) => [schedule, (schedule.nextRuns ?? [schedule.nextAt]).filter((time) => Date.parse(time) - from < DAY_MS && Date.parse(time) >= from)]).filter(([, runs]) => runs.length).slice(0, 12);
  if (!shown.length) return html`<span class="soft">Nothing is due within a day.</span>`;
  return html`<div class="grid" style=${{ gap: 10 }}>${shown.map(([schedule, runs]) => html`<div key=${schedule.scheduleId}><div class="small soft cut">${schedule.name || schedule.command}</div><div class="strip" style=${{ height: 24 }} role="img" aria-label=${`${schedule.name || schedule.command}: ${runs.length === RUNS ? `${RUNS} runs or more` : plural(runs.length, 'run')} within 24 hours, the first ${shortTime(runs[0])}`}>${hours.map((hour) => html`<u key=${hour} style=${{ left: `${(100 * hour) / 24}%` }}></u>`)}${runs.map((time) => html`<i key=${time} title=${shortTime(time)} style=${{ left: at(time) }}></i>`)}${runs.length === RUNS && html`<b title="and on" style=${{ left: at(runs.at(-1)) }}></b>`}</div></div>`)}
    <div class="strip-scale" aria-hidden="true"><span>now</span>${[6, 12, 18].map((hour) => html`<span key=${hour}>${shortTime(from + hour * 3_600_000)}</span>`)}<span>${shortTime(from + DAY_MS)}</span></div></div>`;
}
