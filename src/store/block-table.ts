/**
 * What is on the disk, in memory: blocks, and for each of their 1024 pages the newest id, CRC, flag and place.
 * Typed arrays only: rows of blocks as columns sized at mount, pages in chunks of 16 blocks made when first used.
 *
 * Row n of a block is extent n of the disk. A removed block's row is reused only when no capture holds it.
 *
 * Place of a page (`loc`): 0 = in its extent, as the page table on disk says; below 2^31 = page of the journal (zero pages: the batch that
 * holds the record); PENDING | i = staged record i of the journal, not yet in the kernel.
 */
import { assert } from '../base/assert.ts'
import { PAGES_PER_BLOCK } from '../base/units.ts'
import { DigestSum } from './digest.ts'
import { LEAVES_PER_BLOCK, ROWS_PER_TABLE_PAGE } from './layout.ts'
import { PAGE_LOST, PageFlag } from './store.ts'

export const PENDING = 0x8000_0000
const BLOCKS_PER_CHUNK_BITS = 4
const BLOCKS_PER_CHUNK = 1 << BLOCKS_PER_CHUNK_BITS
const CHUNK_PAGES = BLOCKS_PER_CHUNK * PAGES_PER_BLOCK
const NONE = -1

/** Pages of 16 blocks; page p of block row r is at ((r & 15) << 10) + p. */
export class PageChunk {
  readonly idHigh = new Uint32Array(CHUNK_PAGES)
  readonly idLow = new Uint32Array(CHUNK_PAGES)
  readonly crc = new Uint32Array(CHUNK_PAGES)
  readonly loc = new Uint32Array(CHUNK_PAGES)
  readonly flags = new Uint8Array(CHUNK_PAGES)
}

export class BlockTable {
  readonly extentCount: number
  readonly volume: Float64Array
  readonly layer: Uint32Array
  readonly index: Uint32Array
  readonly slot: Int32Array
  readonly used: Uint8Array
  /** Id and journal position of the last update that touched the block. */
  readonly updateHigh: Uint32Array
  readonly updateLow: Uint32Array
  readonly updateSeq: Float64Array
  readonly timestampMs: Float64Array
  /** Generation from which on leaves of this row belong to this block. */
  readonly birthMount: Uint32Array
  readonly birthRound: Uint32Array
  /** Journal position that created the block. */
  readonly birthSeq: Float64Array
  /** Leaves that exist on disk. */
  readonly leafMask: Uint8Array
  /** Generation of each of them, at row * LEAVES_PER_BLOCK + leaf. */
  readonly leafMount: Uint32Array
  readonly leafRound: Uint32Array
  /** Captures that hold the block's place. */
  readonly pins: Uint16Array
  /** Number of the newest journal segment that has the row in its list of touched rows. */
  readonly touchedIn: Float64Array
  /** Table pages whose copy on disk is behind. */
  readonly tableDirty: Uint8Array
  /** Generation of the current copy of each table page; mount 0: never written. */
  readonly tableMount: Uint32Array
  readonly tableRound: Uint32Array
  usedCount = 0
  /** Mount: the oldest birth that two rows of the extent table name alike. Replay drops such blocks, and creates them anew. */
  birthTwice = Number.POSITIVE_INFINITY
  /** Extents whose space is sure: those before this one (reservation.ts). */
  reservedRows: number
  /** Rows that have had a lost page since the mount. */
  readonly #lostRows = new Set<number>()

  readonly #slotFirst: Int32Array
  readonly #slotNext: Int32Array
  readonly #slotPrev: Int32Array
  readonly #chunks: Array<PageChunk | undefined>
  /** Row + 1 by hash of the identity. */
  readonly #buckets: Int32Array
  readonly #freeRows: Int32Array
  #freeCount = 0
  /** Row found last: one record is looked for several times on its way. */
  #found = NONE

