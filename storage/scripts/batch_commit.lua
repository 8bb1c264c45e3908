-- Accept a batch whose jobs lie ready in h:batch:<id>:jobs: from here on all of them will be, whoever dies.
-- ARGV: batch actor iso total portions task idempotency_key('' = none) body_hash, how many uploads, {upload, index of a job, its id}...,
--       then {parent, index of a job}...
-- -> {'ok' | 'replay', batch, created, total} | {'conflict'} | {'lost'} | {'file', index} | {'parent', index, id, state}
-- include job
-- include audit
local batch, actor, total, files = ARGV[1], ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[9])
local staged = 'h:batch:' .. batch .. ':jobs'
local function refused(answer)
  redis.call('UNLINK', staged)
  return answer
end
local idem = ARGV[7] ~= '' and 'h:idem:' .. actor .. ':' .. ARGV[7]
if idem then
  local known = redis.call('GET', idem)
  if known then
    local hash, first, created, count = string.match(known, '^(%S+) (%S+) (%S+) (%S*)$')
    if hash ~= ARGV[8] then return refused({'conflict'}) end
    return refused({'replay', first, created, count})
  end
end
if redis.call('LLEN', staged) ~= tonumber(ARGV[5]) then return refused({'lost'}) end
for i = 10, 9 + 3 * files, 3 do
  if redis.call('HGET', 'h:file:' .. ARGV[i], 'state') ~= 'ready' then return refused({'file', ARGV[i + 1]}) end
end
for i = 10 + 3 * files, #ARGV, 2 do
  local state = redis.call('HGET', 'h:job:' .. ARGV[i], 'state')
  if not state or state == 'failed' or state == 'cancelled' then
    return refused({'parent', ARGV[i + 1], ARGV[i], state or 'unknown'})
  end
end
-- nothing above has accepted anything; nothing below can refuse
for i = 10, 9 + 3 * files, 3 do redis.call('SADD', 'h:file:' .. ARGV[i] .. ':jobs', ARGV[i + 2]) end
redis.call('HSET', 'h:batch:' .. batch, 'owner', actor, 'created', now_text, 'iso', ARGV[3], 'task', ARGV[6])
redis.call('PERSIST', staged)
redis.call('SADD', 'h:batches', batch)
if idem then redis.call('SET', idem, table.concat({ARGV[8], batch, now_text, total}, ' '), 'EX', 86400) end
audit(now_text, actor, 'job.submit-batch', batch .. ' ' .. total)
return {'ok', batch, now_text, total}
