/**
 * The replicas of this reactor: staging, committing, and what a new table version means for them (protocol 6 to 8, 11 to 15, 21, 22).
 *
 *   list of a slot (staged, uncommitted, in order):   committed < [ r1 ][ r2 ][ r3 ][ r4 ] <= last
 *                                                                  ^ready so far  ^next to forward
 *
 *   eligible: may be committed as far as others are concerned (a tail: all staged; else: what the successor acknowledged in this version)
 *   ready:    as durable here as asked
 *   committed = min(eligible, ready), acknowledged to the predecessor as it rises
 *
 * Invariants: eligible, ready and committed are slot sequence numbers (sv) and only fall when the replica leaves the write path or starts a
 * new term; records leave the list at its head only; nothing is acknowledged that is not committed.
 */
import { assert } from '../base/assert.ts'
import { XsanError } from '../base/errors.ts'
import { Status } from '../base/status.ts'
import { CHAIN_OP_PAGES_MAX, PAGE_BYTES, PAGES_PER_BLOCK } from '../base/units.ts'
import type { PageNumber } from '../env/arena.ts'
import { ReplicaState } from '../placement/chain.ts'
import type { ReactorLog } from '../placement/messages.ts'
import { NO_BLOCK, RecordKind, type ReplicaStore, StageRecord } from '../store/store.ts'
import type { PayloadPool } from './payload-pool.ts'
import { idHighOf, idLowOf, NONE, RecordState, type Records, recordRows, svOf, versionOf } from './records.ts'
import { SyncSession } from './session.ts'
import type { MountedStore } from './store-relay.ts'
import { type ChainTable, NO_STORE } from './table.ts'

const { SERVING, DRAINING, SYNCING, LASTSRV } = ReplicaState

/** What the replicas need of the rest of the reactor. Called synchronously; must not call back into the same slot's staging. */
export interface ReplicaHooks {
  /** There may be records to forward. */
  forward(slot: number): void
  /** Acknowledge what is committed to the predecessor. */
  acknowledge(slot: number): void
  /** Whether that peer is a session with the slot's predecessor. */
  isPredecessor(peer: number, slot: number): boolean
  /** Tell the peer that sent the record that it was not taken. The row is freed right after. */
  refuse(row: number, status: number): void
  /** A row that came from a peer is free: its credit goes back. */
  creditFreed(peer: number, hop: number, payloadBytes: number): void
  needTable(slot: number, version: number): void
  /** `committed` of the slot has risen: waiting reads look again. */
  committed(slot: number): void
  /** The update's record is committed here; the row lets go of the update. */
  updateCommitted(update: number): void
  /** The payload of the client operation is read no more by this row. */
  unpinned(operation: number): void
  /** Rows have become free. */
  roomForRecords(): void
  /** Any new version, before its consequences: updates and reads that wait here look again. `isOtherDisk`: the slot is on another disk of this node now. */
  versionChanged(slot: number, isOtherDisk: boolean): void
  sessionStarted(session: SyncSession): void
  /** Async code will go on: let its promises run before the next turn. */
  promiseSettled(): void
  readonly log: ReactorLog
}

export class Replicas {
  readonly table: ChainTable
  readonly stores: readonly ReplicaStore[]
  readonly records: Records
  /** Rows of hop 0: clients' updates, ordered here. */
  headRecords = 0
  /** Removals in the lists of slots. */
  #removals = 0
  readonly sessions = new Map<number, SyncSession>()
  /** Per store: nothing may be served or acknowledged from it any more. */
  readonly storeFailed: boolean[]
  readonly #pool: PayloadPool
  readonly #hooks: ReplicaHooks
  readonly #stage = new StageRecord()
  /** The row #stage was filled from by `admit`, NONE after it was staged. */
  #filled = NONE

  // per slot
  /** Index of the disk that all of the following is about; NO_STORE: none. */
  #disk = new Uint8Array(0)
  committed = new Float64Array(0)
  eligible = new Float64Array(0)
  ready = new Float64Array(0)
  /** Since which version this replica serves, as far as it knows; 0: it does not. */
  #servingSince = new Int32Array(0)
  /** This process has held everything acknowledged of the slot: what its disk lost before counts no more. */
  hasServed = new Uint8Array(0)
  #first = new Int32Array(0)
  #last = new Int32Array(0)
  #readyNext = new Int32Array(0)
  /** First record not yet forwarded in this version and session; NONE: all are. */
  forwardNext = new Int32Array(0)
  /** Forwards that wait for a table or for room in the journal, in order. */
  #parkedFirst = new Int32Array(0)
  #parkedLast = new Int32Array(0)

