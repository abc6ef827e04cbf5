/**
 * Updates and reads between the client of one node and the replicas of another: requests, answers, on both sides.
 *
 *   client --UPDATE (credit of hop 0, FORWARD lane)--> head       <--UPDATE_ANSWERS (ACK lane)--
 *   client --READ (ACK lane)--> replica                           <--READ_ANSWER (BULK lane), straight into the operation's buffer
 */
import { Status } from '../base/status.ts'
import { BLOCK_BYTES, CHAIN_OP_PAGES_MAX, PAGE_BYTES, PAGES_PER_BLOCK, SECTOR_BYTES } from '../base/units.ts'
import type { Arena, PageNumber } from '../env/arena.ts'
import type { IoQueue } from '../env/ioqueue.ts'
import { CHANNELS_PER_CLIENT } from '../store/channel-rows.ts'
import { RecordKind } from '../store/store.ts'
import { FRAME_BYTES, Lane, PeerFrame, putFrame, Read, ReadAnswer, Update, UpdateAnswer, UpdateFlag } from '../wire/peer.ts'
import { type Client, clientHighOf } from './client.ts'
import type { Counters } from './counters.ts'
import type { Credits } from './credits.ts'
import { Owner, Place, type Placement } from './lane.ts'
import type { PayloadPool } from './payload-pool.ts'
import { PEERS_MAX, type Peers } from './peers.ts'
import type { Reads } from './read.ts'
import { NONE } from './records.ts'
import type { ChainTable } from './table.ts'
import { touchedBytes, type Writes } from './write.ts'

const ENTRIES_MAX = 500
const UPDATE_HEAD_BYTES = FRAME_BYTES + Update.size
/** Reads of one peer that were refused and not told so yet: more than its clients can have under way. */
const REFUSED_READS_MAX = 32_768

export class RemoteExchange {
  readonly #queue: IoQueue
  readonly #arena: Arena
  readonly #pool: PayloadPool
  readonly #table: ChainTable
  readonly #peers: Peers
  readonly #credits: Credits
  readonly #writes: Writes
  readonly #reads: Reads
  readonly #client: () => Client
  readonly #counters: Counters
  readonly #creditFreed: (peer: number, hop: number, payloadBytes: number) => void
  /** The longest that an update may still be ordered. */
  readonly #lifeMs: number
  readonly #crcs = new Uint32Array(CHAIN_OP_PAGES_MAX)
  /** Answers to be sent, per peer: row, generation, status, chain version. Bounded by the updates that the peer has credit for. */
  readonly #answers: number[][] = Array.from({ length: PEERS_MAX }, () => [])
  /** Reads whose answers wait for room on the lane: row, status, detail. Bounded by the table of reads. */
  readonly #readAnswers: number[][] = Array.from({ length: PEERS_MAX }, () => [])
  /** Reads that found no row and whose refusal waits for room on the lane: request row, generation. At most REFUSED_READS_MAX of each peer. */
  readonly #refusedReads: number[][] = Array.from({ length: PEERS_MAX }, () => [])

  constructor(options: {
    queue: IoQueue
    pool: PayloadPool
    table: ChainTable
    peers: Peers
    credits: Credits
    writes: Writes
    reads: Reads
    client: () => Client
    counters: Counters
    creditFreed: (peer: number, hop: number, payloadBytes: number) => void
    writeLifeMs: number
  }) {
    this.#queue = options.queue
    this.#arena = options.queue.arena
    this.#pool = options.pool
    this.#table = options.table
    this.#peers = options.peers
    this.#credits = options.credits
    this.#writes = options.writes
    this.#reads = options.reads
    this.#client = options.client
    this.#counters = options.counters
    this.#creditFreed = options.creditFreed
    this.#lifeMs = options.writeLifeMs
  }

  // ---- this node asks ------------------------------------------------------------------------------------------------------

