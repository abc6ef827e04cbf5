/**
 * The journal's writer: records are encoded straight into the descriptor of the batch that collects, their payload stays in the callers' pages,
 * and each batch is one gathered write. At most two are in flight; the next collects meanwhile (group commit).
 *
 *   descriptor pages: header | record | record | ...        payload pages, in the order of the records
 *
 * Invariants:
 * - A batch's place is fixed when it opens, in order, within one segment. Each segment starts with a checkpoint of `last`, the incomplete
 *   slots and the channel rows exactly as they were before the segment's first record.
 * - Staged and durable are told in order: batch n counts only when all before it have completed.
 * - A batch with a record that wants to be durable, and the start of a segment, are written with RWF_DSYNC: one request instead of two one after
 *   the other. Batches without wait for an fdatasync, which only a flush, the background work or a synced batch behind them asks for.
 * - A batch names the CRC of the one before, its generation and its number, so that a stale valid batch behind a torn one is never replayed.
 * - A segment is used again only after `freeUpTo`, which the destage calls when nothing in it is needed any more.
 */
import { assert } from '../base/assert.ts'
import { FlightEvent } from '../base/flight.ts'
import { Status } from '../base/status.ts'
import { PAGE_BYTES } from '../base/units.ts'
import { Errno, errnoName, type Handle, type IoQueue, type Tag } from '../env/ioqueue.ts'
import { type BlockTable, PENDING } from './block-table.ts'
import { type ChannelRows, ROW_WORDS, ROWS_MAX } from './channel-rows.ts'
import type { Deferred, Done } from './deferred.ts'
import { BATCH_MAGIC, BatchHeader, BatchKind, FORMAT_VERSION, type Geometry, journalOffset, PACKED_ROW_BYTES, segmentPages } from './layout.ts'

const DESCRIPTOR_PAGES = 4
const DESCRIPTOR_BYTES = DESCRIPTOR_PAGES * PAGE_BYTES
/** Payload of one batch. */
const BATCH_PAYLOAD_PAGES_MAX = 512
/** Gathered ranges of one batch, beside the descriptor. */
const BATCH_RANGES_MAX = 500
/** Batches not yet staged. */
const BATCHES_MAX = 512
const IN_FLIGHT_MAX = 2
/** Runs of pages whose bytes are not yet in the kernel; one per WRITE or ZERO record, one per run of an install. */
const RUNS_MAX = 8192
const FLUSHES_MAX = 4096
/** Runs that an install of one block may take beyond those of admitted records. */
const RUNS_RESERVED = 1100
/** A client's write waits while so many batches wait for the disk. */
const BATCHES_WAITING_MAX = 64
const WRITE_TRIES_MAX = 1000
/** Batches whose memory is kept while the disk has nothing to do. */
const DESCRIPTORS_KEPT = 16
/** A record may close one and begin another; those of the starts of sessions have not asked. */
const BATCHES_PER_RECORD = 4
const CHECKPOINT_BUFFERS = 2

class Batch {
  kind: number = BatchKind.RECORDS
  readonly descriptorPage: number
  /** Descriptor bytes filled so far, header included. */
  bytes = 0
  descriptorPages = 0
  payloadPages = 0
  recordCount = 0
  firstSeq = 0
  runFirst = 0
  runEnd = 0
  wantsDurable = false
  /** Written so that its completion means stable storage. */
  synced = false
  /** Journal page of the first descriptor page. */
  position = 0
  /** Pages to the end of the segment. */
  limitPages = 0
  segment = 0
  openedMs = 0
  writtenBytes = 0
  tries = 0
  inFlight = false
  done = false
  startedTick = 0
  rangeCount = 0
  readonly rangePage = new Int32Array(BATCH_RANGES_MAX)
  readonly rangePages = new Int32Array(BATCH_RANGES_MAX)
  slotCount = 0
  rowCount = 0

  constructor(descriptorPage: number) {
    this.descriptorPage = descriptorPage
  }
}

/** Rows of blocks that records of one segment changed. */
class Touched {
  rows = new Int32Array(64)
  count = 0

