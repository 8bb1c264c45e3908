-- End jobs of an app whose purpose a later change has overtaken: at once if they wait, else by asking their worker.
-- needs: job, event, queue, app, finish
local function overtake(ids, actor, iso)
  for _, id in ipairs(ids) do
    local job = load(id)
    if job and job.state == 'queued' then
      redis.call('HSET', job.hash, 'cancel', now_text, 'cancelled_by', actor)
      finish(job, 'cancelled', 'overtaken', '', iso)
    elseif job and job.state == 'running' and job.cancel == '' then
      redis.call('HSET', job.hash, 'cancel', now_text, 'cancelled_by', actor)
      redis.call('ZADD', 'h:cancels', 'NX', now_text, id)
      redis.call('PUBLISH', 'h:control:' .. job.worker, 'cancel ' .. id .. ' ' .. job.attempt)
    end
  end
end
