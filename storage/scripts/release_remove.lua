-- Remove a release that no app has or is about to get; its upload lives on as long as any other.
-- ARGV: now_ms actor product version file('' = none) -> {'ok'} | {'missing'} | {'installed', app}
-- include event
-- include audit
-- include record
local now_ms, actor, product, version, file = unpack(ARGV)
local key = 'h:release:' .. product .. ':' .. version
if redis.call('EXISTS', key) == 0 then return {'missing'} end
for _, id in ipairs(redis.call('SMEMBERS', 'h:product:' .. product .. ':apps')) do
  local r = redis.call('HMGET', 'h:app:' .. id, 'wish', 'job')
  local wish = content(r[1])
  if wish and wish.version == version then return {'installed', id} end
  local spec = r[2] and r[2] ~= '' and redis.call('HGET', 'h:job:' .. r[2], 'spec')
  local ok, asked = pcall(cjson.decode, spec or '')
  if ok and type(asked) == 'table' and type(asked.release) == 'table' and asked.release.version == version then
    return {'installed', id}
  end
end
redis.call('DEL', key)
redis.call('ZREM', 'h:releases:' .. product, version)
if redis.call('EXISTS', 'h:releases:' .. product) == 0 then redis.call('ZREM', 'h:products', product) end
if file ~= '' then redis.call('SREM', 'h:file:' .. file .. ':releases', product .. ':' .. version) end
event('product.removed', 'product', product, 'version', version, 'by', actor)
audit(now_ms, actor, 'product.remove', product .. ' ' .. version)
return {'ok'}
