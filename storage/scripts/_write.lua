-- A new job's record, and RQ's.
-- A: id actor queue spec signature rq_data iso timeout_s description options('' = none); o: the options, read
local function write_job(A, o, due, estimate, created)
  -- no retries_left: RQ itself must never run it again (R7)
  redis.call('HSET', 'rq:job:' .. A[1], 'created_at', A[7], 'enqueued_at', A[7], 'data', A[6], 'origin', A[3],
    'description', A[9], 'timeout', A[8], 'status', 'queued')
  if A[10] == '' and estimate == '' then                 -- a plain one of very many
    redis.call('HSET', 'h:job:' .. A[1], 'state', 'queued', 'actor', A[2], 'queue', A[3], 'attempt', '0', 'spec', A[4],
      'sig', A[5], 'created', created, 'timeout', A[8], 'wait', '')
    return
  end
  if A[10] == '' then
    redis.call('HSET', 'h:job:' .. A[1], 'state', 'queued', 'actor', A[2], 'queue', A[3], 'attempt', '0', 'spec', A[4],
      'sig', A[5], 'created', created, 'timeout', A[8], 'wait', '', 'estimate', estimate)
    return
  end
  local record = {'HSET', 'h:job:' .. A[1], 'state', 'queued', 'actor', A[2], 'queue', A[3], 'attempt', '0', 'spec', A[4],
    'sig', A[5], 'created', created, 'timeout', A[8], 'wait', ''}
  local function also(name, value)                       -- what is not there takes no room
    if value and value ~= '' then record[#record + 1] = name record[#record + 1] = value end
  end
  also('estimate', estimate)
  if A[10] ~= '' then
    also('retries', o.retries)
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
end
