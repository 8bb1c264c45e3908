-- The object is gone: drop what is left of a removed file. Safe to run twice. ARGV: id now_ms
-- While its presigned address may still take bytes, it stays due, so that those are deleted then.
local hash, expiry = 'h:file:' .. ARGV[1], 'h:files:expiry'
local file = redis.call('HMGET', hash, 'state', 'puttable_until')
if file[1] ~= 'deleting' then return end
if tonumber(file[2] or 0) > tonumber(ARGV[2]) then
  redis.call('ZADD', expiry, file[2], ARGV[1])
  return
end
redis.call('DEL', hash, hash .. ':jobs')
redis.call('ZREM', expiry, ARGV[1])
