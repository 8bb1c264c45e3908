-- Hand a new job to a worker that idles and listens, in the very step that accepts it, which spares two ways.
-- needs: now, event
-- include take
-- A: as for write_job; the worker hears of it on a channel of its own and says that it starts (begin.lua), as with every
-- job that it holds ahead. Where nobody hears, nothing has happened, and the job goes into its queue. One that was heard
-- of and is not held all the same is taken back by the worker's next heartbeat (beat.lua).
local function handed(A)
  local id, queue = A[1], A[3]
  local ready = 'h:ready:' .. queue
  for _ = 1, 3 do
    local worker = redis.call('SRANDMEMBER', ready)
    if not worker then return false end
    local r = redis.call('HMGET', 'h:worker:' .. worker, 'status', 'drain', 'slots', 'lease_ms')
    local fit = r[1] == 'online' and not r[2] and tonumber(r[3] or '') and tonumber(r[4] or '')
    if fit and redis.call('LLEN', 'h:proc:' .. worker) >= tonumber(r[3]) then return false end
    if fit and redis.call('PUBLISH', 'h:control:' .. worker, 'offer ' .. id .. ' 1 ' .. queue .. ' ' .. A[5] .. '\n' .. A[4]) > 0 then
      redis.call('RPUSH', 'h:proc:' .. worker, id)
      take({id = id, attempt = '1', queue = queue, created = now_text}, worker, tonumber(r[4]), '1', A[7])
      return true
    end
    redis.call('SREM', ready, worker)                     -- gone, or going
  end
  return false
end
