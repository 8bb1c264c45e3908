-- An occurrence of a schedule has come: queue its job or pass over it, and point the schedule at the next one.
-- Only whoever finds the schedule still at this occurrence does it. ARGV: schedule due_ms action(run | skip) next_ms iso
-- -> 1 fired, 0 somebody else did
-- include job
-- include event
-- include queue
-- include finish
-- include tally
local A, hash = ARGV, 'h:schedule:' .. ARGV[1]
if redis.call('ZSCORE', 'h:schedules', A[1]) ~= A[2] then return 0 end
local job = load(redis.call('HGET', hash, 'job') or '')
if job and job.state == 'queued' and job.wait == 'schedule' then
  if A[3] == 'run' then push(job, false) else finish(job, 'cancelled', 'misfire', '', A[5]) end
end
redis.call('ZADD', 'h:schedules', A[4], A[1])
redis.call('HSET', hash, 'next', A[4], 'job', 'job-' .. string.sub(A[1], 10) .. '-' .. string.sub(A[4], 1, -4), 'last', A[2])
tally('schedule:' .. A[3] .. (now - A[2] > 60000 and ':missed' or ':due'))
event('schedule.fired', 'id', A[1], 'due', A[2], 'action', A[3])
return 1
