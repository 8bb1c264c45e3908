-- Say once that a backup is overdue, refused or unproven; `overdue` and `unproven` are said again only after it was not so.
-- ARGV: id kind sentence -> 1 when it was said now
-- include now
-- include event
-- include backup
local id, kind = ARGV[1], ARGV[2]
local hash = 'h:backup:' .. id
if redis.call('EXISTS', hash) == 0 then return 0 end
if kind ~= 'refused' and redis.call('HSETNX', hash, kind, now_text) == 0 then return 0 end
backup_event(kind, id, 'error', ARGV[3])
backup_notice(id, 'Backup ' .. kind, ARGV[3], 'warning')
return 1
