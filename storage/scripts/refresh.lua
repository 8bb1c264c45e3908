-- Trade a session's token in, once. ARGV: now_ms, user id, jti, family, generation, seconds to remember it
-- Returns the user's record, or nothing. A token that comes a second time was copied: its whole family ends.
-- include record
-- include audit

local now_ms, subject, token, family, generation, keep_s = unpack(ARGV)
local actor = 'user:' .. subject
if redis.call('EXISTS', 'h:revoked:' .. family) == 1 then
  return false
end
local state = redis.call('GET', 'h:revoked:' .. token)
if state and string.match(state, '^refreshed') then
  redis.call('SET', 'h:revoked:' .. family, 'replayed', 'EX', keep_s)
  audit(now_ms, actor, 'session.replayed', family)
end
if state then
  return false
end
local raw = redis.call('GET', 'h:user:' .. subject)
local fields = raw and content(raw)
if not fields or tostring(fields.generation) ~= generation then
  return false
end
local time = redis.call('TIME')
local at_ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('SET', 'h:revoked:' .. token, 'refreshed ' .. at_ms, 'EX', keep_s)
audit(now_ms, actor, 'session.refresh', token)
return raw
