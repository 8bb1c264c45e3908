-- Keep what became of asking a sub-Cuby. ARGV: now_ms, name, the record that was asked by, what went wrong ('' = it
-- answered), what it shows (JSON; '' = as before). One that was removed or replaced meanwhile stays so.
-- include event
-- include subcuby

local now_ms, name, record, problem, shown = unpack(ARGV)
local hash = 'h:subcuby:' .. name
if redis.call('HGET', hash, 'record') ~= record then
  return 'changed'
end
redis.call('HSET', hash, 'asked', now_ms, 'problem', problem)
if problem == '' then
  redis.call('HSET', hash, 'answered', now_ms)
end
if shown ~= '' then
  subcuby_shows(name, shown)
end
return 'ok'
