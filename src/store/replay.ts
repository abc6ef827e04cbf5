/**
 * After a crash (or a clean stop): what the journal holds is applied, in order, over what the tables on disk say.
 *
 * Which batches count: from the start of the tail segment on, each valid by itself (checksum, journal uuid, its segment's generation), numbered
 * one after the other, each naming the CRC of the one before. A later generation's first segment says where the generation before it
 * ended. Batches not known to be durable are checked with their payload; the first one that fails ends the journal. If something *later*, or
 * the superblock, says that the missing part was durable, the disk has lost data it had promised to keep: DISK_CORRUPTED, and the replica is rebuilt from its peers.
 * After a clean stop all that is there was durable: a page that is not what its record says has rotted, and is told as that page by who reads it.
 *
 * A page that the disk cannot read is as damaged as one that has rotted. Where the journal ends at one that nothing behind it explains, that is the end only
 * after a power loss, which leaves such pages where a write was under way; else it may be what was acknowledged last: READ_FAILED.
 *
 * Applying from any earlier point gives the same result: records are complete in themselves, and the tables never hold what the journal
 * behind them does not. Descriptors are read, payloads only where they must be checked.
 */
import { XsanError } from '../base/errors.ts'
import { PAGE_BYTES, PAGES_PER_BLOCK } from '../base/units.ts'
import type { AsyncIo } from '../env/async-io.ts'
import { errnoName, type Handle } from '../env/ioqueue.ts'
import type { BlockTable } from './block-table.ts'
import { CHANNELS_PER_CLIENT, type ChannelRows, invalidPackedRows, ROW_WORDS, ROWS_MAX } from './channel-rows.ts'
import { compareIds } from './digest.ts'
import { checkpointPages } from './journal.ts'
import {
  BATCH_MAGIC,
  BatchHeader,
  BatchKind,
  FORMAT_VERSION,
  type Geometry,
  INSTALL_ENTRY_BYTES,
  INSTALL_PAGES_MAX,
  INSTALL_ROWS_MAX,
  InstallFlag,
  JournalKind,
  journalOffset,
  PACKED_ROW_BYTES,
  RecordHeader,
  recordBytes,
  segmentPages,
  WRITE_PAGES_MAX,
} from './layout.ts'
import { isPageFlag, PAGE_LOST, PageFlag } from './store.ts'

const DESCRIPTOR_PAGES_MAX = 4
/** A write cut short by a power loss leaves some pages that cannot be read. With more of them it is the disk. */
const UNREADABLE_MAX = 64
/** A page cannot be read if that fails so often, with so long in between. */
const READ_TRIES = 3
const READ_AGAIN_MS = 100
/** Holds the longest segment start. */
const BUFFER_PAGES = 300
export const REPLAY_BYTES = BUFFER_PAGES * PAGE_BYTES

export interface ReplayOptions {
  readonly io: AsyncIo
  readonly file: Handle
  readonly path: string
  readonly geometry: Geometry
  readonly journalUuid: Uint8Array
  readonly tailSegment: number
  /** Position up to which the superblock knows that everything was durable. */
  readonly durableSeq: number
  /** The store was closed: nothing was under way. */
  readonly clean: boolean
  /** The host lost its power since the last process wrote: what was under way may have left anything. */
  readonly mayEndTorn: boolean
  /** Generation of the last mount, as far as superblock and tables tell. */
  readonly lastMount: number
  readonly table: BlockTable
  readonly rows: ChannelRows
  readonly lastHigh: Uint32Array
  readonly lastLow: Uint32Array
  readonly incomplete: Uint8Array
  /** Birth of blocks that replay creates (the mount is that of the result): leaves written from now on belong to them. */
  readonly birthRound: number
  readonly touch: (row: number, segment: number) => void
}

export interface ReplayResult {
  /** Of this mount: above all that have written anything. */
  readonly generation: number
  readonly lastBatch: number
  readonly lastCrc: number
  readonly headSegment: number
  readonly lastSeq: number
  readonly batches: number
  readonly records: number
  /** Something was cut off at the end: a write that had not been acknowledged as durable. */
  readonly torn: boolean
}

interface BatchAt {
  readonly segment: number
  /** Page of the journal. */
  readonly page: number
  readonly descriptorPages: number
  readonly payloadPages: number
  readonly recordCount: number
  readonly firstSeq: number
  readonly batch: number
  readonly crc: number
}

