-- Keep a release under its product and version, and pin the upload that it consists of. Safe to run twice.
-- ARGV: now_ms actor product version record file('' = none) -> 'ok' | 'same' | 'exists' | 'file'
-- include event
-- include audit
local now_ms, actor, product, version, record, file = unpack(ARGV)
local key = 'h:release:' .. product .. ':' .. version
local old = redis.call('GET', key)
if old == record then return 'same' end
if old then return 'exists' end
if file ~= '' then
  if redis.call('HGET', 'h:file:' .. file, 'state') ~= 'ready' then return 'file' end
  redis.call('SADD', 'h:file:' .. file .. ':releases', product .. ':' .. version)
end
redis.call('SET', key, record)
redis.call('ZADD', 'h:products', 'NX', now_ms, product)
redis.call('ZADD', 'h:releases:' .. product, now_ms, version)
event('product.published', 'product', product, 'version', version, 'by', actor)
audit(now_ms, actor, 'product.publish', product .. ' ' .. version)
return 'ok'
