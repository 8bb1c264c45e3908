-- Append one accepted change to the audit log. Each line's digest covers the digest of the line before it, so a line
-- that is changed or taken out later breaks the chain at that place.
local function audit(now_ms, actor, action, subject)
  local at = string.format('%.0f', tonumber(now_ms))
  local head = redis.call('GET', 'h:audit:head') or ''
  local line = cjson.encode({at, tostring(actor), tostring(action), tostring(subject)})
  local digest = redis.sha1hex(head .. line)
  redis.call('XADD', 'h:audit', '*', 'line', line, 'digest', digest)
  redis.call('SET', 'h:audit:head', digest)
end
