-- Write a record of an experiment if it is still at the version it was read at, and say
-- so in the log.
-- KEYS: hash, control, meta.
-- ARGV: name, version expected ('' for none yet), record, kind of control fact, body.
-- Returns 1, or 0 when the version has moved.
local now = redis.call('HGET', KEYS[1], ARGV[1])
local version = now and tostring(cjson.decode(now)['spec_version']) or ''
if version ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('XADD', KEYS[2], '*', 'name', ARGV[1], 'kind', ARGV[4], 'body', ARGV[5])
redis.call('HINCRBY', KEYS[3], 'generation', 1)
return 1
