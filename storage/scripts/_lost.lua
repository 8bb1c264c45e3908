-- What becomes of a job whose worker is gone: cancelled if that was asked, else tried again within its budget.
-- `unheard`: its worker lives, and does not know of it; which counts for a job that may run but once like all else.
-- needs: job, queue, finish, event

local MAX_DEATHS = 3

local function lost(job, iso, unheard)
  if job.cancel ~= '' then
    finish(job, 'cancelled', 'cancelled', '', iso)
  elseif job.ahead ~= '' then
    requeue(job, 'worker lost before the start', nil)      -- it was held, not run: no death of its making
  elseif job.once ~= '' then
    finish(job, 'failed', 'lost', '', iso)
  elseif unheard then
    requeue(job, 'not heard of', nil)
  else
    local deaths = tonumber(job.deaths) + 1
    redis.call('HSET', job.hash, 'deaths', deaths)
    redis.call('RPUSH', 'h:deaths:' .. job.id, cjson.encode({job.worker, job.attempt, now_text}))
    if deaths >= MAX_DEATHS then
      redis.call('ZADD', 'h:quarantine', now_text, job.id)
      finish(job, 'failed', 'quarantined', '', iso)
    else
      requeue(job, 'worker lost', nil)
    end
  end
end