  constructor(extentCount: number, slotCount: number) {
    const n = extentCount
    this.extentCount = this.reservedRows = n
    this.volume = new Float64Array(n)
    this.layer = new Uint32Array(n)
    this.index = new Uint32Array(n)
    this.slot = new Int32Array(n)
    this.used = new Uint8Array(n)
    this.updateHigh = new Uint32Array(n)
    this.updateLow = new Uint32Array(n)
    this.updateSeq = new Float64Array(n)
    this.timestampMs = new Float64Array(n)
    this.birthMount = new Uint32Array(n)
    this.birthRound = new Uint32Array(n)
    this.birthSeq = new Float64Array(n)
    this.leafMask = new Uint8Array(n)
    this.leafMount = new Uint32Array(n * LEAVES_PER_BLOCK)
    this.leafRound = new Uint32Array(n * LEAVES_PER_BLOCK)
    this.pins = new Uint16Array(n)
    this.touchedIn = new Float64Array(n)
    const tablePages = Math.ceil(n / ROWS_PER_TABLE_PAGE)
    this.tableDirty = new Uint8Array(tablePages)
    this.tableMount = new Uint32Array(tablePages)
    this.tableRound = new Uint32Array(tablePages)
    this.#slotFirst = new Int32Array(slotCount).fill(NONE)
    this.#slotNext = new Int32Array(n)
    this.#slotPrev = new Int32Array(n)
    this.#chunks = new Array((n + BLOCKS_PER_CHUNK - 1) >>> BLOCKS_PER_CHUNK_BITS)
    let buckets = 16
    while (buckets < n * 2) buckets *= 2
    this.#buckets = new Int32Array(buckets)
    this.#freeRows = new Int32Array(n)
  }

  /** Extents a new block could take: free, and their space is sure. Those that are not are at the bottom of the list. */
  get freeCount(): number {
    return this.#freeCount - (this.extentCount - this.reservedRows)
  }

  /** Extents no block has. */
  get unusedCount(): number {
    return this.#freeCount
  }

  /** Mount, after replay: the space of extents behind the last one in use is not sure. */
  limitReserved(): void {
    this.fillFreeList()
    let rows = this.extentCount
    while (rows > 0 && this.used[rows - 1] === 0) rows--
    this.reservedRows = rows
  }

  /** After the extent table has been loaded: all rows not in use are free, low ones first. */
  fillFreeList(): void {
    this.#freeCount = 0
    for (let row = this.extentCount - 1; row >= 0; row--) if (this.used[row] === 0) this.#freeRows[this.#freeCount++] = row
  }

  find(volume: number, layer: number, index: number): number {
    const last = this.#found
    if (last !== NONE && this.index[last] === index && this.volume[last] === volume && this.layer[last] === layer) return last
    const mask = this.#buckets.length - 1
    for (let i = hashOf(volume, layer, index) & mask; ; i = (i + 1) & mask) {
      const row = this.#buckets[i]! - 1
      if (row < 0) return NONE
      if (this.index[row] === index && this.volume[row] === volume && this.layer[row] === layer) {
        this.#found = row
        return row
      }
    }
  }

  /** Takes a free extent; the caller has checked that there is one. All pages are never-written. */
  create(volume: number, layer: number, index: number, slot: number, birthMount: number, birthRound: number, birthSeq: number): number {
    assert(this.freeCount > 0, 'no free extent: the record was not admitted')
    const row = this.#freeRows[--this.#freeCount]!
    this.#take(row, volume, layer, index, slot)
    this.leafMask[row] = 0
    this.birthMount[row] = birthMount
    this.birthRound[row] = birthRound
    this.birthSeq[row] = birthSeq
    this.updateHigh[row] = this.updateLow[row] = this.updateSeq[row] = this.timestampMs[row] = 0
    this.markTable(row)
    return row
  }

  /** A row as the extent table on disk has it (mount, before `fillFreeList`). */
  load(row: number, volume: number, layer: number, index: number, slot: number): void {
    this.#take(row, volume, layer, index, slot)
  }

