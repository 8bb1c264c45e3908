-- Keep a new user, and an API key for it where one is given.
-- ARGV: now_ms, actor, id, record, username, email, role, 'first' or 'any', key's id, digest and record (or '')
-- include audit
-- include apikey

local now_ms, actor, id, record, username, email, role, rank, key_id, digest, key_record = unpack(ARGV)
if rank == 'first' and redis.call('EXISTS', 'h:users') == 1 then
  return 'not_first'
end
if redis.call('EXISTS', 'h:user:by:' .. username) == 1 then
  return 'username'
end
if redis.call('EXISTS', 'h:user:by:' .. email) == 1 then
  return 'email'
end
redis.call('SET', 'h:user:' .. id, record)
redis.call('SET', 'h:user:by:' .. username, id)
redis.call('SET', 'h:user:by:' .. email, id)
redis.call('ZADD', 'h:users', now_ms, id)
if role == 'a' then
  redis.call('SADD', 'h:users:admins', id)
end
audit(now_ms, actor, 'user.create', id)
if key_id ~= '' then
  keep_apikey(id, key_id, digest, key_record)
  audit(now_ms, actor, 'apikey.create', key_id)
end
return 'ok'
