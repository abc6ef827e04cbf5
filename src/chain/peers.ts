/**
 * Sessions between this reactor and those of other nodes: three connections (lane.ts) each, who they are (handshake.ts), dialling, what is sent and
 * received, the end of a session, and whether the process is dead then (death-probe.ts).
 *
 *   node 1 --dials--> node 2      the lower node number dials; a session is up when all three lanes are, and ends when one does
 *
 * Sending: a frame's head is written into the lane's ring, its payload stays where it is; everything queued goes out in one gathered send
 * per lane at the end of the turn; never two sends under way on a socket.
 * Receiving: into the lane's stream buffer; a payload's rest straight into its own place.
 *
 * On the lane of forwards each side says every now and then how far its clock has come (peer-clock.ts), so that updates can name the moment on their
 * receiver's clock until which they may be ordered (protocol 16). Who hears nothing for SILENCE_MS ends the session: also two nodes that live, hold their
 * leases, and cannot reach each other. On any lane, a frame that has begun and of which nothing more comes for as long ends the session too.
 *
 * Invariants: a session's end is told (`down`) only when none of its operations can touch memory any more, and before a new one is
 * told (`up`); every length was checked before it is believed; a peer that sends nonsense loses its connection, with one line in the log.
 */
import { assert } from '../base/assert.ts'
import { FlightEvent } from '../base/flight.ts'
import type { Incarnation, NodeNumber } from '../base/ids.ts'
import { PAGE_BYTES } from '../base/units.ts'
import type { Arena, PageNumber } from '../env/arena.ts'
import { Errno, errnoName, type Handle, type IoQueue, type Tag } from '../env/ioqueue.ts'
import type { ReactorLog } from '../placement/messages.ts'
import { Alive, FRAME_BYTES, FrameHeader, frameInvalid, frameName, HEAD_BYTES_MAX, LANES, Lane, PeerFrame, putFrame } from '../wire/peer.ts'
import type { Counters } from './counters.ts'
import { DeathProbes } from './death-probe.ts'
import { type Authenticator, Handshake } from './handshake.ts'
import { Connection, DIAL_FIRST_MS, IN_BYTES, LaneState, OUT_BYTES, Owner, Peer, Place, type Placement } from './lane.ts'
import type { PeerClock } from './peer-clock.ts'
import { NONE } from './records.ts'
import type { ChainTable } from './table.ts'

/** Other nodes of a cluster that a reactor can know at one time. */
export const PEERS_MAX = 64
/** Inbound connections whose peer is not known yet. */
const HANDSHAKES_MAX = 64
const HANDSHAKE_MS = 5000
const DIAL_MAX_MS = 500
const LOGGED_MAX = 256
/** A node without a session for so long cannot be reached, as far as this node can tell. */
const UNREACHABLE_AFTER_MS = 1000
/** Who hears nothing for so long ends the session. */
const SILENCE_MS = 2000
/** Something is said so often: bounds, too, how old what a peer knows of this node's clock may be. */
const SAID_EVERY_MS = 500

export interface PeerHandlers {
  up(peer: number): void
  down(peer: number): void
  /** Asked for frames with a payload, and for every FORWARD and UPDATE: where the payload of the frame whose head is at `at` goes. WAIT: ask again later. REFUSE: the peer broke a rule. */
  place(peer: number, type: number, at: number, headBytes: number, payloadBytes: number, placement: Placement): number
  /** A complete frame. Returns why the peer must be dropped, or null. */
  frame(peer: number, type: number, at: number, headBytes: number, payloadBytes: number, kind: number, row: number): string | null
  /** The payload of a placed frame will not come. */
  unplaced(kind: number, row: number): void
  /** The send that read the owner's memory has ended. */
  sent(kind: number, row: number): void
  /** The lane is about to send: the place to add what gathers (acknowledgements, credits). */
  gather(peer: number, lane: Lane): void
  /** A lane that had no room has some. */
  laneRoom(peer: number, lane: Lane): void
  /** From now on `clockOf` the peer is known, for as long as the session lasts. */
  clockKnown(peer: number): void
  /** The process is gone: its connections closed, and its host refused a fresh one (design 4). */
  refused(node: NodeNumber, incarnation: Incarnation): void
  readonly log: ReactorLog
}

