// netd's browser client: one ES module without dependencies, for pages, workers and node. Types: netd.d.ts.
//
//     import { connect } from "/netd.js";
//     const client = connect("/ws", { name: "alpha" });
//     client.subscribe("public:a", (message) => console.log(message.from, message.data));
//     await client.publish("public:a", "hi");
//
// It speaks the vocabulary of netd/wire/messages.py in JSON, in text frames (subprotocol "netd.json"). Text and JSON
// values travel as they are; Uint8Array, other views and ArrayBuffer are bytes, and arrive as Uint8Array.
//
// Rules:
// - `connect` returns at once. What is asked for before the connection stands waits for it, subscriptions first;
// - a lost connection is made again, as the same session where the daemon still knows it; subscriptions are renewed
//   and missed messages fetched: a subscription has every message once and in order, or one "gap" event says that some
//   may be missing. One with wildcards is not caught up: each reconnect is a gap;
// - a request has one answer or one error. What was on its way when a connection broke is asked again where asking
//   twice does no harm; else it fails with the kind "lost", since nobody knows whether it was done;
// - everything is bounded: past `queueBytes` requests fail with the kind "full"; an iterator that is not read loses its
//   oldest items past `inboxItems` or `inboxBytes`, and a "gap" event says so. Leaving a `for await` (break, return, a
//   throw) ends its subscription: nobody would read what comes;
// - a token given as a function is asked for with every connection, again before the daemon says it expires, and when
//   it says that it counts no more: what that ended is subscribed to again with the new one, and ends where that fails;
// - errors are NetdError; its `kind` is the daemon's code (denied, not-found, rate ...) or one of ours (unreachable,
//   lost, full, invalid, closed). An "error" event that nobody listens for goes to the console;
// - times are seconds, as everywhere in netd.
//
// Left out: MessagePack; integers beyond 2**53 (JavaScript rounds them when it reads JSON); waiting for room in the
// queue, as JavaScript cannot stop a caller. Over 600 lines, and one file all the same: a page loads one module.

const VERSION = 1;
const PROTOCOL = "netd.json";
const NORMAL = 128;
/** Close codes after which the daemon would only close again, and the kind of their errors (RFC 6455 section 7.4.1). */
const FINAL = new Map([
  [1002, "protocol"],
  [1003, "unsupported"],
  [1007, "invalid"],
  [1008, "policy"],
  [4009, "replaced"],
  [4010, "kicked"],
]);
/** Refusals of a hello that time may mend. */
const PASSING = new Set(["rate", "too-many"]);
/** Heartbeats that may pass without a word. */
const SILENT_BEATS = 3;
/** Seconds that a daemon can ask us to stay away. */
const MOST_AWAY = 3600;
/** Seconds for an answer when the page comes back, or the network does. */
const PROBE = 5;
/** Seconds between two refreshes at least, however short tokens are good for. */
const RENEW_LEAST = 1;
/** Seconds within which a token that counts no more is replaced: all pages are told at once (a key that was removed). */
const SPREAD = 1;
/** Seconds after the loss of a connection in which its session can be resumed (hub.resume_seconds). */
const RESUME_WITHIN = 60;
/** Channels of which a subscription with wildcards knows the last offset. */
const PLACES = 4096;
/** Messages without offsets that are remembered of a channel; the oldest go. */
const LOOSE = 10_000;
/** setTimeout's longest, in ms: above it fires at once. */
const LONGEST_TIMER = 2 ** 31 - 1;

/** @typedef {import("./netd.js").Options} Options */
/** @typedef {import("./netd.js").Position} Position */
/** @typedef {import("./netd.js").Message} Message */
/** @typedef {import("./netd.js").State} State */
/** @typedef {import("./netd.js").Token} Token */
/** @typedef {import("./netd.js").SendOptions} SendOptions */
/** @typedef {import("./netd.js").SubscribeOptions} SubscribeOptions */
/** @typedef {string | Uint8Array} Channel */
/** @typedef {Record<string, any>} Wire What JSON.parse gives, or what is to be written. */
/**
 * @typedef {object} Pending A request on its way.
 * @property {string} what
 * @property {string} text
 * @property {number | undefined} ref
 * @property {boolean} repeatable
 * @property {boolean} sent
 * @property {(answer: any) => void} resolve
 * @property {(error: NetdError) => void} reject
 * @property {ReturnType<typeof setTimeout>} [timer]
 */
/**
 * @typedef {object} Leaving A subscription that was left: what comes is for nobody until the daemon has answered.
 * @property {Subscription} subscription
 * @property {(error?: NetdError) => void} done
 */

const now = () => performance.now() / 1000;
const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** What failed. `kind` says how; `channel` where it is about one. */
export class NetdError extends Error {
  /** @param {string} kind @param {string} message @param {Channel} [channel] */
  constructor(kind, message, channel) {
    super(message);
    this.name = "NetdError";
    this.kind = kind;
    this.channel = channel;
  }
}

/**
 * Connect to a netd broker, by default the one that served this page.
 * @param {string | URL} [url] ws:, wss:, http:, https:, or relative to the page
 * @param {Options} [options]
 */
export function connect(url = "/ws", options = {}) {
  return new Client(url, options);
}

// --- what travels ----------------------------------------------------------------------------------------------------

/** @param {unknown} data @returns {Uint8Array | null} */
function bytesOf(data) {
  if (data instanceof Uint8Array) return data;
  if (ArrayBuffer.isView(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return data instanceof ArrayBuffer ? new Uint8Array(data) : null;
}

/** @param {Uint8Array} bytes */
function toBase64(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(text);
}

/** @param {string} text */
const fromBase64 = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));

// The fields that carry this data.
/** @param {unknown} data @returns {Wire} */
function dataFields(data) {
  const bytes = bytesOf(data);
  if (bytes) return { data64: toBase64(bytes) };
  if (data === undefined || typeof data === "function" || typeof data === "symbol") {
    throw new NetdError("invalid", `cannot send ${typeof data}: use text, bytes or a JSON value`);
  }
  return { data };
}

