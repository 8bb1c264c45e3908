-- Take or keep the lead among schedulers. ARGV: me lease_ms jobs_lease_ms absence_ms -> term (0: somebody else leads)
-- include now
-- include patience
patience('h:leader:asked', tonumber(ARGV[3]), tonumber(ARGV[4]))
local leader = redis.call('GET', 'h:leader')
if leader and string.match(leader, '^%d+ (.+)$') ~= ARGV[1] then return 0 end
local term = leader and tonumber(string.match(leader, '^(%d+) ')) or redis.call('INCR', 'h:leader:term')
redis.call('SET', 'h:leader', string.format('%d', term) .. ' ' .. ARGV[1], 'PX', ARGV[2])
return term
