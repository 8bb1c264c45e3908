-- Record how a counted login ended; one that succeeded is taken out of the counters again.
-- ARGV: now_ms, actor, peer, 'ok' or 'failed', the counter of this account from this peer, the other counters
-- include audit

local now_ms, actor, peer, outcome = unpack(ARGV, 1, 4)
if outcome == 'ok' then
  redis.call('DEL', ARGV[5])
  for i = 6, #ARGV do
    if tonumber(redis.call('GET', ARGV[i]) or 0) > 0 then
      redis.call('DECR', ARGV[i])
    end
  end
end
audit(now_ms, actor, outcome == 'ok' and 'session.login' or 'session.login_failed', peer)
return 1
