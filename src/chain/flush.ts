/**
 * Flushes of volumes that acknowledge from memory (protocol 20): every SERVING, DRAINING and SYNCING member of the volume's chains makes its
 * journal durable, and answers only if it knows the same table revision, hence the same version of every chain, before and after. A process that
 * the chains do not count yet, for they still name one before it, answers for nobody (protocol 3): its host may have lost its power meanwhile.
 *
 * An exporter asks the members of the slots that it knows the volume to have. Others may know of a resize that it has not heard of: what they write
 * behind the old end is durable when it is acknowledged, until no node that has not heard can hold a lease any more (`ChainTable.isKnownToAll`);
 * and no flush succeeds without one.
 *
 * One flush of a volume runs, and one waits for it, however many ask.
 *
 * Lost writes. A write acknowledged from memory is lost when every replica of its slot loses its host's memory before a flush. Rule 20 alone
 * would let a later flush succeed: the members of that time hold nothing that is not durable. So, as a file system's fsync after a failed
 * write back (Linux, errseq), the next flush of the volume fails once with WRITE_FAILED (EIO), in every process that exported the volume
 * when the slot was recovered; whatever the client believed to be on the way to the disk has to be written again. (NBD tells each of its
 * connections that was there then, or comes within a minute: whoever asks first may be a stranger to the writes, and an answer may be lost with its connection.) The replicated state
 * counts such losses per volume (`mayHaveLostUnflushed`), for a slot's recovery is known there, survives the processes, and comes with the
 * same table as the members that a flush asks: a flush cannot succeed by members of which its exporter does not know how they came to serve.
 * Which writes were lost is not known: a client that had flushed everything is told too. A process that starts after the recovery tells of what this node
 * has told nobody of before: clients connect again by themselves, and go on as if nothing had been.
 * A write of several blocks that was under way across such a loss fails (volume.ts): a flush may have told of it before the write's end.
 *
 * From relaxed to sync. A volume that acknowledged from memory is flushed like before until one flush has succeeded that began with the
 * table which says that it no longer does; heads that know this table order all its updates as durable ones, whatever their sender knew, and
 * members that know it take forwards so: what was ordered before comes to some of them after they have answered the flush.
 */
import type { VolumeNumber } from '../base/ids.ts'
import { Status } from '../base/status.ts'
import { BLOCK_BYTES } from '../base/units.ts'
import type { AsyncIo } from '../env/async-io.ts'
import { CHAIN_ENTRIES_MAX, inWritePath, type ReplicaState } from '../placement/chain.ts'
import type { ReactorLog } from '../placement/messages.ts'
import { slotOf } from '../placement/ring.ts'
import type { ReplicaStore } from '../store/store.ts'
import { CallKind } from '../wire/peer.ts'
import { answerOf, type CallAnswer, type Calls } from './calls.ts'
import type { Counters } from './counters.ts'
import type { Peers } from './peers.ts'
import { NONE } from './records.ts'
import type { Replicas } from './replica.ts'
import type { ChainTable } from './table.ts'

/** So long after its node has heard of a loss a client that was there is back at the latest, by another connection or from another node. */
const RECONNECTED_MS = 60_000
const RETRY_FIRST_MS = 5
const RETRY_MAX_MS = 100

/** Returns whether its client is still there. */
type Told = (status: number) => boolean
/** `losses`: those known by the table that the members answered for. */
type Outcome = { readonly status: number; readonly losses: number }
/** `losses` known since some time, `past` of them for longer than clients take to come back; all of them after `untilMs`. */
type Heard = { readonly losses: number; readonly past: number; readonly untilMs: number }
type Waiter = { readonly deadlineMs: number; readonly done: Told }

export class Flushes {
  readonly #io: AsyncIo
  readonly #table: ChainTable
  readonly #replicas: Replicas
  readonly #peers: Peers
  readonly #calls: Calls
  readonly #counters: Counters
  readonly #log: ReactorLog
  readonly #onTold: (volume: VolumeNumber, losses: number) => void
  /** Per volume: losses that this process' clients have been told of, or that were before any of them came. */
  readonly #told = new Map<VolumeNumber, number>()
  readonly #heard = new Map<VolumeNumber, Heard>()
  /** Volumes that this process has known to acknowledge from memory, and not flushed to the end since they do no more. */
  readonly #unsettled = new Set<VolumeNumber>()
  /** Volumes whose flush runs, and who waits for the next one. */
  readonly #waiting = new Map<VolumeNumber, Waiter[]>()

