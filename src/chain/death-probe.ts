/**
 * Proof of death (design 4): the connections of a process have closed, and a fresh connect is refused by its host. A process is suspected when
 * its session ends, and no more once there is a new one; it is tried a number of times, for its port closes last.
 *
 * A refusal says something of the process that was suspected when the connect began, and listened at that address: not of one that has come since
 * (a connect may be under way for long), nor of one that listens elsewhere (the table with its address is still to come).
 */
import type { Incarnation } from '../base/ids.ts'
import { Errno, type Handle, type IoQueue, type Tag } from '../env/ioqueue.ts'
import type { Peer } from './lane.ts'

const PROBES_MAX = 20
const PROBE_EVERY_MS = 50

class Suspect {
  /** 0: nobody. */
  incarnation = 0
  probesLeft = 0
  probeAtMs = 0
  handle = -1 as Handle
  isProbing = false
  /** Whom the connect under way is about. */
  probed = 0
}

export class DeathProbes {
  /** Set when this reactor closes. */
  closed = false
  readonly #queue: IoQueue
  readonly #peers: readonly Peer[]
  readonly #proven: (peer: Peer, incarnation: Incarnation) => void
  readonly #probeTag: Tag
  readonly #closedTag: Tag
  /** By index of the peer. */
  readonly #suspects: Suspect[] = []

  constructor(options: { queue: IoQueue; peers: readonly Peer[]; proven: (peer: Peer, incarnation: Incarnation) => void }) {
    this.#queue = options.queue
    this.#peers = options.peers
    this.#proven = options.proven
    this.#probeTag = options.queue.register('peer probe', (index, result) => this.#onProbe(index, result))
    this.#closedTag = options.queue.register('peer probe closed', (index) => {
      this.#of(index).isProbing = false
    })
  }

  #of(index: number): Suspect {
    return (this.#suspects[index] ??= new Suspect())
  }

  /** The session has ended: that process may be gone. */
  suspect(peer: Peer, incarnation: number): void {
    const suspect = this.#of(peer.index)
    suspect.incarnation = incarnation
    suspect.probesLeft = PROBES_MAX
    suspect.probeAtMs = 0
    if (!suspect.isProbing) this.#probe(peer, suspect)
  }

  /** It has a session again. */
  clear(peer: Peer): void {
    this.#of(peer.index).incarnation = 0
  }

  /** Its host has refused a connection that was begun while there was no session. */
  refused(peer: Peer): void {
    const suspect = this.#of(peer.index)
    if (suspect.incarnation === 0 || suspect.incarnation !== peer.addressOf || peer.up) return
    this.#proven(peer, suspect.incarnation as Incarnation)
    suspect.incarnation = 0
  }

  tick(): void {
    for (const peer of this.#peers) {
      const suspect = this.#of(peer.index)
      if (suspect.incarnation !== 0 && !suspect.isProbing && this.#queue.nowMs >= suspect.probeAtMs) this.#probe(peer, suspect)
    }
  }

  /** One fresh connect. */
  #probe(peer: Peer, suspect: Suspect): void {
    const to = peer.target
    if (this.closed || to === null || peer.up || suspect.probesLeft === 0) {
      suspect.incarnation = 0
      return
    }
    suspect.probesLeft--
    suspect.isProbing = true
    suspect.probed = suspect.incarnation
    suspect.probeAtMs = this.#queue.nowMs + PROBE_EVERY_MS
    suspect.handle = this.#queue.connectTcp(to, this.#probeTag, peer.index)
  }

  #onProbe(index: number, result: number): void {
    const { probed, incarnation, handle } = this.#of(index)
    if (result === -Errno.ECONNREFUSED && probed === incarnation) this.refused(this.#peers[index]!)
    this.#queue.close(handle, this.#closedTag, index)
  }
}
