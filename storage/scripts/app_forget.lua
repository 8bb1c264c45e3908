-- An app is gone from its node: drop all that is kept of it. ARGV: worker registration id -> 'ok' | 'unregistered' | 'unknown'
-- include job
-- include event
-- include app
-- include node
local standing = ours(ARGV[1], ARGV[2], ARGV[3])
if standing == 'ok' then app_drop('h:app:' .. ARGV[3], ARGV[3]) end
return standing
