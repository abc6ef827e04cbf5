/**
 * The data plane of one reactor, put together: table, replicas, writes, reads, client.
 * One owner per datum; everything runs on the reactor's thread, between and in the turns of its io queue.
 */
import type { SlotIndex } from '../base/ids.ts'
import type { AsyncIo } from '../env/async-io.ts'
import type { IoQueue, Tag } from '../env/ioqueue.ts'
import { ReplicaState } from '../placement/chain.ts'
import type { ControlToReactor, DiskStats, ReactorPort, ReactorQuery, TableMessage } from '../placement/messages.ts'
import { slotOf } from '../placement/ring.ts'
import { NO_BLOCK } from '../store/store.ts'
import type { BlockClient } from './block-client.ts'
import { Client, type ClientSettings, type RemoteReplicas } from './client.ts'
import { Counters } from './counters.ts'
import { Reads } from './read.ts'
import { NONE, svOf } from './records.ts'
import { Replicas } from './replica.ts'
import type { MountedStore } from './store-relay.ts'
import { ChainTable, type Identity } from './table.ts'
import { Writes } from './write.ts'

export interface DataPlaneLimits {
  readonly recordsMax: number
  readonly updatesMax: number
  readonly readsMax: number
  readonly clientOpsMax: number
}
export const DEFAULT_LIMITS: DataPlaneLimits = { recordsMax: 8192, updatesMax: 2048, readsMax: 4096, clientOpsMax: 16384 }
export const DEFAULT_SETTINGS: ClientSettings = { retryTotalMs: 60_000, retryFirstMs: 100, retryMaxMs: 1000, writeLifeMs: 4000 }

/** How often waiting things are looked at. */
const TICK_MS = 50
const STATS_MS = 1000

/** Proves to peers that this process belongs to the cluster. Given by the composition root, which has the cryptography and the key. */
export interface Authenticator {
  /** HMAC-SHA256 of `bytes` under the cluster's key: 32 bytes. */
  hmac(bytes: Uint8Array): Uint8Array
  /** 16 random bytes, never the same again. */
  nonce(): Uint8Array
}

export interface DataPlaneOptions {
  readonly queue: IoQueue
  readonly asyncIo: AsyncIo
  readonly port: ReactorPort
  readonly stores: readonly MountedStore[]
  readonly identity: Identity
  /** Where peers connect; port 0 picks one (`dataPort` tells). */
  readonly listen: { readonly host: string; readonly port: number }
  readonly authenticate: Authenticator
  readonly limits?: Partial<DataPlaneLimits>
  readonly settings?: Partial<ClientSettings>
}

export class DataPlane {
  readonly counters = new Counters()
  readonly table: ChainTable
  readonly replicas: Replicas
  readonly writes: Writes
  readonly reads: Reads
  readonly #client: Client
  readonly #queue: IoQueue
  readonly #io: AsyncIo
  readonly #port: ReactorPort
  readonly #tickTag: Tag
  readonly #changed: number[] = []
  /** Rows have become free in this turn. */
  #hasRoom = false
  #stopping = false
  #stopped = false
  #nextStatsMs = 0

