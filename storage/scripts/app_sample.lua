-- Keep one round of samples of an app's instances in a ring. ARGV: worker registration id keep samples(JSON)
-- -> 'ok' | 'unregistered' | 'unknown'
-- include node
local standing = ours(ARGV[1], ARGV[2], ARGV[3])
if standing == 'ok' then
  redis.call('XADD', 'h:appsamples:' .. ARGV[3], 'MAXLEN', '~', ARGV[4], '*', 'samples', ARGV[5])
end
return standing
