/**
 * Whole clusters in one isolate: real control plane, real data plane, real store and volume layer of every node (node.ts); only the environment
 * is simulated. Here is what concerns all nodes: operators' commands, health, healing, and what must hold when all is quiet.
 *
 *   const t = new SimCluster({ seed: 1, nodes: 3 })
 *   await t.form()
 *   const volume = await t.createVolume('db', { sizeBytes: 64 * MiB })
 *   t.node(1).crash({ losing: 'unflushed' })
 *   await t.healthy()
 */
import { assert } from '../../src/base/assert.ts'
import { messageOf, XsanError } from '../../src/base/errors.ts'
import type { DiskNumber, NodeNumber, VolumeNumber } from '../../src/base/ids.ts'
import type { DataPlaneLimits } from '../../src/chain/data-plane.ts'
import type { Member } from '../../src/control/member.ts'
import { votersWanted } from '../../src/control/members.ts'
import type { Message } from '../../src/env/control.ts'
import type { SimArena } from '../../src/env/sim/arena.ts'
import { kvStore, type SimControlEnv, SimControlNetwork, type SimLogLine, textOf } from '../../src/env/sim/control.ts'
import { SimHost, type SimProcess } from '../../src/env/sim/host.ts'
import { SimIoQueue } from '../../src/env/sim/ioqueue.ts'
import type { PageMemory } from '../../src/env/sim/memory.ts'
import { type NetworkOptions, SimNetwork } from '../../src/env/sim/network.ts'
import { type Seed, World } from '../../src/env/sim/world.ts'
import { isMember, ReplicaState } from '../../src/placement/chain.ts'
import type { Bay } from './bay.ts'
import { differenceOf, leftovers } from './checkers.ts'
import { protoCodec } from './codec.ts'
import type { Effect } from './faults.ts'
import type { Ledger } from './ledger.ts'
import { DATA_PORT, PATIENCE_MS, SimNode } from './node.ts'

const LOG_LINES_KEPT = 400
/** Memory of the arenas of clusters that are over, by its length, zeros again: fresh memory costs more than that. */
const SPARE = new Map<number, Array<Uint8Array<ArrayBuffer>>>()
/** Of each length. */
const SPARE_MAX = 24
/** And of their disks. */
const SPARE_PAGES: PageMemory[] = []
const REPLACE_EVERY_MS = 2000
/** Of healthy timers. */
const TIMER_LATE_MS = 1

export interface SimClusterOptions {
  readonly seed: Seed
  readonly nodes: number
  readonly slotCount?: number
  readonly diskBytes?: number
  /** 1 unless given. */
  readonly disksPerNode?: number
  readonly leaseMs?: number
  /** Feature level of the binaries that the first nodes begin with; the newest unless given. */
  readonly featureMax?: number
  readonly network?: Partial<NetworkOptions>
  readonly retryTotalMs?: number
  readonly writeLifeMs?: number
  /** Copies of everything; default: 3, or as many as there are nodes. */
  readonly replicas?: number
  /** Of the data planes: queues and credits. */
  readonly limits?: Partial<DataPlaneLimits>
  /** Of the pages of a disk that a loss of power tears, at most so many cannot be read afterwards; none unless given. */
  readonly unreadableTorn?: number
  /** Every node has its NBD export. */
  readonly nbd?: boolean
  /** Remember who allocated each range of the arenas. */
  readonly traceArena?: boolean
  readonly trace?: ((line: string) => void) | undefined
}

export interface SimVolume {
  readonly volume: VolumeNumber
  readonly name: string
  sizeBytes: number
  readonly syncWhenWrite: boolean
}

/** An operator's command is tried again at another node for so long. */
const INSIST_MS = 60_000
const INSIST_PAUSE_MS = 500
/** What another node, or the same one later, may answer better. */
const TRANSIENT: ReadonlySet<string> = new Set(['NODE_UNREACHABLE', 'NETWORK_TIMEOUT', 'CLUSTER_NOT_READY', 'STOPPING', 'NOT_LEADER', 'CONSENSUS_FAILED'])
/** A join whose answer did not come may still be under way. */
const JOIN_TRANSIENT: ReadonlySet<string> = new Set([...TRANSIENT, 'BUSY'])

