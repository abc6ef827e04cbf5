/**
 * The store of one disk: index in memory (block-table.ts), journal (journal.ts), reads (read.ts), background work (destage.ts), put together.
 * `mount.ts` makes one from what is on the disk; bytes are drawn in layout.ts.
 *
 *   admit -> stage: encode into the collecting batch, change the index, `last` and the channel row -> kick
 *   read: index -> extents, journal, or payloads still under way -> CRCs compared
 *
 * A block takes its whole extent when it is created; a REMOVE (of all of it at once, by a client too) gives it back, ZEROs of its pages do not.
 * Later work: large writes that bypass the journal's payload, a page-table cache (all pages are in memory: 17 KiB per block), tiers, codecs.
 */
import { assert } from '../base/assert.ts'
import { messageOf, XsanError } from '../base/errors.ts'
import type { DiskNumber } from '../base/ids.ts'
import { Status } from '../base/status.ts'
import { BLOCK_BYTES, PAGE_BYTES, PAGES_PER_BLOCK } from '../base/units.ts'
import type { AsyncIo } from '../env/async-io.ts'
import type { Handle, IoQueue, Tag } from '../env/ioqueue.ts'
import { type BlockTable, PENDING } from './block-table.ts'
import { type ChannelRows, checkPackedRows, ROW_WORDS } from './channel-rows.ts'
import type { Deferred, Done } from './deferred.ts'
import type { Destage } from './destage.ts'
import { compareIds } from './digest.ts'
import { Journal, type JournalOptions } from './journal.ts'
import { INSTALL_ENTRY_BYTES, INSTALL_PAGES_MAX, INSTALL_ROWS_MAX, InstallFlag, JournalKind, RecordHeader, recordBytes, WRITE_PAGES_MAX } from './layout.ts'
import type { MountOptions } from './mount-options.ts'
import { Reader } from './read.ts'
import type { Reservation } from './reservation.ts'
import {
  type BlockCapture,
  type BlockInstall,
  type BlockRow,
  isPageFlag,
  NO_BLOCK,
  PAGE_LOST,
  PageFlag,
  RecordKind,
  type ReplicaStore,
  type StageRecord,
} from './store.ts'
import { hasServedSince, losePower, noteServed, type SuperblockState } from './superblock.ts'
import type { SuperblockWriter } from './superblock-writer.ts'
import { checksumOf, pagesOf, sizeOf } from './tables.ts'

/** Shares of the journal: a client's write needs this much free, a forwarded one this much; removals and empty records a few pages. */
const HEAD_NEEDS_FREE = 0.3
const FORWARD_NEEDS_FREE = 0.05
const PAGES_KEPT = 64
/** Extents kept from clients' new blocks, for forwards and recovery (half of them for forwards alone): this share, on small disks more, and at least so many. */
const EXTENTS_KEPT = 0.01
const EXTENTS_KEPT_MIN = 2
const EXTENTS_KEPT_SMALL = 16
const EXTENTS_KEPT_SMALL_SHARE = 1 / 16
/** Pages of a batch of its own with a full INSTALL_ROWS record. */
const INSTALL_ROWS_PAGES = 3
/** Blocks that a sweep looks at between two turns. */
const SWEPT_PER_TURN = 8192
/** The watch looks so often within `hungMs`. */
const WATCH_TICKS = 4
/** The background work of a busy disk may stand still for so many times `hungMs`: nobody waits for it, but when it never goes on the journal fills up. */
const BACKGROUND_HUNG = 10

class DiskCapture implements BlockCapture {
  readonly row: BlockRow
  readonly serial: number
  /** Staged up to here, all places are final. */
  readonly seq: number
  readonly idHigh: Uint32Array
  readonly idLow: Uint32Array
  readonly crc: Uint32Array
  readonly flags: Uint8Array
  readonly loc: Uint32Array
  released = false

  constructor(table: BlockTable, row: BlockRow, serial: number, seq: number) {
    const chunk = table.chunk(row)
    const from = table.base(row)
    const to = from + PAGES_PER_BLOCK
    this.row = row
    this.serial = serial
    this.seq = seq
    this.idHigh = chunk.idHigh.slice(from, to)
    this.idLow = chunk.idLow.slice(from, to)
    this.crc = chunk.crc.slice(from, to)
    this.flags = chunk.flags.slice(from, to)
    this.loc = chunk.loc.slice(from, to)
  }
}

/** What mount has put together. */
export interface StoreParts {
  readonly options: MountOptions
  readonly file: Handle
  readonly volatile: boolean
  readonly superblock: SuperblockState
  readonly table: BlockTable
  readonly rows: ChannelRows
  readonly lastHigh: Uint32Array
  readonly lastLow: Uint32Array
  /** 1: incomplete. */
  readonly incomplete: Uint8Array
  readonly deferred: Deferred
  readonly superblocks: SuperblockWriter
}

export class DiskStore implements ReplicaStore {
  readonly disk: DiskNumber
  readonly slotCount: number
  readonly rows: ChannelRows
  readonly lastHigh: Uint32Array
  readonly lastLow: Uint32Array
  readonly capacityBytes: number
  readonly journalBytes: number
  readonly journal: Journal
  readonly reader: Reader
  /** Set by mount before the store is used. */
  destage!: Destage
  reservation!: Reservation
  failed = false

