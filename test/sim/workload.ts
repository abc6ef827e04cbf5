/**
 * Clients of a simulated cluster: each sits on one node, uses its volume layer as an export does, and tells the history what it did and saw.
 * The mixes are adversarial: few pages, many clients, overlapping, unaligned and block-crossing ranges, zeroes, flushes, FUA.
 */
import type { VolumeNumber } from '../../src/base/ids.ts'
import type { Prng } from '../../src/base/prng.ts'
import { type Done, WriteFlag } from '../../src/base/request.ts'
import { Status, statusName } from '../../src/base/status.ts'
import { BLOCK_BYTES, PAGE_BYTES, SECTOR_BYTES } from '../../src/base/units.ts'
import type { Tag } from '../../src/env/ioqueue.ts'
import type { SimProcess } from '../../src/env/sim/host.ts'
import type { SimIoQueue } from '../../src/env/sim/ioqueue.ts'
import type { VolumeLayer } from '../../src/volume/volume.ts'
import { type History, type OpenOp, writeStamps } from './history.ts'

/** Of what does not read, where nothing else is asked for. */
const FLUSH_SHARE = 0.12
const FUA_SHARE = 0.1

/** What a client does with volumes: the volume layer of a node, or whatever stands in front of it. */
export type SeatVolumes = Pick<VolumeLayer, 'read' | 'write' | 'zero' | 'zeroScratchPages' | 'trim' | 'flush' | 'open'> &
  Partial<Pick<VolumeLayer, 'orphan' | 'isHeld' | 'enter' | 'leave' | 'lossCount' | 'pastLossCount'>>

/** Where a client can sit: a running process with its volume layer. */
export interface ClientSeat {
  readonly process: SimProcess
  readonly queue: SimIoQueue
  readonly volumes: SeatVolumes
  /** False: its clock is off by more than the bound, so that it may serve without a lease. */
  readonly trusted?: () => boolean
}

export interface WorkloadOptions {
  readonly name: string
  readonly history: History
  readonly random: Prng
  readonly volume: VolumeNumber
  readonly sizeBytes: number
  readonly syncWhenWrite: boolean
  /** Operations in all, over all seats. */
  readonly opsMax: number
  /** Under way at one time. */
  readonly depth: number
  /** Part of the operations that read; the rest writes, zeroes and flushes. */
  readonly readShare: number
  /** Most operations meet on so many pages; unless given, on some around each border of blocks. */
  readonly hotPages?: number
  /** Share of operations on up to LARGE_SECTORS_MAX. */
  readonly largeShare?: number
  /** Share of the operations that zero which take a whole block, and so its space. */
  readonly removeShare?: number
  /** Share of operations on exactly one page. */
  readonly wholeShare?: number
  /** Of what does not read, the share that flushes. */
  readonly flushShare?: number
  /** Share of the writes with FUA. */
  readonly fuaShare?: number
  /** Mean pause between operations. */
  readonly thinkMs: number
  /** Often begins the next operation within the outcome of the last one, as an export does whose requests have waited for memory. */
  readonly isEager?: boolean
  /** Where something has taken so long, it gets up, as an initiator with several paths does, and sits down wherever `seat` says; otherwise it stays. */
  readonly patienceMs?: number | undefined
  /** A running node to sit on, or undefined while there is none. */
  readonly seat: () => ClientSeat | undefined
}

const OP_SECTORS_MAX = 64
const LARGE_SECTORS_MAX = 1024
const RESEAT_MS = 50
const EAGER_SHARE = 0.4
/** What may be true though all is well: no room, a page that every copy has lost, a loss that has to be told (by NBD as EIO, like anything else). */
const TRUTHS: ReadonlySet<number> = new Set([Status.INSUFFICIENT_SPACE, Status.BLOCK_CORRUPTED, Status.WRITE_FAILED, Status.READ_FAILED])

/** Starts of the few pages on which most operations meet: around the borders of blocks, where requests are split. */
function hotOffsets(sizeBytes: number): number[] {
  const offsets: number[] = []
  for (let block = 0; block * BLOCK_BYTES < sizeBytes; block++) {
    offsets.push(block * BLOCK_BYTES, block * BLOCK_BYTES + 5 * PAGE_BYTES)
    if (block > 0) offsets.push(block * BLOCK_BYTES - PAGE_BYTES)
  }
  return offsets
}

