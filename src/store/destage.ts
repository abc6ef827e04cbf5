/**
 * The way of content from the journal to its extent, in the background, oldest segments first, some of them per round (at least one):
 *
 *   everything staged becomes durable
 *   per window of the round (as much as the buffer takes): live pages, sorted by position -> extents
 *   leaves of the page tables -> their other copy; flush
 *   pages of the extent table that changed -> their other copy; flush
 *   superblock names the next segment as the oldest; flush; the segments are free
 *
 * Invariants:
 * - What goes into a table is durable in the journal first (images are made in memory, then `durable()`, then written).
 * - Reads and captures under way keep what they read: `quiesce` before an extent is overwritten and before a segment is freed, no page of a
 *   block is overwritten while a capture holds the block, no segment is freed while a capture is older than its emptying.
 * - The index says "in its extent" only after the flush.
 * - Content is moved, not judged: a page that has rotted in the journal goes on with the CRC it came with, and whoever reads it is told, and gets it
 *   from another replica. One that cannot be read any more goes on as lost, to be fetched from there; with many of them it is the disk that fails.
 * - Clients have their turns: nothing here looks at more than LOOKS_PER_TURN pages of the index in one go (as bulk-io.ts moves content in memory).
 */
import { XsanError } from '../base/errors.ts'
import { PAGE_BYTES, PAGES_PER_BLOCK } from '../base/units.ts'
import type { AsyncIo } from '../env/async-io.ts'
import { errnoName, type Handle, type Tag } from '../env/ioqueue.ts'
import type { BlockTable } from './block-table.ts'
import { BulkIo } from './bulk-io.ts'
import type { Journal } from './journal.ts'
import {
  dataOffset,
  type Geometry,
  journalOffset,
  LEAVES_PER_BLOCK,
  leafOffset,
  PAGES_PER_LEAF,
  ROWS_PER_TABLE_PAGE,
  segmentPages,
  tablePageCount,
  tablePageOffset,
} from './layout.ts'
import type { Reader } from './read.ts'
import { failureOf, readFully } from './replay.ts'
import { PAGE_LOST, PageFlag } from './store.ts'
import { diskTagOf, encodeLeaf, encodeTablePage, type Generation } from './tables.ts'

/** Background work begins when the journal is fuller than this. */
export const DESTAGE_FROM = 0.3
/**
 * While a segment fills in less than CALM_MS it begins later: what is overwritten meanwhile need not be moved, and the burst has the disk to itself.
 * Clients wait at 70 % (disk-store.ts).
 */
const DESTAGE_FROM_BUSY = 0.55
const CALM_MS = 1000
/** A round takes no larger a part of the journal than one in so many, and no more pages (but a segment at least): it makes room when it ends. */
const ROUNDS_MIN = 4
const ROUND_PAGES_MAX = 16_384
/** Pages of the index looked at in one turn of the reactor. */
const LOOKS_PER_TURN = 4096
/** Journal pages between two live ones that are read rather than skipped. */
const GAP_PAGES_MAX = 4
/** A page is lost when it could not be read so often, with so long in between; no more than so many of a window, and not all of them: then it is the disk. */
const READ_TRIES = 5
const READ_AGAIN_MS = 200
const LOST_MAX = 16

export interface DestageOptions {
  readonly io: AsyncIo
  readonly file: Handle
  readonly path: string
  readonly geometry: Geometry
  readonly diskUuid: Uint8Array
  readonly volatile: boolean
  readonly mountGeneration: number
  readonly table: BlockTable
  readonly journal: Journal
  readonly reader: Reader
  /** Current copy (0 or 1) of each leaf and of each page of the extent table. */
  readonly leafCopy: Uint8Array
  readonly tableCopy: Uint8Array
  readonly bufferPages: number
  /** Writes the superblock with this segment as the oldest; the round of that generation is complete. */
  readonly setTail: (segment: number, round: Generation) => Promise<void>
  /** Resolves when no capture holds the row. */
  readonly unpinned: (row: number) => Promise<void>
  /** Resolves when all captures taken before this call are released. */
  readonly capturesReleased: () => Promise<void>
  readonly onFailed: (reason: string) => void
  /** Some I/O is under way: the watch over hanging ones runs. */
  readonly onBusy: () => void
  readonly onNote: (message: string, fields?: Readonly<Record<string, unknown>>) => void
}

