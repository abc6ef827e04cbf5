/** Comparisons of content that replicas make: ids, digests of a slot, checksums of a block. Equal on every disk that holds the same. */
import { PAGES_PER_BLOCK } from '../base/units.ts'
import { PageFlag } from './store.ts'

/** -1, 0 or 1: update ids as one unsigned 64-bit number. */
export function compareIds(aHigh: number, aLow: number, bHigh: number, bLow: number): number {
  if (aHigh !== bHigh) return aHigh < bHigh ? -1 : 1
  return aLow === bLow ? 0 : aLow < bLow ? -1 : 1
}

function mix(h: number, value: number): number {
  let x = Math.imul(h ^ value, 0x85ebca6b)
  x ^= x >>> 15
  return Math.imul(x, 0xc2b2ae35) ^ (x >>> 13)
}

/** Order-independent sum over the blocks of a slot: (identity, page ids, flags, crcs). */
export class DigestSum {
  #a = 0
  #b = 0
  #block = 0

  block(volume: number, layer: number, index: number): void {
    this.#block = mix(mix(mix(mix(0x2545f491, volume / 0x1_0000_0000), volume), layer), index)
    this.#add(this.#block)
  }

  /** Of the block named last. Never-written pages are left out. */
  page(page: number, idHigh: number, idLow: number, crc: number, flag: number): void {
    this.#add(mix(mix(mix(mix(this.#block, page | (flag << 16)), idHigh), idLow), crc))
  }

  value(): [number, number] {
    return [this.#a >>> 0, this.#b >>> 0]
  }

  #add(h: number): void {
    this.#a = (this.#a + h) | 0
    this.#b = (this.#b + mix(h, 0x165667b1)) | 0
  }
}

/** Four tables of 256: what a byte does to the CRC when 0, 1, 2, 3 bytes follow it. */
const CRC_TABLES = /* @__PURE__ */ (() => {
  const tables = new Uint32Array(4 * 256)
  for (let n = 0; n < 256; n++) {
    let c = n
    for (let bit = 0; bit < 8; bit++) c = c & 1 ? (c >>> 1) ^ 0x82f63b78 : c >>> 1
    tables[n] = c
  }
  for (let n = 256; n < 4 * 256; n++) tables[n] = tables[tables[n - 256]! & 0xff]! ^ (tables[n - 256]! >>> 8)
  return tables
})()

/** Checksum of a block: CRC-32C over its 1024 page CRCs (little-endian; 0 for pages without data; lost ones have their CRC); page 0 is at `from` in the columns. */
export function blockChecksum(crcs: Uint32Array, flags: Uint8Array, from: number): number {
  const t = CRC_TABLES
  let c = 0xffff_ffff
  for (let at = from; at < from + PAGES_PER_BLOCK; at++) {
    const x = c ^ (flags[at]! & PageFlag.DATA ? crcs[at]! : 0)
    c = t[768 + (x & 0xff)]! ^ t[512 + ((x >>> 8) & 0xff)]! ^ t[256 + ((x >>> 16) & 0xff)]! ^ t[x >>> 24]!
  }
  return ~c >>> 0
}
