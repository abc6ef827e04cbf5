/**
 * Calls between reactors for plain async code (resync, flush, repair): a small request in one head, an answer of any size in pieces that go
 * straight into the caller's buffer. Both on the BULK lane.
 *
 * The caller has the memory before it asks, so a receiver never stops reading; the answerer holds its answer in place until it is sent.
 */
import { columns, f64, i32, u32 } from '../base/columns.ts'
import { Status } from '../base/status.ts'
import { PAGE_BYTES } from '../base/units.ts'
import type { IoQueue } from '../env/ioqueue.ts'
import { Call, CallData, FRAME_BYTES, Lane, PeerFrame, putFrame } from '../wire/peer.ts'
import { Owner, Place, type Placement } from './lane.ts'
import { PEERS_MAX, type Peers } from './peers.ts'
import { NONE } from './records.ts'
import { Shares } from './shares.ts'

/** Calls of this reactor under way. */
export const CALLS_MAX = 256
/** Calls of one peer being answered here. */
const SERVED_MAX = 64
/** A peer that has said nothing to a call for so long is stuck: its session is closed, as the buffer of the answer can be had back in no other way. */
const CALL_MS_MAX = 30_000
const PIECE_BYTES = 256 * 1024
const GONE = -2

export interface CallResult {
  readonly status: number
  /** Bytes of the answer in the caller's buffer. */
  readonly lengthBytes: number
}

/** What a served call answers with. `free` is called once, when the memory is read no more. */
export interface CallAnswer {
  readonly status: number
  readonly page: number
  readonly lengthBytes: number
  readonly free: () => void
}

/** `capacityBytes`: most that the answer may be long. */
export type CallHandler = (peer: number, args: Uint8Array, capacityBytes: number) => Promise<CallAnswer> | CallAnswer

export function answerOf(status: number): CallAnswer {
  return { status, page: 0, lengthBytes: 0, free: () => {} }
}

interface Answering {
  piecesLeft: number
  readonly free: () => void
}

export class Calls {
  readonly #queue: IoQueue
  readonly #peers: Peers
  readonly #handlers = new Map<number, CallHandler>()
  readonly #calls = columns('call', CALLS_MAX, { peer: i32, page: i32, capacityBytes: u32, heardMs: f64 })
  readonly #resolve: Array<((result: CallResult) => void) | undefined> = new Array(CALLS_MAX)
  readonly #answering: Array<Answering | undefined> = []
  readonly #freeAnswers: number[] = []
  readonly #served = new Int32Array(PEERS_MAX)
  /** Async code that waits for room on the BULK lane of a peer. */
  readonly #roomWaiters: Array<Array<() => void>> = Array.from({ length: PEERS_MAX }, () => [])
  readonly #rowWaiters: Array<() => void> = []
  /** Of the rows, by peer. */
  readonly #shares = new Shares(PEERS_MAX, CALLS_MAX)

  constructor(options: { queue: IoQueue; peers: Peers }) {
    this.#queue = options.queue
    this.#peers = options.peers
  }

  serve(kind: number, handler: CallHandler): void {
    this.#handlers.set(kind, handler)
  }