export class Destage {
  /** Rounds so far in this mount; blocks created now belong to the next. */
  round = 0
  segments = 0
  pagesWritten = 0
  readonly #o: DestageOptions
  readonly #buffer: number
  readonly #bulk: BulkIo
  readonly #diskTag: number
  readonly #calmTag: Tag
  #running: Promise<void> | undefined
  #stopping = false
  /** Tick at which the sync, the write of the superblock or the read of one page under way began; Infinity: none is. */
  #syncTick = Number.POSITIVE_INFINITY
  /** When the newest segment was begun. */
  #segmentMs = Number.NEGATIVE_INFINITY
  /** Waits until the journal is fuller, or calm. */
  #waiting: (() => void) | undefined
  /** Pages that were live when the round began, in the order of their places on the disk: row * 1024 + page, and their page of the journal. */
  readonly #roundKeys: Float64Array
  readonly #roundPlaces: Uint32Array
  #roundCount = 0
  /** Those of the window that still are: row * 1024 + page, and their page of the buffer. */
  readonly #keys: Float64Array
  readonly #offsets: Int32Array
  #liveCount = 0
  /** By page of the buffer: 1 when it is live. */
  readonly #isLive: Uint8Array
  /** Pages of the index looked at since clients had their turn. */
  #looked = 0

