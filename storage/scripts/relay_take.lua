-- Take the oldest question to a node that its asker still waits for.
-- ARGV: node -> {id, sealed} | {}
local asks = 'h:relay:asks:' .. ARGV[1]
for _ = 1, 1000 do
  local entry = redis.call('LPOP', asks)
  if not entry then return {} end
  local id, sealed = string.match(entry, '^(%x+) (.*)$')
  if id and redis.call('GET', 'h:relay:open:' .. id) == 'open' then
    redis.call('SET', 'h:relay:open:' .. id, 'taken', 'KEEPTTL')
    return {id, sealed}
  end
end
return {}
