/**
 * The block client of one reactor: routing, channels, retries, cancels (protocol 4, 5, 16, 17).
 *
 *   write: channel -> head (here, or its peer) -> answer -> done
 *             ^         |  stale, lost, busy: wait 100 ms .. 1 s or for a new table, then ask the head of that table
 *             +---------+  out of time: Cancel{channel, n} through the log, until confirmed; then the write has failed for good
 *
 * While no replica can confirm a cancel (the only copy's disk has failed, say), whoever waits is told after one more life of a write that nobody
 * knows: NETWORK_TIMEOUT. No try of it can be ordered any more by then; what was ordered before takes effect, if at all, before anything newer. The
 * cancel goes on, and keeps its channel.
 *
 * A channel has one update in flight and one sequence over all slots. An update has one from its first try on; it gives it back when it has to wait
 * and no try of it can have been ordered. The updates of one disk's slots never have all channels, nor all of a peer's credit (shares.ts): what was
 * asked when a disk failed may keep its channel for as long as nobody can decide it.
 *
 * An operation whose buffer may still be read (by a record here, by a send) is pinned: it is not done before.
 */
import { columns, f64, i32, u8 } from '../base/columns.ts'
import type { VolumeNumber } from '../base/ids.ts'
import { type Done, WriteFlag } from '../base/request.ts'
import { Status } from '../base/status.ts'
import { CHAIN_OP_PAGES_MAX, PAGE_BYTES, PAGES_PER_BLOCK } from '../base/units.ts'
import type { IoQueue } from '../env/ioqueue.ts'
import { CHAIN_ENTRIES_MAX, ReplicaState } from '../placement/chain.ts'
import { slotOf } from '../placement/ring.ts'
import { CHANNELS_PER_CLIENT } from '../store/channel-rows.ts'
import { RecordKind } from '../store/store.ts'
import type { BlockClient } from './block-client.ts'
import type { Counters } from './counters.ts'
import type { Reads } from './read.ts'
import { NONE } from './records.ts'
import { RowQueues } from './row-queues.ts'
import { DISK_GROUPS, groupOfDisk, Shares } from './shares.ts'
import type { ChainTable } from './table.ts'
import { touchedBytes, type Writes } from './write.ts'

const OpKind = { READ: 0, WRITE: 1, ZERO: 2, CANCEL: 3, FLUSH: 4, REMOVE: 5 } as const
const OpState = {
  WAITS_FOR_CHANNEL: 1,
  PARKED: 2,
  /** Asked a replica, here or elsewhere; its answer, or the end of its connection, will come. */
  ASKED: 3,
  FLUSHING: 4,
  /** The outcome is known; the buffer is still pinned, or the call that started it has not returned. */
  ENDING: 5,
} as const

/** How often operations that got no answer are looked for. */
const UNKNOWN_EVERY_MS = 500

export interface ClientSettings {
  /** Time for an operation in all. */
  retryTotalMs: number
  retryFirstMs: number
  retryMaxMs: number
  /** For so long after its client has gone a write may be ordered. */
  writeLifeMs: number
}

/** How operations reach replicas on other nodes. */
export interface RemoteReplicas {
  /** Index of the peer with that node number when it can be asked now, else NONE. */
  peerOf(node: number): number
  session(peer: number): number
  /** Sends the operation as an update; the buffer is pinned until it is sent. NO_CREDIT, NO_BUFFER, BUSY (its clock is not known yet): try again later. */
  sendUpdate(peer: number, op: number): number
  /** Whether there is credit for so many more updates of so many bytes together. */
  hasCreditFor(peer: number, updates: number, bytes: number): boolean
  sendRead(peer: number, op: number): number
  /** Ends the session: what was asked in it and has not arrived does not count any more. */
  abort(peer: number, reason: string): void
  /** Whether anything of the volume can be acknowledged and not durable. */
  isFlushNeeded(volume: VolumeNumber): boolean
  /** See {@link BlockClient.pastLossCount}. */
  pastLossCount(volume: VolumeNumber): number
  /** `done` returns whether its client is still there. */
  flush(volume: VolumeNumber, deadlineMs: number, done: (status: number) => boolean): void
}

/** Whoever waited for (done, row) has gone, at that time. */
interface Orphan {
  readonly done: Done
  readonly row: number
  readonly lostMs: number
}

const RETRYABLE: ReadonlySet<number> = new Set([
  Status.BUSY,
  Status.STOPPING,
  Status.LEASE_EXPIRED,
  Status.NOT_HEAD,
  Status.ROUTING_STALE,
  Status.CHAIN_VERSION_MISMATCH,
  Status.REQUEST_REFUSED,
  Status.WRITE_EXPIRED,
  Status.NO_CREDIT,
  Status.NO_BUFFER,
  Status.CONNECTION_LOST,
  Status.CHECKSUM_MISMATCH,
  Status.NODE_UNREACHABLE,
])
/** Answers which say that this try was not ordered. */
const NOT_ORDERED: ReadonlySet<number> = new Set([
  Status.BUSY,
  Status.STOPPING,
  Status.REQUEST_REFUSED,
  Status.ROUTING_STALE,
  Status.CHAIN_VERSION_MISMATCH,
  Status.WRITE_EXPIRED,
  Status.NO_CREDIT,
  Status.NO_BUFFER,
  Status.NODE_UNREACHABLE,
  Status.CHECKSUM_MISMATCH,
])