// A channel's name as it is known here: text where it is UTF-8.
/** @param {Channel} channel @returns {Channel} */
function readable(channel) {
  if (typeof channel === "string") return channel;
  try {
    return decoder.decode(channel);
  } catch {
    return channel.slice(); // whoever gave it may go on writing into it
  }
}

/** @param {Channel} channel @returns {Wire} */
function channelFields(channel) {
  const name = readable(channel);
  return typeof name === "string" ? { channel: name } : { channel64: toBase64(name) };
}

// A channel's name as the key of a Map.
/** @param {Channel} channel */
function keyOf(channel) {
  const name = readable(channel);
  return typeof name === "string" ? name : `\0${toBase64(name)}`;
}

// What the daemon said, with channel and data as they are used here.
/** @param {Wire} wire @returns {any} */
function opened(wire) {
  const { channel64, data64, ...rest } = wire;
  if (channel64 !== undefined) rest.channel = readable(fromBase64(channel64));
  if (data64 !== undefined) rest.data = fromBase64(data64);
  return rest;
}

// Whether a pattern ("a:b.*", "a:>") stands for this channel.
/** @param {Channel} pattern @param {Channel} channel */
function matches(pattern, channel) {
  const [own, other] = [pattern, channel].map((name) => {
    const raw = String.fromCharCode(...(typeof name === "string" ? encoder.encode(name) : name));
    const at = raw.indexOf(":") > 0 ? raw.indexOf(":") + 1 : 0;
    return { namespace: raw.slice(0, at), tokens: raw.slice(at).split(".") };
  });
  if (own.namespace !== other.namespace) return false;
  const open = own.tokens.at(-1) === ">";
  const fixed = open ? own.tokens.slice(0, -1) : own.tokens;
  if (open ? other.tokens.length <= fixed.length : other.tokens.length !== fixed.length) return false;
  return fixed.every((token, index) => token === "*" || token === other.tokens[index]);
}

// --- subscriptions ---------------------------------------------------------------------------------------------------

/** How far a reader has come in one channel. */
class Place {
  /** @param {Position} [position] */
  constructor(position) {
    /** @type {string | null} */
    this.epoch = position?.epoch ?? null;
    this.offset = position?.offset ?? 0;
    /** Origins of messages that came without their offsets: another machine may tell them again. @type {Set<string>} */
    this.loose = new Set();
  }

  /** @param {string} epoch @param {number} offset */
  move(epoch, offset) {
    this.epoch = epoch;
    this.offset = offset;
  }

  // How many before this message never came (0 as a rule, -1: some, nobody knows); null: it is a duplicate.
  /** @param {Message} message @returns {number | null} */
  admit({ epoch, offset }) {
    if (offset === undefined) return 0; // of no history: always new, and moves nothing
    const before = this.epoch;
    const missed = before === null ? 0 : epoch !== undefined && epoch !== before ? -1 : offset - this.offset - 1;
    if (missed < 0 && before !== null && (epoch === undefined || epoch === before)) return null;
    this.epoch = epoch ?? before;
    this.offset = offset;
    return missed;
  }

  // Whether a message came without its offset before.
  /** @param {Message} message @returns {boolean} */
  repeats({ origin, offset }) {
    if (origin === undefined) return false;
    if (offset !== undefined) return this.loose.delete(origin);
    if (this.loose.size >= LOOSE) this.loose.delete(/** @type {string} */ (this.loose.values().next().value));
    this.loose.add(origin);
    return false;
  }
}

/** One channel, or all that match. Async iterable of messages where no handler takes them. */
class Subscription {
  /** @type {{ message: Message, size: number }[]} */
  #items = [];
  #size = 0;
  /** @type {{ resolve: (result: IteratorResult<Message, undefined>) => void, reject: (error: NetdError) => void }[]} */
  #waiting = [];
  /** @type {{ error: NetdError | null } | null} */
  #end = null;
  #spilt = false;
  /** @type {Map<string, Place>} */
  #places = new Map();
  #place;
  #client;
  #asked;
  #handler;
  #options;
  /** @type {(self: Subscription) => void} */
  #confirmed = () => {};
  /** @type {(error: NetdError) => void} */
  #refused = () => {};