export class Peers {
  readonly peers: Peer[] = []
  readonly #byNode = new Map<number, Peer>()
  readonly #queue: IoQueue
  readonly #arena: Arena
  readonly #table: ChainTable
  readonly #handshake: Handshake
  readonly #probes: DeathProbes
  readonly #handlers: PeerHandlers
  readonly #counters: Counters
  readonly #connections: Array<Connection | undefined> = []
  readonly #spare: Connection[] = []
  readonly #tags: { accept: Tag; connect: Tag; recv: Tag; send: Tag; close: Tag; refused: Tag }
  #dirty: Connection[] = []
  #flushing: Connection[] = []
  #listener = -1 as Handle
  #accepting = false
  #sessions = 0
  #generation = 0
  #handshakes = 0
  #closed = false
  readonly #logged = new Set<string>()

  constructor(options: { queue: IoQueue; table: ChainTable; authenticate: Authenticator; handlers: PeerHandlers; counters: Counters }) {
    const { queue } = options
    this.#queue = queue
    this.#arena = queue.arena
    this.#table = options.table
    this.#handlers = options.handlers
    this.#counters = options.counters
    this.#tags = {
      accept: queue.register('peer accept', (_row, result) => this.#onAccept(result)),
      connect: queue.register('peer connect', (row, result) => this.#onConnect(row, result)),
      recv: queue.register('peer recv', (row, result) => this.#onRecv(row, result)),
      send: queue.register('peer send', (row, result) => this.#onSend(row, result)),
      close: queue.register('peer close', (row) => this.#onClosed(row)),
      refused: queue.register('peer refused', () => {}),
    }
    this.#probes = new DeathProbes({ queue, peers: this.peers, proven: ({ node }, incarnation) => options.handlers.refused(node, incarnation) })
    this.#handshake = new Handshake({
      arena: queue.arena,
      table: options.table,
      authenticate: options.authenticate,
      hooks: {
        send: (c, at, headBytes) => this.#commit(c, at, headBytes, 0, 0, 0, Owner.NONE, NONE),
        refused: (reason) => {
          this.#counters.connectionsRefused++
          this.#logOnce(`refused ${reason}`, 'a connection on the data port was refused', { reason })
        },
        entered: (c, node) => this.#enter(c, node),
        welcomed: (c) => this.#laneOpen(c.peer!),
      },
    })
  }

  /** Listens; returns the port. Throws IoError. */
  listen(options: { host: string; port: number }): number {
    const { handle, port } = this.#queue.listenTcp(options)
    this.#listener = handle
    this.#accept()
    return port
  }

  /** Index of the node's peer when its session is up, else NONE. */
  indexOf(node: number): number {
    const peer = this.#byNode.get(node)
    return peer?.up ? peer.index : NONE
  }

  sessionOf(index: number): number {
    return this.peers[index]!.session
  }

  isUp(index: number): boolean {
    return this.peers[index]!.up
  }

  nodeOf(index: number): NodeNumber {
    return this.peers[index]!.node
  }

  clockOf(index: number): PeerClock {
    return this.peers[index]!.clock
  }

  /** Nodes of the table, without a session for a while. */
  unreachable(): NodeNumber[] {
    const beforeMs = this.#queue.nowMs - UNREACHABLE_AFTER_MS
    return this.peers.filter(({ up, downSinceMs, node }) => !up && downSinceMs <= beforeMs && this.#table.nodes.has(node)).map(({ node }) => node)
  }

  // ---- who there is ------------------------------------------------------------------------------------------------------

  /** The table's nodes have changed: new ones are dialled, older incarnations are closed. */
  nodesChanged(): void {
    for (const { node, dataAddress, incarnation } of this.#table.nodes.values()) {
      if (node === this.#table.identity.node) continue
      let peer = this.#byNode.get(node)
      peer ??= this.#newPeer(node)
      if (peer === undefined) {
        this.#logOnce(`many ${node}`, 'more nodes than a reactor can know: it has no connection to this one', { node, max: PEERS_MAX })
        continue
      }
      if (peer.incarnation !== 0 && peer.incarnation < incarnation) this.#closeSession(peer)
      if (peer.address !== dataAddress || peer.incarnation < incarnation) {
        peer.dialAtMs = 0
        peer.dialWaitMs = DIAL_FIRST_MS
      }
      peer.address = dataAddress
      peer.addressOf = incarnation
    }
    for (const peer of this.peers) if (!this.#table.nodes.has(peer.node)) this.#closeSession(peer)
    this.#dialDue()
  }

  /** With a place of its own, or that of a node which was removed and of which nothing is left. */
  #newPeer(node: NodeNumber): Peer | undefined {
    const isFull = this.peers.length >= PEERS_MAX
    const gone = isFull ? this.peers.find((peer) => peer.connections === 0 && !peer.told && !this.#table.nodes.has(peer.node)) : undefined
    if (isFull && gone === undefined) return undefined
    const peer = new Peer(gone?.index ?? this.peers.length, node, this.#queue.nowMs)
    if (gone !== undefined) this.#byNode.delete(gone.node)
    this.peers[peer.index] = peer
    this.#byNode.set(node, peer)
    this.#probes.clear(peer)
    return peer
  }

  /** The process is dead or its lease is over: its connections are closed, so that nothing waits in a socket. */
  peerDown(node: number, incarnation: number): void {
    const peer = this.#byNode.get(node)
    if (peer !== undefined && peer.incarnation <= incarnation) this.#closeSession(peer)
  }

  /** Ends the session for a reason of this side; it is dialled again. */
  abort(index: number, reason: string): void {
    const peer = this.peers[index]!
    if (!peer.up) return
    this.#handlers.log('WARN', 'a session with a peer was closed', { node: peer.node, reason })
    this.#closeSession(peer)
  }

  tick(): void {
    const nowMs = this.#queue.nowMs
    for (const c of this.#connections) {
      if (c === undefined) continue
      const isUp = c.state === LaneState.OPEN && c.peer?.up
      if (!isUp && c.state !== LaneState.CLOSING && c.state !== LaneState.AWAITS_TURN && nowMs - c.openedMs > HANDSHAKE_MS) this.#drop(c)
    }
    for (const { up, lanes } of this.peers) {
      if (!up) continue
      this.#listenAndSay(lanes[Lane.FORWARD]!)
      for (const c of lanes) if (c !== undefined && this.#isStuck(c)) this.#bad(c, 'a frame that does not end')
    }
    this.resumeStalled()
    if (!this.#accepting && !this.#closed && this.#listener !== -1) this.#accept()
    this.#dialDue()
    this.#probes.tick()
  }

  #listenAndSay(c: Connection): void {
    const { nowMs } = this.#queue
    if (nowMs - c.heardMs > SILENCE_MS) {
      this.#handlers.log('INFO', 'a peer has been silent, or this node has not listened: the session ends', { node: c.peer?.node, silenceMs: SILENCE_MS })
      this.#drop(c)
    } else if (nowMs - c.saidMs >= SAID_EVERY_MS) this.#sayAlive(c)
  }

  /** Unless the lane has no room; the next tick tries again. */
  #sayAlive(c: Connection): void {
    const headBytes = FRAME_BYTES + Alive.size
    const at = c.reserve(headBytes)
    if (at < 0) return
    const { view } = this.#arena
    const { nowMs } = this.#queue
    c.saidMs = nowMs
    putFrame(view, at, PeerFrame.ALIVE, headBytes, 0)
    Alive.set.clockMs(view, at + FRAME_BYTES, Math.floor(nowMs))
    this.#commit(c, at, headBytes, 0, 0, 0, Owner.NONE, NONE)
  }

  /** This node's clock is looked at anew: that of the turn may be from before the peer has said so. */
  #hearAlive(peer: Peer, at: number): void {
    const wasKnown = peer.clock.isKnown
    peer.clock.learn(Alive.get.clockMs(this.#arena.view, at + FRAME_BYTES), this.#queue.sampleClockMs())
    if (!wasKnown) this.#handlers.clockKnown(peer.index)
  }

  /** A part of a frame, and nothing more for long: its length may have been damaged on the way, and nothing else may ever be said on this lane. */
  #isStuck(c: Connection): boolean {
    return c.receiving && c.isPartial && this.#queue.nowMs - c.heardMs > SILENCE_MS
  }

  /** Memory may have become free: frames that wait for some are looked at again. */
  resumeStalled(): void {
    for (const c of this.#connections) if (c?.stalled && c.peer?.up) this.#resume(c)
  }

  /** Closes everything. */
  close(): void {
    this.#closed = this.#probes.closed = true
    for (const c of this.#connections) if (c !== undefined) this.#drop(c)
    if (this.#listener !== -1) this.#queue.close(this.#listener, this.#tags.refused, NONE)
  }

  // ---- dialling ----------------------------------------------------------------------------------------------------------

  #dialDue(): void {
    if (this.#closed) return
    const nowMs = this.#queue.nowMs
    for (const peer of this.peers) {
      if (peer.node < this.#table.identity.node || peer.connections > 0 || nowMs < peer.dialAtMs || !this.#table.nodes.has(peer.node)) continue
      peer.dialAtMs = nowMs + peer.dialWaitMs
      peer.dialWaitMs = Math.min(peer.dialWaitMs * 2, DIAL_MAX_MS)
      this.#dial(peer)
    }
  }

  #dial(peer: Peer): void {
    const to = peer.target
    if (to === null) {
      this.#logOnce(`address ${peer.node}`, 'a node has no usable data address', { node: peer.node, address: peer.address })
      return
    }
    const session = ++this.#sessions
    for (let lane = 0; lane < LANES; lane++) {
      const c = this.#open()
      if (c === undefined) return
      c.isDialer = true
      c.lane = lane as Lane
      c.session = session
      c.state = LaneState.CONNECTING
      this.#attach(c, peer)
      c.handle = this.#queue.connectTcp(to, this.#tags.connect, c.id)
    }
  }

  #onConnect(id: number, result: number): void {
    const c = this.#connections[id]
    if (c === undefined || c.state !== LaneState.CONNECTING) return
    if (result < 0) {
      if (result === -Errno.ECONNREFUSED) this.#probes.refused(c.peer!)
      this.#drop(c)
      return
    }
    this.#handshake.begin(c)
    this.#recv(c)
  }

  #accept(): void {
    this.#accepting = true
    this.#queue.accept(this.#listener, this.#tags.accept, 0)
  }

  #onAccept(result: number): void {
    this.#accepting = false
    if (this.#closed) {
      if (result >= 0) this.#queue.close(result as Handle, this.#tags.refused, NONE)
      return
    }
    if (result >= 0) {
      const c = this.#handshakes < HANDSHAKES_MAX ? this.#open() : undefined
      if (c === undefined) {
        this.#counters.connectionsRefused++
        this.#logOnce('handshakes', 'too many connections on the data port whose peer is unknown; one was refused', { max: HANDSHAKES_MAX })
        this.#queue.close(result as Handle, this.#tags.refused, NONE)
      } else {
        c.handle = result as Handle
        c.isDialer = false
        c.state = LaneState.AWAITS_HELLO
        this.#handshakes++
        this.#recv(c)
      }
      this.#accept()
    }
    // else: out of descriptors or the like; `tick` tries again
  }

  #open(): Connection | undefined {
    let c = this.#spare.pop()
    if (c === undefined) {
      const inPage = this.#arena.alloc(IN_BYTES)
      const outPage = inPage === -1 ? -1 : this.#arena.alloc(OUT_BYTES)
      if (outPage === -1) {
        if (inPage !== -1) this.#arena.free(inPage as PageNumber)
        this.#logOnce('memory', 'no memory for a connection to a peer', {})
        return undefined
      }
      c = new Connection(this.#connections.length, inPage, outPage)
      this.#connections.push(undefined)
    }
    c.reset(this.#queue.nowMs)
    this.#connections[c.id] = c
    return c
  }

  #attach(c: Connection, peer: Peer): void {
    assert(peer.lanes[c.lane] === undefined, `peer ${peer.node} has lane ${c.lane} already`)
    peer.lanes[c.lane] = c
    peer.connections++
    c.peer = peer
  }

  // ---- sessions ----------------------------------------------------------------------------------------------------------

  /** An authenticated inbound connection takes its place in a session of its peer: the present one, or the next. */
  #enter(c: Connection, node: number): void {
    const peer = this.#byNode.get(node)
    if (peer === undefined) {
      this.#drop(c)
      return
    }
    this.#handshakes--
    const present = peer.lanes.find((lane) => lane !== undefined)
    if (present === undefined || (present.session === c.session && present.incarnation === c.incarnation && present.state !== LaneState.CLOSING)) {
      if (peer.lanes[c.lane] !== undefined) {
        this.#handshakes++
        this.#drop(c)
        return
      }
      this.#welcome(c, peer)
      return
    }
    c.state = LaneState.AWAITS_TURN
    for (const other of peer.next.splice(0)) {
      if (other.session === c.session && other.incarnation === c.incarnation) peer.next.push(other)
      else this.#drop(other)
    }
    // of one lane the first: a peer that dials it twice in one session does not keep to the rules
    if (peer.next.some(({ lane }) => lane === c.lane)) this.#drop(c)
    else peer.next.push(c)
    this.#closeSession(peer)
  }

  #welcome(c: Connection, peer: Peer): void {
    this.#attach(c, peer)
    c.state = LaneState.OPEN
    const at = c.reserve(FRAME_BYTES)
    putFrame(this.#arena.view, at, PeerFrame.WELCOME, FRAME_BYTES, 0)
    this.#commit(c, at, FRAME_BYTES, 0, 0, 0, Owner.NONE, NONE)
    this.#laneOpen(peer)
  }

  #laneOpen(peer: Peer): void {
    const { incarnation } = peer.lanes[0] ?? { incarnation: 0 }
    for (const c of peer.lanes) if (c === undefined || c.state !== LaneState.OPEN) return
    if (peer.lanes.some((c) => c!.incarnation !== incarnation)) {
      this.#closeSession(peer)
      return
    }
    peer.up = peer.told = true
    peer.session = ++this.#generation
    peer.incarnation = incarnation
    peer.dialWaitMs = DIAL_FIRST_MS
    this.#probes.clear(peer)
    this.#counters.sessionsStarted++
    this.#queue.flight.record(FlightEvent.PEER_UP, peer.node, peer.incarnation)
    for (const c of peer.lanes) c!.heardMs = this.#queue.nowMs
    peer.clock.forget()
    this.#sayAlive(peer.lanes[Lane.FORWARD]!)
    this.#handlers.up(peer.index)
    for (const c of peer.lanes) if (c!.stalled) this.#resume(c!)
  }

  // ---- the end of a session ------------------------------------------------------------------------------------------------

  #closeSession(peer: Peer): void {
    if (peer.up) peer.downSinceMs = this.#queue.nowMs
    peer.up = false
    for (const c of peer.lanes) if (c !== undefined) this.#drop(c)
  }

  /** Closes one connection, and with it the session it belongs to. */
  #drop(c: Connection): void {
    if (c.state === LaneState.CLOSING || c.state === LaneState.FREE) return
    const isPeerless = c.peer === undefined
    if (isPeerless && c.state !== LaneState.AWAITS_TURN) this.#handshakes--
    c.state = LaneState.CLOSING
    this.#queue.close(c.handle, this.#tags.close, c.id)
    if (c.peer !== undefined) this.#closeSession(c.peer)
  }

  #bad(c: Connection, reason: string): void {
    const node = c.peer?.node
    this.#logOnce(`bad ${node ?? 'unknown'} ${reason}`, 'a connection on the data port was closed', { reason, ...(node === undefined ? {} : { node }) })
    if (c.state !== LaneState.OPEN) this.#counters.connectionsRefused++
    this.#drop(c)
  }

  #onClosed(id: number): void {
    const c = this.#connections[id]
    assert(c !== undefined && c.state === LaneState.CLOSING, `connection ${id} closed twice`)
    if (c.placement.row !== NONE) {
      const { kind, row } = c.placement
      c.placement.row = NONE
      this.#handlers.unplaced(kind, row)
    }
    c.dropQueued(this.#handlers.sent)
    const { peer } = c
    for (const other of this.peers) {
      const waiting = other.next.indexOf(c)
      if (waiting >= 0) other.next.splice(waiting, 1)
    }
    c.state = LaneState.FREE
    c.peer = undefined
    this.#connections[id] = undefined
    this.#spare.push(c)
    if (peer === undefined) return
    peer.lanes[c.lane] = undefined
    if (--peer.connections === 0) this.#sessionEnded(peer)
  }

  #sessionEnded(peer: Peer): void {
    if (peer.told) {
      peer.told = false
      this.#counters.sessionsLost++
      this.#queue.flight.record(FlightEvent.PEER_DOWN, peer.node, peer.incarnation)
      this.#handlers.down(peer.index)
      this.#probes.suspect(peer, peer.incarnation)
      peer.dialAtMs = 0
    }
    for (const c of peer.next.splice(0)) if (c.state === LaneState.AWAITS_TURN) this.#welcome(c, peer)
    this.#dialDue()
  }

