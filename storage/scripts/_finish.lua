-- How a job ends: once, with its key, its dependents and whatever it worked on seen to. Of dependents only so many are,
-- for Redis does nothing else meanwhile; the leader goes on with the others (dependents.lua).
-- needs: job, queue, event
-- include app
-- include backup
-- include conclude
local MOST_DEPENDENTS = 500

-- release or cancel dependents of a job that has ended so, at most `room`; the cancelled are yet `todo`. -> how many
local function part_with(id, state, todo, seen, room)
  local key = 'h:children:' .. id
  local children = {}
  if redis.call('SCARD', key) <= room then
    children = redis.call('SMEMBERS', key)
    redis.call('DEL', key)
  elseif room > 0 then
    children = redis.call('SPOP', key, room)
  end
  table.sort(children)                                 -- as they were created
  for _, child_id in ipairs(children) do
    local child = load(child_id)
    redis.call('SREM', 'h:needs:' .. child_id, id)
    if child and child.state == 'queued' and not seen[child_id] then   -- two parents may end in this very step
      if state ~= 'completed' then
        seen[child_id] = true
        todo[#todo + 1] = {child, 'cancelled', 'dependency', ''}
      elseif child.wait == 'dependency' and redis.call('SCARD', 'h:needs:' .. child_id) == 0 then
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
  if redis.call('EXISTS', key) == 1 then redis.call('ZADD', 'h:dependents', now_text, id .. ' ' .. state) end
  return #children
end

local function finish_all(todo, seen, room, iso)
  while #todo > 0 do
    local job, state, reason, exit = unpack(table.remove(todo))
    if job.state ~= 'running' then withdraw(job) end
    free_key(job)
    if job.app ~= '' then app_job_ended(job, state, reason) end
    if job.backup ~= '' then backup_job_ended(job, state, reason) end
    conclude(job, state, reason, exit, iso, {})
    if job.kids ~= '' then room = room - part_with(job.id, state, todo, seen, room) end
  end
end

local function finish(job, state, reason, exit, iso)
  finish_all({{job, state, reason, exit}}, {[job.id] = true}, MOST_DEPENDENTS, iso)
end
