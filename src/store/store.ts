/**
 * What the chain layer sees of one disk. Implemented by `disk-store.ts` (journal, extents, page tables on an io queue) and by
 * `memory-store.ts` (a deliberately simple reference with the same results, the oracle of the tests).
 *
 * The store knows nothing of chains: it stages records in the order it is given them, says when they are durable, finds the newest
 * content and the ids of pages, keeps one row per client channel, and gives consistent captures of a block for resync.
 *
 * An update id is (idHigh, idLow), two u32 of one u64: chain version in the upper 24 bits, slot sequence number in the lower 40 (protocol 1).
 * Compare idHigh, then idLow, unsigned. (0, 0) means none.
 *
 * In-memory effects of `stage` (page ids, `last`, channel row, space) are immediate; the bytes follow through the journal:
 * submitted -> staged (in the kernel: survives a kill) -> durable (survives a power loss), all three in stage order.
 * Every call that takes (tag, row) completes through the callback object given to `mount`, never inside the call.
 */
import type { Brand, DiskNumber } from '../base/ids.ts'
import type { ChannelRows } from './channel-rows.ts'

/** Row of a block in the store's tables while it exists; not stable across removal. */
export type BlockRow = Brand<number, 'BlockRow'>
export const NO_BLOCK = -1 as BlockRow

export const RecordKind = {
  /** Whole pages with payload. */
  WRITE: 1,
  /** Whole pages become zeros (trim, write zeroes); no payload, data space may be freed. */
  ZERO: 2,
  /** Nothing: a Cancel (protocol 16). */
  EMPTY: 3,
  /** The block is removed. Removing an absent block is fine. */
  REMOVE: 4,
} as const
export type RecordKind = (typeof RecordKind)[keyof typeof RecordKind]

/** Position of a record in the stage order of this disk: 1, 2, 3, ...; u53. */
export type JournalSeq = number

/**
 * A record about to be staged: one reusable instance per caller, filled before each `stage` (fields are copied).
 * For kinds without a block (EMPTY) volume, index, firstPage, pageCount are 0.
 */
export class StageRecord {
  kind: RecordKind = RecordKind.WRITE
  slot = 0
  idHigh = 0
  idLow = 0
  /** Block identity: (family = volume number u53, layer u32, index u32). */
  volume = 0
  layer = 0
  index = 0
  firstPage = 0
  pageCount = 0
  /** Payload of WRITE: pageCount pages from here on. The store may read it until the record is staged. */
  payloadPage = 0
  /** CRC-32C of each payload page (WRITE): crcs[crcFirst + i]. */
  crcs: Uint32Array = new Uint32Array(0)
  crcFirst = 0
  /** Channel of the update (protocol 4). clientHigh = node number << 8 | reactor; clientLow = incarnation. clientHigh 0: no channel. */
  clientHigh = 0
  clientLow = 0
  channel = 0
  /** u53 */
  seq = 0
  /** Its batch is made durable as soon as it is written (acknowledged = durable); false: at the next `flush` or when others want it. */
  durable = true
}

/** Fate of stages and calls; one object given at mount. `upTo` counts are cumulative and never go back. */
export interface StoreEvents {
  /** All records up to this one are in the kernel; their payload buffers are the caller's again. */
  onStaged(upTo: JournalSeq): void
  /** All records up to this one are on stable storage. */
  onDurable(upTo: JournalSeq): void
  /** The disk failed or hangs: nothing staged and not yet durable will become so; the disk serves nothing from now on. */
  onFailed(reason: string): void
}

/** Consistent image of one block at one instant, for resync; holds the block's content in place until released. */
export interface BlockCapture {
  readonly row: BlockRow
  /** Per page 0..1023; ids 0,0 = never written. flags: PageFlag, for a lost page DATA | PAGE_LOST. */
  readonly idHigh: Uint32Array
  readonly idLow: Uint32Array
  readonly crc: Uint32Array
  readonly flags: Uint8Array
}
export const PageFlag = { NEVER: 0, DATA: 1, ZERO: 2 } as const
/**
 * Or-ed to PageFlag.DATA, in memory, in page tables, in installs and in resync answers: the page's content is gone here, a read of it is
 * BLOCK_CORRUPTED until it is repaired, overwritten or trimmed. Id and CRC stay; both are 0 when they went with the leaf of the page table
 * that held them. Digests and checksums take no note of it: a lost page is a page with data like its healthy copies.
 */