  // per store
  readonly #stagedFirst: Int32Array
  readonly #stagedLast: Int32Array
  readonly #durableFirst: Int32Array
  readonly #durableLast: Int32Array
  readonly #waitForRoom: Array<Set<number>>
  /** Buffers of clients' operations that have ended, which a hanging disk has not given back. */
  readonly #heldBuffers = new Set<{ readonly page: number; readonly pageCount: number }>()
  readonly #durableWaiters: Array<Array<{ seq: number; resolve: () => void }>>

  constructor(options: { table: ChainTable; stores: readonly MountedStore[]; pool: PayloadPool; hooks: ReplicaHooks; recordsMax: number }) {
    const { stores } = options
    assert(stores.length < NO_STORE, `${stores.length} disks on one reactor`)
    this.table = options.table
    this.stores = stores.map(({ store }) => store)
    this.#pool = options.pool
    this.#hooks = options.hooks
    this.records = recordRows(options.recordsMax)
    this.storeFailed = stores.map(({ store }) => store.failed)
    this.#stagedFirst = new Int32Array(stores.length).fill(NONE)
    this.#stagedLast = new Int32Array(stores.length).fill(NONE)
    this.#durableFirst = new Int32Array(stores.length).fill(NONE)
    this.#durableLast = new Int32Array(stores.length).fill(NONE)
    this.#waitForRoom = stores.map(() => new Set())
    this.#durableWaiters = stores.map(() => [])
  }

  lastHigh(slot: number): number {
    return this.stores[this.table.ownStore[slot]!]!.lastHigh[slot]!
  }
  lastLow(slot: number): number {
    return this.stores[this.table.ownStore[slot]!]!.lastLow[slot]!
  }
  lastSv(slot: number): number {
    const store = this.stores[this.table.ownStore[slot]!]!
    return svOf(store.lastHigh[slot]!, store.lastLow[slot]!)
  }

  /** The disk of the slot's own entry, when it may be used. */
  storeOf(slot: number): ReplicaStore | undefined {
    const index = this.table.ownStore[slot]!
    return index === NO_STORE || this.storeFailed[index] ? undefined : this.stores[index]
  }

  /** First of the staged and uncommitted records; NONE. */
  firstRecord(slot: number): number {
    return this.#first[slot]!
  }

  // ---- taking records --------------------------------------------------------------------------------------------------

  /** A forward, its payload complete, from its slot's predecessor as far as the sender knows (protocol 11). The row is this class's from now on. */
  receive(row: number): void {
    const { records, table } = this
    const slot = records.slot[row]!
    if (this.#parkedFirst[slot] !== NONE || this.#isHeld(slot)) {
      this.#park(slot, row)
      return
    }
    const status = this.#take(slot, row)
    if (status === Status.BUSY || status === Status.CHAIN_VERSION_MISMATCH) {
      this.#park(slot, row)
      if (status === Status.CHAIN_VERSION_MISMATCH) this.#hooks.needTable(slot, records.chainVersion[row]!)
      else this.#awaitRoom(table.ownStore[slot]!, slot)
    } else if (status !== Status.SUCCESS) {
      this.#hooks.refuse(row, status)
      this.#release(row)
    }
  }

