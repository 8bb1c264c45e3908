-- Move jobs from the first non-empty queues to a worker, with a lease and the next attempt number.
-- KEYS: queue lists, best first. ARGV: worker registration most lease_ms(0: the job's timeout + 30 s) iso now_startable
--       hears('1': it listens, and may be handed jobs); of an agent also: ('calls' | 'waits': nobody heard of it by this)
--       tags(JSON: those that KEYS are for); its leases are as long only if it sends heartbeats, else as for 0
-- -> {'unregistered'} | {'ok', {{id attempt queue spec signature lines owner}...}, {refused id...}, drains('1' | '')}
--    and of an agent {'silent'} for one that has missed its heartbeats for a lease | {'tags', those that it has}
--    | {'ok', ..., beats('1' | '')}
-- include now
-- include event
-- include take
-- what only few claims need: each of these functions would be made anew at every run
local function with_more()
-- include job
-- include queue
-- include finish
  return {park = park, load = load, finish = finish}
end
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
local agent, beats = ARGV[8], nil
if agent then
  local has, _
  if agent == 'calls' then
-- include hold
    beats, _, has = hold(worker, ARGV[2], lease_ms, {})
  else
    local r = redis.call('HMGET', 'h:worker:' .. worker, 'beats', 'tags', 'seen')
    beats, has = r[1] and '1' or '', r[2] or '[]'
    if r[1] and now - (tonumber(r[3] or '') or 0) >= lease_ms then return {'silent'} end
  end
  if has ~= ARGV[9] then return {'tags', has} end
  if beats == '' then lease_ms = 0 end
end
local jobs, refused = {}, {}
local looks = 100                                       -- at jobs that are not taken: more would keep all others waiting
-- a node that drains takes no more commands; what it does for its apps goes on
local drains = standing[2] and string.sub(KEYS[1] or '', 1, 14) ~= 'rq:queue:node.'
if drains then most = 0 end
for _, key in ipairs(KEYS) do
  local queue, new = string.sub(key, 10), {}            -- after 'rq:queue:'
  while #jobs < most and looks > 0 do
    local id = redis.call('LMOVE', key, 'h:proc:' .. worker, 'LEFT', 'RIGHT')
    if not id then break end
    local before = #jobs
    local r = redis.pcall('HMGET', 'h:job:' .. id, 'state', 'wait', 'attempt', 'spec', 'sig', 'key', 'created', 'timeout', 'lines', 'bytes', 'lined', 'actor', 'origin')
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
      with_more().park({id = id, hash = 'h:job:' .. id, queue = queue}, 'key', nil)
    elseif not (r[3] and r[7] and r[8] and countable(r[3], r[7], r[8], r[9], r[10])) then
      redis.call('LREM', 'h:proc:' .. worker, -1, id)   -- somebody wrote into it: it ends alone, the others are served
      local more = with_more()
      more.finish(more.load(id), 'failed', 'invalid', '', iso)
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
      local job = {id = id, attempt = attempt, created = r[7], lined = r[11], bytes = r[10]}
      take(job, worker, lease, ahead)
      new[#new + 1] = job
      local owner = not r[13] and r[12] or ''           -- what somebody runs again may be another's command
      jobs[#jobs + 1] = {id, attempt, queue, r[4] or '', r[5] or '', r[9] or '0', owner}
    end
    if #jobs == before then looks = looks - 1 end
  end
  if new[1] then taken(new, queue, worker, iso) end
  if #jobs >= most or looks == 0 then break end
end
if looks == 0 then redis.call('PUBLISH', 'h:wake', 'tagsets') end      -- everybody looks for work, it too
if ARGV[7] == '1' and #jobs < most and looks > 0 then    -- from here on it waits to be handed what comes (_hand.lua)
  for _, key in ipairs(KEYS) do
    local ready = 'h:ready:' .. string.sub(key, 10)
    -- forgotten now and then with those who are gone; who idles says it again with its next look
    if redis.call('SADD', ready, ARGV[2] .. ' ' .. worker) == 1 and redis.call('TTL', ready) < 0 then
      redis.call('EXPIRE', ready, 600)
    end
  end
end
return {'ok', jobs, refused, drains and '1' or '', beats}
