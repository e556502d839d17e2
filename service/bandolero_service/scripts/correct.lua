-- Publish the newest correction of an experiment, and say so in the log.
-- KEYS: corrections, control, meta.   ARGV: name, correction.
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('XADD', KEYS[2], '*', 'name', ARGV[1], 'kind', 'correction', 'body', ARGV[2])
redis.call('HINCRBY', KEYS[3], 'generation', 1)
return 1
