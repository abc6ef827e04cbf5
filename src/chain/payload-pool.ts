/**
 * Memory for what peers send: forwards and updates. From the arena while it has room; under pressure from a pool of its own, which is as large as
 * all credit together, so that a record for which there is credit always finds its place, whatever clients of this node hold.
 * (Without it, nodes full of their own clients' buffers could wait for each other.)
 *
 * The pool grows with the cluster, in stretches of the arena; it never shrinks.
 */
import { assert } from '../base/assert.ts'
import { PAGE_BYTES } from '../base/units.ts'
import type { Arena, PageNumber } from '../env/arena.ts'
import { ArenaAllocator } from '../env/arena-allocator.ts'

interface Stretch {
  readonly first: number
  readonly end: number
  readonly pool: ArenaAllocator
}

export class PayloadPool {
  poolBytes = 0
  readonly #arena: Arena
  readonly #stretches: Stretch[] = []
  /** Times the pool was needed. */
  used = 0

  constructor(arena: Arena, poolBytes: number) {
    this.#arena = arena
    assert(this.grow(poolBytes), `the arena has no room for ${poolBytes} bytes of peers' payload`)
  }

  /** At least that many bytes in all. False: the arena has no stretch for what is missing now. */
  grow(poolBytes: number): boolean {
    const pages = Math.ceil((poolBytes - this.poolBytes) / PAGE_BYTES)
    if (pages <= 0) return true
    const first = this.#arena.alloc(pages * PAGE_BYTES)
    if (first === -1) return false
    this.#stretches.push({ first, end: first + pages, pool: new ArenaAllocator(first + pages, first) })
    this.poolBytes += pages * PAGE_BYTES
    return true
  }

  /** -1: neither has room. */
  alloc(lengthBytes: number): PageNumber | -1 {
    const page = this.#arena.alloc(lengthBytes)
    if (page !== -1) return page
    this.used++
    for (const { pool } of this.#stretches) {
      const own = pool.alloc(lengthBytes)
      if (own !== -1) return own
    }
    return -1
  }

  /** A copy of those pages, of what this node's clients write, so never from the pool: its first page, or -1: no room now. */
  copyOf(page: PageNumber, bytes: number): PageNumber | -1 {
    const copy = this.#arena.alloc(bytes)
    if (copy !== -1) this.#arena.bytes.copyWithin(copy * PAGE_BYTES, page * PAGE_BYTES, page * PAGE_BYTES + bytes)
    return copy
  }

  free(page: PageNumber): void {
    for (const { first, end, pool } of this.#stretches) {
      if (page >= first && page < end) {
        pool.free(page)
        return
      }
    }
    this.#arena.free(page)
  }
}
