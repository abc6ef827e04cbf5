/**
 * What the calls of resync and repair carry, and who may answer them. Every question names the source's disk: a node may hold two replicas of a
 * slot, and forwards and answers must come from one (protocol 23). Arguments, little-endian words of 32 bits:
 *
 *   DIGESTS      n x (slot, version, disk)
 *   LIST_BLOCKS  slot, version, disk, 1 = after the block that follows | volume f64, layer, index
 *   BLOCK, PAGE  slot, version, volume f64, layer, index, page, whether ids follow, disk (0: any), options | 1024 x (idHigh, idLow)
 *
 * The answers, in the caller's buffer:
 *
 *   DIGESTS      count, rowWords, 0, 0 | count x (slot, status, digestA, digestB, lastHigh, lastLow, committedHigh, committedLow) | rows
 *   LIST_BLOCKS  count, rowWords, lastHigh, lastLow, committedHigh, committedLow, 1 = more to come, 0 | count x (volume f64, layer, index, digestA, digestB) | rows
 *   BLOCK        exists, count, rowWords, dataPage, lastHigh, lastLow, committedHigh, committedLow
 *                | count x (page | flag << 16, idHigh, idLow, crc) | rows | to page `dataPage`: content of the DATA pages
 *   PAGE         content | idHigh, idLow, crc, flag if asked for
 */
import { PAGES_PER_BLOCK } from '../base/units.ts'
import { ReplicaState } from '../placement/chain.ts'
import { ROW_WORDS, ROWS_MAX } from '../store/channel-rows.ts'
import { DigestSum } from '../store/digest.ts'
import { type BlockRow, NO_BLOCK, PAGE_LOST, PageFlag, type ReplicaStore } from '../store/store.ts'
import type { Replicas } from './replica.ts'
import type { ChainTable } from './table.ts'

/** Slots of one DIGESTS call; the source answers for fewer when they hold many blocks. */
export const SLOTS_PER_CALL = 512
/** Of one answer: bounds the time of one turn of the source (a digest looks at all page ids of a block). */
export const BLOCKS_PER_LIST = 512
export const ROWS_BYTES_MAX = ROWS_MAX * ROW_WORDS * 4
export const DIGEST_ARGS_WORDS = 3
export const DIGEST_WORDS = 8
export const LIST_HEADER_WORDS = 8
export const LIST_WORDS = 6
export const BLOCK_HEADER_WORDS = 8
export const PAGE_WORDS = 4
/** Options of PAGE: the answer carries the flag; any replica of the slot may answer, whatever its state. */
export const WITH_FLAG = 1
export const ANY_STATE = 2
export const PAGE_ABOUT_BYTES = 16
const LIST_ARGS_WORDS = 8

export type BlockIdentity = { readonly volume: number; readonly layer: number; readonly index: number }

/** The store of the slot's replica on that disk (0: on any of this node), if it may answer for it in that version. */
export function servingStore(table: ChainTable, replicas: Replicas, slot: number, version: number, disk: number): ReplicaStore | null {
  if (slot >= table.slotCount || table.version[slot] !== version || table.ownState[slot]! > ReplicaState.DRAINING) return null
  const store = replicas.storeOf(slot)
  return store === undefined || (disk !== 0 && store.disk !== disk) ? null : store
}

/** Words of BLOCK and PAGE before the ids of the pages that the asker holds; one of them says whether these follow. */
export const BLOCK_ARGS_WORDS = 10
export const HAS_IDS_WORD = 7
/** Both halves of an id that no update has. */
const NO_ID = 0xffff_ffff

export function pageArgs(
  slot: number,
  version: number,
  block: BlockIdentity,
  page: number,
  options: number,
  words = new Uint32Array(BLOCK_ARGS_WORDS),
): Uint32Array {
  words[0] = slot
  words[1] = version
  new DataView(words.buffer).setFloat64(8, block.volume, true)
  words[4] = block.layer
  words[5] = block.index
  words[6] = page
  words[9] = options
  return words
}

