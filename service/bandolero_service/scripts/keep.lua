-- Hold a lease for longer, or give it up, if it is still ours.
-- KEYS: lease.   ARGV: owner, ms (0: give it up).
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
