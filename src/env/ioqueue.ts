/**
 * The io queue: all I/O of the data plane. A reactor turn is `queue.turn(timeoutMs)`: submit what was prepared since the last
 * turn, wait for completions, dispatch each to the handler registered for its tag. One native call per turn.
 *
 * Implemented by the native engine (`env/node`, io_uring) and by the simulator (`env/sim`); both pass test/conformance/ioqueue.
 *
 * Rules that hold for every operation:
 * - It completes exactly once (recvMultishot: once per piece of data, the last one without the MORE bit), in any order
 *   relative to others, never inside the call that prepared it.
 * - `result` is >= 0 on success (bytes, or a handle), else -errno ({@link Errno}).
 * - Reads, writes and receives may be short, as the kernel's are; `send*` are all-or-error (MSG_WAITALL | MSG_NOSIGNAL).
 * - At most one send in flight per socket (asserted): queue and coalesce above.
 * - Ranges and handles are checked; a bad one throws in the preparing call: it is a bug of the caller.
 * - Closing a handle cancels its operations (they complete with -ECANCELED or with what they had done), then `close` completes.
 *   A handle number is not reused before that, and a used-up handle carries a generation: using it is an assertion.
 */
import type { FlightRecorder } from '../base/flight.ts'
import type { Brand } from '../base/ids.ts'
import type { RequestWaits } from '../base/latency.ts'
import type { Arena } from './arena.ts'

export type Handle = Brand<number, 'Handle'>
/** Names a registered completion handler. */
export type Tag = Brand<number, 'Tag'>
/** `row` is what the preparing call passed; `extra` is per operation (see there), else 0. */
export type CompletionHandler = (row: number, result: number, extra: number) => void

export const Errno = {
  EPERM: 1,
  ENOENT: 2,
  EINTR: 4,
  EIO: 5,
  EAGAIN: 11,
  ENOMEM: 12,
  EBUSY: 16,
  EEXIST: 17,
  EINVAL: 22,
  ENFILE: 23,
  EMFILE: 24,
  ENOSPC: 28,
  EPIPE: 32,
  ETIME: 62,
  EOPNOTSUPP: 95,
  EADDRINUSE: 98,
  ENETUNREACH: 101,
  ECONNABORTED: 103,
  ECONNRESET: 104,
  ENOBUFS: 105,
  ETIMEDOUT: 110,
  ECONNREFUSED: 111,
  EHOSTUNREACH: 113,
  EDQUOT: 122,
  ECANCELED: 125,
} as const

export function errnoName(result: number): string {
  const n = result < 0 ? -result : result
  return Object.entries(Errno).find(([, code]) => code === n)?.[0] ?? `errno ${n}`
}

/** Thrown by the synchronous calls (open, listen). `code` is a Node-style name: EADDRINUSE, ENOENT, EWOULDBLOCK (locked) ... */
export class IoError extends Error {
  override name = 'IoError'
  readonly code: string
  constructor(code: string, message: string) {
    super(message)
    this.code = code
  }
}

/** At most this many completions are dispatched in one turn, and at most COMPLETIONS_PER_HANDLE of one handle. */
export const COMPLETIONS_PER_TURN = 256
export const COMPLETIONS_PER_HANDLE = 32
/** Most segments of one gathered send or write. */
export const SEGMENTS_MAX = 512
/** Most bytes of one `allocate`. */
export const ALLOCATE_BYTES_MAX = 1024 * 1024 * 1024
/** `extra` of a recvMultishot completion: (buffer id << 1) | MORE. */
export const MORE = 1

export interface OpenFileOptions {
  readonly path: string
  /** Create the file, and make it at least this long (sparse). Without it the file or device must exist. */
  readonly createBytes?: number
  /** Take an exclusive lock (flock; O_EXCL on devices); throws EWOULDBLOCK at once if another process holds it. */
  readonly lock: boolean
  /** Open for reading only. */
  readonly readOnly?: boolean
}

export interface OpenedFile {
  readonly handle: Handle
  readonly sizeBytes: number
  readonly isBlockDevice: boolean
  /** Opened with O_DIRECT: offsets, lengths and buffers must be multiples of `alignmentBytes`. */
  readonly direct: boolean
  readonly alignmentBytes: number
  /** On tmpfs or another file system without a device: nothing survives a power loss, fdatasync is free. */
  readonly volatile: boolean
}

export interface IoQueue {
  readonly arena: Arena
  /** Of this thread; its time is that of the turn. */
  readonly flight: FlightRecorder
  /** Of this thread. */
  readonly waits: RequestWaits

  /** Once per component at construction; `name` appears in traces. */
  register(name: string, handler: CompletionHandler): Tag

  /** Boot-time clock in ms (with a fraction), sampled when the current turn's wait returned: after every completion it dispatches had happened. */
  readonly nowMs: number
  /** The boot-time clock now (also becomes `nowMs`). For answers from memory alone, whose lease must be checked after the look (protocol 18). */
  sampleClockMs(): number

