-- Apps by id, of a node, or all by their creation, with whether their node is online.
-- ARGV: fields(between spaces) then 'ids' id... | 'node' node | 'all' offset limit newest('1' | '')
-- -> {total, {{id, {value..., online('1' | '')}}...}}
local fields, ids, total = {}, {}, nil
for name in string.gmatch(ARGV[1], '%S+') do fields[#fields + 1] = name end
if ARGV[2] == 'ids' then
  for i = 3, #ARGV do ids[#ids + 1] = ARGV[i] end
elseif ARGV[2] == 'node' then
  ids = redis.call('SMEMBERS', 'h:apps:node:' .. ARGV[3])
  table.sort(ids)
else
  ids = redis.call(ARGV[5] ~= '' and 'ZREVRANGE' or 'ZRANGE', 'h:apps', ARGV[3], ARGV[3] + ARGV[4] - 1)
  total = redis.call('ZCARD', 'h:apps')
end
local rows, online = {}, {}
for i, id in ipairs(ids) do
  local values = redis.call('HMGET', 'h:app:' .. id, unpack(fields))
  local node = redis.call('HGET', 'h:app:' .. id, 'node') or ''
  if online[node] == nil then
    online[node] = redis.call('HGET', 'h:worker:' .. node, 'status') == 'online' and '1' or ''
  end
  values[#fields + 1] = online[node]
  rows[i] = {id, values}
end
return {total or #rows, rows}
