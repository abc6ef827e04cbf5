/**
 * Reads: one row per read, one fragment per contiguous piece on the disk. Each page's CRC, as the index had it when the read was called, is
 * compared with what arrived.
 *
 * Why nothing moves under a read: the destage overwrites pages of an extent, and the writer reuses a journal segment, only after `quiesce`,
 * which waits for every read that began before it was called. So a read returns exactly the content as of its call, never a newer one.
 */
import { columns, f64, i32 } from '../base/columns.ts'
import { Status } from '../base/status.ts'
import { PAGE_BYTES } from '../base/units.ts'
import { Errno, type Handle, type IoQueue, type Tag } from '../env/ioqueue.ts'
import { PAGE_LOST, PENDING } from './block-table.ts'
import type { Deferred, Done } from './deferred.ts'
import { dataOffset, type Geometry, journalOffset } from './layout.ts'
import { PageFlag } from './store.ts'

const READS_MAX = 2048
const FRAGMENTS_MAX = 2048
/** 128 KiB: also the stride of a fragment's CRC results. */
const FRAGMENT_PAGES_MAX = 32
const READ_TRIES_MAX = 1000

/** Where pages are: columns of the block table, or of a capture. */
export interface PagePlaces {
  readonly crc: Uint32Array
  readonly loc: Uint32Array
  readonly flags: Uint8Array
}

export interface ReaderOptions {
  readonly queue: IoQueue
  readonly file: Handle
  readonly geometry: Geometry
  readonly deferred: Deferred
  /** Arena page with the content of a page at a pending place. */
  readonly pendingPayload: (loc: number, page: number) => number
  readonly onBusy: () => void
}

