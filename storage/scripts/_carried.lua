-- What goes before a step that carries its caller's admission (storage/carrying.py): the step is the function `step`.
-- ARGV: rate key, requests a second, worker's key and its registration ('' = no worker), how many keys, those keys,
--       what each of them must hold ('' = nothing); then the step's own
-- -> {'changed'}: the caller is not as it was, and nothing was done or counted | {'ok', allowed, remaining, ms until the
--    oldest counted request is forgotten, the step's reply if it was allowed}
-- include rate
if ARGV[3] ~= '' and redis.call('HGET', ARGV[3], 'registration') ~= ARGV[4] then return {'changed'} end
local many = tonumber(ARGV[5])
if many > 0 then
  local held = redis.call('MGET', unpack(ARGV, 6, 5 + many))
  for i = 1, many do
    if (held[i] or '') ~= ARGV[5 + many + i] then return {'changed'} end
  end
end
local clock = redis.call('TIME')
local allowed, remaining, reset_ms =
  rated(ARGV[1], tonumber(ARGV[2]), clock[1] * 1000 + math.floor(clock[2] / 1000))
if allowed == 0 then return {'ok', 0, remaining, reset_ms} end
local from, rest = 6 + 2 * many, {}
if #ARGV - from < 1000 then
  rest = {unpack(ARGV, from)}
else                                                      -- more than `unpack` takes
  for i = from, #ARGV do rest[i - from + 1] = ARGV[i] end
end
return {'ok', 1, remaining, reset_ms, step(KEYS, rest)}
