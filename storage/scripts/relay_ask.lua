-- Hand a question to the node that serves under a session, unless too many wait for it already.
-- ARGV: node session id sealed ttl_ms most -> 'ok' | 'away' | 'full'
local A = ARGV
if redis.call('GET', 'h:relay:session:' .. A[1]) ~= A[2] then return 'away' end
local asks = 'h:relay:asks:' .. A[1]
if redis.call('LLEN', asks) >= tonumber(A[6]) then return 'full' end
redis.call('SET', 'h:relay:open:' .. A[3], 'open', 'PX', A[5])
redis.call('RPUSH', asks, A[3] .. ' ' .. A[4])
redis.call('PEXPIRE', asks, 600000)      -- what a node leaves behind goes by itself
redis.call('PUBLISH', asks, 'ask')
return 'ok'
