/** The arena of a native io queue: an anonymous mapping owned by the addon, cut by {@link ArenaAllocator}. */

import type { Arena, ArenaStats, PageNumber } from '../arena.ts'
import { ArenaAllocator } from '../arena-allocator.ts'
import type { NativeQueue } from '../native/addon.ts'

export class NativeArena implements Arena {
  readonly totalPages: number
  readonly bytes: Uint8Array
  readonly view: DataView
  readonly #allocator: ArenaAllocator
  readonly #native: NativeQueue

  /** Pages before `firstPage` (provided buffers) are not for `alloc`. */
  constructor(native: NativeQueue, totalPages: number, firstPage: number) {
    const buffer = native.arena()
    this.totalPages = totalPages
    this.bytes = new Uint8Array(buffer)
    this.view = new DataView(buffer)
    this.#allocator = new ArenaAllocator(totalPages, firstPage)
    this.#native = native
  }

  alloc(lengthBytes: number): PageNumber | -1 {
    return this.#allocator.alloc(lengthBytes)
  }

  free(page: PageNumber): void {
    this.#allocator.free(page)
  }

  /** One call into the addon: see docs/BENCHMARKS.md for its cost; sums of reads come for free with `crcIndex`. */
  crc32c(page: number, deltaBytes: number, lengthBytes: number): number {
    return this.#native.crc32c(page, deltaBytes, lengthBytes)
  }

  stats(): ArenaStats {
    return this.#allocator.stats()
  }
}
