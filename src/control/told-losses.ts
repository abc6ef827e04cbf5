/**
 * Which losses of unflushed writes this node has told its clients of (src/chain/flush.ts), kept outside the Raft log: the next process tells of those that
 * the one before it had not heard of, or had told nobody of. Its clients connect again by themselves, and go on as if nothing had been.
 *
 *   node/told-losses   JSON: pairs of volume and losses; of others none
 */
import type { VolumeNumber } from '../base/ids.ts'
import type { Kv } from '../env/control.ts'
import { storedText } from './identity.ts'
import type { ClusterState } from './state.ts'

const KEY = 'node/told-losses'

export class ToldLosses {
  readonly #kv: Kv
  readonly #state: ClusterState
  readonly #told: Map<VolumeNumber, number>

  private constructor(kv: Kv, state: ClusterState, told: Iterable<readonly [VolumeNumber, number]>) {
    this.#kv = kv
    this.#state = state
    this.#told = new Map(told)
  }

  /** The first process of a node has no clients that could know of earlier ones. */
  static async open(kv: Kv, state: ClusterState): Promise<ToldLosses> {
    const stored = await storedText(kv, KEY)
    if (stored !== undefined) return new ToldLosses(kv, state, JSON.parse(stored))
    const told = new ToldLosses(
      kv,
      state,
      [...state.volumes.values()].map(({ volume, losses }) => [volume, losses ?? 0]),
    )
    await told.#store()
    return told
  }

  of(volume: VolumeNumber): number {
    return this.#told.get(volume) ?? 0
  }

  async note(volume: VolumeNumber, losses: number): Promise<void> {
    this.#told.set(volume, losses)
    await this.#store()
  }

  async #store(): Promise<void> {
    const pairs = [...this.#told].filter(([volume, losses]) => losses > 0 && this.#state.volumes.has(volume))
    await this.#kv.batch([{ type: 'put', key: KEY, value: new TextEncoder().encode(JSON.stringify(pairs)) }])
  }
}
