-- A plain command, for where only a script will do. ARGV: its words
return redis.call(unpack(ARGV))