  constructor(options: DestageOptions) {
    this.#o = options
    this.#diskTag = diskTagOf(options.diskUuid)
    const page = options.io.queue.arena.alloc(options.bufferPages * PAGE_BYTES)
    if (page < 0)
      throw new XsanError('NO_BUFFER', `no ${options.bufferPages} pages of memory for the background work of ${options.path}`, 'Give the node more memory.')
    this.#buffer = page
    this.#bulk = new BulkIo(options.io.queue, {
      file: options.file,
      path: options.path,
      pagesMax: options.bufferPages,
      inMemory: options.volatile,
      onMoved: () => {
        options.io.filesEnded++
      },
      // before the other writes of the round have ended: a flush of the journal may do so first, and is not to be believed any more
      onWriteFailed: options.onFailed,
    })
    const roundPagesMax = Math.max(segmentPages(options.geometry), ROUND_PAGES_MAX)
    this.#roundKeys = new Float64Array(roundPagesMax)
    this.#roundPlaces = new Uint32Array(roundPagesMax)
    this.#keys = new Float64Array(options.bufferPages)
    this.#offsets = new Int32Array(options.bufferPages)
    this.#isLive = new Uint8Array(options.bufferPages)
    this.#calmTag = options.io.queue.register('destage calm', (_row, result) => {
      if (result === 0) this.#wake()
    })
  }

  /** Of the watch over hanging I/O. */
  set tick(tick: number) {
    this.#bulk.tick = tick
  }

  /** Tick at which the I/O under way got on last; Infinity without any. */
  oldestTick(): number {
    return Math.min(this.#bulk.oldestTick(), this.#syncTick)
  }

  get #fill(): number {
    const { journal, geometry } = this.#o
    return (journal.headSegment - journal.tailSegment + 1) / geometry.segmentCount
  }

  /** A new segment was begun. */
  segmentBegun(): void {
    this.#segmentMs = this.#o.io.queue.nowMs
    this.kick()
  }

  /** Begins to work if there is enough to do and nothing is being done. */
  kick(): void {
    if (this.#waiting !== undefined && this.#mustWork) this.#wake()
    if (this.#running !== undefined || this.#stopping || this.#fill <= DESTAGE_FROM) return
    this.#running = this.#work().finally(() => {
      this.#running = undefined
    })
  }

  /** Mount: so many segments must be free before writing can begin. */
  async makeFree(segments: number): Promise<void> {
    const { journal, geometry } = this.#o
    while (geometry.segmentCount - (journal.headSegment - journal.tailSegment + 1) < segments) await this.#round(journal.tailSegment)
  }

  async stop(): Promise<void> {
    this.#stopping = true
    this.#wake()
    await this.#running
  }

  dispose(): void {
    this.#o.io.queue.arena.free(this.#buffer as never)
  }

  async #work(): Promise<void> {
    const { journal } = this.#o
    try {
      while (!this.#stopping && !journal.failed && journal.tailSegment < journal.headSegment && this.#fill > DESTAGE_FROM) {
        if (this.#mustWork) await this.#round(journal.tailSegment)
        else await this.#calm()
      }
    } catch (error) {
      if (error instanceof Stopped) return
      if (!(error instanceof XsanError)) throw error
      this.#o.onFailed(error.message)
    }
  }

  get #mustWork(): boolean {
    return this.#fill > DESTAGE_FROM_BUSY || this.#o.io.queue.nowMs - this.#segmentMs >= CALM_MS
  }

  /** Until the newest segment is as old as a calm journal's, or the journal is fuller. */
  async #calm(): Promise<void> {
    const { queue } = this.#o.io
    const leftMs = this.#segmentMs + CALM_MS - queue.nowMs
    await new Promise<void>((resolve) => {
      this.#waiting = resolve
      queue.timeout(Math.max(0, leftMs), this.#calmTag, 0)
    })
  }

  #wake(): void {
    const resolve = this.#waiting
    if (resolve === undefined) return
    this.#waiting = undefined
    const { queue } = this.#o.io
    queue.cancelTimeout(this.#calmTag, 0)
    queue.asyncPending = true
    resolve()
  }

  /** Segments from `first` on that are neighbours on the disk, no longer written to, and not too many; the last of them. */
  #lastOfRound(first: number): number {
    const { journal, geometry } = this.#o
    const fit = Math.min(Math.floor(geometry.segmentCount / ROUNDS_MIN), Math.floor(ROUND_PAGES_MAX / segmentPages(geometry)))
    const beforeWrap = geometry.segmentCount - (first % geometry.segmentCount)
    return first + Math.max(1, Math.min(fit, beforeWrap, journal.headSegment - first)) - 1
  }

  async #round(first: number): Promise<void> {
    const { journal, geometry, reader } = this.#o
    // Chosen before the wait: what is in these segments was staged before it
    const segment = this.#lastOfRound(first)
    await this.#durable()
    const generation: Generation = { mount: this.#o.mountGeneration, round: ++this.round }
    // A segment's first page is its start batch; journal page 0 would be mistaken for "in its extent"
    const from = journal.segmentStart(first) + 1
    const end = journal.segmentStart(segment) + segmentPages(geometry)
    const touched = new Set<number>()
    for (let s = first; s <= segment; s++) for (const row of journal.touchedRows(s)) touched.add(row)
    const rows = Int32Array.from(touched).sort()
    await this.#gather(rows, from, end)
    for (let at = from; at < end; at += this.#o.bufferPages) await this.#window(at, Math.min(at + this.#o.bufferPages, end))
    await this.#writeLeaves(rows, from, end, generation)
    await this.#sync()
    await this.#arrive(rows, from, end)
    await this.#tables(rows, generation)
    while (journal.stagedSegment <= segment && segment < journal.headSegment) await this.#durable()
    await this.#sync()
    this.#syncTick = this.#bulk.tick
    this.#o.onBusy()
    await this.#o.setTail(segment + 1, generation)
    this.#syncTick = Number.POSITIVE_INFINITY
    await this.#sync()
    await this.#o.capturesReleased()
    await reader.quiesce()
    this.#stopIfFailed()
    journal.freeUpTo(segment + 1)
    this.segments += segment - first + 1
  }

  // ---- pages -------------------------------------------------------------------------------------------------------------------

  /** Once per round: looks at every page of the blocks that the round's segments touched. */
  async #gather(rows: Int32Array, from: number, to: number): Promise<void> {
    const { table } = this.#o
    const keys = this.#roundKeys
    const places = this.#roundPlaces
    let count = 0
    for (const row of rows) {
      await this.#breathe(PAGES_PER_BLOCK)
      if (table.used[row] === 0) continue
      const { loc, flags } = table.chunk(row)
      const base = table.base(row)
      const first = row * PAGES_PER_BLOCK
      for (let page = 0; page < PAGES_PER_BLOCK; page++) {
        const place = loc[base + page]!
        if (place < from || place >= to || flags[base + page] !== PageFlag.DATA) continue
        keys[count] = first + page
        places[count++] = place
      }
    }
    this.#roundCount = count
  }

  /** Live pages of [from, to) into their extents; the index still says "in the journal". */
  async #window(from: number, to: number): Promise<void> {
    for (;;) {
      this.#collect(from, to)
      const pinned = this.#pinnedRow()
      if (pinned < 0) break
      await this.#o.unpinned(pinned)
      this.#stopIfFailed()
    }
    if (this.#liveCount === 0) return
    const failure = await failureOf(this.#readLive(from, to))
    if (failure !== null) {
      await this.#readEach(from, failure)
      this.#collect(from, to)
    }
    await this.#o.reader.quiesce()
    await this.#writeLive()
  }

  /** Of the round's pages those in [from, to) that are neither overwritten nor removed by now; a place of the round is used for nothing else meanwhile. */
  #collect(from: number, to: number): void {
    const { table } = this.#o
    const keys = this.#roundKeys
    const places = this.#roundPlaces
    let count = 0
    for (let i = 0; i < this.#roundCount; i++) {
      const place = places[i]!
      if (place < from || place >= to) continue
      const key = keys[i]!
      const row = Math.floor(key / PAGES_PER_BLOCK)
      const at = table.base(row) + (key % PAGES_PER_BLOCK)
      const chunk = table.chunk(row)
      if (table.used[row] === 0 || chunk.loc[at] !== place || chunk.flags[at] !== PageFlag.DATA) continue
      this.#keys[count] = key
      this.#offsets[count++] = place - from
    }
    this.#liveCount = count
  }

  #pinnedRow(): number {
    for (let i = 0; i < this.#liveCount; i++) {
      const row = Math.floor(this.#keys[i]! / PAGES_PER_BLOCK)
      if (this.#o.table.pins[row]! > 0) return row
    }
    return -1
  }

  async #readLive(from: number, to: number): Promise<void> {
    const { geometry } = this.#o
    const isLive = this.#isLive
    isLive.fill(0)
    for (let i = 0; i < this.#liveCount; i++) isLive[this.#offsets[i]!] = 1
    let next = to - from
    for (let offset = 0; offset < to - from; offset++) {
      if (isLive[offset] === 0) continue
      if (offset - next > GAP_PAGES_MAX || next > offset) next = offset
      for (; next <= offset; next++) this.#bulk.add(journalOffset(geometry, from + next), this.#buffer + next)
    }
    await this.#moved(this.#bulk.read())
  }

  /** Something of the window cannot be read: each of its live pages by itself. Those that cannot are lost from now on. */
  async #readEach(from: number, why: XsanError): Promise<void> {
    const { table, path, onNote } = this.#o
    const bad: number[] = []
    for (let i = 0; i < this.#liveCount; i++) {
      this.#stopIfFailed()
      if ((await this.#failureAt(from, this.#offsets[i]!)) !== null && bad.push(i) > LOST_MAX) throw why
    }
    if (bad.length === this.#liveCount && bad.length > 1) throw why
    for (const i of bad) {
      const key = this.#keys[i]!
      const row = Math.floor(key / PAGES_PER_BLOCK)
      const at = table.base(row) + (key % PAGES_PER_BLOCK)
      const { loc, flags } = table.chunk(row)
      // overwritten or removed meanwhile: nobody wants it
      if (table.used[row] === 0 || loc[at] !== from + this.#offsets[i]! || flags[at] !== PageFlag.DATA) continue
      flags[at] = PageFlag.DATA | PAGE_LOST
      table.noteLost(row)
    }
    if (bad.length > 0) onNote('pages of the journal cannot be read: they are lost here', { path, pages: bad.length, error: why.message })
  }

  /** Of reading one page of the window to its place in the buffer. */
  async #failureAt(from: number, offset: number): Promise<XsanError | null> {
    const { io, file, geometry, path } = this.#o
    for (let tries = 1; ; tries++) {
      this.#syncTick = this.#bulk.tick
      this.#o.onBusy()
      const failure = await failureOf(readFully(io, file, journalOffset(geometry, from + offset), this.#buffer + offset, 1, path))
      this.#syncTick = Number.POSITIVE_INFINITY
      if (failure === null || tries === READ_TRIES) return failure
      await io.sleep(READ_AGAIN_MS)
    }
  }

  async #writeLive(): Promise<void> {
    const { geometry } = this.#o
    this.#stopIfFailed()
    for (let i = 0; i < this.#liveCount; i++) {
      const key = this.#keys[i]!
      this.#bulk.add(dataOffset(geometry, Math.floor(key / PAGES_PER_BLOCK), key % PAGES_PER_BLOCK), this.#buffer + this.#offsets[i]!)
    }
    this.pagesWritten += this.#liveCount
    await this.#moved(this.#bulk.write())
  }

  // ---- leaves --------------------------------------------------------------------------------------------------------------------

  /** Leaves of blocks in `rows` with a page in [from, to). */
  #leavesOf(rows: Int32Array, from: number, to: number): number[] {
    const { table } = this.#o
    const leaves: number[] = []
    for (const row of rows) {
      if (table.used[row] === 0) continue
      for (let leaf = 0; leaf < LEAVES_PER_BLOCK; leaf++) if (this.#leafHas(row, leaf, from, to)) leaves.push(row * LEAVES_PER_BLOCK + leaf)
    }
    return leaves
  }

  /** As many at a time as the buffer has pages. */
  async #writeLeaves(rows: Int32Array, from: number, to: number, generation: Generation): Promise<void> {
    const { io, geometry, table, leafCopy, bufferPages } = this.#o
    const leaves = this.#leavesOf(rows, from, to)
    for (let first = 0; first < leaves.length; first += bufferPages) {
      const part: number[] = []
      for (const place of leaves.slice(first, first + bufferPages)) {
        await this.#breathe(PAGES_PER_LEAF)
        const row = Math.floor(place / LEAVES_PER_BLOCK)
        // Again: blocks may have been removed, and their rows taken by others, meanwhile
        if (table.used[row] === 0 || !this.#leafHas(row, place % LEAVES_PER_BLOCK, from, to)) continue
        encodeLeaf(io.queue.arena, this.#buffer + part.length, table, row, place % LEAVES_PER_BLOCK, from, to, this.#diskTag, generation)
        table.leafMask[row]! |= 1 << (place % LEAVES_PER_BLOCK)
        table.leafMount[place] = generation.mount
        table.leafRound[place] = generation.round
        part.push(place)
      }
      await this.#durable()
      for (const [i, place] of part.entries()) {
        const copy = 1 - leafCopy[place]!
        this.#bulk.addAlone(leafOffset(geometry, Math.floor(place / LEAVES_PER_BLOCK), place % LEAVES_PER_BLOCK, copy), this.#buffer + i)
        leafCopy[place] = copy
      }
      await this.#moved(this.#bulk.write())
    }
  }

  #leafHas(row: number, leaf: number, from: number, to: number): boolean {
    const { table } = this.#o
    const { loc } = table.chunk(row)
    const base = table.base(row) + leaf * PAGES_PER_LEAF
    for (let at = base; at < base + PAGES_PER_LEAF; at++) if (loc[at]! >= from && loc[at]! < to) return true
    return false
  }

  /** Pages whose place is still in the round's segments are in their extents, and their leaves say so, on stable storage. */
  async #arrive(rows: Int32Array, from: number, to: number): Promise<void> {
    const { table } = this.#o
    for (const row of rows) {
      await this.#breathe(PAGES_PER_BLOCK)
      if (table.used[row] === 0) continue
      const { loc } = table.chunk(row)
      const base = table.base(row)
      for (let at = base; at < base + PAGES_PER_BLOCK; at++) if (loc[at]! >= from && loc[at]! < to) loc[at] = 0
    }
  }

  // ---- the extent table ----------------------------------------------------------------------------------------------------------

  async #tables(rows: Int32Array, generation: Generation): Promise<void> {
    const { io, geometry, table, tableCopy, diskUuid, bufferPages } = this.#o
    for (const row of rows) if (table.used[row] === 1) table.markTable(row)
    const dirty: number[] = []
    for (let page = 0; page < tablePageCount(geometry); page++) if (table.tableDirty[page] === 1) dirty.push(page)
    for (let first = 0; first < dirty.length; first += bufferPages) {
      const part = dirty.slice(first, first + bufferPages)
      for (const [i, page] of part.entries()) {
        await this.#breathe(ROWS_PER_TABLE_PAGE * PAGES_PER_BLOCK)
        table.tableDirty[page] = 0
        encodeTablePage(io.queue.arena, this.#buffer + i, table, page, diskUuid, generation)
      }
      await this.#durable()
      for (const [i, page] of part.entries()) {
        const copy = 1 - tableCopy[page]!
        this.#bulk.addAlone(tablePageOffset(geometry, page, copy), this.#buffer + i)
        tableCopy[page] = copy
        table.tableMount[page] = generation.mount
        table.tableRound[page] = generation.round
      }
      await this.#moved(this.#bulk.write())
    }
  }

  /** Called before looking at so many pages of the index: clients have a turn after some 100 us of that. */
  async #breathe(pages: number): Promise<void> {
    this.#looked += pages
    if (this.#looked <= LOOKS_PER_TURN) return
    this.#looked = pages
    await this.#o.io.sleep(0)
    this.#stopIfFailed()
  }

  // ---- waiting -------------------------------------------------------------------------------------------------------------------

  /** A mount watches these counters, later the store does. */
  async #moved(work: Promise<void>): Promise<void> {
    const { io, onBusy } = this.#o
    onBusy()
    io.filesUnderWay++
    try {
      await work
    } finally {
      io.filesUnderWay--
    }
  }

  async #durable(): Promise<void> {
    for (;;) {
      const isDurable = await this.#o.journal.durable()
      this.#stopIfFailed()
      if (isDurable) return
      // too many flushes wait already
      await this.#o.io.sleep(1)
    }
  }

  async #sync(): Promise<void> {
    const { io, file, path, volatile } = this.#o
    this.#stopIfFailed()
    if (volatile) return
    this.#syncTick = this.#bulk.tick
    this.#o.onBusy()
    const result = await io.fdatasync(file)
    this.#syncTick = Number.POSITIVE_INFINITY
    // a flush under way when a write failed succeeds all the same, whatever the drive has dropped of what was to be flushed
    this.#stopIfFailed()
    if (result < 0) throw new XsanError('WRITE_FAILED', `${path}: fdatasync: ${errnoName(result)}`)
  }

  #stopIfFailed(): void {
    if (this.#o.journal.failed) throw new Stopped()
  }
}

/** The disk has failed meanwhile; it was told to whom it concerns. */
class Stopped extends Error {}