  /** SUCCESS: the row is staged, skipped or released. BUSY, CHAIN_VERSION_MISMATCH: try again later. Else: to be refused. */
  #take(slot: number, row: number): number {
    const { records, table } = this
    const version = table.version[slot]!
    if (records.chainVersion[row]! < version) return Status.ROUTING_STALE
    if (records.chainVersion[row]! > version) return Status.CHAIN_VERSION_MISMATCH
    const storeIndex = table.ownStore[slot]!
    const state = table.ownState[slot]!
    if (storeIndex === NO_STORE || table.ownDisks[storeIndex] !== records.disk[row] || state > SYNCING) return Status.REQUEST_REFUSED
    if (!this.#hooks.isPredecessor(records.peer[row]!, slot)) return Status.REQUEST_REFUSED
    if (this.storeFailed[storeIndex]) return Status.WRITE_FAILED
    const session = state === SYNCING ? this.sessions.get(slot) : undefined
    if (state === SYNCING && session === undefined) return Status.REQUEST_REFUSED
    const store = this.stores[storeIndex]!
    records.store[row] = storeIndex
    const sv = records.sv[row]!
    const lastSv = svOf(store.lastHigh[slot]!, store.lastLow[slot]!)
    if (lastSv !== 0 && sv <= lastSv) {
      // already here, or seen in this session
      if (this.#isOtherHistory(slot, row, lastSv)) return Status.REQUEST_REFUSED
      if (this.committed[slot]! >= sv) this.#hooks.acknowledge(slot)
      this.#release(row)
      return Status.SUCCESS
    }
    if (!this.#startsStream(session, row, lastSv) && (records.prevHigh[row] !== store.lastHigh[slot] || records.prevLow[row] !== store.lastLow[slot])) {
      this.#hooks.log('ERROR', 'a forward does not follow the last record of its slot', { slot, sv, lastSv, version })
      return Status.REQUEST_REFUSED
    }
    // Ordered before its head knew that the volume acknowledges from memory no more. Whoever comes to hold it after the last flush holds it durably (flush.ts)
    if (records.durable[row] === 0 && records.kind[row] !== RecordKind.EMPTY && table.isSyncWhenWrite(records.volume[row]!)) records.durable[row] = 1
    if (session !== undefined) return this.#takeInSession(session, row, store)
    const admitted = this.#admit(store, row, false)
    if (admitted !== Status.SUCCESS) return admitted
    this.stage(row)
    return Status.SUCCESS
  }

  /**
   * Whether what comes at that sequence number is another record than the one here (protocol 11). What is committed here was acknowledged by
   * everybody after this replica: a peer that says otherwise is wrong, and refused. Not committed, the logs of this slot have parted although
   * versions and places agree: a bug of ours, and this replica must not go on as if it knew which is right (as a new process it resyncs).
   */
  #isOtherHistory(slot: number, row: number, lastSv: number): boolean {
    const { records, stores } = this
    const sv = records.sv[row]!
    let here = this.#first[slot]!
    while (here !== NONE && records.sv[here] !== sv) here = records.next[here]!
    const store = stores[records.store[row]!]!
    if (here === NONE && sv !== lastSv) return false
    const high = here === NONE ? store.lastHigh[slot]! : records.idHigh[here]!
    const low = here === NONE ? store.lastLow[slot]! : records.idLow[here]!
    if (high === records.idHigh[row] && low === records.idLow[row]) return false
    const version = this.table.version[slot]!
    assert(
      sv <= this.committed[slot]!,
      `slot ${slot}: two histories, record ${sv} of version ${versionOf(records.idHigh[row]!)} came, of version ${versionOf(high)} is here (chain ${version})`,
    )
    this.#hooks.log('ERROR', 'a forward contradicts a committed record of its slot: two histories', { slot, sv, version })
    return true
  }

