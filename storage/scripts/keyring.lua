-- Return the keyring, with the offered key in it if there was none, or if the offer is to take over.
-- ARGV: now_ms, actor, key id, sealed key, 'ensure' or 'rotate'
-- include audit

local now_ms, actor, kid, sealed, mode = unpack(ARGV)
if mode == 'rotate' or not redis.call('HGET', 'h:keyring', 'current') then
  redis.call('HSET', 'h:keyring', 'current', kid, 'key:' .. kid, sealed)
  audit(now_ms, actor, 'keyring.' .. mode, kid)
end
return redis.call('HGETALL', 'h:keyring')
