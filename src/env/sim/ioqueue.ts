/**
 * The io queue of a simulated process: the same interface as the native engine's, nastier than Linux.
 *
 * - Completions come late, and in any order relative to others (the pieces of one multishot receive keep theirs, as in the kernel).
 * - Reads, writes and receives are short; bytes arrive cut anywhere.
 * - A range that an operation will fill is scribbled over when the operation is prepared; what it sends or writes is taken at the end, not at
 *   the start. So a range touched while in flight gives wrong bytes, and a range freed meanwhile is an assertion.
 * - `sampleClockMs` may find that the process was away for a while (`pauses`).
 *
 * `turn(0)` inside an event dispatches what is ready. Outside of the world's loop, `turn(n)` runs the world until something is.
 * `runReactor` has a function called whenever completions are ready, and when nothing came for a while, as the real loop does.
 */
import { AssertionError, assert } from '../../base/assert.ts'
import { FlightRecorder } from '../../base/flight.ts'
import { RequestWaits } from '../../base/latency.ts'
import type { Prng } from '../../base/prng.ts'
import { PAGE_BYTES } from '../../base/units.ts'
import {
  ALLOCATE_BYTES_MAX,
  COMPLETIONS_PER_TURN,
  type CompletionHandler,
  Errno,
  type Handle,
  IoError,
  type IoQueue,
  MORE,
  type OpenedFile,
  type OpenFileOptions,
  SEGMENTS_MAX,
  type Tag,
} from '../ioqueue.ts'
import { checksum, SimArena } from './arena.ts'
import { removeFrom } from './bytes.ts'
import { type SimDisk, SimFile } from './disk.ts'
import type { SimProcess } from './host.ts'
import type { SimEnd, SimListener } from './network.ts'
import type { SimEvent, World } from './world.ts'

export interface QueueFaults {
  /** Chance that a completion becomes visible late, and by how much at most. */
  late: number
  lateMs: number
  /** Chance that the completions of a turn are dispatched in another order. */
  reorder: number
  /** Chance of a receive that gets less than is there. */
  shortRecv: number
  /** Chance that the process was away when it looks at the clock again, and for how long at most. */
  pauses: number
  pauseMs: number
}

export const CALM_QUEUE: QueueFaults = { late: 0.02, lateMs: 1, reorder: 0.3, shortRecv: 0.1, pauses: 0, pauseMs: 0 }

export interface SimIoQueueOptions {
  readonly process: SimProcess
  readonly name: string
  readonly arenaBytes?: number
  /** Memory for the arena, of that size and filled with zeros; without it fresh memory. */
  readonly arenaMemory?: () => Uint8Array<ArrayBuffer>
  readonly faults?: Partial<QueueFaults>
  /** Provided buffers of multishot receives. */
  readonly providedBuffers?: number
  readonly providedBytes?: number
}

const CRCS_MAX = 1 << 16
/** A flush takes the disk as long as a write of so many bytes. */
const FLUSH_COST_BYTES = 64 * 1024
const HANDLE_INDEX_BITS = 16
const IDLE_TURN_MS = 100
/** Sends and writes above this are held against their sum only now and then: it would be most of a simulation's time. */
const SUM_ALWAYS_BYTES = 16 * 1024
const SUM_EVERY = 4
/** Of a scribbled range, at most so much at each end is filled. */
const SCRIBBLE_BYTES = 4096

interface Range {
  readonly page: number
  readonly deltaBytes: number
  readonly lengthBytes: number
}

type OpKind = 'accept' | 'connect' | 'recv' | 'hangup' | 'multishot' | 'send' | 'read' | 'write' | 'sync' | 'allocate' | 'timeout' | 'close'

interface Op {
  readonly kind: OpKind
  readonly tag: Tag
  readonly row: number
  readonly entry: Entry | undefined
  readonly ranges: readonly Range[]
  /** Bytes of a receive so far, or of a send so far. */
  done: number
  readonly waitAll: boolean
  /** The last completion has been handed to the ready list. */
  over: boolean
  event: SimEvent | undefined
  /** Sum of what a send or a write was given (0: not taken): nobody may change it before it is done. */
  sum: number
  /** When the latest completion becomes visible, and how many are not yet (a multishot receive keeps its order). */
  readyAtMs: number
  latePending: number
}

interface Completion {
  readonly op: Op
  readonly result: number
  readonly extra: number
  readonly last: boolean
}

interface Entry {
  readonly handle: Handle
  readonly index: number
  kind: 'listener' | 'socket' | 'file' | 'free'
  listener: SimListener | undefined
  end: SimEnd | undefined
  file: SimFile | undefined
  openOptions: OpenFileOptions | undefined
  stopConnecting: (() => void) | undefined
  /** Prepared and not yet dispatched for the last time, in the order of their beginnings; seldom more than a few. */
  readonly ops: Op[]
  readonly receives: Op[]
  readonly accepts: Op[]
  send: Op | undefined
  hangup: Op | undefined
  /** When `silentMs` first found the way to the other host closed. */
  silentSinceMs: number | undefined
  closing: Op | undefined
  serving: boolean
  serveAgain: boolean
}

