"""What is done inside Redis, in one step each (Lua). Pure text.

Keys, all behind the configured prefix:

    era                  a random text; another one: every channel begins a new epoch
    c:CHANNEL            hash: e (epoch), o (offset of the newest), r (the era of the epoch)
    h:CHANNEL            stream: OFFSET-0 -> d (the message), t (milliseconds since 1970)
    q:NODE               the latest sequence that Redis took from a node
    nodes, nodes:info    sorted set: NODE -> when it is taken for dead (ms, Redis' clock); hash: NODE -> what it says
    p:NODE:CHANNEL       hash: SESSION -> client; p:NODE: (no channel) has all its sessions
    i:NODE               set: the channels of which there is a p:NODE:CHANNEL
    revoked              hash: KIND:VALUE -> revocation

and two kinds of publish/subscribe channels: `lane` (all nodes) and `to:NODE`.

Rules:
- Redis 6.2 and newer, replicas for failover at most: scripts use keys of many channels, which a cluster spreads;
- whatever somebody else put under our keys is no reason to fail: what is of the wrong type is removed, and the channel
  begins a new epoch;
- least privilege for the user: `resetkeys ~PREFIX* resetchannels &PREFIX* -@all +hello +auth +ping +select +info
  +subscribe +publish +script|load +evalsha +get +set +del +expire +hmget +hset +hget +hgetall +hdel
  +hlen +hvals +xadd +xrange +xdel +zadd +zrem +zrangebyscore +zscore +sadd +srem +smembers +time +type`.
"""

from __future__ import annotations

_PLACE = """
local function place(meta, stream, era, seed, ttl)
  local m = redis.pcall('HMGET', meta, 'e', 'o', 'r')
  if m.err then
    redis.call('DEL', meta, stream)
    m = {false, false, false}
  end
  local epoch, offset = m[1], tonumber(m[2] or '')
  if not epoch or not offset then
    epoch, offset = seed, 0
    redis.call('DEL', meta, stream)
    redis.call('HSET', meta, 'e', epoch, 'o', 0, 'r', era)
    redis.call('EXPIRE', meta, ttl)
  elseif m[3] ~= era then
    epoch = seed .. '~'
    redis.call('HSET', meta, 'e', epoch, 'r', era)
    redis.call('EXPIRE', meta, ttl)
  end
  return epoch, offset
end
local function current(key, seed)
  local era = redis.pcall('GET', key)
  if not era or era.err then
    redis.call('SET', key, seed)
    return seed
  end
  return era
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

PUBLISH = (
    _PLACE
    + """
-- KEYS: q:NODE, era, then c: and h: of each message.
-- ARGV: lane, seed, now (ms), seconds to remember, then sequence, history size, age (ms), body of each.
local last = redis.pcall('GET', KEYS[1])
last = type(last) == 'string' and tonumber(last) or 0
local now = tonumber(ARGV[3])
local era = current(KEYS[2], ARGV[2])
local count = (#ARGV - 4) / 4
local function say(n)
  local at = 5 + 4 * (n - 1)
  local size, age, body = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), ARGV[at + 3]
  local head = ''
  if size > 0 then
    local meta, stream = KEYS[1 + 2 * n], KEYS[2 + 2 * n]
    local epoch, offset = place(meta, stream, era, ARGV[2], ARGV[4])
    offset = offset + 1
    local id = string.format('%d-0', offset)
    local added = redis.pcall('XADD', stream, 'MAXLEN', size, id, 'd', body, 't', ARGV[3])
    if type(added) == 'table' and added.err then
      local ours = redis.pcall('TYPE', stream).ok == 'stream' and not string.find(added.err, 'smaller')
      if ours then error(added.err, 0) end
      redis.call('DEL', stream)
      redis.call('XADD', stream, 'MAXLEN', size, id, 'd', body, 't', ARGV[3])
    end
    redis.call('HSET', meta, 'o', string.format('%d', offset))
    redis.call('EXPIRE', meta, ARGV[4])
    redis.call('EXPIRE', stream, ARGV[4])
    first(stream, age, now)
    head = epoch .. '\\t' .. string.format('%d', offset)
  end
  redis.call('PUBLISH', ARGV[1], head .. '\\n' .. body)
end
local done, fault = 0, ''
for n = 1, count do
  local sequence = tonumber(ARGV[5 + 4 * (n - 1)])
  if sequence > last then
    local fine, why = pcall(say, n)
    if not fine then
      fault = type(why) == 'table' and (why.err or 'unknown') or tostring(why)
      break
    end
    last = sequence
    redis.call('SET', KEYS[1], string.format('%d', last), 'EX', ARGV[4])
  end
  done = done + 1
end
return {done, fault}
"""
)

HISTORY = (
    _PLACE
    + """
