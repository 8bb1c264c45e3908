-- Keep a new API key. ARGV: now_ms, actor, owner, id, digest, record, how many keys one owner may have
-- include audit
-- include apikey

local now_ms, actor, owner, id, digest, record, limit = unpack(ARGV)
if redis.call('EXISTS', 'h:user:' .. owner) == 0 then
  return 'missing'
end
local again = redis.call('HEXISTS', 'h:apikeys:' .. owner, id) == 1
if not again and redis.call('HLEN', 'h:apikeys:' .. owner) >= tonumber(limit) then
  return 'full'
end
keep_apikey(owner, id, digest, record)
audit(now_ms, actor, 'apikey.create', id)
return 'ok'
