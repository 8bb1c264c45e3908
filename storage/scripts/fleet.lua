-- Workers' records, each with what it holds. ARGV: worker... (none: all, oldest first)
-- -> {{worker, {field, value...}, how many jobs it holds, the first of them | ''}...}
local rows = {}
for i, id in ipairs(#ARGV > 0 and ARGV or redis.call('ZRANGE', 'h:workers', 0, -1)) do
  local held = 'h:proc:' .. id
  rows[i] = {id, redis.call('HGETALL', 'h:worker:' .. id), redis.call('LLEN', held), redis.call('LINDEX', held, 0) or ''}
end
return rows
