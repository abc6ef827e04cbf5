/**
 * What must hold of a whole cluster beside what its clients see: looked at again and again while it runs (`Watch`), and once when everything
 * has come to rest (`leftovers`). Every checker has a test that shows that it can fail.
 */
import type { SlotIndex } from '../../src/base/ids.ts'
import { CALLS_MAX } from '../../src/chain/calls.ts'
import { HOPS } from '../../src/chain/credits.ts'
import type { DataPlane, DataPlaneLimits } from '../../src/chain/data-plane.ts'
import { svOf } from '../../src/chain/records.ts'
import { MERGES_MAX } from '../../src/chain/write.ts'
import { STATE_PREFIX } from '../../src/control/state.ts'
import { ReplicaState } from '../../src/placement/chain.ts'
import type { Raft } from '../../src/raft/driver.ts'
import { CHANNELS_PER_CLIENT, ChannelRows, ROW_WORDS } from '../../src/store/channel-rows.ts'
import type { DiskStore } from '../../src/store/disk-store.ts'
import { type BlockCapture, type BlockRow, PAGE_LOST, PageFlag, type ReplicaStore } from '../../src/store/store.ts'
import type { SimCluster } from './cluster.ts'
import type { Violation } from './history.ts'
import type { SimNode } from './node.ts'

const SAMPLE_MS = 100
const STATES_KEPT = 2000
/** What a leader tells of a lease is in whole ms. */
const LEASE_ROUNDING_MS = 1
/** A session with a node that was dropped may last for so many samples in which its peer runs. */
const SESSION_END_SAMPLES = 5
/** Resync may move so much more than what differs. */
export const RESYNC_OVERHEAD = 1.1

/**
 * - Lease exclusion: no node that may answer by its own clock and table (valid lease, SERVING) has been dropped from that chain by the
 *   replicated state; looked at now and then, and in the moment of each drop. (Nodes whose clock is beyond the bound are out of it: design 4.)
 * - Leases: no node believes in one for longer than the leader counts on it (protocol 26, 28), whatever becomes of it.
 * - Connections: a session with a node that was dropped from a chain as DOWN has ended on every peer that knows it, soon after (protocol 16).
 * - State machines: all replicas of the replicated state have the same content at the same index.
 * - Feature levels: no node serves in a cluster whose commands may be of a level that it does not know.
 * - Queues of the control plane: nothing piles up in it (`controlQueueBounds`).
 */
export class Watch {
  readonly violations: Violation[] = []
  readonly #cluster: SimCluster
  readonly #contents = new Map<number, { readonly node: string; readonly text: string }>()
  readonly #seen = new Map<string, number>()
  /** Replicated states that tell of whom they drop. */
  readonly #watched = new WeakSet<ReplicatedState>()
  #toEnd: Array<{ readonly node: SimNode; readonly plane: DataPlane; readonly dropped: number; readonly session: number; samplesLeft: number }> = []
  /** By Raft node: what waits in it. */
  readonly #raftQueues = new WeakMap<Raft, RaftQueues>()
  /** Of Raft, that any node has known. */
  #newestTerm = 0
  samples = 0
  #stopped = false

  constructor(cluster: SimCluster) {
    this.#cluster = cluster
    cluster.onBroken = (promise, detail) => this.#found(promise, `${detail}, at ${cluster.world.nowMs.toFixed(0)} ms`)
  }

