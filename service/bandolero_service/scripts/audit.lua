-- Before the script of an act: its line in the audit log, written with the act or not at all.
-- KEYS: heads, chain, then the act's.
-- ARGV: tenant, head expected, line, MAC, head after, then the act's.
local overtaken = (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2]
local function audited()
  redis.call('XADD', KEYS[2], '*', 'line', ARGV[3], 'mac', ARGV[4])
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[5])
end
