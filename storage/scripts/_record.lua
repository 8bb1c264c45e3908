-- A signed record is its signature, a line feed, and its content as JSON. Scripts read the content to decide what is
-- current; only a holder of the secret key can check the signature, and does so before anybody is believed.
local function content(raw)
  local ok, fields = pcall(cjson.decode, string.match(raw or '', '\n(.*)$') or '')
  return ok and type(fields) == 'table' and fields or nil
end
