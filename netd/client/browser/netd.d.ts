// What netd.js is to TypeScript, written by hand; the tests compare it with the module. Times are seconds.

/** A channel's name: text, or bytes where it is no UTF-8. */
export type Channel = string | Uint8Array;

/** A place in a channel's history: what came after `offset` is newer. Another epoch is another history. */
export interface Position {
  epoch: string;
  offset: number;
}

/** What a channel brought. `data` is text, bytes or any JSON value; `from` is the id of the session that sent it. */
export interface Message<Data = any> {
  type: "message";
  channel: Channel;
  data: Data;
  from?: string;
  /** With `epoch`, where the channel has a history. */
  offset?: number;
  epoch?: string;
  tags?: Record<string, string>;
  /** Where machines were out of touch: the message with an offset and the same origin is this one. */
  origin?: string;
}

/** What was sent to this session, or to all. */
export interface Letter<Data = any> {
  type: "direct" | "broadcast";
  data: Data;
  from?: string;
}

/** Who came or went: a hint, which may not be told. */
export interface Presence {
  type: "joined" | "left";
  session: string;
  name?: string;
  channel: Channel;
}

/** Messages of a channel may be missing here, behind what was delivered so far. */
export interface Gap {
  channel: Channel;
  /** The epoch that the channel's history has now; null: it keeps none, or nobody knows. */
  epoch: string | null;
  /** How many, where that is known. */
  missed: number | null;
}

export interface Peer {
  session: string;
  name?: string;
  transport?: string;
  tags?: Record<string, string>;
}

export interface History {
  epoch: string;
  /** Of the newest message that there is. */
  offset: number;
  /** Oldest first. */
  messages: Message[];
}

export interface State {
  name: "connecting" | "connected" | "backoff" | "closed";
  /** connecting: which attempt in a row this is, from 1; backoff: the one to come. */
  attempt?: number;
  /** backoff: until the next attempt. */
  seconds?: number;
  /** backoff, closed: why the connection is gone; "" when this client was closed. */
  reason?: string;
}

/**
 * A secret or a signed token, or what gives a fresh one: for every connection, before one expires, and when one counts no
 * more; subscriptions that ended with it are then taken up again.
 */
export type Token = string | (() => string | Promise<string>);

/** When a lost connection is made again: after `first` seconds, then `factor` times as long each, up to `longest`. */
export interface Reconnect {
  /** 0.3 */
  first?: number;
  /** 2 */
  factor?: number;
  /** 20 */
  longest?: number;
  /** By how much of itself each delay is shortened at random; what the daemon asks for is never shortened. 0.5 */
  jitter?: number;
  /** A connection that stood for so long begins the series anew. 5 */
  steady?: number;
  /** In a row, after which the client ends; Infinity. */
  maxAttempts?: number;
}

export interface Options {
  /** What permits operations. */
  token?: Token;
  /** The session's name: a claim that nobody checks. */
  name?: string;
  /** Claims, too. */
  tags?: Record<string, string>;
  /** true; false: a connection that is lost, or cannot be made, ends the client. */
  reconnect?: boolean | Reconnect;
  /** For the answer to a request, from the call on; for a connection and for a token. 10 */
  timeout?: number;
  /** How much silence it takes to ask whether the daemon is there; null: what it says itself; 0: never. */
  heartbeat?: number | null;
  /** Bytes that may wait to be sent; past it requests fail ("full"). 1 MiB */
  queueBytes?: number;
  /** Messages that may wait for an iterator; past it the oldest go, with a gap. 4096 */
  inboxItems?: number;
  /** The same in bytes, about; the newest stays, however large. 16 MiB */
  inboxBytes?: number;
  /** Instead of the global one: for node before 22. */
  WebSocket?: new (url: string, protocols?: string | string[]) => WebSocket;
}

export interface SendOptions {
  /** 0 to 255, lower first. 128 */
  priority?: number;
  /** May be dropped where a receiver is slow. */
  ephemeral?: boolean;
  /** false: do not ask for an answer; a refusal is an "error" event then. */
  confirm?: boolean;
}

