/**
 * The simulated arena: plain memory of the isolate, with every mistake in its use made visible.
 * A freed range is poisoned; a range that belongs to an operation must be allocated as a whole and cannot be freed.
 */
import { AssertionError, assert } from '../../base/assert.ts'
import { crc32c } from '../../base/crc32c.ts'
import { PAGE_BYTES } from '../../base/units.ts'
import type { Arena, ArenaStats, PageNumber } from '../arena.ts'
import { ArenaAllocator } from '../arena-allocator.ts'
import { loadAddon } from '../native/addon.ts'

const POISON = 0xdb
/** From here on a call of the engine is cheaper than the tables. */
const NATIVE_CRC_BYTES = 256

export function checksum(bytes: Uint8Array, start: number, end: number): number {
  return end - start < NATIVE_CRC_BYTES ? crc32c(bytes, start, end) : loadAddon().crc32c(bytes.subarray(start, end))
}

export class SimArena implements Arena {
  readonly totalPages: number
  readonly bytes: Uint8Array<ArrayBuffer>
  readonly view: DataView
  readonly #allocator: ArenaAllocator
  readonly #words: Int32Array
  readonly #used: Uint8Array
  /** Pages that were ever allocated. */
  readonly #touched: Uint8Array
  /** Operations that own a page now. */
  readonly #owned: Int16Array
  /** Set it to learn from `owners` who allocated what is alive: call stacks, costly. */
  owners: Map<number, string> | undefined
  /** So much of a freed range is poisoned at most. */
  poisonBytesMax = Number.POSITIVE_INFINITY

  /** `memory`: that many bytes to use, zeros. */
  constructor(totalBytes: number, memory?: Uint8Array<ArrayBuffer>) {
    this.totalPages = Math.floor(totalBytes / PAGE_BYTES)
    this.bytes = memory ?? new Uint8Array(this.totalPages * PAGE_BYTES)
    assert(this.bytes.length === this.totalPages * PAGE_BYTES && this.bytes.byteOffset === 0, 'memory of another size')
    this.view = new DataView(this.bytes.buffer)
    this.#words = new Int32Array(this.bytes.buffer)
    this.#allocator = new ArenaAllocator(this.totalPages)
    this.#used = new Uint8Array(this.totalPages)
    this.#touched = new Uint8Array(this.totalPages)
    this.#owned = new Int16Array(this.totalPages)
  }

  alloc(lengthBytes: number): PageNumber | -1 {
    const page = this.#allocator.alloc(lengthBytes)
    if (page >= 0) {
      this.#used.fill(1, page, page + this.#allocator.pagesOf(page))
      this.#touched.fill(1, page, page + this.#allocator.pagesOf(page))
      this.owners?.set(page, new Error(`${lengthBytes} bytes`).stack ?? '')
    }
    return page
  }

  free(page: PageNumber): void {
    const end = page + this.#allocator.pagesOf(page)
    for (let p: number = page; p < end; p++) if (this.#owned[p] !== 0) throw new AssertionError(`arena: page ${p} is freed while an operation owns it`)
    this.#allocator.free(page)
    this.owners?.delete(page)
    this.#used.fill(0, page, end)
    this.bytes.fill(POISON, page * PAGE_BYTES, Math.min(end * PAGE_BYTES, page * PAGE_BYTES + this.poisonBytesMax))
  }

  crc32c(page: number, deltaBytes: number, lengthBytes: number): number {
    this.check(page, deltaBytes, lengthBytes)
    const start = page * PAGE_BYTES + deltaBytes
    return checksum(this.bytes, start, start + lengthBytes)
  }

  /** A cheap sum of a range that any single changed word changes: to see that nobody wrote where an operation is under way. */
  sum(page: number, deltaBytes: number, lengthBytes: number, seed: number): number {
    const { bytes } = this
    const words = this.#words
    let start = page * PAGE_BYTES + deltaBytes
    const end = start + lengthBytes
    let a = seed ^ lengthBytes
    while (start < end && start & 3) a = Math.imul(a ^ bytes[start++]!, 0x9e3779b1)
    let w = start >>> 2
    const last = end >>> 2
    let b = 1
    let c = 2
    let d = 3
    // Four chains of multiplications, so that none waits for the other
    for (; w + 4 <= last; w += 4) {
      a = Math.imul(a ^ words[w]!, 0x9e3779b1)
      b = Math.imul(b ^ words[w + 1]!, 0x85ebca6b)
      c = Math.imul(c ^ words[w + 2]!, 0xc2b2ae35)
      d = Math.imul(d ^ words[w + 3]!, 0x27d4eb2f)
    }
    for (; w < last; w++) a = Math.imul(a ^ words[w]!, 0x9e3779b1)
    for (start = Math.max(start, w << 2); start < end; start++) a = Math.imul(a ^ bytes[start]!, 0x9e3779b1)
    return Math.imul(a ^ (b >>> 7) ^ (c << 5) ^ d, 0x85ebca6b) ^ b ^ c
  }

  /** Nobody uses the arena any more: its memory, zeros again, for another one. */
  retire(): Uint8Array<ArrayBuffer> {
    for (let page = 0, end = 0; page < this.totalPages; page = end + 1) {
      while (page < this.totalPages && this.#touched[page] === 0) page++
      for (end = page; this.#touched[end] === 1; ) end++
      this.bytes.fill(0, page * PAGE_BYTES, end * PAGE_BYTES)
    }
    return this.bytes
  }

  stats(): ArenaStats {
    return this.#allocator.stats()
  }

  /** The range is inside the arena (else throws, as the engine does). */
  check(page: number, deltaBytes: number, lengthBytes: number): void {
    const start = page * PAGE_BYTES + deltaBytes
    if (
      !Number.isInteger(page) ||
      !Number.isInteger(start) ||
      !Number.isInteger(lengthBytes) ||
      page < 0 ||
      start < 0 ||
      lengthBytes < 0 ||
      start + lengthBytes > this.bytes.length
    ) {
      throw new RangeError(`range outside the arena: page ${page}, delta ${deltaBytes}, ${lengthBytes} bytes`)
    }
  }

  /** An operation owns the range from now on (+1), or no longer (-1). */
  own(page: number, deltaBytes: number, lengthBytes: number, count: 1 | -1): void {
    if (lengthBytes === 0) return
    const first = page + Math.floor(deltaBytes / PAGE_BYTES)
    const last = page + Math.floor((deltaBytes + lengthBytes - 1) / PAGE_BYTES)
    for (let p = first; p <= last; p++) {
      if (count === 1 && this.#used[p] !== 1) throw new AssertionError(`an operation is given page ${p} of the arena, which is free`)
      this.#owned[p]! += count
    }
  }
}
