-- Write a record of an experiment if it is still at the version it was read at, and say
-- so in the log.
-- KEYS from 3: hash, control, meta.
-- ARGV from 6: name, record, version expected ('' for none yet), kind of control fact.
-- Returns 1, 0 when the version has moved, or -1 when another act came first.
if overtaken then return -1 end
local now = redis.call('HGET', KEYS[3], ARGV[6])
local version = now and tostring(cjson.decode(now)['spec_version']) or ''
if version ~= ARGV[8] then return 0 end
redis.call('HSET', KEYS[3], ARGV[6], ARGV[7])
redis.call('XADD', KEYS[4], '*', 'name', ARGV[6], 'kind', ARGV[9], 'body', ARGV[7])
redis.call('HINCRBY', KEYS[5], 'generation', 1)
redis.call('HINCRBY', KEYS[5], 'generation:records', 1)
audited()
return 1
