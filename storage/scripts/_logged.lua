-- Read a log from its newest entry back, with how far the job is, all at one instant; mark that instant for a follower.
-- ARGV: id  after(line number from which on)  limit_bytes('' = none)  mark_channel('' = none)  mark
-- -> {} | {newest event id | '', {field...}, {part name, record...}, {{s, d}... newest first}, whole('1' = nothing cut)}
-- Of what lies before `after`, the entries in which its first lines may begin come along.

-- a log that was packed into its record (_packed.lua), as the stream would give it from its newest entry back
local function unpacked(log)
  local oldest_first, at = {}, 1
  while at <= #log do
    local _, stop, ms, head, size = string.find(log, '^(%d+) (%d+ %d+ %d+ %a) (%d+)\n', at)
    if not stop then break end
    oldest_first[#oldest_first + 1] = {ms .. '-0', {'s', head, 'd', string.sub(log, stop + 1, stop + size)}}
    at = stop + size + 1
  end
  local entries = {}
  for i = #oldest_first, 1, -1 do entries[#entries + 1] = oldest_first[i] end
  return entries
end

local function logged(ARGV)
  local FIELDS = {'state', 'attempt', 'worker', 'lines', 'dropped', 'reason', 'exit', 'progress', 'started', 'log'}
  local id, after, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
  local record = redis.call('HMGET', 'h:job:' .. id, unpack(FIELDS))
  if not record[1] then return {} end
  local packed = table.remove(record)
  for i = 1, #FIELDS - 1 do record[i] = record[i] or '' end
  local entries, bytes, before, begun, from = {}, 0, 0, {}, '+'
  local cut, done = '1', false
  while not done do
    local page = packed and unpacked(packed) or redis.call('XREVRANGE', 'h:log:' .. id, from, '-', 'COUNT', 32)
    for _, entry in ipairs(page) do
      local head, data = entry[2][2], entry[2][4]
      local line, count, channel = string.match(head, '^%d+ (%d+) (%d+) (%a)')
      local stop = line + count
      if stop < after or (stop == after and tonumber(count) > 0) then
        before = before + 1
        if before > 32 or (begun.o and begun.e) then done = true break end
        begun[channel] = begun[channel] or tonumber(count) > 0
      end
      if limit and bytes >= limit then cut, done = '', true break end
      bytes = bytes + #data
      entries[#entries + 1] = {head, data}
    end
    if packed or #page < 32 then break end
    from = '(' .. page[#page][1]
  end
  local parts = {}
  -- what the stream no longer has is in the parts
  if not done and record[5] ~= '' and record[5] ~= '0' then
    parts = redis.call('HGETALL', 'h:logparts:' .. id)
  end
  local event = redis.call('XREVRANGE', 'h:events', '+', '-', 'COUNT', 1)[1]
  if ARGV[4] ~= '' then redis.call('PUBLISH', ARGV[4], ARGV[5]) end
  return {event and event[1] or '', record, parts, entries, cut}
end