  // ---- sending -----------------------------------------------------------------------------------------------------------

  /**
   * Room for a head on a lane of a peer that is up: where to write it, as an index into the arena's bytes; -1: none now
   * (`laneRoom` will be called). Nothing else may be reserved on the lane before `send`.
   */
  reserve(index: number, lane: Lane, headBytes: number): number {
    const c = this.peers[index]!.lanes[lane]
    assert(c !== undefined && this.peers[index]!.up, `peer ${index} is not up`)
    const at = c.reserve(headBytes)
    if (at < 0) c.wantsRoom = true
    return at
  }

  /** Queues the frame whose head was written at `at`; the payload stays its owner's, untouched, until `sent(kind, row)`. */
  send(
    index: number,
    lane: Lane,
    at: number,
    headBytes: number,
    payloadPage: number,
    payloadDelta: number,
    payloadBytes: number,
    kind: number,
    row: number,
  ): void {
    this.#commit(this.peers[index]!.lanes[lane]!, at, headBytes, payloadPage, payloadDelta, payloadBytes, kind, row)
  }

  /** Something gathers for the lane: have it asked at the next flush. */
  wantsFlush(index: number, lane: Lane): void {
    const c = this.peers[index]!.lanes[lane]
    if (c !== undefined) this.#markDirty(c)
  }

