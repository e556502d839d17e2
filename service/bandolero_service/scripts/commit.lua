-- The learner's commit: position and output in one step, or nothing.
-- KEYS: meta, lease, folds, snapshots, versions, history, rollups ...
-- ARGV: fence, cursors expected, cursors new, lease (ms),
--       n, (name, fold) ...; n, (name, version, snapshot) ...;
--       n, (index of rollups, epoch key, epoch) ...
local at = redis.call('HMGET', KEYS[1], 'fence:learner', 'cursors')
if (at[1] or '0') ~= ARGV[1] then return redis.error_reply('FENCED') end
if (at[2] or '') ~= ARGV[2] then return redis.error_reply('POSITION') end
redis.call('HSET', KEYS[1], 'cursors', ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
local i = 5
local n = tonumber(ARGV[i])
i = i + 1
for _ = 1, n do
  redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
  i = i + 2
end
n = tonumber(ARGV[i])
i = i + 1
for _ = 1, n do
  redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 2])
  redis.call('HSET', KEYS[5], ARGV[i], ARGV[i + 1])
  redis.call('XADD', KEYS[6], '*', 'name', ARGV[i], 'version', ARGV[i + 1],
    'snapshot', ARGV[i + 2])
  i = i + 3
end
if n > 0 then redis.call('HINCRBY', KEYS[1], 'generation', 1) end
n = tonumber(ARGV[i])
i = i + 1
for _ = 1, n do
  redis.call('HSET', KEYS[tonumber(ARGV[i])], ARGV[i + 1], ARGV[i + 2])
  i = i + 3
end
return 1