  start(): void {
    this.#cluster.world.schedule(SAMPLE_MS, 'watch', () => {
      if (this.#stopped) return
      this.sample()
      this.start()
    })
  }

  stop(): void {
    this.#stopped = true
  }

  sample(): void {
    this.samples++
    this.#leases()
    this.#leaseEnds()
    this.#states()
    this.#connections()
    this.#controlQueues()
    this.#featureLevels()
  }

  #featureLevels(): void {
    for (const { id, running, control } of this.#cluster.nodes) {
      const state = running && control?.isReady === true ? control.member?.state : undefined
      if (state && state.featureLevel > state.featureMax)
        this.#found('nobody serves who does not know all commands', `${id} knows feature level ${state.featureMax}, the cluster is at ${state.featureLevel}`)
    }
  }

  #controlQueues(): void {
    const { nodes, world } = this.#cluster
    for (const { id, env, process, control } of nodes) {
      if (!env || process?.state !== 'running' || process.localNowMs > world.nowMs) continue
      const { raft } = control?.member ?? {}
      let queues = raft && this.#raftQueues.get(raft)
      if (raft && !queues) {
        queues = watchRaft(raft)
        this.#raftQueues.set(raft, queues)
      }
      const found: Readonly<Record<string, number>> = {
        callsOut: env.rpc.callsOut,
        callsIn: env.rpc.callsIn,
        kvBatches: env.kv.batches,
        ...(queues && { proposals: queues.proposalsMost, indexReads: queues.indexReadsMost }),
      }
      const bounds = controlQueueBounds(nodes.length)
      for (const what in found) {
        if (found[what]! <= bounds[what]!) continue
        this.#found('every queue is bounded', `${id}: ${what} of the control plane: ${found[what]}, at most ${bounds[what]}, at ${world.nowMs.toFixed(0)} ms`)
      }
    }
  }

  #connections(): void {
    for (const node of this.#cluster.nodes) {
      const state = node.control?.member?.state
      if (state && !this.#watched.has(state)) this.#watchDropped(node, state)
      const { plane, process } = node
      if (!plane || process?.state !== 'running' || process.localNowMs > this.#cluster.world.nowMs) continue
      for (const waiting of this.#toEnd) {
        if (waiting.node !== node || --waiting.samplesLeft > 0 || waiting.plane !== plane) continue
        if (sessionWith(plane, waiting.dropped)?.session !== waiting.session) continue
        this.#found(
          'nobody keeps connections of a node that is DOWN',
          `${node.id} has the same session with node ${waiting.dropped} as before that was dropped, at ${this.#cluster.world.nowMs.toFixed(0)} ms`,
        )
      }
      this.#toEnd = this.#toEnd.filter(({ samplesLeft }) => samplesLeft > 0)
    }
  }

  /** A session of the process that is dropped has to end; one with a newer process of that node is none of it. */
  #watchDropped(node: SimNode, state: ReplicatedState): void {
    this.#watched.add(state)
    const { noteDropped } = state
    state.noteDropped = (dropped, incarnation) => {
      noteDropped.call(state, dropped, incarnation)
      for (const each of this.#cluster.nodes) if (each.control?.member?.node === dropped) this.#leaseOf(each, state)
      const { plane } = node
      const known = plane && sessionWith(plane, dropped)
      if (plane && known && known.incarnation <= incarnation) {
        this.#toEnd.push({ node, plane, dropped, session: known.session, samplesLeft: SESSION_END_SAMPLES })
      }
    }
  }

  #leases(): void {
    const { state, nodes } = this.#cluster
    for (const node of state?.cluster ? nodes : []) this.#leaseOf(node, state!)
  }

  #leaseEnds(): void {
    const { nodes, world } = this.#cluster
    const isJudged = ({ process, untrustedUntilMs }: SimNode) =>
      process?.state === 'running' && process.localNowMs <= world.nowMs && world.nowMs >= untrustedUntilMs
    for (const { control } of nodes) this.#newestTerm = Math.max(this.#newestTerm, control?.member?.raft?.term ?? 0)
    // others have been deposed, and know nothing of what the newest one grants, or has granted before it died
    const leader = nodes.find(({ running, control }) => {
      const raft = control?.member?.raft
      return running && raft?.isLeader === true && raft.term === this.#newestTerm
    })
    const coordinator = leader?.control?.member?.coordinator
    if (leader === undefined || coordinator?.ready !== true || !isJudged(leader)) return
    for (const holder of nodes) {
      const { plane, process, control, host, id } = holder
      if (!plane || !isJudged(holder) || !plane.table.leaseValid(process!.bootMs())) continue
      // who was removed has its lease to its end, and nothing that it could serve
      if (!leader.control!.member!.state.nodes.has(control!.member!.node)) continue
      const heldMs = host.trueSpanMs(plane.table.leaseUntilMs - process!.bootMs())
      const countedMs = leader.host.trueSpanMs(coordinator.leaseOf(control!.member!.node).leaseMs)
      if (heldMs <= countedMs + LEASE_ROUNDING_MS) continue
      this.#found(
        'a lease ends for its holder before it does for the leader',
        `${id} has one for ${heldMs.toFixed(1)} ms more, ${leader.id}, which leads, counts on ${countedMs.toFixed(1)} ms, at ${world.nowMs.toFixed(0)} ms`,
      )
    }
  }

  #leaseOf(node: SimNode, { chains }: ReplicatedState): void {
    const { world } = this.#cluster
    const { plane, process } = node
    if (!plane || process?.state !== 'running' || world.nowMs < node.untrustedUntilMs) return
    const { table } = plane
    if (table.slotCount === 0 || !table.leaseValid(process.bootMs())) return
    const number = node.control?.member?.node
    for (let slot = 0; slot < chains.length; slot++) {
      if (table.ownState[slot] !== ReplicaState.SERVING) continue
      const chain = chains[slot]!
      if (table.version[slot]! >= chain.version) continue
      // a disk that has failed answers nothing, whatever its node knows of the chain
      if (plane.replicas.storeOf(slot) === undefined) continue
      const entry = chain.entries.find((of) => of.node === number)
      if (entry !== undefined && entry.state <= ReplicaState.DRAINING) continue
      this.#found(
        'nobody serves without a lease',
        `${node.id} may answer for slot ${slot} in version ${table.version[slot]}, of which version ${chain.version} has dropped it, at ${world.nowMs.toFixed(0)} ms`,
      )
    }
  }

  #states(): void {
    for (const node of this.#cluster.nodes) {
      const member = node.running ? node.control?.member : undefined
      if (!member?.raft) continue
      const index = member.raft.applied
      if (this.#seen.get(node.id) === index) continue
      this.#seen.set(node.id, index)
      const text = contentOf(member.state)
      const other = this.#contents.get(index)
      if (other === undefined) this.#contents.set(index, { node: node.id, text })
      else if (other.text !== text) {
        this.#found(
          'all replicas of the replicated state are equal',
          `${node.id} and ${other.node} differ at index ${index}: ${firstDifference(text, other.text)}`,
        )
      }
      if (this.#contents.size > STATES_KEPT) this.#contents.delete(this.#contents.keys().next().value!)
    }
  }

  #found(promise: string, detail: string): void {
    if (!this.violations.some((violation) => violation.promise === promise)) this.violations.push({ promise, detail })
  }
}