  /** A session has no position in the stream yet (protocol 22). What came after its list of the source's blocks and before this record would be missing. */
  #startsStream(session: SyncSession | undefined, row: number, lastSv: number): boolean {
    if (session === undefined || lastSv !== 0) return false
    return session.listedSv < 0 || svOf(this.records.prevHigh[row]!, this.records.prevLow[row]!) <= session.listedSv
  }

  /** Protocol 22. */
  #takeInSession(session: SyncSession, row: number, store: ReplicaStore): number {
    const { records } = this
    const { slot } = session
    const volume = records.volume[row]!
    const layer = records.layer[row]!
    const index = records.index[row]!
    const sv = records.sv[row]!
    const isEmpty = records.kind[row] === RecordKind.EMPTY
    const isUninstalled = !isEmpty && !session.isInstalled(volume, layer, index)
    const isHeld = !isUninstalled && (isEmpty ? sv <= session.high && session.listedSv >= 0 : session.covers(volume, layer, index, sv))
    if (isUninstalled || isHeld) {
      if (isUninstalled) session.skipped(volume, layer, index, sv)
      this.#takeUnstored(slot, row, store)
      return Status.SUCCESS
    }
    // the last extents are for the copies that count: what their heads have ordered finds one, or the slot stands still
    const isLeft =
      store.rejectCreate && store.isIncomplete(slot) && records.kind[row] === RecordKind.WRITE && store.findBlock(volume, layer, index) === NO_BLOCK
    const admitted = isLeft ? Status.INSUFFICIENT_SPACE : this.#admit(store, row, false)
    if (admitted === Status.INSUFFICIENT_SPACE && store.isIncomplete(slot)) {
      // nobody is to wait for the space of a copy that does not count yet: the new block is copied like the others, once it finds some
      session.postponed(volume, layer, index, sv)
      this.#takeUnstored(slot, row, store)
      return Status.SUCCESS
    }
    if (admitted !== Status.SUCCESS) return admitted
    this.stage(row)
    return Status.SUCCESS
  }

  #takeUnstored(slot: number, row: number, store: ReplicaStore): void {
    const { records } = this
    store.setLast(slot, records.idHigh[row]!, records.idLow[row]!)
    this.#append(slot, row)
    this.#skip(row)
    this.eligible[slot] = records.sv[row]!
    this.#settleReady(slot)
  }

  /** Whether the store takes the record now; `fromHead`: a client's update. */
  #admit(store: ReplicaStore, row: number, fromHead: boolean): number {
    this.#fill(row)
    return store.admit(this.#stage, fromHead)
  }

  /** Head: may the ordered update be staged? Its id need not be set yet. */
  admitUpdate(row: number): number {
    return this.#admit(this.stores[this.records.store[row]!]!, row, true)
  }

  /** Calls `fn` once when the store's `admit` may say otherwise. */
  onRoom(storeIndex: number, fn: () => void): void {
    this.stores[storeIndex]!.onRoom(fn)
  }

  /** Stages an admitted record as the slot's last, and has it forwarded. Its id, prev and payload are set. */
  stage(row: number): void {
    const { records, table } = this
    const slot = records.slot[row]!
    const storeIndex = records.store[row]!
    const record = this.#stage
    // as `admit` was given it, but for what the head sets when it orders
    if (this.#filled !== row) this.#fill(row)
    this.#filled = NONE
    record.idHigh = records.idHigh[row]!
    record.idLow = records.idLow[row]!
    records.state[row] = 0
    records.journalSeq[row] = this.stores[storeIndex]!.stage(record)
    this.#append(slot, row)
    this.#enqueue(storeIndex, row)
    if (table.successorNode[slot] === 0) this.eligible[slot] = records.sv[row]!
    else {
      if (this.forwardNext[slot] === NONE) this.forwardNext[slot] = row
      this.#hooks.forward(slot)
    }
  }

  #fill(row: number): void {
    const { records } = this
    const stage = this.#stage
    this.#filled = row
    stage.kind = records.kind[row] as RecordKind
    stage.slot = records.slot[row]!
    stage.idHigh = records.idHigh[row]!
    stage.idLow = records.idLow[row]!
    stage.volume = records.volume[row]!
    stage.layer = records.layer[row]!
    stage.index = records.index[row]!
    stage.firstPage = records.firstPage[row]!
    stage.pageCount = records.pageCount[row]!
    stage.payloadPage = records.payloadPage[row]!
    stage.crcs = records.crcs
    stage.crcFirst = row * CHAIN_OP_PAGES_MAX
    stage.clientHigh = records.clientHigh[row]!
    stage.clientLow = records.clientLow[row]!
    stage.channel = records.channel[row]!
    stage.seq = records.seq[row]!
    stage.durable = records.durable[row] === 1
  }

  #append(slot: number, row: number): void {
    const { records } = this
    records.next[row] = NONE
    const last = this.#last[slot]!
    if (last === NONE) this.#first[slot] = row
    else records.next[last] = row
    this.#last[slot] = row
    if (this.#readyNext[slot] === NONE) this.#readyNext[slot] = row
    if (records.kind[row] === RecordKind.REMOVE) this.#removals++
  }

  /** A removed block has no page ids any more that could tell: whether its removal is staged here and not committed (protocol 18). */
  isBeingRemoved(slot: number, volume: number, layer: number, index: number): boolean {
    if (this.#removals === 0) return false
    const { records } = this
    for (let row = this.#first[slot]!; row !== NONE; row = records.next[row]!) {
      if (records.kind[row] === RecordKind.REMOVE && records.index[row] === index && records.volume[row] === volume && records.layer[row] === layer) return true
    }
    return false
  }

  #enqueue(storeIndex: number, row: number): void {
    const { records } = this
    records.nextStaged[row] = NONE
    const last = this.#stagedLast[storeIndex]!
    if (last === NONE) this.#stagedFirst[storeIndex] = row
    else records.nextStaged[last] = row
    this.#stagedLast[storeIndex] = row
    if (records.durable[row] === 1) this.#enqueueDurable(storeIndex, row)
  }

  #enqueueDurable(storeIndex: number, row: number): void {
    const { records } = this
    records.nextDurable[row] = NONE
    const last = this.#durableLast[storeIndex]!
    if (last === NONE) this.#durableFirst[storeIndex] = row
    else records.nextDurable[last] = row
    this.#durableLast[storeIndex] = row
  }

  /** A record that is acknowledged without storing is ready when all before it are. */
  #skip(row: number): void {
    const { records } = this
    const storeIndex = records.store[row]!
    records.state[row] = RecordState.SKIPPED | RecordState.STAGED
    const last = this.#durableLast[storeIndex]!
    if (records.durable[row] === 1 && last !== NONE) {
      records.journalSeq[row] = records.journalSeq[last]!
      this.#enqueueDurable(storeIndex, row)
    } else records.state[row]! |= RecordState.READY
  }

  // ---- the journal's word ------------------------------------------------------------------------------------------------

  onStaged(storeIndex: number, upTo: number): void {
    const { records } = this
    for (let row = this.#stagedFirst[storeIndex]!; row !== NONE && records.journalSeq[row]! <= upTo; row = this.#stagedFirst[storeIndex]!) {
      const next = records.nextStaged[row]!
      this.#stagedFirst[storeIndex] = next
      if (next === NONE) this.#stagedLast[storeIndex] = NONE
      records.state[row]! |= RecordState.STAGED
      if (records.durable[row] === 0) this.#becomeReady(row)
      else this.#freeIfDone(row)
    }
  }

  onDurable(storeIndex: number, upTo: number): void {
    const { records } = this
    this.onStaged(storeIndex, upTo)
    for (let row = this.#durableFirst[storeIndex]!; row !== NONE && records.journalSeq[row]! <= upTo; row = this.#durableFirst[storeIndex]!) {
      const next = records.nextDurable[row]!
      this.#durableFirst[storeIndex] = next
      if (next === NONE) this.#durableLast[storeIndex] = NONE
      this.#becomeReady(row)
    }
    const waiters = this.#durableWaiters[storeIndex]!
    while (waiters.length > 0 && waiters[0]!.seq <= upTo) {
      this.#hooks.promiseSettled()
      waiters.shift()!.resolve()
    }
  }

  #becomeReady(row: number): void {
    this.records.state[row]! |= RecordState.READY
    if (this.records.state[row]! & RecordState.DROPPED) this.#freeIfDone(row)
    else this.#settleReady(this.records.slot[row]!)
  }

  /** Raises `ready` over the ready records at the head of what was not. */
  #settleReady(slot: number): void {
    const { records } = this
    let row = this.#readyNext[slot]!
    while (row !== NONE && records.state[row]! & RecordState.READY) {
      if (records.sv[row]! > this.ready[slot]!) this.ready[slot] = records.sv[row]!
      row = records.next[row]!
    }
    this.#readyNext[slot] = row
    this.advance(slot)
    if (this.table.ownState[slot] === LASTSRV) this.#letGoReady(slot)
  }

  /**
   * Who served last and waits for others, perhaps for long, needs no record any more that is ready: should it serve again, it does so alone, with all
   * that it holds. So credit and buffers are free for the slots that are served.
   */
  #letGoReady(slot: number): void {
    const { records } = this
    for (let row = this.#first[slot]!; row !== this.#readyNext[slot]; row = this.#first[slot]!) {
      const next = records.next[row]!
      this.#first[slot] = next
      if (next === NONE) this.#last[slot] = NONE
      if (this.forwardNext[slot] === row) this.forwardNext[slot] = next
      records.state[row]! |= RecordState.DROPPED
      if (records.kind[row] === RecordKind.REMOVE) this.#removals--
      this.#freeIfDone(row)
    }
  }

  /** Commits, and acknowledges upstream, what may be committed and is ready (protocol 12). */
  advance(slot: number): void {
    const { records } = this
    const upTo = Math.min(this.eligible[slot]!, this.ready[slot]!)
    if (upTo <= this.committed[slot]!) return
    this.committed[slot] = upTo
    let row = this.#first[slot]!
    while (row !== NONE && records.sv[row]! <= upTo) {
      const next = records.next[row]!
      this.#first[slot] = next
      if (next === NONE) this.#last[slot] = NONE
      if (this.#readyNext[slot] === row) this.#readyNext[slot] = next
      if (this.forwardNext[slot] === row) this.forwardNext[slot] = next
      records.state[row]! |= RecordState.COMMITTED
      if (records.kind[row] === RecordKind.REMOVE) this.#removals--
      const update = records.update[row]!
      if (update !== NONE) {
        records.update[row] = NONE
        this.#hooks.updateCommitted(update)
      }
      this.#freeIfDone(row)
      row = next
    }
    if (this.table.predecessorNode[slot] !== 0) this.#hooks.acknowledge(slot)
    this.#hooks.committed(slot)
  }

  /** An acknowledgement from the present successor in the present version (protocol 12). */
  acknowledged(slot: number, sv: number): void {
    const upTo = Math.min(sv, this.lastSv(slot))
    if (upTo > this.eligible[slot]!) {
      this.eligible[slot] = upTo
      this.advance(slot)
    }
  }

  /** A send that read the record's payload has ended. */
  sent(row: number): void {
    this.records.sends[row]!--
    this.#freeIfDone(row)
  }

  #freeIfDone(row: number): void {
    const { records } = this
    const state = records.state[row]!
    if ((state & (RecordState.COMMITTED | RecordState.DROPPED)) === 0 || records.sends[row] !== 0) return
    // a failed disk says nothing more: what it still holds is of no use to anybody
    if (!this.storeFailed[records.store[row]!]) {
      const wanted = state & RecordState.COMMITTED ? RecordState.STAGED : RecordState.STAGED | RecordState.READY
      if ((state & wanted) !== wanted) return
    }
    this.#release(row)
  }

  /** Frees a row in no list. */
  #release(row: number): void {
    const { records } = this
    const pinned = records.pinned[row]!
    const peer = records.peer[row]!
    const hop = records.hop[row]!
    const payloadBytes = records.kind[row] === RecordKind.WRITE ? records.pageCount[row]! * PAGE_BYTES : 0
    // a failed disk may hang in the middle of reading the payload
    const isDiskReading = this.storeFailed[records.store[row]!] === true && records.journalSeq[row]! > 0 && (records.state[row]! & RecordState.STAGED) === 0
    if (isDiskReading && payloadBytes > 0) this.#leaveToDisk(row)
    else if (records.owned[row] === 1) this.#pool.free(records.payloadPage[row] as PageNumber)
    records.update[row] = records.pinned[row] = NONE
    records.journalSeq[row] = 0
    records.free(row)
    if (hop === 0) this.headRecords--
    if (pinned !== NONE) this.#hooks.unpinned(pinned)
    if (peer !== NONE) this.#hooks.creditFreed(peer, hop, payloadBytes)
    this.#hooks.roomForRecords()
  }

  /** The payload stays the disk's until it reads no more: what is the record's own is freed then; the owner of a client's buffer asks `isHeld` before it is used again. */
  #leaveToDisk(row: number): void {
    const { records } = this
    const page = records.payloadPage[row] as PageNumber
    if (records.owned[row] === 1) {
      void this.stores[records.store[row]!]!.ioEnded().then(() => {
        this.#pool.free(page)
        this.#hooks.roomForRecords()
      })
    } else if (records.pinned[row] !== NONE) this.#holdBuffer(row)
  }

  #holdBuffer(row: number): void {
    const { records } = this
    const buffer = { page: records.payloadPage[row]!, pageCount: records.pageCount[row]! }
    this.#heldBuffers.add(buffer)
    void this.stores[records.store[row]!]!.ioEnded().then(() => this.#heldBuffers.delete(buffer))
  }

  /** Whether a failed disk may still read one of those pages. */
  isHeld(bufferPage: number, pageCount: number): boolean {
    if (this.#heldBuffers.size === 0) return false
    for (const held of this.#heldBuffers) if (held.page < bufferPage + pageCount && bufferPage < held.page + held.pageCount) return true
    return false
  }

  /**
   * The record that reads the buffer of a client's operation goes on with a copy: as soon as there is room for one, and nobody is in the middle of
   * reading. A disk that has failed may be, perhaps for ever: then the buffer `isHeld`.
   */
  takeOverPayload(operation: number): void {
    const { records } = this
    for (let row = 0; row < records.rowsMax; row++) {
      if (!records.isUsed(row) || records.pinned[row] !== operation) continue
      const isStaged = (records.state[row]! & RecordState.STAGED) !== 0
      if ((!isStaged && !this.storeFailed[records.store[row]!]) || records.sends[row] !== 0) continue
      if (records.kind[row] === RecordKind.WRITE) {
        const copy = this.#pool.copyOf(records.payloadPage[row] as PageNumber, records.pageCount[row]! * PAGE_BYTES)
        if (copy === -1) return
        if (!isStaged) {
          this.#holdBuffer(row)
          records.journalSeq[row] = 0
        }
        records.payloadPage[row] = copy
        records.owned[row] = 1
      }
      records.pinned[row] = NONE
      this.#hooks.unpinned(operation)
    }
  }

  /** A row whose receipt was broken off. */
  abandon(row: number): void {
    this.#release(row)
  }

  // ---- a new table -----------------------------------------------------------------------------------------------------------

  /** After the first table: the arrays get their size. */
  resize(slotCount: number): void {
    this.#disk = new Uint8Array(slotCount).fill(NO_STORE)
    this.committed = new Float64Array(slotCount)
    this.eligible = new Float64Array(slotCount)
    this.ready = new Float64Array(slotCount)
    this.#servingSince = new Int32Array(slotCount)
    this.hasServed = new Uint8Array(slotCount)
    this.#first = new Int32Array(slotCount).fill(NONE)
    this.#last = new Int32Array(slotCount).fill(NONE)
    this.#readyNext = new Int32Array(slotCount).fill(NONE)
    this.forwardNext = new Int32Array(slotCount).fill(NONE)
    this.#parkedFirst = new Int32Array(slotCount).fill(NONE)
    this.#parkedLast = new Int32Array(slotCount).fill(NONE)
    for (const store of this.stores) assert(store.slotCount === slotCount, `disk ${store.disk} has ${store.slotCount} slots, the cluster ${slotCount}`)
  }

  /** The table holds a newer version of the slot's chain (protocol 14, 15, 21). */
  learn(slot: number): void {
    const { table } = this
    const state = table.ownState[slot]!
    const since = table.ownSince[slot]!
    const isOtherDisk = this.#disk[slot] !== table.ownStore[slot]
    this.#hooks.versionChanged(slot, isOtherDisk)
    if (isOtherDisk) this.#leaveDisk(slot)
    if (state !== SYNCING && this.sessions.delete(slot)) {
      const store = this.storeOf(slot)
      store?.endSession(slot)
    }
    if (state === SERVING || state === DRAINING) {
      this.#learnMember(slot, since)
      this.#trustContent(slot)
    } else if (state === SYNCING) {
      if (this.sessions.get(slot)?.since !== since) this.#startSession(slot, since)
    } else if (state !== LASTSRV || this.storeOf(slot) === undefined) this.#leaveWritePath(slot)
    else this.#letGoReady(slot)
    this.#retryParked(slot)
  }

  /** What one disk of this node held of the slot, and how durably, says nothing of another one. */
  #leaveDisk(slot: number): void {
    const before = this.#disk[slot]!
    this.#disk[slot] = this.table.ownStore[slot]!
    if (before === NO_STORE) return
    if (this.sessions.delete(slot)) this.stores[before]!.endSession(slot)
    this.#leaveWritePath(slot)
  }

  #learnMember(slot: number, since: number): void {
    const { table } = this
    const isTail = table.successorNode[slot] === 0
    this.#raiseLastToContent(slot)
    const lastSv = this.lastSv(slot)
    // what is before the list is durable: it left the list as such, or a mount or a resync made it so
    const first = this.#first[slot]!
    const before = first === NONE ? lastSv : svOf(this.records.prevHigh[first]!, this.records.prevLow[first]!)
    if (this.ready[slot]! < before) this.ready[slot] = before
    if (this.#servingSince[slot] !== since) {
      this.#servingSince[slot] = since
      this.hasServed[slot] = 1
      this.committed[slot] = 0
      this.eligible[slot] = isTail ? lastSv : this.ready[slot]!
    } else this.eligible[slot] = isTail ? lastSv : this.committed[slot]!
    this.advance(slot)
    this.reforward(slot)
    if (this.committed[slot]! > 0 && table.predecessorNode[slot] !== 0) this.#hooks.acknowledge(slot)
  }

  /**
   * The last id of a copy whose resync never ended is what its source had told, perhaps nothing. Where the operator has taken such a copy (`accept
   * loss`), what it holds counts, also what another history had given a higher sv: without this it would be above all that is committed, and read by nobody.
   */
  #raiseLastToContent(slot: number): void {
    const store = this.storeOf(slot)
    if (store === undefined || !store.isIncomplete(slot)) return
    let version = versionOf(store.lastHigh[slot]!)
    let sv = this.lastSv(slot)
    for (const block of store.blocksOf(slot)) {
      const capture = store.capture(block)
      for (let page = 0; page < PAGES_PER_BLOCK; page++) {
        version = Math.max(version, versionOf(capture.idHigh[page]!))
        sv = Math.max(sv, svOf(capture.idHigh[page]!, capture.idLow[page]!))
      }
      store.release(capture)
    }
    store.raiseLast(slot, idHighOf(version, sv), idLowOf(sv))
  }

  /** Who serves is complete: after its resync has said so; and also where the operator has taken what there was (`accept loss`). */
  #trustContent(slot: number): void {
    const store = this.storeOf(slot)
    if (store === undefined || !store.isIncomplete(slot)) return
    try {
      store.completeSession(slot)
    } catch (error) {
      if (!(error instanceof XsanError)) throw error
      if (error.status !== 'BUSY') return
      store.onRoom(() => {
        if (this.table.isOwnMember(slot)) this.#trustContent(slot)
      })
    }
  }

  /** Everything staged and uncommitted goes (again) to the successor, in order (protocol 14). */
  reforward(slot: number): void {
    this.forwardNext[slot] = this.table.successorNode[slot] === 0 ? NONE : this.#first[slot]!
    if (this.forwardNext[slot] !== NONE) this.#hooks.forward(slot)
  }

  #startSession(slot: number, since: number): void {
    // also of an earlier session whose end this node has not heard: what it had installed lacks what was written since
    this.sessions.delete(slot)
    this.#leaveWritePath(slot)
    const store = this.storeOf(slot)
    if (store === undefined) return
    try {
      store.startSession(slot)
    } catch (error) {
      if (!(error instanceof XsanError) || error.status !== 'BUSY') throw error
      // forwards are refused until then, and come again
      store.onRoom(() => {
        const { ownState, ownSince } = this.table
        if (ownState[slot] === SYNCING && ownSince[slot] === since && !this.sessions.has(slot)) this.#startSession(slot, since)
      })
      return
    }
    const session = new SyncSession(slot, since)
    this.sessions.set(slot, session)
    this.#hooks.sessionStarted(session)
  }

  /** What is staged stays on the disk; as a member this replica starts anew. */
  #leaveWritePath(slot: number): void {
    const { records } = this
    this.committed[slot] = this.eligible[slot] = this.ready[slot] = 0
    this.#servingSince[slot] = 0
    for (let row = this.#first[slot]!; row !== NONE; ) {
      const next = records.next[row]!
      records.state[row]! |= RecordState.DROPPED
      if (records.kind[row] === RecordKind.REMOVE) this.#removals--
      this.#freeIfDone(row)
      row = next
    }
    this.#first[slot] = this.#last[slot] = this.#readyNext[slot] = this.forwardNext[slot] = NONE
  }

  // ---- waiting forwards -------------------------------------------------------------------------------------------------------

  #park(slot: number, row: number): void {
    const { records } = this
    records.next[row] = NONE
    const last = this.#parkedLast[slot]!
    if (last === NONE) this.#parkedFirst[slot] = row
    else records.next[last] = row
    this.#parkedLast[slot] = row
  }

  #isHeld(slot: number): boolean {
    return this.sessions.size > 0 && (this.sessions.get(slot)?.holds ?? 0) > 0
  }

  /** Forwards of the session's slot wait until released: nothing of it is acknowledged meanwhile. */
  holdForwards(session: SyncSession): void {
    session.holds++
  }

  releaseForwards(session: SyncSession): void {
    session.holds--
    if (session.holds === 0 && this.sessions.get(session.slot) === session) this.#retryParked(session.slot)
  }

  #retryParked(slot: number): void {
    const { records } = this
    if (this.#isHeld(slot)) return
    for (let row = this.#parkedFirst[slot]!; row !== NONE; row = this.#parkedFirst[slot]!) {
      const next = records.next[row]!
      const status = this.#take(slot, row)
      if (status === Status.CHAIN_VERSION_MISMATCH) {
        this.#hooks.needTable(slot, records.chainVersion[row]!)
        return
      }
      if (status === Status.BUSY) {
        this.#awaitRoom(this.table.ownStore[slot]!, slot)
        return
      }
      this.#parkedFirst[slot] = next
      if (next === NONE) this.#parkedLast[slot] = NONE
      if (status !== Status.SUCCESS) {
        this.#hooks.refuse(row, status)
        this.#release(row)
      }
    }
  }

  #awaitRoom(storeIndex: number, slot: number): void {
    const waiting = this.#waitForRoom[storeIndex]!
    if (waiting.size === 0) {
      this.stores[storeIndex]!.onRoom(() => {
        const slots = [...waiting]
        waiting.clear()
        for (const each of slots) this.#retryParked(each)
      })
    }
    waiting.add(slot)
  }

  // ---- for resync and flush -----------------------------------------------------------------------------------------------------

  /** Rule 22: the answer's committed id raises the stream position; its install is in the journal. */
  raiseEligible(slot: number, sv: number): void {
    if (sv > this.eligible[slot]!) this.eligible[slot] = sv
  }

  /** Everything of the slot up to `sv` is durable here. */
  raiseReady(slot: number, sv: number): void {
    if (sv > this.ready[slot]!) this.ready[slot] = sv
    this.advance(slot)
  }

  /** Id of the newest committed record (protocol 22); (0, 0) when none is known to be. */
  committedId(slot: number): [number, number] {
    const committed = this.committed[slot]!
    const first = this.#first[slot]!
    const { records } = this
    const [high, low] = first === NONE ? [this.lastHigh(slot), this.lastLow(slot)] : [records.prevHigh[first]!, records.prevLow[first]!]
    return svOf(high, low) <= committed ? [high, low] : [0, 0]
  }

  /** Resolves when the store's records up to `journalSeq` are durable, or the disk has failed. */
  whenDurable(store: ReplicaStore, journalSeq: number): Promise<void> {
    if (journalSeq <= store.durableSeq || store.failed) return Promise.resolve()
    const waiters = this.#durableWaiters[this.stores.indexOf(store)]!
    return new Promise((resolve) => {
      let at = waiters.length
      while (at > 0 && waiters[at - 1]!.seq > journalSeq) at--
      waiters.splice(at, 0, { seq: journalSeq, resolve })
    })
  }

  /**
   * The disk stages and makes durable nothing more. What is uncommitted stays so until the chain has gone on without this replica, or waits for it:
   * then only another process can go on with what the disk holds, and nobody waits for its records here.
   */
  storeFailure(storeIndex: number): void {
    this.storeFailed[storeIndex] = true
    const { records } = this
    const first = this.#stagedFirst[storeIndex]!
    const firstDurable = this.#durableFirst[storeIndex]!
    this.#stagedFirst[storeIndex] = this.#stagedLast[storeIndex] = NONE
    this.#durableFirst[storeIndex] = this.#durableLast[storeIndex] = NONE
    // those staged already are in the second list alone
    for (let row = firstDurable; row !== NONE; ) {
      const next = records.nextDurable[row]!
      if (records.state[row]! & RecordState.STAGED) this.#freeIfDone(row)
      row = next
    }
    for (let row = first; row !== NONE; ) {
      const next = records.nextStaged[row]!
      this.#freeIfDone(row)
      row = next
    }
    for (const { resolve } of this.#durableWaiters[storeIndex]!.splice(0)) {
      this.#hooks.promiseSettled()
      resolve()
    }
    const { ownState, ownStore, slotCount } = this.table
    for (let slot = 0; slot < slotCount; slot++) if (ownStore[slot] === storeIndex && ownState[slot] === LASTSRV) this.#leaveWritePath(slot)
  }
}
