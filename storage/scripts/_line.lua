-- The last step of a job on its way into its queue, when its record says already that it waits there.
local function line_up(job, front)
  local queue = 'rq:queue:' .. job.queue
  local before = redis.call(front and 'LPUSH' or 'RPUSH', queue, job.id) - 1
  if before == 0 then
    redis.call('SADD', 'rq:queues', queue)               -- RQ knows the queues that are not empty
    redis.call('PUBLISH', 'h:wake', job.queue)           -- who serves one that is not empty has heard of it already
  end
  redis.call('PUBLISH', 'h:queued', job.queue)
end
