/**
 * How many blocks each volume has, as one node sees it: of the slots it heads, so that the nodes' counts add up to each block counted once.
 * Counted when asked, a few blocks between two turns; an answer is good for COUNT_KEPT_MS.
 */
import type { AsyncIo } from '../env/async-io.ts'
import type { IoQueue } from '../env/ioqueue.ts'
import { ReplicaState } from '../placement/chain.ts'
import type { Replicas } from './replica.ts'
import type { ChainTable } from './table.ts'

const COUNT_KEPT_MS = 1000
/** Steps (a slot or a block) between two turns. */
const STEPS = 2048

export class Allocation {
  readonly #queue: IoQueue
  readonly #io: AsyncIo
  readonly #table: ChainTable
  readonly #replicas: Replicas
  #counting: Promise<Array<[number, number]>> | undefined
  #countedMs = Number.NEGATIVE_INFINITY

  constructor(options: { queue: IoQueue; io: AsyncIo; table: ChainTable; replicas: Replicas }) {
    this.#queue = options.queue
    this.#io = options.io
    this.#table = options.table
    this.#replicas = options.replicas
  }

  /** Pairs of volume and blocks. */
  blocks(): Promise<Array<[number, number]>> {
    if (this.#counting === undefined || this.#queue.nowMs - this.#countedMs > COUNT_KEPT_MS) {
      // a count under way counts as new
      this.#countedMs = Number.POSITIVE_INFINITY
      this.#counting = this.#count().then((counts) => {
        this.#countedMs = this.#queue.nowMs
        return counts
      })
    }
    return this.#counting
  }

  async #count(): Promise<Array<[number, number]>> {
    const table = this.#table
    const counts = new Map<number, number>()
    let steps = 0
    for (let slot = 0; slot < table.slotCount; slot++) {
      steps++
      const isHead = table.ownPosition[slot] === 0 && table.ownState[slot]! <= ReplicaState.DRAINING
      const store = isHead ? this.#replicas.storeOf(slot) : undefined
      if (store !== undefined) {
        for (const block of store.blocksOf(slot)) {
          const { volume } = store.blockIdentity(block)
          counts.set(volume, (counts.get(volume) ?? 0) + 1)
          steps++
        }
      }
      if (steps < STEPS) continue
      steps = 0
      await this.#io.sleep(0)
    }
    return [...counts].sort((a, b) => a[0] - b[0])
  }
}
