/**
 * Whole clusters in one isolate: real control plane, real data plane, real store and volume layer of every node; only the environment
 * is simulated. The composition follows `src/node` step by step.
 *
 *   const t = await SimCluster.create({ seed: 1, nodes: 3 })
 *   await t.form()
 *   const volume = await t.createVolume('db', { sizeBytes: 64 * MiB })
 *   t.node(1).crash({ losing: 'unflushed' })
 *   await t.healthy()
 */
import { assert } from '../../src/base/assert.ts'
import { messageOf, XsanError } from '../../src/base/errors.ts'
import type { DiskNumber, NodeNumber, VolumeNumber } from '../../src/base/ids.ts'
import { BLOCK_BYTES, KiB, MiB } from '../../src/base/units.ts'
import { DataPlane, type DataPlaneLimits, DEFAULT_LIMITS } from '../../src/chain/data-plane.ts'
import { type MountedStore, mountAll, StoreRelay } from '../../src/chain/store-relay.ts'
import type { Member } from '../../src/control/member.ts'
import { votersWanted } from '../../src/control/members.ts'
import type { ControlConfig, Registration } from '../../src/control/options.ts'
import { ControlPlane } from '../../src/control/plane.ts'
import { AsyncIo } from '../../src/env/async-io.ts'
import type { Message } from '../../src/env/control.ts'
import { IoError } from '../../src/env/ioqueue.ts'
import { createRaftCore } from '../../src/env/native/raft.ts'
import type { SimArena } from '../../src/env/sim/arena.ts'
import { portPair, type SimControlEnv, SimControlNetwork, type SimLogLine, textOf } from '../../src/env/sim/control.ts'
import type { SimDisk } from '../../src/env/sim/disk.ts'
import { SimHost, type SimProcess } from '../../src/env/sim/host.ts'
import { SimIoQueue } from '../../src/env/sim/ioqueue.ts'
import type { PageMemory } from '../../src/env/sim/memory.ts'
import { type NetworkOptions, SimNetwork } from '../../src/env/sim/network.ts'
import { type Seed, World } from '../../src/env/sim/world.ts'
import { NbdServer } from '../../src/export/nbd/server.ts'
import { describeKey } from '../../src/node/config.ts'
import { isMember, ReplicaState } from '../../src/placement/chain.ts'
import type { ControlPort, ControlToReactor, ReactorPort, ReactorToControl } from '../../src/placement/messages.ts'
import { type Geometry, planGeometry } from '../../src/store/layout.ts'
import { formatStore, mountStore } from '../../src/store/mount.ts'
import type { ReplicaStore } from '../../src/store/store.ts'
import { VolumeLayer } from '../../src/volume/volume.ts'
import { watchAcknowledged } from './acknowledged.ts'
import { Bay } from './bay.ts'
import { differenceOf, leftovers, watchInstalls, watchPages, watchQueues, watchRows } from './checkers.ts'
import { protoCodec } from './codec.ts'
import { DiskOrder } from './disk-order.ts'
import { Ledger } from './ledger.ts'
import { simulatedMac } from './mac.ts'
import { narrate } from './narrate.ts'
import { NBD_PORT } from './nbd-client.ts'
import type { ClientSeat } from './workload.ts'

const GRPC_PORT = 8080
const DATA_PORT = 8090
const HEARTBEAT_GROUP = '239.255.88.1'
const HEARTBEAT_PORT = 8088
const NBD_CONNECTIONS_MAX = 16
/** Control commands of a test wait so long, virtual time. */
const PATIENCE_MS = 30_000
const DISK_BYTES = 128 * MiB
/** Small, so that segments are used again and again. */
const JOURNAL = { journalBytes: 16 * MiB, segmentBytes: 4 * MiB }
/** Small tables: quickly made, and sometimes full. */
const LIMITS = { recordsMax: 1024, updatesMax: 256, readsMax: 256, clientOpsMax: 512, keepMovedMs: 1500 }
const LOG_LINES_KEPT = 400
const ARENA_BYTES = 32 * MiB
/** Of a freed range: the memory of an answer of resync is mostly never touched. */
const POISON_BYTES_MAX = 256 * KiB
/** Memory of the arenas of clusters that are over, by its length, zeros again: fresh memory costs more than that. */
const SPARE = new Map<number, Array<Uint8Array<ArrayBuffer>>>()
/** Of each length. */
const SPARE_MAX = 24
/** And of their disks. */
const SPARE_PAGES: PageMemory[] = []
const REPLACE_EVERY_MS = 2000
/** A process that ended by itself is started again after so long. */
const SUPERVISOR_MS = 1000
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
  readonly network?: Partial<NetworkOptions>
  readonly retryTotalMs?: number
  readonly writeLifeMs?: number
  /** Copies of everything; default: 3, or as many as there are nodes. */
  readonly replicas?: number
  /** Of the data planes: queues and credits. */
  readonly limits?: Partial<DataPlaneLimits>
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

