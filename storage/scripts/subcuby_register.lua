-- Keep a sub-Cuby that has answered. ARGV: now_ms, actor, name, record, what it shows (JSON), how many there may be
-- include event
-- include audit
-- include subcuby

local now_ms, actor, name, record, shown, limit = unpack(ARGV)
local new = redis.call('SISMEMBER', 'h:subcubies', name) == 0
if new and redis.call('SCARD', 'h:subcubies') >= tonumber(limit) then
  return 'full'
end
redis.call('SADD', 'h:subcubies', name)
redis.call('HSET', 'h:subcuby:' .. name, 'record', record, 'asked', now_ms, 'answered', now_ms, 'problem', '')
subcuby_shows(name, shown)
audit(now_ms, actor, 'subcuby.register', name)
return 'ok'
