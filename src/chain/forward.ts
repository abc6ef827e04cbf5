/**
 * Records on their way down the chain, and what comes back: forwards, acknowledgements, refusals, credits (protocol 11, 12, 14).
 *
 *   predecessor --FORWARD (credit of hop k)--> here --FORWARD (credit of hop k + 1)--> successor
 *               <--ACKS, CREDITS, REFUSALS---       <--ACKS, CREDITS, REFUSALS--------
 *
 * A slot's records go out in order; a slot that finds no credit or no room on the lane waits in line and goes on from where it stopped.
 * Acknowledgements are cumulative, so a slot that is to be acknowledged is only marked, and the newest is sent.
 */
import { FlightEvent } from '../base/flight.ts'
import { CHAIN_OP_PAGES_MAX, KiB, PAGE_BYTES, PAGES_PER_BLOCK } from '../base/units.ts'
import type { Arena, PageNumber } from '../env/arena.ts'
import type { IoQueue } from '../env/ioqueue.ts'
import { CHAIN_ENTRIES_MAX, ReplicaState } from '../placement/chain.ts'
import { CHANNELS_PER_CLIENT } from '../store/channel-rows.ts'
import { compareIds } from '../store/digest.ts'
import { RecordKind } from '../store/store.ts'
import { Ack, Credit, Forward, ForwardFlag, ForwardRefusal, FRAME_BYTES, Lane, PeerFrame, putFrame } from '../wire/peer.ts'
import type { Counters } from './counters.ts'
import { type Credits, HOPS } from './credits.ts'
import { Owner, Place, type Placement } from './lane.ts'
import type { PayloadPool } from './payload-pool.ts'
import { PEERS_MAX, type Peers } from './peers.ts'
import { NONE, RecordState, svOf, versionOf } from './records.ts'
import type { Replicas } from './replica.ts'
import type { ChainTable } from './table.ts'

/** Entries of one ACKS or FORWARD_REFUSALS frame. */
const ENTRIES_MAX = 500
const HEAD_BYTES = FRAME_BYTES + Forward.size

interface Stall {
  retryAtMs: number
  waitMs: number
  /** The slot's newest record when the refusal came: what was refused is not above it. Older ones may still be acknowledged. */
  untilSv: number
}

export interface ForwardSettings {
  readonly retryFirstMs: number
  readonly retryMaxMs: number
}

export class Forwarding {
  readonly #queue: IoQueue
  readonly #arena: Arena
  readonly #pool: PayloadPool
  readonly #table: ChainTable
  readonly #replicas: Replicas
  readonly #peers: Peers
  readonly #credits: Credits
  readonly #counters: Counters
  readonly #settings: ForwardSettings
  readonly #needTable: (slot: number, version: number) => void
  readonly #creditGranted: (peer: number, hop: number) => void

  /** Lists of slots: those that wait for credit of (peer, hop) at peer * (HOPS + 1) + hop, for room on the lane at hop HOPS. */
  readonly #waitFirst = new Int32Array(PEERS_MAX * (HOPS + 1)).fill(NONE)
  readonly #waitLast = new Int32Array(PEERS_MAX * (HOPS + 1)).fill(NONE)
  #waitNext = new Int32Array(0)
  #isWaiting = new Uint8Array(0)
  #waitList = new Int32Array(0)
  /** Lists of slots to be acknowledged to a peer. */
  readonly #ackFirst = new Int32Array(PEERS_MAX).fill(NONE)
  readonly #ackLast = new Int32Array(PEERS_MAX).fill(NONE)
  #ackNext = new Int32Array(0)
  #isAckDue = new Uint8Array(0)
  /** Bit per hop whose grant the peer is to be told. */
  readonly #creditDue = new Int32Array(PEERS_MAX)
  /** Refusals to be sent, per peer: slot, status. Bounded by the records in memory. */
  readonly #refusals: number[][] = Array.from({ length: PEERS_MAX }, () => [])
  /** Slots whose forward was refused by the successor. */
  readonly #stalls = new Map<number, Stall>()

