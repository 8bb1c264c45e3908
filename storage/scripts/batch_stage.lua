-- Lay words of a batch ready, to be forgotten unless it is accepted in time. ARGV: batch seconds word...
local staged = 'h:batch:' .. ARGV[1] .. ':jobs'
for i = 3, #ARGV, 1000 do redis.call('RPUSH', staged, unpack(ARGV, i, math.min(i + 999, #ARGV))) end
redis.call('EXPIRE', staged, ARGV[2])
