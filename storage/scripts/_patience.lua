-- Once Redis is back from an absence in which a heartbeat may have been missed, everybody gets one full lease: nobody
-- could renew. Whoever seeks the lead notes that Redis can be reached, whether it gets it or not, and so does the reaper.
-- needs: now; given: under which key, the jobs' lease, and what is an absence
local function patience(key, lease_ms, absence_ms)
  local heard = redis.call('MGET', 'h:reaper:last', 'h:leader:asked')
  redis.call('SET', key, now_text)
  if now - math.max(tonumber(heard[1] or '') or 0, tonumber(heard[2] or '') or 0) > absence_ms then
    redis.call('SET', 'h:reaper:hold', string.format('%d', now + lease_ms), 'PX', lease_ms)
  end
end
