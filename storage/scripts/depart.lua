-- A worker leaves: marked offline, or forgotten; what it still held goes back as lost.
-- ARGV: worker registration('' = whatever it is) iso reason forget('1' | '') actor('' = itself) -> 'ok' | 'unknown' | 'stale'
-- include job
-- include event
-- include audit
-- include queue
-- include finish
-- include lost
-- include gone
local A, hash = ARGV, 'h:worker:' .. ARGV[1]
local registration = redis.call('HGET', hash, 'registration')
if not registration then return 'unknown' end
if A[2] ~= '' and A[2] ~= registration then return 'stale' end
for _, id in ipairs(redis.call('LRANGE', 'h:proc:' .. A[1], 0, -1)) do
  local job = load(id)
  if job and job.state == 'running' and job.worker == A[1] then lost(job, A[3]) end
end
redis.call('DEL', 'h:proc:' .. A[1])
redis.call('ZREM', 'h:workers:seen', A[1])
rq_worker_gone(A[1])
if A[5] ~= '' then
  redis.call('DEL', hash)
  redis.call('ZREM', 'h:workers', A[1])
else
  redis.call('HSET', hash, 'status', 'offline', 'offline_at', now_text, 'offline_reason', A[4])
end
event('worker.offline', 'w', A[1], 'why', A[4])
apps_of_node(A[1])
if A[6] ~= '' then audit(now_text, A[6], 'worker.delete', A[1]) end
return 'ok'
