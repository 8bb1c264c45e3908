-- Whether a caller is still as a process remembers it.
-- ARGV: rate key, requests a second, worker's key and its registration ('' = no worker), how many keys, those keys,
--       what each of them must hold ('' = nothing)
-- -> whether it is, place of what follows in ARGV
local function known_as(ARGV)
  if ARGV[3] ~= '' and redis.call('HGET', ARGV[3], 'registration') ~= ARGV[4] then return false, 0 end
  local many = tonumber(ARGV[5])
  if many > 0 then
    local held = redis.call('MGET', unpack(ARGV, 6, 5 + many))
    for i = 1, many do
      if (held[i] or '') ~= ARGV[5 + many + i] then return false, 0 end
    end
  end
  return true, 6 + 2 * many
end
