-- Ask for a job's end: at once if it waits; as a durable flag, sped up by a message, if it runs.
-- ARGV: id actor iso -> {'unknown'} | {'cancelled'} | {'requested', worker} | {state}
-- include job
-- include event
-- include audit
-- include queue
-- include finish
local job = load(ARGV[1])
if not job then return {'unknown'} end
if TERMINAL[job.state] then return {job.state} end
if job.cancel == '' then
  audit(now_text, ARGV[2], 'job.cancel', job.id)
  redis.call('HSET', job.hash, 'cancel', now_text, 'cancelled_by', ARGV[2])
  job.cancel = now_text
end
if job.state == 'queued' then
  finish(job, 'cancelled', 'cancelled', '', ARGV[3])
  return {'cancelled'}
end
redis.call('ZADD', 'h:cancels', 'NX', now_text, job.id)
redis.call('PUBLISH', 'h:control:' .. job.worker, 'cancel ' .. job.id .. ' ' .. job.attempt)
return {'requested', job.worker}
