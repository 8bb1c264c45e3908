-- Accept a job: record, RQ job, queue entry, event and audit entry at once, or nothing.
-- ARGV: id actor queue spec signature task iso timeout_s description options(JSON, '' = none); and where something is
--       known of who serves it: their slots, how many are free, how long jobs run (ms, '' = unknown), the lists before it
-- -> {'ok' | 'replay', id, created, estimate} | {'conflict'} | {'parent', id, state | 'unknown'} | {'file'}
--    | {'app', why, detail}: the change of an app that comes with it (_app.lua), or work on a backup (_backup.lua), was refused
-- include now
-- include event
-- include audit
-- include line
-- include write
-- include hand
-- include estimate
-- what only few orders need: each of these functions would be made anew at every run
local function with_more()
-- include job
-- include queue
-- include accept
-- include finish
-- include overtake
  return {due_of = due_of, place = place, refusal = app_refusal, change = app_change, overtake = overtake,
    backup_refusal = backup_refusal, backup_begin = backup_begin}
end
local A = ARGV
local id, actor, queue, o = A[1], A[2], A[3], A[10] ~= '' and cjson.decode(A[10]) or {}
local idem = o.idempotency_key and 'h:idem:' .. actor .. ':' .. o.idempotency_key
if idem then
  local known = redis.call('GET', idem)
  if known then
    local hash, first, created, estimate = string.match(known, '^(%S+) (%S+) (%S+) (%S*)$')
    if hash ~= o.body_hash then return {'conflict'} end
    return {'replay', first, created, estimate}
  end
end
if o.schedule then
  local made = redis.call('HMGET', 'h:job:' .. id, 'created', 'estimate')    -- an occurrence that was made before
  if made[1] then return {'replay', id, made[1], made[2] or ''} end
end
A[6] = rq_data(A[6], id)
local unmet = {}
for _, parent in ipairs(o.depends_on or {}) do
  local state = redis.call('HGET', 'h:job:' .. parent, 'state')
  if not state then return {'parent', parent, 'unknown'} end
  if state == 'failed' or state == 'cancelled' then return {'parent', parent, state} end
  if state ~= 'completed' then unmet[#unmet + 1] = parent end
end
if o.file and redis.call('HGET', 'h:file:' .. o.file, 'state') ~= 'ready' then return {'file'} end
local more = A[10] ~= '' and with_more()
local no = o.app and more.refusal(o.app)
if not no and o.backup then no = more.backup_refusal(o.backup) end
if no then return {'app', no[1], no[2]} end
-- nothing above has written anything; nothing below can refuse
local estimate, before = '', nil
if A[11] then
  before = 0
  for i = 14, #A do before = before + redis.call('LLEN', A[i]) end
  estimate = estimated_s(before, A[11], A[12], A[13])
end
if idem then
  redis.call('SET', idem, table.concat({o.body_hash, id, now_text, estimate}, ' '), 'EX', 86400)
end
if o.file then redis.call('SADD', 'h:file:' .. o.file .. ':jobs', id) end      -- keeps it from being deleted
local due = more and more.due_of(o)
write_job(A, o, due, estimate, now_text)
-- straight to a worker that idles, or to the end of its queue; nobody is overtaken
local function into_line(job)
  if before ~= 0 or o.key or not handed(A) then line_up(job, false) end
end
if more then
  more.place(A, o, due, unmet, now_text, into_line)
else
  redis.call('ZADD', 'h:jobs', now_text, id)
  redis.call('ZADD', 'h:jobs:queued', now_text, id)
  event('job.queued', 'id', id, 'by', actor, 'q', queue)
  into_line({id = id, queue = queue})
end
if o.schedule and o.schedule_record and #unmet == 0 then -- its first occurrence brings the schedule with it
  redis.call('HSET', 'h:schedule:' .. o.schedule, 'record', o.schedule_record,
    'job', id, 'next', string.format('%d', due), 'actor', actor, 'created', now_text)
  redis.call('ZADD', 'h:schedules', string.format('%d', due), o.schedule)
end
if o.app then more.overtake(more.change(o.app, actor, id), actor, A[7]) end
if o.backup then more.backup_begin(o.backup, id) end
audit(now_text, actor, 'job.submit', id)
return {'ok', id, now_text, estimate}