  #take(row: number, volume: number, layer: number, index: number, slot: number): void {
    assert(this.used[row] === 0, `extent ${row} is in use`)
    this.used[row] = 1
    this.usedCount++
    this.volume[row] = volume
    this.layer[row] = layer
    this.index[row] = index
    this.slot[row] = slot
    const first = this.#slotFirst[slot]!
    this.#slotNext[row] = first
    this.#slotPrev[row] = NONE
    if (first !== NONE) this.#slotPrev[first] = row
    this.#slotFirst[slot] = row
    this.#enter(row)
    const chunk = this.chunk(row)
    const base = this.base(row)
    const end = base + PAGES_PER_BLOCK
    chunk.idHigh.fill(0, base, end)
    chunk.idLow.fill(0, base, end)
    chunk.crc.fill(0, base, end)
    chunk.loc.fill(0, base, end)
    chunk.flags.fill(PageFlag.NEVER, base, end)
  }

  /** Undoes a `load` whose block another row names with a later birth (mount, before `fillFreeList`). */
  unload(row: number): void {
    this.pins[row] = 1
    this.remove(row)
    this.pins[row] = 0
  }

  remove(row: number): void {
    assert(this.used[row] === 1, `extent ${row} is not in use`)
    this.#found = NONE
    this.#leave(row)
    const next = this.#slotNext[row]!
    const prev = this.#slotPrev[row]!
    if (prev === NONE) this.#slotFirst[this.slot[row]!] = next
    else this.#slotNext[prev] = next
    if (next !== NONE) this.#slotPrev[next] = prev
    this.used[row] = 0
    this.usedCount--
    this.markTable(row)
    if (this.pins[row] === 0) this.#freeRows[this.#freeCount++] = row
  }

  pin(row: number): void {
    assert(this.pins[row]! < 0xffff, `extent ${row} has too many captures`)
    this.pins[row] = this.pins[row]! + 1
  }

  unpin(row: number): void {
    assert(this.pins[row]! > 0, `extent ${row} has no capture`)
    this.pins[row] = this.pins[row]! - 1
    if (this.pins[row] === 0 && this.used[row] === 0) this.#freeRows[this.#freeCount++] = row
  }

  markTable(row: number): void {
    this.tableDirty[Math.floor(row / ROWS_PER_TABLE_PAGE)] = 1
  }

  chunk(row: number): PageChunk {
    const n = row >>> BLOCKS_PER_CHUNK_BITS
    return this.#chunks[n] ?? (this.#chunks[n] = new PageChunk())
  }

  /** Index of the row's page 0 within its chunk. */
  base(row: number): number {
    return (row & (BLOCKS_PER_CHUNK - 1)) * PAGES_PER_BLOCK
  }

  /** New content of consecutive pages. `crcs` null: no data (flag ZERO). `locStep` 1 when their places follow each other. */
  setPages(
    row: number,
    firstPage: number,
    pageCount: number,
    idHigh: number,
    idLow: number,
    crcs: Uint32Array | null,
    crcFirst: number,
    loc: number,
    locStep: number,
  ): void {
    const chunk = this.chunk(row)
    const from = this.base(row) + firstPage
    const flag = crcs === null ? PageFlag.ZERO : PageFlag.DATA
    for (let i = 0; i < pageCount; i++) {
      const at = from + i
      chunk.idHigh[at] = idHigh
      chunk.idLow[at] = idLow
      chunk.crc[at] = crcs === null ? 0 : crcs[crcFirst + i]!
      chunk.flags[at] = flag
      chunk.loc[at] = loc + i * locStep
    }
  }

  /** The row has a page with PAGE_LOST, or had one. */
  noteLost(row: number): void {
    this.#lostRows.add(row)
  }

  hasLostPages(row: number): boolean {
    if (!this.#lostRows.has(row)) return false
    const base = this.base(row)
    return this.chunk(row)
      .flags.subarray(base, base + PAGES_PER_BLOCK)
      .some((flag) => (flag & PAGE_LOST) !== 0)
  }

  lostPages(limit: number): Array<{ row: number; page: number }> {
    const lost: Array<{ row: number; page: number }> = []
    for (const row of this.#lostRows) {
      const before = lost.length
      const { flags } = this.chunk(row)
      const base = this.base(row)
      for (let page = 0; page < PAGES_PER_BLOCK && this.used[row] === 1; page++) {
        if ((flags[base + page]! & PAGE_LOST) === 0) continue
        if (lost.length === limit) return lost
        lost.push({ row, page })
      }
      if (lost.length === before) this.#lostRows.delete(row)
    }
    return lost
  }

  /** Pages still at the pending place get their place in the journal. */
  resolve(row: number, firstPage: number, pageCount: number, pending: number, loc: number, locStep: number): void {
    const { loc: locs } = this.chunk(row)
    const from = this.base(row) + firstPage
    for (let i = 0; i < pageCount; i++) if (locs[from + i] === pending) locs[from + i] = loc + i * locStep
  }

  /** The block's own id is the newest of its pages (after pages were replaced wholesale, by older ones too). */
  recountUpdate(row: number): void {
    const { idHigh, idLow } = this.chunk(row)
    const from = this.base(row)
    let high = 0
    let low = 0
    for (let at = from; at < from + PAGES_PER_BLOCK; at++) {
      if (idHigh[at]! < high || (idHigh[at] === high && idLow[at]! <= low)) continue
      high = idHigh[at]!
      low = idLow[at]!
    }
    this.updateHigh[row] = high
    this.updateLow[row] = low
  }

  /** Rows of a slot in (volume, layer, index) order. */
  rowsOf(slot: number): number[] {
    const rows: number[] = []
    for (let row = this.#slotFirst[slot]!; row !== NONE; row = this.#slotNext[row]!) rows.push(row)
    return rows.sort((a, b) => this.volume[a]! - this.volume[b]! || this.layer[a]! - this.layer[b]! || this.index[a]! - this.index[b]!)
  }

  digest(slot: number): [number, number] {
    const sum = new DigestSum()
    for (let row = this.#slotFirst[slot]!; row !== NONE; row = this.#slotNext[row]!) {
      sum.block(this.volume[row]!, this.layer[row]!, this.index[row]!)
      const chunk = this.chunk(row)
      const from = this.base(row)
      for (let page = 0; page < PAGES_PER_BLOCK; page++) {
        const at = from + page
        if (chunk.flags[at] !== PageFlag.NEVER) sum.page(page, chunk.idHigh[at]!, chunk.idLow[at]!, chunk.crc[at]!, chunk.flags[at]! & ~PAGE_LOST)
      }
    }
    return sum.value()
  }

  #enter(row: number): void {
    const mask = this.#buckets.length - 1
    let i = hashOf(this.volume[row]!, this.layer[row]!, this.index[row]!) & mask
    while (this.#buckets[i] !== 0) i = (i + 1) & mask
    this.#buckets[i] = row + 1
  }

  /** Backward shift: what follows in the run moves up, so that lookups need no tombstones. */
  #leave(row: number): void {
    const mask = this.#buckets.length - 1
    let hole = hashOf(this.volume[row]!, this.layer[row]!, this.index[row]!) & mask
    while (this.#buckets[hole] !== row + 1) hole = (hole + 1) & mask
    for (let i = (hole + 1) & mask; this.#buckets[i] !== 0; i = (i + 1) & mask) {
      const other = this.#buckets[i]! - 1
      const home = hashOf(this.volume[other]!, this.layer[other]!, this.index[other]!) & mask
      if (((i - home) & mask) < ((i - hole) & mask)) continue
      this.#buckets[hole] = other + 1
      hole = i
    }
    this.#buckets[hole] = 0
  }
}

function hashOf(volume: number, layer: number, index: number): number {
  let h = Math.imul((volume / 0x1_0000_0000) ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(volume | 0, 0xc2b2ae35)
  h = Math.imul(h ^ layer ^ (h >>> 15), 0x27d4eb2f) ^ Math.imul(index, 0x165667b1)
  h ^= h >>> 15
  h = Math.imul(h, 0x2c1b3c6d)
  return (h ^ (h >>> 12)) >>> 0
}
