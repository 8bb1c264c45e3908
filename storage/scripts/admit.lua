-- Decide in one step whether what a request presents is current, and whether its bearer is within the rate.
-- ARGV: kind ('session', 'key', 'worker' or ''), subject (user id, digest of the key, or worker id),
--       token (jti, or registration), family, generation, address, requests a second (0: do not count)
-- Returns {known, allowed, remaining, ms until the oldest counted request is forgotten, user's record, key's record}.
-- What is not current counts for the address, so nobody spends the budget of a session that was taken from them.
-- include record
-- include rate

local HANDOVER_MS = 60000
local kind, subject, token, family, generation, address = unpack(ARGV, 1, 6)
local limit = tonumber(ARGV[7])
local bearer, user, key = false, '', ''

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
if kind == 'session' then
  local revoked = redis.call('MGET', 'h:revoked:' .. token, 'h:revoked:' .. family)
  -- a token that was just traded in serves the requests that were under way with it
  local traded_ms = revoked[1] and tonumber(string.match(revoked[1], '^refreshed (%d+)$'))
  if not revoked[2] and (not revoked[1] or traded_ms and now_ms - traded_ms < HANDOVER_MS) then
    local raw = redis.call('GET', 'h:user:' .. subject)
    local fields = raw and content(raw)
    if fields and tostring(fields.generation) == generation then
      bearer, user = 'user:' .. subject, raw
    end
  end
elseif kind == 'key' then
  -- a session that a key was traded for ends by itself, or with the key
  local ended = family ~= '' and redis.call('EXISTS', 'h:revoked:' .. family) == 1
  local raw = not ended and redis.call('GET', 'h:apikey:' .. subject)
  local fields = raw and content(raw)
  local owner = fields and redis.call('GET', 'h:user:' .. tostring(fields.owner))
  if owner then
    bearer, user, key = 'key:' .. subject, owner, raw
  end
elseif kind == 'worker' then
  if redis.call('HGET', 'h:worker:' .. subject, 'registration') == token then
    bearer = 'worker:' .. subject
  end
end

local known = bearer and 1 or 0
if limit == 0 then
  return {known, 1, 0, 0, user, key}
end

local allowed, remaining, reset_ms = rated('h:rate:' .. (bearer or ('address:' .. address)), limit, now_ms)
return {known, allowed, remaining, reset_ms, user, key}
