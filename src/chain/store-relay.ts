/** Given to a store at mount, before the reactor that will use it exists: passes the store's events on once it does. */
import { assert } from '../base/assert.ts'
import type { JournalSeq, ReplicaStore, StoreEvents } from '../store/store.ts'

export class StoreRelay implements StoreEvents {
  #target: StoreEvents | undefined
  #failure: string | undefined

  /** From now on `target` is told. What had become staged or durable before is read from the store itself. */
  attach(target: StoreEvents): void {
    assert(this.#target === undefined, 'a store has one user')
    this.#target = target
    if (this.#failure !== undefined) target.onFailed(this.#failure)
  }

  onStaged(upTo: JournalSeq): void {
    this.#target?.onStaged(upTo)
  }

  onDurable(upTo: JournalSeq): void {
    this.#target?.onDurable(upTo)
  }

  onFailed(reason: string): void {
    this.#failure = reason
    this.#target?.onFailed(reason)
  }
}

/** A mounted disk and the relay it was mounted with. */
export interface MountedStore {
  readonly store: ReplicaStore
  readonly relay: StoreRelay
}
