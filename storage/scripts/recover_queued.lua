-- After a rebuild: have queued jobs wait where their records say, in the order given; what may have been started since
-- the recovery point and must not start twice ends as lost. ARGV: iso id... -> {put into queues, waiting, lost}
-- include job
-- include event
-- include queue
-- include finish
local iso, pushed, waiting, gone = ARGV[1], 0, 0, 0
for i = 2, #ARGV do
  local job = load(ARGV[i])
  if job and job.state == 'queued' then
    local due = tonumber(redis.call('HGET', job.hash, 'due') or '')
    local later = due and due > now and (job.wait == 'delay' or job.wait == 'backoff' or job.wait == 'schedule')
    local needs = redis.call('SMEMBERS', 'h:needs:' .. job.id)
    local failed = false
    for _, parent in ipairs(needs) do
      local state = redis.call('HGET', 'h:job:' .. parent, 'state') or 'failed'     -- not even on record
      if TERMINAL[state] then redis.call('SREM', 'h:needs:' .. job.id, parent) redis.call('SREM', 'h:children:' .. parent, job.id) end
      if state == 'failed' or state == 'cancelled' then failed = true end
    end
    if job.once ~= '' and not later then
      finish(job, 'failed', 'lost', '', iso)
      gone = gone + 1
    elseif job.wait == 'dependency' and failed then
      finish(job, 'cancelled', 'dependency', '', iso)
      gone = gone + 1
    elseif job.wait == 'dependency' and redis.call('SCARD', 'h:needs:' .. job.id) > 0 then
      park(job, 'dependency', nil)
      waiting = waiting + 1
    elseif due and (job.wait == 'delay' or job.wait == 'backoff' or job.wait == 'schedule') then
      park(job, job.wait, due)
      waiting = waiting + 1
    else                              -- also what waits for a key: who finds it held waits anew
      push(job, false)
      pushed = pushed + 1
    end
  end
end
return {pushed, waiting, gone}
