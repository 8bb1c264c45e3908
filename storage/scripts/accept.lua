-- Accept plain jobs that one caller ordered together, each as submit.lua would, behind the check of who asks.
-- ARGV: those of _known.lua; how many jobs, actor, iso time, queue; slots that serve it, how many are free, how long jobs
--       run (ms, '' = unknown), how many lists are emptied before it, those lists, none of that where nobody serves ('', '',
--       '', 0); then of each job: id spec signature rq_data timeout_s description
-- -> {'changed'}: the caller is not as it was, and nothing was done | {'ok', how many of them, the first ones, are accepted,
--    how many more may come, ms until the oldest counted request is forgotten, created, {seconds it will wait...}}
-- include known
-- include now
-- include rate
-- include estimate
-- include event
-- include audit
-- include write
-- include hand
-- include lines
local WORDS = 6
local same, at = known_as(ARGV)
if not same then return {'changed'} end
local actor, iso, queue = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
local slots, free, mean_ms, lists = ARGV[at + 4], ARGV[at + 5], ARGV[at + 6], tonumber(ARGV[at + 7])
local allowed, remaining, reset_ms = rated(ARGV[1], tonumber(ARGV[2]), now, tonumber(ARGV[at]))
if allowed == 0 then return {'ok', 0, remaining, reset_ms} end
local before = slots ~= '' and 0
for i = at + 8, at + 7 + lists do before = before + redis.call('LLEN', ARGV[i]) end
local jobs, ids, scores, estimates, none = {}, {}, {}, {}, {}
for i = 1, allowed do
  local from = at + 8 + lists + WORDS * (i - 1)
  local id, spec, signature, data, timeout, description = unpack(ARGV, from, from + WORDS - 1)
  local A = {id, actor, queue, spec, signature, data, iso, timeout, description, ''}
  local estimate = before and estimated_s(before + i - 1, slots, free, mean_ms) or ''
  write_job(A, none, nil, estimate, now_text)
  event('job.queued', 'id', id, 'by', actor, 'q', queue)
  jobs[i], ids[i], estimates[i] = A, id, estimate
  scores[2 * i - 1], scores[2 * i] = now_text, id
end
redis.call('ZADD', 'h:jobs', unpack(scores))
redis.call('ZADD', 'h:jobs:queued', unpack(scores))
local first = 1                                          -- of those that wait: nobody is overtaken
if before == 0 then
  while first <= allowed and handed(jobs[first]) do first = first + 1 end
end
if first <= allowed then line_up_all(queue, {unpack(ids, first)}) end
audit(now_text, actor, 'job.submit', unpack(ids))
return {'ok', allowed, remaining, reset_ms, now_text, estimates}