  add(row: number): void {
    if (this.count === this.rows.length) {
      const larger = new Int32Array(this.count * 2)
      larger.set(this.rows)
      this.rows = larger
    }
    this.rows[this.count++] = row
  }
}

/** Where the writer goes on after replay. */
export interface JournalPosition {
  readonly generation: number
  /** Number and CRC of the last batch that counts (0, 0 on a new journal). */
  readonly lastBatch: number
  readonly lastCrc: number
  /** Newest and oldest segment in use. */
  readonly headSegment: number
  readonly tailSegment: number
  readonly lastSeq: number
}

export interface JournalOptions {
  readonly queue: IoQueue
  readonly file: Handle
  readonly geometry: Geometry
  readonly journalUuid: Uint8Array
  /** Staged is durable: there is no medium below the kernel. */
  readonly volatile: boolean
  readonly table: BlockTable
  readonly rows: ChannelRows
  readonly lastHigh: Uint32Array
  readonly lastLow: Uint32Array
  /** 1: the slot's resync has not ended. */
  readonly incomplete: Uint8Array
  readonly deferred: Deferred
  readonly onStaged: (upTo: number) => void
  readonly onDurable: (upTo: number) => void
  readonly onFailed: (reason: string) => void
  /** There is more room than before. */
  readonly onRoom: () => void
  /** As `BlockTable.resolve`, for captures that hold the place. */
  readonly onResolved: (row: number, firstPage: number, pageCount: number, pending: number, loc: number, step: number) => void
  /** A new segment was begun: time to look whether old ones should be destaged. */
  readonly onSegment: () => void
  /** Some I/O is under way: the watch over hanging ones runs. */
  readonly onBusy: () => void
}

export class Journal {
  stagedSeq = 0
  durableSeq = 0
  nextSeq = 1
  failed = false
  /** Counted by the watch; I/O remembers the tick at which it began. */
  tick = 0
  /** Batches written, for the counters. */
  batchCount = 0

  readonly #o: JournalOptions
  readonly #queue: IoQueue
  readonly #view: DataView
  readonly #writeTag: Tag
  readonly #syncTag: Tag
  readonly #pagesPerSegment: number
  readonly #checkpointPages: number
  readonly #touched: Touched[] = []

  #generation = 0
  #lastBatch = 0
  #lastCrc = 0
  #headSegment = 0
  #tailSegment = 0
  #stagedSegment = 0
  /** Pages of the head segment given to closed batches. */
  #position = 0

  readonly #pool: Batch[] = []
  #collecting: Batch | null = null
  /** Closed batches by number & (BATCHES_MAX - 1): first <= submitted <= closed. */
  readonly #ring: Batch[] = new Array(BATCHES_MAX)
  #first = 0
  #submitted = 0
  #closed = 0
  #inFlight = 0
  readonly #checkpointBuffers: number[] = []

  readonly #runRow = new Int32Array(RUNS_MAX)
  readonly #runFirstPage = new Int32Array(RUNS_MAX)
  readonly #runCount = new Int32Array(RUNS_MAX)
  readonly #runPayload = new Int32Array(RUNS_MAX)
  readonly #runOffset = new Int32Array(RUNS_MAX)
  readonly #runStep = new Uint8Array(RUNS_MAX)
  #runNext = 0
  #runOldest = 0

  #syncing = false
  #syncTarget = 0
  /** As ring numbers: what is below is durable; what will be with the sync under way; from where on all that completed were synced writes. */
  #durableBatches = 0
  #syncTargetBatches = 0
  #syncedFrom = 0
  #syncStartedTick = 0
  /** Something up to here wants to be durable. */
  #wanted = 0
  readonly #flushSeq = new Float64Array(FLUSHES_MAX)
  readonly #flushRow = new Int32Array(FLUSHES_MAX)
  readonly #flushDone: Array<Done | undefined> = new Array(FLUSHES_MAX)
  #flushNext = 0
  #flushOldest = 0
  #idleWaiters: Array<() => void> = []