function sessionWith({ peers }: DataPlane, node: number): { readonly session: number; readonly incarnation: number } | undefined {
  const peer = peers.indexOf(node)
  return peer < 0 ? undefined : peers.peers[peer]
}

function firstDifference(a: string, b: string): string {
  let i = 0
  while (i < a.length && a[i] === b[i]) i++
  return `...${a.slice(Math.max(0, i - 40), i + 60)}... and ...${b.slice(Math.max(0, i - 40), i + 60)}...`
}

type ReplicatedState = NonNullable<SimCluster['state']>

const decoder = new TextDecoder()

/** All that a state machine stores, as text. */
export function contentOf(state: ReplicatedState): string {
  const records = state.pairs().filter(({ key }) => !key.startsWith(`${STATE_PREFIX}chains/`))
  const chains = state.chains.map((chain, slot) => [state.slotRevision(slot as SlotIndex), chain])
  return JSON.stringify([records.map(({ key, value }) => [key, canonical(JSON.parse(decoder.decode(value)))]), chains])
}

/** A record so that its text does not depend on the order of fields. */
function canonical(value: unknown): unknown {
  return typeof value === 'object' && value !== null ? Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)) : value
}

/** From now on every row that comes to the store with the resync of another slot is looked at (protocol 7). */
export function watchRows(store: ReplicaStore, found: (detail: string) => void): void {
  const { rows } = store
  rows.merge = (slot, packed) => {
    const rowsOf = () => {
      const found: number[] = []
      for (let w = 0; w < packed.length; w += ROW_WORDS) found.push(rows.lookup(packed[w]!, packed[w + 1]!, packed[w + 2]!))
      return found
    }
    const heldBefore = new Map<number, number>()
    for (const row of slot >= 0 ? rowsOf() : []) if (row >= 0 && rows.held[row] === 1) heldBefore.set(row, rows.seq[row]!)
    ChannelRows.prototype.merge.call(rows, slot, packed)
    for (const row of slot >= 0 ? rowsOf() : []) {
      const of = row < 0 ? slot : rows.slot[row]!
      if (of === slot || rows.held[row] === 0 || heldBefore.get(row) === rows.seq[row]) continue
      const [sv, lastSv] = [svOf(rows.idHigh[row]!, rows.idLow[row]!), svOf(store.lastHigh[of]!, store.lastLow[of]!)]
      if (sv > lastSv) found(`with slot ${slot} came a row as held for record ${sv} of slot ${of}, of which disk ${store.disk} has ${lastSv}`)
    }
  }
}

/**
 * From now on it is counted what resync brings to the store: a page version that was held already, with the same id and its content, is waste, and of that there is at
 * most a tenth of what was lacking, in every session of a slot. That bound is exact: what is lacking is what the source had and this store had not when
 * the session began, and what was written over meanwhile (which has another id); and nothing comes twice, for what has come is held.
 */
