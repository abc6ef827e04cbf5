/**
 * Updates at the head (protocol 9, 10, 13, 16): refuse -> merge -> order -> stage and forward -> commit -> answer.
 *
 * An update row lives from its receipt to its answer. Once ordered, its payload and its credit belong to the record; what is not ordered yet
 * may be refused at any time, what is ordered is only let go (the client asks again, here or elsewhere, and its channel row answers).
 *
 * Sub-page writes are merged into whole pages over the newest staged content. The merge reads first and orders then, in one go with a
 * look that no newer update of the page was ordered meanwhile; else it reads again.
 */
import { assert } from '../base/assert.ts'
import { columns, f64, i32, u8, u32 } from '../base/columns.ts'
import { FlightEvent } from '../base/flight.ts'
import { Status } from '../base/status.ts'
import { CHAIN_OP_PAGES_MAX, PAGE_BYTES } from '../base/units.ts'
import type { Arena, PageNumber } from '../env/arena.ts'
import type { IoQueue } from '../env/ioqueue.ts'
import { ReplicaState } from '../placement/chain.ts'
import { RecordKind } from '../store/store.ts'
import type { Counters } from './counters.ts'
import type { PayloadPool } from './payload-pool.ts'
import { idHighOf, idLowOf, NONE, svOf } from './records.ts'
import type { Replicas } from './replica.ts'
import { RowQueues } from './row-queues.ts'
import { Shares } from './shares.ts'
import type { ChainTable } from './table.ts'

/** Sub-page writes being merged at one time. */
export const MERGES_MAX = 128
/** New blocks under way from one head: every other disk of the chain must have an extent for them, whatever it says meanwhile (space.ts). */
const CREATING_MAX = 16
const MERGE_PAGES = 2

export interface WriteHooks {
  /** The update's outcome, for its client: an operation of this node (`peer` NONE) or a peer's request. Never frees the payload of local ones. */
  answer(peer: number, session: number, requestRow: number, requestGeneration: number, status: number, chainVersion: number): void
  creditFreed(peer: number, hop: number, payloadBytes: number): void
  /** Whether that session with the peer is up. */
  isPresent(peer: number, session: number): boolean
  needTable(slot: number, version: number): void
  /** Another replica's content of a page that is bad here; `done(false)`: there is none. */
  repair(slot: number, volume: number, layer: number, index: number, page: number, done: (repaired: boolean) => void): void
  /** The payload of the client operation is (is no more) read by a record. */
  pinned(operation: number): void
  /** Another member of the slot's chain takes no new blocks. */
  isFullElsewhere(slot: number): boolean
}

export const UPDATE_ROWS = {
  /** NONE: an operation of this node. */
  peer: i32,
  /** Of the peer: an answer goes out in the session its request came in, or not at all. */
  session: i32,
  requestRow: i32,
  requestGeneration: i32,
  slot: i32,
  chainVersion: i32,
  kind: u8,
  durable: u8,
  clientHigh: u32,
  clientLow: u32,
  channel: i32,
  seq: f64,
  /** No longer to be ordered from then on. */
  deadlineMs: f64,
  receivedMs: f64,
  volume: f64,
  layer: u32,
  index: u32,
  offsetBytes: i32,
  lengthBytes: i32,
  /** Page of the first touched page; `owned` 1: freed with the row. */
  bufferPage: i32,
  owned: u8,
  merged: u8,
  /** Payload and credit are the record's. */
  ordered: u8,
  /** Ordered, and its block was not there before. */
  creates: u8,
  /** Ordered: on the disk here with that index. */
  store: u8,
  merge: i32,
  next: i32,
}

