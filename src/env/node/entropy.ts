/** Randomness of the operating system. */
import { randomBytes, randomFillSync, randomUUID } from 'node:crypto'
import type { Entropy } from '../control.ts'

const POOL_WORDS = 1024

export class NodeEntropy implements Entropy {
  readonly #pool = new Uint32Array(POOL_WORDS)
  #used = POOL_WORDS

  u32(): number {
    if (this.#used === POOL_WORDS) {
      randomFillSync(this.#pool)
      this.#used = 0
    }
    return this.#pool[this.#used++]!
  }

  bytes(count: number): Uint8Array {
    return new Uint8Array(randomBytes(count))
  }

  uuid(): string {
    return randomUUID()
  }
}
