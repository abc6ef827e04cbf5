/**
 * Where everything lies on a disk, and the bytes of it. All numbers little-endian; a page is 4 KiB; checksums are CRC-32C.
 *
 *   page 0            superblock A
 *   1 MiB             journal: segmentCount segments of segmentBytes
 *                     extent table: per 31 blocks two alternating copies of a page
 *                     page tables: per block 4 leaves of 256 pages, two alternating copies of each
 *                     extents: 4 MiB per block, block row n in extent n
 *   last page         superblock B
 *
 *   journal segment   | start batch (checkpoint: `last` of each slot, a bit per slot: incomplete, channel rows) | batch | batch | ...
 *   batch             | descriptor pages: header, records | payload pages, in the order of the records |
 *   extent table page | page header, 128 bytes | 31 rows of 128 bytes, each beginning with the documents' 34-byte block header |
 *   page table leaf   | 256 entries of 16 bytes: crc u32 | id u64 | sector mask u8 | flags u8 | spare u16 |
 *                       the spares of entries 0..9 hold the leaf's own checksum, generation (mount, round), place and disk
 *
 * Rules that keep a crash at any moment harmless:
 * - A table page is written only into the copy that is not current, and never describes what is not durable in the journal.
 * - A copy counts if its checksum is right, it names its own place and (leaves) it is not older than the block's birth; the higher generation wins.
 * - A leaf is on stable storage before the extent row says that it exists, and both are before the journal segment is freed.
 * - Each part names the generation of what it points to (superblock -> extent table -> leaf -> CRC of the page), so that a copy that is whole but
 *   older than it should be, because the disk lost or misplaced a write or the newer copy rotted, is told from one that a crash left behind.
 */
import { XsanError } from '../base/errors.ts'
import { BLOCK_BYTES, formatSize, GiB, KiB, MiB, PAGE_BYTES, PAGES_PER_BLOCK } from '../base/units.ts'
import { bytes, note, struct, u8, u16, u32, u53, u64, zero } from '../wire/struct.ts'

/** 2: the journal says which slots are incomplete. 3: each part names the generation of what it points to. */
export const FORMAT_VERSION = 3
/** Feature bits this code knows. An unknown compat bit is ignored, ro-compat forbids writing, incompat forbids mounting. */
export const KNOWN_COMPAT = 0
export const KNOWN_RO_COMPAT = 0
export const KNOWN_INCOMPAT = 0

export const NAME_BYTES = 64
/** Their `last` ids lie in the start of each journal segment. */
export const SLOTS_MAX = 65_536
const SOURCE = 'design section 7'

/** "XSANDISK" */
export const SUPERBLOCK_MAGIC = { hi: 0x4b534944, lo: 0x4e415358 }
export const Superblock = struct(
  'Superblock',
  { size: 512, endian: 'little', source: SOURCE },
  {
    magic: u64,
    formatVersion: u32,
    crc: note(u32, 'over the whole page with this field 0'),
    generation: note(u53, 'of this superblock: the higher valid copy wins'),
    compat: u32,
    roCompat: u32,
    incompat: u32,
    disk: u32,
    diskUuid: bytes(16),
    journalUuid: bytes(16),
    clusterId: bytes(NAME_BYTES),
    nodeId: bytes(NAME_BYTES),
    bootId: note(bytes(NAME_BYTES), 'boot of the host at the last mount'),
    lostPower: note(u32, '1: the host lost power, and not everything here has served since: the slots that have, a bit each, behind this struct'),
    clean: note(u32, '1 after a close'),
    mountGeneration: note(u32, 'raised at each mount'),
    sizeBytes: u53,
    slotCount: u32,
    pageBytes: u32,
    blockBytes: u32,
    segmentCount: u32,
    segmentBytes: u53,
    journalOffset: u53,
    extentTableOffset: u53,
    pageTableOffset: u53,
    extentsOffset: u53,
    extentCount: u53,
    tailSegment: note(u53, 'oldest journal segment that replay needs'),
    tablesMount: note(u32, 'generation of the last completed round of the destage'),
    tablesRound: u32,
    tablesDigest: note(u32, 'over the generations of all pages of the extent table as that round left them'),
    durableSeq: note(u53, 'journal position that was durable when this was written: a journal that ends before it has lost something'),
    mayEndTorn: note(u32, '1: the host lost power, and no mount has ended since: the last write of the journal may be torn'),
    reserved: zero(132),
  },
)

