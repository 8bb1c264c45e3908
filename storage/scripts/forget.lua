-- Forget workers that are gone for good: in RQ's lists those whose record there has run out, and of ours those that went
-- offline before a time, unless something waits for them. Agents stay: their record is also their right to come back.
-- ARGV: before_ms queue... (those that RQ may list workers of) -> {worker...}
local before, theirs, forgotten = tonumber(ARGV[1]), {}, {}
for _, key in ipairs(redis.call('SMEMBERS', 'rq:workers')) do
  if redis.call('EXISTS', key) == 0 then
    redis.call('SREM', 'rq:workers', key)
    for i = 2, #ARGV do redis.call('SREM', 'rq:workers:' .. ARGV[i], key) end
  end
end
for _, backup in ipairs(redis.call('ZRANGE', 'h:backups', 0, -1)) do
  theirs[redis.call('HGET', 'h:backup:' .. backup, 'node') or ''] = true
end
for _, id in ipairs(redis.call('ZRANGE', 'h:workers', 0, -1)) do
  local r = redis.call('HMGET', 'h:worker:' .. id, 'kind', 'status', 'offline_at', 'drain')
  local long = r[1] == 'worker' and r[2] == 'offline' and not r[4] and (tonumber(r[3] or '') or before) < before
  if long and not theirs[id]
      and redis.call('EXISTS', 'h:proc:' .. id, 'h:apps:node:' .. id, 'rq:queue:node.' .. id) == 0 then
    redis.call('DEL', 'h:worker:' .. id)
    redis.call('ZREM', 'h:workers', id)
    forgotten[#forgotten + 1] = id
  end
end
return forgotten