  constructor(options: JournalOptions) {
    this.#o = options
    this.#queue = options.queue
    this.#view = options.queue.arena.view
    this.#pagesPerSegment = segmentPages(options.geometry)
    this.#checkpointPages = checkpointPages(options.lastHigh.length, ROWS_MAX)
    for (let i = 0; i < options.geometry.segmentCount; i++) this.#touched.push(new Touched())
    this.#writeTag = options.queue.register('journal write', (row, result) => this.#onWritten(row, result))
    this.#syncTag = options.queue.register('journal sync', (_row, result) => this.#onSynced(result))
    options.queue.onTurnEnd(() => this.#endTurn())
    for (let i = 0; i < DESCRIPTORS_KEPT; i++) this.#pool.push(new Batch(this.#alloc(DESCRIPTOR_PAGES)))
    for (let i = 0; i < CHECKPOINT_BUFFERS; i++) this.#checkpointBuffers.push(this.#alloc(this.#checkpointPages))
  }

  // ---- room ------------------------------------------------------------------------------------------------------------

  get totalPages(): number {
    return this.#o.geometry.segmentCount * this.#pagesPerSegment
  }

  /** Pages that records may still take before a segment is freed. */
  get freePages(): number {
    const whole = this.#o.geometry.segmentCount - (this.#headSegment - this.#tailSegment + 1)
    const open = this.#collecting
    const collecting = open === null ? 0 : pagesOf(open.bytes) + open.payloadPages
    const checkpoint = checkpointPages(this.#o.lastHigh.length, this.#o.rows.count)
    return Math.max(0, this.#pagesPerSegment - this.#position - collecting) + whole * (this.#pagesPerSegment - checkpoint)
  }

  /** Too much waits for the disk for a client's (`fromHead`) or another's record, or there is no memory for so many batches. */
  tooManyWaiting(fromHead: boolean, batches = BATCHES_PER_RECORD): boolean {
    // many batches may take two segments
    if (this.#checkpointBuffers.length < (batches > BATCHES_PER_RECORD ? CHECKPOINT_BUFFERS : 1)) return true
    while (this.#pool.length < batches) {
      const page = this.#queue.arena.alloc(DESCRIPTOR_BYTES)
      if (page === -1) return true
      this.#pool.push(new Batch(page))
    }
    const runs = this.#runNext - this.#runOldest
    if (runs >= RUNS_MAX - RUNS_RESERVED - (fromHead ? 1024 : 0)) return true
    return this.#closed - this.#first >= (fromHead ? BATCHES_WAITING_MAX : BATCHES_WAITING_MAX * 4)
  }

  get headSegment(): number {
    return this.#headSegment
  }

  /** Newest segment whose beginning is in the kernel. */
  get stagedSegment(): number {
    return this.#stagedSegment
  }

  get tailSegment(): number {
    return this.#tailSegment
  }

  /** First journal page of a segment. */
  segmentStart(segment: number): number {
    return (segment % this.#o.geometry.segmentCount) * this.#pagesPerSegment
  }

  touchedRows(segment: number): Int32Array {
    const list = this.#touched[segment % this.#o.geometry.segmentCount]!
    return list.rows.subarray(0, list.count)
  }

  /** Replay and the writer note which rows a segment's records changed. */
  touch(row: number, segment: number): void {
    if (this.#o.table.touchedIn[row] === segment) return
    this.#o.table.touchedIn[row] = segment
    this.#touched[segment % this.#o.geometry.segmentCount]!.add(row)
  }

  /** Nothing in segments below `segment` is needed any more; they may be overwritten. */
  freeUpTo(segment: number): void {
    assert(segment > this.#tailSegment && segment <= this.#headSegment, `free up to segment ${segment}`)
    for (let s = this.#tailSegment; s < segment; s++) this.#touched[s % this.#o.geometry.segmentCount]!.count = 0
    this.#tailSegment = segment
    this.#o.onRoom()
  }

  // ---- begin, stop -------------------------------------------------------------------------------------------------------

  /** What replay found; the writer is not open yet. */
  resume(at: JournalPosition): void {
    this.#generation = at.generation
    this.#lastBatch = at.lastBatch
    this.#lastCrc = at.lastCrc
    this.#headSegment = this.#stagedSegment = at.headSegment
    this.#tailSegment = at.tailSegment
    this.#position = this.#pagesPerSegment
    this.nextSeq = at.lastSeq + 1
    this.stagedSeq = this.durableSeq = this.#wanted = at.lastSeq
  }

  /** Begins the fresh segment of this generation; there must be a free one. */
  open(): void {
    this.#rotate()
    this.#pump()
  }

  get idle(): boolean {
    return this.#first === this.#closed && this.#collecting === null && !this.#syncing
  }

  /** Resolves when nothing is staged any more that is not durable, or the disk has failed. */
  async settle(): Promise<void> {
    for (;;) {
      if (this.failed) return
      if (this.#collecting !== null) this.#close()
      this.#wanted = this.nextSeq - 1
      this.#pump()
      this.#syncIfWanted()
      if (this.idle && this.durableSeq === this.nextSeq - 1) return
      await new Promise<void>((resolve) => this.#idleWaiters.push(resolve))
    }
  }

  /** Resolves when no write is under way. */
  async ioEnded(): Promise<void> {
    while (this.#inFlight > 0) await new Promise<void>((resolve) => this.#idleWaiters.push(resolve))
  }

  // ---- records -------------------------------------------------------------------------------------------------------------

  /**
   * Makes room for a record of so many bytes and payload pages, and returns where in the arena to encode it. `commit` must follow at once.
   */
  begin(bytes: number, payloadPages: number): number {
    const open = this.#collecting
    if (open !== null) {
      const fits =
        open.bytes + bytes <= DESCRIPTOR_BYTES &&
        open.payloadPages + payloadPages <= BATCH_PAYLOAD_PAGES_MAX &&
        open.rangeCount < BATCH_RANGES_MAX &&
        pagesOf(open.bytes + bytes) + open.payloadPages + payloadPages <= open.limitPages
      if (fits) return open.descriptorPage * PAGE_BYTES + open.bytes
      this.#close()
    }
    if (this.#position + pagesOf(BatchHeader.size + bytes) + payloadPages > this.#pagesPerSegment) this.#rotate()
    const batch = this.#pool.pop() ?? new Batch(this.#alloc(DESCRIPTOR_PAGES))
    batch.kind = BatchKind.RECORDS
    batch.bytes = BatchHeader.size
    batch.payloadPages = 0
    batch.recordCount = 0
    batch.firstSeq = this.nextSeq
    batch.runFirst = batch.runEnd = this.#runNext
    batch.wantsDurable = false
    batch.position = this.segmentStart(this.#headSegment) + this.#position
    batch.limitPages = this.#pagesPerSegment - this.#position
    batch.segment = this.#headSegment
    batch.openedMs = this.#queue.nowMs
    batch.rangeCount = 0
    batch.slotCount = batch.rowCount = 0
    this.#collecting = batch
    return batch.descriptorPage * PAGE_BYTES + batch.bytes
  }

  /**
   * The next records, of at most so many pages in all, come to lie in one segment. For those that change the channel rows together: a
   * segment's checkpoint between two of them would have the rows of neither.
   */
  keepTogether(pages: number): void {
    const open = this.#collecting
    const collecting = open === null ? 0 : pagesOf(open.bytes) + open.payloadPages
    if (this.#position + collecting + pages <= this.#pagesPerSegment) return
    if (open !== null) this.#close()
    this.#rotate()
  }

  /** Segment of the record being encoded. */
  get currentSegment(): number {
    return this.#headSegment
  }

  /** Place of the pages of the record being encoded, until they are in the kernel. `step` 1: data pages, `offset` of them from the record's first. */
  addRun(row: number, firstPage: number, pageCount: number, payloadPage: number, offset: number, step: number): number {
    assert(this.#runNext - this.#runOldest < RUNS_MAX, 'more records under way than were admitted')
    const run = this.#runNext++ & (RUNS_MAX - 1)
    this.#runRow[run] = row
    this.#runFirstPage[run] = firstPage
    this.#runCount[run] = pageCount
    this.#runPayload[run] = payloadPage
    this.#runOffset[run] = step === 1 ? this.#collecting!.payloadPages + offset : 0
    this.#runStep[run] = step
    return (PENDING | run) >>> 0
  }

  /** The record encoded at `begin`'s place is complete. Returns its position. */
  commit(bytes: number, payloadPage: number, payloadPages: number, durable: boolean): number {
    const batch = this.#collecting!
    batch.bytes += bytes
    batch.recordCount++
    this.#queue.waits.batch.enter(this.#queue.nowMs)
    batch.runEnd = this.#runNext
    if (payloadPages > 0) {
      const last = batch.rangeCount - 1
      if (last >= 0 && batch.rangePage[last]! + batch.rangePages[last]! === payloadPage) batch.rangePages[last] = batch.rangePages[last]! + payloadPages
      else {
        batch.rangePage[batch.rangeCount] = payloadPage
        batch.rangePages[batch.rangeCount++] = payloadPages
      }
      batch.payloadPages += payloadPages
    }
    if (durable) batch.wantsDurable = true
    return this.nextSeq++
  }

  /**
   * After the last record of a call. In a turn the batch goes on collecting until its end: nothing is submitted before. Then it is written if the disk
   * has nothing to do, else with the next completion.
   */
  kick(): void {
    const open = this.#collecting
    if (open === null || this.#queue.dispatching) return
    if (this.#inFlight === 0 || (this.#inFlight < IN_FLIGHT_MAX && open.openedMs !== this.#queue.nowMs)) this.#close()
    this.#pump()
  }

  /** Arena page that holds the content of a page whose place is pending. */
  pendingPayload(loc: number, page: number): number {
    const run = loc & (RUNS_MAX - 1)
    return this.#runPayload[run]! + page - this.#runFirstPage[run]!
  }

  flush(done: Done, row: number): void {
    if (this.failed) this.#o.deferred.add(done, row, Status.WRITE_FAILED, 0)
    else if (this.durableSeq === this.nextSeq - 1) this.#o.deferred.add(done, row, Status.SUCCESS, 0)
    else if (this.#flushNext - this.#flushOldest === FLUSHES_MAX) this.#o.deferred.add(done, row, Status.BUSY, 0)
    else {
      const i = this.#flushNext++ & (FLUSHES_MAX - 1)
      this.#flushSeq[i] = this.nextSeq - 1
      this.#flushRow[i] = row
      this.#flushDone[i] = done
      this.#wanted = this.nextSeq - 1
      this.kick()
      this.#syncIfWanted()
    }
  }

  /** Resolves when everything staged up to now is durable; false when the disk failed before. */
  durable(): Promise<boolean> {
    return new Promise((resolve) => {
      this.flush((_row, status) => {
        this.#queue.asyncPending = true
        resolve(status === Status.SUCCESS)
      }, 0)
    })
  }

  /** Oldest tick at which an I/O under way began; Infinity without one. */
  oldestTick(): number {
    let oldest = this.#syncing ? this.#syncStartedTick : Number.POSITIVE_INFINITY
    for (let i = this.#first; i < this.#submitted; i++) {
      const batch = this.#ring[i & (BATCHES_MAX - 1)]!
      if (batch.inFlight && batch.startedTick < oldest) oldest = batch.startedTick
    }
    return oldest
  }

  fail(reason: string): void {
    if (this.failed) return
    this.failed = true
    this.#o.onFailed(reason)
    while (this.#flushOldest < this.#flushNext) {
      const i = this.#flushOldest++ & (FLUSHES_MAX - 1)
      this.#o.deferred.add(this.#flushDone[i]!, this.#flushRow[i]!, Status.WRITE_FAILED, 0)
    }
    this.#wakeIdle()
  }

  /** Gives the arena back; nothing may be in flight. */
  dispose(): void {
    const { arena } = this.#queue
    for (const batch of this.#pool) arena.free(batch.descriptorPage as never)
    for (const page of this.#checkpointBuffers) arena.free(page as never)
    this.#pool.length = this.#checkpointBuffers.length = 0
  }

  // ---- batches ---------------------------------------------------------------------------------------------------------------

  #alloc(pages: number): number {
    const page = this.#queue.arena.alloc(pages * PAGE_BYTES)
    assert(page >= 0, `no room in the arena for ${pages} pages of the journal`)
    return page
  }

  #close(): void {
    const batch = this.#collecting!
    this.#collecting = null
    batch.descriptorPages = pagesOf(batch.bytes)
    this.#position += batch.descriptorPages + batch.payloadPages
    this.#push(batch)
  }

  #push(batch: Batch): void {
    assert(this.#closed - this.#first < BATCHES_MAX, 'more journal batches than were admitted')
    batch.writtenBytes = batch.tries = 0
    batch.inFlight = batch.done = false
    this.#ring[this.#closed++ & (BATCHES_MAX - 1)] = batch
  }

  /** The next segment begins with what replay needs from before it. */
  #rotate(): void {
    assert(this.#headSegment - this.#tailSegment + 1 < this.#o.geometry.segmentCount, 'the journal is full: the record was not admitted')
    this.#headSegment++
    const { rows, lastHigh, lastLow, incomplete } = this.#o
    const slots = lastHigh.length
    const slotWords = slots * 2 + Math.ceil(slots / 32)
    const batch = new Batch(this.#checkpointBuffers.pop() ?? this.#alloc(this.#checkpointPages))
    batch.kind = BatchKind.SEGMENT_START
    batch.descriptorPages = checkpointPages(slots, rows.count)
    batch.bytes = BatchHeader.size + slotWords * 4 + rows.count * PACKED_ROW_BYTES
    batch.firstSeq = this.nextSeq
    batch.runFirst = batch.runEnd = this.#runNext
    batch.segment = this.#headSegment
    batch.position = this.segmentStart(this.#headSegment)
    batch.slotCount = slots
    batch.rowCount = rows.count
    const at = batch.descriptorPage * PAGE_BYTES + BatchHeader.size
    const { bytes } = this.#queue.arena
    const words = new Uint32Array(bytes.buffer, bytes.byteOffset + at, slotWords + rows.count * ROW_WORDS)
    words.fill(0, slots * 2, slotWords)
    for (let slot = 0; slot < slots; slot++) {
      words[slot * 2] = lastHigh[slot]!
      words[slot * 2 + 1] = lastLow[slot]!
      if (incomplete[slot] === 1) words[slots * 2 + (slot >>> 5)]! |= 1 << (slot & 31)
    }
    rows.packInto(words, slotWords)
    this.#position = batch.descriptorPages
    this.#push(batch)
    this.#o.onSegment()
  }

  #endTurn(): void {
    if (this.#collecting !== null && !this.failed) this.kick()
  }

  #pump(): void {
    while (this.#inFlight < IN_FLIGHT_MAX && this.#submitted < this.#closed && !this.failed) {
      const number = this.#submitted++
      const batch = this.#ring[number & (BATCHES_MAX - 1)]!
      this.#seal(batch)
      this.#inFlight++
      this.batchCount++
      batch.synced = !this.#o.volatile && (batch.wantsDurable || batch.kind === BatchKind.SEGMENT_START)
      this.#queue.waits.batch.leave(this.#queue.nowMs, batch.recordCount)
      this.#queue.flight.record(FlightEvent.JOURNAL_BATCH, number, batch.recordCount, batch.payloadPages)
      this.#write(number, batch)
    }
  }

  #seal(batch: Batch): void {
    const view = this.#view
    const at = batch.descriptorPage * PAGE_BYTES
    const { set, offsets } = BatchHeader
    this.#queue.arena.bytes.fill(0, at + batch.bytes, at + batch.descriptorPages * PAGE_BYTES)
    set.magic(view, at, BATCH_MAGIC)
    set.version(view, at, FORMAT_VERSION)
    set.kind(view, at, batch.kind)
    set.crc(view, at, 0)
    set.prevCrc(view, at, this.#lastCrc)
    this.#queue.arena.bytes.set(this.#o.journalUuid, at + offsets.journalUuid)
    set.generation(view, at, this.#generation)
    set.descriptorPages(view, at, batch.descriptorPages)
    set.payloadPages(view, at, batch.payloadPages)
    set.recordCount(view, at, batch.recordCount)
    set.batch(view, at, ++this.#lastBatch)
    set.segment(view, at, batch.segment)
    set.firstSeq(view, at, batch.firstSeq)
    set.durableSeq(view, at, this.durableSeq)
    set.slotCount(view, at, batch.slotCount)
    set.rowCount(view, at, batch.rowCount)
    this.#queue.arena.bytes.fill(0, at + offsets.reserved, at + BatchHeader.size)
    this.#lastCrc = this.#queue.arena.crc32c(batch.descriptorPage, 0, batch.descriptorPages * PAGE_BYTES)
    set.crc(view, at, this.#lastCrc)
  }

  /** Writes what of the batch has not been written yet (all of it, but for a short write before). */
  #write(number: number, batch: Batch): void {
    const queue = this.#queue
    let skip = batch.writtenBytes / PAGE_BYTES
    const offset = journalOffset(this.#o.geometry, batch.position + skip)
    if (skip < batch.descriptorPages) {
      queue.segment(batch.descriptorPage + skip, 0, (batch.descriptorPages - skip) * PAGE_BYTES)
      skip = 0
    } else skip -= batch.descriptorPages
    for (let i = 0; i < batch.rangeCount; i++) {
      const pages = batch.rangePages[i]!
      if (skip >= pages) {
        skip -= pages
        continue
      }
      queue.segment(batch.rangePage[i]! + skip, 0, (pages - skip) * PAGE_BYTES)
      skip = 0
    }
    batch.inFlight = true
    batch.startedTick = this.tick
    queue.writeSegments(this.#o.file, offset, batch.synced, this.#writeTag, number & (BATCHES_MAX - 1))
    this.#o.onBusy()
  }

  #onWritten(ringRow: number, result: number): void {
    const batch = this.#ring[ringRow]!
    batch.inFlight = false
    if (this.failed) {
      this.#inFlight--
      this.#wakeIdle()
      return
    }
    if (result < 0 && result !== -Errno.EINTR && result !== -Errno.EAGAIN) {
      this.#inFlight--
      this.fail(`journal write at page ${batch.position}: ${errnoName(result)}`)
      return
    }
    if (result > 0) batch.writtenBytes += result - (result % PAGE_BYTES)
    if (batch.writtenBytes < (batch.descriptorPages + batch.payloadPages) * PAGE_BYTES) {
      if (++batch.tries > WRITE_TRIES_MAX) {
        this.#inFlight--
        this.fail(`journal write at page ${batch.position} gets no further than ${batch.writtenBytes} bytes`)
      } else this.#write(ringRow, batch)
      return
    }
    batch.done = true
    this.#inFlight--
    let staged = this.stagedSeq
    while (this.#first < this.#submitted && this.#ring[this.#first & (BATCHES_MAX - 1)]!.done) {
      const oldest = this.#ring[this.#first++ & (BATCHES_MAX - 1)]!
      this.#settle(oldest)
      staged = oldest.firstSeq + oldest.recordCount - 1
      if (!oldest.synced) this.#syncedFrom = this.#first
      if (oldest.wantsDurable) this.#wanted = Math.max(this.#wanted, staged)
      this.#recycle(oldest)
    }
    this.#pump()
    if (staged > this.stagedSeq) {
      this.stagedSeq = staged
      this.#o.onStaged(staged)
    }
    this.#becomeDurable(this.#o.volatile ? staged : this.#durableBySyncedWrites())
    this.#syncIfWanted()
    this.#o.onRoom()
    this.#wakeIdle()
  }

  /** The batch's pages are in the kernel: from now on they are read from the journal. */
  #settle(batch: Batch): void {
    const base = batch.position + batch.descriptorPages
    for (let n = batch.runFirst; n < batch.runEnd; n++) {
      const run = n & (RUNS_MAX - 1)
      const step = this.#runStep[run]!
      const loc = step === 1 ? base + this.#runOffset[run]! : batch.position
      const row = this.#runRow[run]!
      const firstPage = this.#runFirstPage[run]!
      const pageCount = this.#runCount[run]!
      this.#o.table.resolve(row, firstPage, pageCount, (PENDING | run) >>> 0, loc, step)
      this.#o.onResolved(row, firstPage, pageCount, (PENDING | run) >>> 0, loc, step)
    }
    this.#runOldest = batch.runEnd
    this.#stagedSegment = batch.segment
  }

  #recycle(batch: Batch): void {
    if (batch.kind === BatchKind.SEGMENT_START) {
      if (this.#checkpointBuffers.length < CHECKPOINT_BUFFERS) this.#checkpointBuffers.push(batch.descriptorPage)
      else this.#queue.arena.free(batch.descriptorPage as never)
    } else if (this.#pool.length < DESCRIPTORS_KEPT) this.#pool.push(batch)
    else this.#queue.arena.free(batch.descriptorPage as never)
  }

  // ---- durability ------------------------------------------------------------------------------------------------------------

  #syncIfWanted(): void {
    if (this.#syncing || this.failed || this.#wanted <= this.durableSeq || this.stagedSeq === this.durableSeq) return
    this.#syncing = true
    this.#syncTarget = this.stagedSeq
    this.#syncTargetBatches = this.#first
    this.#syncStartedTick = this.tick
    this.#queue.fdatasync(this.#o.file, this.#syncTag, 0)
    this.#o.onBusy()
  }

  #onSynced(result: number): void {
    this.#syncing = false
    if (this.failed) this.#wakeIdle()
    else if (result < 0) this.fail(`journal fdatasync: ${errnoName(result)}`)
    else {
      this.#durableBatches = Math.max(this.#durableBatches, this.#syncTargetBatches)
      this.#becomeDurable(Math.max(this.#syncTarget, this.#durableBySyncedWrites()))
      this.#syncIfWanted()
      this.#wakeIdle()
    }
  }

  /** With no unsynced batch behind what is durable, all that has been staged is. */
  #durableBySyncedWrites(): number {
    if (this.#durableBatches < this.#syncedFrom) return this.durableSeq
    this.#durableBatches = this.#first
    return this.stagedSeq
  }

  #becomeDurable(upTo: number): void {
    if (upTo <= this.durableSeq) return
    this.durableSeq = upTo
    this.#o.onDurable(upTo)
    while (this.#flushOldest < this.#flushNext) {
      const i = this.#flushOldest & (FLUSHES_MAX - 1)
      if (this.#flushSeq[i]! > upTo) break
      this.#flushOldest++
      const done = this.#flushDone[i]!
      this.#flushDone[i] = undefined
      done(this.#flushRow[i]!, Status.SUCCESS, 0)
    }
  }

  #wakeIdle(): void {
    if (this.#idleWaiters.length === 0) return
    this.#queue.asyncPending = true
    for (const resolve of this.#idleWaiters.splice(0)) resolve()
  }
}

function pagesOf(bytes: number): number {
  return (bytes + PAGE_BYTES - 1) >>> 12
}

/** Pages of a segment's start batch. */
export function checkpointPages(slots: number, rowCount: number): number {
  return pagesOf(BatchHeader.size + slots * 8 + Math.ceil(slots / 32) * 4 + rowCount * PACKED_ROW_BYTES)
}

/** What the journal of a disk keeps of the arena. */
export function journalArenaBytes(slots: number): number {
  return (DESCRIPTORS_KEPT * DESCRIPTOR_PAGES + CHECKPOINT_BUFFERS * checkpointPages(slots, ROWS_MAX)) * PAGE_BYTES
}