  sendUpdate(peer: number, op: number): number {
    const client = this.#client()
    const { ops } = client
    const { view } = this.#arena
    const clock = this.#peers.clockOf(peer)
    if (!clock.isKnown) return Status.BUSY
    const kind = client.recordKind(op)
    const isWrite = kind === RecordKind.WRITE
    const isEmpty = kind === RecordKind.EMPTY
    const offsetBytes = isEmpty ? 0 : ops.offsetBytes[op]!
    const lengthBytes = isEmpty ? 0 : ops.lengthBytes[op]!
    const creditBytes = isWrite ? touchedBytes(offsetBytes, lengthBytes) : 0
    if (!this.#credits.take(peer, 0, creditBytes)) return Status.NO_CREDIT
    const headBytes = UPDATE_HEAD_BYTES + (creditBytes / PAGE_BYTES) * 4
    const at = this.#peers.reserve(peer, Lane.FORWARD, headBytes)
    if (at < 0) {
      this.#credits.giveBack(peer, 0, creditBytes)
      return Status.NO_BUFFER
    }
    const body = at + FRAME_BYTES
    const { set } = Update
    putFrame(view, at, PeerFrame.UPDATE, headBytes, isWrite ? lengthBytes : 0)
    set.requestRow(view, body, op)
    set.requestGeneration(view, body, ops.generation[op]!)
    set.slot(view, body, ops.slot[op]!)
    set.chainVersion(view, body, this.#table.version[ops.slot[op]!]!)
    set.channel(view, body, ops.channel[op]!)
    set.kind(view, body, kind)
    set.flags(view, body, ops.durable[op] === 1 ? UpdateFlag.DURABLE : 0)
    view.setUint16(body + Update.offsets.reserved, 0)
    set.seq(view, body, ops.seq[op]!)
    set.untilMs(view, body, Math.max(0, Math.floor(clock.atLeastMs(ops.untilMs[op]!))))
    set.volume(view, body, isEmpty ? 0 : ops.volume[op]!)
    set.layer(view, body, 0)
    set.index(view, body, isEmpty ? 0 : ops.index[op]!)
    set.offsetBytes(view, body, offsetBytes)
    set.lengthBytes(view, body, lengthBytes)
    for (let i = 0; i < 8; i += 4) view.setUint32(body + Update.offsets.reserved2 + i, 0)
    if (!isWrite) {
      this.#peers.send(peer, Lane.FORWARD, at, headBytes, 0, 0, 0, Owner.NONE, NONE)
      return Status.SUCCESS
    }
    const count = client.checksums(op, this.#crcs, 0)
    for (let i = 0; i < count; i++) view.setUint32(body + Update.size + i * 4, this.#crcs[i]!, true)
    client.pin(op)
    this.#peers.send(peer, Lane.FORWARD, at, headBytes, ops.bufferPage[op]!, offsetBytes % PAGE_BYTES, lengthBytes, Owner.OPERATION, op)
    return Status.SUCCESS
  }

  sendRead(peer: number, op: number): number {
    const { ops } = this.#client()
    const { view } = this.#arena
    const headBytes = FRAME_BYTES + Read.size
    const at = this.#peers.reserve(peer, Lane.ACK, headBytes)
    if (at < 0) return Status.NO_BUFFER
    const body = at + FRAME_BYTES
    const { set } = Read
    putFrame(view, at, PeerFrame.READ, headBytes, 0)
    set.requestRow(view, body, op)
    set.requestGeneration(view, body, ops.generation[op]!)
    set.slot(view, body, ops.slot[op]!)
    set.chainVersion(view, body, this.#table.version[ops.slot[op]!]!)
    set.volume(view, body, ops.volume[op]!)
    set.layer(view, body, 0)
    set.index(view, body, ops.index[op]!)
    set.firstPage(view, body, ops.offsetBytes[op]! / PAGE_BYTES)
    set.pageCount(view, body, ops.lengthBytes[op]! / PAGE_BYTES)
    for (let i = 0; i < 8; i += 4) view.setUint32(body + Read.offsets.reserved + i, 0)
    this.#peers.send(peer, Lane.ACK, at, headBytes, 0, 0, 0, Owner.NONE, NONE)
    return Status.SUCCESS
  }

  onUpdateAnswers(at: number, headBytes: number): string | null {
    const { view } = this.#arena
    const client = this.#client()
    for (let entry = at + FRAME_BYTES; entry < at + headBytes; entry += UpdateAnswer.size) {
      const { get } = UpdateAnswer
      client.onAnswer(get.requestRow(view, entry), get.requestGeneration(view, entry) | 0, get.status(view, entry), get.chainVersion(view, entry))
    }
    return null
  }

  /** The buffer of the operation that asked; a peer that answers otherwise than asked breaks the rules. */
  placeReadAnswer(peer: number, at: number, payloadBytes: number, placement: Placement): number {
    const { view } = this.#arena
    const body = at + FRAME_BYTES
    const client = this.#client()
    const op = ReadAnswer.get.requestRow(view, body)
    if (ReadAnswer.get.status(view, body) !== Status.SUCCESS) return Place.REFUSE
    if (!client.awaitsRead(op, ReadAnswer.get.requestGeneration(view, body) | 0, peer, payloadBytes)) return Place.REFUSE
    placement.page = client.ops.bufferPage[op]!
    placement.deltaBytes = 0
    placement.kind = Owner.OPERATION
    placement.row = op
    return Place.TAKE
  }

  onReadAnswer(peer: number, at: number, payloadBytes: number): string | null {
    const { view } = this.#arena
    const body = at + FRAME_BYTES
    const client = this.#client()
    const op = ReadAnswer.get.requestRow(view, body)
    const generation = ReadAnswer.get.requestGeneration(view, body) | 0
    const status = ReadAnswer.get.status(view, body)
    if (status === Status.SUCCESS) {
      if (payloadBytes === 0 || !client.awaitsRead(op, generation, peer, payloadBytes)) return 'an answer nobody waits for'
      if (this.#arena.crc32c(client.ops.bufferPage[op]!, 0, payloadBytes) !== ReadAnswer.get.payloadCrc(view, body)) return 'a payload with a wrong checksum'
    }
    client.onAnswer(op, generation, status, ReadAnswer.get.chainVersion(view, body))
    return null
  }

  // ---- this node is asked --------------------------------------------------------------------------------------------------

  placeUpdate(peer: number, at: number, headBytes: number, payloadBytes: number, placement: Placement): number {
    const { view } = this.#arena
    const { get } = Update
    const { updates, crcs } = this.#writes
    const body = at + FRAME_BYTES
    const slot = get.slot(view, body)
    const kind = get.kind(view, body)
    const channel = get.channel(view, body)
    const offsetBytes = get.offsetBytes(view, body)
    const lengthBytes = get.lengthBytes(view, body)
    const isWrite = kind === RecordKind.WRITE
    const hasPages = isWrite || kind === RecordKind.ZERO
    const unit = isWrite ? SECTOR_BYTES : PAGE_BYTES
    const pages = hasPages ? touchedBytes(offsetBytes, lengthBytes) / PAGE_BYTES : 0
    const payloadPages = isWrite ? pages : 0
    if (
      Update.invalid(view, body) !== null ||
      slot >= this.#table.slotCount ||
      kind < RecordKind.WRITE ||
      kind > RecordKind.REMOVE ||
      channel === 0 ||
      channel >= CHANNELS_PER_CLIENT ||
      get.seq(view, body) === 0 ||
      (hasPages
        ? lengthBytes === 0 || offsetBytes % unit !== 0 || lengthBytes % unit !== 0 || offsetBytes + lengthBytes > BLOCK_BYTES
        : offsetBytes !== 0 || lengthBytes !== 0) ||
      payloadPages > CHAIN_OP_PAGES_MAX ||
      payloadBytes !== (isWrite ? lengthBytes : 0) ||
      headBytes !== UPDATE_HEAD_BYTES + payloadPages * 4
    ) {
      return Place.REFUSE
    }
    const u = updates.alloc()
    if (u < 0) return Place.WAIT
    const page = payloadPages === 0 ? 0 : this.#pool.alloc(payloadPages * PAGE_BYTES)
    if (page === -1) {
      updates.free(u)
      return Place.WAIT
    }
    if (!this.#credits.receive(peer, 0, payloadPages * PAGE_BYTES)) {
      updates.free(u)
      if (payloadPages > 0) this.#pool.free(page as PageNumber)
      return Place.REFUSE
    }
    const nowMs = this.#queue.nowMs
    const { node, incarnation } = this.#peers.peers[peer]!
    updates.peer[u] = peer
    updates.session[u] = this.#peers.sessionOf(peer)
    updates.requestRow[u] = get.requestRow(view, body)
    updates.requestGeneration[u] = get.requestGeneration(view, body)
    updates.slot[u] = slot
    updates.chainVersion[u] = get.chainVersion(view, body)
    updates.kind[u] = kind
    updates.durable[u] = get.flags(view, body) & UpdateFlag.DURABLE ? 1 : 0
    updates.clientHigh[u] = clientHighOf(node, 0)
    updates.clientLow[u] = incarnation
    updates.channel[u] = channel
    updates.seq[u] = get.seq(view, body)
    updates.deadlineMs[u] = get.untilMs(view, body)
    updates.receivedMs[u] = nowMs
    updates.volume[u] = get.volume(view, body)
    updates.layer[u] = get.layer(view, body)
    updates.index[u] = get.index(view, body)
    updates.offsetBytes[u] = offsetBytes
    updates.lengthBytes[u] = lengthBytes
    updates.bufferPage[u] = page
    updates.owned[u] = payloadPages > 0 ? 1 : 0
    updates.ordered[u] = 0
    for (let i = 0; i < payloadPages; i++) crcs[u * CHAIN_OP_PAGES_MAX + i] = view.getUint32(body + Update.size + i * 4, true)
    placement.page = page
    placement.deltaBytes = offsetBytes % PAGE_BYTES
    placement.kind = Owner.UPDATE
    placement.row = u
    return Place.TAKE
  }

  /** The update in row `u` is complete. */
  onUpdate(u: number): string | null {
    const { updates, crcs } = this.#writes
    if (this.#isBeyondLife(updates.deadlineMs[u]!)) {
      this.#writes.abandon(u)
      return 'a moment that is further ahead than a write lives: the clocks of the two nodes differ in their rate, or one has stopped'
    }
    if (updates.kind[u] === RecordKind.WRITE) {
      const end = (updates.offsetBytes[u]! % PAGE_BYTES) + updates.lengthBytes[u]!
      const page = updates.bufferPage[u]!
      let from = updates.offsetBytes[u]! % PAGE_BYTES
      for (let i = 0; from < end; i++) {
        const delta = from % PAGE_BYTES
        const length = Math.min(PAGE_BYTES - delta, end - from)
        if (this.#arena.crc32c(page + i, delta, length) !== crcs[u * CHAIN_OP_PAGES_MAX + i]) {
          this.#writes.abandon(u)
          return 'a page with a wrong checksum'
        }
        from += length
      }
    }
    this.#writes.submit(u)
    return null
  }

  /** The clock of the turn may be from before the update was sent. */
  #isBeyondLife(untilMs: number): boolean {
    return untilMs > this.#queue.nowMs + this.#lifeMs && untilMs > this.#queue.sampleClockMs() + this.#lifeMs
  }

  answerUpdate(peer: number, session: number, requestRow: number, requestGeneration: number, status: number, chainVersion: number): void {
    if (!this.#peers.isUp(peer) || this.#peers.sessionOf(peer) !== session) return
    this.#answers[peer]!.push(requestRow, requestGeneration, status, chainVersion)
    this.#peers.wantsFlush(peer, Lane.ACK)
  }

  gather(peer: number): void {
    const answers = this.#answers[peer]!
    const { view } = this.#arena
    const { set } = UpdateAnswer
    while (answers.length > 0) {
      const count = Math.min(answers.length / 4, ENTRIES_MAX)
      const headBytes = FRAME_BYTES + count * UpdateAnswer.size
      const at = this.#peers.reserve(peer, Lane.ACK, headBytes)
      if (at < 0) return
      putFrame(view, at, PeerFrame.UPDATE_ANSWERS, headBytes, 0)
      for (let i = 0; i < count; i++) {
        const entry = at + FRAME_BYTES + i * UpdateAnswer.size
        set.requestRow(view, entry, answers[i * 4]!)
        set.requestGeneration(view, entry, answers[i * 4 + 1]!)
        set.status(view, entry, answers[i * 4 + 2]!)
        set.chainVersion(view, entry, answers[i * 4 + 3]!)
      }
      if (answers.length === count * 4) answers.length = 0
      else answers.splice(0, count * 4)
      this.#peers.send(peer, Lane.ACK, at, headBytes, 0, 0, 0, Owner.NONE, NONE)
    }
  }

  onRead(peer: number, at: number): string | null {
    const { view } = this.#arena
    const { get } = Read
    const { reads } = this.#reads
    const body = at + FRAME_BYTES
    const slot = get.slot(view, body)
    const firstPage = get.firstPage(view, body)
    const pageCount = get.pageCount(view, body)
    const reason = Read.invalid(view, body)
    if (reason !== null) return reason
    if (slot >= this.#table.slotCount || pageCount === 0 || pageCount > CHAIN_OP_PAGES_MAX || firstPage + pageCount > PAGES_PER_BLOCK) return 'a bad range'
    const r = this.#reads.take(peer, slot)
    if (r < 0) return this.#refuseRead(peer, get.requestRow(view, body), get.requestGeneration(view, body)) ? null : 'too many reads at one time'
    reads.session[r] = this.#peers.sessionOf(peer)
    reads.requestRow[r] = get.requestRow(view, body)
    reads.requestGeneration[r] = get.requestGeneration(view, body)
    reads.slot[r] = slot
    reads.chainVersion[r] = get.chainVersion(view, body)
    reads.volume[r] = get.volume(view, body)
    reads.layer[r] = get.layer(view, body)
    reads.index[r] = get.index(view, body)
    reads.firstPage[r] = firstPage
    reads.pageCount[r] = pageCount
    reads.bufferPage[r] = NONE
    reads.owned[r] = 0
    reads.receivedMs[r] = this.#queue.nowMs
    this.#reads.submit(r)
    return null
  }

  /** No row for the read: its client tries again. False: it asks for more than anybody would. */
  #refuseRead(peer: number, requestRow: number, requestGeneration: number): boolean {
    this.#counters.readsRefused++
    const waiting = this.#refusedReads[peer]!
    if (waiting.length === 0 && this.#sendReadRefusal(peer, requestRow, requestGeneration)) return true
    return waiting.push(requestRow, requestGeneration) <= REFUSED_READS_MAX * 2
  }

  #sendReadRefusal(peer: number, requestRow: number, requestGeneration: number): boolean {
    const { view } = this.#arena
    const headBytes = FRAME_BYTES + ReadAnswer.size
    const at = this.#peers.reserve(peer, Lane.BULK, headBytes)
    if (at < 0) return false
    const { set } = ReadAnswer
    const answer = at + FRAME_BYTES
    putFrame(view, at, PeerFrame.READ_ANSWER, headBytes, 0)
    set.requestRow(view, answer, requestRow)
    set.requestGeneration(view, answer, requestGeneration)
    set.status(view, answer, Status.BUSY)
    set.chainVersion(view, answer, 0)
    set.payloadCrc(view, answer, 0)
    set.detail(view, answer, 0)
    this.#peers.send(peer, Lane.BULK, at, headBytes, 0, 0, 0, Owner.NONE, NONE)
    return true
  }

  answerRead(r: number, status: number, detail: number): void {
    const { reads } = this.#reads
    const peer = reads.peer[r]!
    if (!this.#peers.isUp(peer) || this.#peers.sessionOf(peer) !== reads.session[r]) {
      this.#reads.release(r)
      return
    }
    const waiting = this.#readAnswers[peer]!
    if (waiting.length > 0 || !this.#sendReadAnswer(peer, r, status, detail)) waiting.push(r, status, detail)
  }

  #sendReadAnswer(peer: number, r: number, status: number, detail: number): boolean {
    const { reads } = this.#reads
    const { view } = this.#arena
    const headBytes = FRAME_BYTES + ReadAnswer.size
    const at = this.#peers.reserve(peer, Lane.BULK, headBytes)
    if (at < 0) return false
    const payloadBytes = status === Status.SUCCESS ? reads.pageCount[r]! * PAGE_BYTES : 0
    const page = reads.bufferPage[r]!
    const body = at + FRAME_BYTES
    const { set } = ReadAnswer
    putFrame(view, at, PeerFrame.READ_ANSWER, headBytes, payloadBytes)
    set.requestRow(view, body, reads.requestRow[r]!)
    set.requestGeneration(view, body, reads.requestGeneration[r]!)
    set.status(view, body, status)
    set.chainVersion(view, body, this.#table.version[reads.slot[r]!]!)
    set.payloadCrc(view, body, payloadBytes > 0 ? this.#arena.crc32c(page, 0, payloadBytes) : 0)
    set.detail(view, body, detail)
    if (payloadBytes > 0) this.#peers.send(peer, Lane.BULK, at, headBytes, page, 0, payloadBytes, Owner.READ, r)
    else {
      this.#peers.send(peer, Lane.BULK, at, headBytes, 0, 0, 0, Owner.NONE, NONE)
      this.#reads.release(r)
    }
    return true
  }

  laneRoom(peer: number): void {
    const waiting = this.#readAnswers[peer]!
    let sent = 0
    while (sent < waiting.length && this.#sendReadAnswer(peer, waiting[sent]!, waiting[sent + 1]!, waiting[sent + 2]!)) sent += 3
    waiting.splice(0, sent)
    const refused = this.#refusedReads[peer]!
    let told = 0
    while (told < refused.length && this.#sendReadRefusal(peer, refused[told]!, refused[told + 1]!)) told += 2
    refused.splice(0, told)
  }

  down(peer: number): void {
    this.#answers[peer]!.length = this.#refusedReads[peer]!.length = 0
    const waiting = this.#readAnswers[peer]!.splice(0)
    for (let i = 0; i < waiting.length; i += 3) this.#reads.release(waiting[i]!)
  }
}