export function blockArgs(slot: number, version: number, block: BlockIdentity, store: ReplicaStore, own: BlockRow, disk: number): Uint32Array {
  const hasIds = own !== NO_BLOCK
  const words = pageArgs(slot, version, block, 0, 0, new Uint32Array(BLOCK_ARGS_WORDS + (hasIds ? PAGES_PER_BLOCK * 2 : 0)))
  words[HAS_IDS_WORD] = hasIds ? 1 : 0
  words[8] = disk
  if (hasIds) {
    const capture = store.capture(own)
    for (let i = 0; i < PAGES_PER_BLOCK; i++) {
      const isLost = (capture.flags[i]! & PAGE_LOST) !== 0
      words[BLOCK_ARGS_WORDS + i * 2] = isLost ? NO_ID : capture.idHigh[i]!
      words[BLOCK_ARGS_WORDS + i * 2 + 1] = isLost ? NO_ID : capture.idLow[i]!
    }
    store.release(capture)
  }
  return words
}

export function parseBlockArgs(args: Uint8Array) {
  if (args.length < BLOCK_ARGS_WORDS * 4) return null
  const view = new DataView(args.buffer, args.byteOffset, args.length)
  const word = (i: number) => view.getUint32(i * 4, true)
  const hasIds = word(HAS_IDS_WORD) === 1
  const volume = view.getFloat64(8, true)
  if (args.length !== (BLOCK_ARGS_WORDS + (hasIds ? PAGES_PER_BLOCK * 2 : 0)) * 4 || !Number.isSafeInteger(volume) || word(6) >= PAGES_PER_BLOCK) return null
  const idHigh = new Uint32Array(PAGES_PER_BLOCK)
  const idLow = new Uint32Array(PAGES_PER_BLOCK)
  if (hasIds) {
    for (let i = 0; i < PAGES_PER_BLOCK; i++) {
      idHigh[i] = word(BLOCK_ARGS_WORDS + i * 2)
      idLow[i] = word(BLOCK_ARGS_WORDS + i * 2 + 1)
    }
  }
  return { slot: word(0), version: word(1), volume, layer: word(4), index: word(5), page: word(6), disk: word(8), options: word(9), idHigh, idLow }
}

export function listArgs(slot: number, version: number, disk: number, after: BlockIdentity | undefined): Uint32Array {
  const words = Uint32Array.of(slot, version, disk, after === undefined ? 0 : 1, 0, 0, after?.layer ?? 0, after?.index ?? 0)
  if (after !== undefined) new DataView(words.buffer).setFloat64(16, after.volume, true)
  return words
}

export function parseListArgs(args: Uint8Array) {
  if (args.length !== LIST_ARGS_WORDS * 4) return null
  const view = new DataView(args.buffer, args.byteOffset, args.length)
  const word = (i: number) => view.getUint32(i * 4, true)
  const volume = view.getFloat64(16, true)
  if (!Number.isSafeInteger(volume)) return null
  const after: BlockIdentity | undefined = word(3) === 0 ? undefined : { volume, layer: word(6), index: word(7) }
  return { slot: word(0), version: word(1), disk: word(2), after }
}

export function compareBlocks(a: BlockIdentity, b: BlockIdentity): number {
  return a.volume - b.volume || a.layer - b.layer || a.index - b.index
}

/** Index of the first of the blocks, which are in order, that comes after that one. */
export function firstAfter(store: ReplicaStore, blocks: readonly BlockRow[], after: BlockIdentity): number {
  let low = 0
  let high = blocks.length
  while (low < high) {
    const middle = (low + high) >> 1
    if (compareBlocks(store.blockIdentity(blocks[middle]!), after) <= 0) low = middle + 1
    else high = middle
  }
  return low
}

export interface ListedBlock extends BlockIdentity {
  readonly digestA: number
  readonly digestB: number
}

export function listedBlocks(view: DataView, count: number): ListedBlock[] {
  return Array.from({ length: count }, (_, i) => {
    const at = (LIST_HEADER_WORDS + i * LIST_WORDS) * 4
    return {
      volume: view.getFloat64(at, true),
      layer: view.getUint32(at + 8, true),
      index: view.getUint32(at + 12, true),
      digestA: view.getUint32(at + 16, true),
      digestB: view.getUint32(at + 20, true),
    }
  })
}

export function blockDigest(store: ReplicaStore, block: BlockRow): [number, number] {
  const { volume, layer, index } = store.blockIdentity(block)
  const capture = store.capture(block)
  const sum = new DigestSum()
  sum.block(volume, layer, index)
  for (let page = 0; page < PAGES_PER_BLOCK; page++) {
    const flag = capture.flags[page]! & ~PAGE_LOST
    if (flag !== PageFlag.NEVER) sum.page(page, capture.idHigh[page]!, capture.idLow[page]!, capture.crc[page]!, flag)
  }
  store.release(capture)
  return sum.value()
}
