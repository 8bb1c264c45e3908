-- Add a piece to what the other side takes, as long as its question is open and the other side keeps up.
-- ARGV: way(ask|answer) id piece ttl_ms most channel -> 'ok' | 'gone' | 'full'
local A, key = ARGV, 'h:relay:' .. ARGV[1] .. ':' .. ARGV[2]
if redis.call('EXISTS', 'h:relay:open:' .. A[2]) == 0 then return 'gone' end
if redis.call('LLEN', key) >= tonumber(A[5]) then return 'full' end
redis.call('RPUSH', key, A[3])
redis.call('PEXPIRE', key, A[4])
redis.call('PUBLISH', A[6], A[2])
return 'ok'