  constructor(options: DataPlaneOptions) {
    const { queue, port, stores, identity } = options
    const limits = { ...DEFAULT_LIMITS, ...options.limits }
    const { counters } = this
    this.#queue = queue
    this.#io = options.asyncIo
    this.#port = port
    this.table = new ChainTable(
      identity,
      stores.map(({ store }) => store.disk),
    )
    const { table } = this
    const needTable = (slot: number, version: number) => port.send({ type: 'needTable', slot: slot as SlotIndex, version: version as never })
    this.replicas = new Replicas({
      table,
      stores,
      arena: queue.arena,
      recordsMax: limits.recordsMax,
      hooks: {
        forward: () => {},
        acknowledge: () => {},
        refuse: () => {},
        creditFreed: () => {},
        needTable,
        committed: (slot) => this.reads.wake(slot),
        updateCommitted: (update) => this.writes.committed(update),
        unpinned: (op) => this.#client.unpin(op),
        roomForRecords: () => {
          this.#hasRoom = true
        },
        versionChanged: (slot) => {
          this.writes.versionChanged(slot)
          this.reads.wake(slot)
        },
        sessionStarted: () => {},
        log: (level, message, fields) => port.send({ type: 'log', level, message, fields }),
      },
    })
    this.writes = new Writes({
      queue,
      table,
      replicas: this.replicas,
      counters,
      updatesMax: limits.updatesMax,
      headRecordsMax: limits.recordsMax >> 1,
      hooks: {
        answer: (_peer, _session, row, generation, status, version) => this.#client.onAnswer(row, generation, status, version),
        creditFreed: () => {},
        needTable,
        repair: (_slot, _volume, _layer, _index, _page, done) => done(false),
        pinned: (op) => this.#client.pin(op),
      },
    })
    this.reads = new Reads({
      queue,
      table,
      replicas: this.replicas,
      counters,
      readsMax: limits.readsMax,
      hooks: {
        answerLocal: (row, generation, status) => this.#client.onAnswer(row, generation, status, 0),
        answerPeer: (row) => this.reads.release(row),
        needTable,
        repair: (_slot, _volume, _layer, _index, _page, done) => done(false),
      },
    })
    const remote: RemoteReplicas = {
      peerOf: () => NONE,
      session: () => 0,
      sendUpdate: () => 0,
      sendRead: () => 0,
      flush: (_volume, _deadline, done) => done(0),
    }
    this.#client = new Client({
      queue,
      table,
      writes: this.writes,
      reads: this.reads,
      remote,
      counters,
      settings: { ...DEFAULT_SETTINGS, ...options.settings },
      needTable,
      opsMax: limits.clientOpsMax,
    })
    stores.forEach(({ store, relay }, index) => {
      relay.attach({
        onStaged: (upTo) => this.replicas.onStaged(index, upTo),
        onDurable: (upTo) => this.replicas.onDurable(index, upTo),
        onFailed: (reason) => {
          this.replicas.storeFailure(index)
          port.send({ type: 'diskFailed', disk: store.disk, reason })
        },
      })
    })
    this.#tickTag = queue.register('data plane tick', () => this.#tick())
    queue.onTurnEnd(() => this.settle())
    port.onMessage((message) => this.#onMessage(message))
  }

  get client(): BlockClient {
    return this.#client
  }

  async start(): Promise<void> {
    this.#queue.timeout(TICK_MS, this.#tickTag, 0)
  }

  /** At the end of each turn, and after anything done outside of one: what has gathered goes on its way. */
  settle(): void {
    if (this.#hasRoom) {
      this.#hasRoom = false
      this.writes.roomForRecords()
      this.reads.retryStalled()
    }
    this.#client.settle()
  }

  #tick(): void {
    if (this.#stopped) return
    this.#queue.timeout(TICK_MS, this.#tickTag, 0)
    this.#client.tick()
    this.reads.retryStalled()
    if (this.#queue.nowMs >= this.#nextStatsMs) {
      this.#nextStatsMs = this.#queue.nowMs + STATS_MS
      this.#port.send({
        type: 'stats',
        counters: this.counters.snapshot(),
        disks: this.#diskStats(),
        resync: { slotsLeft: 0, blocksLeft: 0, bytesMoved: 0, bytesNeeded: 0 },
      })
    }
  }

  #diskStats(): DiskStats[] {
    return this.replicas.stores.map(({ disk, capacityBytes, usedBytes, journalUsedBytes, journalBytes, rejectCreate }) => ({
      disk,
      capacityBytes,
      usedBytes,
      journalUsedBytes,
      journalBytes,
      rejectCreate,
    }))
  }

  // ---- the control plane's word ----------------------------------------------------------------------------------------------

  #onMessage(message: ControlToReactor): void {
    switch (message.type) {
      case 'table':
        this.#onTable(message)
        break
      case 'lease':
        this.table.grantLease(message.untilMs, message.revision)
        this.#client.wake()
        break
      case 'peerDown':
        break
      case 'settings':
        this.#onSettings(message.settings)
        break
      case 'stop':
        void this.#stop()
        break
      case 'query':
        this.#port.send({ type: 'answer', queryId: message.queryId, answer: this.#answer(message.query) })
        break
    }
    this.settle()
  }

  #onTable(message: TableMessage): void {
    const { table, replicas } = this
    const isFirst = table.slotCount === 0
    const changed = this.#changed
    changed.length = 0
    table.apply(message, changed)
    if (isFirst) {
      replicas.resize(table.slotCount)
      this.reads.resize(table.slotCount)
    }
    if (message.nodes) this.#expireClients()
    for (const slot of changed) replicas.learn(slot)
    this.#sendLastIds(changed)
    this.#port.send({ type: 'tableApplied', revision: table.revision })
    this.#client.wake()
  }

  /** Channel rows of incarnations that Raft has fenced go (protocol 7). */
  #expireClients(): void {
    for (const { node, incarnation } of this.table.nodes.values()) {
      for (const store of this.replicas.stores) for (let reactor = 0; reactor < 1; reactor++) store.rows.expire(((node << 8) | reactor) >>> 0, incarnation)
    }
  }

  #sendLastIds(slots: readonly number[]): void {
    const { table, replicas } = this
    replicas.stores.forEach((store, index) => {
      const ids: number[] = []
      for (const slot of slots) {
        if (table.ownStore[slot] !== index || table.headNode[slot] !== 0) continue
        const state = table.ownState[slot]
        if (state !== ReplicaState.LASTSRV && state !== ReplicaState.WAITING) continue
        ids.push(slot, table.version[slot]!, store.lastHigh[slot]! | 0, store.lastLow[slot]! | 0)
      }
      if (ids.length > 0) this.#port.send({ type: 'lastIds', disk: store.disk, ids: Int32Array.from(ids) })
    })
  }

  #onSettings(settings: Readonly<Record<string, number | boolean | string>>): void {
    const own = this.#client.settings
    const number = (key: string, set: (value: number) => void) => {
      const value = settings[key]
      if (typeof value === 'number') set(value)
    }
    number('retry_first_wait', (value) => {
      own.retryFirstMs = value
    })
    number('retry_max_wait', (value) => {
      own.retryMaxMs = value
    })
    number('retry_total_time', (value) => {
      own.retryTotalMs = value
    })
    number('write_life', (value) => {
      own.writeLifeMs = value
    })
    if (typeof settings.read_only === 'boolean') this.writes.readOnly = settings.read_only
  }

  // ---- questions -------------------------------------------------------------------------------------------------------------

  #answer(query: ReactorQuery): unknown {
    const { table, replicas } = this
    switch (query.kind) {
      case 'stats':
        return { counters: this.counters.snapshot(), disks: this.#diskStats() }
      case 'digest': {
        const store = table.slotCount > 0 ? replicas.storeOf(query.slot) : undefined
        return store === undefined
          ? null
          : { disk: store.disk, digest: store.slotDigest(query.slot), last: [store.lastHigh[query.slot], store.lastLow[query.slot]] }
      }
      case 'blocks': {
        const indexes = new Set<number>()
        for (const store of replicas.stores) for (const index of store.listBlocks(query.volume, query.from, query.limit)) indexes.add(index)
        return [...indexes].sort((a, b) => a - b).slice(0, query.limit)
      }
      case 'block':
        return table.slotCount === 0 ? [] : this.#describe(query.volume, query.index)
    }
  }

  #describe(volume: number, index: number): unknown {
    const { table, replicas } = this
    const slot = slotOf(volume, index, table.slotCount)
    return replicas.stores.flatMap((store, storeIndex) => {
      const block = store.findBlock(volume, 0, index)
      const isOwn = table.ownStore[slot] === storeIndex
      if (block === NO_BLOCK && !isOwn) return []
      const about = block === NO_BLOCK ? undefined : store.describe(block)
      const updateSv = about ? svOf(about.updateHigh, about.updateLow) : 0
      const committedSv = isOwn ? replicas.committed[slot]! : 0
      return [
        {
          disk: store.disk,
          slot,
          chainVersion: table.version[slot],
          replicaState: isOwn ? table.ownState[slot] : null,
          exists: block !== NO_BLOCK,
          updateVersion: about ? [about.updateHigh, about.updateLow] : [0, 0],
          updateSv,
          committedSv,
          state: about === undefined ? null : updateSv <= committedSv ? 'COMMIT' : about.state,
          checksum: about?.checksum ?? 0,
          timestampMs: about?.timestampMs ?? 0,
          sizeBytes: about?.sizeBytes ?? 0,
        },
      ]
    })
  }

  // ---- stop ------------------------------------------------------------------------------------------------------------------

  /** New updates are refused; what is under way ends, everything is made durable, then `stopped` (checklist 1.28). */
  async #stop(): Promise<void> {
    if (this.#stopping) return
    this.#stopping = true
    this.#client.stopping = true
    this.writes.stopping = true
    const endMs = this.#queue.nowMs + 10_000
    while ((this.#client.underWay > 0 || this.replicas.records.inUse > 0) && this.#queue.nowMs < endMs) await this.#io.sleep(5)
    await Promise.all(this.replicas.stores.map((store) => this.#flushStore(store)))
    this.#stopped = true
    this.#queue.cancelTimeout(this.#tickTag, 0)
    this.#port.send({ type: 'stopped' })
  }

  #flushStore(store: { flush(done: (row: number, status: number) => void, row: number): void }): Promise<number> {
    return new Promise((resolve) => {
      store.flush((_row, status) => {
        this.#queue.asyncPending = true
        resolve(status)
      }, 0)
    })
  }
}
