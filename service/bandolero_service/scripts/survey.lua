-- How far the work on a shard is behind the store's clock; changes nothing.
-- KEYS: meta, events, decisions, leases ...
-- Returns ms behind in reading the log, in settling and in archiving (-1: never done), then
-- 1 or 0 for each lease.
local function ms(id) return tonumber(string.match(id, '^%d+')) end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local at = redis.call('HMGET', KEYS[1], 'cursors', 'archived_ms')
local cursors = cjson.decode(at[1] or '{}')
local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
local read = cursors.read or cursors.events or (first and first[1])
local settle = 0
-- Until a learner has committed no window is known: every decision counts.
for window, cursor in pairs(cursors.decisions or {['0'] = '0-0'}) do
  local open = redis.call('XRANGE', KEYS[3], '(' .. cursor, '+', 'COUNT', 1)[1]
  if open then settle = math.max(settle, now - ms(open[1]) - window) end
end
local answer = {
  read and math.max(0, now - ms(read)) or 0,
  settle,
  at[2] and math.max(0, now - at[2]) or -1,
}
for i = 4, #KEYS do answer[i] = redis.call('EXISTS', KEYS[i]) end
return answer
