/**
 * Gives back the space of blocks that nothing refers to any more (protocol 25):
 *
 *   volume deleted         soon after the table says so, and again for writes that were under way, some of them for long
 *   copy moved elsewhere   the chain names this disk no more, other disks hold as many copies as the volume wants, and its version has been the
 *                          same for two looks, `keepMovedMs` apart: until then the copy shortens the resync of a replica that comes back
 *
 * Only what this node's table says while its lease is valid counts: one that lags behind sweeps nothing. A replica that comes (back) to a slot whose
 * blocks are gone copies them, as any other. Before it has, it may be asked what it holds, because nobody serves any more: from before the first
 * block goes the journal says, as at the start of a resync, that this copy is not whole.
 */
import { XsanError } from '../base/errors.ts'
import type { IoQueue } from '../env/ioqueue.ts'
import type { ReactorLog } from '../placement/messages.ts'
import type { ReplicaStore } from '../store/store.ts'
import type { Replicas } from './replica.ts'
import type { ChainTable } from './table.ts'

const DELETED_AFTER_MS = [1000, 10_000] as const

export class Sweep {
  readonly #queue: IoQueue
  readonly #table: ChainTable
  readonly #replicas: Replicas
  readonly #log: ReactorLog
  readonly #keepMovedMs: number
  /** When to look for blocks of deleted volumes. */
  #atMs: number[] = []
  #nextLookMs = Number.NaN
  /** Versions of the chains at the last look. */
  #seen = new Int32Array(0)
  #running = false
  #stopped = false

  constructor(options: { queue: IoQueue; table: ChainTable; replicas: Replicas; log: ReactorLog; keepMovedMs: number }) {
    this.#queue = options.queue
    this.#table = options.table
    this.#replicas = options.replicas
    this.#log = options.log
    this.#keepMovedMs = options.keepMovedMs
  }

  /** The table has a new list of volumes. */
  volumesChanged(): void {
    this.#atMs = DELETED_AFTER_MS.map((afterMs) => this.#queue.nowMs + afterMs)
  }

  stop(): void {
    this.#stopped = true
  }

  tick(): void {
    if (this.#running || this.#stopped || this.#table.slotCount === 0) return
    const { nowMs } = this.#queue
    if (nowMs >= (this.#atMs[0] ?? Number.POSITIVE_INFINITY)) {
      this.#atMs.shift()
      void this.#run((volume) => this.#table.isDeleted(volume))
    } else if (!(nowMs < this.#nextLookMs)) this.#look()
  }

  #look(): void {
    const table = this.#table
    const isFirst = Number.isNaN(this.#nextLookMs)
    this.#nextLookMs = this.#queue.nowMs + this.#keepMovedMs
    const seen = this.#seen
    this.#seen = table.version.slice()
    if (!isFirst) {
      const hasMoved = (volume: number, slot: number, store: ReplicaStore) => seen[slot] === table.version[slot] && this.#hasMoved(volume, slot, store)
      void this.#run((volume, slot, store) => table.isDeleted(volume) || (hasMoved(volume, slot, store) && isForgotten(store, slot)))
    }
  }

  #hasMoved(volume: number, slot: number, store: ReplicaStore): boolean {
    const table = this.#table
    if (!table.leaseValid(this.#queue.nowMs)) return false
    if (table.stateOf(slot, store.disk) !== undefined || this.#replicas.sessions.has(slot)) return false
    const wanted = table.volumes.get(volume)?.replicas
    return wanted !== undefined && table.copies[slot]! >= Math.max(1, wanted)
  }

  async #run(isGarbage: (volume: number, slot: number, store: ReplicaStore) => boolean): Promise<void> {
    this.#running = true
    for (const store of this.#replicas.stores) {
      if (this.#stopped || store.failed) continue
      const blocks = await store.sweep((volume, slot) => isGarbage(volume, slot, store))
      if (blocks > 0) this.#log('INFO', 'blocks that nothing refers to have given their space back', { disk: store.disk, blocks })
    }
    this.#running = false
  }
}

/** What the disk holds of the slot counts as no copy any more, whatever its ids. False: there is no room in the journal to say so now. */
function isForgotten(store: ReplicaStore, slot: number): boolean {
  if (store.failed) return false
  if (store.isIncomplete(slot)) return true
  try {
    store.startSession(slot)
  } catch (error) {
    if (!(error instanceof XsanError) || error.status !== 'BUSY') throw error
    return false
  }
  store.endSession(slot)
  return true
}