  /** @param {Client} client @param {Channel} channel @param {((message: Message) => void) | undefined} handler
   * @param {SubscribeOptions} options */
  constructor(client, channel, handler, options) {
    this.channel = readable(channel);
    this.key = keyOf(channel);
    /** Whether the daemon takes its name for a pattern. */
    this.pattern = false;
    /** Whether the daemon has confirmed it on this connection. */
    this.live = false;
    /** Of the request that asks for it, the last one. */
    this.ref = 0;
    this.#client = client;
    this.#handler = handler;
    this.#options = options;
    this.#place = new Place(options.recover);
    this.#asked = options.recover !== undefined;
    /** Resolves when the daemon confirms it for the first time, rejects when it never will. */
    this.ready = new Promise((resolve, reject) => ([this.#confirmed, this.#refused] = [resolve, reject]));
    this.ready.catch(() => {}); // whoever does not wait for it hears of it as an "error" event
  }

  // Behind the last message that arrived; null: there is no history, or there are many.
  /** @returns {Position | null} */
  get position() {
    const { epoch, offset } = this.#place;
    return epoch === null || this.pattern ? null : { epoch, offset };
  }

  unsubscribe() {
    return this.#client._unsubscribe(this);
  }

  [Symbol.asyncIterator]() {
    if (this.#handler) {
      throw new NetdError("invalid", `cannot iterate over ${this.channel}: its messages go to a handler`, this.channel);
    }
    return { next: () => this.#next(), return: () => this.#leave() };
  }

  /** @returns {Promise<IteratorResult<Message, undefined>>} */
  #next() {
    this.#spilt = false;
    const item = this.#items.shift();
    if (item) {
      this.#size -= item.size;
      return Promise.resolve({ value: item.message, done: false });
    }
    if (this.#end?.error) return Promise.reject(this.#end.error);
    if (this.#end) return Promise.resolve({ value: undefined, done: true });
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }

  // The loop was left.
  /** @returns {Promise<IteratorResult<Message, undefined>>} */
  async #leave() {
    this.#items = [];
    this.#size = 0;
    this.unsubscribe().catch(() => {}); // whether the daemon has answered is no affair of who has left
    return { value: undefined, done: true };
  }

  // for the client: it is not part of what netd.d.ts declares

  /** @returns {Wire} */
  _request() {
    const { position } = this;
    return {
      type: "subscribe",
      ...channelFields(this.channel),
      ...(position && { recover: position }),
      ...(this.#options.pattern && { pattern: true }),
    };
  }

  // The daemon has subscribed us: what follows is new, or is what we missed.
  /** @param {Wire} ok */
  _confirm(ok) {
    this.live = true;
    this.pattern = ok.pattern === true;
    if (this.pattern) this.#places.clear();
    if (!ok.recovered) {
      // a node that cannot see the history just now says no place, and that is no reason to forget ours: what we have
      // would be new to us once more as soon as it can
      if (ok.epoch !== undefined) this.#place.move(ok.epoch, ok.offset ?? 0);
      if (this.#asked) this.#gap(this.channel, ok.epoch ?? null, null);
    }
    this.#asked = true;
    this.#confirmed(this);
  }

  /** @param {Message} message @param {number} size of what brought it */
  _take(message, size) {
    const place = this.pattern ? this.#placeIn(keyOf(message.channel)) : this.#place;
    const missed = place.admit(message);
    const had = this.#place.repeats(message);
    if (missed === null || this.#end) return undefined;
    if (missed) this.#gap(message.channel, place.epoch, missed < 0 ? null : missed);
    if (had || this.#end) return undefined; // a listener ended it just now
    if (this.#handler) return this.#client._call(this.#handler, message);
    const reader = this.#waiting.shift();
    if (reader) return reader.resolve({ value: message, done: false });
    this.#items.push({ message, size });
    this.#size += size;
    if (!this.#client._spills(this.#items.length, this.#size)) return undefined;
    while (this.#items.length > 1 && this.#client._spills(this.#items.length, this.#size)) {
      this.#size -= /** @type {{ size: number }} */ (this.#items.shift()).size;
    }
    if (!this.#spilt) this.#gap(message.channel, place.epoch, null);
    this.#spilt = true; // told once, until somebody reads
    return undefined;
  }

  // The daemon says where a channel is, after messages without offsets: nothing was missed but where the epoch is new.
  /** @param {Wire} ok */
  _level({ channel, epoch, offset }) {
    const place = this.pattern ? this.#placeIn(keyOf(channel)) : this.#place;
    if (place.epoch !== null && place.epoch !== epoch) this.#gap(channel, epoch, null);
    const behind = place.epoch === epoch && place.offset > offset; // another machine was further
    place.move(epoch, behind ? place.offset : offset);
  }

  /** @param {import("./netd.js").Presence} event */
  _witness(event) {
    if (this.#options.presence) this.#client._call(this.#options.presence, event);
  }

  /** @param {NetdError | null} error */
  _finish(error) {
    if (this.#end) return;
    this.#end = { error };
    this.live = false;
    this.#refused(error ?? new NetdError("closed", `cannot subscribe to ${this.channel}: it was unsubscribed`));
    for (const { resolve, reject } of this.#waiting.splice(0)) {
      if (error) reject(error);
      else resolve({ value: undefined, done: true });
    }
  }

  /** @param {Channel} channel @param {string | null} epoch @param {number | null} missed */
  #gap(channel, epoch, missed) {
    const gap = { channel, epoch, missed };
    if (this.#options.gap) this.#client._call(this.#options.gap, gap);
    this.#client._emit("gap", gap);
  }

  // Where it is in a channel of a pattern; those that were quiet longest are forgotten.
  /** @param {string} key */
  #placeIn(key) {
    const place = this.#places.get(key) ?? new Place();
    this.#places.delete(key);
    this.#places.set(key, place);
    if (this.#places.size > PLACES) this.#places.delete(/** @type {string} */ (this.#places.keys().next().value));
    return place;
  }
}

// --- the client ------------------------------------------------------------------------------------------------------

const DEFAULTS = {
  timeout: 10,
  heartbeat: null,
  queueBytes: 1024 * 1024,
  inboxItems: 4096,
  inboxBytes: 16 * 1024 * 1024,
  reconnect: { first: 0.3, factor: 2, longest: 20, jitter: 0.5, steady: 5, maxAttempts: Infinity },
};

class Client {
  #url;
  #options;
  #again;
  #WebSocket;
  /** @type {Token | undefined} */
  #token;
  /** @type {State} */
  #state = { name: "connecting", attempt: 1 };
  /** @type {Wire | null} */
  #welcome = null;
  /** @type {WebSocket | null} */
  #socket = null;
  #dialling = 0; // which attempt is the present one
  #ready = false; // greeted on this connection
  #resume = { secret: /** @type {string | null} */ (null), until: Infinity, tried: false };
  #hello = 0; // ref of the hello that is not answered yet
  #refs = 1;
  /** @type {Map<number, Pending>} */
  #pending = new Map();
  /** @type {Pending[]} */
  #queue = [];
  #queued = 0;
  /** @type {Map<string, Subscription>} */
  #subscriptions = new Map();
  /** @type {Map<number, Subscription>} */
  #subscribing = new Map();
  // By key, and by the ref of what asks for it.
  /** @type {Map<string, Leaving>} */
  #leaving = new Map();
  /** @type {Map<number, Leaving>} */
  #parting = new Map();
  /** @type {Subscription[]} */
  #patterns = [];
  /** @type {Map<string, Set<(event: any) => void>>} */
  #listeners = new Map();
  #attempt = 0;
  #notBefore = 0; // what the daemon asked for (retry_after)
  #opened = 0;
  #heard = 0;
  #pinged = 0;
  // The daemon's last words on this connection.
  /** @type {Wire | null} */
  #told = null;
  /** @type {Record<string, ReturnType<typeof setTimeout> | undefined>} */
  #timers = {};
  /** @type {Promise<void> | null} */
  #closing = null;
  /** @type {(() => void)[]} */
  #hints = [];

  /** @param {string | URL} url @param {Options} options */
  constructor(url, options) {
    this.#url = new URL(url, globalThis.location?.href);
    this.#url.protocol = this.#url.protocol.replace(/^http/, "ws");
    this.#options = { ...DEFAULTS, ...options };
    const again = options.reconnect ?? true;
    this.#again = { ...DEFAULTS.reconnect, ...(again === true ? {} : again || { maxAttempts: 0 }) };
    this.#token = options.token;
    this.#WebSocket = options.WebSocket ?? globalThis.WebSocket;
    if (!this.#WebSocket) throw new NetdError("invalid", "cannot connect: there is no WebSocket here; give one");
    this.#hint(globalThis, "online", () => this.#awake());
    this.#hint(globalThis, "pageshow", () => this.#awake());
    this.#hint(globalThis.document, "visibilitychange", () => !document.hidden && this.#awake());
    this.#dial();
  }

  get state() {
    return this.#state;
  }

  get session() {
    return /** @type {string | null} */ (this.#welcome?.session ?? null);
  }

  /** Bytes, about, that have not left yet. */
  get buffered() {
    return this.#queued + (this.#socket?.bufferedAmount ?? 0);
  }

  /** @param {string} name @param {(event: any) => void} listener @returns {() => void} what takes it away again */
  on(name, listener) {
    const all = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, all.add(listener));
    return () => void all.delete(listener);
  }

  // --- operations

  /**
   * @param {Channel} channel
   * @param {((message: Message) => void) | SubscribeOptions} [handler]
   * @param {SubscribeOptions} [options]
   */
  subscribe(channel, handler, options) {
    const take = typeof handler === "function" ? handler : undefined;
    const subscription = new Subscription(this, channel, take, (take ? options : /** @type {any} */ (handler)) ?? {});
    this.#check("subscribe");
    if (this.#subscriptions.has(subscription.key)) {
      throw new NetdError("invalid", `cannot subscribe to ${subscription.channel} twice: this client is subscribed`);
    }
    this.#subscriptions.set(subscription.key, subscription);
    if (this.#ready) this.#ask(subscription);
    return subscription;
  }

  /** @param {Channel} channel @param {unknown} data @param {SendOptions} [options] */
  publish(channel, data, options) {
    const message = () => ({ type: "publish", ...channelFields(channel), ...dataFields(data) });
    return this.#deliver(`publish to ${channel}`, message, options);
  }

  /** @param {string} to @param {unknown} data @param {SendOptions} [options] */
  direct(to, data, options) {
    return this.#deliver(`send to ${to}`, () => ({ type: "direct", to, ...dataFields(data) }), options);
  }

  /** @param {unknown} data @param {SendOptions} [options] */
  broadcast(data, options) {
    return this.#deliver("broadcast", () => ({ type: "broadcast", ...dataFields(data) }), options);
  }

  /** @param {string} text @param {SendOptions} [options] */
  async text(text, options) {
    await this.#deliver("send text", () => ({ type: "text", text: String(text) }), { confirm: false, ...options });
  }

  /** @param {ArrayBuffer | ArrayBufferView} data @param {SendOptions} [options] */
  async binary(data, options) {
    const bytes = () => {
      if (!bytesOf(data)) throw new NetdError("invalid", "cannot send that as binary: it is not bytes");
      return { type: "binary", ...dataFields(data) };
    };
    await this.#deliver("send binary", bytes, { confirm: false, ...options });
  }

  /** @param {Channel} [channel] */
  async list(channel) {
    const about = channel === undefined ? {} : channelFields(channel);
    return (await this.#request("list clients", { type: "list", ...about }, { repeatable: true })).clients;
  }

  /** @param {Channel} channel */
  async presence(channel) {
    const message = { type: "presence", ...channelFields(channel) };
    return (await this.#request(`see who is in ${channel}`, message, { repeatable: true })).clients;
  }

  /** @param {Channel} channel @param {{ since?: Position | null, limit?: number }} options */
  async history(channel, { since, limit } = {}) {
    const message = { type: "history", ...channelFields(channel), ...(since && { since }), limit };
    const page = await this.#request(`read the history of ${channel}`, message, { repeatable: true });
    return { epoch: page.epoch, offset: page.offset, messages: page.messages.map(opened) };
  }

  /** Seconds to the daemon and back. */
  async ping() {
    const started = now();
    await this.#request("ping", { type: "ping", ts: Math.round(started * 1000) });
    return now() - started;
  }

  // Show a fresh token on the live session; seconds until it expires, null: never.
  /** @param {Token} [token] */
  async refresh(token) {
    const shown = token ?? this.#token;
    if (shown === undefined) throw new NetdError("invalid", "cannot refresh the token: there is none; give it one");
    const text = await this.#tokenFrom(shown);
    const ok = await this.#request("refresh the token", { type: "refresh", token: text });
    this.#token = shown;
    this.#expect(ok.expires);
    const again = this.#suspended ?? new Map();
    this.#suspended = null;
    for (const subscription of again.keys()) this.#ask(subscription);
    return /** @type {number | null} */ (ok.expires ?? null);
  }

  /** End for good, after what is queued; resolves when the connection is closed. */
  close() {
    if (this.#closing) return this.#closing;
    const socket = this.#socket;
    if (this.#ready) socket?.send('{"type":"close"}');
    this.#end(null, "");
    this.#closing = new Promise((resolve) => {
      if (!socket || socket.readyState === 3) return resolve();
      const late = setTimeout(resolve, this.#options.timeout * 1000);
      socket.onclose = () => (clearTimeout(late), resolve());
      return socket.close(1000);
    });
    return this.#closing;
  }

  // --- for subscriptions

  /** @param {Subscription} subscription */
  async _unsubscribe(subscription) {
    if (this.#subscriptions.get(subscription.key) !== subscription) return;
    this.#forget(subscription);
    subscription._finish(null);
    if (this.#ready) await this.#leave(subscription);
  }

  // Whether so much is more than may wait for an iterator.
  /** @param {number} items @param {number} size */
  _spills(items, size) {
    return items > this.#options.inboxItems || size > this.#options.inboxBytes;
  }

  // What a listener throws is the page's own error, and no reason to stop here.
  /** @param {(event: any) => void} listener @param {unknown} event */
  _call(listener, event) {
    try {
      listener(event);
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
    }
  }

  /** @param {string} name @param {unknown} event */
  _emit(name, event) {
    const listeners = this.#listeners.get(name);
    if (name === "error" && !listeners?.size) console.warn(`netd: ${/** @type {NetdError} */ (event).message}`);
    for (const listener of [...(listeners ?? [])]) this._call(listener, event);
  }

  // --- requests

  /** @param {string} what @param {() => Wire} build @param {SendOptions} options @returns {Promise<number | null>} */
  async #deliver(what, build, { priority = NORMAL, ephemeral = false, confirm = true } = {}) {
    const message = { ...build(), ...(priority !== NORMAL && { priority }), ...(ephemeral && { ephemeral }) };
    return (await this.#request(what, message, { confirm }))?.delivered ?? null;
  }

  /** @param {string} what @param {Wire} message @param {{ repeatable?: boolean, confirm?: boolean }} options
   * @returns {Promise<any>} */
  #request(what, message, { repeatable = false, confirm = true } = {}) {
    return new Promise((resolve, reject) => {
      this.#check(what);
      const ref = confirm ? this.#refs++ : undefined;
      const text = written(what, { ...message, ref });
      if (this.buffered + text.length > this.#options.queueBytes) {
        const most = this.#options.queueBytes;
        throw new NetdError("full", `cannot ${what}: ${this.buffered} bytes wait, ${most} is the most (queueBytes)`);
      }
      /** @type {Pending} */
      const request = { what, text, ref, repeatable, sent: false, resolve, reject };
      if (ref !== undefined) {
        this.#pending.set(ref, request);
        request.timer = setTimeout(() => this.#giveUp(ref), this.#options.timeout * 1000);
      }
      this.#queue.push(request);
      this.#queued += text.length;
      this.#flush();
      if (!confirm) resolve(null);
    });
  }

  #flush() {
    if (!this.#ready) return;
    for (const request of this.#queue.splice(0)) {
      request.sent = true;
      this.#socket?.send(request.text);
    }
    this.#queued = 0;
  }

  // The answer to a request, whatever it is.
  /** @param {number} ref @returns {Pending | undefined} */
  #settle(ref) {
    const request = this.#pending.get(ref);
    if (!request) return undefined;
    this.#pending.delete(ref);
    clearTimeout(request.timer);
    if (!request.sent) {
      this.#queue = this.#queue.filter((each) => each !== request);
      this.#queued -= request.text.length;
    }
    return request;
  }

  /** @param {number} ref */
  #giveUp(ref) {
    const request = this.#settle(ref);
    const { name, reason } = this.#state;
    const within = `within ${this.#options.timeout} s`;
    const unsent = `it could not be sent ${within}, the state is ${name}${reason ? ` (${reason})` : ""}`;
    const text = `cannot ${request?.what}: ${request?.sent ? `no answer ${within}` : unsent}`;
    request?.reject(new NetdError("unreachable", text));
  }

  /** @param {string} what */
  #check(what) {
    if (this.#state.name === "closed") {
      const why = this.#state.reason ? `: ${this.#state.reason}` : "";
      throw new NetdError("closed", `cannot ${what}: this client is closed${why}`);
    }
  }

  /** @param {Subscription} subscription */
  #ask(subscription) {
    if (this.#subscriptions.get(subscription.key) !== subscription) return;
    const ref = (subscription.ref = this.#refs++);
    this.#subscribing.set(ref, subscription);
    this.#socket?.send(JSON.stringify({ ...subscription._request(), ref }));
  }

  // For what the daemon is too busy for just now: after a reconnect, much is asked for at once.
  /** @param {string} name of the timer @param {() => void} call */
  #later(name, call) {
    clearTimeout(this.#timers[name]); // of one that had this name before
    this.#timers[name] = setTimeout(() => {
      delete this.#timers[name];
      call();
    }, 500 + Math.random() * 1000);
  }

  /** @param {Subscription} subscription @returns {Promise<void>} */
  #leave(subscription) {
    return new Promise((resolve, reject) => {
      const { timeout } = this.#options;
      const what = `cannot unsubscribe from ${subscription.channel}: no answer within ${timeout} s`;
      const timer = setTimeout(() => reject(new NetdError("unreachable", what)), timeout * 1000);
      /** @param {NetdError} [error] */
      const done = (error) => {
        clearTimeout(timer);
        if (error) reject(error);
        else resolve();
      };
      const leaving = { subscription, done };
      const before = this.#leaving.get(subscription.key);
      subscription.pattern ||= before?.subscription.pattern ?? false; // what this brings may still be of that one
      before?.done();
      this.#leaving.set(subscription.key, leaving);
      this.#askToLeave(leaving);
    });
  }

  /** @param {Leaving} leaving */
  #askToLeave(leaving) {
    const ref = this.#refs++;
    this.#parting.set(ref, leaving);
    this.#socket?.send(JSON.stringify({ type: "unsubscribe", ...channelFields(leaving.subscription.channel), ref }));
  }

  // The daemon was too busy.
  /** @param {Leaving} leaving */
  #leaveAgain(leaving) {
    const { key } = leaving.subscription;
    this.#later(`leave ${key}`, () => {
      if (this.#leaving.get(key) !== leaving) return;
      if (this.#subscriptions.has(key)) this.#leaveAgain(leaving); // wanted again; if it is had, this is over
      else this.#askToLeave(leaving);
    });
  }

  // The daemon has answered.
  /** @param {Leaving} leaving @param {NetdError} [error] */
  #left(leaving, error) {
    const { subscription } = leaving;
    if (this.#leaving.get(subscription.key) === leaving) this.#leaving.delete(subscription.key);
    if (subscription.ref) this.#subscribing.delete(subscription.ref); // that needs no answer any more
    leaving.done(error);
  }

  // Whether something of this channel may be of a subscription that was left.
  /** @param {Channel} channel */
  #wasLeft(channel) {
    if (this.#leaving.has(keyOf(channel))) return true;
    const left = [...this.#leaving.values()].map((leaving) => leaving.subscription);
    return left.some((each) => each.pattern && matches(each.channel, channel));
  }

  /** @param {Subscription} subscription */
  #forget(subscription) {
    this.#subscriptions.delete(subscription.key);
    this.#reroute();
  }

  #reroute() {
    this.#patterns = [...this.#subscriptions.values()].filter((each) => each.live && each.pattern);
  }

  // --- what the daemon says

  /** @param {unknown} data */
  #receive(data) {
    this.#heard = now();
    try {
      // what listeners throw does not come here: a daemon that says what no daemon says does
      return this.#see(opened(JSON.parse(/** @type {string} */ (data))), /** @type {string} */ (data).length);
    } catch (error) {
      return this.#lose(`the daemon said what cannot be read (${error instanceof Error ? error.message : error})`);
    }
  }

  /** @param {Wire} wire @param {number} size */
  #see(wire, size) {
    switch (wire.type) {
      case "message":
        return this.#share(/** @type {Message} */ (wire), size);
      case "joined":
      case "left":
        if (this.#leaving.has(keyOf(wire.channel))) return undefined;
        this.#subscriptions.get(keyOf(wire.channel))?._witness(/** @type {any} */ (wire));
        return this._emit(wire.type, wire);
      case "direct":
      case "broadcast":
      case "text":
      case "binary":
        return this._emit(wire.type, wire);
      case "ping":
        return this.#socket?.send(JSON.stringify({ type: "pong", ts: wire.ts, ref: wire.ref }));
      case "welcome":
        return this.#welcomed(wire);
      case "close":
        this.#told = wire;
        return undefined;
      case "error":
        return this.#refusedBy(wire);
      default:
        return this.#answered(wire);
    }
  }

  // A message, for every subscription that it is of.
  /** @param {Message} message @param {number} size */
  #share(message, size) {
    const own = this.#subscriptions.get(keyOf(message.channel));
    const covering = this.#patterns.filter((each) => matches(each.channel, message.channel));
    // What a pattern brings before the daemon has confirmed the channel's own subscription is ahead of its place: it
    // comes once more there, after what was missed. And what one that was left still brings is not for the next.
    const left = this.#wasLeft(message.channel);
    if (own && (own.live || (covering.length ? message.offset === undefined : !left))) own._take(message, size);
    for (const each of covering) if (each !== own) each._take(message, size);
    if (!own && !covering.length && !left) this._emit("message", message);
  }

  /** @param {Wire} answer */
  #answered(answer) {
    if (answer.ref === undefined && answer.epoch !== undefined) {
      const own = this.#subscriptions.get(keyOf(answer.channel));
      if (own?.live) own._level(answer);
      for (const each of this.#patterns) if (matches(each.channel, answer.channel)) each._level(answer);
      return undefined;
    }
    const leaving = this.#parting.get(answer.ref);
    if (leaving) {
      this.#parting.delete(answer.ref);
      return this.#left(leaving);
    }
    const subscription = this.#subscribing.get(answer.ref);
    if (!subscription) return this.#settle(answer.ref)?.resolve(answer);
    this.#subscribing.delete(answer.ref);
    if (this.#subscriptions.get(subscription.key) !== subscription) {
      subscription.pattern = answer.pattern === true; // it was left meanwhile, and so are the channels that match
      return undefined;
    }
    const before = this.#leaving.get(subscription.key);
    if (before) this.#left(before); // the daemon was too busy for that, and need not do it any more
    subscription._confirm(answer);
    return this.#reroute();
  }

  /** @param {Wire} wire */
  #refusedBy({ ref, code, message, channel, refresh }) {
    const error = new NetdError(code, message, channel);
    if (refresh && ref === undefined && typeof this.#token === "function") {
      this.#suspended ??= new Map();
      this.#renewIn(Math.random() * SPREAD, now());
    }
    if (ref !== undefined && ref === this.#hello) return this.#unwelcome(error);
    const leaving = this.#parting.get(ref);
    if (leaving) {
      this.#parting.delete(ref);
      return code === "rate" ? this.#leaveAgain(leaving) : this.#left(leaving, error);
    }
    const about = ref === undefined && channel !== undefined ? keyOf(channel) : undefined;
    const taken = about === undefined ? undefined : this.#subscriptions.get(about);
    if (about !== undefined && this.#leaving.has(about)) return undefined; // of the one that was left
    const subscription = this.#subscribing.get(ref) ?? taken;
    if (!subscription) {
      const request = this.#settle(ref);
      return request ? request.reject(error) : this._emit("error", error);
    }
    this.#subscribing.delete(ref);
    if (this.#subscriptions.get(subscription.key) !== subscription) return undefined;
    if (code === "rate") {
      return this.#later(`ask ${subscription.key}`, () => this.#ask(subscription));
    }
    error.channel = subscription.channel;
    if (subscription === taken && this.#suspended && code === "denied") {
      subscription.live = false;
      this.#suspended.set(subscription, error);
      return this.#reroute();
    }
    return this.#take(subscription, error);
  }

  // The daemon has ended a subscription, or will not begin it.
  /** @param {Subscription} subscription @param {NetdError} error */
  #take(subscription, error) {
    this.#forget(subscription);
    subscription._finish(error);
    this._emit("error", error);
  }

  /** @param {Wire} welcome */
  #welcomed(welcome) {
    const resumed = this.#resume.tried && welcome.session === this.session;
    this.#welcome = welcome;
    this.#hello = 0;
    this.#resume = { secret: welcome.resume ?? null, until: Infinity, tried: false };
    this.#ready = true;
    clearTimeout(this.#timers.patience);
    this.#opened = now();
    // before any listener: what it asks for comes behind
    for (const subscription of this.#subscriptions.values()) this.#ask(subscription);
    this.#flush();
    this.#note({ name: "connected" });
    if (!this.#ready) return; // it has closed this client
    this.#expect(welcome.expires);
    this.#watch();
    this._emit("open", { session: welcome.session, server: welcome.server, version: welcome.version, resumed });
  }

  // The daemon refused our hello.
  /** @param {NetdError} error */
  #unwelcome(error) {
    if (PASSING.has(error.kind)) return this.#lose(error.message);
    if (!this.#resume.tried) return this.#lose(error.message, error);
    this.#resume.secret = null; // too old; come as somebody new
    return this.#greet(this.#shown);
  }

  // --- tokens

  /** @type {string | undefined} */
  #shown;
  // While the token that was lost is replaced: what went with it, and why.
  /** @type {Map<Subscription, NetdError> | null} */
  #suspended = null;

  /** @param {Token} token @returns {Promise<string>} */
  async #tokenFrom(token) {
    if (typeof token === "string") return token;
    const given = token(); // first: what it throws must leave no timer behind
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    const late = new Promise((_, reject) => {
      const error = new NetdError("unreachable", `cannot get a token: none within ${this.#options.timeout} s`);
      timer = setTimeout(() => reject(error), this.#options.timeout * 1000);
    });
    return Promise.race([given, /** @type {Promise<never>} */ (late)]).finally(() => clearTimeout(timer));
  }

  // The token expires in so many seconds: have another before.
  /** @param {number | undefined} seconds */
  #expect(seconds) {
    clearTimeout(this.#timers.refresh);
    if (seconds === undefined || typeof this.#token !== "function") return;
    const ahead = Math.min(60, seconds * 0.2) * (1 + Math.random() * 0.2);
    this.#renewIn(Math.max(seconds - ahead, RENEW_LEAST), now() + seconds);
  }

  /** @param {number} delay @param {number} until when the present one expires */
  #renewIn(delay, until) {
    clearTimeout(this.#timers.refresh);
    this.#timers.refresh = setTimeout(() => {
      const socket = this.#socket;
      this.refresh().catch((error) => {
        if (socket !== this.#socket) return; // whoever comes next shows a fresh one anyway
        this._emit("error", failure(error, "cannot refresh the token"));
        const lost = this.#suspended ?? [];
        this.#suspended = null;
        for (const [subscription, why] of lost) {
          if (this.#subscriptions.get(subscription.key) === subscription) this.#take(subscription, why);
        }
        // on this connection it is tried again, also when it has expired
        if (this.#ready) this.#expect(Math.max(until - now(), 10));
      });
    }, Math.min(delay * 1000, LONGEST_TIMER));
  }

  // --- the connection

  async #dial() {
    const attempt = ++this.#dialling;
    this.#note({ name: "connecting", attempt: this.#attempt || 1 }); // the one that the backoff before was for
    /** @type {string | undefined} */
    let token;
    try {
      // also without one it takes a turn: whoever called `connect` listens by then
      token = await (this.#token === undefined ? undefined : this.#tokenFrom(this.#token));
    } catch (error) {
      if (attempt !== this.#dialling) return;
      this._emit("error", failure(error, "cannot get a token"));
      this.#backOff(failure(error, "cannot get a token").message);
      return;
    }
    if (attempt !== this.#dialling || this.#over) return;
    /** @type {WebSocket} */
    let socket;
    try {
      socket = new this.#WebSocket(this.#url.href, [PROTOCOL]);
    } catch (error) {
      // an address that no connection can be made to from this page
      const { protocol, host, pathname } = this.#url; // its query may have a token
      const refused = failure(error, `cannot connect to ${protocol}//${host}${pathname}`);
      this.#end(refused, refused.message);
      return;
    }
    this.#socket = socket;
    this.#told = null;
    const patience = this.#options.timeout;
    this.#timers.patience = setTimeout(() => this.#lose(`no welcome within ${patience} s`), patience * 1000);
    socket.onopen = () => this.#greet(token);
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code, reason }) => this.#lost(code, reason);
  }

  /** @param {string | undefined} token */
  #greet(token) {
    this.#heard = now();
    this.#shown = token;
    this.#hello = this.#refs++;
    const secret = now() < this.#resume.until ? this.#resume.secret : null;
    this.#resume.tried = secret !== null;
    const { name, tags } = this.#options;
    const hello = { type: "hello", version: VERSION, name, token, tags, ref: this.#hello };
    this.#socket?.send(JSON.stringify({ ...hello, ...(secret && { resume: secret }) }));
  }

  // The connection is closed: why, and whether coming back makes sense.
  /** @param {number} code @param {string} reason */
  #lost(code, reason) {
    const told = this.#told;
    const why = told?.reason || reason;
    const number = told?.code ?? (told ? 1000 : code);
    const said = `the daemon closed the session (${number})${why ? `: ${why}` : ""}`;
    const text = number === 1006 ? "the connection broke" : said;
    const final = FINAL.get(number);
    if (final) return this.#lose(text, new NetdError(final, `cannot go on: ${text}`));
    if (number === 1000 && (told || this.#ready)) {
      this.#unplug();
      return this.#end(null, text);
    }
    return this.#lose(text, null, told?.retry_after);
  }

  // End this connection.
  /** @param {string} reason @param {NetdError | null} [error] what ends the client with it
   * @param {number} [least] seconds that the daemon asks us to stay away */
  #lose(reason, error = null, least = 0) {
    this.#unplug()?.close();
    if (now() - this.#opened >= this.#again.steady && this.#state.name === "connected") this.#attempt = 0;
    for (const [ref, request] of [...this.#pending]) {
      if (!request.sent) continue;
      if (request.repeatable && !error) {
        request.sent = false;
        this.#queue.push(request);
        this.#queued += request.text.length;
      } else {
        const why = `the connection was lost before its answer (${reason})`;
        const text = `cannot tell whether the daemon did it (${request.what}): ${why}`;
        this.#settle(ref)?.reject(new NetdError("lost", text));
      }
    }
    if (error) this.#end(error, error.message);
    else this.#backOff(reason, least);
  }

  // Nothing more is heard from this socket.
  /** @returns {WebSocket | null} */
  #unplug() {
    const socket = this.#socket;
    this.#socket = null;
    if (socket) socket.onopen = socket.onmessage = socket.onclose = null;
    for (const timer of Object.values(this.#timers)) clearTimeout(timer);
    this.#timers = {};
    if (this.#ready) this.#resume.until = now() + RESUME_WITHIN;
    this.#ready = false;
    this.#hello = 0;
    this.#subscribing.clear();
    this.#parting.clear();
    for (const leaving of [...this.#leaving.values()]) this.#left(leaving); // the next connection knows of none
    this.#suspended = null; // the next connection asks for all of them
    for (const subscription of this.#subscriptions.values()) subscription.live = false;
    this.#patterns = [];
    return socket;
  }

  /** @param {string} reason @param {number} [least] */
  #backOff(reason, least = 0) {
    if (this.#over) return undefined; // a listener has closed this client
    const { first, factor, longest, jitter, maxAttempts } = this.#again;
    this.#attempt += 1;
    if (this.#attempt > maxAttempts) {
      const error = new NetdError("unreachable", `cannot reach ${this.#url.host}: ${reason}`);
      return this.#end(error, error.message);
    }
    const delay = Math.min(longest, first * factor ** Math.min(this.#attempt - 1, 64));
    // what the daemon asks for is the least; all its clients were told the same, so the jitter comes on top
    least = Math.min(least, MOST_AWAY);
    const wait = least > 0 ? least + delay * jitter * Math.random() : delay * (1 - jitter * Math.random());
    this.#notBefore = now() + least;
    this.#note({ name: "backoff", attempt: this.#attempt, seconds: wait, reason });
    if (this.#over) return undefined;
    this.#timers.dial = setTimeout(() => this.#dial(), Math.min(wait * 1000, LONGEST_TIMER));
    return undefined;
  }

  get #over() {
    return this.#state.name === "closed";
  }

  // For good, once.
  /** @param {NetdError | null} error @param {string} reason */
  #end(error, reason) {
    if (this.#over) return;
    this.#unplug();
    this.#dialling += 1;
    for (const hint of this.#hints.splice(0)) hint();
    this.#note({ name: "closed", reason });
    const gone = error ?? new NetdError("closed", "cannot get an answer: this client is closed");
    for (const ref of [...this.#pending.keys()]) this.#settle(ref)?.reject(gone);
    this.#queue = [];
    this.#queued = 0;
    for (const subscription of this.#subscriptions.values()) subscription._finish(error);
    this.#subscriptions.clear();
    if (error) this._emit("error", error);
    this._emit("close", { reason, error });
  }

  /** @param {State} state */
  #note(state) {
    this.#state = state;
    this._emit("state", state);
  }

  // --- signs of life

  /** Ask when nothing was heard for a heartbeat; too many of those in silence, and the connection is lost. */
  #watch() {
    clearTimeout(this.#timers.beat);
    const beat = this.#options.heartbeat ?? this.#welcome?.heartbeat;
    if (!beat || !this.#ready) return;
    const silence = beat * SILENT_BEATS;
    const due = Math.min(Math.max(this.#heard, this.#pinged) + beat, this.#heard + silence);
    this.#timers.beat = setTimeout(() => {
      const time = now();
      if (time - due > beat) this.#heard = Math.max(this.#heard, time - silence + PROBE); // this page was asleep
      if (time - this.#heard >= silence) return this.#lose(`nothing was heard for ${silence} s`);
      if (time - Math.max(this.#heard, this.#pinged) >= beat * 0.999) this.#say();
      return this.#watch();
    }, Math.max(due - now(), 0) * 1000 + 1);
  }

  #say() {
    this.#pinged = now();
    this.#socket?.send(JSON.stringify({ type: "ping", ts: Math.round(this.#pinged * 1000) }));
  }

  /** The page is looked at again, or the network is back: no need to wait, no reason to trust what was silent. */
  #awake() {
    if (this.#state.name === "backoff" && now() >= this.#notBefore) {
      clearTimeout(this.#timers.dial);
      this.#dial();
    } else if (this.#ready) {
      const silence = (this.#options.heartbeat ?? this.#welcome?.heartbeat ?? 0) * SILENT_BEATS;
      this.#heard = Math.min(this.#heard, now() - silence + PROBE);
      this.#say();
      this.#watch();
    }
  }

  /** @param {EventTarget | undefined} target @param {string} name @param {() => void} listener */
  #hint(target, name, listener) {
    if (typeof target?.addEventListener !== "function") return;
    target.addEventListener(name, listener);
    this.#hints.push(() => target.removeEventListener(name, listener));
  }
}

// What is asked for, as it travels.
/** @param {string} what @param {Wire} message @returns {string} */
function written(what, message) {
  try {
    return JSON.stringify(message);
  } catch (error) {
    // a bigint, what contains itself, a toJSON that throws
    const why = error instanceof Error ? error.message : error;
    throw new NetdError("invalid", `cannot ${what}: it is no JSON value (${why})`);
  }
}

/** @param {unknown} error @param {string} what */
function failure(error, what) {
  if (error instanceof NetdError) return error;
  return new NetdError("unreachable", `${what}: ${error instanceof Error ? error.message : error}`);
}
