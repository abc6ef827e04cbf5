/**
 * Cuts an arena into buffers of whole pages: a two-level segregated fit (Masmano et al. 2004) over page numbers. Allocating and
 * freeing take constant time, neighbours are merged at once, and nothing is allocated in JavaScript.
 *
 * A run is a stretch of pages, free or used, and runs cover the arena without gaps:
 * ```text
 *   first page                                        last page
 *   size[p] = pages, state[p] = FREE | class + 1      first[q] = p        (first: where the run ends, so that the right neighbour finds it)
 *   next[p], prev[p] = list of free runs of this bin
 * ```
 * Bins: one per size up to 16 pages, then 16 per power of two. A bit per non-empty bin finds the next larger one.
 */

import { AssertionError, assert } from '../base/assert.ts'
import { KiB, MiB, PAGE_BYTES } from '../base/units.ts'
import { ArenaClass, type ArenaStats, type PageNumber } from './arena.ts'

const BINS_PER_LEVEL = 16
const LEVELS = 28
const NONE = -1
const NOT_FIRST = 0
const FREE = 255

export function arenaClassOf(lengthBytes: number): ArenaClass {
  if (lengthBytes < KiB) return ArenaClass.SMALL
  if (lengthBytes <= 64 * KiB) return ArenaClass.MEDIUM
  return lengthBytes <= 4 * MiB ? ArenaClass.LARGE : ArenaClass.HUGE
}

export class ArenaAllocator {
  readonly totalPages: number
  readonly #firstPage: number
  readonly #size: Int32Array
  readonly #first: Int32Array
  readonly #next: Int32Array
  readonly #prev: Int32Array
  readonly #state: Uint8Array
  readonly #bins = new Int32Array(LEVELS * BINS_PER_LEVEL).fill(NONE)
  /** Bit per bin of a level, and bit per level that has one. */
  readonly #binBits = new Int32Array(LEVELS)
  #levelBits = 0
  readonly #usedCount = [0, 0, 0, 0]
  readonly #usedPages = [0, 0, 0, 0]
  #freePages: number

  /** Pages [firstPage, totalPages) can be allocated; those before belong to someone else and count as neither used nor free. */
  constructor(totalPages: number, firstPage = 0) {
    assert(totalPages - firstPage >= 1 && totalPages < 2 ** 31 && firstPage >= 0, `an arena of ${totalPages} pages, the first ${firstPage} taken`)
    this.totalPages = totalPages
    this.#firstPage = firstPage
    this.#size = new Int32Array(totalPages)
    this.#first = new Int32Array(totalPages)
    this.#next = new Int32Array(totalPages)
    this.#prev = new Int32Array(totalPages)
    this.#state = new Uint8Array(totalPages)
    this.#freePages = totalPages - firstPage
    this.#putFree(firstPage, totalPages - firstPage)
  }

  /** -1 when no run of that many pages is free. */
  alloc(lengthBytes: number): PageNumber | -1 {
    if (!(lengthBytes > 0)) assert(false, `an allocation of ${lengthBytes} bytes`)
    const pages = Math.ceil(lengthBytes / PAGE_BYTES)
    const run = pages > this.#freePages ? NONE : this.#findFree(pages)
    if (run === NONE) return -1
    const runPages = this.#size[run]!
    this.#takeFree(run, runPages)
    if (runPages > pages) this.#putFree(run + pages, runPages - pages)
    const arenaClass = arenaClassOf(lengthBytes)
    this.#size[run] = pages
    this.#first[run + pages - 1] = run
    this.#state[run] = arenaClass + 1
    this.#usedCount[arenaClass]!++
    this.#usedPages[arenaClass]! += pages
    this.#freePages -= pages
    return run as PageNumber
  }

