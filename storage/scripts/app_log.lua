-- Append lines that an app has written, and tell whoever follows. A batch that is sent twice counts once.
-- ARGV: worker registration id batch(0 = unnumbered) keep lines(JSON) -> 'ok' | 'unregistered' | 'unknown'
-- include node
local A, log = ARGV, 'h:applog:' .. ARGV[3]
local standing = ours(A[1], A[2], A[3])
if standing ~= 'ok' then return standing end
if A[4] ~= '0' then
  local last = redis.call('HGET', 'h:app:' .. A[3], 'batch') or ''
  local by, number = string.match(last, '^(%S+) (%d+)$')
  if by == A[2] and tonumber(A[4]) <= tonumber(number) then return 'ok' end
  redis.call('HSET', 'h:app:' .. A[3], 'batch', A[2] .. ' ' .. A[4])
end
local lines = cjson.decode(A[6])
for _, line in ipairs(lines) do
  line.id = redis.call('XADD', log, 'MAXLEN', '~', A[5], '*', 'line', cjson.encode(line))
end
if #lines > 0 then redis.call('PUBLISH', 'h:applogs:' .. A[3], cjson.encode(lines)) end
return 'ok'