  readonly #parts: StoreParts
  readonly #queue: IoQueue
  readonly #io: AsyncIo
  readonly #table: BlockTable
  readonly #session: Uint8Array
  readonly #captures = new Set<DiskCapture>()
  #nextCapture = 1
  #captureWaiters: Array<() => void> = []
  /** Reads of captures under way: nobody waits for those of a disk that has failed. */
  readonly #capturedReads = new Set<(status: number) => void>()
  #room: Array<() => void> = []
  #rejecting = false
  readonly #extentsKept: number
  readonly #watchTag: Tag
  #watching = false
  #hangs = false
  #closing = false
  /** Nothing is staged any more. */
  #sealed = false
  /** The wall clock, and the queue's when it was asked. */
  #wall = 0
  #wallAtMs = -1

  constructor(parts: StoreParts) {
    const { options, superblock, table } = parts
    this.#parts = parts
    this.#io = options.io
    this.#queue = options.io.queue
    this.#table = table
    this.disk = superblock.disk as DiskNumber
    this.slotCount = superblock.slotCount
    this.rows = parts.rows
    this.lastHigh = parts.lastHigh
    this.lastLow = parts.lastLow
    this.capacityBytes = superblock.geometry.extentCount * BLOCK_BYTES
    this.journalBytes = superblock.geometry.segmentCount * superblock.geometry.segmentBytes
    this.#session = new Uint8Array(superblock.slotCount)
    this.rows.onDropped = () => this.#giveRoomSoon()
    const { extentCount } = table
    const ofSmall = Math.min(EXTENTS_KEPT_SMALL, Math.floor(extentCount * EXTENTS_KEPT_SMALL_SHARE))
    this.#extentsKept = Math.max(EXTENTS_KEPT_MIN, ofSmall, Math.ceil(extentCount * EXTENTS_KEPT))
    this.#watchTag = this.#queue.register('store watch', (_row, result) => this.#onWatch(result))
    const { events } = options
    const journalOptions: JournalOptions = {
      queue: this.#queue,
      file: parts.file,
      geometry: superblock.geometry,
      journalUuid: superblock.journalUuid,
      volatile: parts.volatile,
      table,
      rows: parts.rows,
      lastHigh: parts.lastHigh,
      lastLow: parts.lastLow,
      incomplete: parts.incomplete,
      deferred: parts.deferred,
      onStaged: (upTo) => events.onStaged(upTo),
      onDurable: (upTo) => events.onDurable(upTo),
      onFailed: (reason) => this.#onFailed(reason),
      onRoom: () => this.giveRoom(),
      onResolved: (row, firstPage, pageCount, pending, loc, step) => this.#resolveCaptures(row, firstPage, pageCount, pending, loc, step),
      onSegment: () => this.destage?.segmentBegun(),
      onBusy: () => this.watch(),
    }
    this.journal = new Journal(journalOptions)
    this.reader = new Reader({
      queue: this.#queue,
      file: parts.file,
      geometry: superblock.geometry,
      deferred: parts.deferred,
      pendingPayload: (loc, page) => this.journal.pendingPayload(loc, page),
      onBusy: () => this.watch(),
    })
  }

