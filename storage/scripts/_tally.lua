-- What is counted for as long as Redis keeps it: how long jobs waited and ran, how they ended, what was tried again.
-- Times go into buckets, whose upper bounds (ms) storage/census.py names to its readers; one hash holds all of it.
local BOUNDS = {5, 25, 100, 500, 1000, 5000, 15000, 60000, 300000, 900000, 3600000, 14400000}

-- a field that somebody else wrote into must not stop the step that is counted
local function tally(what, many)
  redis.pcall('HINCRBY', 'h:tally', what, many or 1)
end

local function tally_times(what, times)
  local counts, sum = {}, 0
  for _, ms in ipairs(times) do
    local bucket = 1
    while BOUNDS[bucket] and ms > BOUNDS[bucket] do bucket = bucket + 1 end
    counts[bucket], sum = (counts[bucket] or 0) + 1, sum + math.max(0, ms)
  end
  for bucket, count in pairs(counts) do tally(what .. ':' .. bucket, count) end
  if sum > 0 then tally(what .. ':ms', string.format('%d', sum)) end
end
