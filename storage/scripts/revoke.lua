-- End one session. ARGV: now_ms, actor, jti or family, seconds to remember it
-- include audit

local now_ms, actor, token, keep_s = unpack(ARGV)
redis.call('SET', 'h:revoked:' .. token, 'logout', 'EX', keep_s)
audit(now_ms, actor, 'session.logout', token)
return 1
