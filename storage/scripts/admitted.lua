-- Admit several looks of one caller at once; what they read was asked for in the same write (storage/carrying.py).
-- ARGV: those of _known.lua, how many looks
-- -> {'changed'}: the caller is not as it was, and nothing was counted | {'ok', how many are allowed, how many more may
--    come after those, ms until the oldest counted request is forgotten}
-- include known
-- include now
-- include rate
local same, from = known_as(ARGV)
if not same then return {'changed'} end
return {'ok', rated(ARGV[1], tonumber(ARGV[2]), now, tonumber(ARGV[from]))}
