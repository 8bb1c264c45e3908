-- Hide a file whose object is to be deleted next; `file_forget` follows. Refused while a job or a release needs the file.
-- ARGV: id now_ms actor('' for its age) only_if_expired('1'|'') postpone_ms -> 'ok' | 'gone' | 'needed' | 'young'
-- include event
-- include audit
local id, now_ms, actor, by_age, postpone_ms = unpack(ARGV)
local hash, jobs = 'h:file:' .. id, 'h:file:' .. id .. ':jobs'
local old = redis.call('HMGET', hash, 'state', 'expires')
local state = old[1]
if not state then
  redis.call('ZREM', 'h:files:expiry', id)
  return 'gone'
end
if by_age == '1' and state ~= 'deleting' and tonumber(old[2]) > tonumber(now_ms) then return 'young' end
if state == 'deleting' then return by_age == '1' and 'ok' or 'gone' end
if state == 'pending' and by_age ~= '1' and actor ~= '' then return 'gone' end
for _, job in ipairs(redis.call('SMEMBERS', jobs)) do
  local doing = redis.call('HGET', 'h:job:' .. job, 'state')
  if doing == 'queued' or doing == 'running' then
    if by_age == '1' then
      redis.call('HSET', hash, 'expires', now_ms + postpone_ms)
      redis.call('ZADD', 'h:files:expiry', now_ms + postpone_ms, id)
    end
    return 'needed'
  end
  redis.call('SREM', jobs, job)
end
if redis.call('EXISTS', hash .. ':releases') == 1 then      -- a release consists of it
  if by_age == '1' then
    redis.call('HSET', hash, 'expires', now_ms + postpone_ms)
    redis.call('ZADD', 'h:files:expiry', now_ms + postpone_ms, id)
  end
  return 'needed'
end
redis.call('HSET', hash, 'state', 'deleting')
redis.call('ZREM', 'h:files', id)
redis.call('ZADD', 'h:files:expiry', now_ms, id)
if state == 'ready' then
  event('file.deleted', 'id', id, 'by', actor ~= '' and actor or 'age')
  if actor ~= '' then audit(now_ms, actor, 'file.delete', id) end
end
return 'ok'