export class Client implements BlockClient {
  readonly ops
  readonly #done: Array<Done | undefined>
  /** Set by `stop`. */
  stopping = false
  /** storage.read_only of this node. */
  readOnly = false
  readonly settings: ClientSettings
  readonly #queue: IoQueue
  readonly #table: ChainTable
  readonly #writes: Writes
  readonly #reads: Reads
  readonly #remote: RemoteReplicas
  readonly #counters: Counters
  readonly #needTable: (slot: number, version: number) => void
  readonly #clientHigh: number
  readonly #channelSeq = new Float64Array(CHANNELS_PER_CLIENT)
  readonly #freeChannels = new Int32Array(CHANNELS_PER_CLIENT)
  /** Of the channels, by the disk that heads the slot. */
  readonly #channels = new Shares(DISK_GROUPS, CHANNELS_PER_CLIENT - 1)
  /** Updates that wait for a channel, in order, per group. */
  readonly #waiting: RowQueues
  /** The group whose turn it is to get a channel. */
  #waitingTurn = 0
  #isOpening = false
  #parkedFirst = NONE
  /** Parked until there is credit, or room on the way. */
  #starvedFirst = NONE
  /** Credit that the updates of a group hold at the peer that heads its slots, as far as is known here. */
  readonly #creditRows = new Int32Array(DISK_GROUPS)
  readonly #creditBytes = new Float64Array(DISK_GROUPS)
  /** The group's node heads slots on other disks, too. */
  readonly #sharesNode = new Uint8Array(DISK_GROUPS)
  /** Credit has come back to a group that may not have all of it. */
  #hasCredit = false
  /** A BlockClient call is on the stack: outcomes wait for its return. */
  #inCall = false
  /** Replicas here have yet to draw the consequences of a new table: outcomes wait, for who hears of one may ask for more, and so do free channels. */
  #isTableNew = false
  #ended: number[] = []
  /** Not marked yet. Empty whenever an operation starts or is tried. */
  #orphans: Orphan[] = []
  /** Of the last turn's clock: clients were there then, as far as exports know. Who has gone since is not noticed yet, and this process may have stood still. */
  #turnMs: number
  #lookAgainMs = 0
  /** Cancels that nobody waits for any more. */
  #unawaited = 0