export class SimIoQueue implements IoQueue {
  readonly arena: SimArena
  readonly crcs = new Uint32Array(CRCS_MAX)
  readonly flight = new FlightRecorder()
  readonly waits = new RequestWaits()
  readonly process: SimProcess
  readonly name: string
  readonly faults: QueueFaults
  asyncPending = false
  dispatching = false
  inFlight = 0
  nowMs: number
  /** Completions dispatched so far. */
  dispatched = 0
  readonly #world: World
  readonly #random: Prng
  readonly #handlers: Array<{ name: string; handler: CompletionHandler }> = []
  readonly #entries: Entry[] = []
  readonly #freeIndexes: number[] = []
  readonly #generations: number[] = []
  #ready: Completion[] = []
  #wakeScheduled = false
  #woken = false
  readonly #wakeHandlers: Array<() => void> = []
  readonly #turnEndHandlers: Array<() => void> = []
  readonly #timeouts = new Set<Op>()
  #segments: Range[] = []
  #crcsReserved = 0
  readonly #providedPages: number[] = []
  readonly #providedFree: number[] = []
  readonly #providedBytes: number
  readonly #starved = new Set<Entry>()
  #reactor: (() => void) | undefined
  #lastTurnMs = 0
  #inTurn = false
  #sums = 0

