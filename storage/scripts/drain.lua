-- Keep a worker from taking more jobs, or let it take them again; what it runs, and its apps, go on.
-- ARGV: worker on('1' | '') actor -> 'ok' | 'unknown'
-- include now
-- include event
-- include audit
local hash = 'h:worker:' .. ARGV[1]
if redis.call('HEXISTS', hash, 'registration') == 0 then return 'unknown' end
local changed
if ARGV[2] ~= '' then changed = redis.call('HSETNX', hash, 'drain', '1') else changed = redis.call('HDEL', hash, 'drain') end
if changed == 1 then
  event('worker.draining', 'w', ARGV[1], 'on', ARGV[2])
  audit(now_text, ARGV[3], ARGV[2] ~= '' and 'worker.drain' or 'worker.undrain', ARGV[1])
  if ARGV[2] == '' then redis.call('PUBLISH', 'h:wake', 'tagsets') end      -- everybody looks for work, it too
end
return 'ok'