  /**
   * Asks a peer. The answer lands in the arena from `page` on; the buffer is the call's until it resolves.
   * CONNECTION_LOST when the session ends first, NODE_UNREACHABLE when there is none.
   */
  async call(peer: number, kind: number, args: Uint8Array, page: number, capacityBytes: number): Promise<CallResult> {
    const headBytes = FRAME_BYTES + Call.size + args.length
    const session = this.#peers.sessionOf(peer)
    // a peer that does not answer has a share of the rows, not all
    while (!this.#shares.take(peer)) await new Promise<void>((resolve) => this.#rowWaiters.push(resolve))
    const row = this.#calls.alloc()
    this.#calls.peer[row] = peer
    let at = this.#reserve(peer, session, headBytes)
    while (at === -1) {
      await this.#awaitRoom(peer)
      at = this.#reserve(peer, session, headBytes)
    }
    if (at === GONE) {
      this.#freeRow(row)
      return { status: Status.NODE_UNREACHABLE, lengthBytes: 0 }
    }
    this.#calls.page[row] = page
    this.#calls.capacityBytes[row] = capacityBytes
    this.#calls.heardMs[row] = this.#queue.nowMs
    const { view, bytes } = this.#queue.arena
    putFrame(view, at, PeerFrame.CALL, headBytes, 0)
    Call.encode(view, at + FRAME_BYTES, { requestRow: row, requestGeneration: this.#calls.generation[row]! >>> 0, kind, capacityBytes })
    bytes.set(args, at + FRAME_BYTES + Call.size)
    const result = new Promise<CallResult>((resolve) => {
      this.#resolve[row] = resolve
    })
    this.#peers.send(peer, Lane.BULK, at, headBytes, 0, 0, 0, Owner.NONE, NONE)
    this.#peers.flush()
    return result
  }

  /** Room for a head on the peer's BULK lane in that session, to be used at once; -1: none now, GONE: the session is over. */
  #reserve(peer: number, session: number, headBytes: number): number {
    if (!this.#peers.isUp(peer) || this.#peers.sessionOf(peer) !== session) return GONE
    return this.#peers.reserve(peer, Lane.BULK, headBytes)
  }

  #awaitRoom(peer: number): Promise<void> {
    return new Promise((resolve) => this.#roomWaiters[peer]!.push(resolve))
  }

  #freeRow(row: number): void {
    this.#shares.giveBack(this.#calls.peer[row]!)
    this.#calls.free(row)
    if (this.#rowWaiters.length === 0) return
    this.#queue.asyncPending = true
    // each looks whether it is its peer's turn
    for (const waiter of this.#rowWaiters.splice(0)) waiter()
  }

  #end(row: number, status: number, lengthBytes: number): void {
    const resolve = this.#resolve[row]!
    this.#resolve[row] = undefined
    this.#freeRow(row)
    this.#queue.asyncPending = true
    resolve({ status, lengthBytes })
  }

  get underWay(): number {
    return this.#calls.inUse
  }

  laneRoom(peer: number): void {
    const waiters = this.#roomWaiters[peer]!
    if (waiters.length === 0) return
    this.#queue.asyncPending = true
    for (const resolve of waiters.splice(0)) resolve()
  }

  /** Now and then: peers that do not answer. */
  tick(): void {
    if (this.#calls.inUse === 0) return
    const { nowMs } = this.#queue
    for (let row = 0; row < CALLS_MAX; row++) {
      if (!this.#calls.isUsed(row) || this.#resolve[row] === undefined || nowMs - this.#calls.heardMs[row]! < CALL_MS_MAX) continue
      const peer = this.#calls.peer[row]!
      this.#peers.abort(peer, 'it does not answer a call')
    }
  }

  down(peer: number): void {
    this.laneRoom(peer)
    for (let row = 0; row < CALLS_MAX; row++) {
      if (this.#calls.isUsed(row) && this.#resolve[row] !== undefined && this.#calls.peer[row] === peer) this.#end(row, Status.CONNECTION_LOST, 0)
    }
    this.#served[peer] = 0
  }

  // ---- answering -----------------------------------------------------------------------------------------------------------

  onCall(peer: number, at: number, headBytes: number): string | null {
    const { view, bytes } = this.#queue.arena
    const body = at + FRAME_BYTES
    const { requestRow, requestGeneration, kind, capacityBytes } = Call.decode(view, body)
    const handler = this.#handlers.get(kind)
    if (handler === undefined) return `call of kind ${kind}`
    const session = this.#peers.sessionOf(peer)
    const args = bytes.slice(body + Call.size, at + headBytes)
    this.#served[peer]!++
    const isTooMany = this.#served[peer]! > SERVED_MAX
    void this.#answer(peer, session, requestRow, requestGeneration, isTooMany ? answerOf(Status.BUSY) : handler(peer, args, capacityBytes))
    this.#queue.asyncPending = true
    return null
  }

  async #answer(peer: number, session: number, requestRow: number, requestGeneration: number, promised: Promise<CallAnswer> | CallAnswer): Promise<void> {
    const { status, page, lengthBytes, free } = await promised
    const { view } = this.#queue.arena
    const headBytes = FRAME_BYTES + CallData.size
    const pieces = Math.max(1, Math.ceil(lengthBytes / PIECE_BYTES))
    const row = this.#freeAnswers.pop() ?? this.#answering.length
    const answering: Answering = { piecesLeft: pieces, free }
    this.#answering[row] = answering
    for (let piece = 0; piece < pieces; piece++) {
      let at = this.#reserve(peer, session, headBytes)
      while (at === -1) {
        await this.#awaitRoom(peer)
        at = this.#reserve(peer, session, headBytes)
      }
      if (at === GONE) {
        answering.piecesLeft -= pieces - piece
        if (answering.piecesLeft === 0) this.#answered(row)
        return
      }
      const offsetBytes = piece * PIECE_BYTES
      const bytesHere = Math.min(PIECE_BYTES, lengthBytes - offsetBytes)
      const payloadPage = page + offsetBytes / PAGE_BYTES
      putFrame(view, at, PeerFrame.CALL_DATA, headBytes, bytesHere)
      CallData.encode(view, at + FRAME_BYTES, {
        requestRow,
        requestGeneration,
        offsetBytes,
        payloadCrc: bytesHere > 0 ? this.#queue.arena.crc32c(payloadPage, 0, bytesHere) : 0,
        last: piece === pieces - 1 ? 1 : 0,
        status,
        lengthBytes,
      })
      this.#peers.send(peer, Lane.BULK, at, headBytes, payloadPage, 0, bytesHere, Owner.CALL_ANSWER, row)
      this.#peers.flush()
    }
    if (this.#peers.isUp(peer) && this.#peers.sessionOf(peer) === session) this.#served[peer]!--
  }

  /** A piece has been sent (or will not be). */
  pieceSent(row: number): void {
    if (--this.#answering[row]!.piecesLeft === 0) this.#answered(row)
  }

  #answered(row: number): void {
    const { free } = this.#answering[row]!
    this.#answering[row] = undefined
    this.#freeAnswers.push(row)
    free()
  }

  // ---- an answer arrives -----------------------------------------------------------------------------------------------------

  /** The call a piece is for; NONE when it is none of this session's. */
  #rowOf(peer: number, body: number): number {
    const { view } = this.#queue.arena
    const row = CallData.get.requestRow(view, body)
    if (row >= CALLS_MAX || !this.#calls.isUsed(row) || this.#resolve[row] === undefined) return NONE
    if (this.#calls.generation[row]! >>> 0 !== CallData.get.requestGeneration(view, body)) return NONE
    return this.#calls.peer[row] === peer ? row : NONE
  }

  place(peer: number, at: number, payloadBytes: number, placement: Placement): number {
    const { view } = this.#queue.arena
    const body = at + FRAME_BYTES
    const row = this.#rowOf(peer, body)
    const offsetBytes = CallData.get.offsetBytes(view, body)
    if (row === NONE || offsetBytes + payloadBytes > this.#calls.capacityBytes[row]!) return Place.REFUSE
    placement.page = this.#calls.page[row]!
    placement.deltaBytes = offsetBytes
    placement.kind = Owner.CALL
    placement.row = row
    return Place.TAKE
  }

  onData(peer: number, at: number, payloadBytes: number): string | null {
    const { view, crc32c } = { view: this.#queue.arena.view, crc32c: (page: number, delta: number) => this.#queue.arena.crc32c(page, delta, payloadBytes) }
    const body = at + FRAME_BYTES
    const row = this.#rowOf(peer, body)
    if (row === NONE) return 'an answer nobody waits for'
    const { offsetBytes, payloadCrc, last, status, lengthBytes } = CallData.decode(view, body)
    if (lengthBytes > this.#calls.capacityBytes[row]! || offsetBytes + payloadBytes > lengthBytes) return 'an answer longer than asked for'
    if (payloadBytes > 0 && crc32c(this.#calls.page[row]!, offsetBytes) !== payloadCrc) return 'a piece with a wrong checksum'
    this.#calls.heardMs[row] = this.#queue.nowMs
    if (last === 1) this.#end(row, status, lengthBytes)
    return null
  }
}
