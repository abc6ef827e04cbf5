/** What is between a reactor and the mounting of its disks. */
import { assert } from '../base/assert.ts'
import { XsanError } from '../base/errors.ts'
import type { JournalSeq, ReplicaStore, StoreEvents } from '../store/store.ts'

/** Given to a store at mount, before the reactor that will use it exists: passes the store's events on once it does. */
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

/** What a mount fails with when it is the disk that is broken, not what it was asked for. */
const BROKEN: ReadonlySet<string> = new Set(['DISK_CORRUPTED', 'READ_FAILED', 'WRITE_FAILED'])

/**
 * Mounts one disk after the other. A broken one is told to `onBroken`, and the others are used without it, as if it had failed later: a node with none left
 * still votes and exports. Throws for any other reason.
 */
export async function mountAll<D>(
  disks: readonly D[],
  mount: (disk: D) => Promise<MountedStore>,
  onBroken: (disk: D, error: XsanError) => void,
): Promise<MountedStore[]> {
  const stores: MountedStore[] = []
  for (const disk of disks) {
    try {
      stores.push(await mount(disk))
    } catch (error) {
      if (!(error instanceof XsanError) || !BROKEN.has(error.status)) throw error
      onBroken(disk, error)
    }
  }
  return stores
}
