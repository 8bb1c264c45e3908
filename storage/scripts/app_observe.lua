-- Keep what a node sees of an app's instances; told to others when it looks different.
-- ARGV: worker registration id generation instances(JSON) schedules(JSON) status digest message -> 'ok' | 'unregistered' | 'unknown'
-- include job
-- include event
-- include app
-- include node
local A, hash = ARGV, 'h:app:' .. ARGV[3]
local standing = ours(A[1], A[2], A[3])
if standing ~= 'ok' then return standing end
local old = redis.call('HMGET', hash, 'digest', 'shown', 'generation', 'phase')
redis.call('HSET', hash, 'observed', A[4], 'observed_at', now_text, 'instances', A[5], 'schedules', A[6], 'digest', A[8])
if old[4] == 'ready' then redis.call('HSET', hash, 'message', A[9]) end      -- else a job has more to say
-- what has been wished since was shown by whoever wished it: what is seen of the wish before does not take it back
if tonumber(A[4]) < tonumber(old[3] or 0) then return 'ok' end
if old[2] ~= A[7] or old[1] ~= A[8] then
  redis.call('HSET', hash, 'shown', A[7], 'updated', now_text)
  app_status(hash, A[3])
end
return 'ok'