export const BATCH_MAGIC = 0x314a5358
export const BatchKind = { RECORDS: 1, SEGMENT_START: 2 } as const
export const BatchHeader = struct(
  'BatchHeader',
  { size: 128, endian: 'little', source: SOURCE },
  {
    magic: u32,
    version: u16,
    kind: u16,
    crc: note(u32, 'over all descriptor pages with this field 0'),
    prevCrc: note(u32, 'crc of the batch before'),
    journalUuid: bytes(16),
    generation: note(u32, 'mountGeneration of the writer'),
    descriptorPages: u32,
    payloadPages: u32,
    recordCount: u32,
    batch: note(u53, 'number of this batch: 1, 2, ... over the life of the journal'),
    segment: note(u53, 'number of this segment, likewise; its place is number % segmentCount'),
    firstSeq: note(u53, 'position of the first record'),
    durableSeq: note(u53, 'known durable when this was written'),
    slotCount: note(u32, 'segment start: entries of `last` that follow the header, then so many bits in whole words of 32'),
    rowCount: note(u32, 'segment start: packed channel rows after them'),
    reserved: zero(40),
  },
)

/**
 * Kinds of journal records beyond those of the interface. SESSION: a resync of the slot begins, it is incomplete from here on; COMPLETE: it holds
 * everything up to this id again.
 */
export const JournalKind = { WRITE: 1, ZERO: 2, EMPTY: 3, REMOVE: 4, INSTALL_PAGES: 5, INSTALL_ROWS: 6, SESSION: 7, COMPLETE: 8 } as const
/** First and last record of an install: between them nothing else; without the last one nothing of it counts. */
export const InstallFlag = { FIRST: 1, LAST: 2, REMOVE: 4, REPAIR: 8 } as const
/** WRITE: pageCount crcs u32 follow; INSTALL_PAGES: pageCount entries {page u16, flag u8 (129: lost), 0, crc, idHigh, idLow}; INSTALL_ROWS: rowCount packed rows. */
export const RecordHeader = struct(
  'RecordHeader',
  { size: 64, endian: 'little', source: SOURCE },
  {
    kind: u8,
    flags: u8,
    firstPage: u16,
    pageCount: u16,
    channel: u16,
    slot: u32,
    layer: u32,
    volume: u53,
    index: u32,
    rowCount: u32,
    idHigh: u32,
    idLow: u32,
    clientHigh: u32,
    clientLow: u32,
    seq: u53,
    timestampMs: u53,
  },
)
export const INSTALL_ENTRY_BYTES = 16
export const PACKED_ROW_BYTES = 32
/** Pages of one INSTALL_PAGES record, rows of one INSTALL_ROWS record: each fits an ordinary batch. */
export const INSTALL_PAGES_MAX = 256
export const INSTALL_ROWS_MAX = 256
/** Most pages of one WRITE record. */
export const WRITE_PAGES_MAX = 256

/** Bytes of a record with what follows it, a multiple of 8. */
export function recordBytes(kind: number, pageCount: number, rowCount: number): number {
  if (kind === JournalKind.WRITE) return RecordHeader.size + ((pageCount * 4 + 7) & ~7)
  if (kind === JournalKind.INSTALL_PAGES) return RecordHeader.size + pageCount * INSTALL_ENTRY_BYTES
  if (kind === JournalKind.INSTALL_ROWS) return RecordHeader.size + rowCount * PACKED_ROW_BYTES
  return RecordHeader.size
}

export const TABLE_PAGE_MAGIC = 0x31545845
export const ExtentTableHeader = struct(
  'ExtentTableHeader',
  { size: 128, endian: 'little', source: SOURCE },
  {
    magic: u32,
    crc: note(u32, 'over the page with this field 0'),
    tablePage: u32,
    generationMount: u32,
    generationRound: u32,
    diskUuid: bytes(16),
    reserved: zero(92),
  },
)
export const ROWS_PER_TABLE_PAGE = 31

