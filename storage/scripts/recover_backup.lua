-- Put a backup back into its indexes, which may have been read at another moment than it. ARGV: id
local hash = 'h:backup:' .. ARGV[1]
local r = redis.call('HMGET', hash, 'created', 'next', 'drill_next', 'job')
redis.call('ZADD', 'h:backups', r[1] or 0, ARGV[1])
for member, at in pairs({[ARGV[1]] = r[2], [ARGV[1] .. ' drill'] = r[3]}) do
  if at then redis.call('ZADD', 'h:backups:due', at, member) else redis.call('ZREM', 'h:backups:due', member) end
end
if r[4] and redis.call('EXISTS', 'h:job:' .. r[4]) == 0 then redis.call('HDEL', hash, 'job', 'progress') end
