-- Read a log from its newest entry back; what it takes and answers stands with `logged`.
-- include logged
return logged(ARGV)
