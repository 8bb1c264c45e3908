-- A page of job records from the intersection of indexes, without reading more than the page.
-- KEYS: indexes; the first one gives the order. ARGV: offset limit newest_first('1' | '') field...
-- -> {total, {id, {value...}}...}
local first, last = tonumber(ARGV[1]), ARGV[1] + ARGV[2] - 1
local index = KEYS[1]
if #KEYS > 1 then
  index = 'h:tmp:select'
  local weights = {1}
  for i = 2, #KEYS do weights[i] = 0 end
  local command = {'ZINTERSTORE', index, #KEYS, unpack(KEYS)}
  command[#command + 1] = 'WEIGHTS'
  for _, weight in ipairs(weights) do command[#command + 1] = weight end
  redis.call(unpack(command))
end
local total, ids = redis.call('ZCARD', index), {}
if last >= first then ids = redis.call(ARGV[3] ~= '' and 'ZREVRANGE' or 'ZRANGE', index, first, last) end
if #KEYS > 1 then redis.call('DEL', index) end
local rows = {}
for i, id in ipairs(ids) do rows[i] = {id, redis.call('HMGET', 'h:job:' .. id, unpack(ARGV, 4))} end
return {total, rows}
