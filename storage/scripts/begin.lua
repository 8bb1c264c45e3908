-- A job that was claimed ahead starts now: from here on a lost worker counts as a death of its.
-- ARGV: id attempt worker
-- include now
local hash = 'h:job:' .. ARGV[1]
local r = redis.call('HMGET', hash, 'state', 'attempt', 'worker')      -- said for nearly every job, so no more than it takes
if not r[1] then return 'unknown' end
if r[3] ~= ARGV[3] or r[2] ~= ARGV[2] then return 'stale' end
if r[1] ~= 'running' then return 'over' end
redis.call('HSET', hash, 'ahead', '', 'started', now_text)
return 'ok'
