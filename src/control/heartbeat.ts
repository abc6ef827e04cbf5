/**
 * Heartbeats: each node tells all others how it is, by multicast and, where that does not come through, to each known node by unicast.
 * They are for people and for balance (load, disks, lag, "seen"); who may serve is decided by leases alone. They also say where their sender is, from its
 * start on: so members that have moved while they did not reach each other meet again. That is a hint, to be tried by a call that proves who is there.
 *
 * Invariants: a datagram counts only if its mac is that of a member's own key, its incarnation is not below the newest one seen of it, and its
 * counter is above the last one of that incarnation. What is forged, replayed or malformed is counted and logged once per reason and sender.
 */
import type { Incarnation, NodeNumber } from '../base/ids.ts'
import type { Clock, Datagram, Log, TimerId } from '../env/control.ts'
import { HEARTBEAT_ADDRESS_BYTES_MAX, HEARTBEAT_DISKS_MAX, HEARTBEAT_MAGIC, HEARTBEAT_VERSION, HeartbeatDisk, HeartbeatHead } from '../wire/heartbeat.ts'
import { equalBytes, fromHex } from './auth.ts'
import type { Hmac } from './options.ts'
import type { ClusterState } from './state.ts'

/** Reasons and senders logged at most. */
const LOGGED_MAX = 64
/** A node not heard of by multicast for so many intervals gets unicast ones. */
const UNICAST_AFTER_INTERVALS = 3
/** Between two tries to get the port, while something else has it. */
const BIND_RETRY_MS = 5000
/** Kinds of datagrams refused. */
export const HEARTBEAT_REFUSALS = ['malformed', 'otherCluster', 'unknownNode', 'forged', 'fenced', 'replayed', 'duplicate'] as const
export type HeartbeatRefusal = (typeof HEARTBEAT_REFUSALS)[number]

export interface HeartbeatReport {
  readonly ready: boolean
  readonly tableRevision: number
  readonly opsPerSecond: number
  readonly bytesPerSecond: number
  readonly queueDepth: number
  readonly syncingSlots: number
  readonly behindBlocks: number
  readonly term: number
  readonly disks: ReadonlyArray<{ readonly disk: number; readonly state: number; readonly usedPercent: number; readonly journalPercent: number }>
}

export interface HeardNode extends HeartbeatReport {
  readonly incarnation: Incarnation
  /** Own clock, ms. */
  readonly atMs: number
  readonly from: string
}

export interface HeartbeatOptions {
  readonly datagram: Datagram
  readonly clock: Clock
  readonly log: Log
  readonly hmac: Hmac
  readonly state: ClusterState
  readonly node: NodeNumber
  /** 0 until this process is registered. */
  readonly incarnation: () => Incarnation
  /** Where this node's control plane is called. */
  readonly grpc: string
  readonly host: string
  readonly port: number
  readonly multicastGroup: string
  readonly multicastPort: number
  readonly intervalMs: number
  /** Where a node receives unicast heartbeats; undefined: unknown. */
  readonly unicastAddress: (node: NodeNumber) => string | undefined
  readonly report: () => HeartbeatReport
  /** A member says that it is there; it may have said so long ago. */
  readonly onAddress: (node: NodeNumber, grpc: string) => void
}

export class Heartbeats {
  readonly #options: HeartbeatOptions
  readonly heard = new Map<NodeNumber, HeardNode>()
  readonly refusals: Record<HeartbeatRefusal, number> = { malformed: 0, otherCluster: 0, unknownNode: 0, forged: 0, fenced: 0, replayed: 0, duplicate: 0 }
  /** What this node said last. */
  own: HeartbeatReport | undefined
  sent = 0
  received = 0
  readonly #counters = new Map<NodeNumber, { incarnation: number; counter: number }>()
  readonly #logged = new Set<string>()
  readonly #keys = new Map<NodeNumber, { hex: string; key: Uint8Array }>()

  #counter = 0
  #multicast = false
  /** The port could not be had so far. */
  #isDeaf = false
  #timer: TimerId | undefined
  #stopped = false

  constructor(options: HeartbeatOptions) {
    this.#options = options
  }

