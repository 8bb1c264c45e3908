-- How often a caller may come: the times of its requests of the last second, newest first, in a list of its own.

-- `many` come at once, nil for one
-- -> how many of them are allowed, how many more may come, ms until the oldest is forgotten
local function rated(rate, limit, now_ms, many)
  many = many or 1
  local at, counted = string.format('%.0f', now_ms), 0
  if many == 1 then
    counted = redis.call('LPUSH', rate, at)
  else
    local times = {}
    for i = 1, many do times[i] = at end
    counted = redis.call('LPUSH', rate, unpack(times))
  end
  local oldest = now_ms
  if counted > many then
    oldest = tonumber(redis.call('LINDEX', rate, -1))
    -- far from the limit, what is over leaves by blocks of 32: the answer is the same for a fraction of the work
    local exact = counted < 64 or counted + 64 > limit
    while oldest <= now_ms - 1000 do
      if not exact then
        local last = redis.call('LINDEX', rate, -32)
        if tonumber(last) > now_ms - 1000 then break end
      end
      redis.call('RPOP', rate, exact and 1 or 32)
      counted = counted - (exact and 1 or 32)
      oldest = tonumber(redis.call('LINDEX', rate, -1))
      exact = counted < 64 or counted + 64 > limit
    end
  end
  local refused = math.min(many, math.max(0, counted - limit))
  local allowed = many - refused
  if refused > 0 then redis.call('LPOP', rate, refused) end
  if allowed > 0 and counted < 64 then
    redis.call('PEXPIRE', rate, 1000)
  elseif allowed > 0 and counted % 16 < many then      -- long enough for all that come before the next sixteenth
    redis.call('PEXPIRE', rate, 2000)
  end
  return allowed, math.max(0, limit - counted), math.max(0, oldest + 1000 - now_ms)
end
