-- Append blocks of a writer to a stream, each once. A writer numbers its blocks upwards; a
-- number seen before is a re-delivery after an answer that was lost, and changes nothing.
-- A block that cannot be taken stops those behind it: passed over, it would look like one
-- that was taken before.
-- KEYS: stream, writer, hashes of decided counts ...
-- ARGV: writer's time to live (ms), writer, then for every block
--       number, block, n, n times (index of hash, field, count)
-- Writer and number stand in the entry too, so that the lake knows them without the store.
-- Returns how many blocks were new.
local seen = tonumber(redis.call('GET', KEYS[2]) or '-1')
local added, i = 0, 3
while i <= #ARGV do
  local last = i + 2 + 3 * ARGV[i + 2]
  if tonumber(ARGV[i]) > seen then
    seen, added = tonumber(ARGV[i]), added + 1
    redis.call('XADD', KEYS[1], '*', 'block', ARGV[i + 1], 'writer', ARGV[2],
      'number', ARGV[i])
    redis.call('SET', KEYS[2], ARGV[i], 'PX', ARGV[1])
    for j = i + 3, last, 3 do
      redis.call('HINCRBY', KEYS[tonumber(ARGV[j])], ARGV[j + 1], ARGV[j + 2])
    end
  end
  i = last + 1
end
return added