export const PAGE_LOST = 0x80
/** Flag of a page that may come from elsewhere: a PageFlag, or that of a lost page, which has no content with it. */
export const isPageFlag = (flag: number): boolean => flag <= PageFlag.ZERO || flag === (PageFlag.DATA | PAGE_LOST)

/** One block's answer to be installed (protocol 23): pages whose id differed come with their content, all others stay. */
export interface BlockInstall {
  readonly slot: number
  readonly volume: number
  readonly layer: number
  readonly index: number
  /** Page numbers that change, ascending, with their new id, crc and flag (NEVER deletes the page; DATA | PAGE_LOST comes without content). Empty with `remove`: drop the block. */
  readonly pages: Uint16Array
  readonly idHigh: Uint32Array
  readonly idLow: Uint32Array
  readonly crc: Uint32Array
  readonly flags: Uint8Array
  /** Arena pages with the content of the DATA pages, in order, starting here. */
  readonly payloadPage: number
  readonly remove: boolean
  /** Channel rows of the source's disk, merged by protocol rule 7 (rows of other slots as not held). Packed by ChannelRows.pack. */
  readonly rows: Uint32Array
  /** If not (0,0): raises the slot's `last` to at least this (rule 22). */
  readonly lastHigh: number
  readonly lastLow: number
}

export interface ReplicaStore {
  readonly disk: DiskNumber
  readonly slotCount: number
  /** One row per (client, channel) seen on this disk; journaled with the records, checkpointed with the segments. */
  readonly rows: ChannelRows
  /** `last` id of each slot (protocol 6). */
  readonly lastHigh: Uint32Array
  readonly lastLow: Uint32Array
  readonly capacityBytes: number
  readonly usedBytes: number
  readonly journalBytes: number
  readonly journalUsedBytes: number
  /** New blocks are refused, overwrites are not (full, or nearly). */
  readonly rejectCreate: boolean
  /** Why, when it is not that the disk is full of blocks; else ''. */
  readonly rejectReason: string
  /**
   * The host (not only the process) went down unclean, or a write or flush of the disk has failed, and nobody has said since that it is of no matter
   * any more: unflushed data may be missing.
   */
  readonly lostPower: boolean
  readonly stagedSeq: JournalSeq
  readonly durableSeq: JournalSeq
  readonly failed: boolean

  // ---- hot path ------------------------------------------------------------------------------------------------------
  findBlock(volume: number, layer: number, index: number): BlockRow
  /**
   * May a record be staged now? SUCCESS, INSUFFICIENT_SPACE (a new block, no extent for it: for clients' writes, `fromHead` true),
   * BUSY (journal too full for this class of record or too many in flight: `onRoom` will call).
   * Records of others (forwards), removals and empty ones have reserves of their own (design 7, Journal).
   */
  admit(record: StageRecord, fromHead: boolean): number
  /** Called (once) when `admit` that said BUSY may say otherwise. */
  onRoom(fn: () => void): void
  /** Stages one admitted record; returns its position. Asserts that the id is above the slot's last one unless a session is open for it. */
  stage(record: StageRecord): JournalSeq
  /** Newest page id among the pages (staged ones too) into `outId` [high, low]; (0,0) when none was written. */
  newestId(block: BlockRow, firstPage: number, pageCount: number, outId: Uint32Array): void
  /**
   * Newest content of whole pages, as of this call, into arena pages from `bufferPage` on; never-written and zero pages are filled with zeros.
   * Each page's CRC is verified. status: SUCCESS, BLOCK_CORRUPTED (extra = page number in the block), READ_FAILED, BUSY (too many reads under way:
   * try again after one has ended). block may be NO_BLOCK (zeros).
   */
  read(block: BlockRow, firstPage: number, pageCount: number, bufferPage: number, done: (row: number, status: number, extra: number) => void, row: number): void
  /** Everything staged before this call is durable when `done` is called with SUCCESS. */
  flush(done: (row: number, status: number, extra: number) => void, row: number): void
  /** CRC of the page as the page table has it. */
  pageCrc(block: BlockRow, page: number): number

