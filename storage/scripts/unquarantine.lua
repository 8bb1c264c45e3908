-- Take a job out of the quarantine. ARGV: id actor action(release | discard) -> 1, or 0 where it is not in it
-- include job
-- include audit
if redis.call('ZREM', 'h:quarantine', ARGV[1]) == 0 then return 0 end
audit(now_text, ARGV[2], 'job.' .. ARGV[3], ARGV[1])
return 1