interface SegmentStart extends BatchAt {
  readonly generation: number
  readonly prevCrc: number
  readonly durableSeq: number
}

/** One descriptor's record, checked. */
interface Parsed {
  readonly at: number
  readonly kind: number
  readonly dataPages: number
}

export async function replay(o: ReplayOptions): Promise<ReplayResult> {
  const { arena } = o.io.queue
  const buffer = arena.alloc(BUFFER_PAGES * PAGE_BYTES)
  if (buffer < 0) throw new XsanError('NO_BUFFER', `no ${BUFFER_PAGES} pages of memory to replay the journal of ${o.path}`)
  try {
    return await new Replay(o, buffer).run()
  } finally {
    arena.free(buffer as never)
  }
}

class Replay {
  readonly #o: ReplayOptions
  readonly #view: DataView
  readonly #buffer: number
  readonly #pagesPerSegment: number
  /** Journal pages in the buffer: [from, from + count). */
  #from = 0
  #count = 0
  #records = 0
  /** Of this mount. */
  #generation = 0
  #isClean = false
  /** Pages of the journal that cannot be read, and why: zeros in the buffer. */
  readonly #unreadable = new Map<number, XsanError>()
  /** Somewhere in [from, to) is such a page: there only what is asked for is read. */
  #badFrom = 0
  #badTo = 0
  /** By place: beginnings of segments that may be such. */
  readonly #unreadableStarts = new Map<number, XsanError>()
  /** Parts of an install whose last one has not come yet. */
  #parts: Array<() => void> = []

  constructor(o: ReplayOptions, buffer: number) {
    this.#o = o
    this.#view = o.io.queue.arena.view
    this.#buffer = buffer
    this.#pagesPerSegment = segmentPages(o.geometry)
  }