  // ---- resync, sweeping, introspection (async, off the hot path) --------------------------------------------------------
  /**
   * Starts a session of a slot (protocol 21, 7): `last` = none, the slot's channel rows become not held, the slot is incomplete; journaled in stage
   * order. Throws XsanError BUSY (no journal space now: `onRoom` will call).
   */
  startSession(slot: number): JournalSeq
  /**
   * The slot holds everything up to `last`: it is incomplete no longer; journaled with that id. Throws XsanError BUSY (no journal space now),
   * WRITE_FAILED.
   */
  completeSession(slot: number): JournalSeq
  /**
   * A resync of the slot began on this disk, in this mount or an earlier one, and did not end: its `last` is what its source had told, and its blocks
   * are of different times.
   */
  isIncomplete(slot: number): boolean
  /** Sets `last` of a slot in a session to its position in the forward stream (protocol 22). Volatile. */
  setLast(slot: number, idHigh: number, idLow: number): void
  /** Raises `last` of a slot that is in no session: no id that its content has may have a higher sv. Volatile until `completeSession`. */
  raiseLast(slot: number, idHigh: number, idLow: number): void
  /** The session is over (the replica serves, or left the slot), complete or not: ids must rise again. Volatile; a mount ends all sessions. */
  endSession(slot: number): void
  /** Blocks of a slot, in (volume, layer, index) order. */
  blocksOf(slot: number): BlockRow[]
  blockIdentity(block: BlockRow): { volume: number; layer: number; index: number; slot: number }
  /** Order-independent digest of (identity, page ids, crcs) of all blocks of a slot, two u32: equal content has equal digests. */
  slotDigest(slot: number): [number, number]
  capture(block: BlockRow): BlockCapture
  /** Content of captured DATA pages into the arena. Status as `read`; READ_FAILED at once when the disk fails, which may write to the pages until `ioEnded`. */
  readCaptured(capture: BlockCapture, firstPage: number, pageCount: number, bufferPage: number): Promise<number>
  release(capture: BlockCapture): void
  /**
   * Atomic in the journal. Effects are immediate in memory; returns the position. The payload is the store's until that position is staged.
   * Throws XsanError INSUFFICIENT_SPACE (no extent for it), BUSY (no journal space now: `onRoom` will call).
   */
  install(install: BlockInstall): JournalSeq
  /**
   * Repairs one page with content of the same id from another replica (bit rot). False when id or CRC here are not those. A lost page without
   * an id takes any, and `flag` may then be ZERO or NEVER. False as well when the disk fails meanwhile: see `ioEnded`.
   */
  repairPage(block: BlockRow, page: number, idHigh: number, idLow: number, payloadPage: number, crc: number, flag?: number): Promise<boolean>
  /** After a failure: resolves when the disk has given back all memory. Never if it hangs for good: that is then lost to the arena. */
  ioEnded(): Promise<void>
  isLost(block: BlockRow, page: number): boolean
  /** Any of its pages. A look at this block alone. */
  hasLostPages(block: BlockRow): boolean
  /** Pages marked as lost, in no order, at most so many. */
  lostPages(limit: number): ReadonlyArray<{ readonly block: BlockRow; readonly page: number }>
  /** Drops all blocks for which `isGarbage` says so (asked again just before each is dropped). Returns how many. */
  sweep(isGarbage: (volume: number, slot: number) => boolean): Promise<number>
  /** Every slot here has been served, or resynced, since the host lost power: what is on this disk is what there is. Kept over mounts. */
  forgetPowerLoss(): Promise<void>
  /** The same of these slots, while others wait. Of many thousands of slots the last may not be kept over mounts. */
  forgetPowerLossOf(slots: readonly number[]): Promise<void>
  /** As `lostPower`, of one slot. */
  hasLostPower(slot: number): boolean
  /**
   * Before the process ends: nothing is staged from now on (BUSY), everything that was is durable, and the disk says so. If the host goes down after
   * that, it has lost nothing; what is missing at the next mount is no torn write.
   */
  seal(): Promise<void>
  /** For `block-location` and `volume-info`: updateVer, commitVer is the chain's, checksum over the pages, state DIRTY/CLEAN, timestamp, size. */
  describe(block: BlockRow): {
    updateHigh: number
    updateLow: number
    checksum: number
    state: 'DIRTY' | 'CLEAN' | 'COMMIT'
    timestampMs: number
    /** Up to the end of the last page with data. */
    sizeBytes: number
    /** Pages with data. */
    pages: number
    extent: number
  }
  listBlocks(volume: number, from: number, limit: number): number[]
  /** Waits for everything staged, destages nothing more, closes the file. */
  close(): Promise<void>
}
