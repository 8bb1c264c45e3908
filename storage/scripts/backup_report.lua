-- What a node says of its work on a backup: how far it is, a record that is whole, what a check of one has found, records
-- that are kept no longer. Only the attempt that holds the job is heard.
-- ARGV: worker registration job attempt said(JSON: progress | record{proof started ended size} | checked{record ok share
--       error} | proven{record} | restored{record target} | forget[record...])
-- -> 'ok' | 'unregistered' | 'stale' | 'missing'
-- include now
-- include event
-- include backup
local A, said = ARGV, cjson.decode(ARGV[5])
if redis.call('HGET', 'h:worker:' .. A[1], 'registration') ~= A[2] then return 'unregistered' end
local job = redis.call('HMGET', 'h:job:' .. A[3], 'state', 'worker', 'attempt', 'backup')
if job[1] ~= 'running' or job[2] ~= A[1] or job[3] ~= A[4] or not job[4] then return 'stale' end
local id = string.match(job[4], '^(%S+) ')
local hash = 'h:backup:' .. id
if redis.call('EXISTS', hash) == 0 then return 'missing' end
local function key(record) return 'h:backuprecord:' .. id .. ':' .. record end
if said.progress then
  redis.call('HSET', hash, 'progress', cjson.encode(said.progress))
  local p = said.progress
  redis.call('HSET', 'h:job:' .. A[3], 'progress', p.percent)
  event('job.progress', 'id', A[3], 'a', A[4], 'p', p.percent)
  backup_event('progress', id, 'job', A[3], 'percent', p.percent, 'bytes_done', p.bytes_done, 'bytes_total', p.bytes_total,
    'bytes_per_s', p.bytes_per_s, 'eta_s', p.eta_s or '')
end
if said.record then
  local r = said.record
  redis.call('HSET', key(r.id), 'state', 'completed', 'started', r.started, 'ended', r.ended, 'proof', r.proof)
  redis.call('HSET', key(r.id), 'error', r.warning)
  redis.call('ZADD', hash .. ':records', r.started, r.id)
  if not r.adopted then
    redis.call('HSET', hash, 'succeeded', r.ended, 'ended', r.ended, 'state', 'completed', 'error', '')
    redis.call('HDEL', hash, 'overdue')
    backup_event('completed', id, 'job', A[3], 'record', r.id, 'size_bytes', r.size_bytes, 'added_bytes', r.added_bytes)
    backup_notice(id, 'Backup complete', r.summary, r.warning ~= '' and 'warning' or 'info')
  end
end
if said.checked and redis.call('EXISTS', key(said.checked.record)) == 1 then
  local c = said.checked
  redis.call('HSET', key(c.record), 'verified', now_text, 'share', c.share, 'state', c.ok and 'completed' or 'corrupt',
    'error', c.error or '')
  backup_event(c.ok and 'verified' or 'corrupt', id, 'job', A[3], 'record', c.record, 'error', c.error or '')
  if not c.ok then backup_notice(id, 'Backup corrupt', c.error or '', 'error') end
end
if said.proven and redis.call('EXISTS', key(said.proven.record)) == 1 then
  redis.call('HSET', key(said.proven.record), 'proven', now_text)
  redis.call('HSET', hash, 'proven', now_text)
  redis.call('HDEL', hash, 'unproven')
  backup_event('proven', id, 'job', A[3], 'record', said.proven.record)
end
if said.restored then
  backup_event('restored', id, 'job', A[3], 'record', said.restored.record, 'target', said.restored.target)
  backup_notice(id, 'Restore complete', said.restored.target, 'info')
end
for _, record in ipairs(said.forget or {}) do
  redis.call('DEL', key(record))
  redis.call('ZREM', hash .. ':records', record)
  backup_event('expired', id, 'record', record)
end
return 'ok'