/** One node: its host, and the process that runs on it, if any. */
export class SimNode {
  readonly cluster: SimCluster
  readonly index: number
  readonly id: string
  readonly host: SimHost
  readonly bays: readonly Bay[]
  process: SimProcess | undefined
  env: SimControlEnv | undefined
  control: ControlPlane | undefined
  queue: SimIoQueue | undefined
  plane: DataPlane | undefined
  stores: readonly ReplicaStore[] = []
  volumes: VolumeLayer | undefined
  order: DiskOrder | undefined
  nbd: NbdServer | undefined
  /** Why its process ended by itself. */
  fatal: Error | undefined
  /** It was removed from the cluster: nobody starts it again. */
  removed = false
  /** Of the binary it starts with. */
  version = 1
  /** Until then (true time) its clock is, or was a moment ago, off by more than the bound: what it says is no promise. */
  untrustedUntilMs = 0
  #starts = 0

  constructor(cluster: SimCluster, index: number) {
    this.cluster = cluster
    this.index = index
    this.id = `node-${index + 1}`
    this.host = new SimHost(cluster.network, {
      name: this.id,
      address: `10.0.0.${index + 1}`,
      bootOffsetMs: 1000 + cluster.world.random('boot').unit() * 1e6,
    })
    this.bays = Array.from({ length: cluster.options.disksPerNode ?? 1 }, (_, i) => new Bay(this.host, index, i))
  }

  /** The first one. */
  get disk(): SimDisk {
    return this.bays[0]!.disk
  }

  get running(): boolean {
    return this.process?.alive === true
  }

  get grpc(): string {
    return `${this.host.address}:${GRPC_PORT}`
  }

  get seat(): ClientSeat | undefined {
    if (!this.running || !this.volumes || !this.queue || !this.process) return undefined
    const trusted = () => this.cluster.world.nowMs >= this.untrustedUntilMs
    return { process: this.process, queue: this.queue, volumes: this.volumes, trusted }
  }

  // ---- what happens to it ----------------------------------------------------------------------------------------------
  /** Starts its process (a no-op when one runs or the host has no power). */
  start(): void {
    if (this.running || this.removed || !this.host.up) return
    this.#starts++
    const process = this.host.start('xsand')
    this.process = process
    this.fatal = undefined
    this.plane = undefined
    this.volumes = undefined
    this.nbd = undefined
    this.stores = []
    process.schedule(1, 'main', () => {
      this.cluster.world.asyncPending = true
      this.#main(process).catch((error: unknown) => this.#die(process, error))
    })
  }

  /** `losing: 'unflushed'`: its host loses power; 'nothing': only its process is killed. */
  crash(options: { losing: 'nothing' | 'unflushed' | 'everything unflushed' }): void {
    if (options.losing === 'nothing') this.process?.kill()
    else {
      this.host.losePower(options.losing === 'unflushed' ? 'random' : 'lose')
      this.host.powerOn()
    }
  }

  restart(): void {
    this.host.powerOn()
    this.start()
  }

  /** SIGTERM: it drains, hands over, and ends by itself. */
  stop(): void {
    const { process, control } = this
    if (!process?.alive) return
    process.schedule(0, 'SIGTERM', () => {
      this.cluster.world.asyncPending = true
      const ended = control ? control.stop() : Promise.resolve()
      ended.then(
        () => process.kill(),
        (error: unknown) => this.#die(process, error),
      )
    })
  }

  /** An empty disk stands where the old one was; its process is ended first, if it has not by itself. */
  replaceDisk(bay: Bay = this.bays[0]!): void {
    this.process?.kill()
    bay.replace()
  }

  /** What people do with a failed disk: another one in its place, or, when nobody else has what is on it, the same one again. */
  serviceDisk(bay: Bay): void {
    const isLast = this.cluster.hasLastCopy(bay)
    this.process?.kill()
    if (isLast) bay.repair()
    else bay.replace()
  }