  free(page: PageNumber): void {
    const state = this.#state[page]
    if (state === undefined || state === NOT_FIRST || state === FREE) throw new AssertionError(`arena: page ${page} freed twice or never allocated`)
    let start: number = page
    let pages = this.#size[page]!
    this.#usedCount[state - 1]!--
    this.#usedPages[state - 1]! -= pages
    this.#freePages += pages
    this.#state[page] = NOT_FIRST
    const right = start + pages
    if (right < this.totalPages && this.#state[right] === FREE) {
      const rightPages = this.#size[right]!
      this.#takeFree(right, rightPages)
      pages += rightPages
    }
    if (start > this.#firstPage) {
      const left = this.#first[start - 1]!
      if (this.#state[left] === FREE) {
        const leftPages = this.#size[left]!
        this.#takeFree(left, leftPages)
        start = left
        pages += leftPages
      }
    }
    this.#putFree(start, pages)
  }

  /** Pages of the allocation that starts at `page`, 0 when none does. */
  pagesOf(page: number): number {
    const state = this.#state[page]
    return state === undefined || state === NOT_FIRST || state === FREE ? 0 : this.#size[page]!
  }

  stats(): ArenaStats {
    return {
      usedCount: [...this.#usedCount],
      usedBytes: this.#usedPages.map((pages) => pages * PAGE_BYTES),
      freeBytes: this.#freePages * PAGE_BYTES,
      totalBytes: this.totalPages * PAGE_BYTES,
    }
  }

  /** First free run of at least `pages` pages, from the smallest bin whose runs are all large enough; else a search of the bin below it. */
  #findFree(pages: number): number {
    const own = binOf(pages)
    const up = pages === binFloor(own) ? own : own + 1
    const run = this.#firstFrom(up)
    if (run !== NONE || up === own) return run
    for (let r = this.#bins[own]!; r !== NONE; r = this.#next[r]!) if (this.#size[r]! >= pages) return r
    return NONE
  }

  #firstFrom(bin: number): number {
    let level = bin >> 4
    let bits = this.#binBits[level]! & (~0 << (bin & 15))
    if (bits === 0) {
      const levels = level >= 31 ? 0 : this.#levelBits & (~0 << (level + 1))
      if (levels === 0) return NONE
      level = lowestBit(levels)
      bits = this.#binBits[level]!
    }
    return this.#bins[level * BINS_PER_LEVEL + lowestBit(bits)]!
  }

  #putFree(run: number, pages: number): void {
    const bin = binOf(pages)
    const head = this.#bins[bin]!
    this.#size[run] = pages
    this.#first[run + pages - 1] = run
    this.#state[run] = FREE
    this.#next[run] = head
    this.#prev[run] = NONE
    if (head !== NONE) this.#prev[head] = run
    this.#bins[bin] = run
    this.#binBits[bin >> 4]! |= 1 << (bin & 15)
    this.#levelBits |= 1 << (bin >> 4)
  }

  #takeFree(run: number, pages: number): void {
    const bin = binOf(pages)
    const next = this.#next[run]!
    const prev = this.#prev[run]!
    if (next !== NONE) this.#prev[next] = prev
    if (prev !== NONE) this.#next[prev] = next
    else {
      this.#bins[bin] = next
      if (next === NONE) {
        const level = bin >> 4
        this.#binBits[level]! &= ~(1 << (bin & 15))
        if (this.#binBits[level] === 0) this.#levelBits &= ~(1 << level)
      }
    }
    this.#state[run] = NOT_FIRST
  }
}

function lowestBit(bits: number): number {
  return 31 - Math.clz32(bits & -bits)
}

/** Bin of runs of exactly (up to 16 pages) or at least this many pages. */
function binOf(pages: number): number {
  if (pages <= BINS_PER_LEVEL) return pages - 1
  const log = 31 - Math.clz32(pages)
  return (log - 3) * BINS_PER_LEVEL + ((pages >> (log - 4)) & 15)
}

/** Smallest size in the bin. */
function binFloor(bin: number): number {
  if (bin < BINS_PER_LEVEL) return bin + 1
  const log = (bin >> 4) + 3
  return (BINS_PER_LEVEL + (bin & 15)) << (log - 4)
}
