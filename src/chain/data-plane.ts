/**
 * The data plane of one reactor, put together: table, replicas, writes, reads, client.
 * One owner per datum; everything runs on the reactor's thread, between and in the turns of its io queue.
 */
import { FlightEvent } from '../base/flight.ts'
import type { NodeNumber, SlotIndex, VolumeNumber } from '../base/ids.ts'
import { MiB, PAGE_BYTES } from '../base/units.ts'
import type { AsyncIo } from '../env/async-io.ts'
import type { IoQueue, Tag } from '../env/ioqueue.ts'
import { LastIdFlag, ReplicaState } from '../placement/chain.ts'
import type { ControlToReactor, DiskStats, LostPage, ReactorPort, ReactorQuery, TableMessage } from '../placement/messages.ts'
import { slotOf } from '../placement/ring.ts'
import { NO_BLOCK, type ReplicaStore } from '../store/store.ts'
import { Lane, PeerFrame } from '../wire/peer.ts'
import { Allocation } from './allocation.ts'
import { BadPages } from './bad-pages.ts'
import type { BlockClient } from './block-client.ts'
import { Calls } from './calls.ts'
import { Client, type ClientSettings } from './client.ts'
import { Counters } from './counters.ts'
import { Credits, SMALLEST_PEER_BYTES } from './credits.ts'
import { Flushes, flushStore } from './flush.ts'
import { Forwarding } from './forward.ts'
import type { Authenticator } from './handshake.ts'
import { Owner, Place } from './lane.ts'
import { PayloadPool } from './payload-pool.ts'
import { PEERS_MAX, type PeerHandlers, Peers } from './peers.ts'
import { Reads } from './read.ts'
import { NONE, svOf } from './records.ts'
import { RemoteExchange } from './remote.ts'
import { Replicas } from './replica.ts'
import { Resync } from './resync.ts'
import { ResyncSource } from './resync-source.ts'
import { Space } from './space.ts'
import type { MountedStore } from './store-relay.ts'
import { Sweep } from './sweep.ts'
import { ChainTable, type Identity } from './table.ts'
import { Writes } from './write.ts'

export interface DataPlaneLimits {
  readonly recordsMax: number
  /** Enough for all that peers have credit for, and for two of each channel of this node (a write given up, and its cancel): no lane waits for a row. */
  readonly updatesMax: number
  readonly readsMax: number
  readonly clientOpsMax: number
  /** Credits per (peer, hop). */
  readonly creditRows: number
  readonly creditBytes: number
  /** Arena set apart for what peers send, at most a quarter of it; more, up to half of an arena that is large, as a cluster of many nodes needs (8 MiB per peer). */
  readonly peerPoolBytes: number
  /** What is left of a copy that has moved to other disks is kept for at least so long: it may come back. */
  readonly keepMovedMs: number
}
export const DEFAULT_LIMITS: DataPlaneLimits = {
  recordsMax: 16384,
  updatesMax: 2560,
  readsMax: 4096,
  clientOpsMax: 16384,
  creditRows: 128,
  creditBytes: 8 * MiB,
  peerPoolBytes: 64 * MiB,
  keepMovedMs: 600_000,
}
export const DEFAULT_SETTINGS: ClientSettings = { retryTotalMs: 60_000, retryFirstMs: 100, retryMaxMs: 1000, writeLifeMs: 4000 }

/** How often waiting things are looked at. */
const TICK_MS = 50
const STATS_MS = 1000
const CLOCK_AGE_MS_MAX = 150
/** From this size on half of the arena may be for what peers send; in a smaller one resync would find no room for its answers. */
const LARGE_ARENA_BYTES = 128 * MiB

/** By key of the configuration. */
export type HotSettings = Extract<ControlToReactor, { type: 'settings' }>['settings']

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

/** A stopping node waits so long at most for its disks to say that they were closed. */
const SEAL_MS = 500
/** A stopping node waits so long at most for its uncommitted records, when others can take over. */
const DRAIN_MS = 100

