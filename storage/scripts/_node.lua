-- What a node may say of an app: only under its current registration, and only of one that is its own.
-- needs: nothing
local function ours(worker, registration, id)
  if redis.call('HGET', 'h:worker:' .. worker, 'registration') ~= registration then return 'unregistered' end
  if redis.call('HGET', 'h:app:' .. id, 'node') ~= worker then return 'unknown' end
  return 'ok'
end
