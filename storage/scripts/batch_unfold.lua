-- Make the next jobs of an accepted batch; safe to run by several at once. ARGV: batch most -> how many are left
-- include now
-- include event
-- include write
local WORDS = 8
local name = 'h:batch:' .. ARGV[1]
local meta = redis.call('HMGET', name, 'actor', 'created', 'iso')
if not meta[1] then return 0 end
local actor, created, iso = meta[1], meta[2], meta[3]
local words = redis.call('LPOP', name .. ':jobs', ARGV[2] * WORDS) or {}
local scores, lines = {}, {}

-- what is ordinary gets into indexes and queues all at once
local function flush()
  if #scores > 0 then
    redis.call('ZADD', 'h:jobs', unpack(scores))
    redis.call('ZADD', 'h:jobs:queued', unpack(scores))
  end
  for queue, ids in pairs(lines) do
    redis.call('SADD', 'rq:queues', 'rq:queue:' .. queue)
    redis.call('RPUSH', 'rq:queue:' .. queue, unpack(ids))
    redis.call('PUBLISH', 'h:wake', queue)
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
  local A = {words[i], actor, words[i + 1], words[i + 2], words[i + 3], words[i + 4], iso, words[i + 5], words[i + 6],
    words[i + 7]}
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
    event('job.queued', 'id', A[1], 'by', actor, 'q', A[3])
  end
end
flush()
local left = redis.call('LLEN', name .. ':jobs') / WORDS
if left == 0 then
  redis.call('DEL', name)
  redis.call('SREM', 'h:batches', ARGV[1])
end
return left
