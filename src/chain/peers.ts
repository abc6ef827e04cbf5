/**
 * Sessions between this reactor and those of other nodes: three connections (lanes) each, framing, handshake, reconnect, proof of death.
 *
 *   node 1 --dials--> node 2      the lower node number dials; a session is up when all three lanes are, and ends when one does
 *
 *   dialer: HELLO ->            <- HELLO_ANSWER (with mac)        PROOF (mac) ->         <- WELCOME       then frames, both ways
 *
 * Sending: a frame's head is written into the lane's ring, its payload stays where it is; everything queued goes out in one gathered send
 * per lane at the end of the turn; never two sends under way on a socket.
 * Receiving: into the lane's stream buffer; a payload's rest straight into its own place.
 *
 * On the lane of forwards each side says something every now and then; who hears nothing for `silenceMs` ends the session. So an update waits no
 * longer than that on its way, also between two nodes that live, hold their leases, and cannot reach each other (protocol 16). On any lane, a frame that
 * has begun and of which nothing more comes for as long ends the session too.
 *
 * Invariants: a session's end is told (`down`) only when none of its operations can touch memory any more, and before a new one is
 * told (`up`); every length was checked before it is believed; a peer that sends nonsense loses its connection, with one line in the log.
 */
import { assert } from '../base/assert.ts'
import { FlightEvent } from '../base/flight.ts'
import type { Incarnation, NodeNumber } from '../base/ids.ts'
import { Status } from '../base/status.ts'
import { BLOCK_BYTES, PAGE_BYTES } from '../base/units.ts'
import type { Arena, PageNumber } from '../env/arena.ts'
import { Errno, errnoName, type Handle, type IoQueue, SEGMENTS_MAX, type Tag } from '../env/ioqueue.ts'
import type { ReactorLog } from '../placement/messages.ts'
import {
  FRAME_BYTES,
  FrameHeader,
  frameInvalid,
  frameName,
  HEAD_BYTES_MAX,
  Hello,
  LANES,
  Lane,
  Mac,
  PEER_PROTOCOL_MAX,
  PEER_PROTOCOL_MIN,
  PeerFrame,
  paddedText,
  putFrame,
  Refusal,
  textOf,
} from '../wire/peer.ts'
import type { Counters } from './counters.ts'
import { NONE } from './records.ts'
import type { ChainTable } from './table.ts'

/** Other nodes of a cluster that a reactor can know. */
export const PEERS_MAX = 64
/** Inbound connections whose peer is not known yet. */
const HANDSHAKES_MAX = 64
const HANDSHAKE_MS = 5000
const IN_BYTES = 64 * 1024
const OUT_BYTES = 64 * 1024
/** Frames queued or under way on one lane. */
const FRAMES_MAX = 1024
/** One gathered send carries at most about this much. */
const SEND_BYTES = 2 * 1024 * 1024
const DIAL_FIRST_MS = 50
const DIAL_MAX_MS = 500
const PROBES_MAX = 20
const LOGGED_MAX = 256
/** A reactor that stood still for this long closes its sessions before it sends on: what is queued names a life it no longer has (protocol 16). */
export const STANDSTILL_MS_MAX = 2000
/** A node without a session for so long cannot be reached, as far as this node can tell. */
const UNREACHABLE_AFTER_MS = 1000
/** Something is said so many times within `silenceMs`. */
const SAID_PER_SILENCE = 4

/** Proves to peers that this process belongs to the cluster. Given by the composition root, which has the cryptography and the key. */
export interface Authenticator {
  /** HMAC-SHA256 of `bytes` under the cluster's key: 32 bytes. */
  hmac(bytes: Uint8Array): Uint8Array
  /** 16 random bytes, never the same again. */
  nonce(): Uint8Array
}

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
  /** The process is gone: its connections closed, and its host refused a fresh one (design 4). */
  refused(node: NodeNumber, incarnation: Incarnation): void
  readonly log: ReactorLog
}

