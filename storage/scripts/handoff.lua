-- Keep a token that becomes a session once. ARGV: now_ms, actor, its digest, record, ms that it lasts
-- include audit

local now_ms, actor, digest, record, lasts_ms = unpack(ARGV)
redis.call('SET', 'h:handoff:' .. digest, record, 'PX', lasts_ms)
audit(now_ms, actor, 'session.handoff', string.sub(digest, 1, 12))
return 1
