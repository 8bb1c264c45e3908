-- Announce an upload. It is `pending` until its bytes are there, and swept if that never happens.
-- ARGV: id expires_ms field value ...
local A, fields = ARGV, {'state', 'pending', 'expires', ARGV[2]}
for i = 3, #A do fields[#fields + 1] = A[i] end
redis.call('HSET', 'h:file:' .. A[1], unpack(fields))
redis.call('ZADD', 'h:files:expiry', A[2], A[1])
