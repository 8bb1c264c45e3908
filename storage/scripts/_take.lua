-- A queued job becomes a worker's, whose list it is in already: under a lease and the next attempt's number.
-- needs: now, event
-- include tally
-- job: id attempt(the fencing token) queue created, lined(since when it stands in line) or nothing, bytes(that earlier
-- attempts left) or nothing; ahead: '1' where it is held and not yet run
local function take(job, worker, lease_ms, ahead, iso)
  local id, attempt = job.id, job.attempt
  redis.call('HSET', 'h:job:' .. id, 'state', 'running', 'attempt', attempt, 'worker', worker, 'started', now_text,
    'ahead', ahead, 'base', job.bytes or '0')           -- base: the output that earlier attempts left
  redis.call('ZREM', 'h:jobs:queued', id)
  redis.call('ZADD', 'h:jobs:running', job.created, id)
  redis.call('ZADD', 'h:jobs:worker:' .. worker, job.created, id)
  redis.call('ZADD', 'h:leases', string.format('%d', now + lease_ms), id)
  redis.call('HSET', 'rq:job:' .. id, 'status', 'started', 'started_at', iso, 'worker_name', worker)
  -- score +inf: `rq info` runs RQ's own cleanup over this registry and would fail or double expired entries (R7)
  redis.call('ZADD', 'rq:wip:' .. job.queue, '+inf', id .. ':' .. attempt)
  event('job.started', 'id', id, 'a', attempt, 'w', worker)
  local kind = string.sub(job.queue, 1, 5) == 'node.' and 'node' or string.match(job.queue, '%a+$') or 'normal'
  tally_time('wait:' .. kind, now - (tonumber(job.lined or '') or job.created))
end
