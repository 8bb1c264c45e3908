-- Read keys whole, as many as fit; large ones are only named, to be read in pieces.
-- ARGV: most_bytes large_bytes key... -> {how many keys are seen to, {{key, type, pttl, content | false}...}}
local most, large = tonumber(ARGV[1]), tonumber(ARGV[2])
local READ = {
  string = function(key) return redis.call('GET', key) end,
  hash = function(key) return redis.call('HGETALL', key) end,
  list = function(key) return redis.call('LRANGE', key, 0, -1) end,
  set = function(key) return redis.call('SMEMBERS', key) end,
  zset = function(key) return redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end,
  stream = function(key) return redis.call('XRANGE', key, '-', '+') end,
}
local rows, bytes, seen = {}, 0, 0
for i = 3, #ARGV do
  local key = ARGV[i]
  local kind = redis.call('TYPE', key).ok
  seen = seen + 1
  if READ[kind] then
    local size = redis.call('MEMORY', 'USAGE', key, 'SAMPLES', 5) or 0
    local content = false
    if size <= large then content = READ[kind](key) bytes = bytes + size end
    rows[#rows + 1] = {key, kind, redis.call('PTTL', key), content}
    if bytes >= most then break end
  end
end
return {seen, rows}