  constructor(options: {
    queue: IoQueue
    pool: PayloadPool
    table: ChainTable
    replicas: Replicas
    peers: Peers
    credits: Credits
    counters: Counters
    settings: ForwardSettings
    needTable: (slot: number, version: number) => void
    creditGranted: (peer: number, hop: number) => void
  }) {
    this.#queue = options.queue
    this.#arena = options.queue.arena
    this.#pool = options.pool
    this.#table = options.table
    this.#replicas = options.replicas
    this.#peers = options.peers
    this.#credits = options.credits
    this.#counters = options.counters
    this.#settings = options.settings
    this.#needTable = options.needTable
    this.#creditGranted = options.creditGranted
  }

  resize(slotCount: number): void {
    this.#waitNext = new Int32Array(slotCount)
    this.#isWaiting = new Uint8Array(slotCount)
    this.#waitList = new Int32Array(slotCount)
    this.#ackNext = new Int32Array(slotCount)
    this.#isAckDue = new Uint8Array(slotCount)
  }

  // ---- down the chain ----------------------------------------------------------------------------------------------------

  /** Sends the slot's records from `forwardNext` on, as far as credit and room reach. */
  forward(slot: number): void {
    const table = this.#table
    const { records, forwardNext } = this.#replicas
    const peer = this.#peers.indexOf(table.successorNode[slot]!)
    const hop = table.ownPosition[slot]! + 1
    if (this.#isWaiting[slot] === 1) {
      const list = this.#waitList[slot]!
      if (peer !== NONE && (list === peer * (HOPS + 1) + hop || list === peer * (HOPS + 1) + HOPS)) return
      this.#leaveList(slot)
    }
    if (peer === NONE) return
    for (let row = forwardNext[slot]!; row !== NONE; row = forwardNext[slot]!) {
      const payloadBytes = records.kind[row] === RecordKind.WRITE ? records.pageCount[row]! * PAGE_BYTES : 0
      if (!this.#credits.take(peer, hop, payloadBytes)) {
        this.#counters.forwardsWaitedForCredit++
        this.#await(slot, peer, hop)
        return
      }
      const headBytes = HEAD_BYTES + (payloadBytes / PAGE_BYTES) * 4
      const at = this.#peers.reserve(peer, Lane.FORWARD, headBytes)
      if (at < 0) {
        this.#credits.giveBack(peer, hop, payloadBytes)
        this.#await(slot, peer, HOPS)
        return
      }
      this.#encode(row, slot, hop, at, headBytes, payloadBytes)
      records.sends[row]!++
      this.#peers.send(peer, Lane.FORWARD, at, headBytes, payloadBytes > 0 ? records.payloadPage[row]! : 0, 0, payloadBytes, Owner.RECORD, row)
      this.#count(slot, row, payloadBytes)
      forwardNext[slot] = records.next[row]!
    }
  }

  #encode(row: number, slot: number, hop: number, at: number, headBytes: number, payloadBytes: number): void {
    const { view } = this.#arena
    const { records } = this.#replicas
    const { set } = Forward
    const body = at + FRAME_BYTES
    putFrame(view, at, PeerFrame.FORWARD, headBytes, payloadBytes)
    set.slot(view, body, slot)
    set.chainVersion(view, body, this.#table.version[slot]!)
    set.disk(view, body, this.#table.successorDisk[slot]!)
    set.hop(view, body, hop)
    set.kind(view, body, records.kind[row]!)
    set.flags(view, body, records.durable[row] === 1 ? ForwardFlag.DURABLE : 0)
    set.prevHi(view, body, records.prevHigh[row]!)
    set.prevLo(view, body, records.prevLow[row]!)
    set.idHi(view, body, records.idHigh[row]!)
    set.idLo(view, body, records.idLow[row]!)
    set.volume(view, body, records.volume[row]!)
    set.layer(view, body, records.layer[row]!)
    set.index(view, body, records.index[row]!)
    set.firstPage(view, body, records.firstPage[row]!)
    set.pageCount(view, body, records.pageCount[row]!)
    set.clientHigh(view, body, records.clientHigh[row]!)
    set.clientLow(view, body, records.clientLow[row]!)
    set.channel(view, body, records.channel[row]!)
    set.seq(view, body, records.seq[row]!)
    const reserved = body + Forward.offsets.reserved
    for (let i = 0; i < 16; i += 4) view.setUint32(reserved + i, 0)
    const crcs = records.crcs
    const from = row * CHAIN_OP_PAGES_MAX
    const list = body + Forward.size
    for (let i = 0; i * PAGE_BYTES < payloadBytes; i++) view.setUint32(list + i * 4, crcs[from + i]!, true)
  }

  #count(slot: number, row: number, payloadBytes: number): void {
    const { records } = this.#replicas
    const counters = this.#counters
    this.#queue.flight.record(FlightEvent.FORWARDED, slot, this.#table.version[slot], records.sv[row])
    counters.forwards++
    counters.forwardBytes += payloadBytes
    if (payloadBytes > 64 * KiB) counters.forwardsTo1m++
    else if (payloadBytes > 4 * KiB) counters.forwardsTo64k++
    else if (payloadBytes > 0) counters.forwardsTo4k++
    if (records.state[row]! & RecordState.FORWARDED) counters.reforwards++
    records.state[row]! |= RecordState.FORWARDED
    const successor = slot * CHAIN_ENTRIES_MAX + this.#table.ownPosition[slot]! + 1
    if (this.#table.entryState[successor] === ReplicaState.SYNCING) counters.syncingForwardBytes += payloadBytes
  }

  #await(slot: number, peer: number, hop: number): void {
    const list = peer * (HOPS + 1) + hop
    this.#isWaiting[slot] = 1
    this.#queue.waits.credit.enter(this.#queue.nowMs)
    this.#waitList[slot] = list
    this.#waitNext[slot] = NONE
    const last = this.#waitLast[list]!
    if (last === NONE) this.#waitFirst[list] = slot
    else this.#waitNext[last] = slot
    this.#waitLast[list] = slot
  }

