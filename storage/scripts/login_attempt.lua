-- Count a login before its password is looked at, unless too many have failed. Returns 0, or the seconds to wait.
-- ARGV: for each counter its key, its limit and its window in seconds

local wait_s = 0
for i = 1, #ARGV, 3 do
  if tonumber(redis.call('GET', ARGV[i]) or 0) >= tonumber(ARGV[i + 1]) then
    wait_s = math.max(wait_s, 1, redis.call('TTL', ARGV[i]))
  end
end
if wait_s > 0 then
  return wait_s
end
for i = 1, #ARGV, 3 do
  if redis.call('INCR', ARGV[i]) == 1 then
    redis.call('EXPIRE', ARGV[i], ARGV[i + 2])
  end
end
return 0
