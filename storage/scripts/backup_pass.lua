-- Let an occurrence pass without a run. ARGV: id kind(run | drill) at following('' = none) sentence('' = nothing to say)
-- -> 1 when it was still due
-- include now
-- include event
-- include backup
local id, kind = ARGV[1], ARGV[2]
local field = kind == 'drill' and 'drill_next' or 'next'
if redis.call('HGET', 'h:backup:' .. id, field) ~= ARGV[3] then return 0 end
if kind == 'drill' then backup_due(id, nil, ARGV[4]) else backup_due(id, ARGV[4], nil) end
if ARGV[5] ~= '' then
  backup_event('refused', id, 'kind', kind, 'error', ARGV[5])
  backup_notice(id, kind == 'drill' and 'Restore drill refused' or 'Backup refused', ARGV[5], 'warning')
end
return 1
