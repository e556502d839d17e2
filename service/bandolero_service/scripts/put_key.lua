-- Write an API key, and have the workers look.
-- KEYS from 3: keys, generation.   ARGV from 6: key id, key.
-- Returns 1, or -1 when another act came first.
if overtaken then return -1 end
redis.call('HSET', KEYS[3], ARGV[6], ARGV[7])
redis.call('INCR', KEYS[4])
audited()
return 1
