-- Read a job's record whole, and the newest of its log, at one instant. ARGV: id limit_bytes
-- -> {{field, value...}, what log.lua answers, or {} for a job that has said nothing}
-- include logged
local record = redis.call('HGETALL', 'h:job:' .. ARGV[1])
for i = 1, #record, 2 do
  if record[i] == 'bytes' and record[i + 1] ~= '0' and record[i + 1] ~= '' then
    return {record, logged({ARGV[1], '0', ARGV[2], '', ''})}
  end
end
return {record, {}}
