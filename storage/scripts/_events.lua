-- Append one event that several jobs have in common, in their order. It takes an id of the stream for each of them and
-- bears the last one's, so whoever reads (storage/watch.py) tells of each under an id of its own, which none has after.
-- Those who do not know `ids` (the version before) tell of the last job alone.
-- needs: now, event
local MOST = 2 ^ 52                                      -- what Lua can still count
local function event_of_all(name, ids, ...)
  if #ids == 1 then return event(name, 'id', ids[1], ...) end
  local ms, before, stream = now, -1, redis.pcall('XINFO', 'STREAM', 'h:events')
  for i = 1, #stream, 2 do                               -- no stream yet: an error, which has no elements
    if stream[i] == 'last-generated-id' then
      local last_ms, last = string.match(stream[i + 1], '^(%d+)-(%d+)$')
      if tonumber(last_ms) >= now then ms, before = tonumber(last_ms), tonumber(last) end
    end
  end
  if ms > MOST or before > MOST then                     -- somebody has written such an id: each of ours is the server's own
    for _, id in ipairs(ids) do event(name, 'id', id, ...) end
    return
  end
  redis.call('XADD', 'h:events', 'MAXLEN', '~', 100000, string.format('%d-%d', ms, before + #ids), 'e', name,
    'id', ids[#ids], 'ids', table.concat(ids, ' '), ...)
end