interface Running {
  readonly kind: 'read' | 'write' | 'flush'
  readonly open: OpenOp | undefined
  readonly page: number
  readonly calledMs: number
  readonly durable: boolean
  readonly done: Done
}

export class SimClient {
  readonly options: WorkloadOptions
  /** Operations begun. */
  begun = 0
  /** Ends by status, for the summary. */
  readonly ends = new Map<string, number>()
  longestMs = 0
  /** From when on all is well: what is begun since has to succeed. */
  wellSinceMs = Number.POSITIVE_INFINITY
  /** What did not. */
  readonly denied: string[] = []
  #seat: ClientSeat | undefined
  #seats = 0
  #running = new Map<number, Running>()
  /** Operations that it left behind when it got up, and their pages; -1: none. */
  readonly #left = new Map<number, { readonly page: number; readonly lengthBytes: number; readonly seat: ClientSeat }>()
  #nextRow = 0
  #hot: number[]
  #sizeBytes: number
  #stopped = false
  #forsaken = false
  #isBeginning = false
  /** Losses of unflushed writes that it has been told of, or that were before it sat down. */
  #losses = 0

  constructor(options: WorkloadOptions) {
    this.options = options
    this.#sizeBytes = options.sizeBytes
    this.#hot = hotOffsets(options.sizeBytes).slice(0, options.hotPages)
  }

  /** Its volume has grown. */
  grow(sizeBytes: number): void {
    this.#sizeBytes = sizeBytes
    this.#hot = hotOffsets(sizeBytes).slice(0, this.options.hotPages)
  }

  /** Its volume is being deleted: what is still answered means nothing. */
  forsake(): void {
    this.#stopped = true
    this.#forsaken = true
  }

