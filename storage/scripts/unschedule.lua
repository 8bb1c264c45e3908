-- End a schedule and the occurrence that waits. ARGV: schedule actor iso -> 1, or 0 where there is none
-- include job
-- include event
-- include audit
-- include queue
-- include finish
local hash = 'h:schedule:' .. ARGV[1]
local id = redis.call('HGET', hash, 'job')
if not id then return 0 end
local job = load(id)
if job and job.state == 'queued' and job.wait == 'schedule' then finish(job, 'cancelled', 'cancelled', '', ARGV[3]) end
redis.call('ZREM', 'h:schedules', ARGV[1])
redis.call('DEL', hash)
audit(now_text, ARGV[2], 'schedule.delete', ARGV[1])
return 1
