"""What is done inside Redis, in one step each (Lua). Pure text.

Keys, all behind the configured prefix:

    era                  a random text; another one: every channel begins a new epoch
    c:CHANNEL            hash: e (epoch), o (offset of the newest), r (the era of the epoch), l (the line of offsets:
                         another one where they do not go on from what was, though the epoch may change within one)
    h:CHANNEL            stream: OFFSET-0 -> d (the message), t (milliseconds since 1970)
    q:NODE               the latest sequence that Redis took from a node
    nodes, nodes:info    sorted set: NODE -> when it is taken for dead (ms, Redis' clock); hash: NODE -> what it says
    p:NODE:CHANNEL       hash: SESSION -> client; p:NODE: (no channel) has all its sessions
    i:NODE               set: the channels of which there is a p:NODE:CHANNEL; both expire if their node does not renew
                         them, where no other node is there to remove them
    revoked              hash: KIND:VALUE -> revocation

and two kinds of publish/subscribe channels: `lane` (all nodes) and `to:NODE`.

Rules:
- only Redis' clock counts: a node whose own is wrong must not end what others keep;
- Redis 6.2 and newer, replicas for failover at most: scripts use keys of many channels, which a cluster spreads;
- whatever somebody else put under our keys is no reason to fail: what is of the wrong type is removed, and the channel
  begins a new epoch;
- least privilege for the user: `resetkeys ~PREFIX* resetchannels &PREFIX* -@all +hello +auth +ping +select +info
  +subscribe +publish +script|load +evalsha +get +set +del +expire +hmget +hset +hget +hgetall +hdel
  +hlen +hscan +hvals +xadd +xrange +xrevrange +xdel +zadd +zrem +zrangebyscore +zscore +sadd +srem +sscan
  +time +type`.
"""

from __future__ import annotations

_PLACE = """
local function place(meta, stream, era, seed, ttl, empty)
  local m = redis.pcall('HMGET', meta, 'e', 'o', 'r', 'l')
  if m.err then
    redis.call('DEL', meta, stream)
    m = {false, false, false, false}
  end
  local epoch, offset, line = m[1], tonumber(m[2] or ''), m[4] or ''
  if not epoch or not offset then
    epoch, offset, line = seed, 0, seed
    redis.call('DEL', meta, stream)
    redis.call('HSET', meta, 'e', epoch, 'o', 0, 'r', era, 'l', line)
    redis.call('EXPIRE', meta, empty)
  elseif m[3] ~= era then
    epoch, line = seed .. '~', seed .. '~'
    redis.call('HSET', meta, 'e', epoch, 'r', era, 'l', line)
    redis.call('EXPIRE', meta, offset == 0 and empty or ttl)
  end
  return epoch, offset, line
end
local function current(key, seed)
  local era = redis.pcall('GET', key)
  if not era or era.err then
    redis.call('SET', key, seed)
    return seed
  end
  return era
end
local function clock()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function first(stream, age, now)
  if age <= 0 then return end
  for _ = 1, 1000 do
    local oldest = redis.pcall('XRANGE', stream, '-', '+', 'COUNT', 1)
    if oldest.err or not oldest[1] then return end
    local time = 0
    for i = 1, #oldest[1][2], 2 do
      if oldest[1][2][i] == 't' then time = tonumber(oldest[1][2][i + 1]) or 0 end
    end
    if time + age > now then return end
    redis.call('XDEL', stream, oldest[1][1])
  end
end
"""

_REVOKED = """
local function revocation(packed)
  local fine, made = pcall(cmsgpack.unpack, packed)
  return fine and type(made) == 'table' and tonumber(made['until']) or nil
end
"""