/** Starts with the packed 34-byte block header of document 004. */
export const ExtentRow = struct(
  'ExtentRow',
  { size: 128, endian: 'little', source: 'document 004 (block header), design section 7' },
  {
    blockId: note(u64, 'volume (low 32 bits), block index'),
    volumeId: u53,
    size: note(u32, 'bytes up to the last page with data'),
    checksum: note(u32, 'CRC-32C over the CRCs of the pages'),
    timestamp: note(u53, 'ms since 1970'),
    compressionType: u8,
    encryptionType: u8,
    used: u8,
    leafMask: note(u8, 'leaves that exist on disk'),
    layer: u32,
    index: u32,
    slot: u32,
    birthMount: note(u32, 'leaves older than the birth belong to an earlier block'),
    birthRound: u32,
    updateHigh: u32,
    updateLow: u32,
    birthSeq: note(u53, 'journal position that created the block: the higher one wins when two rows name it'),
    leafGenerations: note(bytes(32), 'per leaf mount u32, round u32: an older copy is not it'),
    reserved: zero(24),
  },
)

export const LEAVES_PER_BLOCK = 4
export const PAGES_PER_LEAF = PAGES_PER_BLOCK / LEAVES_PER_BLOCK
export const PAGE_ENTRY_BYTES = 16
export const PageEntry = struct(
  'PageEntry',
  { size: PAGE_ENTRY_BYTES, endian: 'little', source: SOURCE },
  {
    crc: u32,
    id: u64,
    sectorMask: note(u8, 'sectors with content; 255 in this version'),
    flags: note(u8, 'PageFlag; 129: lost, id and crc as far as known'),
    spare: u16,
  },
)
/** What the spares of entries 0, 1, 2, ... of a leaf hold. */
export const LeafSpare = {
  CRC_LOW: 0,
  CRC_HIGH: 1,
  MOUNT_LOW: 2,
  MOUNT_HIGH: 3,
  ROUND_LOW: 4,
  ROUND_HIGH: 5,
  PLACE_LOW: 6,
  PLACE_HIGH: 7,
  DISK_LOW: 8,
  DISK_HIGH: 9,
} as const

export interface Geometry {
  readonly sizeBytes: number
  readonly segmentBytes: number
  readonly segmentCount: number
  readonly journalOffset: number
  readonly extentTableOffset: number
  readonly pageTableOffset: number
  readonly extentsOffset: number
  readonly extentCount: number
}

const JOURNAL_OFFSET = 1 * MiB
const JOURNAL_BYTES_MAX = 8 * GiB
/** A segment takes the largest batch behind its checkpoint. */
export const SEGMENT_BYTES_MIN = 4 * MiB
export const SEGMENTS_MIN = 4
const SEGMENT_BYTES_MAX = 64 * MiB

const roundDown = (n: number, unit: number): number => Math.floor(n / unit) * unit
const roundUp = (n: number, unit: number): number => Math.ceil(n / unit) * unit
const clamp = (n: number, min: number, max: number): number => Math.max(min, Math.min(max, n))

/** What is overwritten while it waits in the journal is never written to its extent: small disks give an eighth, others a sixteenth. */
export function defaultJournalBytes(sizeBytes: number): number {
  const least = Math.max(Math.min(64 * MiB, roundDown(sizeBytes / 4, MiB)), Math.min(512 * MiB, roundDown(sizeBytes / 8, MiB)))
  return clamp(roundDown(sizeBytes / 16, MiB), least, JOURNAL_BYTES_MAX)
}

