-- A backup beside the jobs that work on it. Its wish is a signed record that only Python can make; at most one job
-- works on a backup at a time, so that nobody reads or writes its data while another one prunes them.
-- needs: job, event; audit where a change is made

-- keep when it runs next; `due` is JSON null, '' (never) or ms
local function backup_due(id, due, drill)
  for member, at in pairs({[id] = due or false, [id .. ' drill'] = drill or false}) do
    local field = member == id and 'next' or 'drill_next'
    if at == '' then
      redis.call('ZREM', 'h:backups:due', member)
      redis.call('HDEL', 'h:backup:' .. id, field)
    elseif at then
      redis.call('ZADD', 'h:backups:due', string.format('%d', at), member)
      redis.call('HSET', 'h:backup:' .. id, field, string.format('%d', at))
    end
  end
end

local function backup_event(name, id, ...)
  local r = redis.call('HMGET', 'h:backup:' .. id, 'name', 'node')
  event('backup.' .. name, 'backup', id, 'name', r[1] or '', 'node', r[2] or '', ...)
end

-- what people read: ContextBay's `notification`
local function backup_notice(id, title, body, level)
  local name = redis.call('HGET', 'h:backup:' .. id, 'name') or id
  event('notification', 'title', title, 'body', name .. ': ' .. body, 'level', level, 'backup', id)
end

local function backup_busy(id)
  local job = redis.call('HGET', 'h:backup:' .. id, 'job')
  if not job or job == '' then return nil end
  local state = redis.call('HGET', 'h:job:' .. job, 'state')
  if state == 'queued' or state == 'running' then return job end
  return nil
end

-- why a job for a backup cannot be accepted: nil, or {code, detail}
local function backup_refusal(c)
  local r = redis.call('HMGET', 'h:backup:' .. c.id, 'wish', c.kind == 'drill' and 'drill_next' or 'next')
  if not r[1] then return {'missing', ''} end
  if r[1] ~= c.from then return {'changed', ''} end
  if c.at and r[2] ~= string.format('%d', c.at) then return {'fired', ''} end      -- somebody else fired it
  local busy = backup_busy(c.id)
  if busy then return {'busy', busy} end
  return nil
end

-- a job for a backup is accepted
local function backup_begin(c, job)
  redis.call('HSET', 'h:job:' .. job, 'backup', c.id .. ' ' .. c.kind .. ' ' .. (c.record or job))
  redis.call('HSET', 'h:backup:' .. c.id, 'job', job, 'progress', '')
  if c.at then
    if c.kind == 'drill' then backup_due(c.id, nil, c.following) else backup_due(c.id, c.following, nil) end
  end
  backup_event('queued', c.id, 'job', job, 'kind', c.kind)
end

local TITLES = {run = 'Backup', restore = 'Restore', verify = 'Backup verification', drill = 'Restore drill'}

-- a job that worked on a backup has ended, whatever its node has or has not said
local function backup_job_ended(job, state, reason)
  local id, kind, record = string.match(job.backup, '^(%S+) (%S+) (%S+)$')
  if not id then return end
  local hash = 'h:backup:' .. id
  if redis.call('HGET', hash, 'job') == job.id then redis.call('HDEL', hash, 'job', 'progress') end
  if redis.call('EXISTS', hash) == 0 or state == 'completed' then return end
  local said = redis.call('HMGET', 'h:job:' .. job.id, 'message', 'started')
  local why = said[1] or (state == 'cancelled' and 'It was cancelled.') or ('It ended: ' .. (reason ~= '' and reason or state) .. '.')
  if kind == 'run' then
    local key, began = 'h:backuprecord:' .. id .. ':' .. record, said[2] or now_text
    if redis.call('EXISTS', key) == 1 then return end        -- the run was whole before its job came to grief
    redis.call('HSET', key, 'state', 'failed', 'started', began, 'ended', now_text, 'error', why)
    redis.call('ZADD', 'h:backup:' .. id .. ':records', began, record)
    redis.call('HSET', hash, 'ended', now_text, 'state', state == 'cancelled' and 'cancelled' or 'failed', 'error', why)
    -- failures that nobody looks after must not grow without end
    local list = 'h:backup:' .. id .. ':records'
    if redis.call('ZCARD', list) > 1000 then
      for _, old in ipairs(redis.call('ZRANGE', list, 0, 49)) do
        local old_key = 'h:backuprecord:' .. id .. ':' .. old
        if (redis.call('HGET', old_key, 'state') or 'failed') == 'failed' then
          redis.call('DEL', old_key)
          redis.call('ZREM', list, old)
        end
      end
    end
  end
  backup_event('failed', id, 'job', job.id, 'kind', kind, 'record', record, 'state', state, 'error', why)
  backup_notice(id, TITLES[kind] .. ' failed', why, state == 'cancelled' and 'info' or 'warning')
end
