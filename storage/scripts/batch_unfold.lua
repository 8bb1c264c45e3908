-- Make the next jobs of an accepted batch; safe to run by several at once. ARGV: batch most -> how many are left
-- include now
-- include event
-- include events
-- include write
-- include lines
local name = 'h:batch:' .. ARGV[1]
local meta = redis.call('HMGET', name, 'by', 'created', 'iso', 'actor')
-- in the older form a batch knew its `actor`, and a job was eight words in its list
local actor, created, iso, WORDS = meta[1] or meta[4], meta[2], meta[3], meta[1] and 1 or 8
if not actor then return 0 end
local words = redis.call('LPOP', name .. ':jobs', ARGV[2] * WORDS) or {}
local scores, lines = {}, {}

-- what is ordinary gets into indexes and queues all at once
local function flush()
  if #scores > 0 then
    redis.call('ZADD', 'h:jobs', unpack(scores))
    redis.call('ZADD', 'h:jobs:queued', unpack(scores))
  end
  for queue, ids in pairs(lines) do
    event_of_all('job.queued', ids, 'by', actor, 'q', queue)
    line_up_all(queue, ids)
  end
  scores, lines = {}, {}
end

local more
local function with_more()                               -- set up only where a job asks for it
-- include job
-- include queue
-- include accept
-- include finish
  local function into_line(job) line_up(job, false) end
  return {due_of = due_of, place = place, finish = finish, load = load, into_line = into_line}
end

local function extraordinary(A, o)
  more = more or with_more()
  local unmet, dead = {}, false
  for _, parent in ipairs(o.depends_on or {}) do
    local state = redis.call('HGET', 'h:job:' .. parent, 'state')
    if state ~= 'completed' then
      unmet[#unmet + 1] = parent
      dead = dead or state ~= 'queued' and state ~= 'running'      -- since the batch was accepted
    end
  end
  if o.file then redis.call('SADD', 'h:file:' .. o.file .. ':jobs', A[1]) end
  local due = more.due_of(o)
  write_job(A, o, due, '', created)
  more.place(A, o, due, unmet, created, more.into_line)
  if dead then more.finish(more.load(A[1]), 'cancelled', 'dependency', '', iso) end
end

for i = 1, #words, WORDS do
  local id, queue, signature, data, timeout, description, spec, options
  if WORDS == 1 then                                     -- storage/batches.py says how it is put together
    local word = words[i]
    local l1, l2, l3, l4, l5, l6, l7, from = struct.unpack('>HHHHHHI', word)
    id = string.sub(word, from, from + l1 - 1) from = from + l1
    queue = string.sub(word, from, from + l2 - 1) from = from + l2
    signature = string.sub(word, from, from + l3 - 1) from = from + l3
    data = string.sub(word, from, from + l4 - 1) from = from + l4
    timeout = string.sub(word, from, from + l5 - 1) from = from + l5
    description = string.sub(word, from, from + l6 - 1) from = from + l6
    spec = string.sub(word, from, from + l7 - 1)
    options = string.sub(word, from + l7)
  else
    id, queue, spec, signature, data, timeout, description, options = unpack(words, i, i + 7)
  end
  local A = {id, actor, queue, spec, signature, data, iso, timeout, description, options}
  if A[10] ~= '' then
    flush()
    extraordinary(A, cjson.decode(A[10]))
  else
    write_job(A, {}, nil, '', created)
    scores[#scores + 1] = created
    scores[#scores + 1] = A[1]
    local ids = lines[A[3]] or {}
    ids[#ids + 1] = A[1]
    lines[A[3]] = ids
  end
end
flush()
local left = redis.call('LLEN', name .. ':jobs') / WORDS
if left == 0 then
  redis.call('DEL', name)
  redis.call('SREM', 'h:batches', ARGV[1])
end
return left
