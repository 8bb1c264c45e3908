-- A worker is alive: renew its leases; tell it what it has lost and what it shall cancel.
-- ARGV: worker registration lease_ms rq_ttl_s iso status(JSON) then id attempt ...
-- -> {'unregistered'} | {'ok', {lost id...}, {cancel id...}}
-- include job
-- include event
-- include app
-- include queue
-- include finish
local A, worker = ARGV, 'h:worker:' .. ARGV[1]
local known = redis.call('HMGET', worker, 'registration', 'status')
if known[1] ~= A[2] then return {'unregistered'} end
if known[2] == 'offline' then                    -- it was only silent
  redis.call('HDEL', worker, 'offline_at', 'offline_reason')
  event('worker.online', 'w', A[1])
  redis.call('HSET', worker, 'status', 'online')
  apps_of_node(A[1])
end
local due = string.format('%d', now + A[3])
local fields = {'seen', now_text, 'status', 'online'}
for name, value in pairs(cjson.decode(A[6])) do fields[#fields + 1] = name; fields[#fields + 1] = value end
redis.call('HSET', worker, unpack(fields))
redis.call('ZADD', 'h:workers:seen', now_text, A[1])
if tonumber(A[4]) > 0 then                       -- an RQ worker: keep what `rq info` reads
  local status = cjson.decode(A[6])
  redis.call('HSET', 'rq:worker:' .. A[1], 'last_heartbeat', A[5], 'state', status.running > 0 and 'busy' or 'idle',
    'current_job', status.current_job)
  redis.call('PERSIST', 'rq:worker:' .. A[1])    -- it must outlive an outage; the reaper lets it expire
  redis.call('DEL', 'rq:worker:' .. A[1] .. ':executions')
end
local lost, cancel = {}, {}
for i = 7, #A, 2 do
  local r = redis.call('HMGET', 'h:job:' .. A[i], 'state', 'attempt', 'worker', 'cancel', 'started')
  if r[1] == 'running' and r[2] == A[i + 1] and r[3] == A[1] then
    redis.call('ZADD', 'h:leases', due, A[i])
    if tonumber(A[4]) > 0 then
      local execution = A[i] .. ':' .. A[i + 1]
      redis.call('SADD', 'rq:worker:' .. A[1] .. ':executions', execution)
      redis.call('HSET', 'rq:execution:' .. execution, 'id', A[i + 1], 'job_id', A[i], 'worker_name', A[1],
        'created_at', r[5] / 1000, 'last_heartbeat', now / 1000)
      redis.call('EXPIRE', 'rq:execution:' .. execution, A[4])
    end
    if r[4] then cancel[#cancel + 1] = A[i] end
  else
    lost[#lost + 1] = A[i]
  end
end
-- what it was handed and has not heard of goes back, after the time that a word may be on its way
local known = {}
for i = 7, #A, 2 do known[A[i]] = true end
for _, id in ipairs(redis.call('LRANGE', 'h:proc:' .. A[1], 0, -1)) do
  local job = not known[id] and load(id)
  if job and job.state == 'running' and job.worker == A[1] and job.ahead ~= '' and now - job.started > 2000 then
    if job.cancel ~= '' then finish(job, 'cancelled', 'cancelled', '', A[5]) else requeue(job, 'not heard of', nil) end
  end
end
return {'ok', lost, cancel}
