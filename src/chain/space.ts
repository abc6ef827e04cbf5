/**
 * Which disks take no new blocks, so that a head orders none that another member of the chain could not store: each node tells its own to all
 * peers, when a session begins and whenever it changes. What is under way at that moment finds the extents that every disk keeps for it.
 */
import type { DiskNumber } from '../base/ids.ts'
import type { Arena } from '../env/arena.ts'
import { CHAIN_ENTRIES_MAX, isMember, type ReplicaState } from '../placement/chain.ts'
import type { ReplicaStore } from '../store/store.ts'
import { FRAME_BYTES, FullDisk, Lane, PeerFrame, putFrame } from '../wire/peer.ts'
import { Owner } from './lane.ts'
import { PEERS_MAX, type Peers } from './peers.ts'
import { NONE } from './records.ts'
import type { ChainTable } from './table.ts'

const DISKS_MAX = 255

export class Space {
  readonly #arena: Arena
  readonly #table: ChainTable
  readonly #stores: readonly ReplicaStore[]
  readonly #peers: Peers
  /** Own disks, as they were last told. */
  readonly #told: boolean[]
  readonly #due = new Uint8Array(PEERS_MAX)
  readonly #of: Array<readonly number[]> = Array.from({ length: PEERS_MAX }, () => [])
  /** Of all peers together. */
  #full: ReadonlySet<number> = new Set()

  constructor(options: { arena: Arena; table: ChainTable; stores: readonly ReplicaStore[]; peers: Peers }) {
    this.#arena = options.arena
    this.#table = options.table
    this.#stores = options.stores
    this.#peers = options.peers
    this.#told = options.stores.map(() => false)
  }

  /** Another member of the slot's chain takes no new blocks. */
  isFullElsewhere(slot: number): boolean {
    if (this.#full.size === 0) return false
    const { entryCount, entryDisk, entryState } = this.#table
    const first = slot * CHAIN_ENTRIES_MAX
    for (let e = first; e < first + entryCount[slot]!; e++) if (isMember(entryState[e] as ReplicaState) && this.#full.has(entryDisk[e]!)) return true
    return false
  }

  /** At the end of a turn. */
  settle(): void {
    const stores = this.#stores
    let changed = false
    for (let i = 0; i < stores.length; i++) {
      const store = stores[i]!
      if (store.failed || store.rejectCreate === this.#told[i]) continue
      this.#told[i] = !this.#told[i]
      changed = true
    }
    if (changed) for (const { index, up } of this.#peers.peers) if (up) this.up(index)
  }

  up(peer: number): void {
    this.#due[peer] = 1
    this.#peers.wantsFlush(peer, Lane.ACK)
  }

  down(peer: number): void {
    this.#due[peer] = 0
    if (this.#of[peer]!.length > 0) this.#learn(peer, [])
  }

  gather(peer: number): void {
    if (this.#due[peer] === 0) return
    const disks = this.#stores.filter((_, i) => this.#told[i]).map(({ disk }) => disk)
    const headBytes = FRAME_BYTES + disks.length * FullDisk.size
    const at = this.#peers.reserve(peer, Lane.ACK, headBytes)
    if (at < 0) return
    this.#due[peer] = 0
    const { view } = this.#arena
    putFrame(view, at, PeerFrame.FULL_DISKS, headBytes, 0)
    for (const [i, disk] of disks.entries()) FullDisk.set.disk(view, at + FRAME_BYTES + i * FullDisk.size, disk)
    this.#peers.send(peer, Lane.ACK, at, headBytes, 0, 0, 0, Owner.NONE, NONE)
  }

  onFullDisks(peer: number, at: number, headBytes: number): string | null {
    const { view } = this.#arena
    const disks: DiskNumber[] = []
    for (let entry = at + FRAME_BYTES; entry < at + headBytes; entry += FullDisk.size) disks.push(FullDisk.get.disk(view, entry) as DiskNumber)
    if (disks.length > DISKS_MAX) return `${disks.length} full disks`
    this.#learn(peer, disks)
    return null
  }

  #learn(peer: number, disks: readonly number[]): void {
    this.#of[peer] = disks
    this.#full = new Set(this.#of.flat())
  }
}