  get lostPower(): boolean {
    return this.#parts.superblock.lostPower
  }
  /** Of this mount: rises with each. */
  get generation(): number {
    return this.#parts.superblock.mountGeneration
  }
  get stagedSeq(): number {
    return this.journal.stagedSeq
  }
  get durableSeq(): number {
    return this.journal.durableSeq
  }
  get usedBytes(): number {
    return this.#table.usedCount * BLOCK_BYTES
  }
  get journalUsedBytes(): number {
    return Math.max(0, this.journal.totalPages - this.journal.freePages) * PAGE_BYTES
  }
  get rejectCreate(): boolean {
    const kept = this.#extentsForOthers
    const left = this.#extentsLeft
    if (left <= kept) this.#rejecting = true
    else if (left > kept * 2) this.#rejecting = false
    return this.#rejecting
  }
  /** Extents that new blocks could take. */
  get #extentsLeft(): number {
    return this.reservation.exhausted ? this.#table.freeCount : this.#table.unusedCount
  }
  get #extentsForOthers(): number {
    return this.reservation.exhausted ? this.reservation.keptRows : this.#extentsKept
  }
  get rejectReason(): string {
    return this.rejectCreate ? this.reservation.reason : ''
  }
  get counters(): { batches: number; destagedSegments: number; destagedPages: number; corruptedPages: number; readErrors: number } {
    const { journal, destage, reader } = this
    return {
      batches: journal.batchCount,
      destagedSegments: destage.segments,
      destagedPages: destage.pagesWritten,
      corruptedPages: reader.corruptedCount,
      readErrors: reader.errorCount,
    }
  }

  // ---- hot path ----------------------------------------------------------------------------------------------------------------

  findBlock(volume: number, layer: number, index: number): BlockRow {
    return this.#table.find(volume, layer, index) as BlockRow
  }

  admit(record: StageRecord, fromHead: boolean): number {
    const { journal } = this
    if (this.failed) return Status.WRITE_FAILED
    if (this.#sealed) return Status.BUSY
    if (record.clientHigh !== 0 && !this.rows.hasRoomFor(record.clientHigh, record.clientLow)) return Status.BUSY
    if (record.kind === RecordKind.WRITE && this.#table.find(record.volume, record.layer, record.index) < 0) {
      const status = this.#admitBlock(fromHead)
      if (status !== Status.SUCCESS) return status
    }
    if (journal.tooManyWaiting(fromHead)) return Status.BUSY
    const carries = record.kind === RecordKind.WRITE || record.kind === RecordKind.ZERO
    const keep = carries ? journal.totalPages * (fromHead ? HEAD_NEEDS_FREE : FORWARD_NEEDS_FREE) : 0
    return journal.freePages - record.pageCount - PAGES_KEPT < keep ? Status.BUSY : Status.SUCCESS
  }

  /** A new block wants an extent whose space is sure. */
  #admitBlock(fromHead: boolean): number {
    const table = this.#table
    const { reservation } = this
    reservation.kick()
    if (fromHead ? this.rejectCreate : table.unusedCount === 0 || (table.freeCount === 0 && reservation.exhausted)) return Status.INSUFFICIENT_SPACE
    const kept = fromHead && !reservation.isComplete && !reservation.exhausted ? reservation.keptRows : 0
    return table.freeCount > kept ? Status.SUCCESS : Status.BUSY
  }

  onRoom(fn: () => void): void {
    this.#room.push(fn)
  }

  stage(r: StageRecord): number {
    const { kind, slot, idHigh, idLow, firstPage, pageCount } = r
    const { journal } = this
    const table = this.#table
    if (this.#session[slot] === 0 && compareIds(idHigh, idLow, this.lastHigh[slot]!, this.lastLow[slot]!) <= 0)
      assert(false, `slot ${slot}: id ${idHigh}:${idLow} staged after ${this.lastHigh[slot]}:${this.lastLow[slot]}`)
    if (slot < 0 || slot >= this.slotCount || firstPage < 0 || pageCount < 0 || firstPage + pageCount > PAGES_PER_BLOCK)
      assert(false, `record of slot ${slot}, pages ${firstPage}+${pageCount}`)
    const writes = kind === RecordKind.WRITE
    const payloadPages = writes ? pageCount : 0
    if (writes && (pageCount === 0 || pageCount > WRITE_PAGES_MAX)) assert(false, `a write of ${pageCount} pages`)

    const bytes = recordBytes(kind, pageCount, 0)
    const at = journal.begin(bytes, payloadPages)
    const timestampMs = this.#encode(at, r)
    let row = -1
    if (kind !== RecordKind.EMPTY) {
      row = table.find(r.volume, r.layer, r.index)
      if (kind === RecordKind.REMOVE) {
        if (row >= 0) table.remove(row)
        row = -1
      } else if (row < 0 && writes) row = table.create(r.volume, r.layer, r.index, slot, this.#birthMount, this.destage.round + 1, journal.nextSeq)
    }
    if (row >= 0) {
      const pending = journal.addRun(row, firstPage, pageCount, r.payloadPage, 0, writes ? 1 : 0)
      table.setPages(row, firstPage, pageCount, idHigh, idLow, writes ? r.crcs : null, r.crcFirst, pending, 0)
      table.updateHigh[row] = idHigh
      table.updateLow[row] = idLow
      table.updateSeq[row] = journal.nextSeq
      table.timestampMs[row] = timestampMs
      journal.touch(row, journal.currentSegment)
    }
    const seq = journal.commit(bytes, r.payloadPage, payloadPages, r.durable)
    this.raiseLast(slot, idHigh, idLow)
    if (r.clientHigh !== 0) this.rows.set(r.clientHigh, r.clientLow, r.channel, r.seq, slot, idHigh, idLow)
    journal.kick()
    return seq
  }

  newestId(block: BlockRow, firstPage: number, pageCount: number, outId: Uint32Array): void {
    let high = 0
    let low = 0
    if (block !== NO_BLOCK) {
      const { idHigh, idLow } = this.#table.chunk(block)
      const from = this.#table.base(block) + firstPage
      for (let at = from; at < from + pageCount; at++) {
        if (idHigh[at]! < high || (idHigh[at] === high && idLow[at]! <= low)) continue
        high = idHigh[at]!
        low = idLow[at]!
      }
    }
    outId[0] = high
    outId[1] = low
  }

  read(block: BlockRow, firstPage: number, pageCount: number, bufferPage: number, done: Done, row: number): void {
    if (firstPage < 0 || pageCount <= 0 || firstPage + pageCount > PAGES_PER_BLOCK) assert(false, `read of pages ${firstPage}+${pageCount}`)
    if (block === NO_BLOCK) this.reader.zeros(pageCount, bufferPage, done, row)
    else this.reader.read(this.#table.chunk(block), this.#table.base(block), block, firstPage, pageCount, bufferPage, done, row)
  }

  flush(done: Done, row: number): void {
    this.journal.flush(done, row)
  }

  pageCrc(block: BlockRow, page: number): number {
    return this.#table.chunk(block).crc[this.#table.base(block) + page]!
  }

  /** Once per turn: asking for the time costs as much as a record. */
  #wallMs(): number {
    if (this.#wallAtMs !== this.#queue.nowMs) {
      this.#wallAtMs = this.#queue.nowMs
      this.#wall = this.#parts.options.wallMs()
    }
    return this.#wall
  }

  /** The record's bytes at `at`; returns its time stamp. */
  #encode(at: number, r: StageRecord): number {
    const { view } = this.#queue.arena
    const { set } = RecordHeader
    const timestampMs = this.#wallMs()
    set.kind(view, at, r.kind)
    set.flags(view, at, 0)
    set.firstPage(view, at, r.firstPage)
    set.pageCount(view, at, r.pageCount)
    set.channel(view, at, r.channel)
    set.slot(view, at, r.slot)
    set.layer(view, at, r.layer)
    set.volume(view, at, r.volume)
    set.index(view, at, r.index)
    set.rowCount(view, at, 0)
    set.idHigh(view, at, r.idHigh)
    set.idLow(view, at, r.idLow)
    set.clientHigh(view, at, r.clientHigh)
    set.clientLow(view, at, r.clientLow)
    set.seq(view, at, r.seq)
    set.timestampMs(view, at, timestampMs)
    if (r.kind === RecordKind.WRITE) {
      let to = at + RecordHeader.size
      for (let i = 0; i < r.pageCount; i++, to += 4) view.setUint32(to, r.crcs[r.crcFirst + i]!, true)
      if (r.pageCount % 2 === 1) view.setUint32(to, 0, true)
    }
    return timestampMs
  }

  get #birthMount(): number {
    return this.#parts.superblock.mountGeneration
  }

  // ---- sessions and installs -------------------------------------------------------------------------------------------------------

  startSession(slot: number): number {
    // many begin at once when a node returns, whatever else the disk has to do
    if (this.#sealed || this.journal.tooManyWaiting(false) || this.journal.freePages < PAGES_KEPT) throw this.#journalFull()
    this.#session[slot] = 1
    const at = this.journal.begin(RecordHeader.size, 0)
    this.#encodePart(at, { kind: JournalKind.SESSION, flags: 0, slot, volume: 0, layer: 0, index: 0, pageCount: 0, rowCount: 0, idHigh: 0, idLow: 0 })
    const seq = this.journal.commit(RecordHeader.size, 0, 0, true)
    this.lastHigh[slot] = this.lastLow[slot] = 0
    this.#parts.incomplete[slot] = 1
    this.rows.clearHeld(slot)
    this.journal.kick()
    return seq
  }

  isIncomplete(slot: number): boolean {
    return this.#parts.incomplete[slot] === 1
  }

  completeSession(slot: number): number {
    this.#assertRoom(1, 1)
    const [idHigh, idLow] = [this.lastHigh[slot]!, this.lastLow[slot]!]
    const at = this.journal.begin(RecordHeader.size, 0)
    this.#encodePart(at, { kind: JournalKind.COMPLETE, flags: 0, slot, volume: 0, layer: 0, index: 0, pageCount: 0, rowCount: 0, idHigh, idLow })
    const seq = this.journal.commit(RecordHeader.size, 0, 0, true)
    this.#parts.incomplete[slot] = 0
    this.journal.kick()
    return seq
  }

  setLast(slot: number, idHigh: number, idLow: number): void {
    assert(this.#session[slot] === 1, `slot ${slot} is in no session`)
    this.lastHigh[slot] = idHigh
    this.lastLow[slot] = idLow
  }

  raiseLast(slot: number, idHigh: number, idLow: number): void {
    if (compareIds(idHigh, idLow, this.lastHigh[slot]!, this.lastLow[slot]!) <= 0) return
    this.lastHigh[slot] = idHigh
    this.lastLow[slot] = idLow
  }

  endSession(slot: number): void {
    this.#session[slot] = 0
  }

  install(given: BlockInstall): number {
    const { slot, volume, layer, index, pages, remove } = given
    const { journal } = this
    const table = this.#table
    let dataPages = 0
    let creates = false
    for (let i = 0; i < pages.length; i++) {
      if (given.flags[i] === PageFlag.DATA) dataPages++
      if (given.flags[i] !== PageFlag.NEVER) creates = true
    }
    checkPackedRows(given.rows)
    const old = table.find(volume, layer, index)
    // the last ones are for forwards: a record that its head has ordered finds an extent, or the slot stands still
    const isFull = this.#extentsLeft <= this.#extentsForOthers / 2
    if (old < 0 && creates && (this.#admitBlock(false) !== Status.SUCCESS || isFull)) {
      if (!this.reservation.exhausted && !isFull)
        throw new XsanError('BUSY', `disk ${this.disk} has no extent for the moment`, 'More are being allocated: try again.')
      throw new XsanError('INSUFFICIENT_SPACE', `disk ${this.disk} has no extent for a block of volume ${volume}`, 'Add disks, or delete volumes.')
    }
    const rowBatches = Math.ceil(given.rows.length / ROW_WORDS / INSTALL_ROWS_MAX)
    this.#assertRoom(dataPages + Math.ceil(given.rows.length / ROW_WORDS / 32) + 64, Math.ceil(pages.length / INSTALL_PAGES_MAX) + rowBatches + 4)
    const rowsFirst = given.rows.slice()
    this.#rowsFit(rowsFirst)

    let seq = 0
    let flags: number = InstallFlag.FIRST
    let row = old
    if (remove || (pages.length > 0 && (old >= 0 || creates))) {
      if (remove && old >= 0) {
        table.remove(old)
        row = -1
      }
      let payloadPage = given.payloadPage
      let first = 0
      do {
        const count = remove && !creates ? 0 : Math.min(INSTALL_PAGES_MAX, pages.length - first)
        const part = flags | (remove && first === 0 ? InstallFlag.REMOVE : 0)
        const { data, rowAfter } = this.#installPages(given, first, count, payloadPage, row, part)
        seq = journal.nextSeq - 1
        row = rowAfter
        payloadPage += data
        flags = 0
        first += count
        if (count === 0) break
      } while (first < pages.length)
      if (row >= 0) {
        table.recountUpdate(row)
        table.updateSeq[row] = seq
        table.timestampMs[row] = this.#parts.options.wallMs()
      }
    }
    const rowCount = rowsFirst.length / ROW_WORDS
    journal.keepTogether(Math.max(1, Math.ceil(rowCount / INSTALL_ROWS_MAX)) * INSTALL_ROWS_PAGES)
    for (let first = 0; first < rowCount || first === 0; first += INSTALL_ROWS_MAX) {
      const count = Math.min(INSTALL_ROWS_MAX, rowCount - first)
      const last = first + count >= rowCount
      seq = this.#installRows(given, rowsFirst.subarray(first * ROW_WORDS, (first + count) * ROW_WORDS), flags | (last ? InstallFlag.LAST : 0), last)
      flags = 0
      if (last) break
    }
    this.rows.merge(slot, rowsFirst)
    this.raiseLast(slot, given.lastHigh, given.lastLow)
    journal.kick()
    return seq
  }

  /** One INSTALL_PAGES record, and its effect on the index. */
  #installPages(given: BlockInstall, first: number, count: number, payloadPage: number, row: number, flags: number): { data: number; rowAfter: number } {
    const { journal } = this
    const table = this.#table
    const { view } = this.#queue.arena
    let data = 0
    for (let i = first; i < first + count; i++) if (given.flags[i] === PageFlag.DATA) data++
    const bytes = recordBytes(JournalKind.INSTALL_PAGES, count, 0)
    const at = journal.begin(bytes, data)
    const { slot, volume, layer, index } = given
    this.#encodePart(at, { kind: JournalKind.INSTALL_PAGES, flags, slot, volume, layer, index, pageCount: count, rowCount: 0, idHigh: 0, idLow: 0 })
    let rowAfter = row
    if (rowAfter < 0 && count > 0) rowAfter = table.create(volume, layer, index, slot, this.#birthMount, this.destage.round + 1, journal.nextSeq)
    let runFirst = -1
    let dataBefore = 0
    for (let i = first; i < first + count; i++) {
      const page = given.pages[i]!
      const flag = given.flags[i]!
      const entry = at + RecordHeader.size + (i - first) * INSTALL_ENTRY_BYTES
      assert(page < PAGES_PER_BLOCK && isPageFlag(flag), `install of page ${page}, flag ${flag}`)
      view.setUint16(entry, page, true)
      view.setUint8(entry + 2, flag)
      view.setUint8(entry + 3, 0)
      const never = flag === PageFlag.NEVER
      view.setUint32(entry + 4, never ? 0 : given.crc[i]!, true)
      view.setUint32(entry + 8, never ? 0 : given.idHigh[i]!, true)
      view.setUint32(entry + 12, never ? 0 : given.idLow[i]!, true)
      if (runFirst < 0) runFirst = i
      const endsRun = i + 1 === first + count || given.pages[i + 1] !== page + 1 || given.flags[i + 1] !== flag
      if (!endsRun) continue
      const length = i + 1 - runFirst
      const isData = flag === PageFlag.DATA
      const pending = journal.addRun(rowAfter, given.pages[runFirst]!, length, payloadPage + dataBefore, dataBefore, isData ? 1 : 0)
      this.#setInstalled(given, rowAfter, runFirst, length, pending)
      if (isData) dataBefore += length
      runFirst = -1
    }
    if (rowAfter >= 0) journal.touch(rowAfter, journal.currentSegment)
    journal.commit(bytes, payloadPage, data, true)
    return { data, rowAfter }
  }

  #setInstalled(given: BlockInstall, row: number, first: number, count: number, pending: number): void {
    const chunk = this.#table.chunk(row)
    const base = this.#table.base(row)
    for (let i = first; i < first + count; i++) {
      const at = base + given.pages[i]!
      const never = given.flags[i] === PageFlag.NEVER
      chunk.flags[at] = given.flags[i]!
      chunk.idHigh[at] = never ? 0 : given.idHigh[i]!
      chunk.idLow[at] = never ? 0 : given.idLow[i]!
      chunk.crc[at] = never ? 0 : given.crc[i]!
      chunk.loc[at] = pending
      if (given.flags[i]! & PAGE_LOST) this.#table.noteLost(row)
    }
  }

  #installRows(given: BlockInstall, rows: Uint32Array, flags: number, last: boolean): number {
    const rowCount = rows.length / ROW_WORDS
    const bytes = recordBytes(JournalKind.INSTALL_ROWS, 0, rowCount)
    const at = this.journal.begin(bytes, 0)
    const { slot, volume, layer, index } = given
    const idHigh = last ? given.lastHigh : 0
    const idLow = last ? given.lastLow : 0
    this.#encodePart(at, { kind: JournalKind.INSTALL_ROWS, flags, slot, volume, layer, index, pageCount: 0, rowCount, idHigh, idLow })
    const { bytes: arena } = this.#queue.arena
    new Uint32Array(arena.buffer, arena.byteOffset + at + RecordHeader.size, rows.length).set(rows)
    return this.journal.commit(bytes, 0, 0, true)
  }

  #encodePart(
    at: number,
    part: {
      kind: number
      flags: number
      slot: number
      volume: number
      layer: number
      index: number
      pageCount: number
      rowCount: number
      idHigh: number
      idLow: number
    },
  ): void {
    RecordHeader.encode(this.#queue.arena.view, at, {
      ...part,
      firstPage: 0,
      channel: 0,
      clientHigh: 0,
      clientLow: 0,
      seq: 0,
      timestampMs: this.#parts.options.wallMs(),
    })
  }

  #assertRoom(pages: number, batches: number): void {
    const { journal } = this
    if (this.failed) throw new XsanError('WRITE_FAILED', `disk ${this.disk} has failed`)
    if (this.#sealed || journal.tooManyWaiting(false, batches) || journal.freePages - pages - PAGES_KEPT < journal.totalPages * FORWARD_NEEDS_FREE)
      throw this.#journalFull()
  }

  #journalFull(): XsanError {
    return new XsanError('BUSY', `the journal of disk ${this.disk} is full for the moment`, 'It empties by itself: try again.')
  }

  #rowsFit(packed: Uint32Array): void {
    if (!this.rows.hasRoomForAll(packed)) throw new XsanError('BUSY', 'too many client channels on one disk', 'Wait until fenced clients expire.')
  }

  // ---- captures ------------------------------------------------------------------------------------------------------------------

  blocksOf(slot: number): BlockRow[] {
    return this.#table.rowsOf(slot) as BlockRow[]
  }

  blockIdentity(block: BlockRow): { volume: number; layer: number; index: number; slot: number } {
    const { volume, layer, index, slot, used } = this.#table
    assert(used[block] === 1, `block row ${block} is not in use`)
    return { volume: volume[block]!, layer: layer[block]!, index: index[block]!, slot: slot[block]! }
  }

  slotDigest(slot: number): [number, number] {
    return this.#table.digest(slot)
  }

  capture(block: BlockRow): BlockCapture {
    assert(this.#table.used[block] === 1, `block row ${block} is not in use`)
    const capture = new DiskCapture(this.#table, block, this.#nextCapture++, this.journal.nextSeq - 1)
    this.#captures.add(capture)
    this.#table.pin(block)
    return capture
  }

  async readCaptured(given: BlockCapture, firstPage: number, pageCount: number, bufferPage: number): Promise<number> {
    const capture = given as DiskCapture
    assert(this.#captures.has(capture), 'a capture read after its release')
    const isPending = (): boolean => capture.loc.subarray(firstPage, firstPage + pageCount).some((loc) => loc >= PENDING)
    while (isPending() && !this.failed) await this.#io.sleep(0.2)
    for (;;) {
      const status = await this.#readOnce(capture, firstPage, pageCount, bufferPage)
      if (status !== Status.BUSY) return status
      await this.#io.sleep(1)
    }
  }

  #readOnce(capture: DiskCapture, firstPage: number, pageCount: number, bufferPage: number): Promise<number> {
    return new Promise((resolve) => {
      const end = (status: number): void => {
        if (!this.#capturedReads.delete(end)) return
        this.#queue.asyncPending = true
        resolve(status)
      }
      this.#capturedReads.add(end)
      this.reader.read(capture, 0, capture.row, firstPage, pageCount, bufferPage, (_row, status) => end(status), 0)
    })
  }

  release(given: BlockCapture): void {
    const capture = given as DiskCapture
    assert(this.#captures.delete(capture), 'a capture released twice')
    this.#table.unpin(capture.row)
    // the extent of a block that was removed meanwhile is free only now
    if (this.#table.used[capture.row] === 0 && this.#table.pins[capture.row] === 0) this.#giveRoomSoon()
    if (this.#captureWaiters.length === 0) return
    this.#queue.asyncPending = true
    for (const resolve of this.#captureWaiters.splice(0)) resolve()
  }

  #resolveCaptures(row: number, firstPage: number, pageCount: number, pending: number, loc: number, step: number): void {
    if (this.#captures.size === 0) return
    for (const capture of this.#captures) {
      if (capture.row !== row) continue
      for (let i = 0; i < pageCount; i++) if (capture.loc[firstPage + i] === pending) capture.loc[firstPage + i] = loc + i * step
    }
  }

  /** For the destage: see there. */
  async unpinned(row: number): Promise<void> {
    while (this.#table.pins[row]! > 0 && !this.failed) await this.#captureReleased()
  }

  async capturesReleased(): Promise<void> {
    const before = this.#nextCapture
    const older = (): boolean => {
      for (const capture of this.#captures) if (capture.serial < before) return true
      return false
    }
    while (older() && !this.failed) await this.#captureReleased()
  }

  #captureReleased(): Promise<void> {
    return new Promise((resolve) => this.#captureWaiters.push(resolve))
  }

  // ---- repair, sweep, looking ------------------------------------------------------------------------------------------------------

  async repairPage(
    block: BlockRow,
    page: number,
    idHigh: number,
    idLow: number,
    payloadPage: number,
    crc: number,
    flag: number = PageFlag.DATA,
  ): Promise<boolean> {
    const table = this.#table
    if (this.failed || table.used[block] === 0) return false
    const { volume, layer, index, slot } = this.blockIdentity(block)
    for (;;) {
      const chunk = table.chunk(block)
      const at = table.base(block) + page
      if (table.find(volume, layer, index) !== block) return false
      const isUnknown = (chunk.flags[at]! & PAGE_LOST) !== 0 && chunk.idHigh[at] === 0 && chunk.idLow[at] === 0
      const isSame = compareIds(chunk.idHigh[at]!, chunk.idLow[at]!, idHigh, idLow) === 0 && chunk.crc[at] === crc && flag === PageFlag.DATA
      if (!isUnknown && !isSame) return false
      if (this.failed || this.#sealed) return false
      if (!this.journal.tooManyWaiting(false) && this.journal.freePages > PAGES_KEPT * 2) break
      await this.#io.sleep(1)
    }
    const given = { slot, volume, layer, index, remove: false, lastHigh: 0, lastLow: 0, payloadPage, rows: new Uint32Array(0) }
    const pages = { pages: Uint16Array.of(page), idHigh: Uint32Array.of(idHigh), idLow: Uint32Array.of(idLow), crc: Uint32Array.of(crc) }
    const install: BlockInstall = { ...given, ...pages, flags: Uint8Array.of(flag) }
    this.#installPages(install, 0, 1, payloadPage, block, InstallFlag.FIRST | InstallFlag.LAST | InstallFlag.REPAIR)
    this.journal.kick()
    // the payload is the journal's until then, also when too many wait for that already
    while (!(await this.journal.durable())) {
      if (this.failed) return false
      await this.#io.sleep(1)
    }
    return true
  }

  async ioEnded(): Promise<void> {
    await this.journal.ioEnded()
    await this.reader.ended()
  }

  isLost(block: BlockRow, page: number): boolean {
    return (this.#table.chunk(block).flags[this.#table.base(block) + page]! & PAGE_LOST) !== 0
  }

  hasLostPages(block: BlockRow): boolean {
    return this.#table.hasLostPages(block)
  }

  lostPages(limit: number): ReadonlyArray<{ readonly block: BlockRow; readonly page: number }> {
    return this.#table.lostPages(limit).map(({ row, page }) => ({ block: row as BlockRow, page }))
  }

  async sweep(isGarbage: (volume: number, slot: number) => boolean): Promise<number> {
    const table = this.#table
    let dropped = 0
    for (let row = 0; row < table.extentCount; row++) {
      if (row % SWEPT_PER_TURN === SWEPT_PER_TURN - 1) await this.#io.sleep(0)
      if (table.used[row] === 0 || !isGarbage(table.volume[row]!, table.slot[row]!)) continue
      while (!this.failed && (this.journal.tooManyWaiting(true) || this.journal.freePages < PAGES_KEPT * 2)) await this.#io.sleep(1)
      if (this.failed || this.#sealed) break
      if (table.used[row] === 0 || !isGarbage(table.volume[row]!, table.slot[row]!)) continue
      const { volume, layer, index, slot } = this.blockIdentity(row as BlockRow)
      const at = this.journal.begin(RecordHeader.size, 0)
      this.#encodePart(at, { kind: JournalKind.REMOVE, flags: 0, slot, volume, layer, index, pageCount: 0, rowCount: 0, idHigh: 0, idLow: 0 })
      this.journal.commit(RecordHeader.size, 0, 0, false)
      table.remove(row)
      this.journal.kick()
      dropped++
      if (dropped % 64 === 0) await this.#io.sleep(0)
    }
    return dropped
  }

  describe(block: BlockRow): ReturnType<ReplicaStore['describe']> {
    const table = this.#table
    return {
      updateHigh: table.updateHigh[block]!,
      updateLow: table.updateLow[block]!,
      checksum: checksumOf(table, block),
      state: table.updateSeq[block]! > this.stagedSeq ? 'DIRTY' : 'CLEAN',
      timestampMs: table.timestampMs[block]!,
      sizeBytes: sizeOf(table, block),
      pages: pagesOf(table, block),
      extent: block,
    }
  }

  listBlocks(volume: number, from: number, limit: number): number[] {
    const table = this.#table
    const indexes: number[] = []
    for (let row = 0; row < table.extentCount; row++) {
      if (table.used[row] === 1 && table.volume[row] === volume && table.index[row]! >= from) indexes.push(table.index[row]!)
    }
    return indexes.sort((a, b) => a - b).slice(0, limit)
  }

  // ---- failure, watch, end -----------------------------------------------------------------------------------------------------------

  /** In a later turn: whoever has made the room is not done yet. */
  #giveRoomSoon(): void {
    if (this.#room.length > 0) this.#parts.deferred.add(() => this.giveRoom(), 0, Status.SUCCESS, 0)
  }

  /** `admit` may say otherwise. */
  giveRoom(): void {
    if (this.#room.length === 0) return
    for (const fn of this.#room.splice(0)) fn()
  }

  /** The one place where a disk fails: whatever noticed it. */
  fail(reason: string): void {
    this.journal.fail(reason)
  }

  #onFailed(reason: string): void {
    this.failed = true
    this.reader.failed = true
    this.#parts.superblocks.diskFailed()
    this.#queue.asyncPending = true
    for (const resolve of this.#captureWaiters.splice(0)) resolve()
    for (const end of this.#capturedReads) end(Status.READ_FAILED)
    void this.reservation?.stop()
    this.#parts.options.events.onFailed(reason)
    // who waits for room is refused now
    this.#giveRoomSoon()
    if (!this.#hangs) void this.#noteDropped()
  }

  /**
   * After an error nobody knows what the kernel and the drive have dropped of all that was not durable, and the next flush of theirs succeeds: should
   * the disk be mounted again, it is like one that was without power. As well as a disk can that has failed.
   */
  async #noteDropped(): Promise<void> {
    losePower(this.#parts.superblock)
    try {
      await this.#parts.superblocks.write()
    } catch {
      // nothing more can be done with it
    }
  }

  /** Some I/O is under way. */
  watch(): void {
    if (this.#watching || this.failed || this.#closing) return
    this.#watching = true
    this.#queue.timeout((this.#parts.options.hungMs ?? 2000) / WATCH_TICKS, this.#watchTag, 0)
  }

  /** Counts looks, not time: a process that was frozen looks once when it wakes, before it has seen what completed meanwhile. */
  #onWatch(result: number): void {
    this.#watching = false
    if (result < 0 || this.failed) return
    const { journal, reader, destage } = this
    const hungMs = this.#parts.options.hungMs ?? 2000
    const tick = ++journal.tick
    reader.tick = destage.tick = tick
    const oldest = Math.min(journal.oldestTick(), reader.oldestTick())
    const background = destage.oldestTick()
    if (tick - oldest > WATCH_TICKS) this.#failHung(`the disk has not answered for ${hungMs} ms`)
    else if (tick - background > WATCH_TICKS * BACKGROUND_HUNG)
      this.#failHung(`the disk has not answered the background work for ${hungMs * BACKGROUND_HUNG} ms`)
    else if (Math.min(oldest, background) !== Number.POSITIVE_INFINITY) this.watch()
  }

  /** What it keeps it may still do. */
  #failHung(reason: string): void {
    this.#hangs = true
    this.fail(reason)
  }

  /** After a loss of power, once the journal goes on behind what that may have torn: what cannot be read at its end from now on is no torn write. */
  async noteWhole(): Promise<void> {
    await this.journal.settle()
    if (this.failed) return
    this.#parts.superblock.mayEndTorn = false
    await this.#writeSuperblock()
  }

  async forgetPowerLoss(): Promise<void> {
    if (this.failed || this.#closing || !this.lostPower) return
    this.#parts.superblock.lostPower = false
    this.#parts.superblock.servedSince.fill(0)
    await this.#writeSuperblock()
  }

  hasLostPower(slot: number): boolean {
    return this.lostPower && !hasServedSince(this.#parts.superblock, slot)
  }

  async forgetPowerLossOf(slots: readonly number[]): Promise<void> {
    if (this.failed || this.#closing || !this.lostPower) return
    if (slots.filter((slot) => noteServed(this.#parts.superblock, slot)).length > 0) await this.#writeSuperblock()
  }

  async seal(): Promise<void> {
    if (this.failed || this.#closing) return
    this.#sealed = true
    await this.journal.settle()
    if (this.failed) return
    this.#parts.superblock.clean = true
    this.#parts.superblock.durableSeq = this.durableSeq
    await this.#writeSuperblock()
  }

  async #writeSuperblock(): Promise<void> {
    try {
      await this.#parts.superblocks.write()
    } catch (error) {
      this.fail(messageOf(error))
    }
  }

  async close(): Promise<void> {
    assert(!this.#closing, 'closed twice')
    this.#closing = true
    if (this.failed) {
      // What a dead disk still owes may never come: the process ends without it
      void this.#io.close(this.#parts.file)
      return
    }
    await this.destage.stop()
    await this.reservation.stop()
    await this.journal.settle()
    while (this.reader.inUse > 0 || this.#parts.deferred.count > 0) await this.#io.sleep(0.2)
    this.#queue.cancelTimeout(this.#watchTag, 0)
    while (this.#watching) await this.#io.sleep(0.2)
    if (!this.failed) {
      this.#parts.superblock.clean = true
      this.#parts.superblock.durableSeq = this.durableSeq
      await this.#parts.superblocks.write()
    }
    await this.#io.close(this.#parts.file)
    this.destage.dispose()
    this.journal.dispose()
    this.#parts.superblocks.dispose()
  }
}