  constructor(options: {
    queue: IoQueue
    table: ChainTable
    writes: Writes
    reads: Reads
    remote: RemoteReplicas
    counters: Counters
    settings: ClientSettings
    needTable: (slot: number, version: number) => void
    opsMax: number
  }) {
    this.#queue = options.queue
    this.#turnMs = options.queue.nowMs
    this.#table = options.table
    this.#writes = options.writes
    this.#reads = options.reads
    this.#remote = options.remote
    this.#counters = options.counters
    this.settings = options.settings
    this.#needTable = options.needTable
    this.#clientHigh = clientHighOf(options.table.identity.node, options.table.identity.reactor)
    // cancels that go on when nobody waits any more have rows of their own: one per channel at most
    this.ops = columns('client operation', options.opsMax + CHANNELS_PER_CLIENT, {
      kind: u8,
      state: u8,
      durable: u8,
      /** Whoever waited for it has gone. */
      orphaned: u8,
      volume: f64,
      index: i32,
      offsetBytes: i32,
      lengthBytes: i32,
      bufferPage: i32,
      slot: i32,
      callerRow: i32,
      channel: i32,
      /** While it has a channel: of `#channels`. */
      group: i32,
      /** Asked a peer: its part of `#creditBytes`, and of which group; NONE: it has none. */
      creditBytes: i32,
      creditGroup: i32,
      seq: f64,
      /** An earlier try may have been ordered. */
      unknown: u8,
      attempts: i32,
      /** READ: replicas that said that they cannot give the content. */
      failures: i32,
      startedMs: f64,
      deadlineMs: f64,
      /** Asked for an update: the head orders it before that, by this node's clock, or never. */
      untilMs: f64,
      /** When whoever waits (or keeps row and buffer for who has gone) is told that the outcome is unknown, if it still is. */
      answerByMs: f64,
      retryAtMs: f64,
      backoffMs: f64,
      /** Asked: the peer and its session; NONE: here. */
      peer: i32,
      session: i32,
      pins: i32,
      status: i32,
      /** CANCEL: what the write will have failed with. */
      failure: i32,
      next: i32,
    })
    this.#done = new Array(options.opsMax)
    this.#waiting = new RowQueues(this.ops.next, DISK_GROUPS)
    // channel 0 is never used, so that a forgotten field is not a channel (checklist 0.33)
    for (let i = 0; i < this.#channels.free; i++) this.#freeChannels[i] = CHANNELS_PER_CLIENT - 1 - i
  }

  // ---- BlockClient ---------------------------------------------------------------------------------------------------------

  get operationsMax(): number {
    return this.ops.rowsMax - CHANNELS_PER_CLIENT
  }

  read(volume: VolumeNumber, index: number, firstPage: number, pageCount: number, bufferPage: number, done: Done, row: number): void {
    this.#start(OpKind.READ, volume, index, firstPage * PAGE_BYTES, pageCount * PAGE_BYTES, bufferPage, 0, done, row)
  }

  write(volume: VolumeNumber, index: number, offsetBytes: number, lengthBytes: number, bufferPage: number, flags: number, done: Done, row: number): void {
    this.#start(OpKind.WRITE, volume, index, offsetBytes, lengthBytes, bufferPage, flags, done, row)
  }

  zero(volume: VolumeNumber, index: number, firstPage: number, pageCount: number, flags: number, done: Done, row: number): void {
    // without any content it needs no space
    if (pageCount === PAGES_PER_BLOCK && (flags & WriteFlag.NO_HOLE) === 0) this.#start(OpKind.REMOVE, volume, index, 0, 0, NONE, flags, done, row)
    else this.#start(OpKind.ZERO, volume, index, firstPage * PAGE_BYTES, pageCount * PAGE_BYTES, NONE, flags, done, row)
  }

  flush(volume: VolumeNumber, done: Done, row: number): void {
    this.#start(OpKind.FLUSH, volume, 0, 0, 0, NONE, 0, done, row)
  }

  lossCount(volume: VolumeNumber): number {
    return this.#table.volumes.get(volume)?.losses ?? 0
  }

  pastLossCount(volume: VolumeNumber): number {
    return this.#remote.pastLossCount(volume)
  }

  orphan(done: Done, row: number, lostMs = this.#queue.nowMs): void {
    this.#orphans.push({ done, row, lostMs })
  }

  /** All that were orphaned since the last time, in one look at the operations; before any of their rows can mean something else. */
  #markOrphans(): void {
    const { ops } = this
    const byRow = new Map<number, Orphan[]>()
    for (const orphan of this.#orphans.splice(0)) {
      const others = byRow.get(orphan.row)
      if (others === undefined) byRow.set(orphan.row, [orphan])
      else others.push(orphan)
    }
    for (let op = 0; op < ops.rowsMax; op++) {
      if (!ops.isUsed(op)) continue
      for (const { done, lostMs } of byRow.get(ops.callerRow[op]!) ?? []) {
        if (this.#done[op] !== done) continue
        ops.orphaned[op] = 1
        ops.deadlineMs[op] = Math.min(ops.deadlineMs[op]!, lostMs + this.settings.writeLifeMs)
        if (ops.state[op] === OpState.ASKED && ops.untilMs[op]! > ops.deadlineMs[op]!) this.#recall(op)
      }
    }
  }

  /** It was asked again after its client had gone, which was noticed late: its head may order it after its life. */
  #recall(op: number): void {
    const peer = this.ops.peer[op]!
    if (peer === NONE) this.#writes.shortenLife(op, this.ops.deadlineMs[op]!)
    else this.#remote.abort(peer, 'it may order a write after its life: that its client had gone was noticed late')
  }

  isHeld(bufferPage: number, pageCount: number): boolean {
    return this.#reads.isHeld(bufferPage, pageCount)
  }

  volumeByName(name: string) {
    const volume = this.#table.volumeByName(name)
    if (volume === undefined) return undefined
    return { volume: volume.volume, sizeBytes: volume.sizeBytes, readOnly: volume.readOnly, syncWhenWrite: volume.syncWhenWrite }
  }

  sizeBytes(volume: VolumeNumber): number {
    return this.#table.volumes.get(volume)?.sizeBytes ?? -1
  }

  volumeNames(): readonly string[] {
    return this.#table.volumeNames()
  }

  get ready(): boolean {
    return !this.stopping && this.#table.revision > 0 && this.#table.leaseValid(this.#queue.nowMs)
  }

  // ---- start ---------------------------------------------------------------------------------------------------------------