export class SimCluster {
  readonly options: SimClusterOptions
  readonly world: World
  readonly network: SimNetwork
  readonly control: SimControlNetwork
  readonly nodes: SimNode[] = []
  /** Whoever gives commands, on a host of its own. */
  readonly operator: SimControlEnv
  readonly #desk: SimProcess
  /** The last lines logged by any node. */
  readonly logLines: string[] = []
  readonly volumes: SimVolume[] = []
  /** Told of a promise that a data plane breaks, as it happens; the first of each kind is enough. */
  onBroken: ((promise: string, detail: string) => void) | undefined
  /** Told before a disk is mounted that never got all of its records: by slot, whether nobody else has them; and whether its host kept its power. */
  onUnstagedLost: ((isLost: readonly boolean[], keptPower: boolean) => void) | undefined
  /** An operator has the cluster go on without copies that are gone, or with what a failed disk had not lost with its memory; or a disk does not know. */
  onGivenUp: (() => void) | undefined
  /** Told when a node finds that a disk of it has failed, before that takes effect: what the drive has dropped nobody knows. */
  onDiskFailed: ((node: SimNode) => void) | undefined
  /** What faults have brought about. */
  readonly effects = new Set<Effect>()
  /** The faults are over. */
  isHealed = false
  /** What operators have under way. */
  readonly operations = new Set<string>()
  /** By disk: what was written to its journal. */
  readonly ledgers = new Map<number, Ledger>()
  /** Of all processes that there were. */
  readonly #arenas: SimArena[] = []

