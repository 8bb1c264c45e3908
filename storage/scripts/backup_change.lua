-- Make, replace or remove a backup. ARGV: actor change(JSON: id action from wish name node due drill gone data_until)
-- -> 'ok' | 'exists' | 'missing' | 'changed' | 'busy <job>'
-- include now
-- include event
-- include audit
-- include backup
local actor, c = ARGV[1], cjson.decode(ARGV[2])
local hash = 'h:backup:' .. c.id
local old = redis.call('HGET', hash, 'wish')
if c.action == 'create' then
  if old then return 'exists' end
else
  if not old then return 'missing' end
  if old ~= c.from then return 'changed' end
end
if c.action == 'delete' then
  local busy = backup_busy(c.id)
  if busy then return 'busy ' .. busy end
  backup_event('deleted', c.id)
  local list = hash .. ':records'
  for _, record in ipairs(redis.call('ZRANGE', list, 0, -1)) do redis.call('DEL', 'h:backuprecord:' .. c.id .. ':' .. record) end
  redis.call('DEL', hash, list)
  redis.call('ZREM', 'h:backups', c.id)
  redis.call('ZREM', 'h:backups:due', c.id, c.id .. ' drill')
  if c.data_until then redis.call('ZADD', 'h:backups:gone', string.format('%d', c.data_until), c.gone) end
else
  redis.call('HSET', hash, 'wish', c.wish, 'name', c.name, 'node', c.node)
  if c.action == 'create' then
    redis.call('HSET', hash, 'created', now_text)
    redis.call('ZADD', 'h:backups', now_text, c.id)
  end
  redis.call('HDEL', hash, 'overdue', 'unproven')
  backup_due(c.id, c.due, c.drill)
  backup_event(c.action == 'create' and 'created' or 'changed', c.id)
end
audit(now_text, actor, 'backup.' .. c.action, c.id)
return 'ok'
