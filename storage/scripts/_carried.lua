-- What goes before a step that carries its caller's admission (storage/carrying.py): the step is the function `step`.
-- ARGV: those of _known.lua, then the step's own
-- -> {'changed'}: the caller is not as it was, and nothing was done or counted | {'ok', allowed, remaining, ms until the
--    oldest counted request is forgotten, the step's reply if it was allowed}
-- include known
-- include rate
local same, from = known_as(ARGV)
if not same then return {'changed'} end
local clock = redis.call('TIME')
local allowed, remaining, reset_ms =
  rated(ARGV[1], tonumber(ARGV[2]), clock[1] * 1000 + math.floor(clock[2] / 1000))
if allowed == 0 then return {'ok', 0, remaining, reset_ms} end
local rest = {}
if #ARGV - from < 1000 then
  rest = {unpack(ARGV, from)}
else                                                      -- more than `unpack` takes
  for i = from, #ARGV do rest[i - from + 1] = ARGV[i] end
end
return {'ok', 1, remaining, reset_ms, step(KEYS, rest)}
