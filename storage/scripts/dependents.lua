-- Go on with the dependents of jobs that ended with more of them than one step sees to.
-- ARGV: iso -> 1 while there may be more, else 0
-- include job
-- include event
-- include queue
-- include finish
local todo, seen, room = {}, {}, MOST_DEPENDENTS
for _, parent in ipairs(redis.call('ZRANGE', 'h:dependents', 0, MOST_DEPENDENTS - 1)) do
  if room <= 0 then break end
  redis.call('ZREM', 'h:dependents', parent)
  local id, state = string.match(parent, '^(%S+) (%l+)$')
  if TERMINAL[state] then room = room - math.max(1, part_with(id, state, todo, seen, room)) end
end
finish_all(todo, seen, room, ARGV[1])
return redis.call('EXISTS', 'h:dependents')