-- KEYS: era, c:, h:.  ARGV: seed, now (ms), seconds to remember, age (ms), bytes at most, messages at most,
-- then, for what came after a position: epoch, offset.
-- Returns epoch, newest offset, then offset and body of each.
local era = current(KEYS[1], ARGV[1])
local epoch, newest = place(KEYS[2], KEYS[3], era, ARGV[1], ARGV[3])
local most, room = tonumber(ARGV[6]), tonumber(ARGV[5])
local out = {epoch, newest}
if most == 0 then return out end
first(KEYS[3], tonumber(ARGV[4]), tonumber(ARGV[2]))
local start = 0
if ARGV[7] then
  start = tonumber(ARGV[8])
  if ARGV[7] ~= epoch or start > newest then start = 0 end
elseif newest > most then
  start = newest - most
end
local found = redis.pcall('XRANGE', KEYS[3], string.format('%d-0', start + 1), '+', 'COUNT', most)
if found.err then return out end
for _, entry in ipairs(found) do
  local body = nil
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'd' then body = entry[2][i + 1] end
  end
  if body then
    room = room - #body
    if room < 0 and #out > 2 then break end
    out[#out + 1] = string.match(entry[1], '^%d+')
    out[#out + 1] = body
  end
end
return out
"""
)

RENEW = """
-- KEYS: c: of each channel.  ARGV: seed. They begin a new epoch, and their offsets go on.
for _, meta in ipairs(KEYS) do
  local offset = redis.pcall('HGET', meta, 'o')
  if type(offset) == 'table' then redis.call('DEL', meta)
  elseif offset then redis.call('HSET', meta, 'e', ARGV[1] .. '~') end
end
return #KEYS
"""

JOIN = """
-- KEYS: nodes, nodes:info, q:NODE, era, revoked, i:NODE.
-- ARGV: NODE, what it says, expiry (ms), the latest sequence that Redis took, 1 if all channels lost something, seed,
-- prefix of presence, revocations at most.
-- Returns whether Redis has lost something, then the revocations.
local last = redis.pcall('GET', KEYS[3])
last = type(last) == 'string' and tonumber(last) or 0
local behind = last < tonumber(ARGV[4])
local era = redis.pcall('GET', KEYS[4])
if behind or ARGV[5] == '1' or type(era) ~= 'string' then
  redis.call('SET', KEYS[4], ARGV[6])
end
for _, key in ipairs({KEYS[1], KEYS[2], KEYS[5], KEYS[6]}) do
  local kind = redis.call('TYPE', key).ok
  local wanted = key == KEYS[1] and 'zset' or key == KEYS[6] and 'set' or 'hash'
  if kind ~= 'none' and kind ~= wanted then redis.call('DEL', key) end
end
for _, channel in ipairs(redis.call('SMEMBERS', KEYS[6])) do
  redis.call('DEL', ARGV[7] .. channel)
end
redis.call('DEL', KEYS[6])
local t = redis.call('TIME')
redis.call('ZADD', KEYS[1], t[1] * 1000 + math.floor(t[2] / 1000) + ARGV[3], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
local out = {behind and 1 or 0}
if redis.call('HLEN', KEYS[5]) <= tonumber(ARGV[8]) then
  for _, each in ipairs(redis.call('HVALS', KEYS[5])) do out[#out + 1] = each end
end
return out
"""

BEAT = """
-- KEYS: nodes, nodes:info.  ARGV: NODE, what it says, expiry (ms), nodes at most.
-- Returns whether it was still known, how many are taken for dead, these, then name and words of those that live.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local known = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
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
-- KEYS: nodes, nodes:info, i:NODE.  ARGV: NODE, prefix of presence, sessions to tell of at most, 1: only if it is due.
-- Returns channel and client of those that were there; nothing if somebody else was first, or it lives.
local t = redis.call('TIME')
local due = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not due or (ARGV[4] == '1' and tonumber(due) > t[1] * 1000 + t[2] / 1000) then return {} end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
local out, left = {'1'}, tonumber(ARGV[3])
for _, channel in ipairs(redis.call('SMEMBERS', KEYS[3])) do
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
end
redis.call('DEL', KEYS[3])
return out
"""

HERE = """
-- KEYS: p:NODE:CHANNEL, i:NODE.  ARGV: CHANNEL, then session and client ("" : it has left) of each.
for i = 2, #ARGV, 2 do
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
if type(many) == 'number' and many > 0 then redis.call('SADD', KEYS[2], ARGV[1])
else redis.call('SREM', KEYS[2], ARGV[1]) end
return 1
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
    "join": JOIN,
    "beat": BEAT,
    "reap": REAP,
    "here": HERE,
    "there": THERE,
}
