/**
 * Memory for what peers send: forwards and updates. From the arena while it has room; under pressure from a pool of its own, which is as large as
 * all credit together, so that a record for which there is credit always finds its place, whatever clients of this node hold.
 * (Without it, nodes full of their own clients' buffers could wait for each other.)
 */
import { assert } from '../base/assert.ts'
import { PAGE_BYTES } from '../base/units.ts'
import type { Arena, PageNumber } from '../env/arena.ts'
import { ArenaAllocator } from '../env/arena-allocator.ts'

export class PayloadPool {
  readonly poolBytes: number
  readonly #arena: Arena
  readonly #firstPage: number
  readonly #endPage: number
  readonly #pool: ArenaAllocator
  /** Times the pool was needed. */
  used = 0

  constructor(arena: Arena, poolBytes: number) {
    const first = arena.alloc(poolBytes)
    assert(first !== -1, `the arena has no room for ${poolBytes} bytes of peers' payload`)
    this.#arena = arena
    this.#firstPage = first
    this.#endPage = first + Math.ceil(poolBytes / PAGE_BYTES)
    this.#pool = new ArenaAllocator(this.#endPage, first)
    this.poolBytes = poolBytes
  }

  /** -1: neither has room. */
  alloc(lengthBytes: number): PageNumber | -1 {
    const page = this.#arena.alloc(lengthBytes)
    if (page !== -1) return page
    this.used++
    return this.#pool.alloc(lengthBytes)
  }

  free(page: PageNumber): void {
    if (page >= this.#firstPage && page < this.#endPage) this.#pool.free(page)
    else this.#arena.free(page)
  }
}
