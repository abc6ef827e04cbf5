/** Pages of the extent table and leaves of the page tables: encoding from the index, and taking back what a mount finds (bytes in layout.ts). */
import { BLOCK_BYTES, PAGE_BYTES, PAGES_PER_BLOCK } from '../base/units.ts'
import type { Arena } from '../env/arena.ts'
import type { BlockTable } from './block-table.ts'
import { blockChecksum } from './digest.ts'
import {
  ExtentRow,
  ExtentTableHeader,
  LEAVES_PER_BLOCK,
  LeafSpare,
  PAGE_ENTRY_BYTES,
  PAGES_PER_LEAF,
  PageEntry,
  ROWS_PER_TABLE_PAGE,
  TABLE_PAGE_MAGIC,
} from './layout.ts'
import { PAGE_LOST, PageFlag } from './store.ts'

/** Of a copy on disk: the higher one wins. */
export interface Generation {
  readonly mount: number
  readonly round: number
}

export function newer(a: Generation, b: Generation): boolean {
  return a.mount > b.mount || (a.mount === b.mount && a.round > b.round)
}

/** Part of the digest of an extent table that a page of that generation makes (0: never written). The digest is their sum modulo 2^32. */
export function tablePageDigest(tablePage: number, { mount, round }: Generation): number {
  if (mount === 0) return 0
  let h = Math.imul(tablePage ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(mount, 0xc2b2ae35)
  h = Math.imul(h ^ (h >>> 15), 0x27d4eb2f) ^ Math.imul(round, 0x165667b1)
  h ^= h >>> 13
  h = Math.imul(h, 0x2c1b3c6d)
  return (h ^ (h >>> 16)) >>> 0
}

const spareAt = (at: number, entry: number): number => at + entry * PAGE_ENTRY_BYTES

function setSpares(view: DataView, at: number, low: number, value: number): void {
  PageEntry.set.spare(view, spareAt(at, low), value & 0xffff)
  PageEntry.set.spare(view, spareAt(at, low + 1), value >>> 16)
}

function getSpares(view: DataView, at: number, low: number): number {
  return PageEntry.get.spare(view, spareAt(at, low)) + PageEntry.get.spare(view, spareAt(at, low + 1)) * 0x1_0000
}

/** Of a disk uuid, for leaves: tells those of an earlier format apart. */
export function diskTagOf(diskUuid: Uint8Array): number {
  return new DataView(diskUuid.buffer, diskUuid.byteOffset).getUint32(0, true)
}

/**
 * One leaf as it may stand on disk: pages in their extent, and pages whose place lies in the journal's [fromLoc, toLoc), which the destage has
 * just copied. Pages with newer content elsewhere in the journal are left out: replay brings them.
 */
export function encodeLeaf(
  arena: Arena,
  bufferPage: number,
  table: BlockTable,
  row: number,
  leaf: number,
  fromLoc: number,
  toLoc: number,
  diskTag: number,
  generation: Generation,
): void {
  const { view } = arena
  const at = bufferPage * PAGE_BYTES
  const { idHigh, idLow, crc, loc, flags } = table.chunk(row)
  const base = table.base(row) + leaf * PAGES_PER_LEAF
  arena.bytes.fill(0, at, at + PAGE_BYTES)
  // PageEntry as four little-endian words: many entries, three times quicker than field by field
  const words = new Uint32Array(arena.bytes.buffer, arena.bytes.byteOffset + at, PAGE_BYTES / 4)
  for (let i = 0; i < PAGES_PER_LEAF; i++) {
    const p = base + i
    const place = loc[p]!
    const flag = flags[p]!
    if (flag === PageFlag.NEVER || (place !== 0 && (place < fromLoc || place >= toLoc))) continue
    const w = i * (PAGE_ENTRY_BYTES / 4)
    words[w] = crc[p]!
    words[w + 1] = idLow[p]!
    words[w + 2] = idHigh[p]!
    words[w + 3] = 0xff | (flag << 8)
  }
  setSpares(view, at, LeafSpare.MOUNT_LOW, generation.mount)
  setSpares(view, at, LeafSpare.ROUND_LOW, generation.round)
  setSpares(view, at, LeafSpare.PLACE_LOW, row * LEAVES_PER_BLOCK + leaf)
  setSpares(view, at, LeafSpare.DISK_LOW, diskTag)
  setSpares(view, at, LeafSpare.CRC_LOW, arena.crc32c(bufferPage, 0, PAGE_BYTES))
}

/** Generation of the leaf in the buffer, or null when it is not a whole leaf of that place. Clears its own checksum. */
export function checkLeaf(arena: Arena, bufferPage: number, row: number, leaf: number, diskTag: number): Generation | null {
  const { view } = arena
  const at = bufferPage * PAGE_BYTES
  if (getSpares(view, at, LeafSpare.PLACE_LOW) !== row * LEAVES_PER_BLOCK + leaf || getSpares(view, at, LeafSpare.DISK_LOW) !== diskTag) return null
  const crc = getSpares(view, at, LeafSpare.CRC_LOW)
  setSpares(view, at, LeafSpare.CRC_LOW, 0)
  if (arena.crc32c(bufferPage, 0, PAGE_BYTES) !== crc) return null
  const mount = getSpares(view, at, LeafSpare.MOUNT_LOW)
  return mount === 0 ? null : { mount, round: getSpares(view, at, LeafSpare.ROUND_LOW) }
}

/** Fills the index from a checked leaf. */
export function loadLeaf(arena: Arena, bufferPage: number, table: BlockTable, row: number, leaf: number): void {
  const { view } = arena
  const at = bufferPage * PAGE_BYTES
  const chunk = table.chunk(row)
  const base = table.base(row) + leaf * PAGES_PER_LEAF
  for (let i = 0; i < PAGES_PER_LEAF; i++) {
    const entry = at + i * PAGE_ENTRY_BYTES
    chunk.crc[base + i] = PageEntry.get.crc(view, entry)
    chunk.idHigh[base + i] = PageEntry.get.idHi(view, entry)
    chunk.idLow[base + i] = PageEntry.get.idLo(view, entry)
    chunk.flags[base + i] = PageEntry.get.flags(view, entry)
    if (chunk.flags[base + i]! & PAGE_LOST) table.noteLost(row)
    chunk.loc[base + i] = 0
  }
}

/** A leaf that the extent row promises and that no copy gives: its pages are lost here, to be fetched from another replica. */
export function loseLeaf(table: BlockTable, row: number, leaf: number): void {
  const base = table.base(row) + leaf * PAGES_PER_LEAF
  table.chunk(row).flags.fill(PageFlag.DATA | PAGE_LOST, base, base + PAGES_PER_LEAF)
  table.noteLost(row)
}

export function checksumOf(table: BlockTable, row: number): number {
  const { crc, flags } = table.chunk(row)
  return blockChecksum(crc, flags, table.base(row))
}

/** Bytes up to the end of the last page with data. */
export function sizeOf(table: BlockTable, row: number): number {
  const { flags } = table.chunk(row)
  const base = table.base(row)
  for (let page = PAGES_PER_BLOCK - 1; page >= 0; page--) if (flags[base + page]! & PageFlag.DATA) return (page + 1) * PAGE_BYTES
  return 0
}

/** Pages with data. */
export function pagesOf(table: BlockTable, row: number): number {
  const { flags } = table.chunk(row)
  const base = table.base(row)
  let pages = 0
  for (let page = 0; page < PAGES_PER_BLOCK; page++) if (flags[base + page]! & PageFlag.DATA) pages++
  return pages
}

export function encodeTablePage(arena: Arena, bufferPage: number, table: BlockTable, tablePage: number, diskUuid: Uint8Array, generation: Generation): void {
  const { view } = arena
  const at = bufferPage * PAGE_BYTES
  arena.bytes.fill(0, at, at + PAGE_BYTES)
  const { set, offsets } = ExtentTableHeader
  set.magic(view, at, TABLE_PAGE_MAGIC)
  set.tablePage(view, at, tablePage)
  set.generationMount(view, at, generation.mount)
  set.generationRound(view, at, generation.round)
  arena.bytes.set(diskUuid, at + offsets.diskUuid)
  for (let i = 0; i < ROWS_PER_TABLE_PAGE; i++) {
    const row = tablePage * ROWS_PER_TABLE_PAGE + i
    if (row >= table.extentCount) break
    if (table.used[row] === 1) encodeRow(view, at + ExtentTableHeader.size + i * ExtentRow.size, table, row)
  }
  set.crc(view, at, arena.crc32c(bufferPage, 0, PAGE_BYTES))
}

function encodeRow(view: DataView, at: number, table: BlockTable, row: number): void {
  const { set } = ExtentRow
  set.blockIdHi(view, at, table.volume[row]! % 0x1_0000_0000)
  set.blockIdLo(view, at, table.index[row]!)
  set.volumeId(view, at, table.volume[row]!)
  set.size(view, at, Math.min(sizeOf(table, row), BLOCK_BYTES))
  set.checksum(view, at, checksumOf(table, row))
  set.timestamp(view, at, table.timestampMs[row]!)
  set.used(view, at, 1)
  set.leafMask(view, at, table.leafMask[row]!)
  set.layer(view, at, table.layer[row]!)
  set.index(view, at, table.index[row]!)
  set.slot(view, at, table.slot[row]!)
  set.birthMount(view, at, table.birthMount[row]!)
  set.birthRound(view, at, table.birthRound[row]!)
  set.updateHigh(view, at, table.updateHigh[row]!)
  set.updateLow(view, at, table.updateLow[row]!)
  set.birthSeq(view, at, table.birthSeq[row]!)
  for (let leaf = 0; leaf < LEAVES_PER_BLOCK; leaf++) {
    const of = at + ExtentRow.offsets.leafGenerations + leaf * 8
    const exists = (table.leafMask[row]! & (1 << leaf)) !== 0
    view.setUint32(of, exists ? table.leafMount[row * LEAVES_PER_BLOCK + leaf]! : 0, true)
    view.setUint32(of + 4, exists ? table.leafRound[row * LEAVES_PER_BLOCK + leaf]! : 0, true)
  }
}

/** This format of the disk has written here (whole or not). */
export function isTablePage(arena: Arena, bufferPage: number, diskUuid: Uint8Array): boolean {
  const at = bufferPage * PAGE_BYTES
  if (ExtentTableHeader.get.magic(arena.view, at) !== TABLE_PAGE_MAGIC) return false
  return diskUuid.every((byte, i) => arena.bytes[at + ExtentTableHeader.offsets.diskUuid + i] === byte)
}

/** Generation of the table page in the buffer; null when it is none of this disk's, or damaged. */
export function checkTablePage(arena: Arena, bufferPage: number, tablePage: number, diskUuid: Uint8Array): Generation | null {
  const { view } = arena
  const at = bufferPage * PAGE_BYTES
  const { get, set } = ExtentTableHeader
  if (!isTablePage(arena, bufferPage, diskUuid) || get.tablePage(view, at) !== tablePage) return null
  const crc = get.crc(view, at)
  set.crc(view, at, 0)
  if (arena.crc32c(bufferPage, 0, PAGE_BYTES) !== crc) return null
  return { mount: get.generationMount(view, at), round: get.generationRound(view, at) }
}

/** Takes the rows of a checked table page into the index. Returns a reason when a row makes no sense. */
export function loadTablePage(arena: Arena, bufferPage: number, table: BlockTable, tablePage: number, slotCount: number): string | null {
  const { view } = arena
  const at = bufferPage * PAGE_BYTES
  const { get } = ExtentRow
  for (let i = 0; i < ROWS_PER_TABLE_PAGE; i++) {
    const row = tablePage * ROWS_PER_TABLE_PAGE + i
    const from = at + ExtentTableHeader.size + i * ExtentRow.size
    if (row >= table.extentCount) break
    if (get.used(view, from) === 0) continue
    const reason = ExtentRow.invalid(view, from)
    if (reason !== null) return `extent row ${row}: ${reason}`
    const slot = get.slot(view, from)
    const volume = get.volumeId(view, from)
    if (slot >= slotCount) return `extent row ${row}: slot ${slot} of ${slotCount}`
    const birthSeq = get.birthSeq(view, from)
    const twin = table.find(volume, get.layer(view, from), get.index(view, from))
    if (twin >= 0) {
      // The block came to another extent, and the crash between the writes of the two table pages: it was removed and created again, or a
      // replay had given it another one (then both rows name one birth, which the journal still has: `birthTwice`)
      if (table.birthSeq[twin] === birthSeq) table.birthTwice = Math.min(table.birthTwice, birthSeq)
      if (table.birthSeq[twin]! >= birthSeq) {
        table.markTable(row)
        continue
      }
      table.unload(twin)
    }
    table.load(row, volume, get.layer(view, from), get.index(view, from), slot)
    table.leafMask[row] = get.leafMask(view, from)
    table.birthMount[row] = get.birthMount(view, from)
    table.birthRound[row] = get.birthRound(view, from)
    table.birthSeq[row] = birthSeq
    for (let leaf = 0; leaf < LEAVES_PER_BLOCK; leaf++) {
      const of = from + ExtentRow.offsets.leafGenerations + leaf * 8
      table.leafMount[row * LEAVES_PER_BLOCK + leaf] = view.getUint32(of, true)
      table.leafRound[row * LEAVES_PER_BLOCK + leaf] = view.getUint32(of + 4, true)
    }
    table.updateHigh[row] = get.updateHigh(view, from)
    table.updateLow[row] = get.updateLow(view, from)
    table.timestampMs[row] = get.timestamp(view, from)
  }
  return null
}
