-- Give up the lead, if it is ours. ARGV: me -> 1 | 0
local leader = redis.call('GET', 'h:leader')
if not leader or string.match(leader, '^%d+ (.+)$') ~= ARGV[1] then return 0 end
return redis.call('DEL', 'h:leader')
