/**
 * How two reactors come to know each other, lane by lane: who says what, and what is refused.
 *
 *   dialer: HELLO ->            <- HELLO_ANSWER (with mac)        PROOF (mac) ->         <- WELCOME       then frames, both ways
 *
 * Both prove that they know the cluster's key over both greetings, each with a nonce: neither can be replayed, or turned round.
 */
import { assert } from '../base/assert.ts'
import { Status } from '../base/status.ts'
import { BLOCK_BYTES } from '../base/units.ts'
import type { Arena } from '../env/arena.ts'
import {
  FRAME_BYTES,
  frameName,
  Hello,
  LANES,
  type Lane,
  Mac,
  PEER_PROTOCOL_MAX,
  PEER_PROTOCOL_MIN,
  PeerFrame,
  paddedText,
  putFrame,
  Refusal,
  textOf,
} from '../wire/peer.ts'
import { type Connection, LaneState } from './lane.ts'
import type { ChainTable } from './table.ts'

/** Proves to peers that this process belongs to the cluster. Given by the composition root, which has the cryptography and the key. */
export interface Authenticator {
  /** HMAC-SHA256 of `bytes` under the cluster's key: 32 bytes. */
  hmac(bytes: Uint8Array): Uint8Array
  /** 16 random bytes, never the same again. */
  nonce(): Uint8Array
}

export interface HandshakeHooks {
  /** Queues the frame whose head was written at `at`. */
  send(c: Connection, at: number, headBytes: number): void
  /** An inbound connection is refused with that reason; it closes once that is sent. */
  refused(reason: string): void
  /** An inbound connection has proven who it is. */
  entered(c: Connection, node: number): void
  /** The acceptor has welcomed this dialer's lane. */
  welcomed(c: Connection): void
}

export class Handshake {
  readonly #arena: Arena
  readonly #table: ChainTable
  readonly #authenticate: Authenticator
  readonly #hooks: HandshakeHooks

  constructor(options: { arena: Arena; table: ChainTable; authenticate: Authenticator; hooks: HandshakeHooks }) {
    this.#arena = options.arena
    this.#table = options.table
    this.#authenticate = options.authenticate
    this.#hooks = options.hooks
  }

  /** The dialer's first word. */
  begin(c: Connection): void {
    c.ownHello = this.#sendHello(c, PeerFrame.HELLO, undefined)
    c.state = LaneState.AWAITS_ANSWER
  }

  #sendHello(c: Connection, type: typeof PeerFrame.HELLO | typeof PeerFrame.HELLO_ANSWER, macOf: Uint8Array | undefined): Uint8Array {
    const { identity } = this.#table
    const headBytes = FRAME_BYTES + Hello.size + (type === PeerFrame.HELLO_ANSWER ? Mac.size : 0)
    const at = c.reserve(headBytes)
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
    this.#hooks.send(c, at, headBytes)
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
  onFrame(c: Connection, type: number, at: number): string | null {
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
      const out = c.reserve(headBytes)
      putFrame(view, out, PeerFrame.PROOF, headBytes, 0)
      Mac.encode(view, out + FRAME_BYTES, { mac: this.#mac('D', c.ownHello, c.peerHello) })
      this.#hooks.send(c, out, headBytes)
      c.state = LaneState.AWAITS_WELCOME
      return null
    }
    if (type === PeerFrame.PROOF && c.state === LaneState.AWAITS_PROOF) {
      if (!isEqual(Mac.decode(view, body).mac, this.#mac('D', c.peerHello, c.ownHello))) return 'the peer does not know the key of the cluster'
      this.#hooks.entered(c, Hello.get.node(viewOf(c.peerHello), 0))
      return null
    }
    if (type === PeerFrame.WELCOME && c.state === LaneState.AWAITS_WELCOME) {
      c.state = LaneState.OPEN
      this.#hooks.welcomed(c)
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
    this.#hooks.refused(reason)
    const headBytes = FRAME_BYTES + Refusal.size
    const at = c.reserve(headBytes)
    putFrame(this.#arena.view, at, PeerFrame.REFUSAL, headBytes, 0)
    Refusal.encode(this.#arena.view, at + FRAME_BYTES, { status: Status.PERMISSION_DENIED, reason: paddedText(reason, 128) })
    this.#hooks.send(c, at, headBytes)
    c.closeWhenSent = true
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
