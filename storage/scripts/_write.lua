-- New jobs' records, and RQ's.

-- What RQ's tools read as the call that a job is. RQ packs its `data`, and reads what is not packed as well.
local function rq_data(task, id)
  return '["' .. task .. '", null, ["' .. id .. '"], {}]'
end

-- A: id actor queue spec signature rq_data iso timeout_s description options('' = none); o: the options, read
local function write_job(A, o, due, estimate, created)
  -- no retries_left: RQ itself must never run it again (R7)
  redis.call('HSET', 'rq:job:' .. A[1], 'data', A[6], 'description', A[9], 'created_at', A[7], 'enqueued_at', A[7],
    'origin', A[3], 'timeout', A[8], 'status', 'queued')
  local record = {'HSET', 'h:job:' .. A[1], 'state', 'queued', 'spec', A[4], 'sig', A[5], 'actor', A[2], 'queue', A[3],
    'attempt', '0', 'created', created, 'timeout', A[8], 'wait', ''}
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

-- A job without options but its tags. What it has in common with one that this run has written already, which is all but
-- its words, is copied from there: that takes a third less than writing it. Nobody's long command is a model, for its
-- record is kept as a table, and so would be each copy of it.
local written = {}
local function write_plain(A, o, estimate, created)
  local kind = A[3] .. ' ' .. A[8] .. (estimate ~= '' and ' +' or '')
  local model = written[kind]
  if not model or #A[4] > 1000 then
    if #A[4] <= 1000 then written[kind] = A[1] end
    return write_job(A, o, nil, estimate, created)
  end
  local rq, record = 'rq:job:' .. A[1], 'h:job:' .. A[1]
  redis.call('COPY', 'rq:job:' .. model, rq)
  redis.call('HSET', rq, 'data', A[6], 'description', A[9])
  redis.call('COPY', 'h:job:' .. model, record)
  if estimate == '' then
    redis.call('HSET', record, 'spec', A[4], 'sig', A[5])
  else
    redis.call('HSET', record, 'spec', A[4], 'sig', A[5], 'estimate', estimate)
  end
end
