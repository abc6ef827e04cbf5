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
import { Errno, type Handle, type IoQueue } from '../env/ioqueue.ts'
import { PENDING } from './block-table.ts'
import type { Deferred, Done } from './deferred.ts'
import { dataOffset, type Geometry, journalOffset } from './layout.ts'
import { PAGE_LOST, PageFlag } from './store.ts'

const READS_MAX = 2048
/** Fragments under way at one time: of one page, and of up to LONG_PAGES. Each owns as many CRC results. */
const SINGLES_MAX = 4096
const LONGS_MAX = 512
const LONG_PAGES = 16
const READ_TRIES_MAX = 1000
/** What one disk takes of an io queue: places for checksums, and operations under way (some more are writes and the background work). */
export const CRCS_PER_DISK = SINGLES_MAX + LONGS_MAX * LONG_PAGES
export const OPERATIONS_PER_DISK = SINGLES_MAX + LONGS_MAX + 256

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

/** Pieces of reads, each contiguous on the disk and of at most `pagesMax` pages. */
function fragments(queue: IoQueue, rowsMax: number, pagesMax: number, onRead: (row: number, result: number) => void) {
  const rows = columns('store read fragment', rowsMax, {
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
  return {
    rows,
    pagesMax,
    tag: queue.register('store read', onRead),
    crcBase: queue.reserveCrcs(rowsMax * pagesMax),
    expected: new Uint32Array(rowsMax * pagesMax),
  }
}
type Fragments = ReturnType<typeof fragments>

export class Reader {
  /** Counted by the watch over hanging I/O. */
  tick = 0
  failed = false
  corruptedCount = 0
  errorCount = 0
  readonly #o: ReaderOptions
  readonly #queue: IoQueue
  readonly #reads = columns('store read', READS_MAX, { caller: i32, waiting: i32, status: i32, extra: i32, epoch: i32 })
  readonly #done: Array<Done | undefined> = new Array(READS_MAX)
  readonly #singles: Fragments
  readonly #longs: Fragments
  /** Of the read being looked at: pieces of one page, and longer ones. */
  #singlesNeeded = 0
  #longsNeeded = 0
  #epoch = 0
  readonly #inEpoch = [0, 0]
  #quiesced: (() => void) | undefined
  readonly #endedWaiters: Array<() => void> = []

  constructor(options: ReaderOptions) {
    this.#o = options
    this.#queue = options.queue
    this.#singles = fragments(options.queue, SINGLES_MAX, 1, (row, result) => this.#onRead(this.#singles, row, result))
    this.#longs = fragments(options.queue, LONGS_MAX, LONG_PAGES, (row, result) => this.#onRead(this.#longs, row, result))
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
    const lost = this.#count(places, base, row, firstPage, pageCount)
    if (lost >= 0) {
      this.corruptedCount++
      deferred.add(done, caller, Status.BLOCK_CORRUPTED, lost)
      return
    }
    if (this.#singlesNeeded > SINGLES_MAX - this.#singles.rows.inUse || this.#longsNeeded > LONGS_MAX - this.#longs.rows.inUse) {
      deferred.add(done, caller, Status.BUSY, 0)
      return
    }
    const bad = this.#fillFromMemory(places, base, firstPage, pageCount, bufferPage)
    const needed = this.#singlesNeeded + this.#longsNeeded
    if (bad >= 0) {
      deferred.add(done, caller, Status.BLOCK_CORRUPTED, bad)
      return
    }
    if (needed === 0) {
      deferred.add(done, caller, Status.SUCCESS, 0)
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

  /** Resolves when no read is under way: never, if the disk hangs for good. */
  async ended(): Promise<void> {
    while (this.#reads.inUse > 0) await new Promise<void>((resolve) => this.#endedWaiters.push(resolve))
  }

  oldestTick(): number {
    let oldest = Number.POSITIVE_INFINITY
    for (const { rows } of [this.#singles, this.#longs]) {
      if (rows.inUse > 0) for (let f = 0; f < rows.rowsMax; f++) if (rows.isUsed(f)) oldest = Math.min(oldest, rows.startedTick[f]!)
    }
    return oldest
  }

  /** Byte offset on the disk, -1 for pages that are not read from it. */
  #offsetOf(places: PagePlaces, at: number, row: number, page: number): number {
    if (places.flags[at] !== PageFlag.DATA) return -1
    const loc = places.loc[at]!
    if (loc === 0) return dataOffset(this.#o.geometry, row, page)
    return loc >= PENDING ? -1 : journalOffset(this.#o.geometry, loc)
  }

  /** Counts the pieces the read takes. Returns a page that is lost, or -1. */
  #count(places: PagePlaces, base: number, row: number, firstPage: number, pageCount: number): number {
    this.#singlesNeeded = this.#longsNeeded = 0
    const end = firstPage + pageCount
    for (let page = firstPage; page < end; ) {
      if (places.flags[base + page]! & PAGE_LOST) return page
      const length = this.#pieceAt(places, base, row, page, end)
      if (length === 1) this.#singlesNeeded++
      else if (length > 1) this.#longsNeeded++
      page += Math.max(length, 1)
    }
    return -1
  }

  /** Pages from `page` on that follow each other on the disk, LONG_PAGES at most; 0 when that page is not read from it. */
  #pieceAt(places: PagePlaces, base: number, row: number, page: number, end: number): number {
    const offset = this.#offsetOf(places, base + page, row, page)
    if (offset < 0) return 0
    let length = 1
    while (length < LONG_PAGES && page + length < end && this.#offsetOf(places, base + page + length, row, page + length) === offset + length * PAGE_BYTES)
      length++
    return length
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
    const end = firstPage + pageCount
    for (let page = firstPage; page < end; ) {
      const length = this.#pieceAt(places, base, row, page, end)
      if (length === 0) {
        page++
        continue
      }
      const table = length === 1 ? this.#singles : this.#longs
      const { rows } = table
      const f = rows.alloc()
      for (let i = 0; i < length; i++) table.expected[f * table.pagesMax + i] = places.crc[base + page + i]!
      rows.read[f] = read
      rows.firstPage[f] = page
      rows.pages[f] = length
      rows.bufferPage[f] = bufferPage + page - firstPage
      rows.offset[f] = this.#offsetOf(places, base + page, row, page)
      rows.arrived[f] = rows.tries[f] = 0
      this.#request(table, f)
      page += length
    }
  }

  #request(table: Fragments, f: number): void {
    const { rows } = table
    const arrived = rows.arrived[f]!
    const crcIndex = arrived === 0 ? table.crcBase + f * table.pagesMax : -1
    rows.startedTick[f] = this.tick
    const offset = rows.offset[f]! + arrived * PAGE_BYTES
    this.#queue.read(this.#o.file, offset, rows.bufferPage[f]! + arrived, 0, (rows.pages[f]! - arrived) * PAGE_BYTES, crcIndex, table.tag, f)
  }

  #onRead(table: Fragments, f: number, result: number): void {
    const { rows } = table
    const read = rows.read[f]!
    const pages = rows.pages[f]!
    const retry = result === -Errno.EINTR || result === -Errno.EAGAIN
    if (result < 0 && !retry) this.#refuse(read, Status.READ_FAILED, rows.firstPage[f]!)
    else {
      const whole = rows.arrived[f] === 0 && result === pages * PAGE_BYTES
      if (!retry) rows.arrived[f] = rows.arrived[f]! + Math.floor(result / PAGE_BYTES)
      if (rows.arrived[f]! < pages) {
        if (++rows.tries[f]! <= READ_TRIES_MAX) {
          this.#request(table, f)
          return
        }
        this.#refuse(read, Status.READ_FAILED, rows.firstPage[f]!)
      } else this.verify(table, f, read, pages, whole)
    }
    rows.free(f)
    if (--this.#reads.waiting[read]! === 0) this.#finish(read)
  }

  /** What came is what was written, page by page; the first that is not is refused. */
  verify(table: Fragments, f: number, read: number, pages: number, whole: boolean): void {
    const { crcs, arena } = this.#queue
    const expected = f * table.pagesMax
    const from = table.crcBase + expected
    for (let i = 0; i < pages; i++) {
      const crc = whole ? crcs[from + i]! : arena.crc32c(table.rows.bufferPage[f]! + i, 0, PAGE_BYTES)
      if (crc === table.expected[expected + i]) continue
      this.#refuse(read, Status.BLOCK_CORRUPTED, table.rows.firstPage[f]! + i)
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
    if (this.#endedWaiters.length > 0 && this.#reads.inUse === 0) {
      this.#queue.asyncPending = true
      for (const resolve of this.#endedWaiters.splice(0)) resolve()
    }
    done(caller, status, extra)
  }
}
