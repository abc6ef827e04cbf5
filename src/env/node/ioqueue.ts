/**
 * The real {@link IoQueue}: io_uring through the addon. This file writes descriptors (16 int32 each, drawn in
 * native/io/src/layout.rs) into memory shared with the addon and dispatches the completions (4 int32 each) it finds there.
 * One call into the addon per turn; one more whenever the descriptors of a turn exceed their array.
 *
 * Everything is checked twice: here, so that the caller who is wrong gets the exception; in the addon, so that a mistake here
 * is an exception too and never touches foreign memory.
 *
 * Use on the thread that made it. `destroy` (or the end of the thread) cancels what is under way and waits for the kernel to let go.
 */

import { AssertionError, assert } from '../../base/assert.ts'
import { FlightEvent, FlightRecorder } from '../../base/flight.ts'
import { RequestWaits } from '../../base/latency.ts'
import { PAGE_BYTES } from '../../base/units.ts'
import {
  ALLOCATE_BYTES_MAX,
  type CompletionHandler,
  type Handle,
  IoError,
  type IoQueue,
  MORE,
  type OpenedFile,
  type OpenFileOptions,
  SEGMENTS_MAX,
  type Tag,
} from '../ioqueue.ts'
import { loadAddon, type NativeAddon, type NativeQueue } from '../native/addon.ts'
import { NativeArena } from './arena.ts'

const DESCRIPTOR_WORDS = 16
const COMPLETION_WORDS = 4
const SEGMENT_WORDS = 3
const DESCRIPTORS_MAX = 1024
const SEGMENTS_POOL = 8192
const COMPLETIONS_MAX = 256

const OP = 0
const HANDLE = 1
const TAG = 2
const ROW = 3
const PAGE = 4
const DELTA = 5
const LENGTH = 6
const OFFSET_LOW = 7
const OFFSET_HIGH = 8
const FLAGS = 9
const CRC_INDEX = 10
const SEGMENT = 11
const SEGMENT_COUNT = 12

const FLAG_WAIT_ALL = 1
const FLAG_SYNC = 2
const FLAG_LAZY = 4

const OP_RECV = 1
const OP_RECV_MULTISHOT = 2
const OP_SEND = 3
const OP_SEND_SEGMENTS = 4
const OP_ACCEPT = 5
const OP_CONNECT = 6
const OP_READ = 7
const OP_WRITE = 8
const OP_WRITE_SEGMENTS = 9
const OP_FDATASYNC = 10
const OP_TIMEOUT = 11
const OP_CANCEL_TIMEOUT = 12
const OP_CANCEL = 13
const OP_CLOSE = 14
const OP_RELEASE_PROVIDED = 15
const OP_ALLOCATE = 16
const OP_HANGUP = 17

const KIND_LISTENER = 1
const KIND_SOCKET = 2
const KIND_FILE = 3
const KIND_NAMES = ['nothing', 'a listener', 'a socket', 'a file']

const BACKLOG = 1024
const DELAY_MS_MAX = 2 ** 40
/** A disk has some ten. */
const TAGS_MAX = 4096
/** Unless the caller knows better. */
export const OPS_MAX = 32_768
const OPS_MAX_MAX = 2 ** 20
export const CRCS_MAX = 65_536

export interface NativeIoQueueOptions {
  readonly arenaBytes: number
  /** Buffers of recvMultishot: a power of two; each of `providedBytes`, whole pages. */
  readonly providedCount?: number
  readonly providedBytes?: number
  /** Sockets and files open at one time: 65536 at most. */
  readonly handlesMax?: number
  /** Operations under way at one time. */
  readonly opsMax?: number
  /** Entries of `crcs`. */
  readonly crcsMax?: number
  /** Back the arena with huge pages when the host has some (default). */
  readonly hugePages?: boolean
  /** Default: a small one of its own. */
  readonly flight?: FlightRecorder
}

/** Operations on files: how many, and how long all of them together took, ms (what is under way now is counted up to the last turn). */
export interface FileIoTotals {
  submitted: number
  completed: number
  failed: number
  /** From the turn that prepared them until the kernel had them. */
  enqueueMs: number
  /** From then on until their completion was seen. */
  waitMs: number
}

