// How jobs and apps are called, and what can be done to them, wherever they are shown.
import { ask, foretell, plural, post } from './kit.js';
import { complain, confirm, toast } from './parts.js';

export const FINISHED = new Set(['completed', 'failed', 'cancelled']);
export const titleOf = (job) => job.name || job.command || (job.argv ?? []).join(' ') || job.jobId;
export const statusOf = (job) => (job.cancelRequested && job.status === 'running' ? 'cancelling' : job.status === 'queued' && job.wait ? 'waiting' : job.status);

export const REASONS = {
  exit_code: 'It ended with another exit code than 0.', timeout: 'It took longer than its timeout and was ended.', lost: 'Its worker was lost, and it may run at most once.',
  quarantined: 'It lost three workers, so it is kept from the queue until somebody looks at it.', invalid: 'Its record cannot be understood.', integrity: 'Its order does not carry our signature, so it was not run.',
};
export const WAITS = { delay: 'waits for its time', backoff: 'waits before the next try', schedule: 'waits for its time', dependency: 'waits for other jobs', key: 'waits for its concurrency key' };
export const outcomeWords = (outcome) => ({ exit_code: 'failed', worker_lost: 'worker lost' })[outcome] ?? outcome.replaceAll('_', ' ');

/** Turn what an event says into what a list shows of that job. */
export function patched(job, event) {
  switch (event.type) {
    case 'job.started': return { ...job, status: 'running', workerId: event.workerId ?? job.workerId, attempt: event.attempt ?? job.attempt, startedAt: stamp(event), waitedMs: null, ranMs: null, completedAt: null, progress: null, wait: null };
    case 'job.progress': return { ...job, progress: event.progress };
    case 'job.completed': return { ...job, status: event.status ?? job.status, reason: event.reason ?? null, exitCode: event.exitCode ?? null, completedAt: stamp(event), ranMs: job.startedAt ? Math.max(0, Date.parse(stamp(event)) - Date.parse(job.startedAt)) : null };
    case 'job.queued': return { ...job, status: 'queued', workerId: null };
    default: return job;
  }
}
const stamp = (event) => new Date(Number(event.id.split('-')[0])).toISOString();

export async function cancel(job) {
  const sure = await confirm({ title: 'Cancel this job?', body: job.status === 'running' ? 'Its command is ended, with everything that it started.' : 'It will not run.', action: 'Cancel the job', danger: true });
  if (!sure) return;
  foretell(`/api/jobs/status?jobId=${job.jobId}`, (data) => ({ ...data, job: { ...data.job, ...(job.status === 'running' ? { cancelRequested: true } : { status: 'cancelled' }) } }));
  try { toast((await post('/api/jobs/cancel', { jobId: job.jobId })).message); } catch (problem) { complain(problem); }
}

export async function retry(job) {
  const { jobId } = await post(`/api/jobs/${job.jobId}/retry`);
  toast('It runs again, as a new job.', { link: ['Open it', `#/jobs/${jobId}`] });
  return jobId;
}

/** The most jobs that one request names. */
export const PORTION = 1000;

/** Ask for the same of many jobs; says of how many it was done, and why not of the others. */
export async function many(path, jobIds, told) {
  const results = [];
  try {
    for (let at = 0; at < jobIds.length; at += PORTION) {
      const headers = { 'Idempotency-Key': Array.from(crypto.getRandomValues(new Uint32Array(4)), (word) => word.toString(16)).join('') };
      results.push(...(await post(path, { jobIds: jobIds.slice(at, at + PORTION) }, { headers })).results);
    }
  } catch (problem) { complain(problem); }
  const wrong = results.filter((each) => !each.ok);
  if (results.length > wrong.length) toast(told(results.length - wrong.length));
  if (wrong.length) toast(`${plural(wrong.length, 'job')} could not be changed.`, { kind: 'bad', hint: wrong[0].error });
}

/** Begin a change of an app, which a job carries out. */
export async function change(instanceId, action, body = {}, method = 'POST') {
  const answer = await ask(method, `/api/apps/${encodeURIComponent(instanceId)}${action ? `/${action}` : ''}`, method === 'DELETE' ? undefined : body);
  return answer;
}
