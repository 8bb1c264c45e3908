-- A job that was claimed ahead starts now. ARGV: id attempt worker -> 'ok' | 'unknown' | 'stale' | 'over'
-- include now
-- include begin
return begin(ARGV[1], ARGV[2], ARGV[3])
