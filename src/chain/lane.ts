/**
 * One connection (lane) between two reactors: its state, the ring of what is to be sent, and the stream buffer of what comes; and the peer at its
 * other end.
 *
 *   frames to send     first .. first + inFlight: under way | .. first + count: queued       heads in the ring of bytes, payloads at their owners
 *   stream buffer      start .. end: received and not yet handled; the rest of a payload goes straight to its own place (`placement`)
 *
 * Invariants: what is in flight is told `sent` exactly once, also when the connection ends; a head reserved is committed before anything else is.
 */
import { assert } from '../base/assert.ts'
import type { NodeNumber } from '../base/ids.ts'
import { PAGE_BYTES } from '../base/units.ts'
import { type Handle, type IoQueue, SEGMENTS_MAX, type Tag } from '../env/ioqueue.ts'
import { FrameHeader, type Lane } from '../wire/peer.ts'
import { PeerClock } from './peer-clock.ts'
import { NONE } from './records.ts'

export const IN_BYTES = 64 * 1024
export const OUT_BYTES = 64 * 1024
/** Frames queued or under way on one lane. */
const FRAMES_MAX = 1024
/** One gathered send carries at most about this much. */
const SEND_BYTES = 2 * 1024 * 1024
export const DIAL_FIRST_MS = 50

/** What a frame's payload or a queued send belongs to; meaning of the row by kind is the exchange's. */
export const Owner = { NONE: 0, RECORD: 1, UPDATE: 2, OPERATION: 3, READ: 4, CALL: 5, CALL_ANSWER: 6 } as const

/** Filled by `place`. */
export class Placement {
  page = 0
  deltaBytes = 0
  kind = 0
  row = NONE
}
export const Place = { TAKE: 0, DISCARD: 1, WAIT: 2, REFUSE: 3 } as const

export const LaneState = {
  FREE: 0,
  CONNECTING: 1,
  AWAITS_HELLO: 2,
  AWAITS_ANSWER: 3,
  AWAITS_PROOF: 4,
  AWAITS_WELCOME: 5,
  AWAITS_TURN: 6,
  OPEN: 7,
  CLOSING: 8,
} as const

export class Connection {
  readonly id: number
  state: number = LaneState.FREE
  handle = -1 as Handle
  isDialer = false
  peer: Peer | undefined
  lane: Lane = 0
  session = 0
  incarnation = 0
  openedMs = 0
  ownHello: Uint8Array = new Uint8Array(0)
  peerHello: Uint8Array = new Uint8Array(0)
  closeWhenSent = false
  // receiving
  readonly inPage: number
  start = 0
  end = 0
  receiving = false
  /** A frame waits for memory, or for the session to be up. */
  stalled = false
  /** Payload under way: of the frame at `start`. */
  readonly placement = new Placement()
  payloadLeft = 0
  payloadDone = 0
  discardLeft = 0
  /** When something came last; when ALIVE was last said. */
  heardMs = 0
  saidMs = 0
  // sending: frames [first, first + count) of the ring of frames, the first `inFlight` of them under way
  readonly outPage: number
  ringTail = 0
  ringUsed = 0
  pendingAt = 0
  pendingSkip = 0
  first = 0
  count = 0
  inFlight = 0
  dirty = false
  wantsRoom = false
  readonly headAt = new Int32Array(FRAMES_MAX)
  readonly headBytes = new Int32Array(FRAMES_MAX)
  readonly skipBytes = new Int32Array(FRAMES_MAX)
  readonly payloadPage = new Int32Array(FRAMES_MAX)
  readonly payloadDelta = new Int32Array(FRAMES_MAX)
  readonly payloadBytes = new Int32Array(FRAMES_MAX)
  readonly ownerKind = new Uint8Array(FRAMES_MAX)
  readonly ownerRow = new Int32Array(FRAMES_MAX)

  constructor(id: number, inPage: number, outPage: number) {
    this.id = id
    this.inPage = inPage
    this.outPage = outPage
  }

  /** For a new connection. */
  reset(nowMs: number): void {
    this.start = this.end = this.payloadLeft = this.payloadDone = this.discardLeft = 0
    this.ringTail = this.ringUsed = this.first = this.count = this.inFlight = 0
    this.receiving = this.stalled = this.dirty = this.wantsRoom = this.closeWhenSent = false
    this.placement.row = NONE
    this.peer = undefined
    this.handle = -1 as Handle
    this.openedMs = nowMs
  }

  /** A frame has begun and not ended. */
  get isPartial(): boolean {
    return this.end > this.start || this.payloadLeft > 0 || this.discardLeft > 0
  }

  // ---- the ring of frames to send ------------------------------------------------------------------------------------------

  /** Where to write a head of so many bytes, as an index into the arena's bytes; -1: there is no room now. */
  reserve(headBytes: number): number {
    if (this.count === FRAMES_MAX || this.state === LaneState.CLOSING) return -1
    const toEnd = OUT_BYTES - this.ringTail
    const wraps = headBytes > toEnd
    const skip = wraps ? toEnd : 0
    if (this.ringUsed + skip + headBytes > OUT_BYTES) return -1
    this.pendingSkip = skip
    this.pendingAt = wraps ? 0 : this.ringTail
    return this.outPage * PAGE_BYTES + this.pendingAt
  }

