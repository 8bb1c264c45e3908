-- What a node says of its work on an app: phase, progress, and a new wish where the release has changed.
-- ARGV: worker registration id said(JSON: job attempt from wish generation phase progress message error shown installed cube)
-- -> 'ok' | 'unregistered' | 'unknown' | 'stale' | 'changed'
-- include job
-- include event
-- include app
-- include node
local A, hash, said = ARGV, 'h:app:' .. ARGV[3], cjson.decode(ARGV[4])
local standing = ours(A[1], A[2], A[3])
if standing ~= 'ok' then return standing end
if said.job then                     -- a job that is no longer this node's has nothing to say
  local job = redis.call('HMGET', 'h:job:' .. said.job, 'state', 'worker', 'attempt', 'app')
  if job[1] ~= 'running' or job[2] ~= A[1] or job[3] ~= tostring(said.attempt) or job[4] ~= A[3] then return 'stale' end
end
local old = redis.call('HMGET', hash, 'wish', 'phase', 'job', 'cube')
if said.wish then
  if old[1] ~= said.from then return 'changed' end
  redis.call('HSET', hash, 'wish', said.wish, 'generation', said.generation)
end
if said.job and said.job ~= old[3] then said.phase = nil end     -- a job that has come since decides that
local fields = {'updated', now_text}
local function put(name, value)
  if value ~= nil then fields[#fields + 1] = name; fields[#fields + 1] = tostring(value) end
end
for _, name in ipairs({'progress', 'message', 'error', 'shown'}) do put(name, said[name]) end
if said.installed then put('installed', now_text) end
if said.phase and said.phase ~= old[2] then
  put('phase', said.phase)
  put('before', PASSING[said.phase] and old[2] or '')
end
redis.call('HSET', hash, unpack(fields))
app_install(hash, A[3], said.job or old[3] or '', said.status)
if said.wish or (said.phase and said.phase ~= old[2]) then app_status(hash, A[3]) end
if said.wish then
  local cube = said.cube or ''
  if cube ~= (old[4] or '') then
    redis.call('HSET', hash, 'cube', cube)
    app_cube('unregistered', A[3], old[4] or '')
    app_cube('registered', A[3], cube)
  end
  redis.call('PUBLISH', 'h:control:' .. A[1], 'apps')
end
return 'ok'
