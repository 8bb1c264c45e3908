-- Note how far the current attempt is. ARGV: id attempt worker percent -> standing
-- include job
-- include event
local job, standing = current(ARGV[1], ARGV[2], ARGV[3])
if standing == 'ok' then
  redis.call('HSET', job.hash, 'progress', ARGV[4])
  event('job.progress', 'id', job.id, 'a', job.attempt, 'p', ARGV[4])
end
return standing