  constructor(options: SimClusterOptions) {
    this.options = options
    this.world = new World({ seed: options.seed, trace: options.trace, memory: SPARE_PAGES.pop() })
    this.network = new SimNetwork(this.world, { tcpTimeoutMs: 20_000, connectTimeoutMs: 5000, ...options.network })
    this.network.flippedPorts.add(DATA_PORT)
    this.control = new SimControlNetwork(this.network, protoCodec())
    this.control.onLog = (line) => this.#onLog(line)
    for (let i = 0; i < options.nodes; i++) {
      const node = new SimNode(this, i)
      if (options.featureMax !== undefined) node.featureMax = options.featureMax
      this.nodes.push(node)
    }
    const desk = new SimHost(this.network, { name: 'operator', address: '10.0.1.1' })
    this.#desk = desk.start('xsan')
    this.operator = this.control.env(this.#desk)
  }

  /** By slot: this disk, which lacks records, was among its last servers, and so do all the others of them. */
  lostWith(disk: DiskNumber): boolean[] {
    const { chains = [] } = this.state ?? {}
    return chains.map(({ entries }) => {
      const last = entries.filter(({ state }) => state === ReplicaState.SERVING || state === ReplicaState.LASTSRV)
      return last.some((entry) => entry.disk === disk) && last.every((entry) => entry.disk === disk || this.#isLacking(entry))
    })
  }

  /** The process that had this copy then has ended, and its disk never got all that it had been given. */
  #isLacking({ disk, node, incarnation }: { readonly disk: DiskNumber; readonly node: NodeNumber; readonly incarnation: number }): boolean {
    const member = this.nodes.find((of) => of.control?.member?.node === node)
    if (member?.running === true && member.control?.member?.incarnation === incarnation) return false
    const uuid = this.state?.disks.get(disk)?.uuid
    const bay = member?.bays.find((of) => of.uuid === uuid)
    return bay === undefined || (member?.running === true ? bay.cameBackLacking : bay.lacksRecords)
  }

  /** By number, from 1. */
  node(number: number): SimNode {
    const node = this.nodes[number - 1]
    assert(node !== undefined, `no node ${number}`)
    return node
  }

  /** Starts all nodes, makes the first one a cluster and lets the others join; returns when every chain has its replicas. */
  async form(): Promise<void> {
    for (const node of this.nodes) node.start()
    await this.world.runFor(50)
    await this.settle(this.node(1).call('xsan.v1.Cluster/Init', { clusterId: 'sim' }))
    for (const node of this.nodes.slice(1)) await this.settle(this.join(node))
    await this.until('every node is ready', () => this.nodes.every((node) => node.control?.isReady === true && node.seat !== undefined))
  }

  /** One more node, started; it belongs to no cluster yet. */
  addNode(): SimNode {
    const node = new SimNode(this, this.nodes.length)
    this.nodes.push(node)
    node.start()
    return node
  }

  /** Gets a token and takes it to the node. */
  async join(node: SimNode): Promise<void> {
    const members = () => this.nodes.filter((other) => other.running && other.control?.member !== undefined)
    const { token } = await this.insist('xsan.v1.Cluster/AddNode', { nodeId: node.id, validMs: 600_000 }, members)
    await this.insist('xsan.v1.Cluster/Join', { token }, () => [node], JOIN_TRANSIENT).catch((error: unknown) => {
      // Repeated after its answer was lost
      if (!(error instanceof XsanError && error.status === 'ALREADY_EXISTS')) throw error
    })
  }

  /** A command, given to one running node after the other until one takes it or refuses it for good. Rejects with XsanError. */
  async insist(
    method: string,
    request: Message,
    targets: () => readonly SimNode[] = () => this.nodes.filter((node) => node.running),
    transient: ReadonlySet<string> = TRANSIENT,
  ): Promise<Message> {
    const { clock, rpc } = this.operator
    const endMs = clock.nowMs() + INSIST_MS
    for (let attempt = 0; ; attempt++) {
      const nodes = targets()
      const node = nodes[attempt % Math.max(1, nodes.length)]
      try {
        if (node === undefined) throw new XsanError('NODE_UNREACHABLE', 'no node runs')
        return await rpc.call(node.grpc, method, request, { timeoutMs: 5000 })
      } catch (error) {
        if (!(error instanceof XsanError) || !transient.has(error.status) || clock.nowMs() >= endMs) throw error
      }
      await this.pause(INSIST_PAUSE_MS)
    }
  }

  /** For what an operator does. */
  pause(delayMs: number): Promise<void> {
    return new Promise((resolve) => {
      this.operator.clock.setTimer(delayMs, resolve)
    })
  }

  /** What an operator does while the world goes on. It may be refused, which is noted; anything but an XsanError ends the simulation. */
  operate(what: string, body: () => Promise<unknown>): void {
    const name = `${what} at ${this.world.nowMs.toFixed(0)} ms`
    this.operations.add(name)
    this.#desk.schedule(0, 'operator', () => {
      this.world.asyncPending = true
      body()
        .then(
          () => this.world.note('operator', () => `${name}: done`),
          (error: unknown) => {
            if (!(error instanceof XsanError)) this.world.fail(error)
            else this.world.note('operator', () => `${name}: ${error.status} ${error.message}`)
          },
        )
        .finally(() => this.operations.delete(name))
    })
  }

  async createVolume(name: string, options: { sizeBytes: number; replicas?: number; syncWhenWrite?: boolean }): Promise<SimVolume> {
    const { sizeBytes, replicas = this.options.replicas ?? Math.min(3, this.nodes.length), syncWhenWrite = true } = options
    const answer = await this.settle(this.anyNode().call('xsan.v1.Volume/Create', { name, sizeBytes, replicas, syncWhenWrite }))
    const volume: SimVolume = { volume: Number(answer['id']) as VolumeNumber, name, sizeBytes, syncWhenWrite }
    assert(volume.volume > 0, `volume ${name} got the number ${volume.volume}`)
    this.volumes.push(volume)
    await this.until(`every node knows ${name}`, () => this.nodes.every((node) => !node.running || node.volumes?.open(name) !== undefined))
    // only then nodes acknowledge from memory
    const isKnownToAll = ({ running, plane, queue }: SimNode) => !running || plane?.table.isKnownToAll(volume.volume, 0, queue!.nowMs) === true
    if (!syncWhenWrite) await this.until(`every node knows that all others know ${name}`, () => this.nodes.every(isKnownToAll))
    return volume
  }

  anyNode(): SimNode {
    const node = this.nodes.find((candidate) => candidate.running)
    assert(node !== undefined, 'no node runs')
    return node
  }

  /** The replicated state as the most advanced running node has it. */
  get state() {
    return mostAdvanced(this.nodes, (node) => node.running)
  }

  /** Why not every wanted replica of every chain serves, or '' when all do and every node is ready. */
  unhealthy(): string {
    const reason = this.unhealthyNodes()
    if (reason !== '') return reason
    const { state } = this
    if (!state?.cluster) return 'no cluster'
    const leaving = [...state.nodes.values()].find((node) => node.state !== 'member')
    if (leaving) return `${leaving.id} is leaving`
    const { voters = [] } = this.members().find((node) => node.control?.member?.raft?.isLeader)?.control?.member?.raft?.members ?? {}
    if (voters.length < votersWanted(state.nodes.size)) return `${voters.length} nodes vote`
    const wanted = Math.min(this.options.replicas ?? 3, new Set([...state.disks.values()].filter((disk) => disk.state === 'ok').map((disk) => disk.node)).size)
    for (const [slot, chain] of state.chains.entries()) {
      const serving = chain.entries.filter((entry) => entry.state === ReplicaState.SERVING).length
      // what is on a disk that has failed stays in the chain where there are fewer nodes than copies
      if (serving < wanted || chain.entries.some((entry) => entry.state !== ReplicaState.SERVING && state.disks.get(entry.disk)?.state !== 'failed')) {
        return `slot ${slot} version ${chain.version}: ${chain.entries.map((entry) => `${entry.disk}:${Object.keys(ReplicaState)[entry.state]} since ${entry.since}`).join(' ')}`
      }
    }
    return ''
  }

  unhealthyNodes(): string {
    for (const node of this.members()) {
      if (!node.running) return `${node.id} does not run${node.fatal ? `: ${messageOf(node.fatal)}` : ''}`
      if (node.control?.isReady !== true)
        return `${node.id} is ${node.control?.status.state ?? 'starting'}: ${node.control?.status.stage ?? ''} ${node.control?.status.detail ?? ''}`
    }
    return ''
  }

  /** Nodes that belong to the cluster, or will; those that were removed are remembered as such. */
  members(): SimNode[] {
    const { state } = this
    for (const node of this.nodes) {
      const was = node.control?.member
      if (was !== undefined && was.node > 0 && state?.cluster && state.wasRemoved(was.node)) node.removed = true
      if (node.fatal instanceof XsanError && node.fatal.message.includes('removed from the cluster')) node.removed = true
    }
    return this.nodes.filter((node) => !node.removed)
  }

  async healthy(limitMs = 60_000): Promise<void> {
    await this.until(
      'healthy',
      () => this.unhealthy() === '',
      limitMs,
      () => this.unhealthy(),
    )
  }

  /** Lets the world go on until `holds`; throws when it does not within the limit. */
  async until(what: string, holds: () => boolean, limitMs = PATIENCE_MS, why: () => string = () => this.unhealthy()): Promise<void> {
    if (!(await this.world.run(holds, limitMs))) throw new Error(`not within ${limitMs} ms: ${what} (${why()})`)
  }

  settle<T>(promise: Promise<T>, limitMs = 2 * PATIENCE_MS): Promise<T> {
    return this.world.settle(promise, limitMs)
  }

  /** Heals everything: links, disks, clocks, processes; starts what does not run. */
  heal(): void {
    this.isHealed = true
    this.network.healAll()
    Object.assign(this.control.datagramFaults, { loss: 0, duplicate: 0, late: 0 })
    for (const node of this.members()) {
      for (const { disk } of node.bays) {
        disk.resume()
        Object.assign(disk.faults, { readEio: 0, writeEio: 0, flushEio: 0, slow: 0, readMs: 0, misdirect: 0 })
      }
      node.thaw()
      kvStore(node.host, 'kv').failing = false
      node.installNewer()
      if (node.queue) node.queue.faults.pauses = 0
      if (node.env) node.env.clock.lateMs = TIMER_LATE_MS
      node.restart()
    }
    this.#replaceDisks()
  }

  /** What was made to fail is replaced, also when its node finds out only now. */
  #replaceDisks(): void {
    for (const node of this.members()) {
      const failed = node.bays.filter((bay) => bay.suffered && node.diskFailed(bay))
      for (const bay of failed) node.serviceDisk(bay)
      if (failed.length > 0) node.restart()
    }
    // A last copy is gone for good and another one is there: it takes an operator to say so
    const { state } = this
    const waitsForGone = state?.chains.some(
      ({ entries }) =>
        entries.every((entry) => entry.state !== ReplicaState.SERVING) &&
        entries.some((entry) => entry.state === ReplicaState.LASTSRV && state.disks.get(entry.disk)?.state === 'failed'),
    )
    if (waitsForGone && this.unhealthyNodes() === '') {
      this.onGivenUp?.()
      this.operate('recover', () => this.insist('xsan.v1.Cluster/Recover', {}))
    }
    this.#desk.schedule(REPLACE_EVERY_MS, 'operator looks at the disks', () => this.#replaceDisks())
  }

  /** As far as anybody knows: the disk may have failed unnoticed while others served, and theirs may have become the older copies meanwhile. */
  hasLastCopy({ uuid }: Bay): boolean {
    // of all nodes, not of those alone that run: the one that knew best may have been ended
    const state = mostAdvanced(this.nodes)
    if (!state) return true
    const uuidOf = (disk: DiskNumber) => state.disks.get(disk)?.uuid ?? ''
    // what another had is gone when it has been replaced, whatever the chain says of it
    const present = new Set(this.nodes.flatMap(({ bays }) => bays.map((bay) => bay.uuid)))
    return state.chains.some(({ entries }) => {
      const last = entries.filter((entry) => entry.state === ReplicaState.SERVING || entry.state === ReplicaState.LASTSRV)
      const there = last.map(({ disk }) => uuidOf(disk)).filter((of) => present.has(of))
      return there.length > 0 && there.every((of) => of === uuid)
    })
  }

  /** What faults have brought about that shows only now, or in counts of disks and links. */
  countEffects(): void {
    const disks = this.nodes.flatMap(({ bays }) => bays.map(({ disk }) => disk.shown))
    if (disks.some(({ astray }) => astray > 0)) this.effects.add('misdirect')
    if (disks.some(({ unreadable }) => unreadable > 0)) this.effects.add('torn-unreadable')
    if (this.network.flips > 0) this.effects.add('bad-wire')
    if (this.members().length < this.nodes.length) this.effects.add('node-remove')
  }

  /** Nothing is under way in any data plane. */
  get quiet(): boolean {
    return this.operations.size === 0 && this.nodes.every((node) => !node.running || (node.plane !== undefined && node.plane.replicas.records.inUse === 0))
  }

  /** Violations of what must hold when all is healthy and quiet: replicas equal, state machines equal, nothing leaked. */
  inspect(): string[] {
    const found: string[] = []
    const { state } = this
    if (!state?.cluster) return ['there is no cluster']
    for (const [slot, chain] of state.chains.entries()) {
      const copies = chain.entries
        .filter((entry) => entry.state === ReplicaState.SERVING)
        .flatMap((entry) => this.nodes.flatMap((node) => node.stores.filter((store) => store.disk === entry.disk)))
      for (const copy of copies.slice(1)) {
        const difference = differenceOf(slot, copies[0]!, copy)
        if (difference !== '') found.push(`slot ${slot}: ${difference}`)
      }
    }
    found.push(...this.orphans(), ...leftovers(this))
    return found
  }

  /** Blocks of deleted volumes, and of copies that have moved away, that are still there. */
  orphans(): string[] {
    const found: string[] = []
    const { state } = this
    if (!state) return found
    for (const node of this.members()) {
      for (const store of node.stores.filter(({ failed }) => !failed)) {
        for (const [slot, { entries }] of state.chains.entries()) {
          const isHere = entries.some(({ disk }) => disk === store.disk)
          const copies = entries.filter((entry) => isMember(entry.state)).length
          for (const block of store.blocksOf(slot)) {
            const { volume } = store.blockIdentity(block)
            const of = state.volumes.get(volume as VolumeNumber)
            const why =
              of === undefined ? `the deleted volume ${volume}` : !isHere && copies >= of.replicas ? `volume ${volume}, which has moved elsewhere` : ''
            if (why === '') continue
            found.push(`slot ${slot}: disk ${store.disk} still holds a block of ${why}`)
            break
          }
        }
      }
    }
    return found
  }

  /** A queue whose arena goes back with the cluster. */
  openQueue(process: SimProcess, name: string, arenaBytes: number): SimIoQueue {
    const queue = new SimIoQueue({ process, name, arenaBytes, arenaMemory: () => SPARE.get(arenaBytes)?.pop() ?? new Uint8Array(arenaBytes) })
    this.#arenas.push(queue.arena)
    return queue
  }

  /** The world stands still for good: its memory serves the next one. */
  retire(): void {
    for (const arena of this.#arenas.splice(0)) {
      const { length } = arena.bytes
      const spare = SPARE.get(length) ?? []
      SPARE.set(length, spare)
      if (spare.length < SPARE_MAX) spare.push(arena.retire())
    }
    if (SPARE_PAGES.length === 0) SPARE_PAGES.push(this.world.memory.retire())
  }

  #onLog(line: SimLogLine): void {
    const text = `${this.world.nowMs.toFixed(1)} ${line.process.host.name} ${line.level} ${line.message} ${textOf(line.fields)}`
    this.logLines.push(text)
    if (this.logLines.length > LOG_LINES_KEPT) this.logLines.shift()
    if (process.env['SIM_LOG']) console.log(text)
  }
}

/** The replicated state as the most advanced of those nodes has it, or had it when it ended. Who does not take part yet may have loaded a part of it only. */
function mostAdvanced(nodes: readonly SimNode[], isAsked: (node: SimNode) => boolean = () => true) {
  let best: Member | undefined
  for (const node of nodes) {
    const member = isAsked(node) ? node.control?.member : undefined
    if (member?.raft && member.raft.applied > (best?.raft?.applied ?? -1)) best = member
  }
  return best?.state
}

export function usedBytes(queue: SimIoQueue): number {
  return queue.arena.stats().usedBytes.reduce((a, b) => a + b, 0)
}