  /** Whether an answer that comes now is a promise. */
  #counts(seat: ClientSeat): boolean {
    return !this.#forsaken && seat.trusted?.() !== false
  }

  get done(): boolean {
    return (this.#stopped || this.begun >= this.options.opsMax) && this.#running.size === 0
  }

  get underWay(): number {
    return this.#running.size
  }

  /** What it waits for, oldest first. */
  describe(): string {
    return [...this.#running.values()]
      .map((r) => `${r.kind} ${r.open ? `${r.open.id} at ${r.open.offsetBytes}+${r.open.lengthBytes}` : ''} since ${r.calledMs.toFixed(0)} ms`)
      .join(', ')
  }

  /** Begins nothing new; what is under way ends by itself. */
  stop(): void {
    this.#stopped = true
  }

  /** Call once; from then on it sits down wherever `seat` says, and again after its process has died. */
  start(world: { schedule(delayMs: number, label: string, fn: () => void): unknown }, writeLifeMs: number): void {
    const { random, history } = this.options
    const sit = () => {
      if (this.#stopped || this.begun >= this.options.opsMax) return
      const seat = this.options.seat()
      if (!seat?.process.alive) {
        world.schedule(RESEAT_MS * (0.5 + random.unit()), 'client looks for a seat', sit)
        return
      }
      this.#seat = seat
      this.#losses = seat.volumes.pastLossCount?.(this.options.volume) ?? 0
      const sitting = ++this.#seats
      const name = `${this.options.name}.${sitting}`
      history.seated(name, seat.process)
      const sitsHere = () => this.#seat === seat && this.#seats === sitting
      const tag: Tag = seat.queue.register(`client ${name}`, () => {
        if (sitsHere()) this.#step(seat, name, tag)
      })
      const getUp = () => {
        this.#seat = undefined
        history.clientDied(name, seat.process.world.nowMs + writeLifeMs)
        this.#running = new Map()
        world.schedule(RESEAT_MS * (0.5 + random.unit()), 'client looks for a seat', sit)
      }
      seat.process.onEnd(() => {
        if (sitsHere()) getUp()
      })
      const { patienceMs } = this.options
      const lookAtClock = () => {
        if (!sitsHere() || this.#stopped || patienceMs === undefined) return
        if (seat.process.state === 'running' && [...this.#running.values()].some(({ calledMs }) => seat.process.localNowMs - calledMs > patienceMs)) {
          for (const [row, { page, open, done }] of this.#running) {
            this.#left.set(row, { page, lengthBytes: open?.lengthBytes ?? 0, seat })
            seat.volumes.orphan!(done, row)
          }
          getUp()
        } else world.schedule(patienceMs * (0.2 + 0.3 * random.unit()), 'client looks at the clock', lookAtClock)
      }
      if (seat.volumes.orphan !== undefined) lookAtClock()
      for (let i = 0; i < this.options.depth; i++) seat.queue.timeout(random.unit() * this.options.thinkMs, tag, i)
    }
    sit()
  }

  #step(seat: ClientSeat, name: string, tag: Tag): void {
    const { random, opsMax, thinkMs, readShare, flushShare = FLUSH_SHARE, isEager = false } = this.options
    if (this.#stopped || this.begun >= opsMax) return
    const next = () => {
      if (this.#seat !== seat) return
      if (isEager && !this.#isBeginning && random.chance(EAGER_SHARE)) this.#step(seat, name, tag)
      else seat.queue.timeout(random.unit() * 2 * thinkMs, tag, 0)
    }
    // what it left behind takes room until it has ended
    if (this.#running.size + [...this.#left.values()].filter((left) => left.seat.process.alive).length >= this.options.depth) {
      next()
      return
    }
    if (seat.volumes.enter?.() === false) {
      next()
      return
    }
    this.begun++
    this.#isBeginning = true
    const dice = random.chance(readShare) ? 0 : random.unit()
    if (dice === 0) this.#read(seat, name, next)
    else if (dice < 0.75 - (flushShare - FLUSH_SHARE)) this.#write(seat, name, next)
    else if (dice < 1 - flushShare) this.#zero(seat, name, next)
    else this.#flush(seat, next)
    this.#isBeginning = false
  }

  #range(): { offsetBytes: number; lengthBytes: number } {
    const { random } = this.options
    const sizeBytes = this.#sizeBytes
    const { wholeShare = 0 } = this.options
    if (wholeShare > 0 && random.chance(wholeShare)) return { offsetBytes: random.pick(this.#hot), lengthBytes: PAGE_BYTES }
    const base = random.chance(0.9) ? random.pick(this.#hot) : random.below(sizeBytes / PAGE_BYTES) * PAGE_BYTES
    const offsetBytes = base + (random.chance(0.5) ? random.below(8) * SECTOR_BYTES : 0)
    const { largeShare = 0 } = this.options
    const isLarge = largeShare > 0 && random.chance(largeShare)
    const sectors = isLarge
      ? random.between(OP_SECTORS_MAX, LARGE_SECTORS_MAX)
      : random.chance(0.5)
        ? 8
        : random.chance(0.7)
          ? random.between(1, 16)
          : random.between(1, OP_SECTORS_MAX)
    return { offsetBytes, lengthBytes: Math.min(sectors * SECTOR_BYTES, sizeBytes - offsetBytes) }
  }

  #alloc(seat: ClientSeat, offsetBytes: number, lengthBytes: number): number {
    return seat.queue.arena.alloc((offsetBytes % PAGE_BYTES) + lengthBytes)
  }

  #begin(running: Running): number {
    const row = this.#nextRow++
    this.#running.set(row, running)
    return row
  }

  #notBegun(seat: ClientSeat, next: () => void): void {
    seat.volumes.leave?.()
    next()
  }

  #end(seat: ClientSeat, row: number, status: number): Running | undefined {
    seat.volumes.leave?.()
    const running = this.#running.get(row)
    if (!running) {
      const left = this.#left.get(row)
      if (left !== undefined) this.#free(seat, left.page, left.lengthBytes)
      this.#left.delete(row)
    }
    if (!running || this.#seat !== seat) return undefined
    this.#running.delete(row)
    this.#heedLoss(seat, running, status)
    const kind = `${running.kind} ${statusName(status)}`
    if (running.calledMs >= this.wellSinceMs && status !== Status.SUCCESS && !TRUTHS.has(status))
      this.denied.push(`${kind} at ${seat.process.localNowMs.toFixed(0)} ms`)
    this.ends.set(kind, (this.ends.get(kind) ?? 0) + 1)
    this.longestMs = Math.max(this.longestMs, seat.process.localNowMs - running.calledMs)
    return running
  }

  /** EIO of NBD may stand for a loss as well. */
  #heedLoss(seat: ClientSeat, { kind }: Running, status: number): void {
    const { history, volume } = this.options
    if (kind === 'read' || (status !== Status.WRITE_FAILED && status !== Status.READ_FAILED)) return
    history.toldOfLoss(volume, seat.process)
    // it may have grown by a block, which nobody was told of yet
    if (status === Status.WRITE_FAILED) history.assertLoss(volume, this.#sizeBytes + BLOCK_BYTES, seat.process.world.nowMs)
  }

  #read(seat: ClientSeat, name: string, next: () => void): void {
    const { history, volume } = this.options
    const { offsetBytes, lengthBytes } = this.#range()
    const page = this.#alloc(seat, offsetBytes, lengthBytes)
    if (page < 0) {
      this.#notBegun(seat, next)
      return
    }
    const open = history.beginRead({ client: name, volume, offsetBytes, lengthBytes, nowMs: seat.process.localNowMs })
    const calledMs = seat.process.localNowMs
    const readInto = (page: number): void => {
      const done: Done = (row, status) => {
        if (status === Status.BUFFER_LOST) {
          this.#free(seat, page, lengthBytes)
          const isWanted = !this.#left.delete(row) && this.#running.delete(row)
          const other = isWanted ? this.#alloc(seat, offsetBytes, lengthBytes) : -1
          if (other >= 0) {
            readInto(other)
            return
          }
          seat.volumes.leave?.()
          if (isWanted) {
            history.endRead(open, undefined, 0, seat.process.localNowMs)
            next()
          }
          return
        }
        const running = this.#end(seat, row, status)
        if (!running) return
        const bytes = status === Status.SUCCESS && this.#counts(seat) ? seat.queue.arena.bytes : undefined
        history.endRead(open, bytes, page * PAGE_BYTES + (offsetBytes % PAGE_BYTES), seat.process.localNowMs)
        this.#free(seat, page, lengthBytes)
        next()
      }
      const row = this.#begin({ kind: 'read', open, page, calledMs, durable: false, done })
      seat.volumes.read(volume, offsetBytes, lengthBytes, page, done, row)
    }
    readInto(page)
  }

  /** As an export does: not before a disk that hangs has given it back. */
  #free(seat: ClientSeat, page: number, lengthBytes: number): void {
    if (page < 0) return
    if (seat.volumes.isHeld?.(page, Math.ceil(lengthBytes / PAGE_BYTES) + 1) !== true) seat.queue.arena.free(page as never)
    else seat.process.schedule(100, 'a kept buffer', () => this.#free(seat, page, lengthBytes))
  }

  /** Whether a write has FUA, and so, or by its volume, is durable when it is acknowledged. */
  #drawFlag(): { flag: number; durable: boolean } {
    const { random, syncWhenWrite, fuaShare = FUA_SHARE } = this.options
    const fua = random.chance(fuaShare)
    return { flag: fua ? WriteFlag.FUA : WriteFlag.NONE, durable: syncWhenWrite || fua }
  }

  #write(seat: ClientSeat, name: string, next: () => void): void {
    const { history, volume } = this.options
    const { offsetBytes, lengthBytes } = this.#range()
    const page = this.#alloc(seat, offsetBytes, lengthBytes)
    if (page < 0) {
      this.#notBegun(seat, next)
      return
    }
    const { flag, durable } = this.#drawFlag()
    const open = history.beginWrite({ client: name, volume, offsetBytes, lengthBytes, nowMs: seat.process.localNowMs })
    writeStamps(seat.queue.arena.bytes, page * PAGE_BYTES + (offsetBytes % PAGE_BYTES), open)
    const done: Done = (row, status) => this.#written(seat, row, status, next)
    const row = this.#begin({ kind: 'write', open, page, calledMs: seat.process.localNowMs, durable, done })
    seat.volumes.write(volume, offsetBytes, lengthBytes, page, flag, done, row)
  }

  #zero(seat: ClientSeat, name: string, next: () => void): void {
    const { history, volume, random, removeShare = 0 } = this.options
    if (removeShare > 0 && random.chance(removeShare)) {
      this.#removeBlock(seat, name, next)
      return
    }
    let { offsetBytes, lengthBytes } = this.#range()
    const isTrim = random.chance(0.5)
    if (isTrim) {
      const end = Math.floor((offsetBytes + lengthBytes) / PAGE_BYTES) * PAGE_BYTES
      offsetBytes = Math.ceil(offsetBytes / PAGE_BYTES) * PAGE_BYTES
      lengthBytes = end - offsetBytes
      if (lengthBytes <= 0) {
        this.#notBegun(seat, next)
        return
      }
    }
    const scratch = isTrim ? 0 : seat.volumes.zeroScratchPages(offsetBytes, lengthBytes)
    const page = scratch > 0 ? seat.queue.arena.alloc(scratch * PAGE_BYTES) : -1
    if (scratch > 0 && page < 0) {
      this.#notBegun(seat, next)
      return
    }
    const { flag, durable } = this.#drawFlag()
    const open = history.beginWrite({ client: name, volume, offsetBytes, lengthBytes, nowMs: seat.process.localNowMs, zero: true })
    const done: Done = (row, status) => this.#written(seat, row, status, next)
    const row = this.#begin({ kind: 'write', open, page, calledMs: seat.process.localNowMs, durable, done })
    if (isTrim) seat.volumes.trim(volume, offsetBytes, lengthBytes, flag, done, row)
    else seat.volumes.zero(volume, offsetBytes, lengthBytes, page, flag, done, row)
  }

  #removeBlock(seat: ClientSeat, name: string, next: () => void): void {
    const { history, volume, random } = this.options
    const block = Math.floor(random.pick(this.#hot) / BLOCK_BYTES)
    const nowMs = seat.process.localNowMs
    const { flag, durable } = this.#drawFlag()
    const open = history.beginBlockZero({ client: name, volume, block, nowMs })
    const done: Done = (row, status) => this.#written(seat, row, status, next)
    const row = this.#begin({ kind: 'write', open, page: -1, calledMs: nowMs, durable, done })
    if (random.chance(0.5)) seat.volumes.trim(volume, block * BLOCK_BYTES, BLOCK_BYTES, flag, done, row)
    else seat.volumes.zero(volume, block * BLOCK_BYTES, BLOCK_BYTES, -1, flag, done, row)
  }

  #written(seat: ClientSeat, row: number, status: number, next: () => void): void {
    const running = this.#end(seat, row, status)
    if (!running) return
    // EIO of NBD may stand for "nobody knows" as well
    const isUnknown = status === Status.NETWORK_TIMEOUT || status === Status.READ_FAILED
    const outcome = status === Status.SUCCESS && this.#counts(seat) ? 'ok' : 'failed'
    if (isUnknown) this.options.history.endUnknown(running.open!, seat.process.localNowMs)
    else this.options.history.endWrite(running.open!, outcome, seat.process.localNowMs, running.durable)
    this.#free(seat, running.page, running.open!.lengthBytes)
    next()
  }

  #flush(seat: ClientSeat, next: () => void): void {
    const { history, volume } = this.options
    const calledMs = seat.process.localNowMs
    const before = this.#losses
    const done: Done = (row, given) => {
      const status = this.#withLosses(seat, given, before)
      if (!this.#end(seat, row, status)) return
      if (status === Status.SUCCESS && this.#counts(seat)) history.flushed(volume, calledMs, seat.process)
      next()
    }
    const row = this.#begin({ kind: 'flush', open: undefined, page: -1, calledMs, durable: false, done })
    seat.volumes.flush(volume, done, row)
  }

  /** The volume layer tells one flush of its node of a loss; as an export, each client is told for itself, by every flush that it had asked for until then. */
  #withLosses(seat: ClientSeat, status: number, before: number): number {
    const losses = seat.volumes.lossCount?.(this.options.volume) ?? 0
    if (this.#seat !== seat || (status !== Status.SUCCESS && status !== Status.WRITE_FAILED)) return status
    this.#losses = losses
    return losses > before ? Status.WRITE_FAILED : status
  }
}