export interface SubscribeOptions {
  /** Also what came after this position: a subscription's `position` of before. */
  recover?: Position;
  /** Called with who joins and leaves. */
  presence?: (event: Presence) => void;
  /** Called where messages may be missing, besides the client's "gap" event. */
  gap?: (gap: Gap) => void;
  /** The name has to be a pattern ("a:*.c", "a:>"), or is refused. */
  pattern?: boolean;
}

/** What failed. */
export class NetdError extends Error {
  constructor(kind: string, message: string, channel?: Channel);
  /**
   * The daemon's code (invalid, denied, not-found, too-large, rate, unsupported, too-many, unavailable), why it ended
   * the session (protocol, policy, replaced, kicked), or ours: unreachable, lost (nobody knows whether it was done),
   * full, invalid, closed.
   */
  kind: string;
  channel?: Channel;
}

/**
 * One channel, or all that match; iterate where no handler takes its messages. Leaving the loop (break, return, a throw)
 * ends the subscription; to read a few and go on, call the iterator's `next`.
 */
export interface Subscription extends AsyncIterable<Message> {
  readonly channel: Channel;
  /** Whether the daemon takes its name for a pattern. */
  readonly pattern: boolean;
  /** Whether the daemon has confirmed it on this connection. */
  readonly live: boolean;
  /** Behind the last message that arrived: give it to `subscribe` to go on from it. null: no history, or many. */
  readonly position: Position | null;
  /** Resolves when the daemon confirms it for the first time, rejects when it never will. */
  readonly ready: Promise<Subscription>;
  /** Hear no more of it. */
  unsubscribe(): Promise<void>;
}

export interface Events {
  /** Greeted: for every connection. `resumed`: it is the same session as before. */
  open: { session: string; server: string; version: string; resumed: boolean };
  /** Ended for good. `error` is null where this client was closed, or the daemon closed it in peace. */
  close: { reason: string; error: NetdError | null };
  state: State;
  /** Of a channel that was not subscribed to here: the application did. */
  message: Message;
  gap: Gap;
  direct: Letter;
  broadcast: Letter;
  joined: Presence;
  left: Presence;
  /** What the application said. */
  text: { type: "text"; text: string };
  binary: { type: "binary"; data: Uint8Array };
  /** What no request of ours is told: a subscription that ended, a token that cannot be had. */
  error: NetdError;
}

export interface Client {
  readonly state: State;
  /** The session's id, once greeted; the same after a reconnect that resumed it. */
  readonly session: string | null;
  /** Bytes, about, that have not left yet. */
  readonly buffered: number;
  /** Listen; what it returns takes the listener away again. */
  on<Name extends keyof Events>(name: Name, listener: (event: Events[Name]) => void): () => void;
  /** Hear a channel, for as long as the client lives, or until `unsubscribe`. A channel has one subscription. */
  subscribe(channel: Channel, handler: (message: Message) => void, options?: SubscribeOptions): Subscription;
  subscribe(channel: Channel, options?: SubscribeOptions): Subscription;
  /** How many got it, where the daemon says. */
  publish(channel: Channel, data: unknown, options?: SendOptions): Promise<number | null>;
  /** To sessions: an id, "name:NAME" or "tag:KEY=VALUE". */
  direct(to: string, data: unknown, options?: SendOptions): Promise<number | null>;
  broadcast(data: unknown, options?: SendOptions): Promise<number | null>;
  /** To the application; without `confirm` unless told otherwise. */
  text(text: string, options?: SendOptions): Promise<void>;
  binary(data: ArrayBuffer | ArrayBufferView, options?: SendOptions): Promise<void>;
  /** Who is connected, or who is subscribed to a channel. */
  list(channel?: Channel): Promise<Peer[]>;
  presence(channel: Channel): Promise<Peer[]>;
  /** What a channel keeps: after `since`, else the newest. */
  history(channel: Channel, options?: { since?: Position | null; limit?: number }): Promise<History>;
  /** To the daemon and back. */
  ping(): Promise<number>;
  /** Show a fresh token on the live session; in how many seconds it expires, null: never. */
  refresh(token?: Token): Promise<number | null>;
  /** End for good; resolves when the connection is closed. */
  close(): Promise<void>;
}

/** Connect to a netd broker, by default to /ws where this page came from. Returns at once. */
export function connect(url?: string | URL, options?: Options): Client;
