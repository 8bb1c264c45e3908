-- What a sub-Cuby shows, and the events that tell of a change of it. needs: event

-- a ProcessCube is known by the address of its engine
local function subcuby_by_engine(shown)
  local ok, cubes = pcall(cjson.decode, shown or '[]')
  local found = {}
  for _, cube in ipairs(ok and type(cubes) == 'table' and cubes or {}) do
    if type(cube) == 'table' then found[tostring(cube.engineUrl)] = cube end
  end
  return found
end

local function subcuby_event(what, name, cube)
  local urls = type(cube.lowcodeUrls) == 'table' and #cube.lowcodeUrls > 0 and cjson.encode(cube.lowcodeUrls) or '[]'
  event('processcube.' .. what, 'app', tostring(cube.productId), 'name', tostring(cube.name), 'engineUrl',
    tostring(cube.engineUrl), 'lowcodeUrls', urls, 'authorityUrl',
    type(cube.authorityUrl) == 'string' and cube.authorityUrl or '', 'source', name)
end

local function subcuby_shows(name, shown)
  local hash = 'h:subcuby:' .. name
  local before, after = subcuby_by_engine(redis.call('HGET', hash, 'cubes') or '[]'), subcuby_by_engine(shown)
  for url, cube in pairs(before) do
    if not after[url] or cjson.encode(after[url]) ~= cjson.encode(cube) then
      subcuby_event('unregistered', name, cube)
    end
  end
  for url, cube in pairs(after) do
    if not before[url] or cjson.encode(before[url]) ~= cjson.encode(cube) then
      subcuby_event('registered', name, cube)
    end
  end
  redis.call('HSET', hash, 'cubes', shown)
end
