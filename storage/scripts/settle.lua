-- End an attempt: result, state and release of the worker at once.
-- ARGV: id attempt worker outcome(completed | failed | cancelled | released) reason exit iso result_b64 jitter
--       n, n names and values of facts; id and attempt of each held job that the worker starts at the same time
--       reason of what is released: 'unstarted' where nothing of it was run, though it was claimed to be run at once
-- -> {'ok' | 'replay', state, lost} | {'stale' | 'unknown', '', lost}; lost: {id...} of those that are not its to start
-- include job
-- include event
-- include conclude
-- include begin
-- what only few attempts need as they end: each of these functions would be made anew at every run
local function with_more()
-- include queue
-- include finish
  return {requeue = requeue, finish = finish}
end
local A = ARGV
local id, outcome, reason, exit, iso = A[1], A[4], A[5], A[6], A[7]
local facts, lost, last = {}, {}, 10 + A[10]
for i = 11, last do facts[i - 10] = A[i] end
for i = last + 1, #A, 2 do
  if begin(A[i], A[i + 1], A[3]) ~= 'ok' then lost[#lost + 1] = A[i] end
end
local job, standing = current(id, A[2], A[3])
if standing == 'over' and TERMINAL[job.state] then return {'replay', job.state, lost} end
if standing == 'unknown' then return {'unknown', '', lost} end
if standing ~= 'ok' then
  -- said twice: the attempt that this worker ended last, and that did not end the job
  local mark, said = A[3] .. ' ' .. A[2], redis.call('HGET', job.hash, 'settled') or ''
  if said == mark or (A[2] == '' and job.worker == '' and string.sub(said, 1, #mark) == mark) then
    return {'replay', job.state, lost}
  end
  return {'stale', '', lost}
end
if outcome == 'released' then
  if job.cancel ~= '' then outcome = 'failed'                                        -- it must not start again
  elseif job.once ~= '' and job.ahead == '' and reason ~= 'unstarted' then outcome, reason = 'failed', 'lost' end
end
if outcome == 'failed' and job.cancel ~= '' then outcome, reason = 'cancelled', 'cancelled' end
local again = outcome == 'failed' and job.once == '' and (reason == 'exit_code' or reason == 'timeout')
  and tonumber(job.failures) < tonumber(job.retries)
local plain = outcome ~= 'released' and not again and job.key == '' and job.kids == '' and job.app == '' and job.backup == ''
local more = not plain and with_more()
if more and #facts > 0 then redis.call('HSET', job.hash, unpack(facts)) end
if outcome == 'released' then
  redis.call('HSET', job.hash, 'settled', A[3] .. ' ' .. job.attempt)
  if reason == 'unstarted' then                          -- it stops, or has no slot: not ready before it claims again
    local registration = redis.call('HGET', 'h:worker:' .. A[3], 'registration')
    redis.call('SREM', 'h:ready:' .. job.queue, (registration or '') .. ' ' .. A[3])
  end
  more.requeue(job, 'handed back', nil)
  return {'ok', 'queued', lost}
end
local worker = 'rq:worker:' .. A[3]
if redis.call('EXISTS', worker) == 1 then                -- else none of RQ's: an agent
  redis.call('HINCRBY', worker, outcome == 'completed' and 'successful_job_count' or 'failed_job_count', 1)
end
redis.call('HINCRBY', 'h:worker:' .. A[3], 'jobs_completed', 1)
if again then
  local base, factor, cap = string.match(job.backoff, '^(%d+) ([%d.]+) (%d+)$')
  if not base then base, factor, cap = '0', '1', '0' end         -- a word that somebody else wrote
  local delay = math.min(base * factor ^ job.failures, tonumber(cap)) * tonumber(A[9])
  redis.call('HSET', job.hash, 'failures', job.failures + 1, 'exit', exit, 'reason', reason,
    'settled', A[3] .. ' ' .. job.attempt)
  more.requeue(job, reason, delay >= 1 and math.floor(now + delay) or nil)
  return {'ok', 'queued', lost}
end
if more then
  more.finish(job, outcome, reason, exit, iso)
else
  conclude(job, outcome, reason, exit, iso, facts)
end
redis.call('XADD', 'rq:results:' .. id, '*', 'type', outcome == 'completed' and '1' or '2', 'worker_name', A[3],
  'return_value', A[8])
redis.call('EXPIRE', 'rq:results:' .. id, 500)
return {'ok', outcome, lost}
