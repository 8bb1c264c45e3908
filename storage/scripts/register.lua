-- Make a worker known under a new registration; what an earlier one of its name still held is lost.
-- ARGV: worker registration proof(earlier registration | '' ) iso record(JSON) silent_ms
-- -> {'ok', created} | {'taken'} | {'node'}
-- include job
-- include event
-- include queue
-- include finish
-- include lost
local A, hash = ARGV, 'h:worker:' .. ARGV[1]
local old = redis.call('HMGET', hash, 'registration', 'status', 'seen', 'registered', 'jobs_completed', 'drain', 'kind')
local held = redis.call('LRANGE', 'h:proc:' .. A[1], 0, -1)
if old[1] and old[1] ~= A[3] and old[2] ~= 'offline' then
  if now - tonumber(old[3]) < tonumber(A[6]) then return {'taken'} end
  for _, id in ipairs(held) do           -- silent, but at work: its lease is as long as the job may take
    if tonumber(redis.call('ZSCORE', 'h:leases', id) or 0) > now then return {'taken'} end
  end
end
local facts = cjson.decode(A[5])
-- a node's name is its own while it is away, too: its apps and backups would be those of an agent, which has none
if old[7] == 'worker' and facts.kind == 'agent' then return {'node'} end
for _, id in ipairs(held) do
  local job = load(id)
  if job and job.state == 'running' and job.worker == A[1] then lost(job, A[4]) end
end
redis.call('DEL', 'h:proc:' .. A[1])
redis.call('DEL', hash)                  -- the facts of an earlier registration do not linger
local fields = {'registration', A[2], 'status', 'online', 'seen', now_text, 'registered', old[4] or now_text,
  'jobs_completed', old[5] or 0}
for name, value in pairs(facts) do fields[#fields + 1] = name; fields[#fields + 1] = value end
if old[6] then fields[#fields + 1] = 'drain'; fields[#fields + 1] = old[6] end      -- until somebody says otherwise
redis.call('HSET', hash, unpack(fields))
redis.call('ZADD', 'h:workers', 'NX', now_text, A[1])
redis.call('ZADD', 'h:workers:seen', now_text, A[1])
event('worker.online', 'w', A[1])
apps_of_node(A[1])
return {'ok', old[4] or now_text}