  #markDirty(c: Connection): void {
    if (c.dirty) return
    c.dirty = true
    this.#dirty.push(c)
  }

  #commit(c: Connection, at: number, headBytes: number, payloadPage: number, payloadDelta: number, payloadBytes: number, kind: number, row: number): void {
    c.commit(this.#queue, at, headBytes, payloadPage, payloadDelta, payloadBytes, kind, row)
    this.#markDirty(c)
  }

  /** Sends what has gathered: at the end of a turn, and after anything queued outside of one. */
  flush(): void {
    while (this.#dirty.length > 0) {
      const dirty = this.#dirty
      this.#dirty = this.#flushing
      this.#flushing = dirty
      for (const c of dirty) {
        c.dirty = false
        if (c.inFlight > 0 || c.state === LaneState.CLOSING || c.state === LaneState.FREE) continue
        if (c.peer?.up) this.#handlers.gather(c.peer.index, c.lane)
        c.dirty = false
        if (c.count > 0) this.#counters.networkBytesSent += c.sendGathered(this.#queue, this.#tags.send)
      }
      dirty.length = 0
    }
  }

  #onSend(id: number, result: number): void {
    const c = this.#connections[id]!
    c.endSend(this.#handlers.sent)
    if (c.state === LaneState.CLOSING) return
    if (result < 0) {
      this.#lost(c, result)
      return
    }
    if (c.closeWhenSent && c.count === 0) {
      this.#drop(c)
      return
    }
    if (c.wantsRoom && c.peer?.up) {
      c.wantsRoom = false
      this.#handlers.laneRoom(c.peer.index, c.lane)
    }
    // what gathered meanwhile goes out too
    this.#markDirty(c)
  }

  #lost(c: Connection, result: number): void {
    if (c.state === LaneState.OPEN) {
      this.#handlers.log('INFO', 'a connection to a peer was lost', {
        node: c.peer?.node,
        lane: c.lane,
        error: result === 0 ? 'closed by the peer' : errnoName(result),
      })
    }
    this.#drop(c)
  }

  // ---- receiving ---------------------------------------------------------------------------------------------------------

  #recv(c: Connection): void {
    if (c.receiving || c.stalled || c.state === LaneState.CLOSING) return
    c.receiving = true
    if (c.discardLeft > 0) {
      this.#queue.recv(c.handle, c.inPage, 0, Math.min(c.discardLeft, IN_BYTES), false, this.#tags.recv, c.id)
    } else if (c.payloadLeft > 0) {
      this.#queue.recv(c.handle, c.placement.page, c.placement.deltaBytes + c.payloadDone, c.payloadLeft, true, this.#tags.recv, c.id)
    } else {
      if (c.start === c.end) c.start = c.end = 0
      else if (IN_BYTES - c.end < HEAD_BYTES_MAX) {
        const base = c.inPage * PAGE_BYTES
        this.#arena.bytes.copyWithin(base, base + c.start, base + c.end)
        c.end -= c.start
        c.start = 0
      }
      this.#queue.recv(c.handle, c.inPage, c.end, IN_BYTES - c.end, false, this.#tags.recv, c.id)
    }
  }

  #onRecv(id: number, result: number): void {
    const c = this.#connections[id]!
    c.receiving = false
    if (c.state === LaneState.CLOSING) return
    if (result <= 0) {
      this.#lost(c, result)
      return
    }
    c.heardMs = this.#queue.nowMs
    this.#counters.networkBytesReceived += result
    if (c.discardLeft > 0) c.discardLeft -= result
    else if (c.payloadLeft > 0) {
      c.payloadLeft -= result
      c.payloadDone += result
      if (c.payloadLeft === 0) this.#deliver(c)
    } else c.end += result
    if (c.payloadLeft === 0 && c.discardLeft === 0) this.#parse(c)
    this.#recv(c)
  }

  #resume(c: Connection): void {
    c.stalled = false
    if (c.state === LaneState.CLOSING) return
    this.#parse(c)
    this.#recv(c)
  }

  /** Handles the frames that are complete in the stream buffer, and starts on the next one's payload. */
  #parse(c: Connection): void {
    const { view, bytes } = this.#arena
    const base = c.inPage * PAGE_BYTES
    while (c.state !== LaneState.CLOSING && c.end - c.start >= FRAME_BYTES) {
      const at = base + c.start
      const invalid = frameInvalid(view, at)
      if (invalid !== null) {
        this.#bad(c, invalid)
        return
      }
      const headBytes = FrameHeader.get.headBytes(view, at)
      if (c.end - c.start < headBytes) return
      if (FrameHeader.get.crc(view, at) !== this.#arena.crc32c(c.inPage, c.start + 4, headBytes - 4)) {
        this.#bad(c, 'a frame with a wrong checksum')
        return
      }
      const type = FrameHeader.get.type(view, at)
      if (c.state !== LaneState.OPEN || type < PeerFrame.FORWARD) {
        const reason = c.closeWhenSent ? null : this.#handshake.onFrame(c, type, at)
        c.start += headBytes
        if (reason !== null) this.#bad(c, reason)
        continue
      }
      if (!c.peer!.up) {
        c.stalled = true
        return
      }
      if (type === PeerFrame.ALIVE) {
        const invalid = Alive.invalid(view, at + FRAME_BYTES)
        if (invalid !== null) {
          this.#bad(c, invalid)
          return
        }
        this.#hearAlive(c.peer!, at)
        c.start += headBytes
        continue
      }
      const payloadBytes = FrameHeader.get.payloadBytes(view, at)
      if (payloadBytes === 0 && type !== PeerFrame.FORWARD && type !== PeerFrame.UPDATE) {
        c.placement.row = NONE
        if (!this.#take(c, type, at, headBytes, 0)) return
        c.start += headBytes
        continue
      }
      const index = c.peer!.index
      const placed = this.#handlers.place(index, type, at, headBytes, payloadBytes, c.placement)
      if (placed === Place.WAIT) {
        c.placement.row = NONE
        c.stalled = true
        return
      }
      if (placed === Place.REFUSE) {
        c.placement.row = NONE
        this.#bad(c, `${frameName(type)} that breaks the rules of the protocol`)
        return
      }
      const here = Math.min(c.end - c.start - headBytes, payloadBytes)
      if (placed === Place.DISCARD) {
        c.placement.row = NONE
        c.discardLeft = payloadBytes - here
        c.start += headBytes + here
        if (c.discardLeft > 0) {
          c.start = c.end = 0
          return
        }
        continue
      }
      if (here > 0) bytes.copyWithin(c.placement.page * PAGE_BYTES + c.placement.deltaBytes, at + headBytes, at + headBytes + here)
      c.payloadDone = here
      c.payloadLeft = payloadBytes - here
      if (c.payloadLeft > 0) return
      this.#deliver(c)
    }
  }

  /** The payload of the frame at `start` is complete. */
  #deliver(c: Connection): void {
    const { view } = this.#arena
    const at = c.inPage * PAGE_BYTES + c.start
    const headBytes = FrameHeader.get.headBytes(view, at)
    const payloadBytes = FrameHeader.get.payloadBytes(view, at)
    const inStream = Math.min(c.end - c.start - headBytes, payloadBytes)
    if (this.#take(c, FrameHeader.get.type(view, at), at, headBytes, payloadBytes)) c.start += headBytes + inStream
  }

  #take(c: Connection, type: number, at: number, headBytes: number, payloadBytes: number): boolean {
    const { kind, row } = c.placement
    c.placement.row = NONE
    const reason = this.#handlers.frame(c.peer!.index, type, at, headBytes, payloadBytes, kind, row)
    if (reason === null) return true
    this.#bad(c, `${frameName(type)}: ${reason}`)
    return false
  }

  #logOnce(key: string, message: string, fields: Readonly<Record<string, unknown>>): void {
    if (this.#logged.has(key)) return
    if (this.#logged.size >= LOGGED_MAX) this.#logged.clear()
    this.#logged.add(key)
    this.#handlers.log('WARN', message, fields)
  }
}
