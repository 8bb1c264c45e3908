-- Forget a sub-Cuby and what it shows. ARGV: now_ms, actor, name
-- include event
-- include audit
-- include subcuby

local now_ms, actor, name = unpack(ARGV)
if redis.call('SREM', 'h:subcubies', name) == 0 then
  return 'missing'
end
subcuby_shows(name, '[]')
redis.call('DEL', 'h:subcuby:' .. name)
audit(now_ms, actor, 'subcuby.remove', name)
return 'ok'
