-- An agent called: note that it lives, and renew what it holds.
-- ARGV: worker registration lease_ms fields(JSON) -> {'unregistered'} | {'ok', {cancel id...}, {id, attempt...}}
-- include now
-- include event
-- include hold
local beats, cancel, _, held = hold(ARGV[1], ARGV[2], tonumber(ARGV[3]), cjson.decode(ARGV[4]))
if not beats then return {'unregistered'} end
return {'ok', cancel, held}
