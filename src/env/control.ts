/**
 * What the control plane may use of the outside world: calls, datagrams, a key-value store, a clock, randomness, a log.
 * Two implementations: `env/node` (gRPC, dgram, LevelDB, timers) and `env/sim`.
 */

/** A plain message: JSON-like values and Uint8Array. u64 fields of the .proto files are numbers up to 2^53. */
export type Message = { readonly [field: string]: unknown }

export interface CallContext {
  /** Address of the caller, for logs. */
  readonly peer: string
  /** Milliseconds the caller still waits. */
  readonly timeoutMs: number
  /** Lower-case metadata the caller sent. */
  readonly metadata: Readonly<Record<string, string>>
}

/** Throws XsanError; anything else that is thrown is a bug and reaches the caller as INTERNAL. */
export type MethodHandler = (request: Message, context: CallContext) => Promise<Message>

export interface CallOptions {
  readonly timeoutMs: number
  readonly metadata?: Readonly<Record<string, string>>
  /**
   * Nobody waits for the answer: resolves with {} when the request is on its way, in order with others of its kind to the same address, and not before
   * there is room for it. What becomes of it is not told; a rejection may be about an earlier one.
   */
  readonly oneWay?: boolean
}

export interface Rpc {
  /** `service` as in proto/, e.g. "xsan.v1.Volume"; `methods` by their proto names. Call before `listen`. */
  serve(service: string, methods: Readonly<Record<string, MethodHandler>>): void
  /** Serves on host:port; resolves when bound. Rejects with XsanError (BUSY, naming the port and its holder when known). */
  listen(options: { host: string; port: number }): Promise<{ port: number }>
  /** `method` as "xsan.v1.Volume/Create". Rejects with XsanError: the server's own, NODE_UNREACHABLE, or NETWORK_TIMEOUT. */
  call(address: string, method: string, request: Message, options: CallOptions): Promise<Message>
  close(): Promise<void>
}

export interface Datagram {
  /** Receives on host:port, and on the multicast group when one is given (unicast still works when joining fails: returns multicast false). */
  bind(
    options: { host: string; port: number; multicastGroup?: string | undefined },
    onMessage: (bytes: Uint8Array, from: string) => void,
  ): Promise<{ port: number; multicast: boolean }>
  /** Best effort; `to` is "address:port". */
  send(bytes: Uint8Array, to: string): void
  close(): Promise<void>
}

export type KvOp = { readonly type: 'put'; readonly key: string; readonly value: Uint8Array } | { readonly type: 'delete'; readonly key: string }

export interface Kv {
  /** All entries whose key starts with `prefix`, in key order (bytewise). For the start only. */
  scan(prefix: string): Promise<Array<{ key: string; value: Uint8Array }>>
  /** Atomic, and on stable storage when it resolves. Batches are applied in call order. */
  batch(ops: readonly KvOp[]): Promise<void>
  close(): Promise<void>
}

export type TimerId = { readonly __timer: never }

export interface Clock {
  /** Boot-time clock, ms with a fraction; comparable with IoQueue.nowMs of the same node. Runs while the host sleeps; never goes back. */
  nowMs(): number
  /** Wall clock, ms since 1970: for people and logs, never for decisions. */
  wallMs(): number
  /** Calls `fn` once, not before `delayMs`. */
  setTimer(delayMs: number, fn: () => void): TimerId
  clearTimer(id: TimerId): void
}

export interface Entropy {
  u32(): number
  bytes(count: number): Uint8Array
  uuid(): string
}

export const LogLevel = { FATAL: 0, ERROR: 1, WARN: 2, INFO: 3, DEBUG: 4, TRACE: 5 } as const
export type LogLevelName = keyof typeof LogLevel

/** One line per event: a short sentence, and its facts as fields. Decide once, log once, at the boundary that owns the error. */
export interface Log {
  log(level: LogLevelName, message: string, fields?: Readonly<Record<string, unknown>>): void
  /** A logger whose lines carry `fields` too. */
  child(fields: Readonly<Record<string, unknown>>): Log
}

/** What `src/node` (or the simulator) hands to every control-plane component. */
export interface ControlEnv {
  readonly rpc: Rpc
  readonly datagram: Datagram
  readonly kv: Kv
  readonly clock: Clock
  readonly entropy: Entropy
  readonly log: Log
}
