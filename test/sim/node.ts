/**
 * One node of a simulated cluster: its host with its disks, the process on it, put together as `src/node` does step by step, and what may happen to them.
 */
import { messageOf, XsanError } from '../../src/base/errors.ts'
import type { DiskNumber } from '../../src/base/ids.ts'
import { BLOCK_BYTES, KiB, MiB } from '../../src/base/units.ts'
import { DataPlane, DEFAULT_LIMITS } from '../../src/chain/data-plane.ts'
import { type MountedStore, mountAll, StoreRelay } from '../../src/chain/store-relay.ts'
import type { ControlConfig, Registration } from '../../src/control/options.ts'
import { ControlPlane } from '../../src/control/plane.ts'
import { FEATURE_LEVEL } from '../../src/control/state.ts'
import { AsyncIo } from '../../src/env/async-io.ts'
import type { Message } from '../../src/env/control.ts'
import { IoError } from '../../src/env/ioqueue.ts'
import { createRaftCore } from '../../src/env/native/raft.ts'
import { kvStore, portPair, type SimControlEnv } from '../../src/env/sim/control.ts'
import type { SimDisk } from '../../src/env/sim/disk.ts'
import { SimHost, type SimProcess } from '../../src/env/sim/host.ts'
import type { SimIoQueue } from '../../src/env/sim/ioqueue.ts'
import { NbdServer } from '../../src/export/nbd/server.ts'
import { describeKey } from '../../src/node/config.ts'
import type { ControlPort, ControlToReactor, ReactorPort, ReactorToControl } from '../../src/placement/messages.ts'
import { type Geometry, planGeometry } from '../../src/store/layout.ts'
import { formatStore, mountStore } from '../../src/store/mount.ts'
import type { ReplicaStore } from '../../src/store/store.ts'
import { VolumeLayer } from '../../src/volume/volume.ts'
import { watchAcknowledged, watchPieces } from './acknowledged.ts'
import { Bay } from './bay.ts'
import { watchInstalls, watchPages, watchQueues, watchRows } from './checkers.ts'
import type { SimCluster } from './cluster.ts'
import { DiskOrder } from './disk-order.ts'
import { Ledger } from './ledger.ts'
import { simulatedMac } from './mac.ts'
import { narrate } from './narrate.ts'
import { NBD_PORT } from './nbd-client.ts'
import type { OlderBinary } from './older-binary.ts'
import { watchRaftWords } from './raft-words.ts'
import type { ClientSeat } from './workload.ts'

const GRPC_PORT = 8080
export const DATA_PORT = 8090
const HEARTBEAT_GROUP = '239.255.88.1'
const HEARTBEAT_PORT = 8088
const NBD_CONNECTIONS_MAX = 16
const DISK_BYTES = 128 * MiB
/** Small, so that segments are used again and again. */
const JOURNAL = { journalBytes: 16 * MiB, segmentBytes: 4 * MiB }
/** Small tables: quickly made, and sometimes full. */
const LIMITS = { recordsMax: 1024, updatesMax: 256, readsMax: 256, clientOpsMax: 512, keepMovedMs: 1500 }
const ARENA_BYTES = 32 * MiB
/** Of a freed range: the memory of an answer of resync is mostly never touched. */
const POISON_BYTES_MAX = 256 * KiB
/** A process that ended by itself is started again after so long. */
const SUPERVISOR_MS = 1000
/** A call from outside waits so long, virtual time. */
export const PATIENCE_MS = 30_000

/** One node: its host, and the process that runs on it, if any. */
export class SimNode {
  readonly cluster: SimCluster
  readonly index: number
  readonly id: string
  readonly host: SimHost
  readonly bays: readonly Bay[]
  process: SimProcess | undefined
  env: SimControlEnv | undefined
  /** Also of a process that has ended, until another one has come so far. */
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
  featureMax = FEATURE_LEVEL
  /** In place of that binary, for a while. */
  older: OlderBinary | undefined
  /** Until then (true time) its clock is, or was a moment ago, off by more than the bound: what it says is no promise. */
  untrustedUntilMs = 0
  #starts = 0
  /** The process that `control` belongs to. */
  #controlled: SimProcess | undefined

