-- A job that was claimed ahead starts now: from here on a lost worker counts as a death of its.
-- ARGV: id attempt worker
-- include job
local _, standing = current(ARGV[1], ARGV[2], ARGV[3])
if standing == 'ok' then redis.call('HSET', 'h:job:' .. ARGV[1], 'ahead', '', 'started', now_text) end
return standing
