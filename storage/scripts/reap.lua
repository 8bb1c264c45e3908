-- Take back what dead workers held, end cancels that nobody honoured, mark the silent as offline.
-- Any number of reapers may run it at once: the step that takes a lease away also decides what follows.
-- ARGV: lease_ms cancel_ms silent_ms most iso absence_ms
-- -> {hold_ms, {lost id...}, {cancelled id...}, {offline worker...}}
-- include job
-- include event
-- include queue
-- include finish
-- include lost
-- include patience
-- include gone
local lease_ms, most, iso = tonumber(ARGV[1]), ARGV[4], ARGV[5]
patience('h:reaper:last', lease_ms, tonumber(ARGV[6]))
local hold = tonumber(redis.call('GET', 'h:reaper:hold') or 0) - now
if hold > 0 then return {hold, {}, {}, {}} end
local gone, ended, silent = {}, {}, {}

-- Tell whether its worker never heard that it has this job, since the answer to its claim got lost: it sends heartbeats,
-- one after the time that an answer may be on its way, and none has renewed the lease of the claim.
local function unheard(job)
  local worker = redis.call('HMGET', 'h:worker:' .. job.worker, 'seen', 'lease_ms')
  local seen, whole = tonumber(worker[1] or ''), tonumber(worker[2] or '')
  local due = tonumber(redis.call('ZSCORE', 'h:leases', job.id))
  return seen and whole and seen - job.started > 2000 and due <= job.started + whole
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'h:leases', '-inf', now_text, 'LIMIT', 0, most)) do
  local job = load(id)
  if job and job.state == 'running' then
    lost(job, iso, unheard(job))
    gone[#gone + 1] = id
  else
    redis.call('ZREM', 'h:leases', id)
  end
end
local overdue = string.format('%d', now - ARGV[2])
for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'h:cancels', '-inf', overdue, 'LIMIT', 0, most)) do
  local job = load(id)
  redis.call('ZREM', 'h:cancels', id)
  if job and not TERMINAL[job.state] then
    finish(job, 'cancelled', 'cancelled', '', iso)
    ended[#ended + 1] = id
  end
end
local quiet = string.format('%d', now - ARGV[3])
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', 'h:workers:seen', '-inf', quiet, 'LIMIT', 0, most)) do
  if redis.call('LLEN', 'h:proc:' .. worker) > 0 then      -- at work under a lease that has not run out
    redis.call('ZADD', 'h:workers:seen', now_text, worker)
  else
    redis.call('ZREM', 'h:workers:seen', worker)
    redis.call('HSET', 'h:worker:' .. worker, 'status', 'offline', 'offline_at', now_text, 'offline_reason', 'silent')
    rq_worker_gone(worker)
    event('worker.offline', 'w', worker, 'why', 'silent')
    apps_of_node(worker)
    silent[#silent + 1] = worker
  end
end
return {0, gone, ended, silent}
