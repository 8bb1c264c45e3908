-- The whole fleet in numbers, at most `fresh_ms` and a millisecond a worker old; whoever asks within that time hears the
-- same. ARGV: fresh_ms
-- -> JSON of what storage/census.py reads
-- include now
local kept = redis.call('GET', 'h:census')
if kept then return kept end
local function number(value) return tonumber(value or '') or 0 end
local function card(key) return redis.call('ZCARD', key) end

-- queues that were ever waited in, and those of all tags that were ever asked for: what is handed to a worker at once waits
-- in none; of nodes' own queues only the sum, since they are named after machines
local queues, nodes, keys, seen = {}, {0, 0, 0}, redis.call('SMEMBERS', 'rq:queues'), {}
local sets = redis.call('SMEMBERS', 'h:tagsets')
sets[#sets + 1] = ''
for _, key in ipairs(keys) do seen[key] = true end
for _, tags in ipairs(sets) do
  for _, priority in ipairs({'high', 'normal', 'low'}) do
    local key = 'rq:queue:jobs.' .. (tags ~= '' and tags .. '.' or '') .. priority
    if not seen[key] then keys[#keys + 1] = key end
  end
end
for _, key in ipairs(keys) do
  local name = string.sub(key, 10)                      -- after 'rq:queue:'
  local depth, running = redis.call('LLEN', key), card('rq:wip:' .. name)
  local since = 0
  if depth > 0 then                                     -- what comes back goes first, so the oldest is near the front
    for _, id in ipairs(redis.call('LRANGE', key, 0, 4)) do
      local r = redis.call('HMGET', 'h:job:' .. id, 'lined', 'created')
      local began = number(r[1] or r[2])
      if began > 0 and (since == 0 or began < since) then since = began end
    end
  end
  if string.sub(name, 1, 5) == 'node.' then
    nodes = {nodes[1] + depth, nodes[2] + running, nodes[3] > 0 and since > 0 and math.min(nodes[3], since) or nodes[3] + since}
  elseif string.sub(name, 1, 5) == 'jobs.' and depth + running > 0 then
    queues[#queues + 1] = {name, depth, running, since}
  end
end

-- workers that are alike, counted together: kind, status, tags, slots of each; then how many, and what they run
local groups, kinds, workers = {}, {}, redis.call('ZRANGE', 'h:workers', 0, -1)
for _, id in ipairs(workers) do
  local r = redis.call('HMGET', 'h:worker:' .. id, 'registration', 'kind', 'status', 'drain', 'tags', 'slots', 'running')
  if r[1] then
    local kind = r[2] or 'agent'
    local running = kind == 'agent' and redis.call('LLEN', 'h:proc:' .. id) or number(r[7])
    local status = r[3] == 'online' and r[4] and 'draining' or r[3] or 'offline'
    local slots = r[6] or '1'
    local like = table.concat({kind, status, r[5] or '[]', slots}, '\n')
    local group = kinds[like]
    if not group then
      group = {kind, status, r[5] or '[]', number(slots), 0, 0}
      kinds[like] = group
      groups[#groups + 1] = group
    end
    group[5], group[6] = group[5] + 1, group[6] + running
  end
end

local states = {}
for _, state in ipairs({'queued', 'running', 'completed', 'failed', 'cancelled'}) do states[state] = card('h:jobs:' .. state) end
local late = string.format('%d', now - 60000)           -- schedules.MISFIRE_S
local info = redis.pcall('INFO', 'memory')              -- a provider may forbid it
local memory = {}
if type(info) == 'string' then
  for _, name in ipairs({'used_memory', 'maxmemory'}) do memory[name] = number(string.match(info, '\n' .. name .. ':(%d+)')) end
end
local leader = redis.call('GET', 'h:leader')
local census = cjson.encode({
  at = now, queues = queues, nodes = nodes, groups = groups, states = states,
  parked = redis.call('SCARD', 'h:parked'), leases = card('h:leases'),
  expired = redis.call('ZCOUNT', 'h:leases', '-inf', now_text), quarantined = card('h:quarantine'),
  webhooks = card('h:webhooks'), batches = redis.call('SCARD', 'h:batches'), schedules = card('h:schedules'),
  overdue = redis.call('ZCOUNT', 'h:schedules', '-inf', late), files = card('h:files'), apps = card('h:apps'),
  archived = number(redis.call('GET', 'h:archived')), term = number(redis.call('GET', 'h:leader:term')),
  led = leader and 1 or 0, reaped = number(redis.call('GET', 'h:reaper:last')),
  hold = math.max(0, number(redis.call('GET', 'h:reaper:hold')) - now),
  memory = memory, tally = redis.call('HGETALL', 'h:tally'), noted = redis.call('HGETALL', 'h:noted'),
})
redis.call('SET', 'h:census', census, 'PX', string.format('%d', ARGV[1] + #workers))
return census