export function watchInstalls(store: ReplicaStore, found: (detail: string) => void): void {
  const { install, startSession } = store
  const sessions = new Map<number, { lacking: number; held: number }>()
  const id = new Uint32Array(2)
  store.startSession = (slot) => {
    sessions.delete(slot)
    return startSession.call(store, slot)
  }
  store.install = (given) => {
    const { slot, volume, layer, index, pages, flags, idHigh, idLow } = given
    const own = given.remove ? -1 : store.findBlock(volume, layer, index)
    let held = 0
    let lacking = 0
    pages.forEach((page, i) => {
      if (flags[i] !== PageFlag.DATA) return
      if (own >= 0) store.newestId(own as BlockRow, page, 1, id)
      if (own >= 0 && id[0] === idHigh[i] && id[1] === idLow[i] && !store.isLost(own as BlockRow, page)) held++
      else lacking++
    })
    const journalSeq = install.call(store, given)
    const moved = sessions.get(slot) ?? { lacking: 0, held: 0 }
    moved.held += held
    moved.lacking += lacking
    sessions.set(slot, moved)
    if (moved.lacking + moved.held > moved.lacking * RESYNC_OVERHEAD) {
      found(`slot ${slot} of disk ${store.disk} lacked ${moved.lacking} pages and was sent ${moved.lacking + moved.held}`)
    }
    return journalSeq
  }
}

/** From now on a page that is read from the disk and is not what its CRC says is one that somebody spoiled: otherwise the store has written over it. */
export function watchPages({ reader, disk }: DiskStore, isSpoiled: () => boolean, found: (detail: string) => void): void {
  const { verify } = reader
  reader.verify = (...read) => {
    const before = reader.corruptedCount
    verify.apply(reader, read)
    if (reader.corruptedCount > before && !isSpoiled()) found(`a page of disk ${disk} is not what was written, and nobody spoiled it`)
  }
}

/** What a data plane may have under way at one time; looked at when each of its turns ends. docs/ARCHITECTURE.md lists them. */
export function queueBounds(plane: DataPlane, limits: DataPlaneLimits): Readonly<Record<string, number>> {
  const peers = Math.max(1, plane.table.nodes.size - 1)
  return {
    // rows of tables, which are refused or wait when there is none
    records: limits.recordsMax,
    updates: limits.updatesMax,
    merges: MERGES_MAX,
    reads: limits.readsMax,
    // cancels that nobody waits for have rows of their own
    clientOperations: limits.clientOpsMax + CHANNELS_PER_CLIENT,
    calls: CALLS_MAX,
    // what peers may send unasked: granted before, at most so much to each and for each place in a chain (of sessions that are over, too)
    creditsHeld: Math.min(limits.recordsMax + limits.updatesMax, 2 * peers * HOPS * limits.creditRows),
    resyncSessions: plane.table.slotCount,
  }
}

interface RaftQueues {
  proposalsMost: number
  indexReadsMost: number
}

/**
 * What a control plane may have under way at one time, in a cluster of so many nodes. The code's own limits (`src/raft/driver.ts`) are hundreds of times
 * what a run needs; these are four times and more what brutal runs came to: beyond them something asks in a storm, or never ends.
 */
export function controlQueueBounds(nodes: number): Readonly<Record<string, number>> {
  // a process that was frozen, for 8 s at most, finds what a leader sent meanwhile: something to Raft every 150 ms, and as many answers to what it had asked
  return { callsOut: 16 + 8 * nodes, callsIn: 16 + 64 * nodes, kvBatches: 8, proposals: 64, indexReads: 256 }
}

/** From now on it is counted what the Raft node has not answered. */
function watchRaft(raft: Raft): RaftQueues {
  const queues: RaftQueues = { proposalsMost: 0, indexReadsMost: 0 }
  const counted = <A extends unknown[], T>(call: (...given: A) => Promise<T>, most: keyof RaftQueues) => {
    let underWay = 0
    return (...given: A): Promise<T> => {
      queues[most] = Math.max(queues[most], ++underWay)
      const answer = call.apply(raft, given)
      const ended = () => underWay--
      answer.then(ended, ended)
      return answer
    }
  }
  raft.propose = counted(raft.propose, 'proposalsMost')
  raft.readIndex = counted(raft.readIndex, 'indexReadsMost')
  return queues
}

