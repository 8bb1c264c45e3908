-- How an order becomes a job: its record, its RQ job, its places in the indexes, its event.
-- A: id actor queue spec signature rq_data iso timeout_s description options('' = none); o: the options, read
-- needs: job, event, queue

-- when the order may start at the earliest (ms), or nil for at once
local function due_of(o)
  local due = o.not_before
  if o.delay_ms then due = now + o.delay_ms end
  if due and due <= now and not o.schedule then due = nil end
  return due
end

local function write_job(A, o, due, estimate, created)
  local record = {'HSET', 'h:job:' .. A[1], 'state', 'queued', 'actor', A[2], 'queue', A[3], 'attempt', '0', 'spec', A[4],
    'sig', A[5], 'created', created, 'timeout', A[8], 'retries', o.retries or '0', 'failures', '0', 'deaths', '0', 'wait', ''}
  local function also(name, value)                       -- what is not there takes no room
    if value and value ~= '' then record[#record + 1] = name record[#record + 1] = value end
  end
  also('estimate', estimate)
  if A[10] ~= '' then
    also('key', o.key)
    also('backoff', o.backoff)
    also('once', o.at_most_once and '1')
    also('hook', o.webhook and '1')
    also('tags', o.tag_set)
    also('file', o.file)
    also('not_before', due and string.format('%d', due))
    also('schedule', o.schedule)
    also('origin', o.retry_of)
    also('webhook', o.sealed)
  end
  redis.call(unpack(record))
  redis.call('HSET', 'rq:job:' .. A[1], 'created_at', A[7], 'enqueued_at', A[7], 'data', A[6], 'origin', A[3],
    'description', A[9], 'timeout', A[8], 'status', 'queued')      -- no retries_left: RQ itself must never run it again (R7)
end

local function place(A, o, due, unmet, created)
  local id = A[1]
  redis.call('ZADD', 'h:jobs', created, id)
  redis.call('ZADD', 'h:jobs:queued', created, id)
  for _, tag in ipairs(o.tags or {}) do redis.call('ZADD', 'h:jobs:tag:' .. tag, created, id) end
  if o.tag_set and redis.call('SADD', 'h:tagsets', o.tag_set) == 1 then redis.call('PUBLISH', 'h:wake', 'tagsets') end
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
    line_up(job, false)
  end
  event('job.queued', 'id', id, 'by', A[2], 'q', A[3])
end
