-- What every script of the job engine starts with: the time, and a job's deciding fields.
-- include now
local TERMINAL = {completed = true, failed = true, cancelled = true}

-- what is counted with: a record that somebody else wrote into must not stop a step that sees to many jobs
local function number(value, otherwise)
  return value and #value < 16 and string.find(value, '^%d+$') and value or otherwise
end

-- nil where there is no record, or something else in its place
local function load(id)
  local hash = 'h:job:' .. id
  local v = redis.pcall('HMGET', hash, 'state', 'attempt', 'worker', 'queue', 'created', 'key', 'kids', 'hook', 'retries',
    'failures', 'deaths', 'once', 'cancel', 'wait', 'backoff', 'ahead', 'app', 'started', 'backup', 'bytes', 'dropped')
  if not v[1] then return nil end
  return {id = id, hash = hash, state = v[1], attempt = number(v[2], '0'), worker = v[3] or '', queue = v[4] or '',
    created = number(v[5], now_text), key = v[6] or '', kids = v[7] or '', hook = v[8] or '', retries = number(v[9], '0'),
    failures = number(v[10], '0'), deaths = number(v[11], '0'), once = v[12] or '', cancel = v[13] or '',
    wait = v[14] or '', backoff = v[15] or '', ahead = v[16] or '', app = v[17] or '', started = number(v[18], now_text),
    backup = v[19] or '', bytes = v[20] or '', dropped = v[21] or ''}
end

-- the record of a running job, if this write belongs to its current attempt; `attempt` '' stands for the one held
local function current(id, attempt, worker)
  local job = load(id)
  if not job then return nil, 'unknown' end
  if job.worker ~= worker or (attempt ~= '' and job.attempt ~= attempt) then return job, 'stale' end
  if job.state ~= 'running' then return job, 'over' end
  return job, 'ok'
end

-- keep the index of states in step
local function enter(job, state)
  redis.call('ZREM', 'h:jobs:' .. job.state, job.id)
  redis.call('ZADD', 'h:jobs:' .. state, job.created, job.id)
  job.state = state
end
