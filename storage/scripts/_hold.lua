-- An agent called: it lives. Once it has sent a heartbeat, any call of its renews the leases of all it holds; an agent
-- that never did holds each lease until its job's timeout + 30 s, which its calls must not shorten.
-- needs: now, event
-- given: fields of its record; a heartbeat's hold `beats`
-- -> nil where it is not registered | beats, {cancel id...}, tags(JSON), {id, attempt...}
local function hold(worker, registration, lease_ms, given)
  local hash = 'h:worker:' .. worker
  local known = redis.call('HMGET', hash, 'registration', 'status', 'beats', 'tags')
  if known[1] ~= registration then return nil end
  local fields, beats = {'seen', now_text}, known[3] or given.beats
  if known[2] == 'offline' then                          -- it was only silent
    redis.call('HDEL', hash, 'offline_at', 'offline_reason')
    event('worker.online', 'w', worker)
    fields[3], fields[4] = 'status', 'online'
  end
  for name, value in pairs(given) do fields[#fields + 1] = name; fields[#fields + 1] = value end
  redis.call('HSET', hash, unpack(fields))
  redis.call('ZADD', 'h:workers:seen', now_text, worker)
  local due, cancel, held = string.format('%d', now + lease_ms), {}, {}
  for _, id in ipairs(redis.call('LRANGE', 'h:proc:' .. worker, 0, -1)) do
    local r = redis.call('HMGET', 'h:job:' .. id, 'state', 'worker', 'cancel', 'attempt')
    if r[1] == 'running' and r[2] == worker then
      if beats then redis.call('ZADD', 'h:leases', due, id) end
      if r[3] and r[3] ~= '' then cancel[#cancel + 1] = id end
      held[#held + 1], held[#held + 2] = id, r[4]
    end
  end
  return beats and '1' or '', cancel, known[4] or '[]', held
end