  /** Never fails: a port that cannot be had is told once and tried again. Nobody's service depends on heartbeats. */
  async start(): Promise<void> {
    const { datagram, clock, log, host, port, multicastGroup, multicastPort } = this.#options
    const group = multicastGroup === '' ? undefined : `${multicastGroup}:${multicastPort}`
    let multicast: boolean
    try {
      ;({ multicast } = await datagram.bind({ host, port, multicastGroup: group }, (bytes, from) => {
        this.#receive(bytes, from)
      }))
    } catch (error) {
      if (this.#stopped) return
      if (!this.#isDeaf)
        log.log('ERROR', 'no heartbeats: this node shows no load, and sees none of the others; it serves all the same, and tries again', { error })
      this.#isDeaf = true
      this.#timer = clock.setTimer(BIND_RETRY_MS, () => void this.start())
      return
    }
    if (this.#stopped) return
    if (this.#isDeaf) log.log('INFO', 'heartbeats are sent and received from now on')
    this.#multicast = multicast
    this.#beat()
  }

  stop(): void {
    this.#stopped = true
    if (this.#timer !== undefined) this.#options.clock.clearTimer(this.#timer)
  }

  #beat(): void {
    if (this.#stopped) return
    const { clock, intervalMs, datagram, state, node, multicastGroup, multicastPort, unicastAddress } = this.#options
    const bytes = this.#encode()
    if (bytes !== undefined) {
      this.sent++
      if (this.#multicast) datagram.send(bytes, `${multicastGroup}:${multicastPort}`)
      for (const other of state.nodes.keys()) {
        if (other === node) continue
        const heard = this.heard.get(other)
        // the other hears me if I hear it, as a rule; unicast where that is in doubt
        if (this.#multicast && heard !== undefined && clock.nowMs() - heard.atMs < UNICAST_AFTER_INTERVALS * intervalMs) continue
        const address = unicastAddress(other)
        if (address !== undefined) datagram.send(bytes, address)
      }
    }
    this.#timer = clock.setTimer(intervalMs, () => {
      this.#beat()
    })
  }

  #encode(): Uint8Array | undefined {
    const { state, node, incarnation, grpc, clock, hmac, report } = this.#options
    const key = this.#keyOf(node)
    if (state.cluster === undefined || key === undefined) return undefined
    const about = report()
    this.own = about
    const disks = about.disks.slice(0, HEARTBEAT_DISKS_MAX)
    const address = encoder.encode(grpc).subarray(0, HEARTBEAT_ADDRESS_BYTES_MAX)
    const bytes = new Uint8Array(HeartbeatHead.size + disks.length * HeartbeatDisk.size + address.length)
    bytes.set(address, bytes.length - address.length)
    const view = new DataView(bytes.buffer)
    HeartbeatHead.encode(view, 0, {
      magic: HEARTBEAT_MAGIC,
      version: HEARTBEAT_VERSION,
      flags: about.ready ? 1 : 0,
      lengthBytes: bytes.length,
      cluster: uuidBytes(state.cluster.uuid),
      node,
      incarnation: incarnation(),
      counter: ++this.#counter,
      bootMs: Math.floor(clock.nowMs()),
      tableRevision: about.tableRevision,
      opsPerSecond: clampU32(about.opsPerSecond),
      bytesPerSecond: clampU32(about.bytesPerSecond / 1024),
      queueDepth: clampU32(about.queueDepth),
      syncingSlots: clampU32(about.syncingSlots),
      behindBlocks: clampU32(about.behindBlocks),
      raftTerm: about.term,
      disks: disks.length,
      grpcBytes: address.length,
      mac: new Uint8Array(32),
    })
    disks.forEach(({ disk, state: diskState, usedPercent, journalPercent }, i) => {
      HeartbeatDisk.encode(view, HeartbeatHead.size + i * HeartbeatDisk.size, {
        disk,
        state: diskState,
        usedPercent: percent(usedPercent),
        journalPercent: percent(journalPercent),
      })
    })
    bytes.set(hmac(key, withoutMac(bytes)), HeartbeatHead.offsets.mac)
    return bytes
  }

  #receive(bytes: Uint8Array, from: string): void {
    if (this.#stopped) return
    const refusal = this.#take(bytes, from)
    if (refusal === undefined) return
    this.refusals[refusal]++
    // the same one by multicast and by unicast
    if (refusal === 'duplicate') return
    const host = from.slice(0, from.lastIndexOf(':'))
    const what = `${refusal} ${host}`
    if (this.#logged.has(what) || this.#logged.size >= LOGGED_MAX) return
    this.#logged.add(what)
    this.#options.log.log(refusal === 'otherCluster' ? 'DEBUG' : 'WARN', 'a heartbeat was refused (more of the kind are only counted)', {
      reason: refusal,
      from,
    })
  }

  #take(bytes: Uint8Array, from: string): HeartbeatRefusal | undefined {
    const { state, hmac, clock, node: self } = this.#options
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    if (bytes.length < HeartbeatHead.size || HeartbeatHead.get.magic(view, 0) !== HEARTBEAT_MAGIC) return 'malformed'
    if (HeartbeatHead.get.version(view, 0) !== HEARTBEAT_VERSION || HeartbeatHead.invalid(view, 0) !== null) return 'malformed'
    const head = HeartbeatHead.decode(view, 0)
    const addressAt = HeartbeatHead.size + head.disks * HeartbeatDisk.size
    if (head.lengthBytes !== bytes.length || bytes.length !== addressAt + head.grpcBytes || head.disks > HEARTBEAT_DISKS_MAX) return 'malformed'
    if (state.cluster === undefined || !equalBytes(head.cluster, uuidBytes(state.cluster.uuid))) return 'otherCluster'
    const node = head.node as NodeNumber
    if (node === self) return undefined
    const key = this.#keyOf(node)
    if (key === undefined) return 'unknownNode'
    if (!equalBytes(hmac(key, withoutMac(bytes)), head.mac)) return 'forged'
    const grpc = decoder.decode(bytes.subarray(addressAt))
    if (head.incarnation === 0) {
      this.#options.onAddress(node, grpc)
      return undefined
    }
    const last = this.#counters.get(node)
    if (head.incarnation < state.incarnation(node) || (last !== undefined && head.incarnation < last.incarnation)) return 'fenced'
    if (last !== undefined && head.incarnation === last.incarnation && head.counter <= last.counter)
      return head.counter === last.counter ? 'duplicate' : 'replayed'
    this.#counters.set(node, { incarnation: head.incarnation, counter: head.counter })
    this.received++
    this.#options.onAddress(node, grpc)
    this.heard.set(node, {
      incarnation: head.incarnation as Incarnation,
      atMs: clock.nowMs(),
      from,
      ready: (head.flags & 1) !== 0,
      tableRevision: head.tableRevision,
      opsPerSecond: head.opsPerSecond,
      bytesPerSecond: head.bytesPerSecond * 1024,
      queueDepth: head.queueDepth,
      syncingSlots: head.syncingSlots,
      behindBlocks: head.behindBlocks,
      term: head.raftTerm,
      disks: Array.from({ length: head.disks }, (_, i) => HeartbeatDisk.decode(view, HeartbeatHead.size + i * HeartbeatDisk.size)),
    })
    return undefined
  }

  #keyOf(node: NodeNumber): Uint8Array | undefined {
    const hex = this.#options.state.nodes.get(node)?.key
    if (hex === undefined || hex === '') return undefined
    const known = this.#keys.get(node)
    if (known?.hex === hex) return known.key
    const key = fromHex(hex)
    this.#keys.set(node, { hex, key })
    return key
  }
}

const encoder = new TextEncoder()
const decoder = new TextDecoder()
const percent = (value: number) => Math.max(0, Math.min(100, Math.round(value)))
const clampU32 = (value: number) => Math.max(0, Math.min(0xffff_ffff, Math.floor(value)))
const uuidBytes = (uuid: string) => fromHex(uuid.replaceAll('-', '').padEnd(32, '0').slice(0, 32))

function withoutMac(bytes: Uint8Array): Uint8Array {
  const signed = bytes.slice()
  signed.fill(0, HeartbeatHead.offsets.mac, HeartbeatHead.offsets.mac + 32)
  return signed
}