const LaneState = {
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

class Connection {
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
  /** When something came last; when something was last sent. */
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
}

export class Peer {
  readonly index: number
  readonly node: NodeNumber
  address = ''
  /** All lanes of `session` are open: it may be used. */
  up = false
  /** The session was told to be up, and not yet to be down. */
  told = false
  /** Number of the session that is up, or was; counts this process' sessions with any peer. */
  session = 0
  incarnation = 0
  /** Connections of the present session. */
  readonly lanes: Array<Connection | undefined> = [undefined, undefined, undefined]
  /** Connections of the session that waits for the present one to end (acceptor). */
  readonly next: Connection[] = []
  connections = 0
  /** Since when no session is up. */
  downSinceMs: number
  dialAtMs = 0
  dialWaitMs = DIAL_FIRST_MS
  /** The last session's process is believed alive until shown otherwise: incarnation, 0 when there is nothing to show. */
  suspect = 0
  probesLeft = 0
  probeAtMs = 0
  probeHandle = -1 as Handle
  isProbing = false

  constructor(index: number, node: NodeNumber, nowMs: number) {
    this.index = index
    this.node = node
    this.downSinceMs = nowMs
  }
}

export class Peers {
  readonly peers: Peer[] = []
  readonly #byNode = new Map<number, Peer>()
  readonly #queue: IoQueue
  readonly #arena: Arena
  readonly #table: ChainTable
  readonly #authenticate: Authenticator
  readonly #handlers: PeerHandlers
  readonly #counters: Counters
  readonly #connections: Array<Connection | undefined> = []
  readonly #spare: Connection[] = []
  readonly #tags: { accept: Tag; connect: Tag; recv: Tag; send: Tag; close: Tag; probe: Tag; probeClosed: Tag }
  #dirty: Connection[] = []
  #flushing: Connection[] = []
  #listener = -1 as Handle
  #accepting = false
  #sessions = 0
  #generation = 0
  #handshakes = 0
  #closed = false
  /** Of the last flush's clock: at least every tick while the reactor turns. */
  #flushedMs: number
  /** An update is on its way for so long at most, or not delivered. */
  readonly silenceMs: number
  readonly #logged = new Set<string>()

  constructor(options: { queue: IoQueue; table: ChainTable; authenticate: Authenticator; handlers: PeerHandlers; counters: Counters; silenceMs: number }) {
    const { queue } = options
    this.silenceMs = options.silenceMs
    this.#queue = queue
    this.#arena = queue.arena
    this.#table = options.table
    this.#authenticate = options.authenticate
    this.#handlers = options.handlers
    this.#counters = options.counters
    this.#flushedMs = queue.nowMs
    this.#tags = {
      accept: queue.register('peer accept', (_row, result) => this.#onAccept(result)),
      connect: queue.register('peer connect', (row, result) => this.#onConnect(row, result)),
      recv: queue.register('peer recv', (row, result) => this.#onRecv(row, result)),
      send: queue.register('peer send', (row, result) => this.#onSend(row, result)),
      close: queue.register('peer close', (row) => this.#onClosed(row)),
      probe: queue.register('peer probe', (row, result) => this.#onProbe(row, result)),
      probeClosed: queue.register('peer probe closed', (row) => this.#onProbeClosed(row)),
    }
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
      if (peer === undefined) {
        if (this.peers.length >= PEERS_MAX) continue
        peer = new Peer(this.peers.length, node, this.#queue.nowMs)
        this.peers.push(peer)
        this.#byNode.set(node, peer)
      }
      if (peer.incarnation !== 0 && peer.incarnation < incarnation) this.#closeSession(peer)
      if (peer.address !== dataAddress || peer.incarnation < incarnation) {
        peer.dialAtMs = 0
        peer.dialWaitMs = DIAL_FIRST_MS
      }
      peer.address = dataAddress
    }
    for (const peer of this.peers) if (!this.#table.nodes.has(peer.node)) this.#closeSession(peer)
    this.#dialDue()
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
    for (const peer of this.peers) if (peer.suspect !== 0 && !peer.isProbing && nowMs >= peer.probeAtMs) this.#probe(peer)
  }

  #listenAndSay(c: Connection): void {
    const { nowMs } = this.#queue
    if (c.receiving && this.#isSilent(c)) this.#endSilence(c)
    else if (c.inFlight === 0 && c.count === 0 && nowMs - c.saidMs >= this.silenceMs / SAID_PER_SILENCE) {
      const at = this.#reserve(c, FRAME_BYTES)
      putFrame(this.#arena.view, at, PeerFrame.ALIVE, FRAME_BYTES, 0)
      this.#commit(c, at, FRAME_BYTES, 0, 0, 0, Owner.NONE, NONE)
    }
  }

  #isSilent(c: Connection): boolean {
    return c.lane === Lane.FORWARD && c.peer?.up === true && this.#queue.nowMs - c.heardMs > this.silenceMs
  }

  /** A part of a frame, and nothing more for long: its length may have been damaged on the way, and nothing else may ever be said on this lane. */
  #isStuck(c: Connection): boolean {
    const isPartial = c.end > c.start || c.payloadLeft > 0 || c.discardLeft > 0
    return c.receiving && isPartial && this.#queue.nowMs - c.heardMs > this.silenceMs
  }

  #endSilence(c: Connection): void {
    this.#handlers.log('INFO', 'a peer has been silent, or this node has not listened: the session ends', { node: c.peer?.node, silenceMs: this.silenceMs })
    this.#drop(c)
  }

  /** Memory may have become free: frames that wait for some are looked at again. */
  resumeStalled(): void {
    for (const c of this.#connections) if (c?.stalled && c.peer?.up) this.#resume(c)
  }

  /** Closes everything. */
  close(): void {
    this.#closed = true
    for (const c of this.#connections) if (c !== undefined) this.#drop(c)
    if (this.#listener !== -1) this.#queue.close(this.#listener, this.#tags.probeClosed, NONE)
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
    const to = addressOf(peer.address)
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
      const peer = c.peer!
      if (result === -Errno.ECONNREFUSED) this.#proven(peer)
      this.#drop(c)
      return
    }
    c.ownHello = this.#sendHello(c, PeerFrame.HELLO, undefined)
    c.state = LaneState.AWAITS_ANSWER
    this.#recv(c)
  }

  #accept(): void {
    this.#accepting = true
    this.#queue.accept(this.#listener, this.#tags.accept, 0)
  }

  #onAccept(result: number): void {
    this.#accepting = false
    if (this.#closed) {
      if (result >= 0) this.#queue.close(result as Handle, this.#tags.probeClosed, NONE)
      return
    }
    if (result >= 0) {
      const c = this.#handshakes < HANDSHAKES_MAX ? this.#open() : undefined
      if (c === undefined) {
        this.#counters.connectionsRefused++
        this.#logOnce('handshakes', 'too many connections on the data port whose peer is unknown; one was refused', { max: HANDSHAKES_MAX })
        this.#queue.close(result as Handle, this.#tags.probeClosed, NONE)
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
    c.start = c.end = c.payloadLeft = c.payloadDone = c.discardLeft = 0
    c.ringTail = c.ringUsed = c.first = c.count = c.inFlight = 0
    c.receiving = c.stalled = c.dirty = c.wantsRoom = c.closeWhenSent = false
    c.placement.row = NONE
    c.peer = undefined
    c.handle = -1 as Handle
    c.openedMs = this.#queue.nowMs
    this.#connections[c.id] = c
    return c
  }

  #attach(c: Connection, peer: Peer): void {
    assert(peer.lanes[c.lane] === undefined, `peer ${peer.node} has lane ${c.lane} already`)
    peer.lanes[c.lane] = c
    peer.connections++
    c.peer = peer
  }

  // ---- handshake ---------------------------------------------------------------------------------------------------------

  #sendHello(c: Connection, type: typeof PeerFrame.HELLO | typeof PeerFrame.HELLO_ANSWER, macOf: Uint8Array | undefined): Uint8Array {
    const { identity } = this.#table
    const headBytes = FRAME_BYTES + Hello.size + (type === PeerFrame.HELLO_ANSWER ? Mac.size : 0)
    const at = this.#reserve(c, headBytes)
    const { view, bytes } = this.#arena
    putFrame(view, at, type, headBytes, 0)
    Hello.encode(view, at + FRAME_BYTES, {
      protocolMin: PEER_PROTOCOL_MIN,
      protocolMax: PEER_PROTOCOL_MAX,
      lane: c.lane,
      reactor: identity.reactor,
      node: identity.node,
      incarnation: identity.incarnation,
      session: c.session,
      features: { hi: 0, lo: 0 },
      slotCount: this.#table.slotCount,
      blockBytes: BLOCK_BYTES,
      clusterId: paddedText(identity.clusterId, 64),
      nonce: this.#authenticate.nonce(),
    })
    const hello = bytes.slice(at + FRAME_BYTES, at + FRAME_BYTES + Hello.size)
    if (type === PeerFrame.HELLO_ANSWER) Mac.encode(view, at + FRAME_BYTES + Hello.size, { mac: this.#mac('A', macOf!, hello) })
    this.#commit(c, at, headBytes, 0, 0, 0, Owner.NONE, NONE)
    return hello
  }

  #mac(role: 'A' | 'D', dialerHello: Uint8Array, acceptorHello: Uint8Array): Uint8Array {
    const bytes = new Uint8Array(1 + dialerHello.length + acceptorHello.length)
    bytes[0] = role.charCodeAt(0)
    bytes.set(dialerHello, 1)
    bytes.set(acceptorHello, 1 + dialerHello.length)
    const mac = this.#authenticate.hmac(bytes)
    assert(mac.length === Mac.size, 'an HMAC-SHA256 has 32 bytes')
    return mac
  }

  /** A frame before the connection is open. Returns why it is refused, or null. */
  #onHandshake(c: Connection, type: number, at: number): string | null {
    const { view, bytes } = this.#arena
    const body = at + FRAME_BYTES
    const table = this.#table
    if (type === PeerFrame.REFUSAL && c.isDialer) {
      const { status, reason } = Refusal.decode(view, body)
      return `the peer refused the connection: ${textOf(reason)} (${status})`
    }
    if (type === PeerFrame.HELLO && c.state === LaneState.AWAITS_HELLO) {
      const reason = this.#helloInvalid(body)
      if (reason !== null) {
        this.#refuse(c, reason)
        return null
      }
      const hello = Hello.decode(view, body)
      if (hello.node > table.identity.node) {
        this.#refuse(c, 'the lower node number dials')
        return null
      }
      c.peerHello = bytes.slice(body, body + Hello.size)
      c.lane = hello.lane as Lane
      c.session = hello.session
      c.incarnation = hello.incarnation
      c.ownHello = this.#sendHello(c, PeerFrame.HELLO_ANSWER, c.peerHello)
      c.state = LaneState.AWAITS_PROOF
      return null
    }
    if (type === PeerFrame.HELLO_ANSWER && c.state === LaneState.AWAITS_ANSWER) {
      const reason = this.#helloInvalid(body)
      if (reason !== null) return reason
      const hello = Hello.decode(view, body)
      const peer = c.peer!
      if (hello.node !== peer.node) return `node ${hello.node} answers at the address of node ${peer.node}`
      c.peerHello = bytes.slice(body, body + Hello.size)
      if (!isEqual(Mac.decode(view, body + Hello.size).mac, this.#mac('A', c.ownHello, c.peerHello))) return 'the peer does not know the key of the cluster'
      c.incarnation = hello.incarnation
      const headBytes = FRAME_BYTES + Mac.size
      const out = this.#reserve(c, headBytes)
      putFrame(view, out, PeerFrame.PROOF, headBytes, 0)
      Mac.encode(view, out + FRAME_BYTES, { mac: this.#mac('D', c.ownHello, c.peerHello) })
      this.#commit(c, out, headBytes, 0, 0, 0, Owner.NONE, NONE)
      c.state = LaneState.AWAITS_WELCOME
      return null
    }
    if (type === PeerFrame.PROOF && c.state === LaneState.AWAITS_PROOF) {
      if (!isEqual(Mac.decode(view, body).mac, this.#mac('D', c.peerHello, c.ownHello))) return 'the peer does not know the key of the cluster'
      this.#enter(c, Hello.get.node(viewOf(c.peerHello), 0))
      return null
    }
    if (type === PeerFrame.WELCOME && c.state === LaneState.AWAITS_WELCOME) {
      c.state = LaneState.OPEN
      this.#laneOpen(c.peer!)
      return null
    }
    return `${frameName(type)} during the handshake`
  }

  #helloInvalid(body: number): string | null {
    const { view } = this.#arena
    const malformed = Hello.invalid(view, body)
    if (malformed !== null) return malformed
    const hello = Hello.decode(view, body)
    const { identity, slotCount, nodes } = this.#table
    if (hello.protocolMin > PEER_PROTOCOL_MAX || hello.protocolMax < PEER_PROTOCOL_MIN)
      return `protocol ${hello.protocolMin} to ${hello.protocolMax}, this node speaks ${PEER_PROTOCOL_MIN} to ${PEER_PROTOCOL_MAX}`
    if (textOf(hello.clusterId) !== textOf(paddedText(identity.clusterId, 64))) return `a node of another cluster, "${textOf(hello.clusterId)}"`
    if (slotCount === 0) return 'this node has no table yet'
    if (hello.slotCount !== 0 && hello.slotCount !== slotCount) return `${hello.slotCount} slots, this node has ${slotCount}`
    if (hello.blockBytes !== BLOCK_BYTES) return `blocks of ${hello.blockBytes} bytes, this node has ${BLOCK_BYTES}`
    if (hello.lane >= LANES) return `lane ${hello.lane}`
    const known = nodes.get(hello.node)
    if (known === undefined || hello.node === identity.node) return `node ${hello.node} is not a peer of this node`
    if (hello.incarnation < known.incarnation) return `incarnation ${hello.incarnation} of node ${hello.node} is fenced, ${known.incarnation} is registered`
    return null
  }

  #refuse(c: Connection, reason: string): void {
    this.#counters.connectionsRefused++
    this.#logOnce(`refused ${reason}`, 'a connection on the data port was refused', { reason })
    const headBytes = FRAME_BYTES + Refusal.size
    const at = this.#reserve(c, headBytes)
    putFrame(this.#arena.view, at, PeerFrame.REFUSAL, headBytes, 0)
    Refusal.encode(this.#arena.view, at + FRAME_BYTES, { status: Status.PERMISSION_DENIED, reason: paddedText(reason, 128) })
    this.#commit(c, at, headBytes, 0, 0, 0, Owner.NONE, NONE)
    c.closeWhenSent = true
  }

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
    peer.next.push(c)
    this.#closeSession(peer)
  }

  #welcome(c: Connection, peer: Peer): void {
    this.#attach(c, peer)
    c.state = LaneState.OPEN
    const at = this.#reserve(c, FRAME_BYTES)
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
    peer.suspect = 0
    this.#counters.sessionsStarted++
    this.#queue.flight.record(FlightEvent.PEER_UP, peer.node, peer.incarnation)
    for (const c of peer.lanes) c!.heardMs = c!.saidMs = this.#queue.nowMs
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
    for (; c.count > 0; c.count--, c.first = (c.first + 1) % FRAMES_MAX) {
      if (c.ownerKind[c.first] !== Owner.NONE) this.#handlers.sent(c.ownerKind[c.first]!, c.ownerRow[c.first]!)
    }
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
      peer.suspect = peer.incarnation
      peer.probesLeft = PROBES_MAX
      peer.probeAtMs = 0
      if (!peer.isProbing) this.#probe(peer)
      peer.dialAtMs = 0
    }
    for (const c of peer.next.splice(0)) if (c.state === LaneState.AWAITS_TURN) this.#welcome(c, peer)
    this.#dialDue()
  }

  /** One fresh connect: refused by its host, the process is gone. */
  #probe(peer: Peer): void {
    const to = addressOf(peer.address)
    if (this.#closed || to === null || peer.up || peer.probesLeft === 0) {
      peer.suspect = 0
      return
    }
    peer.probesLeft--
    peer.isProbing = true
    peer.probeAtMs = this.#queue.nowMs + DIAL_FIRST_MS
    peer.probeHandle = this.#queue.connectTcp(to, this.#tags.probe, peer.index)
  }

  #onProbe(index: number, result: number): void {
    const peer = this.peers[index]!
    if (result === -Errno.ECONNREFUSED) this.#proven(peer)
    this.#queue.close(peer.probeHandle, this.#tags.probeClosed, index)
  }

  #onProbeClosed(index: number): void {
    if (index !== NONE) this.peers[index]!.isProbing = false
  }

  #proven(peer: Peer): void {
    if (peer.suspect === 0 || peer.up) return
    this.#handlers.refused(peer.node, peer.suspect as Incarnation)
    peer.suspect = 0
  }

  // ---- sending -----------------------------------------------------------------------------------------------------------

  /**
   * Room for a head on a lane of a peer that is up: where to write it, as an index into the arena's bytes; -1: none now
   * (`laneRoom` will be called). Nothing else may be reserved on the lane before `send`.
   */
  reserve(index: number, lane: Lane, headBytes: number): number {
    const c = this.peers[index]!.lanes[lane]
    assert(c !== undefined && this.peers[index]!.up, `peer ${index} is not up`)
    const at = this.#reserve(c, headBytes)
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

  #reserve(c: Connection, headBytes: number): number {
    if (c.count === FRAMES_MAX || c.state === LaneState.CLOSING) return -1
    const toEnd = OUT_BYTES - c.ringTail
    const wraps = headBytes > toEnd
    const skip = wraps ? toEnd : 0
    if (c.ringUsed + skip + headBytes > OUT_BYTES) return -1
    c.pendingSkip = skip
    c.pendingAt = wraps ? 0 : c.ringTail
    return c.outPage * PAGE_BYTES + c.pendingAt
  }

  #commit(c: Connection, at: number, headBytes: number, payloadPage: number, payloadDelta: number, payloadBytes: number, kind: number, row: number): void {
    assert(at === c.outPage * PAGE_BYTES + c.pendingAt, 'a frame that was not reserved')
    FrameHeader.set.crc(this.#arena.view, at, this.#arena.crc32c(c.outPage, c.pendingAt + 4, headBytes - 4))
    const f = (c.first + c.count) % FRAMES_MAX
    c.headAt[f] = c.pendingAt
    c.headBytes[f] = headBytes
    c.skipBytes[f] = c.pendingSkip
    c.payloadPage[f] = payloadPage
    c.payloadDelta[f] = payloadDelta
    c.payloadBytes[f] = payloadBytes
    c.ownerKind[f] = kind
    c.ownerRow[f] = row
    c.count++
    c.ringUsed += c.pendingSkip + headBytes
    c.ringTail = c.pendingAt + headBytes
    c.pendingAt = NONE
    this.#markDirty(c)
  }

  /** Sends what has gathered: at the end of a turn, and after anything queued outside of one. */
  flush(): void {
    const { nowMs } = this.#queue
    if (nowMs - this.#flushedMs > STANDSTILL_MS_MAX) for (const peer of this.peers) this.#closeSession(peer)
    this.#flushedMs = nowMs
    while (this.#dirty.length > 0) {
      const dirty = this.#dirty
      this.#dirty = this.#flushing
      this.#flushing = dirty
      for (const c of dirty) {
        c.dirty = false
        if (c.inFlight > 0 || c.state === LaneState.CLOSING || c.state === LaneState.FREE) continue
        if (c.peer?.up) this.#handlers.gather(c.peer.index, c.lane)
        c.dirty = false
        if (c.count > 0) this.#sendGathered(c)
      }
      dirty.length = 0
    }
  }

  #sendGathered(c: Connection): void {
    const queue = this.#queue
    let segments = 0
    let total = 0
    let segmentAt = 0
    let segmentBytes = 0
    let n = 0
    for (; n < c.count && segments < SEGMENTS_MAX - 3 && total < SEND_BYTES; n++) {
      const f = (c.first + n) % FRAMES_MAX
      if (segmentBytes > 0 && c.headAt[f] === segmentAt + segmentBytes) segmentBytes += c.headBytes[f]!
      else {
        if (segmentBytes > 0) {
          queue.segment(c.outPage, segmentAt, segmentBytes)
          segments++
        }
        segmentAt = c.headAt[f]!
        segmentBytes = c.headBytes[f]!
      }
      total += c.headBytes[f]! + c.payloadBytes[f]!
      if (c.payloadBytes[f]! > 0) {
        queue.segment(c.outPage, segmentAt, segmentBytes)
        queue.segment(c.payloadPage[f]!, c.payloadDelta[f]!, c.payloadBytes[f]!)
        segments += 2
        segmentBytes = 0
      }
    }
    if (segmentBytes > 0) queue.segment(c.outPage, segmentAt, segmentBytes)
    c.inFlight = n
    c.saidMs = queue.nowMs
    this.#counters.networkBytesSent += total
    queue.sendSegments(c.handle, this.#tags.send, c.id)
  }

  #onSend(id: number, result: number): void {
    const c = this.#connections[id]!
    const n = c.inFlight
    c.inFlight = 0
    for (let i = 0; i < n; i++) {
      const f = c.first
      c.first = (f + 1) % FRAMES_MAX
      c.count--
      c.ringUsed -= c.skipBytes[f]! + c.headBytes[f]!
      if (c.ownerKind[f] !== Owner.NONE) this.#handlers.sent(c.ownerKind[f]!, c.ownerRow[f]!)
    }
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
    // what comes now may have waited for as long: it names a life it no longer has
    if (this.#isSilent(c)) {
      this.#endSilence(c)
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
    c.heardMs = this.#queue.nowMs
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
        const reason = c.closeWhenSent ? null : this.#onHandshake(c, type, at)
        c.start += headBytes
        if (reason !== null) this.#bad(c, reason)
        continue
      }
      if (!c.peer!.up) {
        c.stalled = true
        return
      }
      if (type === PeerFrame.ALIVE) {
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

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
}

/** Takes as long whatever the bytes. */
function isEqual(a: Uint8Array, b: Uint8Array): boolean {
  let difference = a.length ^ b.length
  for (let i = 0; i < a.length && i < b.length; i++) difference |= a[i]! ^ b[i]!
  return difference === 0
}

function addressOf(text: string): { host: string; port: number } | null {
  const colon = text.lastIndexOf(':')
  const port = Number(text.slice(colon + 1))
  if (colon <= 0 || !Number.isInteger(port) || port < 1 || port > 65_535) return null
  return { host: text.slice(0, colon).replace(/^\[|\]$/g, ''), port }
}
