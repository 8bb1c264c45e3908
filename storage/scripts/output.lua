-- Append output of the current attempt: numbered by line, capped in Redis by bytes, and told to whoever follows.
-- ARGV: id attempt worker first_line('' = next) line_count channel live_bytes limit_bytes data
-- -> {'ok', next_line, cancel} | {'full', next_line, cancel} | {'stale' | 'over' | 'unknown'}
local A = ARGV
local hash, log = 'h:job:' .. A[1], 'h:log:' .. A[1]
local r = redis.call('HMGET', hash, 'state', 'attempt', 'worker', 'lines', 'bytes', 'dropped', 'cancel')
if not r[1] then return {'unknown'} end
if r[3] ~= A[3] or (A[2] ~= '' and r[2] ~= A[2]) then return {'stale'} end
if r[1] ~= 'running' then return {'over'} end
local line, bytes, dropped = tonumber(r[4] or 0), tonumber(r[5] or 0), tonumber(r[6] or 0)
local cancel, count, data = r[7] or '', tonumber(A[5]), A[9]
if A[4] ~= '' and tonumber(A[4]) < line then return {'ok', string.format('%d', line), cancel} end    -- sent twice
if A[4] ~= '' then line = tonumber(A[4]) end           -- a gap before it is visible in the numbers
if bytes > tonumber(A[8]) then return {'full', string.format('%d', line), cancel} end
local answer, channel = 'ok', A[6]
if bytes + #data > tonumber(A[8]) then
  answer, channel, count = 'full', 'e', 1
  data = '[hostler] output limit of ' .. A[8] .. ' bytes reached; what follows is not kept\n'
  bytes = tonumber(A[8])
end
bytes = bytes + #data
local head = r[2] .. ' ' .. string.format('%d', line) .. ' ' .. string.format('%d', count) .. ' ' .. channel
redis.call('XADD', log, '*', 's', head, 'd', data)
local live, most = bytes - dropped, tonumber(A[7])
if live > most then                                    -- down to three quarters, so that not every write trims
  local from, seen = '-', 0
  repeat                                               -- few at a time: Lua copies and hashes all that it is given
    local oldest = redis.call('XRANGE', log, from, '+', 'COUNT', 8)
    for _, entry in ipairs(oldest) do
      if live <= most * 0.75 then break end
      live, dropped = live - #entry[2][4], dropped + #entry[2][4]
      from, seen = '(' .. entry[1], seen + 1
    end
  until live <= most * 0.75 or #oldest < 8 or seen == 64
  redis.call('XTRIM', log, 'MAXLEN', math.max(1, redis.call('XLEN', log) - seen))
end
local next_line = string.format('%d', line + count)
if answer == 'full' then redis.call('HSET', hash, 'truncated', '1') end
redis.call('HSET', hash, 'lines', next_line, 'bytes', string.format('%d', bytes), 'dropped', string.format('%d', dropped))
redis.call('PUBLISH', 'h:out:' .. A[1], head .. '\n' .. data)
return {answer, next_line, cancel}