export class Writes {
  readonly updates: ReturnType<typeof columns<typeof UPDATE_ROWS>>
  /** CRC of the operation's bytes in its touched page i, of update u, at u * CHAIN_OP_PAGES_MAX + i. */
  readonly crcs: Uint32Array
  /** Set by `stop`: nothing of peers is ordered any more; what clients of this node began goes on. */
  stopping = false
  /** The hot setting `read_only`. */
  readOnly = false
  readonly #queue: IoQueue
  readonly #arena: Arena
  readonly #pool: PayloadPool
  readonly #table: ChainTable
  readonly #replicas: Replicas
  readonly #counters: Counters
  readonly #hooks: WriteHooks
  readonly #headRecordsMax: number
  readonly #merges = columns('merge', MERGES_MAX, {
    update: i32,
    store: u8,
    readsLeft: i32,
    status: i32,
    badPage: i32,
    firstHigh: u32,
    firstLow: u32,
    lastHigh: u32,
    lastLow: u32,
  })
  readonly #scratchPage: number
  readonly #mergeRead: (row: number, status: number, extra: number) => void
  readonly #id = new Uint32Array(2)
  /** Of the update whose refusal was looked for last: copies that its volume asks for. */
  #copiesWanted = 1
  /** Of the merge rows, and of the new blocks under way, by disk: one that hangs holds up none of the others. */
  readonly #mergeShares: Shares
  readonly #creationShares: Shares
  /** Updates that wait for a record row or a merge row, in order, per disk. */
  readonly #waiting: RowQueues
  /** Updates whose sender knows a newer version of the chain: they wait for the table. */
  readonly #early: number[] = []
  readonly #waitingForRoom: number[][]
  /** New blocks that wait for others to be committed. */
  readonly #creationsWaiting: number[] = []
  readonly #asksForRoom: boolean[]

  constructor(options: {
    queue: IoQueue
    pool: PayloadPool
    table: ChainTable
    replicas: Replicas
    counters: Counters
    hooks: WriteHooks
    updatesMax: number
    headRecordsMax: number
  }) {
    this.#queue = options.queue
    this.#arena = options.queue.arena
    this.#pool = options.pool
    this.#table = options.table
    this.#replicas = options.replicas
    this.#counters = options.counters
    this.#hooks = options.hooks
    this.#headRecordsMax = options.headRecordsMax
    this.updates = columns('update', options.updatesMax, UPDATE_ROWS)
    this.crcs = new Uint32Array(options.updatesMax * CHAIN_OP_PAGES_MAX)
    const scratch = this.#arena.alloc(MERGES_MAX * MERGE_PAGES * PAGE_BYTES)
    assert(scratch !== -1, 'the arena has no room for the merge buffers')
    this.#scratchPage = scratch
    this.#mergeRead = (row, status, extra) => this.#onMergeRead(row, status, extra)
    const disks = this.#replicas.stores.length
    this.#mergeShares = new Shares(disks, MERGES_MAX)
    this.#creationShares = new Shares(disks, CREATING_MAX)
    this.#waiting = new RowQueues(this.updates.next, disks)
    this.#waitingForRoom = this.#replicas.stores.map(() => [])
    this.#asksForRoom = this.#replicas.stores.map(() => false)
  }

  /** Takes a filled row (all columns but merged, ordered, merge, next). The answer may come inside the call. */
  submit(u: number): void {
    this.updates.merged[u] = 0
    this.updates.ordered[u] = 0
    this.updates.creates[u] = 0
    this.updates.merge[u] = NONE
    this.#attempt(u)
  }

  /** What that operation of this node asked for is not to be ordered after `untilMs`. */
  shortenLife(operation: number, untilMs: number): void {
    const { updates } = this
    for (let u = 0; u < updates.rowsMax; u++) {
      if (!updates.isUsed(u) || updates.peer[u] !== NONE || updates.requestRow[u] !== operation) continue
      updates.deadlineMs[u] = Math.min(updates.deadlineMs[u]!, untilMs)
    }
  }

  /** A row whose receipt was broken off, or whose content is wrong: no answer. */
  abandon(u: number): void {
    const { updates } = this
    const payloadBytes = updates.kind[u] === RecordKind.WRITE ? touchedBytes(updates.offsetBytes[u]!, updates.lengthBytes[u]!) : 0
    if (updates.owned[u] === 1) this.#pool.free(updates.bufferPage[u] as PageNumber)
    const peer = updates.peer[u]!
    updates.free(u)
    if (peer !== NONE) this.#hooks.creditFreed(peer, 0, payloadBytes)
  }

  // ---- 1. refuse ---------------------------------------------------------------------------------------------------------

  #attempt(u: number): void {
    const status = this.#refusal(u)
    if (status === Status.CHAIN_VERSION_MISMATCH) {
      this.updates.merged[u] = 0
      this.#early.push(u)
      return
    }
    if (status !== Status.SUCCESS) {
      this.#counters.updatesRefused++
      this.#answer(u, status)
      return
    }
    if (this.#isKnown(u)) return
    // not ordered, so not lost either: its client asks again until its time is over. What was ordered before goes on, with the copies there are
    if (this.#table.copies[this.updates.slot[u]!]! < this.#copiesWanted) {
      this.#counters.updatesWaitedForCopies++
      this.#answer(u, Status.BUSY)
      return
    }
    if (this.updates.merged[u] === 0 && this.#needsMerge(u)) this.#merge(u)
    else this.#order(u)
  }

  #refusal(u: number): number {
    const { updates } = this
    const table = this.#table
    const slot = updates.slot[u]!
    if (updates.peer[u] !== NONE) {
      if (this.stopping) return Status.STOPPING
      // its client asks again, or is gone (and may have been replaced): nothing waits longer than its connection (protocol 16)
      if (!this.#hooks.isPresent(updates.peer[u]!, updates.session[u]!)) return Status.CONNECTION_LOST
      // a fenced client's channel rows may be gone: what still waits of it must not be ordered (again)
      const client = table.nodes.get(updates.clientHigh[u]! >>> 8)
      if (client === undefined || updates.clientLow[u]! < client.incarnation) return Status.PERMISSION_DENIED
    }
    if (updates.kind[u] !== RecordKind.EMPTY) {
      const volume = table.volumes.get(updates.volume[u]!)
      // its sender may know a table in which there is such a volume, made a moment ago
      if (volume === undefined) return table.isDeleted(updates.volume[u]!) ? Status.VOLUME_NOT_FOUND : Status.BUSY
      if (volume.readOnly || this.readOnly) return Status.READ_ONLY
      // its sender may not know yet that the volume is no longer one that acknowledges from memory
      if (volume.syncWhenWrite) updates.durable[u] = 1
      this.#copiesWanted = volume.minCopies ?? 1
    } else this.#copiesWanted = 1
    const version = table.version[slot]!
    if (updates.chainVersion[u]! < version) return Status.ROUTING_STALE
    if (updates.chainVersion[u]! > version) {
      this.#hooks.needTable(slot, updates.chainVersion[u]!)
      return Status.CHAIN_VERSION_MISMATCH
    }
    if (table.ownPosition[slot] !== 0 || table.ownState[slot]! > ReplicaState.DRAINING) return Status.NOT_HEAD
    if (table.ownState[slot] === ReplicaState.DRAINING || this.#replicas.storeOf(slot) === undefined) return Status.REQUEST_REFUSED
    if (updates.deadlineMs[u]! <= this.#queue.nowMs) {
      this.#counters.updatesExpired++
      return Status.WRITE_EXPIRED
    }
    return table.leaseValid(this.#queue.nowMs) ? Status.SUCCESS : Status.LEASE_EXPIRED
  }

  /** Protocol 9: an update the channel's row already covers is refused as old, or answered once it is committed. */
  #isKnown(u: number): boolean {
    const { updates } = this
    const slot = updates.slot[u]!
    const rows = this.#replicas.storeOf(slot)!.rows
    const row = rows.lookup(updates.clientHigh[u]!, updates.clientLow[u]!, updates.channel[u]!)
    if (row < 0 || rows.seq[row]! < updates.seq[u]!) return false
    if (rows.seq[row]! > updates.seq[u]!) {
      this.#counters.updatesDuplicate++
      this.#answer(u, Status.DUPLICATE_OLD)
      return true
    }
    if (rows.held[row] === 0 || rows.slot[row] !== slot) return false
    const sv = svOf(rows.idHigh[row]!, rows.idLow[row]!)
    if (sv > this.#replicas.lastSv(slot)) return false
    this.#counters.updatesCached++
    if (sv <= this.#replicas.committed[slot]!) this.#answer(u, Status.SUCCESS)
    else this.#join(u, slot, sv)
    return true
  }

  /** Waits for the record that an earlier try of the update left. */
  #join(u: number, slot: number, sv: number): void {
    const { records } = this.#replicas
    let row = this.#replicas.firstRecord(slot)
    while (row !== NONE && records.sv[row] !== sv) row = records.next[row]!
    assert(row !== NONE, `slot ${slot}: the uncommitted record ${sv} is not in its list`)
    const earlier = records.update[row]!
    records.update[row] = u
    if (earlier !== NONE) this.#answer(earlier, Status.CONNECTION_LOST)
  }

  // ---- 2. merge ----------------------------------------------------------------------------------------------------------

  #needsMerge(u: number): boolean {
    const { updates } = this
    return updates.kind[u] === RecordKind.WRITE && ((updates.offsetBytes[u]! | updates.lengthBytes[u]!) & (PAGE_BYTES - 1)) !== 0
  }

  #merge(u: number): void {
    const { updates } = this
    const merges = this.#merges
    const storeIndex = this.#table.ownStore[updates.slot[u]!]!
    if (!this.#mergeShares.take(storeIndex)) {
      this.#wait(u, storeIndex)
      return
    }
    const m = merges.alloc()
    merges.store[m] = storeIndex
    const store = this.#replicas.stores[storeIndex]!
    const offset = updates.offsetBytes[u]!
    const end = offset + updates.lengthBytes[u]!
    const firstPage = Math.floor(offset / PAGE_BYTES)
    const lastPage = Math.floor((end - 1) / PAGE_BYTES)
    const isFirstPartial = offset % PAGE_BYTES !== 0 || (firstPage === lastPage && end % PAGE_BYTES !== 0)
    const isLastPartial = lastPage > firstPage && end % PAGE_BYTES !== 0
    updates.merge[u] = m
    merges.update[m] = u
    merges.status[m] = Status.SUCCESS
    merges.badPage[m] = 0
    merges.readsLeft[m] = (isFirstPartial ? 1 : 0) + (isLastPartial ? 1 : 0)
    const block = store.findBlock(updates.volume[u]!, updates.layer[u]!, updates.index[u]!)
    const id = this.#id
    const scratch = this.#scratchPage + m * MERGE_PAGES
    store.newestId(block, firstPage, 1, id)
    merges.firstHigh[m] = id[0]!
    merges.firstLow[m] = id[1]!
    store.newestId(block, lastPage, 1, id)
    merges.lastHigh[m] = id[0]!
    merges.lastLow[m] = id[1]!
    if (isFirstPartial) store.read(block, firstPage, 1, scratch, this.#mergeRead, m)
    if (isLastPartial) store.read(block, lastPage, 1, scratch + 1, this.#mergeRead, m)
  }

  #onMergeRead(m: number, status: number, extra: number): void {
    const merges = this.#merges
    if (status !== Status.SUCCESS) {
      merges.status[m] = status
      merges.badPage[m] = extra
    }
    if (--merges.readsLeft[m]! > 0) return
    const { updates } = this
    const u = merges.update[m]!
    if (u === NONE) {
      this.#freeMerge(m)
      this.#retryWaiting()
      return
    }
    updates.merge[u] = NONE
    if (this.isMergeCurrent(m, u)) {
      const failure = merges.status[m]!
      if (failure === Status.SUCCESS) {
        this.#putEdges(u, this.#scratchPage + m * MERGE_PAGES)
        updates.merged[u] = 1
        this.#counters.updatesMerged++
      } else if (failure !== Status.BUSY) {
        this.#freeMerge(m)
        this.#repairForMerge(u, merges.badPage[m]!, failure)
        this.#retryWaiting()
        return
      }
    } else this.#counters.mergesRestarted++
    this.#freeMerge(m)
    this.#attempt(u)
    this.#retryWaiting()
  }

  #freeMerge(m: number): void {
    this.#mergeShares.giveBack(this.#merges.store[m]!)
    this.#merges.free(m)
  }

  /** Whether no newer update of the edge pages was ordered since the merge began, and this replica may still use the disk. */
  isMergeCurrent(m: number, u: number): boolean {
    const { updates } = this
    const merges = this.#merges
    const store = this.#replicas.storeOf(updates.slot[u]!)
    if (store === undefined) return false
    const firstPage = Math.floor(updates.offsetBytes[u]! / PAGE_BYTES)
    const lastPage = Math.floor((updates.offsetBytes[u]! + updates.lengthBytes[u]! - 1) / PAGE_BYTES)
    const block = store.findBlock(updates.volume[u]!, updates.layer[u]!, updates.index[u]!)
    const id = this.#id
    store.newestId(block, firstPage, 1, id)
    if (id[0] !== merges.firstHigh[m] || id[1] !== merges.firstLow[m]) return false
    store.newestId(block, lastPage, 1, id)
    return id[0] === merges.lastHigh[m] && id[1] === merges.lastLow[m]
  }

  /** What surrounds the operation's bytes in its first and last page comes from the scratch pages; the pages get their CRCs. */
  #putEdges(u: number, scratch: number): void {
    const { updates, crcs } = this
    const { bytes } = this.#arena
    const offset = updates.offsetBytes[u]!
    const end = offset + updates.lengthBytes[u]!
    const firstPage = Math.floor(offset / PAGE_BYTES)
    const lastPage = Math.floor((end - 1) / PAGE_BYTES)
    const before = offset % PAGE_BYTES
    const after = end % PAGE_BYTES
    const to = updates.bufferPage[u]! * PAGE_BYTES
    const first = scratch * PAGE_BYTES
    bytes.copyWithin(to, first, first + before)
    if (after !== 0) {
      const from = firstPage === lastPage ? first : first + PAGE_BYTES
      bytes.copyWithin(to + (lastPage - firstPage) * PAGE_BYTES + after, from + after, from + PAGE_BYTES)
    }
    const at = u * CHAIN_OP_PAGES_MAX
    if (before !== 0 || lastPage === firstPage) crcs[at] = this.#arena.crc32c(updates.bufferPage[u]!, 0, PAGE_BYTES)
    if (after !== 0 && lastPage > firstPage) {
      crcs[at + lastPage - firstPage] = this.#arena.crc32c(updates.bufferPage[u]! + lastPage - firstPage, 0, PAGE_BYTES)
    }
  }

  #repairForMerge(u: number, page: number, failure: number): void {
    const { updates } = this
    const generation = updates.generation[u]!
    this.#hooks.repair(updates.slot[u]!, updates.volume[u]!, updates.layer[u]!, updates.index[u]!, page, (repaired) => {
      if (updates.generation[u] !== generation) return
      // a disk that has failed meanwhile is no reason to tell the client: the next attempt refers it to another replica
      if (repaired || this.#replicas.storeOf(updates.slot[u]!) === undefined) this.#attempt(u)
      else this.#answer(u, failure)
    })
  }

  // ---- 3. order, stage, forward ------------------------------------------------------------------------------------------

  #order(u: number): void {
    const { updates, crcs } = this
    const replicas = this.#replicas
    const { records } = replicas
    const slot = updates.slot[u]!
    const storeIndex = this.#table.ownStore[slot]!
    const row = replicas.headRecords < this.#headRecordsMax ? records.alloc() : NONE
    if (row < 0) {
      this.#wait(u, storeIndex)
      return
    }
    const store = replicas.stores[storeIndex]!
    const kind = updates.kind[u]!
    const offset = updates.offsetBytes[u]!
    const hasPages = kind === RecordKind.WRITE || kind === RecordKind.ZERO
    const firstPage = hasPages ? Math.floor(offset / PAGE_BYTES) : 0
    const pageCount = hasPages ? Math.ceil((offset + updates.lengthBytes[u]!) / PAGE_BYTES) - firstPage : 0
    records.slot[row] = slot
    records.kind[row] = kind
    records.durable[row] = updates.durable[u]!
    records.store[row] = storeIndex
    records.volume[row] = updates.volume[u]!
    records.layer[row] = updates.layer[u]!
    records.index[row] = updates.index[u]!
    records.firstPage[row] = firstPage
    records.pageCount[row] = pageCount
    records.payloadPage[row] = updates.bufferPage[u]!
    records.clientHigh[row] = updates.clientHigh[u]!
    records.clientLow[row] = updates.clientLow[u]!
    records.channel[row] = updates.channel[u]!
    records.seq[row] = updates.seq[u]!
    const creates = kind === RecordKind.WRITE && store.findBlock(updates.volume[u]!, updates.layer[u]!, updates.index[u]!) < 0
    if (creates && !this.#creationShares.mayTake(storeIndex)) {
      records.free(row)
      updates.merged[u] = 0
      this.#creationsWaiting.push(u)
      return
    }
    const isFull = creates && this.#hooks.isFullElsewhere(slot)
    const admitted = isFull ? Status.INSUFFICIENT_SPACE : replicas.admitUpdate(row)
    if (admitted !== Status.SUCCESS) {
      records.free(row)
      if (admitted === Status.BUSY) this.#awaitRoom(u, storeIndex)
      else this.#answer(u, admitted)
      return
    }
    if (kind === RecordKind.WRITE) {
      const from = u * CHAIN_OP_PAGES_MAX
      const to = row * CHAIN_OP_PAGES_MAX
      for (let i = 0; i < pageCount; i++) records.crcs[to + i] = crcs[from + i]!
    }
    const version = this.#table.version[slot]!
    const sv = replicas.lastSv(slot) + 1
    records.sv[row] = sv
    records.idHigh[row] = idHighOf(version, sv)
    records.idLow[row] = idLowOf(sv)
    records.prevHigh[row] = store.lastHigh[slot]!
    records.prevLow[row] = store.lastLow[slot]!
    records.sends[row] = 0
    records.peer[row] = updates.peer[u]!
    records.hop[row] = 0
    records.update[row] = u
    records.owned[row] = updates.owned[u]!
    const isLocal = updates.peer[u] === NONE
    records.pinned[row] = isLocal ? updates.requestRow[u]! : NONE
    // from here on payload and credit are the record's
    updates.owned[u] = 0
    updates.ordered[u] = 1
    if (creates) {
      updates.creates[u] = 1
      updates.store[u] = storeIndex
      this.#creationShares.take(storeIndex)
    }
    replicas.headRecords++
    if (isLocal) this.#hooks.pinned(updates.requestRow[u]!)
    this.#queue.waits.updateQueue.record(this.#queue.nowMs - updates.receivedMs[u]!)
    this.#queue.flight.record(FlightEvent.UPDATE_ORDERED, slot, this.#table.version[slot], records.sv[row])
    this.#counters.updates++
    this.#counters.updateBytes += kind === RecordKind.WRITE ? updates.lengthBytes[u]! : 0
    replicas.stage(row)
  }

  /** The operation of a client here is about to be answered as unknown: its buffer goes back to it where that can be. */
  takeOverPayload(operation: number): void {
    this.#replicas.takeOverPayload(operation)
  }

  // ---- 4. answer ---------------------------------------------------------------------------------------------------------

  /** The update's record is committed here. */
  committed(u: number): void {
    this.#answer(u, Status.SUCCESS)
  }

  /** Ends the row. A success is one only under a valid lease, and while this replica is the head (protocol 13): `versionChanged` lets go of the rest. */
  #answer(u: number, outcome: number): void {
    const { updates } = this
    const slot = updates.slot[u]!
    let status = outcome
    if (status === Status.SUCCESS) {
      assert(this.#table.isHead(slot), `slot ${slot}: an update ordered here is to succeed, and this is not the head any more`)
      if (!this.#table.leaseValid(this.#queue.nowMs)) status = Status.LEASE_EXPIRED
    }
    this.#queue.flight.record(FlightEvent.UPDATE_ANSWERED, slot, status)
    this.#counters.updateMs += this.#queue.nowMs - updates.receivedMs[u]!
    const peer = updates.peer[u]!
    const requestRow = updates.requestRow[u]!
    const requestGeneration = updates.requestGeneration[u]!
    const wasOrdered = updates.ordered[u] === 1
    const session = updates.session[u]!
    if (updates.creates[u] === 1) this.#creationShares.giveBack(updates.store[u]!)
    if (updates.owned[u] === 1) this.#pool.free(updates.bufferPage[u] as PageNumber)
    const payloadBytes = updates.kind[u] === RecordKind.WRITE ? touchedBytes(updates.offsetBytes[u]!, updates.lengthBytes[u]!) : 0
    updates.free(u)
    if (peer !== NONE && !wasOrdered) this.#hooks.creditFreed(peer, 0, payloadBytes)
    this.#hooks.answer(peer, session, requestRow, requestGeneration, status, this.#table.version[slot]!)
  }

  /** Updates whose pages are being read, to be merged. */
  get merging(): number {
    return this.#merges.inUse
  }

  /** A new table, and every replica has drawn its consequences: what is committed, and what is held, is known again. */
  tableLearned(): void {
    if (this.#early.length > 0) for (const u of this.#early.splice(0)) this.#attempt(u)
  }

  /** Now and then: an update that waits (for a table, for room, for other new blocks) is given back when its life is over, or its client's session. */
  tick(): void {
    this.#retryCreations()
    this.#retryWaiting()
    this.#giveBackLate(this.#early)
    this.#giveBackLate(this.#creationsWaiting)
    for (const waiting of this.#waitingForRoom) this.#giveBackLate(waiting)
  }

  #giveBackLate(waiting: number[]): void {
    if (waiting.length === 0) return
    const { updates } = this
    let kept = 0
    for (const u of waiting) {
      const peer = updates.peer[u]!
      const isExpired = updates.deadlineMs[u]! < this.#queue.nowMs
      if (!isExpired && (peer === NONE || this.#hooks.isPresent(peer, updates.session[u]!))) waiting[kept++] = u
      else {
        if (isExpired) this.#counters.updatesExpired++
        this.#answer(u, isExpired ? Status.WRITE_EXPIRED : Status.CONNECTION_LOST)
      }
    }
    waiting.length = kept
  }

  /** A new version of the slot's chain: who ordered here and is no longer the head (or is it on another disk) does not answer. */
  versionChanged(slot: number, isOtherDisk: boolean): void {
    if (this.#table.isHead(slot) && !isOtherDisk) return
    const { records } = this.#replicas
    for (let row = this.#replicas.firstRecord(slot); row !== NONE; row = records.next[row]!) {
      const u = records.update[row]!
      if (u === NONE) continue
      records.update[row] = NONE
      this.#answer(u, Status.NOT_HEAD)
    }
    this.#letGo(slot)
  }

  /** Updates that wait for the disk here (it may hang) are asked for elsewhere; a merge row stays until its reads have ended. */
  #letGo(slot: number): void {
    const { updates } = this
    const merges = this.#merges
    for (let m = 0; merges.inUse > 0 && m < MERGES_MAX; m++) {
      const u = merges.isUsed(m) ? merges.update[m]! : NONE
      if (u === NONE || updates.slot[u] !== slot) continue
      merges.update[m] = NONE
      updates.merge[u] = NONE
      this.#answer(u, Status.NOT_HEAD)
    }
    for (const waiting of [...this.#waitingForRoom, this.#creationsWaiting]) {
      for (let i = waiting.length - 1; i >= 0; i--) {
        const u = waiting[i]!
        if (updates.slot[u] !== slot) continue
        waiting.splice(i, 1)
        this.#answer(u, Status.NOT_HEAD)
      }
    }
  }

  // ---- waiting -----------------------------------------------------------------------------------------------------------

  #wait(u: number, storeIndex: number): void {
    const { updates } = this
    updates.merged[u] = 0
    this.#waiting.push(storeIndex, u)
  }

  /** Rows have become free: those that wait try again, of each disk the first first, until one has to wait again. */
  #retryWaiting(): void {
    for (let storeIndex = 0; this.#waiting.count > 0 && storeIndex < this.#waiting.groups; storeIndex++) this.#retryWaitingFor(storeIndex)
  }

  #retryWaitingFor(storeIndex: number): void {
    while (this.#waiting.first(storeIndex) !== NONE && this.#hasRowsFor(storeIndex)) {
      const u = this.#waiting.shift(storeIndex)
      this.#attempt(u)
      if (this.#waiting.last(storeIndex) === u) return
    }
  }

  /** What waits for a disk that has failed needs none: it is refused. */
  #hasRowsFor(storeIndex: number): boolean {
    if (this.#replicas.storeFailed[storeIndex]) return true
    return this.#mergeShares.mayTake(storeIndex) && this.#replicas.headRecords < this.#headRecordsMax
  }

  roomForRecords(): void {
    if (this.#waiting.count > 0) this.#retryWaiting()
    if (this.#creationsWaiting.length > 0) this.#retryCreations()
  }

  /** New blocks that wait until others are committed. */
  #retryCreations(): void {
    const waiting = this.#creationsWaiting
    for (let left = waiting.length; left > 0 && this.#creationShares.free > 0; left--) this.#attempt(waiting.shift()!)
  }

  #awaitRoom(u: number, storeIndex: number): void {
    this.updates.merged[u] = 0
    const waiting = this.#waitingForRoom[storeIndex]!
    waiting.push(u)
    if (this.#asksForRoom[storeIndex]) return
    this.#asksForRoom[storeIndex] = true
    this.#replicas.onRoom(storeIndex, () => {
      this.#asksForRoom[storeIndex] = false
      for (const each of waiting.splice(0)) this.#attempt(each)
    })
  }
}

/** Bytes of the whole pages that the range touches. */
export function touchedBytes(offsetBytes: number, lengthBytes: number): number {
  return (Math.ceil((offsetBytes + lengthBytes) / PAGE_BYTES) - Math.floor(offsetBytes / PAGE_BYTES)) * PAGE_BYTES
}
