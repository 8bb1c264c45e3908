-- What every script of the job engine starts with: the time, and a job's deciding fields.
-- include now
local FIELDS = {'state', 'attempt', 'worker', 'queue', 'created', 'key', 'kids', 'hook', 'retries', 'failures',
  'deaths', 'once', 'cancel', 'wait', 'backoff', 'ahead', 'app', 'started', 'backup'}
-- what is counted with: a record that somebody else wrote into must not stop a step that sees to many jobs
local NUMBERS = {attempt = '0', created = now_text, retries = '0', failures = '0', deaths = '0',
  started = now_text}
local TERMINAL = {completed = true, failed = true, cancelled = true}

local function load(id)
  local values = redis.call('HMGET', 'h:job:' .. id, unpack(FIELDS))
  if not values[1] then return nil end
  local job = {id = id, hash = 'h:job:' .. id}
  for i, name in ipairs(FIELDS) do job[name] = values[i] or '' end
  for name, otherwise in pairs(NUMBERS) do
    if #job[name] > 15 or not string.find(job[name], '^%d+$') then job[name] = otherwise end
  end
  return job
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
