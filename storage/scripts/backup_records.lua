-- Read a page of the records of a backup, newest first. ARGV: id offset limit -> {total, {{record, fields}...}}
local list = 'h:backup:' .. ARGV[1] .. ':records'
local found = {}
for i, record in ipairs(redis.call('ZREVRANGE', list, ARGV[2], ARGV[2] + ARGV[3] - 1)) do
  found[i] = {record, redis.call('HGETALL', 'h:backuprecord:' .. ARGV[1] .. ':' .. record)}
end
return {redis.call('ZCARD', list), found}
