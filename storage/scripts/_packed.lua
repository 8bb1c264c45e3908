-- A short log moves into its job's record once the job has ended: as a stream of its own it takes four times the room.

-- The packed log is "<ms> <attempt> <line> <count> <channel> <bytes>\n<data>" for each entry, oldest first; nil where
-- there is none, or one that stays a stream.
local function packed_log(job)
  local bytes = tonumber(job.bytes)
  if not bytes or bytes == 0 or bytes > 900 or (job.dropped ~= '' and job.dropped ~= '0') then return nil end
  local found, pieces, size = redis.pcall('XRANGE', 'h:log:' .. job.id, '-', '+', 'COUNT', 33), {}, 0
  if found.err or #found > 32 then return nil end
  for i, entry in ipairs(found) do
    local head, data = entry[2][2], entry[2][4]
    pieces[i] = string.match(entry[1], '^%d+') .. ' ' .. head .. ' ' .. #data .. '\n' .. data
    size = size + #pieces[i]
  end
  if size == 0 or size > 1000 then return nil end        -- beyond 1,024 bytes a field makes the whole hash a table
  return table.concat(pieces)
end
