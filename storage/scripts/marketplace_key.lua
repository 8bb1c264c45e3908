-- Keep the marketplace's key in the place of the one before, which ends with that.
-- ARGV: now_ms, actor, owner, id, digest, the API key's record, the marketplace's record
-- include record
-- include audit
-- include apikey

local now_ms, actor, owner, id, digest, login, record = unpack(ARGV)
if redis.call('EXISTS', 'h:user:' .. owner) == 0 then
  return 'missing'
end
-- the same key may have been stored before, here or as a token that was chosen elsewhere
local before = content(redis.call('GET', 'h:marketplace:key') or '')
for _, old in ipairs({before and tostring(before.digest) or '', digest}) do
  local known = content(redis.call('GET', 'h:apikey:' .. old) or '')
  if known then
    drop_apikey(tostring(known.owner), tostring(known.id), old)
    audit(now_ms, actor, 'apikey.revoke', tostring(known.id))
  end
end
keep_apikey(owner, id, digest, login)
redis.call('SET', 'h:marketplace:key', record)
audit(now_ms, actor, 'marketplace.key', id)
return 'ok'
