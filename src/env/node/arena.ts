/** The arena of a native io queue: an anonymous mapping owned by the addon, cut by {@link ArenaAllocator}. */

import { crc32c } from '../../base/crc32c.ts'
import { PAGE_BYTES } from '../../base/units.ts'
import type { Arena, ArenaStats, PageNumber } from '../arena.ts'
import { ArenaAllocator } from '../arena-allocator.ts'
import type { NativeAddon, NativeQueue } from '../native/addon.ts'

/** Up to here a loop in JavaScript is quicker than the call. */
const IN_JAVASCRIPT_BYTES = 48

export class NativeArena implements Arena {
  readonly totalPages: number
  readonly bytes: Uint8Array
  readonly view: DataView
  readonly #allocator: ArenaAllocator
  readonly #addon: NativeAddon
  readonly #queueId: number

  /** Pages before `firstPage` (provided buffers) are not for `alloc`. */
  constructor(addon: NativeAddon, native: NativeQueue, totalPages: number, firstPage: number) {
    const buffer = native.arena()
    this.totalPages = totalPages
    this.bytes = new Uint8Array(buffer)
    this.view = new DataView(buffer)
    this.#allocator = new ArenaAllocator(totalPages, firstPage)
    this.#addon = addon
    this.#queueId = native.id()
  }

  alloc(lengthBytes: number): PageNumber | -1 {
    return this.#allocator.alloc(lengthBytes)
  }

  free(page: PageNumber): void {
    this.#allocator.free(page)
  }

  /**
   * Measured on Node 24: 0.03 us for 16 bytes, 0.07 us for 48 (in JavaScript: no call), 0.08 us for 100, 0.31 us
   * for 4 KiB. Sums of reads come with the read (`crcIndex`): 0.2 us a page and no call.
   */
  crc32c(page: number, deltaBytes: number, lengthBytes: number): number {
    const start = page * PAGE_BYTES + deltaBytes
    if (lengthBytes <= IN_JAVASCRIPT_BYTES && lengthBytes >= 0 && page >= 0 && deltaBytes >= 0 && start + lengthBytes <= this.bytes.length) {
      return crc32c(this.bytes, start, start + lengthBytes)
    }
    return this.#addon.queueCrc32c(this.#queueId, page, deltaBytes, lengthBytes) >>> 0
  }

  stats(): ArenaStats {
    return this.#allocator.stats()
  }
}
