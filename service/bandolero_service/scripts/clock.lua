-- The store's clock in milliseconds. KEYS: any of the shard.
local now = redis.call('TIME')
return now[1] * 1000 + math.floor(now[2] / 1000)