  /** What its processes took for a failure of the disk: only another disk heals it. */
  diskFailed({ disk, uuid }: Bay): boolean {
    const { state } = this.cluster
    return disk.gone || (state !== undefined && [...state.disks.values()].some((known) => known.uuid === uuid && known.state === 'failed'))
  }

  freeze(): void {
    this.process?.freeze()
  }

  thaw(): void {
    this.process?.thaw()
  }

  /** Nothing gets to it or from it. */
  isolate(): void {
    for (const other of this.cluster.nodes) {
      if (other === this) continue
      this.cluster.network.cut(this.host, other.host)
      this.cluster.network.cut(other.host, this.host)
    }
  }

  rejoin(): void {
    for (const other of this.cluster.nodes) {
      if (other === this) continue
      this.cluster.network.heal(this.host, other.host)
      this.cluster.network.heal(other.host, this.host)
    }
  }

  /** Bits of its data at rest flip. (A journal that rots before it is destaged makes the disk refuse its mount: another matter.) */
  rot(pages: number, bay: Bay = this.bays[0]!): void {
    bay.disk.rot(pages, this.extents.fromBytes)
  }

  /** Where its disks hold data at rest. */
  get extents(): { readonly fromBytes: number; readonly toBytes: number } {
    const { extentsOffset, extentCount } = this.#geometry
    return { fromBytes: extentsOffset, toBytes: extentsOffset + extentCount * BLOCK_BYTES }
  }