  constructor(options: SimIoQueueOptions) {
    this.process = options.process
    this.#world = options.process.world
    this.name = options.name
    this.arena = new SimArena(options.arenaBytes ?? 16 * 1024 * 1024, options.arenaMemory?.())
    this.faults = { ...CALM_QUEUE, ...options.faults }
    this.#random = options.process.random(`queue ${options.name}`)
    this.nowMs = options.process.bootMs()
    this.#providedBytes = options.providedBytes ?? 16 * 1024
    for (let i = 0; i < (options.providedBuffers ?? 32); i++) {
      const page = this.arena.alloc(this.#providedBytes)
      assert(page >= 0, 'no room in the arena for the provided buffers')
      this.#providedPages.push(page)
      this.#providedFree.push(i)
    }
    this.process.onEnd(() => {
      this.#ready = []
    })
  }

  // ---- the loop ------------------------------------------------------------------------------------------------------
  register(name: string, handler: CompletionHandler): Tag {
    this.#handlers.push({ name, handler })
    return (this.#handlers.length - 1) as Tag
  }

  /** From now on `fn` runs (it takes a turn) when completions are ready, and after `idleMs` without one. */
  runReactor(fn: () => void, idleMs: number = IDLE_TURN_MS): void {
    assert(this.#reactor === undefined, `${this.name} has its reactor`)
    this.#reactor = fn
    const idle = () => {
      const sinceMs = this.#world.nowMs - this.#lastTurnMs
      if (sinceMs >= idleMs) this.#runReactor()
      this.process.schedule(Math.max(1, idleMs - (this.#world.nowMs - this.#lastTurnMs)), 'idle turn', idle)
    }
    this.process.schedule(0, 'first turn', idle)
  }

  sampleClockMs(): number {
    if (this.faults.pauses > 0 && this.#random.chance(this.faults.pauses)) this.process.pause(this.#random.unit() * this.faults.pauseMs)
    const bootMs = this.process.bootMs()
    if (bootMs > this.nowMs) this.nowMs = bootMs
    return this.nowMs
  }

  turn(timeoutMs: number): number {
    assert(!this.#inTurn, 'a turn within a turn')
    if (!this.#world.delivering && timeoutMs > 0 && !this.#readable()) this.#world.runSync(() => this.#readable(), timeoutMs)
    const bootMs = this.process.bootMs()
    if (bootMs > this.nowMs) this.nowMs = bootMs
    this.#lastTurnMs = this.#world.nowMs
    this.#inTurn = this.dispatching = true
    let count = 0
    try {
      if (this.#woken) {
        this.#woken = false
        for (const handler of this.#wakeHandlers) handler()
      }
      const batch = this.#ready.length > COMPLETIONS_PER_TURN ? this.#ready.splice(0, COMPLETIONS_PER_TURN) : this.#ready
      if (batch === this.#ready) this.#ready = []
      if (batch.length > 1 && this.#random.chance(this.faults.reorder)) this.#shuffle(batch)
      for (let i = 0; i < batch.length; i++) {
        if (!this.process.alive) break
        count++
        try {
          this.#dispatch(batch[i]!)
        } catch (error) {
          this.#ready.unshift(...batch.slice(i + 1))
          throw error
        }
      }
      this.dispatching = false
      if (this.process.alive) for (const handler of this.#turnEndHandlers) handler()
    } finally {
      this.#inTurn = this.dispatching = false
      if (this.asyncPending) this.#world.asyncPending = true
      if (this.#ready.length > 0 || this.#woken) this.#wake()
    }
    return count
  }

  onWake(handler: () => void): void {
    this.#wakeHandlers.push(handler)
  }

  /** What another thread of this process calls. */
  wake(): void {
    this.#woken = true
    this.#wake()
  }

  onTurnEnd(handler: () => void): void {
    this.#turnEndHandlers.push(handler)
  }

  #readable(): boolean {
    return this.#ready.length > 0 || this.#woken
  }

  #wake(): void {
    if (this.#wakeScheduled) return
    this.#wakeScheduled = true
    this.process.schedule(this.#random.unit() * 0.01, 'turn', () => {
      this.#wakeScheduled = false
      if (this.#reactor && this.#readable()) this.#runReactor()
    })
  }

  #runReactor(): void {
    this.#lastTurnMs = this.#world.nowMs
    this.#reactor!()
    if (this.asyncPending) {
      this.asyncPending = false
      this.#world.asyncPending = true
    }
  }

  #shuffle(batch: Completion[]): void {
    const movable: number[] = []
    for (let i = 0; i < batch.length; i++) if (batch[i]!.op.kind !== 'multishot') movable.push(i)
    for (let i = movable.length - 1; i > 0; i--) {
      const j = this.#random.below(i + 1)
      const a = movable[i]!
      const b = movable[j]!
      const swap = batch[a]!
      batch[a] = batch[b]!
      batch[b] = swap
    }
  }

  #dispatch(completion: Completion): void {
    const { op } = completion
    if (completion.last) {
      this.inFlight--
      for (const range of op.ranges) this.arena.own(range.page, range.deltaBytes, range.lengthBytes, -1)
      const { entry } = op
      if (entry) {
        removeFrom(entry.ops, op)
        if (op.kind === 'close') this.#release(entry)
        else this.#closeIfIdle(entry)
      }
    }
    this.dispatched++
    this.#handlers[op.tag]!.handler(op.row, completion.result, completion.extra)
  }

  // ---- operations ----------------------------------------------------------------------------------------------------
  #op(kind: OpKind, tag: Tag, row: number, entry: Entry | undefined, ranges: readonly Range[] = [], waitAll = false): Op {
    if (this.#handlers[tag] === undefined) throw new AssertionError(`tag ${tag} is not registered`)
    for (const range of ranges) this.arena.check(range.page, range.deltaBytes, range.lengthBytes)
    for (const range of ranges) this.arena.own(range.page, range.deltaBytes, range.lengthBytes, 1)
    const op: Op = { kind, tag, row, entry, ranges, done: 0, waitAll, over: false, event: undefined, sum: 0, readyAtMs: 0, latePending: 0 }
    entry?.ops.push(op)
    this.inFlight++
    return op
  }

  /** The kernel has a completion; it becomes visible a moment later. */
  #complete(op: Op, result: number, extra = 0, last = true): void {
    if (op.over) throw new AssertionError(`${op.kind} completes twice`)
    op.over = last
    if (op.event) this.#world.cancel(op.event)
    op.event = undefined
    if (!this.process.alive) return
    const { faults } = this
    const late = faults.late > 0 && this.#random.chance(faults.late) ? this.#random.unit() * faults.lateMs : 0
    const atMs = Math.max(op.readyAtMs, this.#world.nowMs + late)
    const completion: Completion = { op, result, extra, last }
    if (atMs <= this.#world.nowMs && op.latePending === 0) {
      this.#ready.push(completion)
      this.#wake()
      return
    }
    op.readyAtMs = atMs
    op.latePending++
    this.process.schedule(atMs - this.#world.nowMs, 'late', () => {
      op.latePending--
      this.#ready.push(completion)
      this.#wake()
    })
  }

  #completeSoon(op: Op, result: number, delayMs = 0.002): void {
    op.event = this.process.schedule(delayMs, op.kind, () => this.#complete(op, result))
  }

  #open(kind: 'listener' | 'socket' | 'file'): Entry {
    const index = this.#freeIndexes.shift() ?? this.#entries.length
    assert(index < 1 << HANDLE_INDEX_BITS, 'too many handles')
    const generation = ((this.#generations[index] ?? 0) + 1) & 0x3fff
    this.#generations[index] = generation
    const entry: Entry = {
      handle: ((generation << HANDLE_INDEX_BITS) | index) as Handle,
      index,
      kind,
      listener: undefined,
      end: undefined,
      file: undefined,
      openOptions: undefined,
      stopConnecting: undefined,
      ops: [],
      receives: [],
      accepts: [],
      send: undefined,
      hangup: undefined,
      silentSinceMs: undefined,
      closing: undefined,
      serving: false,
      serveAgain: false,
    }
    this.#entries[index] = entry
    return entry
  }

  #entry(handle: Handle, kind?: 'listener' | 'socket' | 'file'): Entry {
    const entry = this.#entries[handle & ((1 << HANDLE_INDEX_BITS) - 1)]
    if (entry === undefined || entry.handle !== handle || entry.kind === 'free') throw new AssertionError(`handle ${handle} is not open`)
    if (kind !== undefined && entry.kind !== kind) throw new AssertionError(`handle ${handle} is a ${entry.kind}, not a ${kind}`)
    if (entry.closing !== undefined) throw new AssertionError(`handle ${handle} is being closed`)
    return entry
  }

  // ---- sockets -------------------------------------------------------------------------------------------------------
  /** The stream behind a socket, in its kernel; undefined while it connects. For faults that are aimed at one connection. */
  endOf(socket: Handle): SimEnd | undefined {
    return this.#entry(socket, 'socket').end
  }

  listenTcp(options: { host: string; port: number; backlog?: number }): { handle: Handle; port: number } {
    const { host } = this.process
    const anyAddress = options.host === '0.0.0.0' || options.host === '::'
    if (!anyAddress && host.network.hostAt(host, options.host) !== host) {
      throw new IoError('EADDRNOTAVAIL', `listen ${options.host}:${options.port}: not an address of ${host.name}`)
    }
    const port = options.port || host.network.freePort(host)
    const entry = this.#open('listener')
    try {
      entry.listener = host.network.listen(this.process, `${host.address}:${port}`, () => this.#serveAccepts(entry), options.backlog ?? 128)
    } catch (error) {
      this.#release(entry)
      throw error
    }
    return { handle: entry.handle, port }
  }

  listenUnix(options: { path: string; mode?: number }): Handle {
    const { host } = this.process
    const entry = this.#open('listener')
    try {
      entry.listener = host.network.listen(this.process, `${host.address} unix ${options.path}`, () => this.#serveAccepts(entry), 128)
    } catch (error) {
      this.#release(entry)
      throw error
    }
    return entry.handle
  }

  accept(listener: Handle, tag: Tag, row: number): void {
    const entry = this.#entry(listener, 'listener')
    entry.accepts.push(this.#op('accept', tag, row, entry))
    this.process.schedule(0, 'accept', () => this.#serveAccepts(entry))
  }

  connectTcp(options: { host: string; port: number }, tag: Tag, row: number): Handle {
    const { host } = this.process
    const to = host.network.hostAt(host, options.host)
    return this.#connect(to ? `${to.address}:${options.port}` : '', to, tag, row)
  }

  connectUnix(options: { path: string }, tag: Tag, row: number): Handle {
    const { host } = this.process
    return this.#connect(`${host.address} unix ${options.path}`, host, tag, row)
  }

  #connect(key: string, to: SimProcess['host'] | undefined, tag: Tag, row: number): Handle {
    const entry = this.#open('socket')
    const op = this.#op('connect', tag, row, entry)
    entry.stopConnecting = this.process.host.network.connect(this.process, to, key, (end, result) => {
      entry.stopConnecting = undefined
      if (op.over || !this.process.alive) {
        end?.close()
        return
      }
      if (end) this.#adopt(entry, end)
      this.#complete(op, result)
    })
    return entry.handle
  }

  #adopt(entry: Entry, end: SimEnd): void {
    entry.end = end
    end.onChange = () => {
      if (this.process.state === 'running') this.#serveSocket(entry)
    }
    this.process.onThaw(() => this.#serveSocket(entry))
  }

  #serveAccepts(entry: Entry): void {
    const { listener } = entry
    while (listener?.open && this.process.alive && entry.accepts.length > 0 && listener.waiting.length > 0) {
      const end = listener.waiting.shift()!
      const op = entry.accepts.shift()!
      const socket = this.#open('socket')
      this.#adopt(socket, end)
      this.#complete(op, socket.handle)
    }
  }

  recv(socket: Handle, page: number, deltaBytes: number, lengthBytes: number, waitAll: boolean, tag: Tag, row: number): void {
    const entry = this.#entry(socket, 'socket')
    const range = { page, deltaBytes, lengthBytes }
    const op = this.#op('recv', tag, row, entry, [range], waitAll)
    this.#scribble(range)
    this.#receive(entry, op)
  }

  hangup(socket: Handle, tag: Tag, row: number): void {
    const entry = this.#entry(socket, 'socket')
    assert(entry.hangup === undefined, `two looks for the end of one connection (${this.#handlers[tag]?.name})`)
    entry.hangup = this.#op('hangup', tag, row, entry)
    this.process.schedule(0, 'hangup', () => this.#serveSocket(entry))
  }

  /** From the first look on that finds the way closed: a little less than in the world. */
  silentMs(socket: Handle): number {
    const entry = this.#entry(socket, 'socket')
    const { end } = entry
    const isOpen = end === undefined || (end.network.passes(end.host, end.other.host) && end.network.passes(end.other.host, end.host))
    if (isOpen) entry.silentSinceMs = undefined
    else entry.silentSinceMs ??= this.#world.nowMs
    return this.#world.nowMs - (entry.silentSinceMs ?? this.#world.nowMs)
  }

  recvMultishot(socket: Handle, tag: Tag, row: number): void {
    const entry = this.#entry(socket, 'socket')
    this.#receive(entry, this.#op('multishot', tag, row, entry))
  }

  #receive(entry: Entry, op: Op): void {
    entry.receives.push(op)
    if (!entry.end || entry.end.inboxBytes > 0 || entry.end.ended || entry.end.error) this.process.schedule(0, 'receive', () => this.#serveSocket(entry))
  }

  providedPage(bufferId: number): number {
    const page = this.#providedPages[bufferId]
    assert(page !== undefined, `no provided buffer ${bufferId}`)
    return page
  }

  releaseProvided(bufferId: number): void {
    const page = this.providedPage(bufferId)
    if (this.#providedFree.includes(bufferId)) throw new AssertionError(`provided buffer ${bufferId} released twice`)
    this.arena.bytes.fill(0xdb, page * PAGE_BYTES, page * PAGE_BYTES + this.#providedBytes)
    this.#providedFree.push(bufferId)
    for (const entry of [...this.#starved]) {
      this.#starved.delete(entry)
      this.#serveSocket(entry)
    }
  }

  segment(page: number, deltaBytes: number, lengthBytes: number): void {
    if (this.#segments.length >= SEGMENTS_MAX) throw new AssertionError(`more than ${SEGMENTS_MAX} segments`)
    this.arena.check(page, deltaBytes, lengthBytes)
    this.#segments.push({ page, deltaBytes, lengthBytes })
  }

  send(socket: Handle, page: number, deltaBytes: number, lengthBytes: number, tag: Tag, row: number): void {
    this.#send(socket, [{ page, deltaBytes, lengthBytes }], tag, row)
  }

  sendSegments(socket: Handle, tag: Tag, row: number): void {
    const segments = this.#takeSegments()
    this.#send(socket, segments, tag, row)
  }

  #takeSegments(): Range[] {
    assert(this.#segments.length > 0, 'a gathered operation without segments')
    const segments = this.#segments
    this.#segments = []
    return segments
  }

  #send(socket: Handle, ranges: readonly Range[], tag: Tag, row: number): void {
    const entry = this.#entry(socket, 'socket')
    if (entry.send !== undefined) throw new AssertionError(`two sends in flight on one socket (${this.#handlers[tag]?.name})`)
    const op = this.#op('send', tag, row, entry, ranges)
    entry.send = op
    op.sum = this.#sumNow(ranges)
    op.event = this.process.schedule(0.001 + this.#random.unit() * 0.004, 'send', () => {
      op.event = undefined
      this.#serveSend(entry)
    })
  }

  #serveSocket(entry: Entry): void {
    if (entry.kind !== 'socket' || !entry.end || !this.process.alive) return
    // taking bytes gives the peer room, which may at once send and take in turn: that leads back here
    if (entry.serving) {
      entry.serveAgain = true
      return
    }
    entry.serving = true
    do {
      entry.serveAgain = false
      this.#serveReceives(entry, entry.end)
      if (entry.send && !entry.send.event) this.#serveSend(entry)
      if (entry.hangup && (entry.end.ended || entry.end.error)) {
        const op = entry.hangup
        entry.hangup = undefined
        this.#complete(op, 0)
      }
    } while (entry.serveAgain && entry.end)
    entry.serving = false
  }

  #serveReceives(entry: Entry, end: SimEnd): void {
    while (entry.receives.length > 0 && !entry.closing) {
      const op = entry.receives[0]!
      if (end.inboxBytes > 0) {
        if (op.kind === 'multishot') {
          const buffer = this.#providedFree.shift()
          if (buffer === undefined) {
            entry.receives.shift()
            this.#complete(op, -Errno.ENOBUFS)
            continue
          }
          const n = end.take(this.arena.bytes, this.#providedPages[buffer]! * PAGE_BYTES, this.#shorter(this.#providedBytes))
          // The kernel may end a multishot after any piece
          const last = this.#random.chance(0.01)
          if (last) entry.receives.shift()
          this.#complete(op, n, (buffer << 1) | (last ? 0 : MORE), last)
          continue
        }
        const range = op.ranges[0]!
        const wanted = range.lengthBytes - op.done
        const n = end.take(this.arena.bytes, range.page * PAGE_BYTES + range.deltaBytes + op.done, op.waitAll ? wanted : this.#shorter(wanted))
        op.done += n
        if (op.waitAll && op.done < range.lengthBytes) continue
        entry.receives.shift()
        this.#complete(op, op.done)
        continue
      }
      if (end.error) {
        entry.receives.shift()
        this.#complete(op, op.done > 0 ? op.done : -end.error)
      } else if (end.ended) {
        entry.receives.shift()
        this.#complete(op, op.done)
      } else return
    }
  }

  #shorter(lengthBytes: number): number {
    return lengthBytes > 1 && this.#random.chance(this.faults.shortRecv) ? this.#random.between(1, lengthBytes) : lengthBytes
  }

  #serveSend(entry: Entry): void {
    const op = entry.send
    const { end } = entry
    if (!op || op.over) return
    if (!end || end.error || end.gone) {
      entry.send = undefined
      this.#complete(op, -(end?.error === Errno.ETIMEDOUT ? Errno.ETIMEDOUT : end?.error && this.#random.chance(0.5) ? Errno.ECONNRESET : Errno.EPIPE))
      return
    }
    let position = 0
    for (const range of op.ranges) {
      let within = Math.max(0, op.done - position)
      while (within < range.lengthBytes) {
        const n = Math.min(end.room, range.lengthBytes - within, 64 * 1024)
        if (n <= 0) return
        const start = range.page * PAGE_BYTES + range.deltaBytes + within
        op.done += n
        within += n
        end.push(this.arena.bytes, start, n)
      }
      position += range.lengthBytes
    }
    entry.send = undefined
    this.#assertUnchanged(op)
    this.#complete(op, op.done)
  }

  /** 0: not taken. */
  #sumNow(ranges: readonly Range[]): number {
    let total = 0
    for (const range of ranges) total += range.lengthBytes
    return total > SUM_ALWAYS_BYTES && this.#sums++ % SUM_EVERY !== 0 ? 0 : this.#sumOf(ranges)
  }

  #sumOf(ranges: readonly Range[]): number {
    let sum = 0
    for (const { page, deltaBytes, lengthBytes } of ranges) sum = this.arena.sum(page, deltaBytes, lengthBytes, sum)
    return sum
  }

  #assertUnchanged(op: Op): void {
    if (op.sum === 0 || this.#sumOf(op.ranges) === op.sum) return
    const ranges = op.ranges.map((range) => `${range.page}+${range.deltaBytes} ${range.lengthBytes}`).join(', ')
    assert(false, `${this.name}: what a ${op.kind} of "${this.#handlers[op.tag]?.name}" was given was changed while in flight (${ranges})`)
  }

  // ---- files ---------------------------------------------------------------------------------------------------------
  openFile(options: OpenFileOptions): OpenedFile {
    const { host } = this.process
    const disk = host.diskOf(options.path)
    let file = host.files.get(options.path)
    if (disk.gone) throw new IoError('EIO', `open ${options.path}: input/output error`)
    if (!file) {
      if (options.createBytes === undefined) throw new IoError('ENOENT', `open ${options.path}: no such file or directory`)
      file = new SimFile(disk, options.path, options.createBytes)
      host.files.set(options.path, file)
    }
    if (options.createBytes !== undefined) file.sizeBytes = Math.max(file.sizeBytes, options.createBytes)
    if (options.lock) {
      const holder = file.lockedBy
      // Requests under way keep the lock of a process that has ended
      if (holder && (holder.alive || disk.underWayOf(holder) > 0)) throw new IoError('EWOULDBLOCK', `open ${options.path}: locked by another process`)
      file.lockedBy = this.process
    }
    const entry = this.#open('file')
    entry.file = file
    entry.openOptions = options
    return {
      handle: entry.handle,
      sizeBytes: file.sizeBytes,
      isBlockDevice: disk.options.isBlockDevice ?? false,
      direct: disk.options.direct ?? false,
      alignmentBytes: disk.options.direct ? (disk.options.alignmentBytes ?? 512) : 1,
      volatile: disk.options.volatile ?? false,
    }
  }

  read(handle: Handle, offsetBytes: number, page: number, deltaBytes: number, lengthBytes: number, crcIndex: number, tag: Tag, row: number): void {
    const entry = this.#entry(handle, 'file')
    const file = entry.file!
    const { disk } = file
    const range = { page, deltaBytes, lengthBytes }
    const ranges = [range]
    if (!Number.isSafeInteger(offsetBytes) || offsetBytes < 0) throw new AssertionError(`read at ${offsetBytes}`)
    if (crcIndex !== -1 && (crcIndex < 0 || crcIndex + Math.ceil(lengthBytes / PAGE_BYTES) > this.#crcsReserved)) {
      throw new AssertionError(`read: crc index ${crcIndex} is not reserved`)
    }
    if (this.#misaligned(file, offsetBytes, ranges)) throw new AssertionError(`read at ${offsetBytes}: not aligned for direct I/O`)
    const op = this.#op('read', tag, row, entry, ranges)
    this.#scribble(range)
    disk.request(this.process, 'read', lengthBytes, () => {
      if (this.#fails(disk, disk.faults.readEio)) {
        this.#complete(op, -Errno.EIO)
        return
      }
      const wanted = this.#partial(file, lengthBytes)
      const start = page * PAGE_BYTES + deltaBytes
      const result = file.readInto(offsetBytes, this.arena.bytes, start, wanted)
      if (crcIndex >= 0 && result === lengthBytes) {
        for (let done = 0, i = crcIndex; done < lengthBytes; done += PAGE_BYTES, i++) {
          this.crcs[i] = checksum(this.arena.bytes, start + done, start + Math.min(lengthBytes, done + PAGE_BYTES))
        }
      }
      this.#complete(op, result)
    })
  }

  write(handle: Handle, offsetBytes: number, page: number, deltaBytes: number, lengthBytes: number, tag: Tag, row: number): void {
    this.#write(handle, offsetBytes, [{ page, deltaBytes, lengthBytes }], false, tag, row)
  }

  writeSegments(handle: Handle, offsetBytes: number, sync: boolean, tag: Tag, row: number): void {
    this.#write(handle, offsetBytes, this.#takeSegments(), sync, tag, row)
  }

  #fails({ gone, shown }: SimDisk, chance: number): boolean {
    const isFailure = gone || this.#random.chance(chance)
    if (isFailure) shown.failures++
    return isFailure
  }

  /** Where a write goes that its disk misdirects. */
  #astray(file: SimFile, offsetBytes: number, lengthBytes: number): number {
    const { misdirectWithin } = file.disk
    const { fromBytes, toBytes } =
      misdirectWithin === undefined ? { fromBytes: 0, toBytes: file.sizeBytes } : (misdirectWithin() ?? { fromBytes: 0, toBytes: 0 })
    if (offsetBytes < fromBytes || offsetBytes + lengthBytes > toBytes) return offsetBytes
    const page = this.#random.below(Math.ceil((toBytes - fromBytes) / PAGE_BYTES))
    const at = Math.max(0, Math.min(toBytes - lengthBytes, fromBytes + page * PAGE_BYTES))
    file.disk.spoiled = true
    file.disk.shown.astray++
    this.#world.note('misdirected write', () => `${file.path} ${offsetBytes} -> ${at}`)
    return at
  }

  #write(handle: Handle, offsetBytes: number, ranges: readonly Range[], sync: boolean, tag: Tag, row: number): void {
    const entry = this.#entry(handle, 'file')
    assert(entry.openOptions!.readOnly !== true, 'write to a file opened for reading')
    if (!Number.isSafeInteger(offsetBytes) || offsetBytes < 0) throw new AssertionError(`write at ${offsetBytes}`)
    const file = entry.file!
    const { disk } = file
    if (this.#misaligned(file, offsetBytes, ranges)) throw new AssertionError(`write at ${offsetBytes}: not aligned for direct I/O`)
    const op = this.#op('write', tag, row, entry, ranges)
    let total = 0
    for (const range of ranges) total += range.lengthBytes
    op.sum = this.#sumNow(ranges)
    let at = offsetBytes
    const apply = (limitBytes: number): number => {
      if (disk.faults.misdirect > 0 && this.#random.chance(disk.faults.misdirect)) at = this.#astray(file, offsetBytes, total)
      let done = 0
      for (const range of ranges) {
        const n = Math.min(range.lengthBytes, limitBytes - done)
        if (n <= 0) break
        const result = file.writeFrom(at + done, this.arena.bytes, range.page * PAGE_BYTES + range.deltaBytes, n)
        if (result < 0) return done > 0 ? done : result
        done += result
        if (result < n) break
      }
      return done
    }
    disk.request(
      this.process,
      sync ? 'synced write' : 'write',
      total + (sync ? FLUSH_COST_BYTES : 0),
      () => {
        if (this.process.alive) this.#assertUnchanged(op)
        if (this.#fails(disk, disk.faults.writeEio)) {
          // Whatever part of it reached the medium
          if (!disk.gone && this.#random.chance(0.5)) apply(this.#aligned(file, this.#random.below(total + 1)))
          this.#complete(op, -Errno.EIO)
          return
        }
        const result = apply(this.#partial(file, total))
        if (sync && result > 0) {
          if (this.#fails(disk, disk.faults.flushEio)) {
            this.#complete(op, -Errno.EIO)
            return
          }
          file.persisted(at, result)
        }
        this.#complete(op, result)
      },
      () => {
        apply(this.#aligned(file, this.#random.below(total + 1)))
      },
    )
  }

  fdatasync(handle: Handle, tag: Tag, row: number): void {
    const entry = this.#entry(handle, 'file')
    const file = entry.file!
    const { disk } = file
    const op = this.#op('sync', tag, row, entry)
    if (disk.options.volatile) {
      this.#completeSoon(op, 0)
      return
    }
    const serial = file.beginFlush()
    disk.request(this.process, 'flush', FLUSH_COST_BYTES, () => {
      if (this.#fails(disk, disk.faults.flushEio)) {
        this.#complete(op, -Errno.EIO)
        return
      }
      file.flushed(serial)
      this.#complete(op, 0)
    })
  }

  allocate(handle: Handle, offsetBytes: number, lengthBytes: number, tag: Tag, row: number): void {
    const entry = this.#entry(handle, 'file')
    assert(entry.openOptions!.readOnly !== true, 'an allocation in a file opened for reading')
    const whole = Number.isSafeInteger(offsetBytes) && offsetBytes >= 0 && Number.isInteger(lengthBytes)
    assert(whole && lengthBytes > 0 && lengthBytes <= ALLOCATE_BYTES_MAX, `an allocation of ${lengthBytes} bytes at ${offsetBytes}`)
    const file = entry.file!
    const { disk } = file
    const op = this.#op('allocate', tag, row, entry)
    disk.request(this.process, 'allocate', 0, () => this.#complete(op, disk.gone ? -Errno.EIO : file.allocate(offsetBytes, lengthBytes)))
  }

  reserveCrcs(count: number): number {
    const first = this.#crcsReserved
    assert(first + count <= CRCS_MAX, `more than ${CRCS_MAX} checksum results`)
    this.#crcsReserved += count
    return first
  }

  #misaligned(file: SimFile, offsetBytes: number, ranges: readonly Range[]): boolean {
    const { options } = file.disk
    if (!options.direct) return false
    const alignment = options.alignmentBytes ?? 512
    if (offsetBytes % alignment) return true
    for (const range of ranges) if (range.deltaBytes % alignment || range.lengthBytes % alignment) return true
    return false
  }

  #aligned(file: SimFile, lengthBytes: number): number {
    return lengthBytes - (lengthBytes % (file.disk.options.alignmentBytes ?? 512))
  }

  #partial(file: SimFile, lengthBytes: number): number {
    if (lengthBytes <= 512 || !this.#random.chance(file.disk.faults.short)) return lengthBytes
    return Math.max(this.#aligned(file, this.#random.below(lengthBytes)), file.disk.options.alignmentBytes ?? 512)
  }

  // ---- the rest ------------------------------------------------------------------------------------------------------
  timeout(delayMs: number, tag: Tag, row: number): void {
    const op = this.#op('timeout', tag, row, undefined)
    this.#timeouts.add(op)
    const lateMs = this.#random.chance(0.1) ? this.#random.unit() * 2 : this.#random.unit() * 0.1
    // One step of the world's time more, so that rounding never makes it early
    op.event = this.process.schedule(this.process.host.trueSpanMs(Math.max(0, delayMs)) + lateMs + 2 / 1024, 'timeout', () => {
      this.#timeouts.delete(op)
      this.#complete(op, 0)
    })
  }

  cancelTimeout(tag: Tag, row: number): void {
    for (const op of this.#timeouts) {
      if (op.tag !== tag || op.row !== row) continue
      this.#timeouts.delete(op)
      this.#complete(op, -Errno.ECANCELED)
    }
  }

  cancel(handle: Handle): void {
    this.#cancelOps(this.#entry(handle))
  }

  close(handle: Handle, tag: Tag, row: number): void {
    const entry = this.#entry(handle)
    const closing = this.#op('close', tag, row, entry)
    this.#cancelOps(entry)
    entry.closing = closing
    if (entry.listener) entry.listener.close()
    entry.stopConnecting?.()
    if (entry.end) {
      entry.end.onChange = undefined
      const end = entry.end
      this.process.schedule(0, 'close', () => end.close())
    }
    this.process.schedule(0.001, 'close', () => this.#closeIfIdle(entry))
  }

  #cancelOps(entry: Entry): void {
    for (const op of entry.ops) {
      if (op.over || op.kind === 'read' || op.kind === 'write' || op.kind === 'sync' || op.kind === 'allocate' || op.kind === 'close') continue
      entry.stopConnecting?.()
      this.#complete(op, op.kind === 'recv' && op.done > 0 ? op.done : -Errno.ECANCELED)
    }
    entry.receives.length = 0
    entry.accepts.length = 0
    entry.send = undefined
    entry.hangup = undefined
  }

  #closeIfIdle(entry: Entry): void {
    const { closing } = entry
    if (!closing || closing.over || entry.ops.length > 1) return
    this.#complete(closing, 0)
  }

  #release(entry: Entry): void {
    if (entry.file && entry.openOptions?.lock && entry.file.lockedBy === this.process) entry.file.lockedBy = undefined
    entry.kind = 'free'
    this.#freeIndexes.push(entry.index)
  }

  #scribble(range: Range): void {
    const { bytes } = this.arena
    const start = range.page * PAGE_BYTES + range.deltaBytes
    const end = start + range.lengthBytes
    const noise = 0x80 | this.#random.below(128)
    bytes.fill(noise, start, Math.min(end, start + SCRIBBLE_BYTES))
    if (end - start > SCRIBBLE_BYTES) bytes.fill(noise, Math.max(start + SCRIBBLE_BYTES, end - SCRIBBLE_BYTES), end)
  }
}
