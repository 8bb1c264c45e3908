-- An app beside the jobs that work on it. Its wish is a signed record that only Python can make, so a change brings the
-- new wish and is refused unless the wish it was made from still stands; what nodes report lies unsigned beside it.
-- needs: job, event, audit where a change is made

-- phases that belong to a job: when it ends without its node having said more, they end too
local PASSING = {installing = true, updating = true, removing = true}

local function app_status(hash, id)
  local r = redis.call('HMGET', hash, 'phase', 'shown', 'product', 'node')
  local status = r[1] == 'ready' and r[2] or r[1]
  event('app.status', 'app', id, 'product', r[3] or '', 'node', r[4] or '', 'status', status or '', 'phase', r[1] or '')
end

local function app_install(hash, id, job, status)
  local r = redis.call('HMGET', hash, 'product', 'node', 'progress', 'message', 'error', 'phase')
  event('app.install', 'app', id, 'product', r[1] or '', 'node', r[2] or '', 'status', status or r[6] or '',
    'progress', r[3] or '0', 'message', r[4] or '', 'error', r[5] or '', 'job', job)
end

-- what makes an app a ProcessCube has come or gone; `cube` is JSON, or ''
local function app_cube(name, id, cube)
  if cube == '' then return end
  local fields = {}
  for field, value in pairs(cjson.decode(cube)) do fields[#fields + 1] = field; fields[#fields + 1] = value end
  event('processcube.' .. name, 'app', id, unpack(fields))
end

local function app_drop(hash, id)
  local r = redis.call('HMGET', hash, 'product', 'node', 'cube')
  app_cube('unregistered', id, r[3] or '')
  event('app.removed', 'app', id, 'product', r[1] or '', 'node', r[2] or '')
  redis.call('DEL', hash, 'h:applog:' .. id, 'h:appsamples:' .. id, 'h:appruns:' .. id)
  redis.call('ZREM', 'h:apps', id)
  if r[1] then redis.call('SREM', 'h:product:' .. r[1] .. ':apps', id) end
  if r[2] then redis.call('SREM', 'h:apps:node:' .. r[2], id) end
end

-- why a change cannot be made: nil, or {code, detail}
local function app_refusal(c)
  local r = redis.call('HMGET', 'h:app:' .. c.id, 'wish', 'phase', 'job')
  if c.fresh then
    if r[1] then return {'exists', r[2]} end
    return nil
  end
  if not r[1] then return {'missing', ''} end
  local allowed = false
  for _, phase in ipairs(c.phases) do allowed = allowed or phase == r[2] end
  if not allowed then return {'phase', r[2]} end
  if c.alone and not c.anyway and r[3] and r[3] ~= '' then
    local state = redis.call('HGET', 'h:job:' .. r[3], 'state')
    if state == 'queued' or state == 'running' then return {'busy', r[3]} end
  end
  if r[1] ~= c.from then return {'changed', ''} end
  return nil
end

-- make a change that was not refused; `job` is the id of the job that belongs to it, or ''
local function app_change(c, actor, job)
  local hash = 'h:app:' .. c.id
  local old = redis.call('HMGET', hash, 'phase', 'job', 'action')
  redis.call('HSET', hash, 'wish', c.wish, 'generation', c.generation, 'updated', now_text)
  if c.fresh then
    redis.call('HSET', hash, 'product', c.product, 'node', c.node, 'created', now_text)
    redis.call('ZADD', 'h:apps', now_text, c.id)
    redis.call('SADD', 'h:apps:node:' .. c.node, c.id)
    redis.call('SADD', 'h:product:' .. c.product .. ':apps', c.id)
  end
  if c.phase and c.phase ~= old[1] then
    -- a phase that passes is nothing to go back to: the job that it belonged to has been ended by this change
    if not PASSING[old[1]] then redis.call('HSET', hash, 'before', old[1] or '') end
    redis.call('HSET', hash, 'phase', c.phase)
  end
  if c.shown then redis.call('HSET', hash, 'shown', c.shown) end
  if job ~= '' then
    redis.call('HSET', 'h:job:' .. job, 'app', c.id)
    redis.call('HSET', hash, c.alone and 'job' or 'action', job)
    if c.alone then redis.call('HSET', hash, 'progress', '0', 'message', '', 'error', '') end
  end
  audit(now_text, actor, c.audit, c.id)
  if c.phase and PASSING[c.phase] then app_install(hash, c.id, job) end
  app_status(hash, c.id)
  redis.call('PUBLISH', 'h:control:' .. c.node, 'apps')
  local gone = {}                      -- jobs whose purpose this change has overtaken, for the caller to end
  if c.anyway and old[2] and old[2] ~= '' then gone[#gone + 1] = old[2] end
  if c.overtakes and old[3] and old[3] ~= '' then gone[#gone + 1] = old[3] end
  return gone
end

-- a job that worked on an app has ended, whatever its node has or has not said
local function app_job_ended(job, state, reason)
  local hash = 'h:app:' .. job.app
  local r = redis.call('HMGET', hash, 'job', 'action', 'phase', 'before', 'node')
  if r[2] == job.id then redis.call('HDEL', hash, 'action') end
  if r[1] ~= job.id then return end
  redis.call('HDEL', hash, 'job')
  if not PASSING[r[3]] then return end
  if r[3] == 'installing' and state == 'cancelled' and job.attempt == '0' then     -- no node has begun
    app_drop(hash, job.app)
    return
  end
  local before = r[4] ~= '' and r[4] or 'failed'
  local after = (r[3] == 'updating' or job.attempt == '0') and before or 'failed'
  redis.call('HSET', hash, 'phase', after, 'before', '', 'updated', now_text)
  if (redis.call('HGET', hash, 'error') or '') == '' then
    redis.call('HSET', hash, 'error', 'The job ' .. job.id .. ' ended: ' .. (reason ~= '' and reason or state) .. '.')
  end
  app_install(hash, job.app, job.id, 'failed')
  app_status(hash, job.app)
  if r[5] then redis.call('PUBLISH', 'h:control:' .. r[5], 'apps') end
end

-- a node has gone or come back: what is shown of its apps changes with it
local function apps_of_node(node)
  for _, id in ipairs(redis.call('SMEMBERS', 'h:apps:node:' .. node)) do
    local hash = 'h:app:' .. id
    local r = redis.call('HMGET', hash, 'phase', 'product')
    local online = redis.call('HGET', 'h:worker:' .. node, 'status') == 'online'
    if r[1] == 'ready' and not online then
      event('app.status', 'app', id, 'product', r[2] or '', 'node', node, 'status', 'unknown', 'phase', r[1])
    elseif r[1] then
      app_status(hash, id)
    end
  end
end