PUBLISH = (
    _PLACE
    + """
-- KEYS: q:NODE, era, then c: and h: of each message.
-- ARGV: lane, seed, seconds to remember, then sequence, history size, age (ms), body of each.
local last = redis.pcall('GET', KEYS[1])
last = type(last) == 'string' and tonumber(last) or 0
local now = clock()
local era = current(KEYS[2], ARGV[2])
local count = (#ARGV - 3) / 4
local function say(n)
  local at = 4 + 4 * (n - 1)
  local size, age, body = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), ARGV[at + 3]
  local head = ''
  if size > 0 then
    local meta, stream = KEYS[1 + 2 * n], KEYS[2 + 2 * n]
    local epoch, offset = place(meta, stream, era, ARGV[2], ARGV[3], ARGV[3])
    offset = offset + 1
    local id = string.format('%d-0', offset)
    local added = redis.pcall('XADD', stream, 'MAXLEN', size, id, 'd', body, 't', string.format('%d', now))
    if type(added) == 'table' and added.err then
      local ours = redis.pcall('TYPE', stream).ok == 'stream' and not string.find(added.err, 'smaller')
      if ours then error(added.err, 0) end
      redis.call('DEL', stream)
      redis.call('XADD', stream, 'MAXLEN', size, id, 'd', body, 't', string.format('%d', now))
    end
    redis.call('HSET', meta, 'o', string.format('%d', offset))
    redis.call('EXPIRE', meta, ARGV[3])
    local lasting = tonumber(ARGV[3])
    if age > 0 then lasting = math.min(lasting, math.ceil(age / 1000) + 1) end
    redis.call('EXPIRE', stream, lasting)  -- then even this one is too old
    first(stream, age, now)
    head = epoch .. '\\t' .. string.format('%d', offset)
  end
  redis.call('PUBLISH', ARGV[1], head .. '\\n' .. body)
end
local done, fault = 0, ''
for n = 1, count do
  local sequence = tonumber(ARGV[4 + 4 * (n - 1)])
  if sequence > last then
    local fine, why = pcall(say, n)
    if not fine then
      fault = type(why) == 'table' and (why.err or 'unknown') or tostring(why)
      break
    end
    last = sequence
    redis.call('SET', KEYS[1], string.format('%d', last), 'EX', ARGV[3])
  end
  done = done + 1
end
return {done, fault}
"""
)

HISTORY = (
    _PLACE
    + """
-- KEYS: era, c:, h:.  ARGV: seed, history size, seconds to remember, age (ms), bytes at most, messages at most,
-- seconds to remember a channel in which nothing was said, then, for what came after a position: epoch, offset, line
-- ("": it is not known). Without one: the newest.
-- Returns epoch, newest offset, line, then offset and body of each.
local era = current(KEYS[1], ARGV[1])
local epoch, newest, line = place(KEYS[2], KEYS[3], era, ARGV[1], ARGV[3], ARGV[7])
local size, most, room = tonumber(ARGV[2]), tonumber(ARGV[6]), tonumber(ARGV[5])
local out = {epoch, newest, line}
if most == 0 then return out end
first(KEYS[3], tonumber(ARGV[4]), clock())
local least, start = newest - size, 0
if ARGV[8] then
  start = tonumber(ARGV[9])
  local follows = ARGV[8] == epoch or (ARGV[10] ~= '' and ARGV[10] == line)
  if not follows or start > newest then start = 0 end
end
if start < least then start = least end
local from, found = string.format('%d-0', start + 1), nil
if ARGV[8] then found = redis.pcall('XRANGE', KEYS[3], from, '+', 'COUNT', most)
else found = redis.pcall('XREVRANGE', KEYS[3], '+', from, 'COUNT', most) end
if found.err then return out end
local fit = {}
for _, entry in ipairs(found) do
  local body = nil
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'd' then body = entry[2][i + 1] end
  end
  if body then
    room = room - #body
    if room < 0 and #fit > 0 then break end
    fit[#fit + 1] = {string.match(entry[1], '^%d+'), body}
  end
end
local a, b, step = 1, #fit, 1
if not ARGV[8] then a, b, step = #fit, 1, -1 end
for i = a, b, step do
  out[#out + 1] = fit[i][1]
  out[#out + 1] = fit[i][2]
end
return out
"""
)

QUIET = """
-- KEYS: c: of each channel.  ARGV: seconds. Those in which nothing was said yet are remembered for so long again.
for _, meta in ipairs(KEYS) do
  if redis.pcall('HGET', meta, 'o') == '0' then redis.call('EXPIRE', meta, ARGV[1]) end
end
return #KEYS
"""

