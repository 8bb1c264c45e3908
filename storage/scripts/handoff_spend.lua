-- Take a hand-off, so that nobody else can. ARGV: now_ms, its digest. Returns its record, or nothing.
-- include audit

local now_ms, digest = unpack(ARGV)
local record = redis.call('GET', 'h:handoff:' .. digest)
if record then
  redis.call('DEL', 'h:handoff:' .. digest)
  audit(now_ms, 'system:handoff', 'session.handoff.spend', string.sub(digest, 1, 12))
end
return record
