-- Make the next portion of an accepted batch; safe to run by several at once. ARGV: batch -> how many are left
-- include now
-- include event
-- include events
-- include write
-- include lines
local name = 'h:batch:' .. ARGV[1]
local staged = name .. ':jobs'
local meta = redis.call('HMGET', name, 'owner', 'created', 'iso', 'task', 'by')
local actor, created, iso, task = meta[1] or meta[5], meta[2], meta[3], meta[4]
if not actor then return 0 end
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
  local function aside(job) park(job, 'dependency', nil) end
  return {due_of = due_of, place = place, finish = finish, load = load, into_line = into_line, aside = aside}
end

local function extraordinary(A, o)
  more = more or with_more()
  local unmet, dead = {}, false
  for _, parent in ipairs(o.depends_on or {}) do
    local state = redis.call('HGET', 'h:job:' .. parent, 'state')
    if state == 'queued' or state == 'running' then
      unmet[#unmet + 1] = parent
    elseif state ~= 'completed' then                     -- it has come to that since the batch was accepted
      dead = true
    end
  end
  if o.file then redis.call('SADD', 'h:file:' .. o.file .. ':jobs', A[1]) end
  local due = more.due_of(o)
  write_job(A, o, due, '', created)
  more.place(A, o, due, unmet, created, dead and more.aside or more.into_line)
  if dead then more.finish(more.load(A[1]), 'cancelled', 'dependency', '', iso) end
end

local function make(A)
  if A[10] ~= '' then
    flush()
    return extraordinary(A, cjson.decode(A[10]))
  end
  write_plain(A, {}, '', created)
  scores[#scores + 1], scores[#scores + 2] = created, A[1]
  local ids = lines[A[3]] or {}
  ids[#ids + 1] = A[1]
  lines[A[3]] = ids
end

local jobs, names = {}, {}
local function add(A)
  jobs[#jobs + 1], names[#names + 1] = A, 'h:job:' .. A[1]
end

-- storage/batches.py says how a portion is put together
local function add_all(portion)
  local stem, queue = 'job-' .. string.sub(ARGV[1], 7) .. '-', nil      -- after 'batch-'
  local number, at = struct.unpack('>H', portion)
  while at <= #portion do
    local named, timeout, spec, signature, description, options
    named, timeout, spec, signature, description, options, at = struct.unpack('>Hc0IIc0Hc0Hc0Ic0', portion, at)
    if named ~= '' then queue = named end
    local id = string.format('%s%03d', stem, number)
    add({id, actor, queue, spec, signature, rq_data(task, id), iso, string.format('%d', timeout), description, options})
    number = number + 1
  end
end

-- laid ready by the version before, which has a word for each job
local function add_older(word)
  local parts = {struct.unpack('>HHHHHHI', word)}
  local at = parts[8]
  for i = 1, 7 do parts[i], at = string.sub(word, at, at + parts[i] - 1), at + parts[i] end
  local id, queue, signature, data, timeout, description, spec = unpack(parts, 1, 7)
  add({id, actor, queue, spec, signature, data, iso, timeout, description, string.sub(word, at)})
end

for _, word in ipairs(redis.call('LPOP', staged, task and 1 or 50) or {}) do
  if task then add_all(word) else add_older(word) end
end
-- a recovery point may hold a job as well as the portion that it was made of, for they are read one after the other
local some = #names > 0 and redis.call('EXISTS', unpack(names)) > 0
for i, A in ipairs(jobs) do
  if not some or redis.call('EXISTS', names[i]) == 0 then make(A) end
end
flush()
local left = redis.call('LLEN', staged)
if left == 0 then
  redis.call('DEL', name)
  redis.call('SREM', 'h:batches', ARGV[1])
end
return left
