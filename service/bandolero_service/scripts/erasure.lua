-- Have a unit erased on a shard, if it still is as expected, and say so in the log.
-- KEYS from 3: erasures, control.   ARGV from 6: name, body, body expected ('' for none yet).
-- Returns 1, 0 when it has moved, or -1 when another act came first.
if overtaken then return -1 end
if (redis.call('HGET', KEYS[3], ARGV[6]) or '') ~= ARGV[8] then return 0 end
redis.call('HSET', KEYS[3], ARGV[6], ARGV[7])
redis.call('XADD', KEYS[4], '*', 'name', ARGV[6], 'kind', 'erasure', 'body', ARGV[7])
audited()
return 1
