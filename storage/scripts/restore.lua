-- Put a job back into its queue that its record says is there and is not. ARGV: id... -> restored ids
-- include job
-- include event
-- include queue
local restored = {}
for _, id in ipairs(ARGV) do
  local job = load(id)
  if job and job.state == 'queued' and job.wait == '' and not redis.call('LPOS', 'rq:queue:' .. job.queue, id) then
    redis.call('ZREM', 'rq:failed:' .. job.queue, id)      -- where a stock RQ worker put it, which could not run it
    push(job, true)
    event('job.restored', 'id', id)
    restored[#restored + 1] = id
  end
end
return restored