PLACES = """
-- KEYS: era, then c: and h: of each channel.
-- Returns epoch, newest offset and how many messages are kept of each; "" and nothing of one that is not known.
local era = redis.pcall('GET', KEYS[1])
local out = {}
for i = 2, #KEYS, 2 do
  local m = redis.pcall('HMGET', KEYS[i], 'e', 'o', 'r')
  local offset = not m.err and m[1] and m[3] == era and tonumber(m[2] or '')
  local epoch, kept = '', 0
  if offset then
    epoch = m[1]
    local oldest = redis.pcall('XRANGE', KEYS[i + 1], '-', '+', 'COUNT', 1)
    if not oldest.err and oldest[1] then
      kept = math.max(0, offset + 1 - tonumber(string.match(oldest[1][1], '^%d+')))
    end
  end
  out[#out + 1], out[#out + 2], out[#out + 3] = epoch, offset or 0, kept
end
return out
"""

RENEW = """
-- KEYS: c: of each channel.  ARGV: seed. They begin a new epoch, and their offsets go on.
for _, meta in ipairs(KEYS) do
  local offset = redis.pcall('HGET', meta, 'o')
  if type(offset) == 'table' then redis.call('DEL', meta)
  elseif offset then redis.call('HSET', meta, 'e', ARGV[1] .. '~') end
end
return #KEYS
"""

JOIN = (
    _REVOKED
    + """
-- KEYS: nodes, nodes:info, q:NODE, era, revoked.
-- ARGV: NODE, what it says, expiry (ms), the latest sequence that Redis took, 1 if all channels lost something, seed,
-- revocations at most.
-- Returns whether Redis has lost something, whether the node was taken for dead, then revocations that still count: of
-- more than can be, any.
local last = redis.pcall('GET', KEYS[3])
last = type(last) == 'string' and tonumber(last) or 0
local behind = last < tonumber(ARGV[4])
local era = redis.pcall('GET', KEYS[4])
if behind or ARGV[5] == '1' or type(era) ~= 'string' then
  redis.call('SET', KEYS[4], ARGV[6])
end
for _, key in ipairs({KEYS[1], KEYS[2], KEYS[5]}) do
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'none' and kind ~= (key == KEYS[1] and 'zset' or 'hash') then redis.call('DEL', key) end
end
local t = redis.call('TIME')
local known = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], t[1] * 1000 + math.floor(t[2] / 1000) + ARGV[3], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
local out = {behind and 1 or 0, (type(era) == 'string' and not behind and not known) and 1 or 0}
local cursor, gone = '0', {}
repeat
  local page = redis.call('HSCAN', KEYS[5], cursor, 'COUNT', 1000)
  cursor = page[1]
  for i = 1, #page[2], 2 do
    local made = revocation(page[2][i + 1])
    if not made or made <= t[1] * 1 then gone[#gone + 1] = page[2][i]
    elseif #out - 2 < tonumber(ARGV[7]) then out[#out + 1] = page[2][i + 1] end
  end
until cursor == '0'
for _, field in ipairs(gone) do redis.call('HDEL', KEYS[5], field) end
return out
"""
)

REVOKE = (
    _REVOKED
    + """
-- KEYS: revoked.  ARGV: KIND:VALUE, revocation. Now and then those that count no more are removed.
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then redis.call('DEL', KEYS[1]) end
local new = redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) == 1
if new and redis.call('HLEN', KEYS[1]) % 256 == 0 then
  local now = redis.call('TIME')[1] * 1
  local field = nil
  for i, each in ipairs(redis.call('HGETALL', KEYS[1])) do
    if i % 2 == 1 then field = each
    elseif (revocation(each) or 0) <= now then redis.call('HDEL', KEYS[1], field) end
  end
end
return 1
"""
)

BEAT = """
-- KEYS: nodes, nodes:info.  ARGV: NODE, what it says, expiry (ms), nodes at most, seconds that presence lasts.
-- Returns whether it was still known, how many are taken for dead, these, then name and words of those that live.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local known = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('EXPIRE', KEYS[2], ARGV[5])
local dead = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 16)
local out = {known and 1 or 0, #dead}
for _, each in ipairs(dead) do out[#out + 1] = each end
for _, each in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf', 'LIMIT', 0, ARGV[4])) do
  out[#out + 1] = each
  out[#out + 1] = redis.call('HGET', KEYS[2], each) or ''
end
return out
"""

