-- One page of the files that are there, by the time of their upload.
-- ARGV: first last descending('1'|'') -> {total, id, fields, id, fields, ...}
local ids = redis.call(ARGV[3] == '1' and 'ZREVRANGE' or 'ZRANGE', 'h:files', ARGV[1], ARGV[2])
local page = {redis.call('ZCARD', 'h:files')}
for _, id in ipairs(ids) do
  page[#page + 1] = id
  page[#page + 1] = redis.call('HGETALL', 'h:file:' .. id)
end
return page