  #goesOn(slot: number): void {
    this.#isWaiting[slot] = 0
    this.#queue.waits.credit.leave(this.#queue.nowMs)
  }

  /** The slot has another successor, or another hop number, than when it began to wait. */
  #leaveList(slot: number): void {
    const list = this.#waitList[slot]!
    let before = NONE
    for (let other = this.#waitFirst[list]!; other !== slot; other = this.#waitNext[other]!) before = other
    const next = this.#waitNext[slot]!
    if (before === NONE) this.#waitFirst[list] = next
    else this.#waitNext[before] = next
    if (this.#waitLast[list] === slot) this.#waitLast[list] = before
    this.#goesOn(slot)
  }

  /** The slots of a list go on, in the order they came, until one has to wait again. */
  #goOn(list: number): void {
    for (let slot = this.#waitFirst[list]!; slot !== NONE; slot = this.#waitFirst[list]!) {
      const next = this.#waitNext[slot]!
      this.#waitFirst[list] = next
      if (next === NONE) this.#waitLast[list] = NONE
      this.#goesOn(slot)
      this.forward(slot)
      if (this.#isWaiting[slot] === 1) return
    }
  }

  #clearWaiting(peer: number): void {
    for (let list = peer * (HOPS + 1); list < (peer + 1) * (HOPS + 1); list++) {
      for (let slot = this.#waitFirst[list]!; slot !== NONE; slot = this.#waitNext[slot]!) this.#goesOn(slot)
      this.#waitFirst[list] = this.#waitLast[list] = NONE
    }
  }

  laneRoom(peer: number): void {
    this.#goOn(peer * (HOPS + 1) + HOPS)
  }

  // ---- a forward arrives ---------------------------------------------------------------------------------------------------

  /** Checks every field of the head; takes a record row, its credit, and pages for the payload. */
  place(peer: number, at: number, headBytes: number, payloadBytes: number, placement: Placement): number {
    const { view } = this.#arena
    const { get } = Forward
    const { records } = this.#replicas
    const body = at + FRAME_BYTES
    const slot = get.slot(view, body)
    const hop = get.hop(view, body)
    const kind = get.kind(view, body)
    const firstPage = get.firstPage(view, body)
    const pageCount = get.pageCount(view, body)
    const hasPages = kind === RecordKind.WRITE || kind === RecordKind.ZERO
    const payloadPages = kind === RecordKind.WRITE ? pageCount : 0
    if (
      Forward.invalid(view, body) !== null ||
      slot >= this.#table.slotCount ||
      hop === 0 ||
      hop >= HOPS ||
      kind < RecordKind.WRITE ||
      kind > RecordKind.REMOVE ||
      get.channel(view, body) >= CHANNELS_PER_CLIENT ||
      (get.clientHigh(view, body) !== 0 && get.seq(view, body) === 0) ||
      svOf(get.idHi(view, body), get.idLo(view, body)) === 0 ||
      versionOf(get.idHi(view, body)) > get.chainVersion(view, body) ||
      compareIds(get.idHi(view, body), get.idLo(view, body), get.prevHi(view, body), get.prevLo(view, body)) <= 0 ||
      (hasPages ? pageCount === 0 || firstPage + pageCount > PAGES_PER_BLOCK : pageCount !== 0 || firstPage !== 0) ||
      payloadPages > CHAIN_OP_PAGES_MAX ||
      payloadBytes !== payloadPages * PAGE_BYTES ||
      headBytes !== HEAD_BYTES + payloadPages * 4
    ) {
      return Place.REFUSE
    }
    const row = records.alloc()
    if (row < 0) return Place.WAIT
    const page = payloadPages === 0 ? 0 : this.#pool.alloc(payloadBytes)
    if (page === -1) {
      records.free(row)
      return Place.WAIT
    }
    if (!this.#credits.receive(peer, hop, payloadBytes)) {
      records.free(row)
      if (payloadPages > 0) this.#pool.free(page as PageNumber)
      return Place.REFUSE
    }
    records.slot[row] = slot
    records.chainVersion[row] = get.chainVersion(view, body)
    records.disk[row] = get.disk(view, body)
    records.peer[row] = peer
    records.hop[row] = hop
    records.kind[row] = kind
    records.durable[row] = get.flags(view, body) & ForwardFlag.DURABLE ? 1 : 0
    records.prevHigh[row] = get.prevHi(view, body)
    records.prevLow[row] = get.prevLo(view, body)
    records.idHigh[row] = get.idHi(view, body)
    records.idLow[row] = get.idLo(view, body)
    records.sv[row] = svOf(records.idHigh[row]!, records.idLow[row]!)
    records.volume[row] = get.volume(view, body)
    records.layer[row] = get.layer(view, body)
    records.index[row] = get.index(view, body)
    records.firstPage[row] = firstPage
    records.pageCount[row] = pageCount
    records.clientHigh[row] = get.clientHigh(view, body)
    records.clientLow[row] = get.clientLow(view, body)
    records.channel[row] = get.channel(view, body)
    records.seq[row] = get.seq(view, body)
    records.payloadPage[row] = page
    records.owned[row] = payloadPages > 0 ? 1 : 0
    records.sends[row] = records.state[row] = 0
    records.update[row] = records.pinned[row] = NONE
    const list = body + Forward.size
    const to = row * CHAIN_OP_PAGES_MAX
    for (let i = 0; i < payloadPages; i++) records.crcs[to + i] = view.getUint32(list + i * 4, true)
    placement.page = page
    placement.deltaBytes = 0
    placement.kind = Owner.RECORD
    placement.row = row
    return Place.TAKE
  }

  /** The forward in `row` is complete. */
  receive(row: number): string | null {
    const { records } = this.#replicas
    if (records.kind[row] === RecordKind.WRITE) {
      const first = row * CHAIN_OP_PAGES_MAX
      const page = records.payloadPage[row]!
      for (let i = 0; i < records.pageCount[row]!; i++) {
        if (this.#arena.crc32c(page + i, 0, PAGE_BYTES) === records.crcs[first + i]) continue
        this.#replicas.abandon(row)
        return 'a page with a wrong checksum'
      }
    }
    this.#queue.flight.record(FlightEvent.FORWARD_RECEIVED, records.slot[row], records.chainVersion[row], records.sv[row])
    this.#counters.forwardsReceived++
    this.#replicas.receive(row)
    return null
  }

  // ---- up the chain --------------------------------------------------------------------------------------------------------

  /** Marks the slot: what is committed when the lane sends is acknowledged to its predecessor. */
  acknowledge(slot: number): void {
    if (this.#isAckDue[slot] === 1) return
    const peer = this.#peers.indexOf(this.#table.predecessorNode[slot]!)
    if (peer === NONE) return
    this.#isAckDue[slot] = 1
    this.#ackNext[slot] = NONE
    const last = this.#ackLast[peer]!
    if (last === NONE) this.#ackFirst[peer] = slot
    else this.#ackNext[last] = slot
    this.#ackLast[peer] = slot
    this.#peers.wantsFlush(peer, Lane.ACK)
  }

  refuse(row: number, status: number): void {
    const { records } = this.#replicas
    this.#counters.forwardsRefused++
    const peer = records.peer[row]!
    if (!this.#peers.isUp(peer)) return
    this.#refusals[peer]!.push(records.slot[row]!, status)
    this.#peers.wantsFlush(peer, Lane.ACK)
  }

  creditFreed(peer: number, hop: number, payloadBytes: number): void {
    if (!this.#credits.release(peer, hop, payloadBytes)) return
    this.#creditDue[peer]! |= 1 << hop
    this.#peers.wantsFlush(peer, Lane.ACK)
  }

  /** Puts what has gathered for the peer on its ACK lane, as far as there is room. */
  gather(peer: number): void {
    const peers = this.#peers
    const { view } = this.#arena
    if (this.#creditDue[peer] !== 0) {
      const due = this.#creditDue[peer]!
      let count = 0
      for (let hop = 0; hop < HOPS; hop++) count += (due >> hop) & 1
      const headBytes = FRAME_BYTES + count * Credit.size
      const at = peers.reserve(peer, Lane.ACK, headBytes)
      if (at < 0) return
      putFrame(view, at, PeerFrame.CREDITS, headBytes, 0)
      let entry = at + FRAME_BYTES
      for (let hop = 0; hop < HOPS; hop++) {
        if (((due >> hop) & 1) === 0) continue
        this.#credits.tell(peer, hop)
        Credit.set.hop(view, entry, hop)
        view.setUint32(entry + Credit.offsets.reserved, 0)
        Credit.set.rows(view, entry, this.#credits.grantRows(peer, hop))
        Credit.set.bytes(view, entry, this.#credits.grantBytes(peer, hop))
        entry += Credit.size
      }
      this.#creditDue[peer] = 0
      peers.send(peer, Lane.ACK, at, headBytes, 0, 0, 0, Owner.NONE, NONE)
    }
    while (this.#ackFirst[peer] !== NONE) if (!this.#gatherAcks(peer)) return
    const refusals = this.#refusals[peer]!
    while (refusals.length > 0) {
      const count = Math.min(refusals.length / 2, ENTRIES_MAX)
      const headBytes = FRAME_BYTES + count * ForwardRefusal.size
      const at = peers.reserve(peer, Lane.ACK, headBytes)
      if (at < 0) return
      putFrame(view, at, PeerFrame.FORWARD_REFUSALS, headBytes, 0)
      const taken = refusals.splice(0, count * 2)
      for (let i = 0; i < count; i++) {
        const entry = at + FRAME_BYTES + i * ForwardRefusal.size
        const slot = taken[i * 2]!
        ForwardRefusal.set.slot(view, entry, slot)
        ForwardRefusal.set.chainVersion(view, entry, this.#table.version[slot]!)
        ForwardRefusal.set.status(view, entry, taken[i * 2 + 1]!)
        ForwardRefusal.set.disk(view, entry, 0)
      }
      peers.send(peer, Lane.ACK, at, headBytes, 0, 0, 0, Owner.NONE, NONE)
    }
  }

  #gatherAcks(peer: number): boolean {
    const { view } = this.#arena
    const table = this.#table
    let count = 0
    for (let slot = this.#ackFirst[peer]!; slot !== NONE && count < ENTRIES_MAX; slot = this.#ackNext[slot]!) count++
    const headBytes = FRAME_BYTES + count * Ack.size
    const at = this.#peers.reserve(peer, Lane.ACK, headBytes)
    if (at < 0) return false
    const node = this.#peers.nodeOf(peer)
    let entry = at + FRAME_BYTES
    let slot = this.#ackFirst[peer]!
    for (let i = 0; i < count; i++) {
      const next = this.#ackNext[slot]!
      this.#isAckDue[slot] = 0
      const isStillHis = table.predecessorNode[slot] === node
      // an entry that is for somebody else by now acknowledges nothing
      Ack.set.slot(view, entry, slot)
      Ack.set.chainVersion(view, entry, isStillHis ? table.version[slot]! : 0)
      Ack.set.sv(view, entry, isStillHis ? this.#replicas.committed[slot]! : 0)
      entry += Ack.size
      if (!isStillHis) this.acknowledge(slot)
      slot = next
    }
    this.#ackFirst[peer] = slot
    if (slot === NONE) this.#ackLast[peer] = NONE
    putFrame(view, at, PeerFrame.ACKS, headBytes, 0)
    this.#peers.send(peer, Lane.ACK, at, headBytes, 0, 0, 0, Owner.NONE, NONE)
    return true
  }

  // ---- words from the successor ---------------------------------------------------------------------------------------------

  onAcks(peer: number, at: number, headBytes: number): string | null {
    const { view } = this.#arena
    const table = this.#table
    const node = this.#peers.nodeOf(peer)
    for (let entry = at + FRAME_BYTES; entry < at + headBytes; entry += Ack.size) {
      const slot = Ack.get.slot(view, entry)
      if (slot >= table.slotCount || Ack.invalid(view, entry) !== null) return `an acknowledgement of slot ${slot}`
      if (Ack.get.chainVersion(view, entry) !== table.version[slot] || table.successorNode[slot] !== node) continue
      if (table.ownState[slot]! > ReplicaState.DRAINING) continue
      this.#counters.acks++
      const sv = Ack.get.sv(view, entry)
      if (this.#stalls.size > 0 && sv >= (this.#stalls.get(slot)?.untilSv ?? 0)) this.#stalls.delete(slot)
      this.#replicas.acknowledged(slot, sv)
    }
    return null
  }

  onCredits(peer: number, at: number, headBytes: number): string | null {
    const { view } = this.#arena
    for (let entry = at + FRAME_BYTES; entry < at + headBytes; entry += Credit.size) {
      const hop = Credit.get.hop(view, entry)
      const reason = hop >= HOPS ? `credit for hop ${hop}` : Credit.invalid(view, entry)
      if (reason !== null) return reason
      this.#credits.granted(peer, hop, Credit.get.rows(view, entry), Credit.get.bytes(view, entry))
      if (hop === 0) this.#creditGranted(peer, hop)
      else this.#goOn(peer * (HOPS + 1) + hop)
    }
    return null
  }

  /** The successor did not take a record: the table may tell why; else everything uncommitted goes again after a while. */
  onRefusals(peer: number, at: number, headBytes: number): string | null {
    const { view } = this.#arena
    const table = this.#table
    for (let entry = at + FRAME_BYTES; entry < at + headBytes; entry += ForwardRefusal.size) {
      const slot = ForwardRefusal.get.slot(view, entry)
      if (slot >= table.slotCount) return `a refusal for slot ${slot}`
      const version = ForwardRefusal.get.chainVersion(view, entry)
      if (version > table.version[slot]!) this.#needTable(slot, version)
      if (version < table.version[slot]! || table.successorNode[slot] !== this.#peers.nodeOf(peer)) continue
      const stall = this.#stalls.get(slot)
      const waitMs = stall === undefined ? this.#settings.retryFirstMs : Math.min(stall.waitMs * 2, this.#settings.retryMaxMs)
      const untilSv = this.#replicas.lastSv(slot)
      if (stall === undefined || stall.retryAtMs <= this.#queue.nowMs) this.#stalls.set(slot, { retryAtMs: this.#queue.nowMs + waitMs, waitMs, untilSv })
      else stall.untilSv = untilSv
    }
    return null
  }

  tick(): void {
    if (this.#stalls.size === 0) return
    for (const [slot, stall] of this.#stalls) {
      if (stall.retryAtMs > this.#queue.nowMs) continue
      stall.retryAtMs = this.#queue.nowMs + stall.waitMs
      if (this.#replicas.firstRecord(slot) === NONE) this.#stalls.delete(slot)
      else this.#replicas.reforward(slot)
    }
  }

  // ---- sessions --------------------------------------------------------------------------------------------------------------

  up(peer: number): void {
    this.#credits.start(peer)
    this.#creditDue[peer] = (1 << HOPS) - 1
    this.#peers.wantsFlush(peer, Lane.ACK)
    const node = this.#peers.nodeOf(peer)
    const table = this.#table
    for (let slot = 0; slot < table.slotCount; slot++) if (table.successorNode[slot] === node) this.#replicas.reforward(slot)
  }

  down(peer: number): void {
    this.#clearWaiting(peer)
    for (let slot = this.#ackFirst[peer]!; slot !== NONE; slot = this.#ackNext[slot]!) this.#isAckDue[slot] = 0
    this.#ackFirst[peer] = this.#ackLast[peer] = NONE
    this.#creditDue[peer] = 0
    this.#refusals[peer]!.length = 0
  }
}
