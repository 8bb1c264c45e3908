-- An API key lies under its digest; its id leads there from its owner's keys and from all keys.
local function keep_apikey(owner, id, digest, record)
  redis.call('SET', 'h:apikey:' .. digest, record)
  redis.call('HSET', 'h:apikeys:' .. owner, id, digest)
  redis.call('HSET', 'h:apikeys', id, digest)
end

local function drop_apikey(owner, id, digest)
  redis.call('DEL', 'h:apikey:' .. digest)
  redis.call('HDEL', 'h:apikeys:' .. owner, id)
  redis.call('HDEL', 'h:apikeys', id)
end

-- Revoke every key of a user; needs: audit.
local function revoke_apikeys_of(owner, now_ms, actor)
  local keys = redis.call('HGETALL', 'h:apikeys:' .. owner)
  for i = 1, #keys, 2 do
    drop_apikey(owner, keys[i], keys[i + 1])
    audit(now_ms, actor, 'apikey.revoke', keys[i])
  end
end
