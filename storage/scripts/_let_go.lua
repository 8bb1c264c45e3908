-- A running job loses its worker: nothing of the attempt remains but its log.
local function let_go(job)
  redis.call('LREM', 'h:proc:' .. job.worker, 1, job.id)
  redis.call('ZREM', 'h:leases', job.id)
  redis.call('ZREM', 'rq:wip:' .. job.queue, job.id .. ':' .. job.attempt)
end
