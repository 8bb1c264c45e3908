-- What RQ's tools show of a worker that is gone runs out: while it lived, no time was set.
local function rq_worker_gone(worker)
  redis.call('EXPIRE', 'rq:worker:' .. worker, 60)
  redis.call('EXPIRE', 'rq:worker:' .. worker .. ':executions', 60)
end
