-- Replace a user's record, if it is still the one that the change was made from.
-- ARGV: now_ms, actor, id, record before, record after, username and email before, username and email after, role after,
--       'revoke' if the user's API keys shall end with it, or ''
-- include audit
-- include apikey

local now_ms, actor, id, before, after, old_username, old_email, username, email, role, keys = unpack(ARGV)
if redis.call('GET', 'h:user:' .. id) ~= before then
  return 'changed'
end
for field, name in pairs({username = username, email = email}) do
  local owner = redis.call('GET', 'h:user:by:' .. name)
  if owner and owner ~= id then
    return field
  end
end
if role ~= 'a' and redis.call('SISMEMBER', 'h:users:admins', id) == 1
    and redis.call('SCARD', 'h:users:admins') == 1 then
  return 'last_admin'
end
redis.call('DEL', 'h:user:by:' .. old_username, 'h:user:by:' .. old_email)
redis.call('SET', 'h:user:by:' .. username, id)
redis.call('SET', 'h:user:by:' .. email, id)
redis.call('SET', 'h:user:' .. id, after)
redis.call(role == 'a' and 'SADD' or 'SREM', 'h:users:admins', id)
audit(now_ms, actor, 'user.update', id)
if keys == 'revoke' then
  revoke_apikeys_of(id, now_ms, actor)
end
return 'ok'
