-- Delete a user, the names and the keys with it, unless it is the last admin. ARGV: now_ms, actor, id
-- include record
-- include audit
-- include apikey

local now_ms, actor, id = unpack(ARGV)
if redis.call('EXISTS', 'h:user:' .. id) == 0 then
  return 'missing'
end
if redis.call('SISMEMBER', 'h:users:admins', id) == 1 and redis.call('SCARD', 'h:users:admins') == 1 then
  return 'last_admin'
end
-- the names are those of the record, not the caller's: it may have been renamed meanwhile
local fields = content(redis.call('GET', 'h:user:' .. id)) or {}
for _, name in ipairs(fields.names or {}) do
  if redis.call('GET', 'h:user:by:' .. name) == id then
    redis.call('DEL', 'h:user:by:' .. name)
  end
end
revoke_apikeys_of(id, now_ms, actor)
redis.call('DEL', 'h:user:' .. id)
redis.call('ZREM', 'h:users', id)
redis.call('SREM', 'h:users:admins', id)
audit(now_ms, actor, 'user.delete', id)
return 'ok'
