-- Change what is wished of an app, without a job. ARGV: actor change(JSON) -> {'ok'} | {code, detail}
-- include job
-- include event
-- include audit
-- include app
local change = cjson.decode(ARGV[2])
local refused = app_refusal(change)
if refused then return refused end
app_change(change, ARGV[1], '')
return {'ok'}
