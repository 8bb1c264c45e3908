-- The bytes of a pending upload are there: list it. Safe to run twice.
-- ARGV: id now_ms expires_ms size sha256 etag -> {'ok', fields...} | {'gone'}
-- include event
-- include audit
local id, now_ms, expires, size, sha256, etag = unpack(ARGV)
local hash = 'h:file:' .. id
local old = redis.call('HMGET', hash, 'state', 'by')
if old[1] == 'pending' then
  redis.call('HSET', hash, 'state', 'ready', 'uploaded', now_ms, 'expires', expires, 'size', size, 'sha256', sha256,
    'etag', etag)
  redis.call('ZADD', 'h:files', now_ms, id)
  redis.call('ZADD', 'h:files:expiry', expires, id)
  event('file.uploaded', 'id', id, 'by', old[2])
  audit(now_ms, old[2], 'file.upload', id)
elseif old[1] ~= 'ready' then
  return {'gone'}
end
return {'ok', unpack(redis.call('HGETALL', hash))}
