/**
 * Reads at a replica (protocol 18, 19), for operations of this node and for peers:
 * refuse -> wait for the commit of what is staged -> read, verify -> answer, if lease and chain version still hold.
 * A read that names a newer version than this replica's waits for the table.
 *
 * A bad page is fetched from another replica, repaired, and read again.
 *
 * A disk that hangs keeps the buffers of its reads, perhaps for ever. A peer is told that this replica cannot read; a caller of this node gets
 * BUFFER_LOST, leaves the buffer to the disk and reads again into another one.
 */
import { columns, f64, i32, u8, u32 } from '../base/columns.ts'
import { Status } from '../base/status.ts'
import { PAGE_BYTES } from '../base/units.ts'
import type { Arena, PageNumber } from '../env/arena.ts'
import type { IoQueue } from '../env/ioqueue.ts'
import { ReplicaState } from '../placement/chain.ts'
import type { Counters } from './counters.ts'
import { PEERS_MAX } from './peers.ts'
import { NONE, svOf } from './records.ts'
import type { Replicas } from './replica.ts'
import { Shares } from './shares.ts'
import { type ChainTable, NO_STORE } from './table.ts'

export interface ReadHooks {
  /** Outcome of a read of this node. */
  answerLocal(requestRow: number, requestGeneration: number, status: number): void
  /** Outcome of a peer's read: the row stays until `release`, with its buffer when status is SUCCESS. */
  answerPeer(row: number, status: number, detail: number): void
  needTable(slot: number, version: number): void
  repair(slot: number, volume: number, layer: number, index: number, page: number, done: (repaired: boolean) => void): void
}

/** A read waits so long here for a commit, a table or memory, ms; its client asks again then, perhaps another replica. */
const WAIT_MS_MAX = 1000

/** A disk that has failed may keep the reads that it has been given so long; then they are given up without it. */
const HANG_MS = 500

const Phase = {
  NONE: 0,
  /** The disk has the buffer. */
  READING: 1,
  /** Given up, its answer not yet sent; the disk has the buffer. */
  GIVEN_UP: 2,
  /** Given up and answered: row and buffer only wait for the disk. */
  HELD: 3,
} as const

/** Attempts to repair pages for one read before it fails. */
const REPAIRS_MAX = 8

export class Reads {
  readonly reads
  readonly #queue: IoQueue
  readonly #arena: Arena
  readonly #table: ChainTable
  readonly #replicas: Replicas
  readonly #counters: Counters
  readonly #hooks: ReadHooks
  /** Rows held by each peer's reads. */
  readonly ofPeer = new Int32Array(PEERS_MAX)
  /** Rows by the disk that the slot had here when the read came; those of no disk here are refused. */
  readonly #shares: Shares
  readonly #id = new Uint32Array(2)
  /** Reads in the lists of `#waiting`. */
  #waits = 0
  readonly #done: (row: number, status: number, extra: number) => void
  /** Per slot: first of the reads that wait for a commit. */
  #waiting = new Int32Array(0)
  /** Reads that wait for memory or for the store's attention. */
  #stalled: number[] = []
  /** Reads in Phase.HELD. */
  #held = 0
  /** Per store: when its failure was seen; NaN: its reads have been given up. */
  readonly #failedMs: Float64Array

  constructor(options: { queue: IoQueue; table: ChainTable; replicas: Replicas; counters: Counters; hooks: ReadHooks; readsMax: number }) {
    this.#queue = options.queue
    this.#arena = options.queue.arena
    this.#table = options.table
    this.#replicas = options.replicas
    this.#counters = options.counters
    this.#hooks = options.hooks
    const disks = options.replicas.stores.length
    this.#failedMs = new Float64Array(disks)
    this.#shares = new Shares(NO_STORE + 1, options.readsMax)
    this.#shares.isAlone = disks === 1
    this.reads = columns('read', options.readsMax, {
      /** NONE: an operation of this node, which owns the buffer. */
      peer: i32,
      session: i32,
      requestRow: i32,
      requestGeneration: i32,
      slot: i32,
      chainVersion: i32,
      volume: f64,
      layer: u32,
      index: u32,
      firstPage: i32,
      pageCount: i32,
      /** NONE: to be allocated. */
      bufferPage: i32,
      owned: u8,
      repairs: u8,
      waits: u8,
      /** One of Phase; of the disk with that index. */
      phase: u8,
      store: u8,
      /** In whose share the row is. */
      share: u8,
      next: i32,
      receivedMs: f64,
    })
    this.#done = (row, status, extra) => this.#onRead(row, status, extra)
  }

  resize(slotCount: number): void {
    this.#waiting = new Int32Array(slotCount).fill(NONE)
  }

  /** Takes a filled row (all columns but repairs, next). The answer may come inside the call. */
  submit(r: number): void {
    this.reads.repairs[r] = this.reads.waits[r] = this.reads.phase[r] = 0
    this.#attempt(r)
  }

