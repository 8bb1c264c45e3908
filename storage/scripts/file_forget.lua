-- The object is gone: drop what is left of a removed file. Safe to run twice. ARGV: id
if redis.call('HGET', 'h:file:' .. ARGV[1], 'state') == 'deleting' then
  redis.call('DEL', 'h:file:' .. ARGV[1], 'h:file:' .. ARGV[1] .. ':jobs')
  redis.call('ZREM', 'h:files:expiry', ARGV[1])
end