  /** Queues the frame whose head was written at `at`; it is sealed here. */
  commit(queue: IoQueue, at: number, headBytes: number, payloadPage: number, payloadDelta: number, payloadBytes: number, kind: number, row: number): void {
    assert(at === this.outPage * PAGE_BYTES + this.pendingAt, 'a frame that was not reserved')
    FrameHeader.set.crc(queue.arena.view, at, queue.arena.crc32c(this.outPage, this.pendingAt + 4, headBytes - 4))
    const f = (this.first + this.count) % FRAMES_MAX
    this.headAt[f] = this.pendingAt
    this.headBytes[f] = headBytes
    this.skipBytes[f] = this.pendingSkip
    this.payloadPage[f] = payloadPage
    this.payloadDelta[f] = payloadDelta
    this.payloadBytes[f] = payloadBytes
    this.ownerKind[f] = kind
    this.ownerRow[f] = row
    this.count++
    this.ringUsed += this.pendingSkip + headBytes
    this.ringTail = this.pendingAt + headBytes
    this.pendingAt = NONE
  }

  /** Everything queued, as far as one send takes it. Returns its bytes. */
  sendGathered(queue: IoQueue, tag: Tag): number {
    let segments = 0
    let total = 0
    let segmentAt = 0
    let segmentBytes = 0
    let n = 0
    for (; n < this.count && segments < SEGMENTS_MAX - 3 && total < SEND_BYTES; n++) {
      const f = (this.first + n) % FRAMES_MAX
      if (segmentBytes > 0 && this.headAt[f] === segmentAt + segmentBytes) segmentBytes += this.headBytes[f]!
      else {
        if (segmentBytes > 0) {
          queue.segment(this.outPage, segmentAt, segmentBytes)
          segments++
        }
        segmentAt = this.headAt[f]!
        segmentBytes = this.headBytes[f]!
      }
      total += this.headBytes[f]! + this.payloadBytes[f]!
      if (this.payloadBytes[f]! > 0) {
        queue.segment(this.outPage, segmentAt, segmentBytes)
        queue.segment(this.payloadPage[f]!, this.payloadDelta[f]!, this.payloadBytes[f]!)
        segments += 2
        segmentBytes = 0
      }
    }
    if (segmentBytes > 0) queue.segment(this.outPage, segmentAt, segmentBytes)
    this.inFlight = n
    queue.sendSegments(this.handle, tag, this.id)
    return total
  }

  /** The send has ended: its frames' owners are told. */
  endSend(sent: (kind: number, row: number) => void): void {
    const n = this.inFlight
    this.inFlight = 0
    for (let i = 0; i < n; i++) {
      const f = this.first
      this.first = (f + 1) % FRAMES_MAX
      this.count--
      this.ringUsed -= this.skipBytes[f]! + this.headBytes[f]!
      if (this.ownerKind[f] !== Owner.NONE) sent(this.ownerKind[f]!, this.ownerRow[f]!)
    }
  }

  /** The connection has ended: nothing of what is queued will be sent. */
  dropQueued(sent: (kind: number, row: number) => void): void {
    for (; this.count > 0; this.count--, this.first = (this.first + 1) % FRAMES_MAX) {
      if (this.ownerKind[this.first] !== Owner.NONE) sent(this.ownerKind[this.first]!, this.ownerRow[this.first]!)
    }
  }
}

/** Another node of the table, and the present session with it. */
export class Peer {
  readonly index: number
  readonly node: NodeNumber
  address = ''
  /** Incarnation of the process that listens there, by the table. */
  addressOf = 0
  /** All lanes of `session` are open: it may be used. */
  up = false
  /** The session was told to be up, and not yet to be down. */
  told = false
  /** Number of the session that is up, or was; counts this process' sessions with any peer. */
  session = 0
  incarnation = 0
  /** As told in the present session. */
  readonly clock = new PeerClock()
  /** Connections of the present session. */
  readonly lanes: Array<Connection | undefined> = [undefined, undefined, undefined]
  /** Connections of the session that waits for the present one to end (acceptor). */
  readonly next: Connection[] = []
  connections = 0
  /** Since when no session is up. */
  downSinceMs: number
  dialAtMs = 0
  dialWaitMs = DIAL_FIRST_MS

  constructor(index: number, node: NodeNumber, nowMs: number) {
    this.index = index
    this.node = node
    this.downSinceMs = nowMs
  }

  /** Where to connect to; null: the node has no usable address. */
  get target(): { host: string; port: number } | null {
    const colon = this.address.lastIndexOf(':')
    const port = Number(this.address.slice(colon + 1))
    if (colon <= 0 || !Number.isInteger(port) || port < 1 || port > 65_535) return null
    return { host: this.address.slice(0, colon).replace(/^\[|\]$/g, ''), port }
  }
}
