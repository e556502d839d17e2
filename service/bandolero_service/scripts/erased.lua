-- Write how far an erasure has come, if it still is as expected, and say so in the log.
-- KEYS: erasures, control.   ARGV: name, body, body expected.
-- Returns 1, or 0 when it has moved.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('XADD', KEYS[2], '*', 'name', ARGV[1], 'kind', 'erasure', 'body', ARGV[2])
return 1