REAP = """
-- KEYS: nodes, nodes:info, i:NODE.  ARGV: NODE, prefix of presence, sessions to tell of at most, how, cursor.
-- How: "due": only if it is taken for dead; "leave": it says so itself; "on": the next page of one of these; "back": it
-- comes back, and nothing but its presence is removed. One page of its channels, or many of them would keep everybody.
-- Returns the next cursor ("0": nothing is left), then channel and client of those that were there; nothing if somebody
-- else was first, or it lives.
local t = redis.call('TIME')
local due = ARGV[4] ~= 'back' and redis.call('ZSCORE', KEYS[1], ARGV[1])
if ARGV[4] == 'on' then
  if due then return {} end
elseif ARGV[4] ~= 'back' then
  if not due or (ARGV[4] == 'due' and tonumber(due) > t[1] * 1000 + t[2] / 1000) then return {} end
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('HDEL', KEYS[2], ARGV[1])
end
local page = redis.pcall('SSCAN', KEYS[3], ARGV[5], 'COUNT', 500)
if page.err then
  redis.call('DEL', KEYS[3])
  page = {'0', {}}
end
local out, left = {page[1]}, tonumber(ARGV[3])
for _, channel in ipairs(page[2]) do
  local key = ARGV[2] .. channel
  if left > 0 and channel ~= '' then
    local there = redis.pcall('HVALS', key)
    for _, client in ipairs(there.err and {} or there) do
      if left > 0 then
        out[#out + 1] = channel
        out[#out + 1] = client
        left = left - 1
      end
    end
  end
  redis.call('DEL', key)
  redis.call('SREM', KEYS[3], channel)
end
return out
"""

HERE = """
-- KEYS: p:NODE:CHANNEL, i:NODE.  ARGV: seconds that it lasts, CHANNEL, then session and client ("": it has left) of
-- each.
for i = 3, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    local gone = redis.pcall('HDEL', KEYS[1], ARGV[i])
  else
    local came = redis.pcall('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
    if type(came) == 'table' and came.err then
      redis.call('DEL', KEYS[1])
      redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
    end
  end
end
local many = redis.pcall('HLEN', KEYS[1])
if type(many) == 'number' and many > 0 then
  redis.call('SADD', KEYS[2], ARGV[2])
  redis.call('EXPIRE', KEYS[1], ARGV[1])
  redis.call('EXPIRE', KEYS[2], ARGV[1])
else redis.call('SREM', KEYS[2], ARGV[2]) end
return 1
"""

LAST = """
-- KEYS: i:NODE.  ARGV: seconds that presence lasts, prefix of presence, cursor.
-- Returns the next cursor; "0": everything that the node has there lasts for so long again.
redis.call('EXPIRE', KEYS[1], ARGV[1])
local page = redis.call('SSCAN', KEYS[1], ARGV[3], 'COUNT', 500)
for _, channel in ipairs(page[2]) do redis.call('EXPIRE', ARGV[2] .. channel, ARGV[1]) end
return page[1]
"""

THERE = """
-- KEYS: p:NODE:CHANNEL of each other node.  ARGV: clients at most.
-- Returns how many there are, and if they are no more than that, who.
local total = 0
for _, key in ipairs(KEYS) do
  local many = redis.pcall('HLEN', key)
  if type(many) == 'number' then total = total + many end
end
local out = {total}
if total > tonumber(ARGV[1]) then return out end
for _, key in ipairs(KEYS) do
  local there = redis.pcall('HVALS', key)
  if not there.err then
    for _, each in ipairs(there) do out[#out + 1] = each end
  end
end
return out
"""

ALL = {
    "publish": PUBLISH,
    "history": HISTORY,
    "renew": RENEW,
    "quiet": QUIET,
    "places": PLACES,
    "join": JOIN,
    "beat": BEAT,
    "reap": REAP,
    "here": HERE,
    "last": LAST,
    "there": THERE,
    "revoke": REVOKE,
}