export class DataPlane {
  readonly counters = new Counters()
  readonly table: ChainTable
  readonly replicas: Replicas
  readonly writes: Writes
  readonly reads: Reads
  readonly peers: Peers
  readonly forwarding: Forwarding
  readonly #remote: RemoteExchange
  readonly calls: Calls
  readonly credits: Credits
  readonly #limits: DataPlaneLimits
  readonly #pool: PayloadPool
  readonly #poolBytesMax: number
  /** Smaller than the peers need, for now. */
  #poolIsShort = false
  readonly #space: Space
  readonly flushes: Flushes
  readonly #badPages: BadPages
  readonly #resync: Resync
  readonly #allocation: Allocation
  readonly #client: Client
  readonly #listen: { readonly host: string; readonly port: number }
  /** Where peers connect; known after `start`. */
  dataPort = 0
  /** Counters of the exports above, to go out with this reactor's own. Set by the composition root. */
  exportCounters: () => Readonly<Record<string, number>> = () => ({})
  /** When the node stops, before anything is refused: the exports begin nothing more. */
  stopExports: () => void = () => undefined
  #reports: number[] = []
  #settings: HotSettings | undefined
  #settingsHandler: ((settings: HotSettings) => void) | undefined
  readonly #queue: IoQueue
  readonly #io: AsyncIo
  readonly #port: ReactorPort
  readonly #tickTag: Tag
  readonly #changed: number[] = []
  /** Messages that wait for the end of a turn. */
  readonly #deferred: ControlToReactor[] = []
  /** Rows have become free in this turn. */
  #hasRoom = false
  #stopping = false
  #stopped = false
  /** Highest number of a node in any table so far. */
  #newestNode = 0
  /** As last told. */
  #unreachable: NodeNumber[] = []
  #nextStatsMs = 0
  /** When blocks of deleted volumes are looked for, ascending. */
  readonly #sweep: Sweep

