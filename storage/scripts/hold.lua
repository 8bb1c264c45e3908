-- An agent called: it lives. Once it has sent a heartbeat, any call of its renews the leases of all it holds; an agent
-- that never did holds each lease until its job's timeout + 30 s, which its calls must not shorten.
-- ARGV: worker registration lease_ms fields(JSON; a heartbeat's hold `beats`) -> {'unregistered'} | {'ok', beats, {cancel id...}, tags(JSON), {id, attempt...}}
-- include job
-- include event
local A, hash = ARGV, 'h:worker:' .. ARGV[1]
local known = redis.call('HMGET', hash, 'registration', 'status', 'beats', 'tags')
if known[1] ~= A[2] then return {'unregistered'} end
local given = cjson.decode(A[4])
local fields, beats = {'seen', now_text}, known[3] or given.beats
if known[2] == 'offline' then                            -- it was only silent
  redis.call('HDEL', hash, 'offline_at', 'offline_reason')
  event('worker.online', 'w', A[1])
  fields[#fields + 1] = 'status'
  fields[#fields + 1] = 'online'
end
for name, value in pairs(given) do fields[#fields + 1] = name; fields[#fields + 1] = value end
redis.call('HSET', hash, unpack(fields))
redis.call('ZADD', 'h:workers:seen', now_text, A[1])
local due, cancel, held = string.format('%d', now + A[3]), {}, {}
for _, id in ipairs(redis.call('LRANGE', 'h:proc:' .. A[1], 0, -1)) do
  local r = redis.call('HMGET', 'h:job:' .. id, 'state', 'worker', 'cancel', 'attempt')
  if r[1] == 'running' and r[2] == A[1] then
    if beats then redis.call('ZADD', 'h:leases', due, id) end
    if r[3] and r[3] ~= '' then cancel[#cancel + 1] = id end
    held[#held + 1], held[#held + 2] = id, r[4]
  end
end
return {'ok', beats and '1' or '', cancel, known[4] or '[]', held}
