-- After a rebuild: put jobs into every index that their records call for. What ran is held by nobody any more; it stays
-- `running` for one lease, in which a worker that still has it finds out, and is then lost as if its worker had died.
-- ARGV: lease_ms gap id... -> {jobs, running}; a later attempt's number exceeds by `gap` what is on record, so that
-- nobody who still holds an attempt of the time that was lost can be taken for its holder.
-- include job
local lease, gap, jobs, running = tonumber(ARGV[1]), tonumber(ARGV[2]), 0, 0
local STATES = {queued = true, running = true, completed = true, failed = true, cancelled = true}
for i = 3, #ARGV do
  local id = ARGV[i]
  local job = load(id)
  if job and STATES[job.state] then
    local r = redis.call('HMGET', job.hash, 'ended', 'spec')
    jobs = jobs + 1
    redis.call('ZADD', 'h:jobs', job.created, id)
    redis.call('ZADD', 'h:jobs:' .. job.state, job.created, id)
    if job.worker ~= '' and job.state ~= 'queued' then redis.call('ZADD', 'h:jobs:worker:' .. job.worker, job.created, id) end
    local ok, spec = pcall(cjson.decode, r[2] or '')
    if ok and type(spec) == 'table' and type(spec.tags) == 'table' then
      for _, tag in ipairs(spec.tags) do redis.call('ZADD', 'h:jobs:tag:' .. tostring(tag), job.created, id) end
    end
    if TERMINAL[job.state] then
      redis.call('ZADD', 'h:ended', string.match(r[1] or '', '^%d+$') or job.created, id)
    else
      redis.call('HSET', job.hash, 'attempt', string.format('%d', job.attempt + gap))
      for _, parent in ipairs(redis.call('SMEMBERS', 'h:needs:' .. id)) do redis.call('SADD', 'h:children:' .. parent, id) end
    end
    if job.state == 'running' then
      running = running + 1
      redis.call('ZADD', 'h:leases', string.format('%d', now + lease), id)
      if job.key ~= '' then redis.call('SET', 'h:key:' .. job.key, id) end
      -- it lost its control plane and not its worker, which is no death of its making; but one that may run only once may
      -- have been started since, though it was only held then
      if job.cancel == '' then redis.call('HSET', job.hash, 'ahead', job.once == '' and '1' or '') end
      if job.cancel ~= '' then redis.call('ZADD', 'h:cancels', now_text, id) end
    end
  end
end
return {jobs, running}
