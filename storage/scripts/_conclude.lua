-- What the end of every job is: its record, its registries, what is counted, and its event.
-- needs: job, event
-- include let_go
-- include packed
-- include tally

local RQ_END = {completed = {'finished', 'finished', 500}, failed = {'failed', 'failed', 86400},
  cancelled = {'canceled', 'canceled', 86400}}

-- a job that runs, or that waits nowhere any more; `fields` are names and values that its record gets as well
local function conclude(job, state, reason, exit, iso, fields)
  if job.state == 'running' then
    let_go(job)
    tally_times('run:' .. state, {now - job.started})
  end
  tally('end:' .. state .. ':' .. reason)
  enter(job, state)
  local at, log = #fields, job.attempt ~= '0' and packed_log(job)
  fields[at + 1], fields[at + 2], fields[at + 3], fields[at + 4] = 'state', state, 'reason', reason
  fields[at + 5], fields[at + 6], fields[at + 7], fields[at + 8] = 'exit', exit, 'ended', now_text
  if log then
    fields[at + 9], fields[at + 10] = 'log', log
    redis.call('DEL', 'h:log:' .. job.id)
  end
  redis.call('HSET', job.hash, unpack(fields))
  redis.call('ZADD', 'h:ended', now_text, job.id)
  if job.cancel ~= '' then redis.call('ZREM', 'h:cancels', job.id) end
  if job.hook ~= '' then redis.call('ZADD', 'h:webhooks', now_text, job.id) end
  local rq = RQ_END[state]
  redis.call('HSET', 'rq:job:' .. job.id, 'status', rq[1], 'ended_at', iso)
  redis.call('ZADD', 'rq:' .. rq[2] .. ':' .. job.queue, clock[1] + rq[3], job.id)
  redis.call('EXPIRE', 'rq:job:' .. job.id, rq[3])
  event('job.completed', 'id', job.id, 'a', job.attempt, 'state', state, 'reason', reason, 'x', exit)
end
