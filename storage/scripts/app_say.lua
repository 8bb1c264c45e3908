-- Tell everybody who watches something that a node has to say. ARGV: worker registration app('' = none) event field value...
-- -> 'ok' | 'unregistered' | 'unknown'
-- include event
-- include node
local A = ARGV
if A[3] ~= '' then
  local standing = ours(A[1], A[2], A[3])
  if standing ~= 'ok' then return standing end
  event(A[4], 'app', A[3], 'node', A[1], unpack(A, 5))
else
  if redis.call('HGET', 'h:worker:' .. A[1], 'registration') ~= A[2] then return 'unregistered' end
  event(A[4], 'node', A[1], unpack(A, 5))
end
return 'ok'