  constructor(options: {
    io: AsyncIo
    table: ChainTable
    replicas: Replicas
    peers: Peers
    calls: Calls
    counters: Counters
    log: ReactorLog
    /** A client has been told of all losses up to that one. */
    onTold: (volume: VolumeNumber, losses: number) => void
  }) {
    this.#io = options.io
    this.#table = options.table
    this.#replicas = options.replicas
    this.#peers = options.peers
    this.#calls = options.calls
    this.#counters = options.counters
    this.#log = options.log
    this.#onTold = options.onTold
    this.#calls.serve(CallKind.FLUSH, (_peer, args) => this.#serve(args))
  }

  /** The table's volumes may have changed. */
  volumesChanged(): void {
    const { volumes } = this.#table
    for (const volume of this.#told.keys()) if (!volumes.has(volume)) this.#told.delete(volume)
    for (const volume of this.#heard.keys()) if (!volumes.has(volume)) this.#heard.delete(volume)
    for (const volume of this.#unsettled) if (!volumes.has(volume)) this.#unsettled.delete(volume)
    for (const { volume, losses = 0, lossesTold = losses, syncWhenWrite } of volumes.values()) {
      if (!this.#told.has(volume)) this.#told.set(volume, lossesTold)
      const past = this.#heard.has(volume) ? this.pastLossCount(volume) : lossesTold
      if (this.#heard.get(volume)?.losses !== losses) this.#heard.set(volume, { losses, past, untilMs: this.#io.queue.nowMs + RECONNECTED_MS })
      if (!syncWhenWrite) this.#unsettled.add(volume)
    }
  }

  /** See {@link BlockClient.pastLossCount}. */
  pastLossCount(volume: VolumeNumber): number {
    const heard = this.#heard.get(volume)
    if (heard === undefined) return 0
    return this.#io.queue.nowMs < heard.untilMs ? heard.past : heard.losses
  }

  /** Whether there can be anything that is acknowledged and not durable. */
  isNeeded(volume: VolumeNumber): boolean {
    return this.#unsettled.has(volume)
  }

  /**
   * Everything of the volume acknowledged before this call, anywhere, is durable when `done` is called with SUCCESS. WRITE_FAILED: writes
   * acknowledged earlier may have been lost; said once to somebody who is still there.
   */
  flush(volume: VolumeNumber, deadlineMs: number, done: Told): void {
    const waiting = this.#waiting.get(volume)
    if (waiting !== undefined) {
      this.#counters.flushesJoined++
      waiting.push({ deadlineMs, done })
      return
    }
    this.#waiting.set(volume, [])
    void this.#run(volume, [{ deadlineMs, done }])
  }

  async #run(volume: VolumeNumber, first: Waiter[]): Promise<void> {
    for (let served: Waiter[] = first; served.length > 0; served = this.#waiting.get(volume)!.splice(0)) {
      const { status, losses } = await this.#flushUntil(
        volume,
        served.reduce((latest, { deadlineMs }) => Math.max(latest, deadlineMs), 0),
      )
      let isHeard = false
      for (const { done } of served) if (done(status)) isHeard = true
      if (status !== Status.WRITE_FAILED || !isHeard) continue
      this.#told.set(volume, losses)
      this.#onTold(volume, losses)
    }
    this.#waiting.delete(volume)
  }

  async #flushUntil(volume: VolumeNumber, deadlineMs: number): Promise<Outcome> {
    for (let waitMs = RETRY_FIRST_MS; ; waitMs = Math.min(waitMs * 2, RETRY_MAX_MS)) {
      this.#counters.flushes++
      const wasSync = this.#table.isSyncWhenWrite(volume)
      if (this.#table.revision > 0 && (await this.#flushOnce(volume))) return this.#outcome(volume, wasSync)
      if (this.#io.queue.nowMs >= deadlineMs) return { status: Status.VOLUME_UNAVAILABLE, losses: 0 }
      await this.#io.sleep(waitMs)
    }
  }

  /** Every member has answered for one table, and this is still it. */
  #outcome(volume: VolumeNumber, wasSync: boolean): Outcome {
    const losses = this.#table.volumes.get(volume)?.losses ?? 0
    if (losses <= (this.#told.get(volume) ?? 0)) {
      // the heads knew the same table: from then on they ordered this volume's updates as durable ones
      if (wasSync) this.#unsettled.delete(volume)
      return { status: Status.SUCCESS, losses }
    }
    this.#log('ERROR', 'a flush fails: all replicas of a slot had lost their memory, and with it writes that were acknowledged and not flushed', {
      volume,
      losses,
    })
    return { status: Status.WRITE_FAILED, losses }
  }

  async #flushOnce(volume: VolumeNumber): Promise<boolean> {
    const { revision } = this.#table
    const args = new Uint8Array(16)
    const view = new DataView(args.buffer)
    view.setFloat64(0, volume)
    view.setFloat64(8, revision)
    const members = this.#membersOf(volume)
    if (members === null) return false
    const answers = members.map(async (node) => {
      if (node === this.#table.identity.node) return this.#flushOwn(revision)
      const peer = this.#peers.indexOf(node)
      if (peer === NONE) return Status.NODE_UNREACHABLE
      return (await this.#calls.call(peer, CallKind.FLUSH, args, 0, 0)).status
    })
    const statuses = await Promise.all(answers)
    if (!this.#table.leaseValid(this.#io.queue.sampleClockMs())) return false
    // the members may have gone on to a later table since, and so may this node, in which the volume acknowledges from memory again
    return this.#table.revision === revision && statuses.every((status) => status === Status.SUCCESS)
  }

  /** Nodes that may hold unflushed writes of the volume: every member of its chains. Null: a chain has none, its replicas wait to be heard (LASTSRV). */
  #membersOf(volume: VolumeNumber): number[] | null {
    const table = this.#table
    const blocks = Math.ceil((table.volumes.get(volume)?.sizeBytes ?? 0) / BLOCK_BYTES)
    const nodes = new Set<number>()
    let isWhole = true
    const add = (slot: number) => {
      if (table.headNode[slot] === 0) isWhole = false
      for (let i = 0; i < table.entryCount[slot]!; i++) {
        const e = slot * CHAIN_ENTRIES_MAX + i
        if (inWritePath(table.entryState[e] as ReplicaState)) nodes.add(table.entryNode[e]!)
      }
    }
    if (blocks < table.slotCount) for (let index = 0; index < blocks; index++) add(slotOf(volume, index, table.slotCount))
    else for (let slot = 0; slot < table.slotCount; slot++) add(slot)
    return isWhole ? [...nodes] : null
  }

  async #flushOwn(revision: number): Promise<number> {
    if (this.#table.revision !== revision || this.#table.namesEarlier.includes(1)) return Status.ROUTING_STALE
    const stores = this.#replicas.stores.filter((store, index) => !store.failed || this.#isMember(index))
    const statuses = await Promise.all(stores.map((store) => flushStore(this.#io, store)))
    const failure = statuses.find((status) => status !== Status.SUCCESS)
    if (failure !== undefined) return failure
    return this.#table.revision === revision ? Status.SUCCESS : Status.ROUTING_STALE
  }

  /** A failed disk that no chain counts on any more has nothing that only it holds. */
  #isMember(storeIndex: number): boolean {
    const { ownStore, ownState, slotCount } = this.#table
    for (let slot = 0; slot < slotCount; slot++) if (ownStore[slot] === storeIndex && inWritePath(ownState[slot] as ReplicaState)) return true
    return false
  }

  async #serve(args: Uint8Array): Promise<CallAnswer> {
    if (args.length !== 16) return answerOf(Status.PROTOCOL_ERROR)
    return answerOf(await this.#flushOwn(new DataView(args.buffer, args.byteOffset).getFloat64(8)))
  }
}

/** The store's flush as a promise. */
export function flushStore(io: AsyncIo, store: ReplicaStore): Promise<number> {
  return new Promise((resolve) => {
    store.flush((_row, status) => {
      io.queue.asyncPending = true
      resolve(status)
    }, 0)
  })
}
