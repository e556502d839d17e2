-- Move the log time of a shard on, for all its streams: whatever the store's clock does
-- from now on, nothing is logged on any of them at an earlier time.
-- KEYS: events, other streams ...
-- Returns the log id of the tick.
local id = redis.call('XADD', KEYS[1], '*', 'tick', '1')
for i = 2, #KEYS do
  local added = redis.pcall('XADD', KEYS[i], id, 'tick', '1')
  -- An error says that this stream is past it already.
  if type(added) == 'string' then redis.call('XDEL', KEYS[i], id) end
end
return id