/** From now on each end of a turn of the data plane is looked at. */
export function watchQueues(plane: DataPlane, limits: DataPlaneLimits, found: (detail: string) => void): void {
  const { settle } = plane
  let revision = -1
  let bounds: Readonly<Record<string, number>> = {}
  plane.settle = () => {
    settle.call(plane)
    if (plane.table.revision !== revision) {
      revision = plane.table.revision
      bounds = queueBounds(plane, limits)
    }
    const { resources } = plane
    for (const what in resources) {
      const bound = bounds[what]
      if (bound === undefined) found(`no bound is stated for ${what}`)
      else if (resources[what]! > bound) found(`${what}: ${resources[what]}, at most ${bound}`)
    }
  }
}

/** What is still in use on healthy, idle nodes without clients. */
export function leftovers(cluster: SimCluster): string[] {
  const found: string[] = []
  for (const node of cluster.members()) {
    if (!node.running || !node.plane) continue
    const all: Record<string, number> = { ...node.plane.resources, nbdRequests: node.nbd?.requestCount ?? 0, nbdConnections: node.nbd?.connectionCount ?? 0 }
    for (const [what, count] of Object.entries(all)) if (count !== 0) found.push(`${node.id}: ${what} ${count} in use`)
  }
  return found
}

/** Where two copies of a slot differ, page by page; '' when nowhere. It looks for itself: digests are a part of what is tested. */
export function differenceOf(slot: number, a: ReplicaStore, b: ReplicaStore): string {
  const ends = [a, b].map((store) => `${store.lastHigh[slot]}:${store.lastLow[slot]}`)
  if (ends[0] !== ends[1]) return `disk ${a.disk} ends with ${ends[0]}, disk ${b.disk} with ${ends[1]}`
  const names = [a, b].map((store) => store.blocksOf(slot).map((block) => nameOf(store, block)))
  for (const [i, own] of names.entries()) {
    const missing = own.find((name) => !names[1 - i]!.includes(name))
    if (missing !== undefined) return `disk ${[a, b][i]!.disk} has block ${missing}, disk ${[b, a][i]!.disk} has not`
  }
  for (const block of a.blocksOf(slot)) {
    const { volume, layer, index } = a.blockIdentity(block)
    const own = a.capture(block)
    const other = b.capture(b.findBlock(volume, layer, index) as BlockRow)
    const page = own.flags.findIndex((_, at) => !isSamePage(own, other, at))
    a.release(own)
    b.release(other)
    if (page >= 0) return `page ${page} of block ${volume}:${index} is ${pageText(own, page)} on disk ${a.disk}, ${pageText(other, page)} on disk ${b.disk}`
  }
  return ''
}

function isSamePage(a: BlockCapture, b: BlockCapture, page: number): boolean {
  const flag = a.flags[page]! & ~PAGE_LOST
  if (flag !== (b.flags[page]! & ~PAGE_LOST)) return false
  if (flag === PageFlag.NEVER) return true
  return a.idHigh[page] === b.idHigh[page] && a.idLow[page] === b.idLow[page] && a.crc[page] === b.crc[page]
}

function pageText({ flags, idHigh, idLow, crc }: BlockCapture, page: number): string {
  const flag = flags[page]! & ~PAGE_LOST
  if (flag === PageFlag.NEVER) return 'never written'
  return `${flag === PageFlag.ZERO ? 'zeros' : 'data'} of ${idHigh[page]}:${idLow[page]} with checksum ${crc[page]}`
}

function nameOf(store: ReplicaStore, block: BlockRow): string {
  const { volume, layer, index } = store.blockIdentity(block)
  return `${volume}:${layer}:${index}`
}

/** Bytes of pages of a slot whose id differs between two stores: what resync of the one from the other has to move. */
export function differingBytes(slot: number, from: ReplicaStore, to: ReplicaStore, pageBytes: number): number {
  let bytes = 0
  for (const block of from.blocksOf(slot)) {
    const { volume, layer, index } = from.blockIdentity(block)
    const there = to.findBlock(volume, layer, index)
    const source = from.capture(block)
    const own = there < 0 ? undefined : to.capture(there)
    for (let page = 0; page < source.flags.length; page++) {
      if (source.flags[page] !== PageFlag.DATA) continue
      if (own === undefined || own.idHigh[page] !== source.idHigh[page] || own.idLow[page] !== source.idLow[page]) bytes += pageBytes
    }
    from.release(source)
    if (own !== undefined) to.release(own)
  }
  return bytes
}