  constructor(options: DataPlaneOptions) {
    const { queue, port, stores, identity } = options
    const limits = { ...DEFAULT_LIMITS, ...options.limits }
    const { counters } = this
    this.#queue = queue
    this.#io = options.asyncIo
    this.#port = port
    this.#listen = options.listen
    this.table = new ChainTable(
      identity,
      stores.map(({ store }) => store.disk),
    )
    const { table } = this
    const needTable = (slot: number, version: number) => port.send({ type: 'needTable', slot: slot as SlotIndex, version: version as never })
    this.credits = new Credits(PEERS_MAX, { rows: limits.creditRows, bytes: limits.creditBytes })
    const credits = this.credits
    this.#limits = limits
    const arenaBytes = queue.arena.totalPages * PAGE_BYTES
    const quarterBytes = Math.floor(queue.arena.totalPages / 4) * PAGE_BYTES
    this.#poolBytesMax = arenaBytes >= LARGE_ARENA_BYTES ? quarterBytes * 2 : quarterBytes
    this.#pool = new PayloadPool(queue.arena, Math.min(limits.peerPoolBytes, quarterBytes))
    const pool = this.#pool
    const log: PeerHandlers['log'] = (level, message, fields) => port.send({ type: 'log', level, message, fields })
    this.replicas = new Replicas({
      table,
      stores,
      pool,
      recordsMax: limits.recordsMax,
      hooks: {
        forward: (slot) => this.forwarding.forward(slot),
        acknowledge: (slot) => this.forwarding.acknowledge(slot),
        isPredecessor: (peer, slot) => this.peers.nodeOf(peer) === table.predecessorNode[slot],
        refuse: (row, status) => this.forwarding.refuse(row, status),
        creditFreed: (peer, hop, bytes) => this.forwarding.creditFreed(peer, hop, bytes),
        needTable,
        committed: (slot) => {
          queue.flight.record(FlightEvent.COMMITTED, slot, this.replicas.committed[slot])
          this.reads.wake(slot)
        },
        updateCommitted: (update) => this.writes.committed(update),
        unpinned: (op) => this.#client.unpin(op),
        roomForRecords: () => {
          this.#hasRoom = true
        },
        versionChanged: (slot, isOtherDisk) => {
          this.writes.versionChanged(slot, isOtherDisk)
          this.reads.wake(slot)
        },
        sessionStarted: () => this.#resync.sessionStarted(),
        promiseSettled: () => {
          queue.asyncPending = true
        },
        log,
      },
    })
    const repair = (slot: number, volume: number, layer: number, index: number, page: number, done: (repaired: boolean) => void) => {
      void this.#badPages.repair(slot, { volume, layer, index }, page).then((repaired) => {
        done(repaired)
        this.settle()
      })
    }
    this.writes = new Writes({
      queue,
      pool,
      table,
      replicas: this.replicas,
      counters,
      updatesMax: limits.updatesMax,
      headRecordsMax: limits.recordsMax >> 1,
      hooks: {
        answer: (peer, session, row, generation, status, version) => {
          if (peer === NONE) this.#client.onAnswer(row, generation, status, version)
          else this.#remote.answerUpdate(peer, session, row, generation, status, version)
        },
        creditFreed: (peer, hop, bytes) => this.forwarding.creditFreed(peer, hop, bytes),
        isPresent: (peer, session) => this.peers.isUp(peer) && this.peers.sessionOf(peer) === session,
        needTable,
        repair,
        pinned: (op) => this.#client.pin(op),
        isFullElsewhere: (slot) => this.#space.isFullElsewhere(slot),
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
        answerPeer: (row, status, detail) => this.#remote.answerRead(row, status, detail),
        needTable,
        repair,
      },
    })
    const settings = { ...DEFAULT_SETTINGS, ...options.settings }
    this.peers = new Peers({
      queue,
      table,
      authenticate: options.authenticate,
      counters,
      handlers: this.#peerHandlers(log),
    })
    const { peers, replicas, writes, reads } = this
    this.#space = new Space({ arena: queue.arena, table, stores: replicas.stores, peers })
    this.calls = new Calls({ queue, peers })
    this.forwarding = new Forwarding({
      queue,
      pool,
      table,
      replicas,
      peers,
      credits,
      counters,
      settings,
      needTable,
      creditGranted: () => this.#client.feed(),
    })
    this.#remote = new RemoteExchange({
      queue,
      pool,
      table,
      peers,
      credits,
      writes,
      reads,
      counters,
      client: () => this.#client,
      creditFreed: (peer, hop, bytes) => this.forwarding.creditFreed(peer, hop, bytes),
      writeLifeMs: settings.writeLifeMs,
    })
    this.#allocation = new Allocation({ queue, io: options.asyncIo, table, replicas })
    this.#sweep = new Sweep({ queue, table, replicas, log, keepMovedMs: limits.keepMovedMs })
    const onTold = (volume: VolumeNumber, losses: number) => this.#port.send({ type: 'lossesTold', volume, losses })
    this.flushes = new Flushes({ io: options.asyncIo, table, replicas, peers, calls: this.calls, counters, log, onTold })
    const { calls } = this
    this.#badPages = new BadPages({ io: options.asyncIo, table, replicas, peers, calls, counters, log })
    const badPages = this.#badPages
    new ResyncSource({ io: options.asyncIo, table, replicas, badPages, calls, counters, log })
    this.#resync = new Resync({
      io: options.asyncIo,
      table,
      replicas,
      badPages,
      peers,
      calls: this.calls,
      counters,
      report: (slot, since) => {
        this.#reports.push(slot, since, identity.incarnation | 0)
        this.#sendReports()
      },
      log,
    })
    this.#client = new Client({
      queue,
      table,
      writes,
      reads,
      counters,
      settings,
      needTable,
      opsMax: limits.clientOpsMax,
      remote: {
        peerOf: (node) => peers.indexOf(node),
        session: (peer) => peers.sessionOf(peer),
        sendUpdate: (peer, op) => this.#remote.sendUpdate(peer, op),
        hasCreditFor: (peer, updates, bytes) => credits.hasLeft(peer, 0, updates, bytes),
        sendRead: (peer, op) => this.#remote.sendRead(peer, op),
        abort: (peer, reason) => peers.abort(peer, reason),
        isFlushNeeded: (volume) => this.flushes.isNeeded(volume),
        pastLossCount: (volume) => this.flushes.pastLossCount(volume),
        flush: (volume, deadlineMs, done) => this.flushes.flush(volume, deadlineMs, done),
      },
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

  /** What is in use, by name: all zero once nothing is under way and every replica here is up to date. For leak checks and diagnostics. */
  get resources(): Readonly<Record<string, number>> {
    const { replicas, writes, reads } = this
    return {
      records: replicas.records.inUse,
      updates: writes.updates.inUse,
      merges: writes.merging,
      reads: reads.reads.inUse,
      clientOperations: this.#client.ops.inUse,
      calls: this.calls.underWay,
      creditsHeld: this.credits.heldRows,
      resyncSessions: replicas.sessions.size,
    }
  }

  get client(): BlockClient {
    return this.#client
  }

  /** Listens for peers. Throws IoError (EADDRINUSE ...). */
  async start(): Promise<void> {
    this.dataPort = this.peers.listen(this.#listen)
    this.#queue.timeout(TICK_MS, this.#tickTag, 0)
  }

  /** What comes from peers, each to whose conversation it is. */
  #peerHandlers(log: PeerHandlers['log']): PeerHandlers {
    return {
      up: (peer) => {
        this.forwarding.up(peer)
        this.#space.up(peer)
        this.#client.wake()
      },
      down: (peer) => {
        this.forwarding.down(peer)
        this.#space.down(peer)
        this.#remote.down(peer)
        this.calls.down(peer)
        this.#client.peerLost(peer)
      },
      place: (peer, type, at, headBytes, payloadBytes, placement) => {
        switch (type) {
          case PeerFrame.FORWARD:
            return this.forwarding.place(peer, at, headBytes, payloadBytes, placement)
          case PeerFrame.UPDATE:
            return this.#remote.placeUpdate(peer, at, headBytes, payloadBytes, placement)
          case PeerFrame.READ_ANSWER:
            return this.#remote.placeReadAnswer(peer, at, payloadBytes, placement)
          case PeerFrame.CALL_DATA:
            return this.calls.place(peer, at, payloadBytes, placement)
          default:
            return Place.REFUSE
        }
      },
      frame: (peer, type, at, headBytes, payloadBytes, _kind, row) => {
        switch (type) {
          case PeerFrame.FORWARD:
            return this.forwarding.receive(row)
          case PeerFrame.ACKS:
            return this.forwarding.onAcks(peer, at, headBytes)
          case PeerFrame.CREDITS:
            return this.forwarding.onCredits(peer, at, headBytes)
          case PeerFrame.FORWARD_REFUSALS:
            return this.forwarding.onRefusals(peer, at, headBytes)
          case PeerFrame.FULL_DISKS:
            return this.#space.onFullDisks(peer, at, headBytes)
          case PeerFrame.UPDATE:
            return this.#remote.onUpdate(row)
          case PeerFrame.UPDATE_ANSWERS:
            return this.#remote.onUpdateAnswers(at, headBytes)
          case PeerFrame.READ:
            return this.#remote.onRead(peer, at)
          case PeerFrame.READ_ANSWER:
            return this.#remote.onReadAnswer(peer, at, payloadBytes)
          case PeerFrame.CALL:
            return this.calls.onCall(peer, at, headBytes)
          case PeerFrame.CALL_DATA:
            return this.calls.onData(peer, at, payloadBytes)
          default:
            return 'not expected here'
        }
      },
      unplaced: (kind, row) => {
        if (kind === Owner.RECORD) this.replicas.abandon(row)
        else if (kind === Owner.UPDATE) this.writes.abandon(row)
      },
      sent: (kind, row) => {
        if (kind === Owner.RECORD) this.replicas.sent(row)
        else if (kind === Owner.OPERATION) this.#client.unpin(row)
        else if (kind === Owner.READ) this.reads.release(row)
        else if (kind === Owner.CALL_ANSWER) this.calls.pieceSent(row)
      },
      gather: (peer, lane) => {
        if (lane !== Lane.ACK) return
        this.forwarding.gather(peer)
        this.#space.gather(peer)
        this.#remote.gather(peer)
      },
      laneRoom: (peer, lane) => {
        if (lane === Lane.FORWARD) {
          this.forwarding.laneRoom(peer)
          this.#client.feed()
        } else if (lane === Lane.BULK) {
          this.#remote.laneRoom(peer)
          this.calls.laneRoom(peer)
        }
      },
      clockKnown: () => this.#client.feed(),
      refused: (node, incarnation) => this.#port.send({ type: 'peerRefused', node, incarnation }),
      log,
    }
  }

  /** At the end of each turn, and after anything done outside of one: what has gathered goes on its way. */
  settle(): void {
    if (this.#deferred.length > 0) for (const message of this.#deferred.splice(0)) this.#handle(message)
    if (this.#hasRoom) {
      this.#hasRoom = false
      this.writes.roomForRecords()
      this.reads.retryStalled()
      this.peers.resumeStalled()
    }
    this.#client.settle()
    this.#space.settle()
    this.peers.flush()
  }

  #tick(): void {
    if (this.#stopped) return
    this.#queue.timeout(TICK_MS, this.#tickTag, 0)
    this.peers.tick()
    this.#tellUnreachable()
    this.forwarding.tick()
    this.#client.tick()
    this.writes.tick()
    this.reads.tick()
    this.calls.tick()
    if (this.#poolIsShort) this.#shareCredits()
    this.reads.retryStalled()
    this.#sweep.tick()
    if (this.#queue.nowMs >= this.#nextStatsMs) {
      this.#nextStatsMs = this.#queue.nowMs + STATS_MS
      const resync = this.#resync.stats()
      // those that a mount has found are looked for too
      if (resync.lostPages > 0) this.#badPages.heal()
      for (const store of this.replicas.stores) if (store.lostPower) this.#noteServed(store)
      this.#port.send({ type: 'stats', counters: this.#allCounters(), disks: this.#diskStats(), resync })
    }
  }

  #tellUnreachable(): void {
    const nodes = this.peers.unreachable()
    if (nodes.length === this.#unreachable.length && nodes.every((node, i) => node === this.#unreachable[i])) return
    this.#unreachable = nodes
    this.#port.send({ type: 'unreachable', nodes })
  }

  /** Slots of which the disk is to have a replica, and that have been served or resynced since its host lost power, have lost nothing that is not known. */
  #noteServed(store: ReplicaStore): void {
    const { table, replicas } = this
    if (table.slotCount === 0 || store.failed) return
    const served: number[] = []
    let waiting = 0
    for (let slot = 0; slot < table.slotCount; slot++) {
      if (!store.hasLostPower(slot) || table.stateOf(slot, store.disk) === undefined) continue
      if (replicas.hasServed[slot] === 1) served.push(slot)
      else waiting++
    }
    if (waiting === 0) void store.forgetPowerLoss()
    else if (served.length > 0) void store.forgetPowerLossOf(served)
  }

  /** Pages whose content is gone here and came from no other replica. */
  lostPages(): LostPage[] {
    return this.#badPages.lostPages()
  }

  #allCounters(): Record<string, number> {
    return { ...this.counters.snapshot(), ...this.exportCounters() }
  }

  #diskStats(): DiskStats[] {
    return this.replicas.stores.map(({ disk, capacityBytes, usedBytes, journalUsedBytes, journalBytes, rejectCreate, rejectReason }) => ({
      disk,
      capacityBytes,
      usedBytes,
      journalUsedBytes,
      journalBytes,
      rejectCreate,
      rejectReason,
    }))
  }

  // ---- the control plane's word ----------------------------------------------------------------------------------------------

  /**
   * Messages come between turns, when the queue's clock is that of the last turn. If that is long ago, they wait for the end of the next one: no
   * lease is judged by an old clock.
   */
  #onMessage(message: ControlToReactor): void {
    const { nowMs } = this.#queue
    if (this.#deferred.length > 0 || this.#queue.sampleClockMs() - nowMs > CLOCK_AGE_MS_MAX) this.#deferred.push(message)
    else {
      this.#handle(message)
      this.settle()
    }
  }

  #handle(message: ControlToReactor): void {
    switch (message.type) {
      case 'table':
        this.#onTable(message)
        break
      case 'lease':
        this.table.grantLease(message.untilMs, message.revision)
        this.#client.wake()
        break
      case 'peerDown':
        this.peers.peerDown(message.node, message.incarnation)
        break
      case 'settings':
        this.#onSettings(message.settings)
        break
      case 'stop':
        void this.#stop()
        break
      case 'query':
        void this.#reply(message.queryId, message.query)
        break
    }
  }

  #onTable(message: TableMessage): void {
    const { table, replicas } = this
    const isFirst = table.slotCount === 0
    const changed = this.#changed
    changed.length = 0
    this.#client.tableComes()
    table.apply(message, changed, this.#queue.sampleClockMs())
    if (isFirst) {
      replicas.resize(table.slotCount)
      this.reads.resize(table.slotCount)
      this.forwarding.resize(table.slotCount)
    }
    if (message.nodes) {
      this.#expireClients()
      this.#shareCredits()
      this.peers.nodesChanged()
    }
    if (message.volumes) {
      this.flushes.volumesChanged()
      this.#sweep.volumesChanged()
    }
    for (const slot of changed) replicas.learn(slot)
    // at once: of a process that is killed before, they would be said to have lost it once more
    if (changed.length > 0) for (const store of replicas.stores) if (store.lostPower) this.#noteServed(store)
    this.writes.tableLearned()
    this.#sendLastIds(changed)
    this.#port.send({ type: 'tableApplied', revision: table.revision })
    this.#client.tableLearned()
  }

  /** All credit together fits into the rows and the memory set apart for it. */
  #shareCredits(): void {
    const { creditRows, creditBytes, recordsMax } = this.#limits
    const peers = this.table.nodes.size - 1
    const neededBytes = peers * SMALLEST_PEER_BYTES
    const wasShort = this.#poolIsShort
    // under load the arena may have no stretch for it; then again soon
    this.#poolIsShort = !this.#pool.grow(Math.min(neededBytes, this.#poolBytesMax))
    if (!wasShort && (this.#poolIsShort || neededBytes > Math.max(this.#poolBytesMax, LARGE_ARENA_BYTES / 4))) {
      const fields = { peers, neededBytes, poolBytes: this.#pool.poolBytes }
      this.#port.send({ type: 'log', level: 'WARN', message: 'the memory for what peers send is too small for so many of them: reactor.arena_size', fields })
    }
    this.credits.share(peers, { rows: creditRows, bytes: creditBytes }, recordsMax / 2, this.#pool.poolBytes)
  }

  /** Channel rows of incarnations that Raft has fenced go (protocol 7), and those of removed nodes: numbers of nodes rise and are never used again. */
  #expireClients(): void {
    const { nodes } = this.table
    this.#newestNode = Math.max(this.#newestNode, ...nodes.keys())
    const isRemoved = (clientHigh: number) => clientHigh >>> 8 <= this.#newestNode && !nodes.has(clientHigh >>> 8)
    for (const store of this.replicas.stores) store.rows.expireAll(isRemoved)
    for (const { node, incarnation } of this.table.nodes.values()) {
      for (const store of this.replicas.stores) for (let reactor = 0; reactor < 1; reactor++) store.rows.expire(((node << 8) | reactor) >>> 0, incarnation)
    }
  }

  /** Reports of one turn go together. */
  #sendReports(): void {
    if (this.#reports.length > 3) return
    void Promise.resolve().then(() => {
      const reports = Int32Array.from(this.#reports)
      this.#reports = []
      this.#port.send({ type: 'upToDate', reports })
    })
  }

  #sendLastIds(slots: readonly number[]): void {
    const { table, replicas } = this
    for (const store of replicas.stores) {
      const ids: number[] = []
      let damaged: ReadonlySet<number> | undefined
      for (const slot of slots) {
        if (table.headNode[slot] !== 0) continue
        // of each disk here: the chain may name two of them
        const state = table.stateOf(slot, store.disk)
        if (state !== ReplicaState.LASTSRV && state !== ReplicaState.WAITING) continue
        const hasLostPower = store.hasLostPower(slot) && replicas.hasServed[slot] === 0
        damaged ??= slotsWithUnknownPages(store)
        const flags =
          (hasLostPower ? LastIdFlag.LOST_POWER : 0) | (store.isIncomplete(slot) ? LastIdFlag.INCOMPLETE : 0) | (damaged.has(slot) ? LastIdFlag.DAMAGED : 0)
        ids.push(slot, table.version[slot]!, store.lastHigh[slot]! | 0, store.lastLow[slot]! | 0, flags)
      }
      if (ids.length > 0) this.#port.send({ type: 'lastIds', disk: store.disk, ids: Int32Array.from(ids) })
    }
  }

  /** Also hears of the hot settings: of those known now at once, then of every change. One handler. */
  watchSettings(handler: (settings: HotSettings) => void): void {
    this.#settingsHandler = handler
    if (this.#settings !== undefined) handler(this.#settings)
  }

  #onSettings(settings: HotSettings): void {
    const own = this.#client.settings
    const number = (key: string, set: (value: number) => void) => {
      const value = settings[key]
      if (typeof value === 'number') set(value)
    }
    number('forward.retry_first_wait', (value) => {
      own.retryFirstMs = value
    })
    number('forward.retry_max_wait', (value) => {
      own.retryMaxMs = value
    })
    number('forward.retry_total_time', (value) => {
      own.retryTotalMs = value
    })
    const readOnly = settings['storage.read_only']
    if (typeof readOnly === 'boolean') this.writes.readOnly = this.#client.readOnly = readOnly
    this.#settings = settings
    this.#settingsHandler?.(settings)
  }

  // ---- questions -------------------------------------------------------------------------------------------------------------

  async #reply(queryId: number, query: ReactorQuery): Promise<void> {
    const answer = query.kind === 'allocated' ? await this.#allocation.blocks() : this.#answer(query)
    this.#port.send({ type: 'answer', queryId, answer })
  }

  #answer(query: Exclude<ReactorQuery, { kind: 'allocated' }>): unknown {
    const { table, replicas } = this
    switch (query.kind) {
      case 'stats':
        return { counters: this.#allCounters(), disks: this.#diskStats(), resync: this.#resync.stats() }
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
    const lost = this.#badPages.lostPages().filter((page) => page.volume === volume && page.layer === 0 && page.index === index)
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
          pages: about?.pages ?? 0,
          lostPages: isOwn ? lost.map(({ page }) => page) : [],
        },
      ]
    })
  }

  // ---- stop ------------------------------------------------------------------------------------------------------------------

  /** New updates are refused; what is under way ends, everything is made durable, then `stopped` (checklist 1.28). */
  async #stop(): Promise<void> {
    if (this.#stopping) return
    this.#stopping = true
    this.stopExports()
    this.#client.stopping = true
    this.writes.stopping = true
    const endMs = this.#queue.nowMs + 10_000
    while (this.#client.underWay > 0 && this.#queue.nowMs < endMs) await this.#io.sleep(2)
    // Other heads go on sending: what they forward does not end until this replica is out of their chains. They send it again, nothing is lost.
    const drainedMs = this.table.nodes.size > 1 ? Math.min(endMs, this.#queue.nowMs + DRAIN_MS) : endMs
    while (this.replicas.records.inUse > 0 && this.#queue.nowMs < drainedMs) await this.#io.sleep(2)
    await Promise.all(this.replicas.stores.map((store) => flushStore(this.#io, store)))
    let isSealed = false
    const sealedMs = this.#queue.nowMs + SEAL_MS
    void Promise.all(this.replicas.stores.map((store) => store.seal())).then(() => {
      isSealed = true
    })
    while (!isSealed && this.#queue.nowMs < sealedMs) await this.#io.sleep(1)
    // what still comes from peers is refused from here on: "stopped" is as good as a proof of death
    this.table.endLease()
    this.#stopped = true
    this.#resync.stop()
    this.#badPages.stop()
    this.#sweep.stop()
    this.#queue.cancelTimeout(this.#tickTag, 0)
    this.#port.send({ type: 'stopped' })
  }
}

/** Slots with pages whose ids went with the leaf of the page table that held them. */
function slotsWithUnknownPages(store: ReplicaStore): ReadonlySet<number> {
  const slots = new Set<number>()
  const id = new Uint32Array(2)
  for (const { block, page } of store.lostPages(Number.POSITIVE_INFINITY)) {
    store.newestId(block, page, 1, id)
    if (id[0] === 0 && id[1] === 0) slots.add(store.blockIdentity(block).slot)
  }
  return slots
}
