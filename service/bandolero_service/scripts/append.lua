-- Append one block, once. A writer numbers its blocks; a number seen before is a
-- re-delivery after an answer that was lost, and changes nothing.
-- KEYS: stream, writer, hashes of decided counts ...
-- ARGV: number, block, writer's time to live (ms), then (index of hash, field, n) ...
-- Returns the log id, or false for a re-delivery.
if tonumber(ARGV[1]) <= tonumber(redis.call('GET', KEYS[2]) or '-1') then
  return false
end
local id = redis.call('XADD', KEYS[1], '*', 'block', ARGV[2])
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3])
for i = 4, #ARGV, 3 do
  redis.call('HINCRBY', KEYS[tonumber(ARGV[i])], ARGV[i + 1], ARGV[i + 2])
end
return id
