-- How many seconds a job will wait behind `before` others: they share the slots that serve it. '' where nothing tells.
local function estimated_s(before, slots, free, mean_ms)
  if before < tonumber(free) then return '0' end
  if mean_ms == '' then return '' end
  return string.format('%d', (before - free + 1) / slots * mean_ms / 1000 + 0.5)
end