export class NativeIoQueue implements IoQueue {
  readonly arena: NativeArena
  readonly flight: FlightRecorder
  readonly waits = new RequestWaits()
  readonly fileIo: FileIoTotals = { submitted: 0, completed: 0, failed: 0, enqueueMs: 0, waitMs: 0 }
  readonly crcs: Uint32Array
  asyncPending = false
  dispatching = false
  inFlight = 0
  /** Give it to other threads: `wakeQueue(wakeId)` of the addon. */
  readonly wakeId: number
  readonly #addon: NativeAddon
  readonly #native: NativeQueue
  readonly #id: number
  readonly #clock: Float64Array
  readonly #descriptors: Int32Array
  readonly #segments: Int32Array
  readonly #completions: Int32Array
  readonly #live: Int32Array
  readonly #meta: Int32Array
  readonly #sendBusy: Uint8Array
  readonly #arenaBytes: number
  readonly #opsMax: number
  readonly #providedPages: number
  /** Per provided buffer: 1 while it is the caller's (set by the addon). */
  readonly #taken: Uint8Array
  readonly #handlers: CompletionHandler[] = []
  readonly #tagNames: string[] = []
  readonly #turnEnd: Array<() => void> = []
  #onWake: (() => void) | undefined
  #crcsReserved = 0
  #descriptorCount = 0
  /** Segments written since the last flush; those from #segmentFirst on wait for their gathered operation. */
  #segmentCount = 0
  #segmentFirst = 0
  #segmentBytes = 0
  /** Completions of this turn not yet dispatched (a handler that throws leaves the rest to the next turn). */
  #completionNext = 0
  #completionCount = 0
  #inTurn = false
  /** By tag: 1 when it is one of operations on files. */
  readonly #isFileTag = new Uint8Array(TAGS_MAX)
  /** Operations on files: prepared since the last submission; with the kernel; counted in `fileIo.waitMs` up to. */
  #filesPrepared = 0
  #filesInFlight = 0
  #filesCountedMs = 0

