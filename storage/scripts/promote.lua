-- Queue the delayed jobs whose time has come. ARGV: most -> {count, ms until the next one | ''}
-- include job
-- include event
-- include queue
local due = redis.call('ZRANGEBYSCORE', 'h:delayed', '-inf', now_text, 'LIMIT', 0, ARGV[1])
for _, id in ipairs(due) do
  local job = load(id)
  if job and job.state == 'queued' and (job.wait == 'delay' or job.wait == 'backoff') then
    push(job, false)
  else
    redis.call('ZREM', 'h:delayed', id)
  end
end
local following = redis.call('ZRANGE', 'h:delayed', 0, 0, 'WITHSCORES')
return {#due, following[2] and string.format('%d', math.max(0, following[2] - now)) or ''}
