-- How a job ends: once, with its key, its dependents and whatever it worked on seen to.
-- needs: job, queue, event
-- include app
-- include backup
-- include conclude

local function finish(first, state, reason, exit, iso)
  local todo, seen = {{first, state, reason, exit}}, {[first.id] = true}
  while #todo > 0 do
    local job, state, reason, exit = unpack(table.remove(todo))
    if job.state ~= 'running' then withdraw(job) end
    free_key(job)
    if job.app ~= '' then app_job_ended(job, state, reason) end
    if job.backup ~= '' then backup_job_ended(job, state, reason) end
    conclude(job, state, reason, exit, iso, {})
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
