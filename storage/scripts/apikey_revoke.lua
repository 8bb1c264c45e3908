-- Revoke an API key. ARGV: now_ms, actor, id, owner ('' for anybody's)
-- include record
-- include audit
-- include apikey

local now_ms, actor, id, owner = unpack(ARGV)
local digest = redis.call('HGET', owner == '' and 'h:apikeys' or 'h:apikeys:' .. owner, id)
if not digest then
  return 'missing'
end
if owner == '' then
  owner = (content(redis.call('GET', 'h:apikey:' .. digest)) or {}).owner or ''
end
drop_apikey(owner, id, digest)
audit(now_ms, actor, 'apikey.revoke', id)
return 'ok'
