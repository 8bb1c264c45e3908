-- Accept plain jobs that one caller ordered together, each as submit.lua would, behind the check of who asks.
-- ARGV: those of _known.lua; how many jobs, actor, iso time, task, queue; how many tags it asks for, those, their set ('' = none);
--       slots that serve it, how many are free, how long jobs run (ms, '' = unknown), how many lists are emptied before it,
--       those lists, none of that where nobody serves ('', '', '', 0); then of each job: id spec signature timeout_s description
-- -> {'changed'}: the caller is not as it was, and nothing was done | {'ok', how many of them, the first ones, are accepted,
--    how many more may come, ms until the oldest counted request is forgotten, created, {seconds it will wait...}}
-- include known
-- include now
-- include rate
-- include estimate
-- include event
-- include events
-- include audit
-- include write
-- include hand
-- include lines
local WORDS = 5
local same, at = known_as(ARGV)
if not same then return {'changed'} end
local actor, iso, task, queue = unpack(ARGV, at + 1, at + 4)
local allowed, remaining, reset_ms = rated(ARGV[1], tonumber(ARGV[2]), now, tonumber(ARGV[at]))
if allowed == 0 then return {'ok', 0, remaining, reset_ms} end
local tags = {unpack(ARGV, at + 6, at + 5 + ARGV[at + 5])}
at = at + 6 + #tags
local tag_set, slots, free, mean_ms, lists = unpack(ARGV, at, at + 4)
local before = slots ~= '' and 0
for i = at + 5, at + 4 + lists do before = before + redis.call('LLEN', ARGV[i]) end
local jobs, ids, scores, estimates, options = {}, {}, {}, {}, {tag_set = tag_set}
for i = 1, allowed do
  local from = at + 5 + lists + WORDS * (i - 1)
  local id, spec, signature, timeout, description = unpack(ARGV, from, from + WORDS - 1)
  local A = {id, actor, queue, spec, signature, rq_data(task, id), iso, timeout, description, tag_set}
  local estimate = before and estimated_s(before + i - 1, slots, free, mean_ms) or ''
  write_plain(A, options, estimate, now_text)
  jobs[i], ids[i], estimates[i] = A, id, estimate
  scores[2 * i - 1], scores[2 * i] = now_text, id
end
event_of_all('job.queued', ids, 'by', actor, 'q', queue)
redis.call('ZADD', 'h:jobs', unpack(scores))
for _, tag in ipairs(tags) do redis.call('ZADD', 'h:jobs:tag:' .. tag, unpack(scores)) end
if tag_set ~= '' and redis.call('SADD', 'h:tagsets', tag_set) == 1 then redis.call('PUBLISH', 'h:wake', 'tagsets') end
local first = 1                                          -- of those that wait: nobody is overtaken
if before == 0 then
  while first <= allowed and handed(jobs[first]) do first = first + 1 end
end
if first <= allowed then
  redis.call('ZADD', 'h:jobs:queued', unpack(scores, 2 * first - 1))
  line_up_all(queue, {unpack(ids, first)})
end
audit(now_text, actor, 'job.submit', unpack(ids))
return {'ok', allowed, remaining, reset_ms, now_text, estimates}