  /** A row for a read of the slot, for that peer (NONE: this node); NONE: there is none now, for this peer or this disk. */
  take(peer: number, slot: number): number {
    const { reads } = this
    const share = this.#table.ownStore[slot]!
    // a peer holds at most as many as are free, so that there are always some left for others
    if ((peer !== NONE && this.ofPeer[peer]! >= this.#shares.free) || !this.#shares.take(share)) return NONE
    const r = reads.alloc()
    reads.peer[r] = peer
    reads.share[r] = share
    if (peer !== NONE) this.ofPeer[peer]!++
    return r
  }

  #attempt(r: number): void {
    const { reads } = this
    const table = this.#table
    const slot = reads.slot[r]!
    const version = table.version[slot]!
    const refusal = this.#refusal(slot, reads.chainVersion[r]!, version)
    if (refusal === Status.CHAIN_VERSION_MISMATCH) {
      this.#wait(r, slot)
      return
    }
    if (refusal !== Status.SUCCESS) {
      this.#counters.readsRefused++
      this.#answer(r, refusal, 0)
      return
    }
    const store = this.#replicas.storeOf(slot)!
    const block = store.findBlock(reads.volume[r]!, reads.layer[r]!, reads.index[r]!)
    const id = this.#id
    store.newestId(block, reads.firstPage[r]!, reads.pageCount[r]!, id)
    if (!this.isCommitted(slot, id[0]!, id[1]!) || this.#replicas.isBeingRemoved(slot, reads.volume[r]!, reads.layer[r]!, reads.index[r]!)) {
      this.#counters.readsWaited++
      this.#wait(r, slot)
      return
    }
    if (reads.bufferPage[r] === NONE) {
      const page = this.#arena.alloc(reads.pageCount[r]! * PAGE_BYTES)
      if (page === -1) {
        this.#stalled.push(r)
        return
      }
      reads.bufferPage[r] = page
      reads.owned[r] = 1
    }
    if (reads.repairs[r] === 0) this.#queue.waits.readQueue.record(this.#queue.nowMs - reads.receivedMs[r]!)
    reads.phase[r] = Phase.READING
    reads.store[r] = table.ownStore[slot]!
    store.read(block, reads.firstPage[r]!, reads.pageCount[r]!, reads.bufferPage[r]!, this.#done, r)
  }

  /** Whether what is staged under that id may be shown (protocol 18). */
  isCommitted(slot: number, idHigh: number, idLow: number): boolean {
    return svOf(idHigh, idLow) <= this.#replicas.committed[slot]!
  }

  /** Until the next commit of the slot, or its next version. */
  #wait(r: number, slot: number): void {
    this.reads.waits[r] = 1
    this.#waits++
    this.reads.next[r] = this.#waiting[slot]!
    this.#waiting[slot] = r
  }

  /** Whether this replica answers reads, as far as its state and its disk go. */
  servesHere(slot: number): boolean {
    return this.#table.ownState[slot] === ReplicaState.SERVING && this.#replicas.storeOf(slot) !== undefined
  }

  #refusal(slot: number, asked: number, version: number): number {
    if (asked < version) return Status.ROUTING_STALE
    if (asked > version) {
      this.#hooks.needTable(slot, asked)
      return Status.CHAIN_VERSION_MISMATCH
    }
    if (this.#table.ownState[slot] !== ReplicaState.SERVING || this.#replicas.storeOf(slot) === undefined) return Status.REQUEST_REFUSED
    return this.#table.leaseValid(this.#queue.nowMs) ? Status.SUCCESS : Status.LEASE_EXPIRED
  }

  #onRead(r: number, status: number, extra: number): void {
    const { reads } = this
    const phase = reads.phase[r]!
    reads.phase[r] = Phase.NONE
    if (phase !== Phase.READING) {
      if (phase === Phase.HELD) {
        this.#held--
        this.#free(r)
      }
      return
    }
    const slot = reads.slot[r]!
    if (status === Status.BUSY) {
      this.#stalled.push(r)
      return
    }
    // the content may have come from memory alone: the lease is looked at after the look at the content
    this.#queue.sampleClockMs()
    const refusal = this.#refusal(slot, reads.chainVersion[r]!, this.#table.version[slot]!)
    if (refusal !== Status.SUCCESS) this.#answer(r, refusal, 0)
    else if (status === Status.SUCCESS) this.#answer(r, Status.SUCCESS, 0)
    else this.#repair(r, status, extra)
    if (this.#stalled.length > 0) this.retryStalled()
  }

  #repair(r: number, status: number, page: number): void {
    const { reads } = this
    if (status !== Status.BLOCK_CORRUPTED || reads.repairs[r]! >= REPAIRS_MAX) {
      this.#answer(r, status, page)
      return
    }
    reads.repairs[r]!++
    this.#hooks.repair(reads.slot[r]!, reads.volume[r]!, reads.layer[r]!, reads.index[r]!, page, (repaired) => {
      if (repaired) this.#counters.readsRepaired++
      if (repaired) this.#attempt(r)
      else this.#answer(r, status, page)
    })
  }

  #answer(r: number, status: number, detail: number): void {
    const { reads } = this
    if (status === Status.SUCCESS) {
      this.#counters.reads++
      this.#counters.readBytes += reads.pageCount[r]! * PAGE_BYTES
      this.#counters.readMs += this.#queue.nowMs - reads.receivedMs[r]!
    }
    if (reads.peer[r] !== NONE) {
      this.#hooks.answerPeer(r, status, detail)
      return
    }
    const requestRow = reads.requestRow[r]!
    const requestGeneration = reads.requestGeneration[r]!
    this.#freeRow(r)
    this.#hooks.answerLocal(requestRow, requestGeneration, status)
  }

  /** A peer's read has been answered (or its peer is gone): row and buffer are free. */
  release(r: number): void {
    this.ofPeer[this.reads.peer[r]!]!--
    if (this.reads.phase[r] === Phase.GIVEN_UP) this.#hold(r)
    else this.#free(r)
  }

  #free(r: number): void {
    const { reads } = this
    if (reads.owned[r] === 1) this.#arena.free(reads.bufferPage[r] as PageNumber)
    reads.owned[r] = 0
    this.#freeRow(r)
  }

  #freeRow(r: number): void {
    this.#shares.giveBack(this.reads.share[r]!)
    this.reads.free(r)
  }

  // ---- disks that hang ---------------------------------------------------------------------------------------------------

  /** What disks have not given back a while after they failed, they may keep. Once per disk: nothing more is read from it. */
  #giveUpHanging(): void {
    const { storeFailed } = this.#replicas
    const { nowMs } = this.#queue
    for (const [store, failedMs] of this.#failedMs.entries()) {
      if (!storeFailed[store] || Number.isNaN(failedMs)) continue
      if (failedMs === 0) this.#failedMs[store] = nowMs
      else if (nowMs - failedMs >= HANG_MS) {
        this.#failedMs[store] = Number.NaN
        for (let r = 0; r < this.reads.rowsMax; r++) {
          if (this.reads.isUsed(r) && this.reads.phase[r] === Phase.READING && this.reads.store[r] === store) this.#giveUp(r)
        }
      }
    }
  }

  #hold(r: number): void {
    this.#held++
    this.reads.phase[r] = Phase.HELD
  }

  #giveUp(r: number): void {
    const { reads } = this
    this.#counters.readsGivenUp++
    if (reads.peer[r] !== NONE) {
      reads.phase[r] = Phase.GIVEN_UP
      this.#hooks.answerPeer(r, Status.READ_FAILED, 0)
      return
    }
    this.#hold(r)
    this.#hooks.answerLocal(reads.requestRow[r]!, reads.requestGeneration[r]!, Status.BUFFER_LOST)
  }

  /** Whether a disk may still write to one of those pages, or read them. */
  isHeld(bufferPage: number, pageCount: number): boolean {
    if (this.#replicas.isHeld(bufferPage, pageCount)) return true
    if (this.#held === 0) return false
    const { reads } = this
    for (let r = 0; r < reads.rowsMax; r++) {
      if (!reads.isUsed(r) || reads.phase[r] !== Phase.HELD) continue
      const first = reads.bufferPage[r]!
      if (first < bufferPage + pageCount && bufferPage < first + reads.pageCount[r]!) return true
    }
    return false
  }

  /** More of the slot is committed, or its version has changed. */
  wake(slot: number): void {
    let r = this.#waiting[slot]!
    if (r === NONE) return
    this.#waiting[slot] = NONE
    while (r !== NONE) {
      const next = this.reads.next[r]!
      this.reads.waits[r] = 0
      this.#waits--
      this.#attempt(r)
      r = next
    }
  }

  /** Now and then: those that have waited for too long. */
  tick(): void {
    this.#giveUpHanging()
    const { reads } = this
    const oldestMs = this.#queue.nowMs - WAIT_MS_MAX
    if (this.#stalled.length > 0) {
      const tooLong = this.#stalled.filter((r) => reads.receivedMs[r]! <= oldestMs)
      this.#stalled = this.#stalled.filter((r) => reads.receivedMs[r]! > oldestMs)
      for (const r of tooLong) this.#refuseLate(r)
    }
    if (this.#waits === 0) return
    for (let r = 0; r < reads.rowsMax; r++) {
      if (!reads.isUsed(r) || reads.waits[r] === 0 || reads.receivedMs[r]! > oldestMs) continue
      const slot = reads.slot[r]!
      let before = NONE
      for (let other = this.#waiting[slot]!; other !== r; other = reads.next[other]!) before = other
      if (before === NONE) this.#waiting[slot] = reads.next[r]!
      else reads.next[before] = reads.next[r]!
      reads.waits[r] = 0
      this.#waits--
      this.#refuseLate(r)
    }
  }

  #refuseLate(r: number): void {
    this.#counters.readsRefused++
    this.#answer(r, Status.BUSY, 0)
  }

  /** Reads that found no memory or a busy store try again. */
  retryStalled(): void {
    if (this.#stalled.length === 0) return
    for (const r of this.#stalled.splice(0)) this.#attempt(r)
  }
}
