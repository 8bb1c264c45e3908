-- How a job ends: once, with its registries, its key, its dependents and its webhook seen to.
-- needs: job, queue, event
-- include app
-- include backup
-- include packed
-- include tally

local RQ_END = {completed = {'finished', 'finished', 500}, failed = {'failed', 'failed', 86400},
  cancelled = {'canceled', 'canceled', 86400}}

local function finish(first, state, reason, exit, iso)
  local todo, seen = {{first, state, reason, exit}}, {[first.id] = true}
  while #todo > 0 do
    local job, state, reason, exit = unpack(table.remove(todo))
    if job.state == 'running' then
      let_go(job)
      tally_time('run:' .. state, now - job.started)
    else
      withdraw(job)
    end
    tally('end:' .. state .. ':' .. reason)
    enter(job, state)
    redis.call('HSET', job.hash, 'state', state, 'reason', reason, 'exit', exit, 'ended', now_text)
    redis.call('ZADD', 'h:ended', now_text, job.id)
    if job.attempt ~= '0' then pack_log(job.id, job.hash) end
    if job.cancel ~= '' then redis.call('ZREM', 'h:cancels', job.id) end
    local rq = RQ_END[state]
    redis.call('HSET', 'rq:job:' .. job.id, 'status', rq[1], 'ended_at', iso)
    redis.call('ZADD', 'rq:' .. rq[2] .. ':' .. job.queue, clock[1] + rq[3], job.id)
    redis.call('EXPIRE', 'rq:job:' .. job.id, rq[3])
    free_key(job)
    if job.hook ~= '' then redis.call('ZADD', 'h:webhooks', now_text, job.id) end
    if job.app ~= '' then app_job_ended(job, state, reason) end
    if job.backup ~= '' then backup_job_ended(job, state, reason) end
    event('job.completed', 'id', job.id, 'a', job.attempt, 'state', state, 'reason', reason, 'x', exit)
    if job.kids ~= '' then
      for _, id in ipairs(redis.call('SMEMBERS', 'h:children:' .. job.id)) do
        local child = load(id)
        redis.call('SREM', 'h:needs:' .. id, job.id)
        if child and child.state == 'queued' and not seen[id] then     -- two parents may end in this very step
          if state ~= 'completed' then
            seen[id] = true
            todo[#todo + 1] = {child, 'cancelled', 'dependency', ''}
          elseif child.wait == 'dependency' and redis.call('SCARD', 'h:needs:' .. id) == 0 then
            local due = tonumber(redis.call('HGET', child.hash, 'not_before') or '')
            if due and due > now then
              withdraw(child)
              park(child, 'delay', due)
            else
              push(child, false)
            end
          end
        end
      end
      redis.call('DEL', 'h:children:' .. job.id)
    end
  end
end
