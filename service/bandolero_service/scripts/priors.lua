-- Publish versions of priors of a tenant, if its book still is as expected, and say so in
-- the log.
-- KEYS from 3: books, control, versions.
-- ARGV from 6: name, book, book expected ('' for none yet), (name of a version, it) ...
-- Returns 1, 0 when it has moved, or -1 when another act came first.
if overtaken then return -1 end
if (redis.call('HGET', KEYS[3], ARGV[6]) or '') ~= ARGV[8] then return 0 end
redis.call('HSET', KEYS[3], ARGV[6], ARGV[7])
redis.call('XADD', KEYS[4], '*', 'name', ARGV[6], 'kind', 'prior', 'body', ARGV[7])
for i = 9, #ARGV, 2 do redis.call('HSET', KEYS[5], ARGV[i], ARGV[i + 1]) end
audited()
return 1
