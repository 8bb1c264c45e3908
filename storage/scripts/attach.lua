-- Register something the current attempt left in the object store. ARGV: id attempt worker kind(artifacts | logparts) name record(JSON)
-- -> standing
-- include job
local job, standing = current(ARGV[1], ARGV[2], ARGV[3])
if standing == 'ok' then redis.call('HSET', 'h:' .. ARGV[4] .. ':' .. job.id, ARGV[5], ARGV[6]) end
return standing
