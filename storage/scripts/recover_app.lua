-- After a rebuild: put an app into its indexes, under a wish that its node will not take for an older one; what a job
-- that is not on record was doing to it has failed. ARGV: id wish('' = as it is) generation -> 1 | 0 (no record)
-- include job
-- include event
-- include app
local id, hash = ARGV[1], 'h:app:' .. ARGV[1]
local r = redis.call('HMGET', hash, 'created', 'node', 'product', 'job', 'action')
if not (r[1] and r[2] and r[3]) then return 0 end
if ARGV[2] ~= '' then redis.call('HSET', hash, 'wish', ARGV[2], 'generation', ARGV[3]) end
redis.call('ZADD', 'h:apps', string.match(r[1], '^%d+$') or now_text, id)
redis.call('SADD', 'h:apps:node:' .. r[2], id)
redis.call('SADD', 'h:product:' .. r[3] .. ':apps', id)
for i = 4, 5 do
  local state = r[i] and r[i] ~= '' and (redis.call('HGET', 'h:job:' .. r[i], 'state') or 'lost')
  if state and state ~= 'queued' and state ~= 'running' then
    app_job_ended({id = r[i], app = id, attempt = '1'}, state == 'lost' and 'failed' or state, state == 'lost' and state or '')
  end
end
return 1
