-- Take or renew a lease. Taking it raises the fence, so that whoever held it before can
-- no longer commit; renewing keeps it.
-- KEYS: lease, meta.   ARGV: owner, milliseconds, fence field.
-- Returns the fence, or 0 when another owner holds the lease.
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if not owner then return redis.call('HINCRBY', KEYS[2], ARGV[3], 1) end
return tonumber(redis.call('HGET', KEYS[2], ARGV[3]) or '0')