  #start(
    kind: number,
    volume: VolumeNumber,
    index: number,
    offsetBytes: number,
    lengthBytes: number,
    bufferPage: number,
    flags: number,
    done: Done,
    row: number,
  ): void {
    const { ops } = this
    if (this.#orphans.length > 0) this.#markOrphans()
    const op = ops.alloc()
    if (op < 0) throw new Error(`more than ${ops.rowsMax} client operations`)
    const nowMs = this.#queue.nowMs
    const known = this.#table.volumes.get(volume)
    this.#done[op] = done
    ops.callerRow[op] = row
    ops.kind[op] = kind
    ops.volume[op] = volume
    ops.index[op] = index
    ops.offsetBytes[op] = offsetBytes
    ops.lengthBytes[op] = lengthBytes
    ops.bufferPage[op] = bufferPage
    ops.channel[op] = NONE
    ops.peer[op] = NONE
    ops.creditBytes[op] = NONE
    ops.attempts[op] = ops.failures[op] = ops.unknown[op] = ops.orphaned[op] = ops.pins[op] = ops.untilMs[op] = 0
    ops.startedMs[op] = nowMs
    ops.deadlineMs[op] = nowMs + this.settings.retryTotalMs
    ops.answerByMs[op] = ops.deadlineMs[op]! + this.settings.writeLifeMs
    ops.backoffMs[op] = this.settings.retryFirstMs
    // a flush by a node that does not know that there is such a block would not ask for it (flush.ts)
    const awaitsFlush = known !== undefined && !known.syncWhenWrite && (flags & WriteFlag.FUA) === 0 && this.#table.isKnownToAll(volume, index, nowMs)
    ops.durable[op] = awaitsFlush ? 0 : 1
    this.#inCall = true
    if (this.stopping) this.#end(op, Status.STOPPING)
    else if (known === undefined && this.#table.revision > 0) this.#end(op, Status.VOLUME_NOT_FOUND)
    else if (this.readOnly && kind !== OpKind.READ && kind !== OpKind.FLUSH) this.#end(op, Status.READ_ONLY)
    else if (kind === OpKind.FLUSH) this.#startFlush(op, volume)
    else this.#dispatch(op)
    this.#inCall = false
  }

  #startFlush(op: number, volume: VolumeNumber): void {
    if (!this.#remote.isFlushNeeded(volume)) {
      this.#end(op, Status.SUCCESS)
      return
    }
    this.ops.state[op] = OpState.FLUSHING
    const generation = this.ops.generation[op]!
    this.#remote.flush(volume, this.ops.deadlineMs[op]!, (status) => {
      if (this.ops.generation[op] !== generation) return false
      if (this.#orphans.length > 0) this.#markOrphans()
      const isAwaited = this.ops.orphaned[op] === 0
      this.#end(op, status)
      return isAwaited
    })
  }

  // ---- channels ------------------------------------------------------------------------------------------------------------

  /** The update takes a channel, with its next seq, unless its group has its share. */
  #openChannel(op: number, group: number): boolean {
    if (!this.#channels.take(group)) return false
    const channel = this.#freeChannels[this.#channels.free]!
    this.ops.channel[op] = channel
    this.ops.group[op] = group
    this.ops.seq[op] = this.#channelSeq[channel] = this.#channelSeq[channel]! + 1
    return true
  }

  #closeChannel(op: number): void {
    const { ops } = this
    this.#freeChannels[this.#channels.free] = ops.channel[op]!
    this.#channels.giveBack(ops.group[op]!)
    ops.channel[op] = NONE
  }

  /** The update is to wait: if no try of it can have been ordered, somebody else may have its channel meanwhile. */
  #lendChannel(op: number): void {
    const { ops } = this
    if (ops.channel[op] === NONE || ops.unknown[op] === 1 || ops.kind[op] === OpKind.CANCEL) return
    this.#closeChannel(op)
    this.#openWaiting()
  }

  #awaitChannel(op: number, group: number): void {
    this.#counters.updatesWaitedForChannel++
    this.ops.state[op] = OpState.WAITS_FOR_CHANNEL
    this.#waiting.push(group, op)
  }

  /**
   * Channels are free: the groups that may take one do so in turn. Updates whose time was over while they waited are not begun (protocol 16): their
   * clients may have gone on elsewhere.
   */
  #openWaiting(): void {
    // what is begun here may end at once: this very loop goes on then, not one inside it
    if (this.#waiting.count === 0 || this.#isOpening || this.#isTableNew) return
    this.#isOpening = true
    if (this.#orphans.length > 0) this.#markOrphans()
    for (let looked = 0; looked < DISK_GROUPS && this.#waiting.count > 0; ) {
      const group = this.#waitingTurn
      this.#waitingTurn = (group + 1) % DISK_GROUPS
      if (this.#waiting.first(group) === NONE || !this.#channels.mayTake(group)) {
        looked++
        continue
      }
      looked = 0
      const op = this.#waiting.shift(group)
      if (this.#queue.nowMs >= this.ops.deadlineMs[op]!) this.#end(op, Status.VOLUME_UNAVAILABLE)
      else this.#dispatch(op)
    }
    this.#isOpening = false
  }

  /** Slots may have other heads now: other shares, and others to wait with. */
  #regroup(): void {
    const { slotCount, headNode, entryDisk } = this.#table
    const nodeOf = new Int32Array(DISK_GROUPS)
    const groupOf = new Map<number, number>()
    let groups = 0
    this.#sharesNode.fill(0)
    for (let slot = 0; slot < slotCount; slot++) {
      const node = headNode[slot]!
      if (node === 0) continue
      const group = groupOfDisk(entryDisk[slot * CHAIN_ENTRIES_MAX]!)
      if (nodeOf[group] === node) continue
      if (nodeOf[group] === 0) groups++
      else this.#sharesNode[group] = 1
      nodeOf[group] = node
      const other = groupOf.get(node)
      if (other === undefined) groupOf.set(node, group)
      else if (other !== group) this.#sharesNode[group] = this.#sharesNode[other] = 1
    }
    this.#channels.isAlone = groups < 2
    if (this.#waiting.count === 0) return
    const waiting: number[] = []
    for (let group = 0; group < DISK_GROUPS; group++) while (this.#waiting.first(group) !== NONE) waiting.push(this.#waiting.shift(group))
    for (const op of waiting) this.#waiting.push(groupOfDisk(entryDisk[this.ops.slot[op]! * CHAIN_ENTRIES_MAX]!), op)
  }

  // ---- ask a replica -------------------------------------------------------------------------------------------------------

  #dispatch(op: number): void {
    const { ops } = this
    const table = this.#table
    if (table.slotCount === 0) {
      this.#park(op)
      return
    }
    ops.slot[op] = slotOf(ops.volume[op]!, ops.index[op]! >>> 0, table.slotCount)
    ops.attempts[op]!++
    ops.state[op] = OpState.ASKED
    if (ops.kind[op] === OpKind.READ) this.#askRead(op)
    else this.#askHead(op)
  }

  #askHead(op: number): void {
    const { ops } = this
    const table = this.#table
    const slot = ops.slot[op]!
    const head = table.headNode[slot]!
    if (head === 0 || table.headState[slot] !== ReplicaState.SERVING) {
      this.#park(op)
      this.#lendChannel(op)
      return
    }
    // a sub-page write is merged in its buffer: not while an earlier try still reads it
    if (ops.pins[op]! > 0 && this.#isSubPage(op)) {
      this.#park(op)
      return
    }
    const group = groupOfDisk(table.entryDisk[slot * CHAIN_ENTRIES_MAX]!)
    if (ops.channel[op] === NONE && !this.#openChannel(op, group)) {
      this.#awaitChannel(op, group)
      return
    }
    // its client may go at any time from the last turn on, or went so long ago as its deadline tells. A cancel is tried for as long as it takes
    ops.untilMs[op] = Math.min(this.#turnMs + this.settings.writeLifeMs, ops.deadlineMs[op]!)
    if (head === table.identity.node) {
      ops.peer[op] = NONE
      this.#submitUpdate(op)
      return
    }
    const peer = this.#remote.peerOf(head)
    if (peer === NONE) {
      this.#park(op)
      this.#lendChannel(op)
      return
    }
    const creditBytes = ops.kind[op] === OpKind.WRITE ? touchedBytes(ops.offsetBytes[op]!, ops.lengthBytes[op]!) : 0
    if (!this.#mayUseCredit(peer, group, creditBytes) || this.#remote.sendUpdate(peer, op) !== Status.SUCCESS) {
      this.#starve(op)
      return
    }
    this.#counters.remoteUpdates++
    this.#creditRows[group]!++
    this.#creditBytes[group]! += creditBytes
    ops.creditBytes[op] = creditBytes
    ops.creditGroup[op] = group
    ops.peer[op] = peer
    ops.session[op] = this.#remote.session(peer)
  }

  /** Whether the group, with that update, has no more of the peer's credit than would be left. Who has none may take what there is. */
  #mayUseCredit(peer: number, group: number, bytes: number): boolean {
    const rows = this.#creditRows[group]!
    return this.#sharesNode[group] === 0 || rows === 0 || this.#remote.hasCreditFor(peer, rows + 1, this.#creditBytes[group]! + 2 * bytes)
  }

  /** The try has been answered, or never will be: the credit is the peer's again, or soon. */
  #returnCredit(op: number): void {
    const { ops } = this
    const bytes = ops.creditBytes[op]!
    if (bytes === NONE) return
    const group = ops.creditGroup[op]!
    this.#creditRows[group]!--
    this.#creditBytes[group]! -= bytes
    ops.creditBytes[op] = NONE
    if (this.#sharesNode[group] === 1) this.#hasCredit = true
  }

  #isSubPage(op: number): boolean {
    return this.ops.kind[op] === OpKind.WRITE && ((this.ops.offsetBytes[op]! | this.ops.lengthBytes[op]!) & (PAGE_BYTES - 1)) !== 0
  }

  /** The head is here: no message, no copy. */
  #submitUpdate(op: number): void {
    const { ops } = this
    const { updates, crcs } = this.#writes
    const u = updates.alloc()
    if (u < 0) {
      this.#park(op)
      return
    }
    const nowMs = this.#queue.nowMs
    const { identity } = this.#table
    updates.peer[u] = NONE
    updates.session[u] = 0
    updates.requestRow[u] = op
    updates.requestGeneration[u] = ops.generation[op]!
    updates.slot[u] = ops.slot[op]!
    updates.chainVersion[u] = this.#table.version[ops.slot[op]!]!
    updates.kind[u] = this.recordKind(op)
    updates.durable[u] = ops.durable[op]!
    updates.clientHigh[u] = this.#clientHigh
    updates.clientLow[u] = identity.incarnation
    updates.channel[u] = ops.channel[op]!
    updates.seq[u] = ops.seq[op]!
    updates.deadlineMs[u] = ops.untilMs[op]!
    updates.receivedMs[u] = nowMs
    const isEmpty = ops.kind[op] === OpKind.CANCEL
    updates.volume[u] = isEmpty ? 0 : ops.volume[op]!
    updates.layer[u] = 0
    updates.index[u] = isEmpty ? 0 : ops.index[op]!
    updates.offsetBytes[u] = isEmpty ? 0 : ops.offsetBytes[op]!
    updates.lengthBytes[u] = isEmpty ? 0 : ops.lengthBytes[op]!
    updates.bufferPage[u] = ops.bufferPage[op]!
    updates.owned[u] = 0
    if (ops.kind[op] === OpKind.WRITE) this.checksums(op, crcs, u * CHAIN_OP_PAGES_MAX)
    this.#writes.submit(u)
  }

  #askRead(op: number): void {
    const { ops } = this
    const table = this.#table
    const slot = ops.slot[op]!
    const status = ops.status[op]!
    // BUSY: what the page holds here is not committed, perhaps for as long as the slot stands still; others may have nothing newer than is committed
    const isBusy = status === Status.BUSY && ops.attempts[op]! % 2 === 0
    const isRetryElsewhere = ops.attempts[op]! > 1 && (status === Status.BLOCK_CORRUPTED || status === Status.READ_FAILED || isBusy)
    if (this.#reads.servesHere(slot) && !isRetryElsewhere) {
      ops.peer[op] = NONE
      this.#submitRead(op)
      return
    }
    const count = table.entryCount[slot]!
    const base = slot * CHAIN_ENTRIES_MAX
    for (let i = 0; i < count; i++) {
      const e = base + ((i + ops.attempts[op]! + slot) % count)
      if (table.entryState[e] !== ReplicaState.SERVING || table.entryNode[e] === table.identity.node) continue
      const peer = this.#remote.peerOf(table.entryNode[e]!)
      if (peer === NONE || this.#remote.sendRead(peer, op) !== Status.SUCCESS) continue
      this.#counters.readsRemote++
      ops.peer[op] = peer
      ops.session[op] = this.#remote.session(peer)
      return
    }
    ops.status[op] = Status.SUCCESS
    this.#park(op)
  }

  #submitRead(op: number): void {
    const { ops } = this
    const { reads } = this.#reads
    const r = this.#reads.take(NONE, ops.slot[op]!)
    if (r < 0) {
      this.#park(op)
      return
    }
    this.#counters.readsLocal++
    reads.requestRow[r] = op
    reads.requestGeneration[r] = ops.generation[op]!
    reads.slot[r] = ops.slot[op]!
    reads.chainVersion[r] = this.#table.version[ops.slot[op]!]!
    reads.volume[r] = ops.volume[op]!
    reads.layer[r] = 0
    reads.index[r] = ops.index[op]!
    reads.firstPage[r] = ops.offsetBytes[op]! / PAGE_BYTES
    reads.pageCount[r] = ops.lengthBytes[op]! / PAGE_BYTES
    reads.bufferPage[r] = ops.bufferPage[op]!
    reads.owned[r] = 0
    reads.receivedMs[r] = this.#queue.nowMs
    this.#reads.submit(r)
  }

  recordKind(op: number): RecordKind {
    switch (this.ops.kind[op]) {
      case OpKind.WRITE:
        return RecordKind.WRITE
      case OpKind.ZERO:
        return RecordKind.ZERO
      case OpKind.REMOVE:
        return RecordKind.REMOVE
      default:
        return RecordKind.EMPTY
    }
  }

  /** CRCs of the operation's bytes in each touched page, into `crcs` from `at` on; returns how many. */
  checksums(op: number, crcs: Uint32Array, at: number): number {
    const { ops } = this
    const { arena } = this.#queue
    const end = (ops.offsetBytes[op]! % PAGE_BYTES) + ops.lengthBytes[op]!
    const page = ops.bufferPage[op]!
    let from = ops.offsetBytes[op]! % PAGE_BYTES
    let count = 0
    while (from < end) {
      const delta = from % PAGE_BYTES
      const length = Math.min(PAGE_BYTES - delta, end - from)
      crcs[at + count] = arena.crc32c(page + count, delta, length)
      count++
      from += length
    }
    return count
  }

  // ---- answers -------------------------------------------------------------------------------------------------------------

  /** The outcome of a try. Late ones (of an earlier generation, or of a try given up) change nothing. */
  onAnswer(op: number, generation: number, status: number, chainVersion: number): void {
    const { ops } = this
    if (op < 0 || op >= ops.rowsMax || !ops.isUsed(op) || ops.generation[op] !== generation || ops.state[op] !== OpState.ASKED) return
    ops.status[op] = status
    this.#returnCredit(op)
    if (status === Status.SUCCESS) {
      this.#end(op, ops.kind[op] === OpKind.CANCEL ? ops.failure[op]! : Status.SUCCESS)
      return
    }
    const slot = ops.slot[op]!
    if (chainVersion > this.#table.version[slot]!) this.#needTable(slot, chainVersion)
    if (ops.kind[op] === OpKind.READ) {
      if (status === Status.BUFFER_LOST) this.#end(op, status)
      else if (!RETRYABLE.has(status) && ++ops.failures[op]! > this.#table.entryCount[slot]! * 2) this.#end(op, status)
      else this.#park(op, status === Status.BLOCK_CORRUPTED || status === Status.READ_FAILED)
      return
    }
    if (!NOT_ORDERED.has(status)) {
      if (RETRYABLE.has(status)) ops.unknown[op] = 1
      else if (ops.kind[op] !== OpKind.CANCEL && ops.unknown[op] === 0) {
        this.#end(op, status)
        return
      } else if (ops.kind[op] !== OpKind.CANCEL) this.#cancel(op, status)
    }
    this.#park(op)
    this.#lendChannel(op)
  }

  /** Whether the operation is a read of that many bytes that waits for this peer: the answer may go into its buffer. */
  awaitsRead(op: number, generation: number, peer: number, lengthBytes: number): boolean {
    const { ops } = this
    if (op < 0 || op >= ops.rowsMax || !ops.isUsed(op) || ops.generation[op] !== generation || ops.state[op] !== OpState.ASKED) return false
    return ops.kind[op] === OpKind.READ && ops.peer[op] === peer && ops.lengthBytes[op] === lengthBytes
  }

  /** The session of a peer has ended: what was asked there is asked again. */
  peerLost(peer: number): void {
    const { ops } = this
    if (ops.inUse === 0) return
    for (let op = 0; op < ops.rowsMax; op++) {
      if (ops.isUsed(op) && ops.state[op] === OpState.ASKED && ops.peer[op] === peer) this.onAnswer(op, ops.generation[op]!, Status.CONNECTION_LOST, 0)
    }
  }

  /** The write is given up: from now on the row stands for its Cancel, with the next seq of the channel (protocol 16). */
  #cancel(op: number, failure: number): void {
    const { ops } = this
    this.#counters.cancels++
    ops.kind[op] = OpKind.CANCEL
    ops.failure[op] = failure
    ops.durable[op] = 1
    ops.seq[op] = this.#channelSeq[ops.channel[op]!] = this.#channelSeq[ops.channel[op]!]! + 1
    ops.deadlineMs[op] = Number.POSITIVE_INFINITY
    ops.backoffMs[op] = this.settings.retryFirstMs
  }

  // ---- waiting -------------------------------------------------------------------------------------------------------------

  #park(op: number, atOnce = false): void {
    const { ops } = this
    ops.state[op] = OpState.PARKED
    ops.peer[op] = NONE
    ops.retryAtMs[op] = atOnce ? 0 : this.#queue.nowMs + ops.backoffMs[op]!
    ops.backoffMs[op] = Math.min(ops.backoffMs[op]! * 2, this.settings.retryMaxMs)
    ops.next[op] = this.#parkedFirst
    this.#parkedFirst = op
  }

  /** Its head could be asked, but for credit, or for room on the way: that may be there at the next moment. */
  #starve(op: number): void {
    const { ops } = this
    ops.state[op] = OpState.PARKED
    ops.peer[op] = NONE
    ops.retryAtMs[op] = 0
    ops.next[op] = this.#starvedFirst
    this.#starvedFirst = op
  }

  /** Asks again for everything that waits: after a new table, a new lease, a new session. */
  wake(): void {
    this.#retry(Number.POSITIVE_INFINITY)
    this.feed()
    this.#openWaiting()
  }

  /**
   * A new table comes. What is ordered in a slot whose replica here has not drawn its consequences yet would go to a new successor ahead of what is
   * uncommitted there (protocol 14), and a successor whose session has stored nothing of the slot takes the first record for the first.
   */
  tableComes(): void {
    this.#isTableNew = true
  }

  tableLearned(): void {
    this.#isTableNew = false
    this.#regroup()
    this.wake()
  }

  /** There is new credit, or room on the way to a peer. What waits for something else has nothing of it. */
  feed(): void {
    const starved = this.#starvedFirst
    if (starved === NONE) return
    this.#starvedFirst = NONE
    this.#retryAll(starved, Number.POSITIVE_INFINITY)
  }

  /** Every now and then: those whose wait is over, and whose time is. */
  tick(): void {
    this.feed()
    this.#retry(this.#queue.nowMs)
    this.#expireWaiting()
    this.#answerUnknown()
  }

  /** Those whose outcome nobody will know in time. Their buffers go back to whoever waits: what a record may still have to send, it has to copy first. */
  #answerUnknown(): void {
    const { ops } = this
    const { nowMs } = this.#queue
    if (ops.inUse === 0 || nowMs < this.#lookAgainMs) return
    this.#lookAgainMs = nowMs + UNKNOWN_EVERY_MS
    for (let op = 0; op < ops.rowsMax; op++) {
      if (!ops.isUsed(op) || nowMs < ops.answerByMs[op]! || ops.channel[op] === NONE) continue
      if (ops.pins[op]! > 0) this.#writes.takeOverPayload(op)
      if (ops.pins[op]! > 0) continue
      const done = this.#done[op]
      if (done === undefined || ops.state[op] === OpState.ENDING) continue
      // asked, and never answered: whatever comes of it, its content is not sent again
      if (ops.kind[op] !== OpKind.CANCEL) this.#cancel(op, Status.WRITE_CANCELLED)
      this.#done[op] = undefined
      this.#unawaited++
      this.#counters.updatesUnknown++
      done(ops.callerRow[op]!, Status.NETWORK_TIMEOUT)
    }
  }

  #retry(dueMs: number): void {
    const parked = this.#parkedFirst
    this.#parkedFirst = NONE
    this.#retryAll(parked, dueMs)
  }

  /** Those of a list, which the caller has emptied, in the order they were parked. */
  #retryAll(list: number, dueMs: number): void {
    const { ops } = this
    const nowMs = this.#queue.nowMs
    if (this.#orphans.length > 0) this.#markOrphans()
    let op = list
    let first = NONE
    while (op !== NONE) {
      const next = ops.next[op]!
      ops.next[op] = first
      first = op
      op = next
    }
    for (op = first; op !== NONE; ) {
      const next = ops.next[op]!
      if (nowMs >= ops.deadlineMs[op]!) this.#outOfTime(op)
      else if (ops.retryAtMs[op]! <= dueMs) {
        this.#counters.clientRetries++
        if (dueMs === Number.POSITIVE_INFINITY) ops.backoffMs[op] = this.settings.retryFirstMs
        this.#dispatch(op)
      } else {
        ops.next[op] = this.#parkedFirst
        this.#parkedFirst = op
      }
      op = next
    }
  }

  #outOfTime(op: number): void {
    const { ops } = this
    if (ops.kind[op] === OpKind.READ || ops.unknown[op] === 0) {
      const isBad = ops.kind[op] === OpKind.READ && (ops.status[op] === Status.BLOCK_CORRUPTED || ops.status[op] === Status.READ_FAILED)
      this.#end(op, isBad ? ops.status[op]! : Status.VOLUME_UNAVAILABLE)
      return
    }
    this.#cancel(op, Status.WRITE_CANCELLED)
    this.#dispatch(op)
  }

  #expireWaiting(): void {
    if (this.#waiting.count === 0) return
    const { deadlineMs } = this.ops
    for (let group = 0; group < DISK_GROUPS; group++) {
      while (this.#waiting.first(group) !== NONE && this.#queue.nowMs >= deadlineMs[this.#waiting.first(group)]!) {
        this.#end(this.#waiting.shift(group), Status.VOLUME_UNAVAILABLE)
      }
    }
  }

  // ---- end -----------------------------------------------------------------------------------------------------------------

  pin(op: number): void {
    this.ops.pins[op]!++
  }

  unpin(op: number): void {
    const { ops } = this
    if (--ops.pins[op]! === 0 && ops.state[op] === OpState.ENDING) this.#finish(op)
  }

  #end(op: number, status: number): void {
    const { ops } = this
    ops.status[op] = status
    ops.state[op] = OpState.ENDING
    const hadChannel = ops.channel[op] !== NONE
    if (hadChannel) this.#closeChannel(op)
    if (ops.pins[op] === 0) this.#finish(op)
    if (hadChannel) this.#openWaiting()
  }

  #finish(op: number): void {
    if (this.#inCall || this.#isTableNew) {
      this.#ended.push(op)
      return
    }
    const done = this.#done[op]
    const row = this.ops.callerRow[op]!
    const status = this.ops.status[op]!
    this.#done[op] = undefined
    this.ops.free(op)
    if (done === undefined) this.#unawaited--
    else done(row, status)
  }

  /** At the end of a turn. */
  settle(): void {
    if (this.#orphans.length > 0) this.#markOrphans()
    if (this.#hasCredit) {
      this.#hasCredit = false
      this.feed()
    }
    // outcomes that were known before their call had returned
    while (this.#ended.length > 0) for (const op of this.#ended.splice(0)) this.#finish(op)
    this.#turnMs = this.#queue.nowMs
  }

  /** Operations of this node that somebody waits for. */
  get underWay(): number {
    return this.ops.inUse - this.#unawaited
  }
}

/** Rule 4: the client is a reactor of a node; its incarnation is the low half. */
export function clientHighOf(node: number, reactor: number): number {
  return ((node << 8) | reactor) >>> 0
}
