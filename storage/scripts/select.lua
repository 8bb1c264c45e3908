-- A page of job records that are in every one of some indexes, without reading more records than the page.
-- KEYS: indexes; the first one gives the order. ARGV: offset limit newest_first('1' | '') field...
-- -> {total, {id, {value...}}...}
-- One index costs what the page holds. Of several, either the smallest is gone through, or the first one from its wanted
-- end until the page is full while the rest is only counted: whichever promises to be less. All that are by creation give
-- the same order, so of these the smallest is the first one.
local BLOCK = 500
local ENDS = {['h:jobs:completed'] = true, ['h:jobs:failed'] = true, ['h:jobs:cancelled'] = true}
local offset, limit, newest = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] ~= ''
local range = newest and 'ZREVRANGE' or 'ZRANGE'
local keys, order, total, ids = {unpack(KEYS)}, KEYS[1], nil, {}

local function in_all(indexes, some)                     -- -> those of `some` that are in all of `indexes`
  for _, index in ipairs(indexes) do
    local scores, left = #some > 0 and redis.call('ZMSCORE', index, unpack(some)) or {}, {}
    for i, id in ipairs(some) do
      if scores[i] then left[#left + 1] = id end
    end
    some = left
  end
  return some
end

if #KEYS == 1 then
  total = redis.call('ZCARD', order)
  if limit > 0 then ids = redis.call(range, order, offset, offset + limit - 1) end
else
  local sizes, least = {}, 1
  for i, index in ipairs(keys) do
    sizes[i] = redis.call('ZCARD', index)
    if sizes[i] < sizes[least] then least = i end
  end
  if order ~= 'h:ended' then
    keys[1], keys[least], sizes[1], sizes[least] = keys[least], keys[1], sizes[least], sizes[1]
    order, least = keys[1], 1
  end
  local others = {}
  for i, index in ipairs(keys) do
    if i ~= least then others[#others + 1] = index end
  end
  local expected = (offset + limit) * sizes[1] / math.max(1, sizes[least])
  local walk = expected < sizes[least]
  if walk then
    -- what has ended in one way is all among what has ended: no need to count
    local whole = #keys == 2 and order == 'h:ended' and ENDS[keys[2]]
    total = whole and sizes[2] or redis.call('ZINTERCARD', #keys, unpack(keys))
    local rest, passed, from = {unpack(keys, 2)}, 0, 0
    local step = math.min(BLOCK, math.ceil(1.5 * expected))
    while from < sizes[1] and #ids < limit and passed < total do
      -- they lie together at the far end: give up before it costs more than the smallest
      if from > 4 * expected + BLOCK and from > sizes[least] then walk = false break end
      for _, id in ipairs(in_all(rest, redis.call(range, order, from, from + step - 1))) do
        passed = passed + 1
        if passed > offset and #ids < limit then ids[#ids + 1] = id end
      end
      from, step = from + step, math.min(BLOCK, 2 * step)
    end
  end
  if not walk then
    local found = {}
    ids = {}
    for from = 0, sizes[least] - 1, BLOCK do
      for _, id in ipairs(in_all(others, redis.call(range, keys[least], from, from + BLOCK - 1))) do
        found[#found + 1] = id
      end
    end
    total = #found
    if least ~= 1 and total > 0 then                     -- in the order of another index
      local place = {}
      for from = 1, total, BLOCK do
        local to = math.min(from + BLOCK - 1, total)
        for i, score in ipairs(redis.call('ZMSCORE', order, unpack(found, from, to))) do
          place[found[from + i - 1]] = tonumber(score)
        end
      end
      table.sort(found, function(a, b)
        if place[a] ~= place[b] then return (place[a] < place[b]) ~= newest end
        return a ~= b and (a < b) ~= newest
      end)
    end
    for i = offset + 1, math.min(offset + limit, total) do ids[#ids + 1] = found[i] end
  end
end
local rows = {}
for i, id in ipairs(ids) do rows[i] = {id, redis.call('HMGET', 'h:job:' .. id, unpack(ARGV, 4))} end
return {total, rows}