  async run(): Promise<ReplayResult> {
    const { tailSegment, path } = this.#o
    const starts = await this.#readStarts()
    const newestMount = Math.max(this.#o.lastMount, ...[...starts.values()].map(({ generation }) => generation))
    this.#generation = newestMount + 1
    // a journal that goes on behind the superblock that says so was not closed then
    this.#isClean = this.#o.clean && newestMount === this.#o.lastMount
    const oldest = starts.get(tailSegment)
    if (oldest === undefined) {
      if (tailSegment > 1 || this.#o.durableSeq > 0 || isDurableIn(starts, 1) || (await this.#showsDurable(tailSegment, 0, 0, 1)))
        throw this.#startUnreadable(tailSegment) ?? corrupted(path, `the journal's oldest segment ${tailSegment} is gone`)
      this.#mayEndAt(this.#startUnreadable(tailSegment))
      return { generation: this.#generation, lastBatch: 0, lastCrc: 0, headSegment: tailSegment - 1, lastSeq: 0, batches: 0, records: 0, torn: false }
    }
    await this.#applyCheckpoint(oldest)
    this.#dropFuture(oldest.firstSeq)
    let start: SegmentStart = oldest
    const batches: BatchAt[] = []
    let head: SegmentStart = start
    let last: BatchAt = start
    let durableSeq = start.durableSeq
    let nextSeq = start.firstSeq
    let unreadable: XsanError | undefined
    for (;;) {
      const next: SegmentStart | undefined = starts.get(start.segment + 1)
      const follows: SegmentStart | undefined = next !== undefined && next.generation >= start.generation ? next : undefined
      let page = start.page + start.descriptorPages
      while (last.batch + 1 !== follows?.batch) {
        const found = await this.#readBatch(start, page, last.batch + 1, last.crc, nextSeq)
        if (found === null) break
        durableSeq = Math.max(durableSeq, BatchHeader.get.durableSeq(this.#view, this.#at(page)))
        batches.push(found)
        last = found
        nextSeq += found.recordCount
        page += found.descriptorPages + found.payloadPages
      }
      if (follows !== undefined && last.batch + 1 === follows.batch && last.crc === follows.prevCrc && follows.firstSeq === nextSeq) {
        start = head = follows
        last = follows
        durableSeq = Math.max(durableSeq, follows.durableSeq)
        continue
      }
      const { segment } = start
      unreadable = this.#unreadableIn(page, DESCRIPTOR_PAGES_MAX) ?? this.#startUnreadable(segment + 1)
      // the superblock knows where it ends
      if (this.#isClean) break
      // in what follows here, and, should a segment's beginning be what is damaged, behind it
      const isDamaged =
        isDurableIn(starts, nextSeq) ||
        (await this.#showsDurable(segment, page - start.page, last.batch, nextSeq)) ||
        (await this.#showsDurable(segment + 1, 0, last.batch, nextSeq))
      if (isDamaged) throw unreadable ?? corrupted(path, `journal batch ${last.batch + 1} in segment ${segment} is damaged`)
      this.#mayEndAt(unreadable)
      break
    }
    const cut = this.#isClean ? -1 : await this.#firstBadPayload(batches, Math.max(durableSeq, this.#o.durableSeq))
    if (cut >= 0) {
      const bad = batches[cut]!
      last = cut === 0 ? oldest : batches[cut - 1]!
      for (let s = tailSegment; s <= head.segment; s++) {
        const candidate = starts.get(s)!
        if (candidate.batch < bad.batch && candidate.batch > last.batch) last = candidate
      }
      batches.length = cut
      nextSeq = bad.firstSeq
    }
    if (nextSeq <= this.#o.durableSeq) throw unreadable ?? corrupted(path, `the journal ends at record ${nextSeq - 1}, and ${this.#o.durableSeq} was durable`)
    for (const batch of batches) await this.#apply(batch)
    const torn = cut >= 0
    return {
      generation: this.#generation,
      lastBatch: last.batch,
      lastCrc: last.crc,
      headSegment: last.segment,
      lastSeq: nextSeq - 1,
      batches: batches.length,
      records: this.#records,
      torn,
    }
  }

  // ---- finding what counts ---------------------------------------------------------------------------------------------------

  async #readStarts(): Promise<Map<number, SegmentStart>> {
    const starts = new Map<number, SegmentStart>()
    for (let i = 0; i < this.#o.geometry.segmentCount; i++) {
      const page = i * this.#pagesPerSegment
      const start = await this.#readStart(page)
      if (start !== null && start.segment % this.#o.geometry.segmentCount === i) starts.set(start.segment, start)
    }
    for (const segment of starts.keys()) if (segment < this.#o.tailSegment) starts.delete(segment)
    return starts
  }

  async #readStart(page: number): Promise<SegmentStart | null> {
    const { get } = BatchHeader
    await this.#load(page, 1, 1)
    this.#noteStart(page, 1)
    const at = this.#at(page)
    if (!this.#isOurs(at) || get.kind(this.#view, at) !== BatchKind.SEGMENT_START) return null
    const slotCount = get.slotCount(this.#view, at)
    const rowCount = get.rowCount(this.#view, at)
    const descriptorPages = get.descriptorPages(this.#view, at)
    if (slotCount !== this.#o.lastHigh.length || rowCount > ROWS_MAX || descriptorPages !== checkpointPages(slotCount, rowCount)) return null
    if (descriptorPages > BUFFER_PAGES) return null
    await this.#load(page, descriptorPages, descriptorPages)
    this.#noteStart(page, descriptorPages)
    if (!this.#crcHolds(page, descriptorPages)) return null
    const reason = BatchHeader.invalid(this.#view, this.#at(page))
    if (reason !== null) return null
    return {
      ...this.#describe(page),
      generation: get.generation(this.#view, this.#at(page)),
      prevCrc: get.prevCrc(this.#view, this.#at(page)),
      durableSeq: get.durableSeq(this.#view, this.#at(page)),
    }
  }

  /** The batch at that page if it is the next one, else null. Its descriptor is in the buffer afterwards. */
  async #readBatch(start: SegmentStart, page: number, batch: number, prevCrc: number, firstSeq: number): Promise<BatchAt | null> {
    const { get } = BatchHeader
    const end = start.page + this.#pagesPerSegment
    if (page >= end) return null
    await this.#load(page, 1)
    const at = this.#at(page)
    if (!this.#isOurs(at) || get.generation(this.#view, at) !== start.generation || get.segment(this.#view, at) !== start.segment) return null
    if (get.batch(this.#view, at) !== batch || get.prevCrc(this.#view, at) !== prevCrc || get.firstSeq(this.#view, at) !== firstSeq) return null
    if (!(await this.#wholeBatch(page, end))) return null
    const found = this.#describe(page)
    return this.#parse(found) === null ? null : found
  }

  /** A records batch with the right checksum lies at that page (its descriptor is in the buffer then). */
  async #wholeBatch(page: number, end: number): Promise<boolean> {
    const { get } = BatchHeader
    const at = this.#at(page)
    const descriptorPages = get.descriptorPages(this.#view, at)
    const payloadPages = get.payloadPages(this.#view, at)
    if (get.kind(this.#view, at) !== BatchKind.RECORDS || descriptorPages < 1 || descriptorPages > DESCRIPTOR_PAGES_MAX) return false
    if (page + descriptorPages + payloadPages > end) return false
    await this.#load(page, descriptorPages)
    return this.#crcHolds(page, descriptorPages) && BatchHeader.invalid(this.#view, this.#at(page)) === null
  }

  #describe(page: number): BatchAt {
    const { get } = BatchHeader
    const at = this.#at(page)
    return {
      segment: get.segment(this.#view, at),
      page,
      descriptorPages: get.descriptorPages(this.#view, at),
      payloadPages: get.payloadPages(this.#view, at),
      recordCount: get.recordCount(this.#view, at),
      firstSeq: get.firstSeq(this.#view, at),
      batch: get.batch(this.#view, at),
      crc: get.crc(this.#view, at),
    }
  }

  /** Behind the end of the journal, from that page of a segment on, lies a batch that was written knowing that what is missing had been durable: loss, not a torn write. */
  async #showsDurable(segment: number, from: number, lastBatch: number, nextSeq: number): Promise<boolean> {
    const { get } = BatchHeader
    const start = (segment % this.#o.geometry.segmentCount) * this.#pagesPerSegment
    const end = start + this.#pagesPerSegment
    for (let page = start + from; page < end; page++) {
      await this.#load(page, 1)
      const at = this.#at(page)
      if (!this.#isOurs(at) || get.segment(this.#view, at) !== segment) continue
      if (get.batch(this.#view, at) > lastBatch && get.durableSeq(this.#view, at) >= nextSeq && (await this.#wholeBatch(page, end))) return true
    }
    return false
  }

  /** Index of the first batch, of those not known durable, whose payload is not what its records say; -1 when all are whole. */
  async #firstBadPayload(batches: readonly BatchAt[], durableSeq: number): Promise<number> {
    for (const [i, batch] of batches.entries()) {
      if (batch.recordCount > 0 && batch.firstSeq + batch.recordCount - 1 <= durableSeq) continue
      const crcs = await this.#payloadCrcs(batch)
      for (let done = 0; done < batch.payloadPages; done += BUFFER_PAGES) {
        const first = batch.page + batch.descriptorPages + done
        const count = Math.min(BUFFER_PAGES, batch.payloadPages - done)
        this.#count = 0
        await this.#load(first, count)
        for (let p = 0; p < count; p++) {
          if (this.#o.io.queue.arena.crc32c(this.#buffer + first + p - this.#from, 0, PAGE_BYTES) === crcs[done + p]) continue
          this.#mayEndAt(this.#unreadable.get(first + p))
          return i
        }
      }
    }
    return -1
  }

  async #payloadCrcs(batch: BatchAt): Promise<number[]> {
    const crcs: number[] = []
    for (const { at, kind } of await this.#recordsOf(batch)) {
      const pageCount = RecordHeader.get.pageCount(this.#view, at)
      const body = at + RecordHeader.size
      if (kind === JournalKind.WRITE) for (let i = 0; i < pageCount; i++) crcs.push(this.#view.getUint32(body + i * 4, true))
      else if (kind === JournalKind.INSTALL_PAGES) {
        for (let i = 0; i < pageCount; i++) {
          const entry = body + i * INSTALL_ENTRY_BYTES
          if (this.#view.getUint8(entry + 2) === PageFlag.DATA) crcs.push(this.#view.getUint32(entry + 4, true))
        }
      }
    }
    return crcs
  }

  /** The records of the batch whose descriptor is in the buffer, or null when they make no sense. */
  #parse(batch: BatchAt): Parsed[] | null {
    const { get } = RecordHeader
    const view = this.#view
    const out: Parsed[] = []
    let at = this.#at(batch.page) + BatchHeader.size
    const end = this.#at(batch.page) + batch.descriptorPages * PAGE_BYTES
    let payload = 0
    for (let i = 0; i < batch.recordCount; i++) {
      if (at + RecordHeader.size > end || RecordHeader.invalid(view, at) !== null) return null
      const kind = get.kind(view, at)
      const pageCount = get.pageCount(view, at)
      const rowCount = get.rowCount(view, at)
      if (get.slot(view, at) >= this.#o.lastHigh.length || get.channel(view, at) >= CHANNELS_PER_CLIENT) return null
      if (kind < JournalKind.WRITE || kind > JournalKind.COMPLETE) return null
      if (get.firstPage(view, at) + (kind === JournalKind.INSTALL_PAGES ? 0 : pageCount) > PAGES_PER_BLOCK) return null
      if (kind === JournalKind.WRITE && pageCount > WRITE_PAGES_MAX) return null
      if (kind === JournalKind.INSTALL_PAGES && pageCount > INSTALL_PAGES_MAX) return null
      if (kind === JournalKind.INSTALL_ROWS && rowCount > INSTALL_ROWS_MAX) return null
      const bytes = recordBytes(kind, pageCount, rowCount)
      if (at + bytes > end) return null
      let dataPages = kind === JournalKind.WRITE ? pageCount : 0
      if (kind === JournalKind.INSTALL_PAGES) {
        for (let p = 0; p < pageCount; p++) {
          const entry = at + RecordHeader.size + p * INSTALL_ENTRY_BYTES
          const flag = view.getUint8(entry + 2)
          if (view.getUint16(entry, true) >= PAGES_PER_BLOCK || !isPageFlag(flag)) return null
          if (flag === PageFlag.DATA) dataPages++
        }
      }
      if (kind === JournalKind.INSTALL_ROWS && invalidPackedRows(this.#packedRows(at, rowCount)) !== null) return null
      out.push({ at, kind, dataPages })
      payload += dataPages
      at += bytes
    }
    return payload === batch.payloadPages ? out : null
  }

  // ---- applying ----------------------------------------------------------------------------------------------------------------

  async #applyCheckpoint(start: SegmentStart): Promise<void> {
    const { lastHigh, lastLow, incomplete, rows } = this.#o
    await this.#loadAgain(start)
    let at = this.#at(start.page) + BatchHeader.size
    const rowCount = BatchHeader.get.rowCount(this.#view, this.#at(start.page))
    for (let slot = 0; slot < lastHigh.length; slot++, at += 8) {
      lastHigh[slot] = this.#view.getUint32(at, true)
      lastLow[slot] = this.#view.getUint32(at + 4, true)
    }
    const bitWords = Math.ceil(lastHigh.length / 32)
    const bits = this.#words(at, bitWords)
    for (let slot = 0; slot < lastHigh.length; slot++) incomplete[slot] = (bits[slot >>> 5]! >>> (slot & 31)) & 1
    at += bitWords * 4
    rows.merge(-1, this.#words(at, rowCount * ROW_WORDS))
  }

  /**
   * The tables may be ahead of the journal's beginning. Blocks created behind it are dropped here and come again with their records, all of
   * which the journal still has; otherwise a record from before a removal would touch the block created after it.
   */
  #dropFuture(firstSeq: number): void {
    const { table, path } = this.#o
    if (table.birthTwice < firstSeq) throw corrupted(path, `two extents hold the block of record ${table.birthTwice}`)
    for (let row = 0; row < table.extentCount; row++) if (table.used[row] === 1 && table.birthSeq[row]! >= firstSeq) table.remove(row)
  }

  async #apply(batch: BatchAt): Promise<void> {
    let payload = batch.page + batch.descriptorPages
    for (const [i, { at, kind, dataPages }] of (await this.#recordsOf(batch)).entries()) {
      this.#applyRecord(at, kind, payload, batch, batch.firstSeq + i)
      payload += dataPages
      this.#records++
    }
  }

  #applyRecord(at: number, kind: number, payload: number, batch: BatchAt, seq: number): void {
    const { get } = RecordHeader
    const view = this.#view
    const { table, rows, lastHigh, lastLow, incomplete } = this.#o
    const slot = get.slot(view, at)
    if (kind === JournalKind.INSTALL_PAGES || kind === JournalKind.INSTALL_ROWS) {
      this.#installPart(at, kind, payload, batch, seq)
      return
    }
    this.#parts = []
    const idHigh = get.idHigh(view, at)
    const idLow = get.idLow(view, at)
    if (kind === JournalKind.SESSION) {
      lastHigh[slot] = lastLow[slot] = 0
      incomplete[slot] = 1
      rows.clearHeld(slot)
      return
    }
    if (kind === JournalKind.COMPLETE) incomplete[slot] = 0
    if (kind === JournalKind.REMOVE) this.#remove(at)
    else if (kind === JournalKind.WRITE || kind === JournalKind.ZERO) {
      const row = this.#row(at, seq, kind === JournalKind.WRITE)
      if (row >= 0) {
        const firstPage = get.firstPage(view, at)
        const pageCount = get.pageCount(view, at)
        if (kind === JournalKind.WRITE) {
          const crcs = this.#words(at + RecordHeader.size, pageCount)
          table.setPages(row, firstPage, pageCount, idHigh, idLow, crcs, 0, payload, 1)
        } else table.setPages(row, firstPage, pageCount, idHigh, idLow, null, 0, batch.page, 0)
        table.updateHigh[row] = idHigh
        table.updateLow[row] = idLow
        table.updateSeq[row] = seq
        table.timestampMs[row] = get.timestampMs(view, at)
        this.#o.touch(row, batch.segment)
      }
    }
    this.#raiseLast(slot, idHigh, idLow)
    const clientHigh = get.clientHigh(view, at)
    if (clientHigh !== 0) rows.set(clientHigh, get.clientLow(view, at), get.channel(view, at), get.seq(view, at), slot, idHigh, idLow)
  }

  /** Parts of an install count together or not at all: when the last one is there. (The first may be gone with a segment freed since.) */
  #installPart(at: number, kind: number, payload: number, batch: BatchAt, seq: number): void {
    const flags = RecordHeader.get.flags(this.#view, at)
    if (flags & InstallFlag.FIRST) this.#parts = []
    // The buffer moves on before the last part comes: keep the bytes
    const length = recordBytes(kind, RecordHeader.get.pageCount(this.#view, at), RecordHeader.get.rowCount(this.#view, at))
    const bytes = this.#o.io.queue.arena.bytes.slice(at, at + length)
    this.#parts.push(() => this.#applyPart(new DataView(bytes.buffer), kind, payload, batch, seq))
    if ((flags & InstallFlag.LAST) === 0) return
    for (const apply of this.#parts) apply()
    this.#parts = []
  }

  #applyPart(view: DataView, kind: number, payload: number, batch: BatchAt, seq: number): void {
    const { get } = RecordHeader
    const { table, rows } = this.#o
    const slot = get.slot(view, 0)
    const flags = get.flags(view, 0)
    if (kind === JournalKind.INSTALL_ROWS) {
      rows.merge(slot, new Uint32Array(view.buffer, RecordHeader.size, get.rowCount(view, 0) * ROW_WORDS))
      this.#raiseLast(slot, get.idHigh(view, 0), get.idLow(view, 0))
      return
    }
    const volume = get.volume(view, 0)
    const layer = get.layer(view, 0)
    const index = get.index(view, 0)
    if (flags & InstallFlag.REMOVE) {
      const old = table.find(volume, layer, index)
      if (old >= 0) table.remove(old)
    }
    const pageCount = get.pageCount(view, 0)
    if (pageCount === 0) return
    let row = table.find(volume, layer, index)
    if (row < 0 && flags & InstallFlag.REPAIR) return
    if (row < 0 && table.freeCount === 0) throw corrupted(this.#o.path, `the journal creates more blocks than there are extents (record ${seq})`)
    if (row < 0) row = table.create(volume, layer, index, slot, this.#generation, this.#o.birthRound, seq)
    applyInstallEntries(view, RecordHeader.size, pageCount, table, row, payload, batch.page)
    table.recountUpdate(row)
    table.updateSeq[row] = seq
    table.timestampMs[row] = get.timestampMs(view, 0)
    this.#o.touch(row, batch.segment)
  }

  #remove(at: number): void {
    const row = this.#row(at, 0, false)
    if (row >= 0) this.#o.table.remove(row)
  }

  /** Row of the record's block, or -1. */
  #row(at: number, seq: number, create: boolean): number {
    const { get } = RecordHeader
    const { table, birthRound } = this.#o
    const volume = get.volume(this.#view, at)
    const layer = get.layer(this.#view, at)
    const index = get.index(this.#view, at)
    const row = table.find(volume, layer, index)
    if (row >= 0 || !create) return row
    if (table.freeCount === 0) throw corrupted(this.#o.path, `the journal creates more blocks than there are extents (record ${seq})`)
    return table.create(volume, layer, index, get.slot(this.#view, at), this.#generation, birthRound, seq)
  }

  #raiseLast(slot: number, idHigh: number, idLow: number): void {
    const { lastHigh, lastLow } = this.#o
    if (compareIds(idHigh, idLow, lastHigh[slot]!, lastLow[slot]!) <= 0) return
    lastHigh[slot] = idHigh
    lastLow[slot] = idLow
  }

  // ---- bytes -------------------------------------------------------------------------------------------------------------------

  /** Of a batch that was found whole before. */
  async #recordsOf(batch: BatchAt): Promise<Parsed[]> {
    await this.#loadAgain(batch)
    return this.#parse(batch)!
  }

  /** What was found whole before is in the buffer afterwards. The disk may give other bytes than then, or none. */
  async #loadAgain({ page, descriptorPages, crc, batch, segment }: BatchAt): Promise<void> {
    await this.#load(page, descriptorPages)
    if (BatchHeader.get.crc(this.#view, this.#at(page)) === crc && this.#crcHolds(page, descriptorPages)) return
    throw this.#unreadableIn(page, descriptorPages) ?? corrupted(this.#o.path, `journal batch ${batch} in segment ${segment} reads differently each time`)
  }

  // ---- what cannot be read -------------------------------------------------------------------------------------------------------

  /** The journal seems to end where this was met. */
  #mayEndAt(unreadable: XsanError | undefined): void {
    if (unreadable !== undefined && !this.#o.mayEndTorn) throw unreadable
  }

  #unreadableIn(page: number, count: number): XsanError | undefined {
    for (const [at, why] of this.#unreadable) if (at >= page && at < page + count) return why
    return undefined
  }

  #noteStart(page: number, count: number): void {
    const why = this.#unreadableIn(page, count)
    if (why !== undefined) this.#unreadableStarts.set(page / this.#pagesPerSegment, why)
  }

  #startUnreadable(segment: number): XsanError | undefined {
    return this.#unreadableStarts.get(segment % this.#o.geometry.segmentCount)
  }

  /** A page that cannot be read is zeros. */
  async #read(page: number, count: number): Promise<void> {
    const failure = this.#unreadableIn(page, count) ?? (await this.#failureOf(page, count))
    if (failure === null) return
    if (count > 1) {
      const half = count >> 1
      await this.#read(page, half)
      await this.#read(page + half, count - half)
      return
    }
    this.#unreadable.set(page, failure)
    if (this.#unreadable.size > UNREADABLE_MAX) throw failure
    const at = this.#at(page)
    this.#o.io.queue.arena.bytes.fill(0, at, at + PAGE_BYTES)
  }

  /** Of a read into the buffer. */
  async #failureOf(page: number, count: number): Promise<XsanError | null> {
    const { io, file, geometry, path } = this.#o
    for (let tries = 1; ; tries++) {
      const failure = await failureOf(readFully(io, file, journalOffset(geometry, page), this.#buffer + page - this.#from, count, path))
      if (failure === null || count > 1 || tries === READ_TRIES) return failure
      await io.sleep(READ_AGAIN_MS)
    }
  }

  /** Journal pages [page, page + count) are in the buffer afterwards, and some of what follows them, unless something there cannot be read. */
  async #load(page: number, count: number, most = BUFFER_PAGES): Promise<void> {
    if (page >= this.#from && page + count <= this.#from + this.#count) return
    const total = this.#o.geometry.segmentCount * this.#pagesPerSegment
    const wanted = page >= this.#badFrom && page < this.#badTo ? count : Math.min(most, total - page)
    this.#from = page
    this.#count = 0
    if (wanted === count || (await this.#failureOf(page, wanted)) !== null) {
      if (wanted > count) {
        this.#badFrom = page
        this.#badTo = page + wanted
      }
      await this.#read(page, count)
      this.#count = count
    } else this.#count = wanted
  }

  #at(page: number): number {
    return (this.#buffer + page - this.#from) * PAGE_BYTES
  }

  #words(at: number, count: number): Uint32Array {
    const { bytes } = this.#o.io.queue.arena
    return new Uint32Array(bytes.buffer, bytes.byteOffset + at, count).slice()
  }

  #packedRows(at: number, rowCount: number): Uint32Array {
    return this.#words(at + RecordHeader.size, rowCount * (PACKED_ROW_BYTES / 4))
  }

  #isOurs(at: number): boolean {
    const { get, offsets } = BatchHeader
    if (get.magic(this.#view, at) !== BATCH_MAGIC || get.version(this.#view, at) !== FORMAT_VERSION) return false
    return this.#o.journalUuid.every((byte, i) => this.#view.getUint8(at + offsets.journalUuid + i) === byte)
  }

  #crcHolds(page: number, pages: number): boolean {
    const at = this.#at(page)
    const crc = BatchHeader.get.crc(this.#view, at)
    BatchHeader.set.crc(this.#view, at, 0)
    const holds = this.#o.io.queue.arena.crc32c(this.#buffer + page - this.#from, 0, pages * PAGE_BYTES) === crc
    BatchHeader.set.crc(this.#view, at, crc)
    return holds
  }
}

/**
 * Pages of an install: entries at `at` in `view`; DATA pages follow each other from place `payload` on, others are at `other`. For replay; the
 * writer gives pending places instead (disk-store.ts).
 */
function applyInstallEntries(view: DataView, at: number, pageCount: number, table: BlockTable, row: number, payload: number, other: number): void {
  const chunk = table.chunk(row)
  const base = table.base(row)
  let next = payload
  for (let i = 0; i < pageCount; i++) {
    const entry = at + i * INSTALL_ENTRY_BYTES
    const p = base + view.getUint16(entry, true)
    const flag = view.getUint8(entry + 2)
    chunk.flags[p] = flag
    if (flag & PAGE_LOST) table.noteLost(row)
    chunk.crc[p] = view.getUint32(entry + 4, true)
    chunk.idHigh[p] = view.getUint32(entry + 8, true)
    chunk.idLow[p] = view.getUint32(entry + 12, true)
    chunk.loc[p] = flag === PageFlag.DATA ? next++ : other
  }
}

/** A segment was begun knowing that this record had been durable. */
function isDurableIn(starts: ReadonlyMap<number, SegmentStart>, seq: number): boolean {
  return [...starts.values()].some(({ durableSeq }) => durableSeq >= seq)
}

function corrupted(path: string, what: string): XsanError {
  return new XsanError('DISK_CORRUPTED', `${path}: ${what}`, 'Format the disk again; its replicas are rebuilt from their peers.')
}

/** Whole pages into the arena, however short the reads are. Throws READ_FAILED. */
export async function readFully(io: AsyncIo, file: Handle, offsetBytes: number, page: number, pages: number, path: string): Promise<void> {
  let done = 0
  for (let tries = 0; done < pages; tries++) {
    const result = await io.read(file, offsetBytes + done * PAGE_BYTES, page + done, 0, (pages - done) * PAGE_BYTES)
    if (result < 0 || tries > 10_000)
      throw new XsanError('READ_FAILED', `${path}: read at ${offsetBytes}: ${errnoName(result)}`, 'Look at the disk and the kernel log.')
    done += Math.floor(result / PAGE_BYTES)
  }
}

/**
 * As {@link readFully}, of pages that tell by themselves whether they are whole: one that the disk cannot read is zeros. Returns why it could not, null:
 * it read them all. Throws READ_FAILED when it can read none of them.
 */
export async function readReadable(io: AsyncIo, file: Handle, offsetBytes: number, page: number, pages: number, path: string): Promise<XsanError | null> {
  if ((await failureOf(readFully(io, file, offsetBytes, page, pages, path))) === null) return null
  let failure: XsanError | null = null
  let unreadable = 0
  for (let i = 0; i < pages; i++) {
    const why = await failureOf(readFully(io, file, offsetBytes + i * PAGE_BYTES, page + i, 1, path))
    if (why === null) continue
    if (++unreadable === pages) throw why
    failure ??= why
    io.queue.arena.bytes.fill(0, (page + i) * PAGE_BYTES, (page + i + 1) * PAGE_BYTES)
  }
  return failure
}

/** What the world did to it. */
export async function failureOf(work: Promise<unknown>): Promise<XsanError | null> {
  try {
    await work
    return null
  } catch (error) {
    if (!(error instanceof XsanError)) throw error
    return error
  }
}

/** Whole pages from the arena. Throws WRITE_FAILED. */
export async function writeFully(io: AsyncIo, file: Handle, offsetBytes: number, page: number, pages: number, path: string): Promise<void> {
  let done = 0
  for (let tries = 0; done < pages; tries++) {
    const result = await io.write(file, offsetBytes + done * PAGE_BYTES, page + done, 0, (pages - done) * PAGE_BYTES)
    if (result < 0 || tries > 10_000)
      throw new XsanError('WRITE_FAILED', `${path}: write at ${offsetBytes}: ${errnoName(result)}`, 'Look at the disk and the kernel log.')
    done += Math.floor(result / PAGE_BYTES)
  }
}
