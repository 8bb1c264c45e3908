-- As _line.lua, for several jobs of one queue at once, at its end; whoever waits for work hears how many there are.
local function line_up_all(queue, ids)
  local name = 'rq:queue:' .. queue
  if redis.call('RPUSH', name, unpack(ids)) == #ids then
    redis.call('SADD', 'rq:queues', name)
    redis.call('PUBLISH', 'h:wake', queue)
  end
  redis.call('PUBLISH', 'h:queued', #ids == 1 and queue or queue .. ' ' .. #ids)
end
