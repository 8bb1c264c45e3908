-- The time by Redis's clock: seconds and microseconds, ms, ms as text.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local now_text = string.format('%d', now)