/** Cuts a disk of `sizeBytes`. Throws INVALID_PARAM when it is too small. */
export function planGeometry(sizeBytes: number, wanted: { journalBytes?: number | undefined; segmentBytes?: number | undefined } = {}): Geometry {
  const journalBytes = wanted.journalBytes ?? defaultJournalBytes(sizeBytes)
  const segmentBytes = wanted.segmentBytes ?? clamp(roundDown(journalBytes / 16, MiB), SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX)
  const segmentCount = Math.max(SEGMENTS_MIN, Math.floor(journalBytes / segmentBytes))
  if (segmentBytes < SEGMENT_BYTES_MIN || segmentBytes % PAGE_BYTES !== 0)
    throw new XsanError('INVALID_PARAM', `journal segments of ${segmentBytes} bytes`, `Use at least ${formatSize(SEGMENT_BYTES_MIN)}, a multiple of 4 KiB.`)
  const extentTableOffset = JOURNAL_OFFSET + segmentCount * segmentBytes
  const end = roundDown(sizeBytes, PAGE_BYTES) - PAGE_BYTES
  const perBlock = BLOCK_BYTES + LEAVES_PER_BLOCK * 2 * PAGE_BYTES
  let extentCount = Math.max(0, Math.floor((end - extentTableOffset) / perBlock))
  for (; extentCount > 0; extentCount--) {
    const g = cut(extentCount)
    if (g.extentsOffset + extentCount * BLOCK_BYTES <= end) return g
  }
  const least = extentTableOffset + 8 * perBlock
  throw new XsanError(
    'INVALID_PARAM',
    `a disk of ${formatSize(sizeBytes)} has no room for data beside a journal of ${formatSize(segmentCount * segmentBytes)}`,
    `Give it at least ${formatSize(roundUp(least, MiB))}.`,
  )

  function cut(extents: number): Geometry {
    const tablePages = Math.ceil(extents / ROWS_PER_TABLE_PAGE)
    const pageTableOffset = extentTableOffset + tablePages * 2 * PAGE_BYTES
    const extentsOffset = roundUp(pageTableOffset + extents * LEAVES_PER_BLOCK * 2 * PAGE_BYTES, 64 * KiB)
    return { sizeBytes, segmentBytes, segmentCount, journalOffset: JOURNAL_OFFSET, extentTableOffset, pageTableOffset, extentsOffset, extentCount: extents }
  }
}

/** Why this geometry cannot be trusted (each offset must be what the sizes demand), or null. */
export function invalidGeometry(g: Geometry, fileBytes: number): string | null {
  if (g.sizeBytes > fileBytes) return `it was formatted with ${g.sizeBytes} bytes and now has ${fileBytes}`
  if (g.segmentBytes < SEGMENT_BYTES_MIN || g.segmentBytes > 1024 * MiB || g.segmentBytes % PAGE_BYTES !== 0) return `segments of ${g.segmentBytes} bytes`
  if (g.segmentCount < SEGMENTS_MIN || g.segmentCount > 65_536) return `${g.segmentCount} segments`
  if (g.journalOffset !== JOURNAL_OFFSET) return `journal at ${g.journalOffset}`
  if (g.extentTableOffset !== JOURNAL_OFFSET + g.segmentCount * g.segmentBytes) return `extent table at ${g.extentTableOffset}`
  if (g.extentCount < 1 || g.extentCount > 2 ** 22) return `${g.extentCount} extents`
  if (g.pageTableOffset !== g.extentTableOffset + tablePageCount(g) * 2 * PAGE_BYTES) return `page tables at ${g.pageTableOffset}`
  if (g.extentsOffset < g.pageTableOffset + g.extentCount * LEAVES_PER_BLOCK * 2 * PAGE_BYTES) return `extents at ${g.extentsOffset}`
  if (g.extentsOffset % PAGE_BYTES !== 0 || g.extentsOffset + g.extentCount * BLOCK_BYTES > secondSuperblockOffset(g)) return `extents at ${g.extentsOffset}`
  return null
}

export const tablePageCount = (g: Geometry): number => Math.ceil(g.extentCount / ROWS_PER_TABLE_PAGE)
export const secondSuperblockOffset = (g: { sizeBytes: number }): number => roundDown(g.sizeBytes, PAGE_BYTES) - PAGE_BYTES
export const segmentPages = (g: Geometry): number => g.segmentBytes / PAGE_BYTES
export const tablePageOffset = (g: Geometry, tablePage: number, copy: number): number => g.extentTableOffset + (tablePage * 2 + copy) * PAGE_BYTES
export const leafOffset = (g: Geometry, row: number, leaf: number, copy: number): number =>
  g.pageTableOffset + ((row * LEAVES_PER_BLOCK + leaf) * 2 + copy) * PAGE_BYTES
export const dataOffset = (g: Geometry, row: number, page: number): number => g.extentsOffset + row * BLOCK_BYTES + page * PAGE_BYTES
/** Byte offset of a page of the journal, counted from the journal's start. */
export const journalOffset = (g: Geometry, journalPage: number): number => g.journalOffset + journalPage * PAGE_BYTES
