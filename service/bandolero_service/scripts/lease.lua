-- Take or renew a lease. Taking it over raises the fence, so that whoever held it before
-- can no longer commit; renewing keeps it, also late, if nobody has taken it meanwhile.
-- KEYS: lease, meta.   ARGV: owner, milliseconds, role.
-- Returns the fence, or 0 when another owner holds the lease.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local fence, owner = 'fence:' .. ARGV[3], 'owner:' .. ARGV[3]
if redis.call('HGET', KEYS[2], owner) == ARGV[1] then
  return tonumber(redis.call('HGET', KEYS[2], fence))
end
redis.call('HSET', KEYS[2], owner, ARGV[1])
return redis.call('HINCRBY', KEYS[2], fence, 1)
