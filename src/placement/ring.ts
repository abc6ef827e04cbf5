/**
 * The 32-bit hash space: which slot a block belongs to, and which disks a slot prefers.
 *
 *   0                                                              2^32
 *   |  slot 0  |  slot 1  |  slot 2  | ...             | slot n-1  |     slotCount is a power of two: slot = hash prefix
 *   .  a  c b    a   . b c    b   a     c  ...  virtual nodes of the disks a, b, c
 *        -> a slot prefers the owners of the points met clockwise from its middle
 *
 * Invariant: a block's slot depends on (family, index) and the slot count alone, for ever: it is part of the data on disk.
 */
import { assert } from '../base/assert.ts'
import type { DiskNumber, SlotIndex } from '../base/ids.ts'

export const SLOT_COUNT_DEFAULT = 4096
export const VIRTUAL_NODES_DEFAULT = 128
export const SLOTS_MAX = 2 ** 20

/** The finalizer of MurmurHash3 (Appleby, public domain): every input bit changes every output bit with probability one half. */
function mix32(x: number): number {
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b)
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35)
  return (x ^ (x >>> 16)) >>> 0
}

/** One input word into the running hash, as MurmurHash3 does it. */
function absorb(hash: number, word: number): number {
  word = Math.imul(word, 0xcc9e2d51)
  word = Math.imul((word << 15) | (word >>> 17), 0x1b873593)
  hash ^= word
  return (Math.imul((hash << 13) | (hash >>> 19), 5) + 0xe6546b64) | 0
}

/** Place of a block on the ring. `family` < 2^53, `index` < 2^32. */
export function hashBlock(family: number, index: number): number {
  let hash = absorb(0, family / 0x1_0000_0000)
  hash = absorb(hash, family)
  hash = absorb(hash, index)
  return mix32(hash ^ 12)
}

/** The slot of block `index` of a volume family. `slotCount`: a power of two. */
export function slotOf(family: number, index: number, slotCount: number): SlotIndex {
  return Math.floor((hashBlock(family, index) * slotCount) / 0x1_0000_0000) as SlotIndex
}

/** Two words to a place on the ring: virtual nodes, orders that must look random and be the same everywhere. */
export function hashPair(a: number, b: number): number {
  return mix32(absorb(absorb(0x9747b28c, a), b) ^ 8)
}

export function isSlotCount(slotCount: number): boolean {
  return Number.isInteger(slotCount) && slotCount >= 1 && slotCount <= SLOTS_MAX && (slotCount & (slotCount - 1)) === 0
}

/** Virtual nodes, sorted by their place. */
export interface Ring {
  readonly points: Uint32Array
  /** Index (in the list the ring was built from) of the disk each point belongs to. */
  readonly owners: Int32Array
}

/** A disk gets virtual nodes in proportion to its weight, `virtualNodesPerPhysical` at the mean weight, and at least one. */
export function buildRing(disks: ReadonlyArray<{ readonly disk: DiskNumber; readonly weight: number }>, virtualNodesPerPhysical = VIRTUAL_NODES_DEFAULT): Ring {
  const mean = disks.reduce((sum, { weight }) => sum + weight, 0) / disks.length
  const places: Array<{ point: number; owner: number }> = []
  disks.forEach(({ disk, weight }, owner) => {
    assert(weight > 0, `disk ${disk} has no weight`)
    const count = Math.max(1, Math.round((virtualNodesPerPhysical * weight) / mean))
    for (let i = 0; i < count; i++) places.push({ point: hashPair(disk, i), owner })
  })
  places.sort((a, b) => a.point - b.point || a.owner - b.owner)
  return { points: Uint32Array.from(places, ({ point }) => point), owners: Int32Array.from(places, ({ owner }) => owner) }
}

/** Index of the first point at or clockwise after the middle of a slot. */
export function firstPoint(ring: Ring, slot: number, slotCount: number): number {
  const middle = ((slot + 0.5) * 0x1_0000_0000) / slotCount
  let low = 0
  let high = ring.points.length
  while (low < high) {
    const half = (low + high) >> 1
    if (ring.points[half]! < middle) low = half + 1
    else high = half
  }
  return low === ring.points.length ? 0 : low
}
