-- Append one event to the stream that everybody who watches reads; what follows the name are field and value pairs.
local function event(name, ...)
  redis.call('XADD', 'h:events', 'MAXLEN', '~', 100000, '*', 'e', name, ...)
end