export class Reader {
  /** Counted by the watch over hanging I/O. */
  tick = 0
  failed = false
  corruptedCount = 0
  errorCount = 0
  readonly #o: ReaderOptions
  readonly #queue: IoQueue
  readonly #tag: Tag
  readonly #reads = columns('store read', READS_MAX, { caller: i32, waiting: i32, status: i32, extra: i32, epoch: i32 })
  readonly #done: Array<Done | undefined> = new Array(READS_MAX)
  readonly #frags = columns('store read fragment', FRAGMENTS_MAX, {
    read: i32,
    /** Page of the block. */
    firstPage: i32,
    pages: i32,
    bufferPage: i32,
    /** Pages that have arrived after a short read. */
    arrived: i32,
    tries: i32,
    startedTick: i32,
    offset: f64,
  })
  readonly #expected = new Uint32Array(FRAGMENTS_MAX * FRAGMENT_PAGES_MAX)
  readonly #crcBase: number
  #epoch = 0
  readonly #inEpoch = [0, 0]
  #quiesced: (() => void) | undefined

  constructor(options: ReaderOptions) {
    this.#o = options
    this.#queue = options.queue
    this.#tag = options.queue.register('store read', (row, result) => this.#onRead(row, result))
    this.#crcBase = options.queue.reserveCrcs(FRAGMENTS_MAX * FRAGMENT_PAGES_MAX)
  }

  get inUse(): number {
    return this.#reads.inUse
  }

  /** `base`: index of the block's page 0 in `places`; `row`: the block's extent. */
  read(places: PagePlaces, base: number, row: number, firstPage: number, pageCount: number, bufferPage: number, done: Done, caller: number): void {
    const { deferred } = this.#o
    if (this.failed) {
      deferred.add(done, caller, Status.READ_FAILED, 0)
      return
    }
    const needed = this.#fragmentsOf(places, base, row, firstPage, pageCount)
    if (needed < 0) {
      this.corruptedCount++
      deferred.add(done, caller, Status.BLOCK_CORRUPTED, -1 - needed)
      return
    }
    if (needed > FRAGMENTS_MAX - this.#frags.inUse) {
      deferred.add(done, caller, Status.BUSY, 0)
      return
    }
    const bad = this.#fillFromMemory(places, base, firstPage, pageCount, bufferPage)
    if (bad >= 0 || needed === 0) {
      deferred.add(done, caller, bad >= 0 ? Status.BLOCK_CORRUPTED : Status.SUCCESS, bad >= 0 ? bad : 0)
      return
    }
    const read = this.#reads.alloc()
    if (read < 0) {
      deferred.add(done, caller, Status.BUSY, 0)
      return
    }
    this.#reads.caller[read] = caller
    this.#reads.waiting[read] = needed
    this.#reads.status[read] = Status.SUCCESS
    this.#reads.extra[read] = 0
    this.#reads.epoch[read] = this.#epoch
    this.#done[read] = done
    this.#inEpoch[this.#epoch]!++
    this.#submit(read, places, base, row, firstPage, pageCount, bufferPage)
    this.#o.onBusy()
  }

  /** Never-written pages without a block. */
  zeros(pageCount: number, bufferPage: number, done: Done, caller: number): void {
    const at = bufferPage * PAGE_BYTES
    this.#queue.arena.bytes.fill(0, at, at + pageCount * PAGE_BYTES)
    this.#o.deferred.add(done, caller, this.failed ? Status.READ_FAILED : Status.SUCCESS, 0)
  }

  /** Resolves when every read that began before this call has ended. One at a time. */
  async quiesce(): Promise<void> {
    const old = this.#epoch
    this.#epoch = 1 - old
    if (this.#inEpoch[old] === 0) return
    await new Promise<void>((resolve) => {
      this.#quiesced = resolve
    })
  }

  oldestTick(): number {
    let oldest = Number.POSITIVE_INFINITY
    if (this.#frags.inUse === 0) return oldest
    for (let f = 0; f < FRAGMENTS_MAX; f++) if (this.#frags.isUsed(f)) oldest = Math.min(oldest, this.#frags.startedTick[f]!)
    return oldest
  }

  /** Byte offset on the disk, -1 for pages that are not read from it. */
  #offsetOf(places: PagePlaces, at: number, row: number, page: number): number {
    if (places.flags[at] !== PageFlag.DATA) return -1
    const loc = places.loc[at]!
    if (loc === 0) return dataOffset(this.#o.geometry, row, page)
    return loc >= PENDING ? -1 : journalOffset(this.#o.geometry, loc)
  }

  /** Fragments the read takes, or -1 - page of a page that is lost. */
  #fragmentsOf(places: PagePlaces, base: number, row: number, firstPage: number, pageCount: number): number {
    let count = 0
    let length = 0
    let expected = -1
    for (let page = firstPage; page < firstPage + pageCount; page++) {
      const at = base + page
      if (places.flags[at]! & PAGE_LOST) return -1 - page
      const offset = this.#offsetOf(places, at, row, page)
      if (offset < 0) expected = -1
      else {
        if (offset !== expected || length === FRAGMENT_PAGES_MAX) {
          count++
          length = 0
        }
        length++
        expected = offset + PAGE_BYTES
      }
    }
    return count
  }

  /** Zeros, and pages whose payload is still the caller's. Returns a page whose payload does not have its CRC, or -1. */
  #fillFromMemory(places: PagePlaces, base: number, firstPage: number, pageCount: number, bufferPage: number): number {
    const { arena } = this.#queue
    for (let page = firstPage; page < firstPage + pageCount; page++) {
      const at = base + page
      const to = (bufferPage + page - firstPage) * PAGE_BYTES
      if (places.flags[at] !== PageFlag.DATA) arena.bytes.fill(0, to, to + PAGE_BYTES)
      else if (places.loc[at]! >= PENDING) {
        const from = this.#o.pendingPayload(places.loc[at]!, page) * PAGE_BYTES
        arena.bytes.copyWithin(to, from, from + PAGE_BYTES)
        if (arena.crc32c(bufferPage + page - firstPage, 0, PAGE_BYTES) !== places.crc[at]) return page
      }
    }
    return -1
  }

  #submit(read: number, places: PagePlaces, base: number, row: number, firstPage: number, pageCount: number, bufferPage: number): void {
    const frags = this.#frags
    const end = firstPage + pageCount
    for (let page = firstPage; page < end; ) {
      const offset = this.#offsetOf(places, base + page, row, page)
      if (offset < 0) {
        page++
        continue
      }
      const f = frags.alloc()
      let length = 0
      do this.#expected[f * FRAGMENT_PAGES_MAX + length] = places.crc[base + page + length]!
      while (
        ++length < FRAGMENT_PAGES_MAX &&
        page + length < end &&
        this.#offsetOf(places, base + page + length, row, page + length) === offset + length * PAGE_BYTES
      )
      frags.read[f] = read
      frags.firstPage[f] = page
      frags.pages[f] = length
      frags.bufferPage[f] = bufferPage + page - firstPage
      frags.offset[f] = offset
      frags.arrived[f] = frags.tries[f] = 0
      this.#request(f)
      page += length
    }
  }

  #request(f: number): void {
    const frags = this.#frags
    const arrived = frags.arrived[f]!
    const crcIndex = arrived === 0 ? this.#crcBase + f * FRAGMENT_PAGES_MAX : -1
    frags.startedTick[f] = this.tick
    this.#queue.read(
      this.#o.file,
      frags.offset[f]! + arrived * PAGE_BYTES,
      frags.bufferPage[f]! + arrived,
      0,
      (frags.pages[f]! - arrived) * PAGE_BYTES,
      crcIndex,
      this.#tag,
      f,
    )
  }

  #onRead(f: number, result: number): void {
    const frags = this.#frags
    const read = frags.read[f]!
    const pages = frags.pages[f]!
    const retry = result === -Errno.EINTR || result === -Errno.EAGAIN
    if (result < 0 && !retry) this.#refuse(read, Status.READ_FAILED, frags.firstPage[f]!)
    else {
      const whole = frags.arrived[f] === 0 && result === pages * PAGE_BYTES
      if (!retry) frags.arrived[f] = frags.arrived[f]! + Math.floor(result / PAGE_BYTES)
      if (frags.arrived[f]! < pages) {
        if (++frags.tries[f]! <= READ_TRIES_MAX) {
          this.#request(f)
          return
        }
        this.#refuse(read, Status.READ_FAILED, frags.firstPage[f]!)
      } else this.#verify(f, read, pages, whole)
    }
    frags.free(f)
    if (--this.#reads.waiting[read]! === 0) this.#finish(read)
  }

  #verify(f: number, read: number, pages: number, whole: boolean): void {
    const { crcs, arena } = this.#queue
    const expected = f * FRAGMENT_PAGES_MAX
    const from = this.#crcBase + expected
    for (let i = 0; i < pages; i++) {
      const crc = whole ? crcs[from + i]! : arena.crc32c(this.#frags.bufferPage[f]! + i, 0, PAGE_BYTES)
      if (crc === this.#expected[expected + i]) continue
      this.#refuse(read, Status.BLOCK_CORRUPTED, this.#frags.firstPage[f]! + i)
      return
    }
  }

  /** The first reason counts. */
  #refuse(read: number, status: number, page: number): void {
    if (status === Status.BLOCK_CORRUPTED) this.corruptedCount++
    else this.errorCount++
    if (this.#reads.status[read] !== Status.SUCCESS) return
    this.#reads.status[read] = status
    this.#reads.extra[read] = page
  }

  #finish(read: number): void {
    const reads = this.#reads
    const epoch = reads.epoch[read]!
    const done = this.#done[read]!
    const caller = reads.caller[read]!
    const status = this.failed ? Status.READ_FAILED : reads.status[read]!
    const extra = reads.extra[read]!
    this.#done[read] = undefined
    reads.free(read)
    if (--this.#inEpoch[epoch]! === 0 && epoch !== this.#epoch && this.#quiesced !== undefined) {
      const resolve = this.#quiesced
      this.#quiesced = undefined
      this.#queue.asyncPending = true
      resolve()
    }
    done(caller, status, extra)
  }
}
