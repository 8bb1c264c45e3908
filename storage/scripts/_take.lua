-- A queued job becomes a worker's, whose list it is in already: under a lease and the next attempt's number.
-- needs: now, event
-- include tally
-- job: id attempt(the fencing token) created, lined(since when it stands in line) or nothing, bytes(that earlier attempts
-- left) or nothing; ahead: '1' where it is held and not yet run. `taken` has to follow in the same run.
local function take(job, worker, lease_ms, ahead)
  redis.call('HSET', 'h:job:' .. job.id, 'state', 'running', 'attempt', job.attempt, 'worker', worker, 'started', now_text,
    'ahead', ahead, 'base', job.bytes or '0')           -- base: the output that earlier attempts left
  redis.call('ZADD', 'h:leases', string.format('%d', now + lease_ms), job.id)
end

-- What else there is to be written of jobs of one queue that a worker has taken, for all of them at once.
local function taken(jobs, queue, worker, iso)
  local ids, scores, executions, waits = {}, {}, {}, {}
  for i, job in ipairs(jobs) do
    ids[i], waits[i] = job.id, now - (tonumber(job.lined or '') or job.created)
    scores[2 * i - 1], scores[2 * i] = job.created, job.id
    -- score +inf: `rq info` runs RQ's own cleanup over this registry and would fail or double expired entries (R7)
    executions[2 * i - 1], executions[2 * i] = '+inf', job.id .. ':' .. job.attempt
    redis.call('HSET', 'rq:job:' .. job.id, 'status', 'started', 'started_at', iso, 'worker_name', worker)
    event('job.started', 'id', job.id, 'a', job.attempt, 'w', worker)
  end
  redis.call('ZREM', 'h:jobs:queued', unpack(ids))
  redis.call('ZADD', 'h:jobs:running', unpack(scores))
  redis.call('ZADD', 'h:jobs:worker:' .. worker, unpack(scores))
  redis.call('ZADD', 'rq:wip:' .. queue, unpack(executions))
  tally_times('wait:' .. (string.sub(queue, 1, 5) == 'node.' and 'node' or string.match(queue, '%a+$') or 'normal'), waits)
end