  constructor(options: NativeIoQueueOptions) {
    const { providedCount = 256, providedBytes = 16384, handlesMax = 16384, crcsMax = CRCS_MAX, hugePages = true } = options
    const opsMax = Math.min(OPS_MAX_MAX, options.opsMax ?? OPS_MAX)
    const providedPages = Math.ceil(providedBytes / PAGE_BYTES)
    const arenaPages = Math.ceil(options.arenaBytes / PAGE_BYTES)
    assert(
      arenaPages > providedCount * providedPages,
      `an arena of ${arenaPages} pages cannot hold ${providedCount} provided buffers of ${providedPages} pages`,
    )
    const addon = loadAddon()
    const native = orIoError(() => new addon.NativeQueue({ arenaPages, providedCount, providedPages, handlesMax, opsMax, crcsMax, hugePages }))
    const control = native.control()
    const at = native.offsets()
    this.flight = options.flight ?? new FlightRecorder()
    this.#addon = addon
    this.#native = native
    this.#id = native.id()
    this.#clock = new Float64Array(control, at.clock, 1)
    this.#descriptors = new Int32Array(control, at.descriptors, DESCRIPTORS_MAX * DESCRIPTOR_WORDS)
    this.#segments = new Int32Array(control, at.segments, SEGMENTS_POOL * SEGMENT_WORDS)
    this.#completions = new Int32Array(control, at.completions, COMPLETIONS_MAX * COMPLETION_WORDS)
    this.#live = new Int32Array(control, at.live, handlesMax)
    this.#meta = new Int32Array(control, at.meta, handlesMax)
    this.#sendBusy = new Uint8Array(control, at.sendBusy, handlesMax)
    this.crcs = new Uint32Array(control, at.crcs, crcsMax)
    this.arena = new NativeArena(addon, native, arenaPages, providedCount * providedPages)
    this.#arenaBytes = arenaPages * PAGE_BYTES
    this.#opsMax = opsMax
    this.#providedPages = providedPages
    this.#taken = new Uint8Array(control, at.taken, providedCount)
    this.wakeId = native.wakeId()
    this.register('wake', () => this.#onWake?.())
    this.#filesCountedMs = this.sampleClockMs()
  }

  register(name: string, handler: CompletionHandler): Tag {
    assert(this.#handlers.length < TAGS_MAX, `more than ${TAGS_MAX} tags`)
    this.#tagNames.push(name)
    return (this.#handlers.push(handler) - 1) as Tag
  }

  /** Of the tags, by number. */
  get tagNames(): readonly string[] {
    return this.#tagNames
  }

  get nowMs(): number {
    return this.#clock[0]!
  }

  sampleClockMs(): number {
    return this.#addon.queueSampleClock(this.#id)
  }

  // ---- sockets -------------------------------------------------------------------------------------------------------

  listenTcp(options: { host: string; port: number; backlog?: number }): { handle: Handle; port: number } {
    const { host, port, backlog = BACKLOG } = options
    assert(Number.isInteger(port) && port >= 0 && port <= 65535, `port ${port}`)
    return orIoError(() => this.#native.listenTcp(host, port, backlog)) as { handle: Handle; port: number }
  }

  listenUnix(options: { path: string; mode?: number }): Handle {
    return orIoError(() => this.#native.listenUnix(options.path, options.mode ?? 0o600, BACKLOG)) as Handle
  }

  accept(listener: Handle, tag: Tag, row: number): void {
    this.#check(listener, KIND_LISTENER)
    this.#descriptor(OP_ACCEPT, listener, tag, row)
  }

  connectTcp(options: { host: string; port: number }, tag: Tag, row: number): Handle {
    assert(Number.isInteger(options.port) && options.port > 0 && options.port <= 65535, `port ${options.port}`)
    const handle = orIoError(() => this.#native.socketTcp(options.host, options.port)) as Handle
    this.#descriptor(OP_CONNECT, handle, tag, row)
    return handle
  }

  connectUnix(options: { path: string }, tag: Tag, row: number): Handle {
    const handle = orIoError(() => this.#native.socketUnix(options.path)) as Handle
    this.#descriptor(OP_CONNECT, handle, tag, row)
    return handle
  }

  recv(socket: Handle, page: number, deltaBytes: number, lengthBytes: number, waitAll: boolean, tag: Tag, row: number): void {
    this.#check(socket, KIND_SOCKET)
    this.#checkRange(page, deltaBytes, lengthBytes)
    const d = this.#descriptor(OP_RECV, socket, tag, row)
    this.#range(d, page, deltaBytes, lengthBytes)
    this.#descriptors[d + FLAGS] = waitAll ? FLAG_WAIT_ALL : 0
  }

  hangup(socket: Handle, tag: Tag, row: number): void {
    this.#check(socket, KIND_SOCKET)
    this.#descriptor(OP_HANGUP, socket, tag, row)
  }

  silentMs(socket: Handle): number {
    this.#check(socket, KIND_SOCKET)
    return this.#addon.queueSilentMs(this.#id, socket)
  }

  recvMultishot(socket: Handle, tag: Tag, row: number): void {
    this.#check(socket, KIND_SOCKET)
    assert(this.#taken.length > 0, 'this io queue has no provided buffers')
    this.#descriptor(OP_RECV_MULTISHOT, socket, tag, row)
  }

  providedPage(bufferId: number): number {
    if (this.#taken[bufferId] !== 1) throw new AssertionError(`provided buffer ${bufferId} is not the caller's`)
    return bufferId * this.#providedPages
  }

  releaseProvided(bufferId: number): void {
    if (this.#taken[bufferId] !== 1) throw new AssertionError(`provided buffer ${bufferId} is not the caller's to release`)
    this.#taken[bufferId] = 0
    this.#descriptors[this.#slot(OP_RELEASE_PROVIDED) + ROW] = bufferId
  }

  segment(page: number, deltaBytes: number, lengthBytes: number): void {
    this.#checkRange(page, deltaBytes, lengthBytes)
    if (this.#segmentCount - this.#segmentFirst === SEGMENTS_MAX) throw new AssertionError(`more than ${SEGMENTS_MAX} segments in one gathered operation`)
    if (this.#segmentCount === SEGMENTS_POOL) this.#flush()
    const s = this.#segmentCount++ * SEGMENT_WORDS
    this.#segments[s] = page
    this.#segments[s + 1] = deltaBytes
    this.#segments[s + 2] = lengthBytes
    this.#segmentBytes += lengthBytes
  }

  send(socket: Handle, page: number, deltaBytes: number, lengthBytes: number, tag: Tag, row: number): void {
    this.#check(socket, KIND_SOCKET)
    this.#checkRange(page, deltaBytes, lengthBytes)
    this.#checkSender(socket)
    const d = this.#descriptor(OP_SEND, socket, tag, row)
    this.#descriptors[d + FLAGS] = 0
    this.#range(d, page, deltaBytes, lengthBytes)
  }

  sendSegments(socket: Handle, tag: Tag, row: number, lazy = false): void {
    this.#check(socket, KIND_SOCKET)
    this.#checkGathered()
    this.#checkSender(socket)
    const d = this.#descriptor(OP_SEND_SEGMENTS, socket, tag, row)
    this.#descriptors[d + FLAGS] = lazy ? FLAG_LAZY : 0
    this.#gathered(d)
  }

  // ---- files ---------------------------------------------------------------------------------------------------------

  openFile(options: OpenFileOptions): OpenedFile {
    const { path, createBytes = -1, lock, readOnly = false } = options
    assert(Number.isSafeInteger(createBytes), `createBytes ${createBytes}`)
    return orIoError(() => this.#native.openFile(path, createBytes, lock, readOnly)) as OpenedFile
  }

  read(file: Handle, offsetBytes: number, page: number, deltaBytes: number, lengthBytes: number, crcIndex: number, tag: Tag, row: number): void {
    this.#check(file, KIND_FILE)
    this.#checkRange(page, deltaBytes, lengthBytes)
    this.#checkOffset(file, offsetBytes, deltaBytes, lengthBytes)
    if (crcIndex !== -1 && !(crcIndex >= 0 && (crcIndex | 0) === crcIndex && crcIndex + Math.ceil(lengthBytes / PAGE_BYTES) <= this.#crcsReserved)) {
      throw new AssertionError(`checksum index ${crcIndex} is not reserved`)
    }
    const d = this.#fileDescriptor(OP_READ, file, tag, row)
    this.#range(d, page, deltaBytes, lengthBytes)
    this.#offset(d, offsetBytes)
    this.#descriptors[d + CRC_INDEX] = crcIndex
  }

  write(file: Handle, offsetBytes: number, page: number, deltaBytes: number, lengthBytes: number, tag: Tag, row: number): void {
    this.#check(file, KIND_FILE)
    this.#checkRange(page, deltaBytes, lengthBytes)
    this.#checkOffset(file, offsetBytes, deltaBytes, lengthBytes)
    const d = this.#fileDescriptor(OP_WRITE, file, tag, row)
    this.#range(d, page, deltaBytes, lengthBytes)
    this.#offset(d, offsetBytes)
  }

  writeSegments(file: Handle, offsetBytes: number, sync: boolean, tag: Tag, row: number): void {
    this.#check(file, KIND_FILE)
    this.#checkGathered()
    this.#checkOffset(file, offsetBytes, 0, this.#segmentBytes)
    const align = this.#meta[file & 0xffff]! >>> 8
    if (align > 1) {
      for (let s = this.#segmentFirst; s < this.#segmentCount; s++) {
        const delta = this.#segments[s * SEGMENT_WORDS + 1]!
        const length = this.#segments[s * SEGMENT_WORDS + 2]!
        if (((delta | length) & (align - 1)) !== 0) throw new AssertionError(`a segment of ${length} bytes at delta ${delta}: not multiples of ${align}`)
      }
    }
    const d = this.#fileDescriptor(OP_WRITE_SEGMENTS, file, tag, row)
    this.#descriptors[d + FLAGS] = sync ? FLAG_SYNC : 0
    this.#gathered(d)
    this.#offset(d, offsetBytes)
  }

  fdatasync(file: Handle, tag: Tag, row: number): void {
    this.#check(file, KIND_FILE)
    this.#fileDescriptor(OP_FDATASYNC, file, tag, row)
  }

  allocate(file: Handle, offsetBytes: number, lengthBytes: number, tag: Tag, row: number): void {
    this.#check(file, KIND_FILE)
    if (!(Number.isSafeInteger(offsetBytes) && offsetBytes >= 0 && Number.isInteger(lengthBytes) && lengthBytes > 0 && lengthBytes <= ALLOCATE_BYTES_MAX))
      throw new AssertionError(`an allocation of ${lengthBytes} bytes at ${offsetBytes}`)
    const d = this.#fileDescriptor(OP_ALLOCATE, file, tag, row)
    this.#descriptors[d + LENGTH] = lengthBytes
    this.#offset(d, offsetBytes)
  }

  reserveCrcs(count: number): number {
    const first = this.#crcsReserved
    assert(count >= 0 && first + count <= this.crcs.length, `more than ${this.crcs.length} checksums reserved`)
    this.#crcsReserved += count
    return first
  }

  // ---- the rest ------------------------------------------------------------------------------------------------------

  timeout(delayMs: number, tag: Tag, row: number): void {
    if (!(delayMs >= 0 && delayMs <= DELAY_MS_MAX)) throw new AssertionError(`a timeout of ${delayMs} ms`)
    this.#offset(this.#descriptor(OP_TIMEOUT, 0, tag, row), Math.ceil(delayMs * 1000))
  }

  cancelTimeout(tag: Tag, row: number): void {
    const d = this.#slot(OP_CANCEL_TIMEOUT)
    this.#descriptors[d + TAG] = tag
    this.#descriptors[d + ROW] = row
  }

  cancel(handle: Handle): void {
    this.#check(handle, 0)
    this.#descriptors[this.#slot(OP_CANCEL) + HANDLE] = handle
  }

  close(handle: Handle, tag: Tag, row: number): void {
    this.#check(handle, 0)
    this.#live[handle & 0xffff] = 0
    this.#descriptor(OP_CLOSE, handle, tag, row)
  }

  onWake(handler: () => void): void {
    assert(this.#onWake === undefined, 'the io queue has one wake handler')
    this.#onWake = handler
  }

  onTurnEnd(handler: () => void): void {
    this.#turnEnd.push(handler)
  }

  turn(timeoutMs: number): number {
    assert(!this.#inTurn, 'turn called by a handler')
    if (this.#completionNext === this.#completionCount) {
      this.#completionNext = 0
      this.#completionCount = 0
      if (this.#filesPrepared > 0) this.#countSubmitted()
      const prepared = this.#takeDescriptors()
      this.#completionCount = this.#addon.queueTurn(this.#id, prepared, timeoutMs)
      this.#keepSegments()
      const nowMs = this.#clock[0]!
      this.fileIo.waitMs += this.#filesInFlight * (nowMs - this.#filesCountedMs)
      this.#filesCountedMs = nowMs
      this.flight.setTime(nowMs)
      if (this.#completionCount > 0) this.flight.record(FlightEvent.TURN, this.#completionCount)
    }
    this.#inTurn = this.dispatching = true
    try {
      return this.#dispatch()
    } finally {
      this.#inTurn = this.dispatching = false
    }
  }

  /** Handles open, and operations and timeouts the engine holds; for tests of leaks. */
  nativeInUse(): { handles: number; operations: number } {
    return this.#native.inUse()
  }

  /** The arena lies on reserved huge pages. */
  get usesHugePages(): boolean {
    return this.#native.usesHugePages()
  }

  /** Cancels what is under way, waits for the kernel, closes every handle. Only `arena.bytes` may be used afterwards. */
  destroy(): void {
    this.#native.destroy()
  }

  #dispatch(): number {
    const completions = this.#completions
    const handlers = this.#handlers
    const first = this.#completionNext
    while (this.#completionNext < this.#completionCount) {
      const c = this.#completionNext++ * COMPLETION_WORDS
      const extra = completions[c + 3]!
      if ((extra & MORE) === 0) this.inFlight--
      const tag = completions[c]!
      const result = completions[c + 2]!
      if (this.#isFileTag[tag] === 1) {
        this.#filesInFlight--
        this.fileIo.completed++
        if (result < 0) this.fileIo.failed++
      }
      this.flight.record(FlightEvent.COMPLETION, tag, completions[c + 1]!, result)
      handlers[tag]!(completions[c + 1]!, result, extra)
    }
    this.dispatching = false
    for (let i = 0; i < this.#turnEnd.length; i++) this.#turnEnd[i]!()
    return this.#completionCount - first
  }

  // ---- descriptors ---------------------------------------------------------------------------------------------------

  /** An empty descriptor; returns the index of its first word. */
  #slot(op: number): number {
    if (this.#descriptorCount === DESCRIPTORS_MAX) this.#flush()
    const d = this.#descriptorCount++ * DESCRIPTOR_WORDS
    this.#descriptors[d + OP] = op
    return d
  }

  /** A descriptor of an operation that will complete. */
  #descriptor(op: number, handle: number, tag: Tag, row: number): number {
    if (this.inFlight >= this.#opsMax) throw new AssertionError(`more than ${this.#opsMax} operations under way`)
    if (!(tag > 0 && tag < this.#handlers.length)) throw new AssertionError(`tag ${tag} is not registered`)
    const d = this.#slot(op)
    this.#descriptors[d + HANDLE] = handle
    this.#descriptors[d + TAG] = tag
    this.#descriptors[d + ROW] = row
    this.inFlight++
    return d
  }

  #fileDescriptor(op: number, file: number, tag: Tag, row: number): number {
    const d = this.#descriptor(op, file, tag, row)
    this.#isFileTag[tag] = 1
    this.#filesPrepared++
    return d
  }

  /** Just before the kernel gets what was prepared since the last turn. */
  #countSubmitted(): void {
    const { fileIo } = this
    const preparedMs = this.#filesCountedMs
    const nowMs = this.sampleClockMs()
    fileIo.submitted += this.#filesPrepared
    fileIo.enqueueMs += this.#filesPrepared * (nowMs - preparedMs)
    fileIo.waitMs += this.#filesInFlight * (nowMs - preparedMs)
    this.#filesInFlight += this.#filesPrepared
    this.#filesPrepared = 0
    this.#filesCountedMs = nowMs
  }

  #range(d: number, page: number, deltaBytes: number, lengthBytes: number): void {
    this.#descriptors[d + PAGE] = page
    this.#descriptors[d + DELTA] = deltaBytes
    this.#descriptors[d + LENGTH] = lengthBytes
  }

  #offset(d: number, offset: number): void {
    this.#descriptors[d + OFFSET_LOW] = offset | 0
    this.#descriptors[d + OFFSET_HIGH] = Math.floor(offset / 0x1_0000_0000)
  }

  /** Hands the segments listed since the last gathered operation to descriptor `d`. */
  #gathered(d: number): void {
    this.#descriptors[d + SEGMENT] = this.#segmentFirst
    this.#descriptors[d + SEGMENT_COUNT] = this.#segmentCount - this.#segmentFirst
    this.#segmentFirst = this.#segmentCount
    this.#segmentBytes = 0
  }

  #takeDescriptors(): number {
    const count = this.#descriptorCount
    this.#descriptorCount = 0
    return count
  }

  /** The descriptors or segments of this turn fill their array: the addon takes them now, without waiting. */
  #flush(): void {
    this.#addon.queueFlush(this.#id, this.#takeDescriptors())
    this.#keepSegments()
  }

  /** Taken segments are gone; those of a gathered operation not yet prepared move to the front. */
  #keepSegments(): void {
    if (this.#segmentCount === 0) return
    this.#segments.copyWithin(0, this.#segmentFirst * SEGMENT_WORDS, this.#segmentCount * SEGMENT_WORDS)
    this.#segmentCount -= this.#segmentFirst
    this.#segmentFirst = 0
  }

  // ---- checks: no text is made unless one fails ------------------------------------------------------------------------

  #check(handle: Handle, kind: number): void {
    const slot = handle & 0xffff
    if (!(handle > 0 && this.#live[slot] === handle)) throw new AssertionError(`handle ${handle} is not open`)
    const actual = this.#meta[slot]! & 0xff
    if (kind !== 0 && actual !== kind) throw new AssertionError(`handle ${handle} is ${KIND_NAMES[actual]}, not ${KIND_NAMES[kind]}`)
  }

  #checkRange(page: number, deltaBytes: number, lengthBytes: number): void {
    if (
      (page | 0) !== page ||
      (deltaBytes | 0) !== deltaBytes ||
      (lengthBytes | 0) !== lengthBytes ||
      page < 0 ||
      deltaBytes < 0 ||
      lengthBytes <= 0 ||
      page * PAGE_BYTES + deltaBytes + lengthBytes > this.#arenaBytes
    ) {
      throw new AssertionError(`page ${page} + ${deltaBytes} + ${lengthBytes} bytes is not a range of the arena`)
    }
  }

  #checkSender(socket: Handle): void {
    const slot = socket & 0xffff
    if (this.#sendBusy[slot] !== 0) throw new AssertionError(`a second send on handle ${socket} while one is in flight`)
    this.#sendBusy[slot] = 1
  }

  #checkGathered(): void {
    if (this.#segmentCount === this.#segmentFirst) throw new AssertionError('a gathered operation without segments')
    if (this.#segmentBytes > 0x7fff_ffff) throw new AssertionError('more than 2 GiB in one gathered operation')
  }

  #checkOffset(file: Handle, offsetBytes: number, deltaBytes: number, lengthBytes: number): void {
    if (!(Number.isSafeInteger(offsetBytes) && offsetBytes >= 0)) throw new AssertionError(`file offset ${offsetBytes}`)
    const align = this.#meta[file & 0xffff]! >>> 8
    if (align > 1 && (offsetBytes % align !== 0 || deltaBytes % align !== 0 || lengthBytes % align !== 0)) {
      throw new AssertionError(`offset ${offsetBytes}, delta ${deltaBytes}, length ${lengthBytes}: not all multiples of ${align}`)
    }
  }
}

function orIoError<T>(call: () => T): T {
  try {
    return call()
  } catch (error) {
    const { code, message } = error as { code?: string; message: string }
    throw new IoError(code ?? 'EINVAL', message)
  }
}