  get #geometry(): Geometry {
    return planGeometry(this.cluster.options.diskBytes ?? DISK_BYTES, JOURNAL)
  }

  /** An admin call to this node, from outside. */
  async call(method: string, request: Message, timeoutMs = PATIENCE_MS): Promise<Message> {
    return this.cluster.operator.rpc.call(this.grpc, method, request, { timeoutMs })
  }

  // ---- its process, as src/node puts it together ---------------------------------------------------------------------------
  async #main(process: SimProcess): Promise<void> {
    const { cluster } = this
    let env: SimControlEnv
    for (;;) {
      try {
        env = cluster.control.env(process)
        break
      } catch (error) {
        // A predecessor may hold the metadata for a moment
        if (!(error instanceof XsanError) || error.status !== 'BUSY') throw error
        await new Promise<void>((resolve) => {
          process.schedule(20, 'metadata is locked', () => {
            cluster.world.asyncPending = true
            resolve()
          })
        })
      }
    }
    this.env = env
    const control = new ControlPlane({
      env,
      config: this.#config(),
      createCore: createRaftCore,
      hmac: simulatedMac,
      openDataPlane: async (registration) => this.#openDataPlane(process, registration),
      reactorTurning: () => true,
      onFatal: (error) => this.#die(process, error),
    })
    this.control = control
    await control.start()
  }

  #config(): ControlConfig {
    const { options } = this.cluster
    const { address } = this.host
    return {
      nodeId: this.id,
      clusterId: 'sim',
      listen: { host: address, port: GRPC_PORT },
      addresses: { grpc: this.grpc, data: `${address}:${DATA_PORT}`, nbd: '', nbdSocket: '', admin: '' },
      zone: '',
      rack: '',
      version: `0.0.${this.version}-sim`,
      dataDir: '/metadata',
      bootId: `${this.id} boot ${this.host.boots}`,
      pid: this.#starts,
      disks: this.bays.map(({ uuid, path }) => ({ uuid, path, type: 'ssd', role: 'capacity', capacityBytes: options.diskBytes ?? DISK_BYTES })),
      replicas: options.replicas ?? Math.min(3, options.nodes),
      syncWhenWrite: true,
      slotCount: options.slotCount ?? 16,
      ...(options.leaseMs === undefined ? {} : { leaseMs: options.leaseMs }),
      heartbeat: { host: address, port: HEARTBEAT_PORT, multicastGroup: HEARTBEAT_GROUP, multicastPort: HEARTBEAT_PORT, intervalMs: 500 },
      entries: [],
      describeKey,
    }
  }

  #openDataPlane(process: SimProcess, registration: Registration): ControlPort {
    const queue = this.cluster.openQueue(process, 'reactor', ARENA_BYTES)
    queue.arena.poisonBytesMax = POISON_BYTES_MAX
    queue.runReactor(() => {
      queue.turn(0)
    })
    if (this.cluster.options.traceArena) queue.arena.owners = new Map()
    this.queue = queue
    this.order = new DiskOrder(queue, process)
    const { control, reactor } = portPair<ControlToReactor, ReactorToControl>(process, queue)
    process.schedule(0.5, 'reactor starts', () => {
      this.cluster.world.asyncPending = true
      this.#runReactor(process, queue, reactor, registration).catch((error: unknown) => {
        if (!(error instanceof XsanError) && !(error instanceof IoError)) this.#die(process, error)
        else reactor.send({ type: 'failed', message: messageOf(error), nextStep: error instanceof XsanError ? error.nextStep : '' })
      })
    })
    return control
  }

  async #runReactor(process: SimProcess, queue: SimIoQueue, port: ReactorPort, registration: Registration): Promise<void> {
    const { options } = this.cluster
    const asyncIo = new AsyncIo(queue)
    const stores = await mountAll(
      this.bays.map((bay, i) => ({ bay, disk: registration.disks[i]! })),
      ({ bay, disk }) => this.#mount(asyncIo, bay, registration, disk),
      ({ disk }, error) => port.send({ type: 'diskFailed', disk, reason: error.message }),
    )
    const plane = new DataPlane({
      queue,
      asyncIo,
      port,
      stores,
      identity: { clusterId: registration.clusterUuid, node: registration.node, incarnation: registration.incarnation, reactor: 0 },
      listen: { host: this.host.address, port: DATA_PORT },
      authenticate: {
        hmac: (bytes) => simulatedMac(registration.clusterKey, bytes),
        nonce: () => this.env!.entropy.bytes(16),
      },
      limits: { ...LIMITS, ...options.limits },
      settings: { retryTotalMs: options.retryTotalMs ?? 20_000, writeLifeMs: options.writeLifeMs ?? 4000 },
    })
    const limits = { ...DEFAULT_LIMITS, ...LIMITS, ...options.limits }
    watchQueues(plane, limits, (detail) => this.cluster.onBroken?.('every queue is bounded', `${this.id}: ${detail}`))
    if (this.cluster.world.tracing) narrate(plane, (text) => this.cluster.world.say(`${this.id} ${text}`))
    watchAcknowledged(this.cluster, plane, { queue, limits }, (promise, detail) => this.cluster.onBroken?.(promise, `${this.id}: ${detail}`))
    await plane.start()
    if (!process.alive) return
    this.stores = stores.map(({ store }) => store)
    this.plane = plane
    this.volumes = new VolumeLayer(plane.client, queue.arena)
    if (options.nbd === true) {
      const nbd = new NbdServer({ queue, asyncIo, volumes: this.volumes, log: this.env!.log, connectionsMax: NBD_CONNECTIONS_MAX })
      plane.stopExports = () => nbd.stop()
      nbd.listenTcp(this.host.address, NBD_PORT)
      this.nbd = nbd
    }
    port.send({ type: 'ready', dataPort: DATA_PORT, nbdPort: options.nbd === true ? NBD_PORT : 0 })
  }

  /** A blank disk is formatted first. */
  async #mount(io: AsyncIo, bay: Bay, registration: Registration, disk: DiskNumber): Promise<MountedStore> {
    const { path, uuid } = bay
    const { cluster } = this
    const { slotCount } = registration
    const identity = { clusterId: registration.clusterUuid, nodeId: registration.nodeId }
    if (!bay.formatted) {
      await formatStore(io, {
        path,
        createBytes: this.cluster.options.diskBytes ?? DISK_BYTES,
        identity,
        diskUuid: uuid,
        journalUuid: uuid.replace('d15c', 'a0a0'),
        disk,
        slotCount,
        ...JOURNAL,
        force: true,
      })
      bay.formatted = true
      bay.ledger = new Ledger()
    }
    bay.cameBackLacking = bay.lacksRecords
    if (bay.lacksRecords) cluster.onUnstagedLost?.(cluster.lostWith(disk), !bay.lostPower)
    const relay = new StoreRelay()
    const store = await mountStore({
      io,
      path,
      identity,
      slotCount,
      events: relay,
      bootId: `${this.id} boot ${this.host.boots}`,
      wallMs: () => this.env!.clock.wallMs(),
      disk,
      onNote: (message, fields) => this.env!.log.log('INFO', message, fields ?? {}),
    })
    bay.mounted = { store, boots: this.host.boots }
    cluster.ledgers.set(disk, bay.ledger)
    for (const detail of bay.ledger.mounted(store, io.queue.arena.view, this.host.boots, cluster.world.nowMs))
      cluster.onBroken?.('a disk that comes back holds what was written to it', `${this.id}: ${detail}`)
    bay.ledger.onBroken = (promise, detail) => cluster.onBroken?.(promise, `${this.id}: ${detail}`)
    const file = bay.disk.files.find((of) => of.path === path)!
    this.order!.mounted(store, file, this.#geometry, bay.ledger, (promise, detail) => cluster.onBroken?.(promise, `${this.id}: ${detail}`))
    const isSpoiled = () => bay.disk.spoiled
    watchPages(store, isSpoiled, (detail) => cluster.onBroken?.('no page is bad that nobody spoiled', `${this.id}: ${detail}`))
    watchRows(store, (detail) => cluster.onBroken?.('a channel row counts as held only where its record is', `${this.id}: ${detail}`))
    watchInstalls(store, (detail) => cluster.onBroken?.('resync moves what differs, and at most a tenth more', `${this.id}: ${detail}`))
    return { store, relay }
  }

  /** The process is the failure unit: what it cannot handle ends it. An assertion is a bug, and the end of the simulation. */
  #die(process: SimProcess, error: unknown): void {
    if (!process.alive) return
    if (!(error instanceof XsanError)) {
      this.cluster.world.fail(error)
      return
    }
    this.fatal = error
    this.cluster.world.note('process ends', () => `${this.id}: ${error.status} ${error.message}`)
    process.kill()
    // As a supervisor does; the host may have gone meanwhile, or another process run
    this.host.schedule(SUPERVISOR_MS, 'supervisor', () => {
      this.cluster.members()
      this.start()
    })
  }
}

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
    for (let i = 0; i < options.nodes; i++) this.nodes.push(new SimNode(this, i))
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
    await this.insist('xsan.v1.Cluster/Join', { token }, () => [node]).catch((error: unknown) => {
      // Repeated after its answer was lost
      if (!(error instanceof XsanError && error.status === 'ALREADY_EXISTS')) throw error
    })
  }

  /** A command, given to one running node after the other until one takes it or refuses it for good. Rejects with XsanError. */
  async insist(method: string, request: Message, targets: () => readonly SimNode[] = () => this.nodes.filter((node) => node.running)): Promise<Message> {
    const { clock, rpc } = this.operator
    const endMs = clock.nowMs() + INSIST_MS
    for (let attempt = 0; ; attempt++) {
      const nodes = targets()
      const node = nodes[attempt % Math.max(1, nodes.length)]
      try {
        if (node === undefined) throw new XsanError('NODE_UNREACHABLE', 'no node runs')
        return await rpc.call(node.grpc, method, request, { timeoutMs: 5000 })
      } catch (error) {
        if (!(error instanceof XsanError) || !TRANSIENT.has(error.status) || clock.nowMs() >= endMs) throw error
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
      if (serving < wanted || chain.entries.some((entry) => entry.state !== ReplicaState.SERVING)) {
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
    this.network.healAll()
    Object.assign(this.control.datagramFaults, { loss: 0, duplicate: 0, late: 0 })
    for (const node of this.members()) {
      for (const { disk } of node.bays) {
        disk.resume()
        Object.assign(disk.faults, { readEio: 0, writeEio: 0, flushEio: 0, slow: 0, readMs: 0, misdirect: 0 })
      }
      node.thaw()
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
    if (waitsForGone && this.unhealthyNodes() === '') this.operate('recover', () => this.insist('xsan.v1.Cluster/Recover', {}))
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

/** The replicated state as the most advanced of those nodes has it, or had it when it ended. */
function mostAdvanced(nodes: readonly SimNode[], isAsked: (node: SimNode) => boolean = () => true) {
  let best: Member | undefined
  for (const node of nodes) {
    const member = isAsked(node) ? node.control?.member : undefined
    if (member && (!best || (member.raft?.applied ?? 0) > (best.raft?.applied ?? 0))) best = member
  }
  return best?.state
}

export function usedBytes(queue: SimIoQueue): number {
  return queue.arena.stats().usedBytes.reduce((a, b) => a + b, 0)
}
