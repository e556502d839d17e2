-- Publish the newest correction of an experiment, and say so in the log.
-- KEYS from 3: corrections, control, meta.   ARGV from 6: name, correction.
-- Returns 1, or -1 when another act came first.
if overtaken then return -1 end
redis.call('HSET', KEYS[3], ARGV[6], ARGV[7])
redis.call('XADD', KEYS[4], '*', 'name', ARGV[6], 'kind', 'correction', 'body', ARGV[7])
redis.call('HINCRBY', KEYS[5], 'generation', 1)
redis.call('HINCRBY', KEYS[5], 'generation:corrections', 1)
audited()
return 1
