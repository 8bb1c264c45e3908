-- Keep how an attempt's process ended that its worker did not outlive. ARGV: id attempt how signal max_rss_bytes
-- -> 1, or 0 where there is no such attempt
local hash = 'h:job:' .. ARGV[1]
local attempt = redis.call('HGET', hash, 'attempt')
if not attempt or tonumber(ARGV[2]) > tonumber(attempt) then return 0 end
redis.call('HSET', hash, 'died:' .. ARGV[2], table.concat({ARGV[3], ARGV[4], ARGV[5]}, ' '))
return 1
