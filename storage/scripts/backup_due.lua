-- Have the index of what is due agree with a backup, whoever has changed it meanwhile. ARGV: id kind(run | drill)
local member = ARGV[2] == 'drill' and ARGV[1] .. ' drill' or ARGV[1]
local at = redis.call('HGET', 'h:backup:' .. ARGV[1], ARGV[2] == 'drill' and 'drill_next' or 'next')
if at then redis.call('ZADD', 'h:backups:due', at, member) else redis.call('ZREM', 'h:backups:due', member) end
