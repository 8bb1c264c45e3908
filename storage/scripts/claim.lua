-- Move jobs from the first non-empty queues to a worker, with a lease and the next attempt number.
-- KEYS: queue lists, best first. ARGV: worker registration most lease_ms(0: the job's timeout + 30 s) iso now_startable
-- -> {'unregistered'} | {'ok', {{id attempt queue spec signature lines}...}, {refused id...}}
-- include job
-- include event
-- include queue
-- include finish
-- include tally
-- what is counted with, here and when the attempt ends; nobody but Hostler writes a record, unless somebody does
local function countable(...)
  for i = 1, select('#', ...) do
    local value = select(i, ...)
    if value and (#value > 15 or not string.find(value, '^%d+$')) then return false end
  end
  return true
end
local worker, most, lease_ms, iso, startable = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local standing = redis.call('HMGET', 'h:worker:' .. worker, 'registration', 'drain')
if standing[1] ~= ARGV[2] then return {'unregistered'} end
local jobs, refused = {}, {}
-- a node that drains takes no more commands; what it does for its apps goes on
if standing[2] and string.sub(KEYS[1] or '', 1, 14) ~= 'rq:queue:node.' then most = 0 end
for _, key in ipairs(KEYS) do
  local queue = string.sub(key, 10)                     -- after 'rq:queue:'
  while #jobs < most do
    local id = redis.call('LMOVE', key, 'h:proc:' .. worker, 'LEFT', 'RIGHT')
    if not id then break end
    local r = redis.pcall('HMGET', 'h:job:' .. id, 'state', 'wait', 'attempt', 'spec', 'sig', 'key', 'created', 'timeout', 'lines', 'bytes', 'lined')
    local held_by = r[6] and r[6] ~= '' and redis.call('GET', 'h:key:' .. r[6])
    if not r[1] then                                    -- not a job of ours: said aloud, never run
      redis.call('LREM', 'h:proc:' .. worker, -1, id)
      redis.call('HSET', 'rq:job:' .. id, 'status', 'failed', 'ended_at', iso)
      redis.call('ZADD', 'rq:failed:' .. queue, clock[1] + 86400, id)
      event('queue.refused', 'id', id, 'q', queue, 'why', 'no such job')
      refused[#refused + 1] = id
    elseif r[1] ~= 'queued' or r[2] ~= '' then          -- cancelled or parked meanwhile, or a doubled entry
      redis.call('LREM', 'h:proc:' .. worker, -1, id)
    elseif held_by and held_by ~= id and redis.call('HGET', 'h:job:' .. held_by, 'state') == 'running' then
      redis.call('LREM', 'h:proc:' .. worker, -1, id)
      redis.call('RPUSH', 'h:keywait:' .. r[6], id)
      park({id = id, hash = 'h:job:' .. id, queue = queue}, 'key', nil)
    elseif not (r[3] and r[7] and r[8] and countable(r[3], r[7], r[8], r[9], r[10])) then
      redis.call('LREM', 'h:proc:' .. worker, -1, id)   -- somebody wrote into it: it ends alone, the others are served
      finish(load(id), 'failed', 'invalid', '', iso)
      refused[#refused + 1] = id
    else
      local attempt = string.format('%d', r[3] + 1)     -- the fencing token
      local ahead = #jobs >= startable and '1' or ''
      local lease = lease_ms > 0 and lease_ms or (tonumber(r[8]) + 30) * 1000
      if r[6] and r[6] ~= '' then redis.call('SET', 'h:key:' .. r[6], id) end
      if attempt ~= '1' then                            -- what the attempt before left is not this one's
        redis.call('HDEL', 'h:job:' .. id, 'exit', 'reason', 'progress', 'out', 'err', 'cpu_ms', 'max_rss_bytes',
          'signal', 'message')
      end
      redis.call('HSET', 'h:job:' .. id, 'state', 'running', 'attempt', attempt, 'worker', worker, 'started', now_text,
        'ahead', ahead, 'base', r[10] or '0')       -- base: the output that earlier attempts left
      redis.call('ZREM', 'h:jobs:queued', id)
      redis.call('ZADD', 'h:jobs:running', r[7], id)
      redis.call('ZADD', 'h:jobs:worker:' .. worker, r[7], id)
      redis.call('ZADD', 'h:leases', string.format('%d', now + lease), id)
      redis.call('HSET', 'rq:job:' .. id, 'status', 'started', 'started_at', iso, 'worker_name', worker)
      -- score +inf: `rq info` runs RQ's own cleanup over this registry and would fail or double expired entries (R7)
      redis.call('ZADD', 'rq:wip:' .. queue, '+inf', id .. ':' .. attempt)
      event('job.started', 'id', id, 'a', attempt, 'w', worker)
      local kind = string.sub(queue, 1, 5) == 'node.' and 'node' or string.match(queue, '%a+$') or 'normal'
      tally_time('wait:' .. kind, now - (tonumber(r[11] or '') or r[7]))
      jobs[#jobs + 1] = {id, attempt, queue, r[4] or '', r[5] or '', r[9] or '0'}
    end
  end
  if #jobs >= most then break end
end
return {'ok', jobs, refused}
