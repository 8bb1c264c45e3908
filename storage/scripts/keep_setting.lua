-- Keep one value of the installation. ARGV: now_ms, actor, key, value, what the audit log calls it, 'once' to keep the
-- first for good. Returns the value that is kept.
-- include audit

local now_ms, actor, key, value, action, once = unpack(ARGV)
local before = redis.call('GET', key)
if before == value or (before and once) then
  return before
end
redis.call('SET', key, value)
audit(now_ms, actor, action, key)
return value
