-- Forget a finished job whose record is safe elsewhere. ARGV: id -> 1, or 0 where it is not finished and told
local hash = 'h:job:' .. ARGV[1]
local r = redis.call('HMGET', hash, 'state', 'worker', 'tags', 'file', 'queue')
local registry = ({completed = 'finished', failed = 'failed', cancelled = 'canceled'})[r[1]]
if not registry then return 0 end
if redis.call('ZSCORE', 'h:webhooks', ARGV[1]) then return 0 end      -- somebody has still to be told
redis.call('ZREM', 'rq:' .. registry .. ':' .. r[5], ARGV[1])
redis.call('ZREM', 'h:jobs', ARGV[1])
redis.call('ZREM', 'h:jobs:' .. r[1], ARGV[1])
redis.call('ZREM', 'h:ended', ARGV[1])
redis.call('ZREM', 'h:quarantine', ARGV[1])
redis.call('INCR', 'h:archived')           -- while it is not there, an unknown id need not be asked of S3
if r[2] and r[2] ~= '' then redis.call('ZREM', 'h:jobs:worker:' .. r[2], ARGV[1]) end
for tag in string.gmatch(r[3] or '', '[^+]+') do redis.call('ZREM', 'h:jobs:tag:' .. tag, ARGV[1]) end
if r[4] and r[4] ~= '' then redis.call('SREM', 'h:file:' .. r[4] .. ':jobs', ARGV[1]) end
redis.call('DEL', hash, 'h:log:' .. ARGV[1], 'h:logparts:' .. ARGV[1], 'h:artifacts:' .. ARGV[1], 'h:deaths:' .. ARGV[1], 'rq:job:' .. ARGV[1])
return 1
