-- Keep a run of a scheduled or oneshot process that has ended; told twice it is kept once.
-- ARGV: worker registration id keep run-id run(JSON) -> 'ok' | 'unregistered' | 'unknown'
-- include node
local A, key = ARGV, 'h:appruns:' .. ARGV[3]
local standing = ours(A[1], A[2], A[3])
if standing ~= 'ok' then return standing end
for _, raw in ipairs(redis.call('LRANGE', key, 0, 31)) do
  if cjson.decode(raw).id == A[5] then return 'ok' end
end
redis.call('LPUSH', key, A[6])
redis.call('LTRIM', key, 0, A[4] - 1)
return 'ok'
