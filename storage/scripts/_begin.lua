-- A job that was claimed ahead starts now: from here on a lost worker counts as a death of its.
-- needs: now
local function begin(id, attempt, worker)
  local hash = 'h:job:' .. id
  -- said for nearly every job, so no more than it takes; what is no record any more must not stop the step it is said with
  local r = redis.pcall('HMGET', hash, 'state', 'attempt', 'worker')
  if not r[1] then return 'unknown' end
  if r[3] ~= worker or r[2] ~= attempt then return 'stale' end
  if r[1] ~= 'running' then return 'over' end
  redis.call('HSET', hash, 'ahead', '', 'started', now_text)
  return 'ok'
end