  constructor(cluster: SimCluster, index: number) {
    this.cluster = cluster
    this.index = index
    this.id = `node-${index + 1}`
    this.host = new SimHost(cluster.network, {
      name: this.id,
      address: `10.0.0.${index + 1}`,
      bootOffsetMs: 1000 + cluster.world.random('boot').unit() * 1e6,
    })
    const { disksPerNode = 1, unreadableTorn = 0 } = cluster.options
    this.bays = Array.from({ length: disksPerNode }, (_, number) => new Bay(this.host, { node: index, number, unreadableTorn }))
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
    const { process } = this
    if (!process?.alive) return
    process.schedule(0, 'SIGTERM', () => {
      this.cluster.world.asyncPending = true
      const ended = this.control && this.#controlled === process ? this.control.stop() : Promise.resolve()
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
    if (isLast) {
      this.cluster.onGivenUp?.()
      bay.repair()
    } else bay.replace()
    this.cluster.effects.add(isLast ? 'disk-tried-again' : 'disk-replaced')
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

  /** Its newer binary is there again, if an older one was started for a while. */
  installNewer(): void {
    const { older } = this
    if (older === undefined) return
    this.older = undefined
    this.process?.kill()
    for (const detail of older.end()) this.cluster.onBroken?.('an older version changes nothing that it does not know', detail)
    if (older.refused) this.cluster.effects.add('older-binary')
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
    watchRaftWords(env.rpc, kvStore(this.host, 'kv'), (detail) => cluster.onBroken?.('who says something in Raft would know it again', `${this.id}: ${detail}`))
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
    this.#controlled = process
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
      featureMax: this.featureMax,
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
    const { send } = reactor
    reactor.send = (message) => {
      // as the node remembers it
      if (message.type === 'diskFailed') {
        this.cluster.onDiskFailed?.(this)
        this.bays[registration.disks.indexOf(message.disk)]?.failed()
      }
      send(message)
    }
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
    watchPieces(this.volumes, plane.client, (promise, detail) => this.cluster.onBroken?.(promise, `${this.id}: ${detail}`))
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
      ...(bay.wasAway ? { wasAway: true } : {}),
      wallMs: () => this.env!.clock.wallMs(),
      disk,
      onNote: (message, fields) => this.env!.log.log('INFO', message, fields ?? {}),
    })
    // its superblock may have rotted: an older one does not know, and a loss is told
    if (store.lostPower && !bay.lostPower && !bay.wasAway && bay.disk.shown.rotten > 0) cluster.onGivenUp?.()
    bay.mounted = { store, powerCycles: bay.powerCycles }
    bay.wasAway = false
    cluster.ledgers.set(disk, bay.ledger)
    for (const detail of bay.ledger.mounted(store, io.queue.arena.view, bay.powerCycles, cluster.world.nowMs))
      cluster.onBroken?.('a disk that comes back holds what was written to it', `${this.id}: ${detail}`)
    bay.ledger.onBroken = (promise, detail) => cluster.onBroken?.(promise, `${this.id}: ${detail}`)
    const file = bay.disk.files.find((of) => of.path === path)!
    this.order!.mounted(store, file, this.#geometry, bay.ledger, (promise, detail) => cluster.onBroken?.(promise, `${this.id}: ${detail}`))
    // what its drive has dropped is not what was written either, until it is mounted again
    const isSpoiled = () => bay.disk.spoiled || bay.lostPower
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
    this.older?.onFatal(error)
    this.cluster.world.note('process ends', () => `${this.id}: ${error.status} ${error.message}`)
    process.kill()
    // As a supervisor does; the host may have gone meanwhile, or another process run
    this.host.schedule(SUPERVISOR_MS, 'supervisor', () => {
      this.cluster.members()
      this.start()
    })
  }
}
