-- Drop the record of an app whose node is away, and end what waits for it. ARGV: id actor iso -> 'ok' | 'missing' | 'online'
-- include job
-- include event
-- include audit
-- include queue
-- include finish
-- include overtake
local id, actor, hash = ARGV[1], ARGV[2], 'h:app:' .. ARGV[1]
local r = redis.call('HMGET', hash, 'node', 'job', 'action')
if not r[1] then return 'missing' end
if redis.call('HGET', 'h:worker:' .. r[1], 'status') == 'online' then return 'online' end
audit(now_text, actor, 'app.abandon', id)
local jobs = {}
for i = 2, 3 do if r[i] and r[i] ~= '' then jobs[#jobs + 1] = r[i] end end
app_drop(hash, id)
overtake(jobs, actor, ARGV[3])
return 'ok'
