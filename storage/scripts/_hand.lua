-- Hand a new job to a worker that idles and listens, in the very step that accepts it, which spares two ways.
-- needs: now, event
-- include take
-- A: as for write_job; the worker hears of it on a channel of its own and says that it starts (begin.lua), as with every
-- job that it holds ahead. Where nobody hears, nothing has happened, and the job goes into its queue. One that was heard
-- of and is not held all the same is taken back by the worker's next heartbeat (beat.lua).
local function handed(A)
  local id, queue = A[1], A[3]
  local ready = 'h:ready:' .. queue
  local owner = A[10] == '' and string.match(A[2], '^[!-~]+$') or ''      -- of a plain order; one more word of the message
  for _ = 1, 3 do
    local member = redis.call('SRANDMEMBER', ready)
    if not member then return false end
    local registration, worker = string.match(member, '^(%S+) (.+)$')
    local r = worker and redis.call('HMGET', 'h:worker:' .. worker, 'status', 'drain', 'slots', 'lease_ms', 'registration', 'seen')
      or {}
    -- what an earlier registration served is not for this one; and who is silent must not seem at work by what it is given
    local fit = r[1] == 'online' and not r[2] and r[5] == registration and tonumber(r[3] or '') and tonumber(r[4] or '')
      and now - (tonumber(r[6] or '') or 0) < tonumber(r[4])
    if fit and redis.call('LLEN', 'h:proc:' .. worker) >= tonumber(r[3]) then return false end
    if fit and redis.call('PUBLISH', 'h:offer:' .. worker,
        'offer ' .. id .. ' 1 ' .. queue .. ' ' .. A[5] .. ' ' .. owner .. ' '
          .. registration .. '\n' .. A[4]) > 0 then
      redis.call('SADD', 'rq:queues', 'rq:queue:' .. queue)      -- though nothing waits in it: its registries are trimmed
      redis.call('RPUSH', 'h:proc:' .. worker, id)
      local job = {id = id, attempt = '1', created = now_text}
      take(job, worker, tonumber(r[4]), '1')
      taken({job}, queue, worker, A[7])
      return true
    end
    redis.call('SREM', ready, member)                     -- gone, or going
  end
  return false
end
