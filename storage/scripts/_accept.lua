-- How an order that is out of the ordinary becomes a job: when it may start, and where it waits until then.
-- A: id actor queue spec signature rq_data iso timeout_s description options('' = none); o: the options, read
-- needs: job, event, queue
-- include write

-- when the order may start at the earliest (ms), or nil for at once
local function due_of(o)
  local due = o.not_before
  if o.delay_ms then due = now + o.delay_ms end
  if due and due <= now and not o.schedule then due = nil end
  return due
end

local function place(A, o, due, unmet, created, into_line)
  local id = A[1]
  redis.call('ZADD', 'h:jobs', created, id)
  redis.call('ZADD', 'h:jobs:queued', created, id)
  for _, tag in ipairs(o.tags or {}) do redis.call('ZADD', 'h:jobs:tag:' .. tag, created, id) end
  if o.tag_set and redis.call('SADD', 'h:tagsets', o.tag_set) == 1 then redis.call('PUBLISH', 'h:wake', 'tagsets') end
  event('job.queued', 'id', id, 'by', A[2], 'q', A[3])
  local job = {id = id, hash = 'h:job:' .. id, queue = A[3], wait = ''}
  if #unmet > 0 then
    for _, parent in ipairs(unmet) do
      redis.call('SADD', 'h:needs:' .. id, parent)
      redis.call('SADD', 'h:children:' .. parent, id)
      redis.call('HSET', 'h:job:' .. parent, 'kids', '1')
    end
    park(job, 'dependency', nil)
  elseif o.schedule then
    park(job, 'schedule', due)
  elseif due then
    park(job, 'delay', due)
  else
    into_line(job)
  end
end
