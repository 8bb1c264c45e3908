// Quarantine: jobs that lost three workers, with how each of these ended, to be released or discarded.
import { bytes, html, post, remove, to, useMay, useRead } from '../kit.js';
import { Act, Card, Empty, Facts, Glyph, Head, Read, Time, confirm, toast } from '../parts.js';
import { titleOf } from '../words.js';

const how = (death) => [death.how === 'by-itself' ? 'the command had ended by itself' : death.how === 'with-its-worker' ? 'the command ended with its worker' : 'how the command ended is not known', death.exitSignal && `by signal ${death.exitSignal}`, death.maxRssBytes && `having used ${bytes(death.maxRssBytes)}`].filter(Boolean).join(', ');

export default function Quarantine() {
  const operator = useMay('w');
  const read = useRead('/api/jobs/quarantine?limit=100', { about: (event) => event.type === 'job.completed', every: 60_000 });
  const release = async (job) => { const { jobId } = await post(`/api/jobs/quarantine/${job.jobId}/release`); toast('It runs again, as a new job.', { link: ['Open it', to('jobs', jobId)] }); read.reload(); };
  const discard = async (job) => {
    if (!(await confirm({ title: 'Discard this job?', body: 'It leaves the quarantine and stays failed.', action: 'Discard it', danger: true }))) return;
    await remove(`/api/jobs/quarantine/${job.jobId}`);
    read.reload();
  };
  return html`<${Head} title="Quarantine" sub="Jobs that lost three workers, kept from the queue until somebody looks at them." />
    <${Read} of=${read}>${({ jobs }) => (jobs.length === 0 ? html`<${Card}><${Empty} icon="shield" title="Nothing is in quarantine" command="hostler quarantine list">A job whose worker dies is run again; after the third death it is kept here, for it may be what kills them.<//><//>` : html`<div class="grid">${jobs.map((job) => html`<${Card} key=${job.jobId} title=${html`<a href=${to('jobs', job.jobId)}>${titleOf(job)}</a>`} acts=${operator && html`<${Act} kind="tiny" icon="again" do=${() => release(job)}>Release<//><${Act} kind="tiny danger" icon="trash" do=${() => discard(job)}>Discard<//>`}>
      <div class="two"><ol class="timeline">${job.deaths.map((death) => html`<li key=${death.attempt}><${Glyph} status="failed" /><div>Attempt ${death.attempt} lost <span class="strong">${death.workerId}</span><div class="faint small"><${Time} at=${death.at} />; ${how(death)}</div></div></li>`)}</ol>
        <div><${Facts} of=${[['Id', html`<span class="mono small">${job.jobId}</span>`], ['Submitted', html`<${Time} at=${job.createdAt} />`]]} />${job.lastLines && html`<h3 style=${{ marginTop: 12 }}>What it said last</h3><pre class="preview small" style=${{ padding: 12 }} tabIndex="0">${job.lastLines}</pre>`}</div></div><//>`)}</div>`)}<//>`;
}