  // ---- sockets -------------------------------------------------------------------------------------------------------
  /** Bound and listening when it returns (SO_REUSEADDR, no SO_REUSEPORT). `port` 0 picks a free one. Throws IoError (EADDRINUSE ...). */
  listenTcp(options: { host: string; port: number; backlog?: number }): { handle: Handle; port: number }
  /** A stale socket file nobody listens on is replaced; a live one is EADDRINUSE. */
  listenUnix(options: { path: string; mode?: number }): Handle
  /** One connection; result = its handle (TCP_NODELAY set). */
  accept(listener: Handle, tag: Tag, row: number): void
  /** Returns the new socket at once; result 0 = connected, else -errno (the caller still closes the handle). */
  connectTcp(options: { host: string; port: number }, tag: Tag, row: number): Handle
  connectUnix(options: { path: string }, tag: Tag, row: number): Handle
  /** One receive into the arena; result = bytes, 0 = the peer closed. `waitAll`: only complete when full, closed or failed (bulk payload). */
  recv(socket: Handle, page: number, deltaBytes: number, lengthBytes: number, waitAll: boolean, tag: Tag, row: number): void
  /**
   * Result 0 as soon as the peer will send no more (it closed, or the connection failed), whatever it had sent and nobody has received yet;
   * -ECANCELED. At most one per socket. For whoever does not receive now and must still know that nobody waits any longer.
   */
  hangup(socket: Handle, tag: Tag, row: number): void
  /**
   * For how long nothing has come from the other host, ms: its kernel answers every second or sooner, whatever its processes do. 0 for a UNIX socket.
   * A call into the kernel: not per operation.
   */
  silentMs(socket: Handle): number
  /** Receives into provided buffers until cancelled or failed; each completion's `extra` is (buffer id << 1) | MORE; without MORE it has ended: call again. */
  recvMultishot(socket: Handle, tag: Tag, row: number): void
  /** Where a provided buffer's bytes are; it stays the caller's until `releaseProvided`. */
  providedPage(bufferId: number): number
  releaseProvided(bufferId: number): void
  /** Adds a range to the list that the next `sendSegments` or `writeSegments` takes (at most SEGMENTS_MAX). */
  segment(page: number, deltaBytes: number, lengthBytes: number): void
  send(socket: Handle, page: number, deltaBytes: number, lengthBytes: number, tag: Tag, row: number): void
  /**
   * One gathered send of the segments listed since the last gathered operation. `lazy`: nothing waits for its success, which may then come only when
   * something else completes or a turn has waited in vain: one turn less per send.
   */
  sendSegments(socket: Handle, tag: Tag, row: number, lazy?: boolean): void

  // ---- files ---------------------------------------------------------------------------------------------------------
  /** Synchronous; off the hot path. O_DIRECT where the file system really has it, else buffered. */
  openFile(options: OpenFileOptions): OpenedFile
  /** `crcIndex` >= 0: when the read completes in full, the CRC-32C of each 4 KiB page is stored in `crcs` from that index on. */
  read(file: Handle, offsetBytes: number, page: number, deltaBytes: number, lengthBytes: number, crcIndex: number, tag: Tag, row: number): void
  write(file: Handle, offsetBytes: number, page: number, deltaBytes: number, lengthBytes: number, tag: Tag, row: number): void
  /** One gathered write of the segments listed since the last gathered operation. `sync`: what it wrote is on stable storage when it completes. */
  writeSegments(file: Handle, offsetBytes: number, sync: boolean, tag: Tag, row: number): void
  /** Everything whose completion was dispatched before this call is on stable storage when it completes with 0. */
  fdatasync(file: Handle, tag: Tag, row: number): void
  /**
   * Reserves the space of that range (at most ALLOCATE_BYTES_MAX): once it has completed with 0, no write there ends with ENOSPC. What the range
   * holds stays, and so does the size of the file. -ENOSPC or -EDQUOT: there is not enough; some of the range may have its space now. -EOPNOTSUPP:
   * this file system has no such thing, nor has a block device. Done by a thread of the kernel: it holds up no turn.
   */
  allocate(file: Handle, offsetBytes: number, lengthBytes: number, tag: Tag, row: number): void
  /** Results of `read` with a crcIndex. The owner of an index range is whoever allocated the request row it belongs to. */
  readonly crcs: Uint32Array
  /** Reserves `count` entries of `crcs` for good (at construction); returns the first index. */
  reserveCrcs(count: number): number

  // ---- the rest ------------------------------------------------------------------------------------------------------
  /** result 0 after at least `delayMs`; -ECANCELED when cancelled. */
  timeout(delayMs: number, tag: Tag, row: number): void
  /** Cancels the timeouts of (tag, row). */
  cancelTimeout(tag: Tag, row: number): void
  /** Cancels the operations under way on a handle without closing it. */
  cancel(handle: Handle): void
  /** result 0 when closed and all its operations have completed. For a file also releases its lock. */
  close(handle: Handle, tag: Tag, row: number): void
  /** Called (in a turn) when another thread called this queue's wake function. One per queue. */
  onWake(handler: () => void): void

  /**
   * `handler` is called at the end of every turn, after all its completions were dispatched: the place to send what has gathered
   * (one gathered send per socket and turn). Several handlers are called in the order they were added.
   */
  onTurnEnd(handler: () => void): void
  /** Completions are being dispatched: what `onTurnEnd` was given will still be called before anything is submitted. */
  readonly dispatching: boolean

  /** Submit, wait up to `timeoutMs` (0 = do not wait) for at least one completion, dispatch. Returns how many were dispatched. Throws what a handler throws. */
  turn(timeoutMs: number): number
  /**
   * Set by whoever settles a promise from a completion handler ({@link AsyncIo}): the loop then lets microtasks and macrotasks run
   * before its next turn. A handler must not settle a promise without setting it.
   */
  asyncPending: boolean
  /** Operations prepared or in flight: zero at the end of a clean stop. */
  readonly inFlight: number
}
