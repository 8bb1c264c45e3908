-- How a queued job gets into its queue, or waits outside of it for a stated reason.
-- needs: job, event
-- include let_go
-- include line
-- include tally

-- RQ's registries for what waits outside a queue; `rq info` shows them
local RQ_WAIT = {delay = 'scheduled', backoff = 'scheduled', schedule = 'scheduled', dependency = 'deferred',
  key = 'deferred'}
setmetatable(RQ_WAIT, {__index = function() return 'deferred' end})     -- a word that somebody else wrote

local function push(job, front)
  if job.wait ~= '' then
    redis.call('SREM', 'h:parked', job.id)
    redis.call('ZREM', 'h:delayed', job.id)
    redis.call('ZREM', 'rq:' .. RQ_WAIT[job.wait] .. ':' .. job.queue, job.id)
    job.wait = ''
  end
  redis.call('HSET', job.hash, 'wait', '', 'due', '', 'lined', now_text)      -- since when it waits in the queue
  redis.call('HSET', 'rq:job:' .. job.id, 'status', 'queued')
  line_up(job, front)
end

-- wait: delay | backoff | schedule (until `due`, ms), dependency, key
local function park(job, wait, due)
  job.wait = wait
  redis.call('HSET', job.hash, 'wait', wait, 'due', due and string.format('%d', due) or '')
  redis.call('SADD', 'h:parked', job.id)
  if wait == 'delay' or wait == 'backoff' then redis.call('ZADD', 'h:delayed', due, job.id) end
  redis.call('HSET', 'rq:job:' .. job.id, 'status', RQ_WAIT[wait])
  redis.call('ZADD', 'rq:' .. RQ_WAIT[wait] .. ':' .. job.queue, due and math.floor(due / 1000) or '+inf', job.id)
end

-- take a job that waits out of wherever it waits
local function withdraw(job)
  if job.wait == '' then
    -- ids sort by creation, and so does a queue for the most part: begin at the end where it is, of 100,000 it is one of
    -- the first looked at when many are cancelled in turn
    local line = 'rq:queue:' .. job.queue
    local middle = redis.call('LINDEX', line, math.floor(redis.call('LLEN', line) / 2))
    redis.call('LREM', line, middle and job.id > middle and -1 or 1, job.id)
    return
  end
  redis.call('SREM', 'h:parked', job.id)
  redis.call('ZREM', 'h:delayed', job.id)
  redis.call('ZREM', 'rq:' .. RQ_WAIT[job.wait] .. ':' .. job.queue, job.id)
  redis.call('HSET', job.hash, 'wait', '')
  job.wait = ''
end

-- pass the concurrency key on to the first job that still waits for it, unless another one holds it; also where `job`
-- never held it: it may be the one that the key was passed on to, and leave before it was claimed
local function free_key(job)
  if job.key == '' then return end
  local holder = redis.call('GET', 'h:key:' .. job.key)
  if holder and holder ~= job.id then return end
  redis.call('DEL', 'h:key:' .. job.key)
  while true do
    local id = redis.call('LPOP', 'h:keywait:' .. job.key)
    if not id then return end
    local waiting = load(id)
    if waiting and waiting.state == 'queued' and waiting.wait == 'key' then
      push(waiting, true)
      return
    end
  end
end

-- back into the queue after an attempt that did not end the job; due = ms, or nil for at once and first
local function requeue(job, why, due)
  local past = redis.call('HMGET', job.hash, 'started', 'exit')      -- the attempt is remembered under its number
  redis.call('HSET', job.hash, 'try:' .. job.attempt,
    cjson.encode({past[1] or '', now_text, past[2] or '', job.worker, why}))
  let_go(job)
  free_key(job)
  enter(job, 'queued')
  redis.call('ZREM', 'h:jobs:worker:' .. job.worker, job.id)
  redis.call('HSET', job.hash, 'state', 'queued', 'worker', '', 'ahead', '')
  if due then park(job, 'backoff', due) else push(job, true) end
  tally('again:' .. why)
  event('job.queued', 'id', job.id, 'a', job.attempt, 'why', why)
end
