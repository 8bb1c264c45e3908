-- Append accepted changes to the audit log, a line for each subject. Each line's digest covers the digest of the line
-- before it, so a line that is changed or taken out later breaks the chain at that place.
local function audit(now_ms, actor, action, ...)
  local at = string.format('%.0f', tonumber(now_ms))
  local digest = redis.call('GET', 'h:audit:head') or ''
  for i = 1, select('#', ...) do
    local line = cjson.encode({at, tostring(actor), tostring(action), tostring((select(i, ...)))})
    digest = redis.sha1hex(digest .. line)
    redis.call('XADD', 'h:audit', '*', 'line', line, 'digest', digest)
  end
  redis.call('SET', 'h:audit:head', digest)
end
