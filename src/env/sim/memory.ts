/**
 * Memory of the simulated kernels, used again and again: a buffer of its own for every page written and every send would make most of the work of
 * the collector, and of malloc.
 */
import { PAGE_BYTES } from '../../base/units.ts'

const SLAB_BYTES = 256 * 1024
const SPARE_SLABS_MAX = 16
/** Pages are made so many at one time. */
const PAGES_AT_ONCE = 64
/** 64 MiB. */
const SPARE_PAGES_MAX = 16 * 1024

/** Memory of bytes on their way, shared by several sends; used again when none of them needs it any more. */
export class Slab {
  readonly bytes: Uint8Array<ArrayBuffer>
  readonly #owner: Slabs
  #holders = 0
  used = 0

  constructor(owner: Slabs, lengthBytes: number) {
    this.#owner = owner
    this.bytes = new Uint8Array(lengthBytes)
  }

  /** One more holds it. */
  shared(): this {
    this.#holders++
    return this
  }

  /** One holds it no longer. Whoever never says so (bytes of a lost connection) leaves it to the collector. */
  release(): void {
    if (--this.#holders === 0) this.#owner.onUnused(this)
  }
}

export class Slabs {
  #current = new Slab(this, SLAB_BYTES)
  readonly #spare: Slab[] = []

  /** Room for so many bytes, for one holder. */
  place(lengthBytes: number): { readonly slab: Slab; readonly at: number } {
    if (this.#current.used + lengthBytes > SLAB_BYTES) {
      // held only by those that have room in it
      this.#current = this.#spare.pop() ?? new Slab(this, Math.max(SLAB_BYTES, lengthBytes))
    }
    const slab = this.#current
    const at = slab.used
    slab.used += (lengthBytes + 7) & ~7
    return { slab: slab.shared(), at }
  }

  onUnused(slab: Slab): void {
    slab.used = 0
    if (slab !== this.#current && slab.bytes.length === SLAB_BYTES && this.#spare.length < SPARE_SLABS_MAX) this.#spare.push(slab)
  }
}

/** Pages of disks; all of them go back together, when their world is over. */
export class PageMemory {
  readonly #pages: Uint8Array[] = []
  #used = 0

  /** Holds anything. */
  page(): Uint8Array {
    if (this.#used === this.#pages.length) {
      const bytes = new Uint8Array(PAGES_AT_ONCE * PAGE_BYTES)
      for (let i = 0; i < PAGES_AT_ONCE; i++) this.#pages.push(bytes.subarray(i * PAGE_BYTES, (i + 1) * PAGE_BYTES))
    }
    return this.#pages[this.#used++]!
  }

  /** Nobody has a page of it any more. */
  retire(): this {
    this.#used = 0
    if (this.#pages.length > SPARE_PAGES_MAX) this.#pages.length = SPARE_PAGES_MAX
    return this
  }
}
