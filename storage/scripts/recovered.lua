-- After a rebuild: the audit log goes on where it ended, and says what happened.
-- ARGV: head actor point made_ms took_ms -> 1
-- include now
-- include event
-- include audit
if ARGV[1] ~= '' then redis.call('SET', 'h:audit:head', ARGV[1]) end
audit(now_text, ARGV[2], 'system.rebuild', ARGV[3])
redis.call('HSET', 'h:recovery', 'last', ARGV[4], 'took', ARGV[5])
event('recovery.rebuilt', 'point', ARGV[3])
event('notification', 'title', 'Hostler was rebuilt', 'body', 'From recovery point ' .. ARGV[3] .. '.', 'level', 'warning')
return 1
