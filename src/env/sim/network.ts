/**
 * The network between the simulated hosts, as their kernels show it: streams and, for the rest, delays and cuts.
 *
 * A stream keeps its order, cuts its bytes anywhere, and holds back a sender whose peer does not read. A cut link loses nothing of a
 * stream (TCP sends again): bytes wait until the link heals, or until `tcpTimeoutMs` has passed and the sender gives up. A host without
 * power is a cut link; when it is back, it answers what it does not know with a reset. A process that ends has its connections
 * closed or reset by its kernel a moment later, its listeners last.
 */
import { assert } from '../../base/assert.ts'
import type { Prng } from '../../base/prng.ts'
import { Errno, IoError } from '../ioqueue.ts'
import { copyBytes } from './bytes.ts'
import type { SimHost, SimProcess } from './host.ts'
import { type Slab, Slabs } from './memory.ts'
import { type EventOwner, runEvent, type SimEvent, type World } from './world.ts'

export interface NetworkOptions {
  delayMinMs: number
  delayMaxMs: number
  /** Chance of a piece that is late, and by how much at most. */
  slow: number
  slowMs: number
  /** Chance that bytes sent together arrive in pieces. */
  fragment: number
  /** Bytes a sender may be ahead of its peer's reads. */
  windowMinBytes: number
  windowMaxBytes: number
  /** After so long without an answer the kernel gives a connection up. */
  tcpTimeoutMs: number
  connectTimeoutMs: number
}

export const CALM_NETWORK: NetworkOptions = {
  delayMinMs: 0.03,
  delayMaxMs: 0.15,
  slow: 0.002,
  slowMs: 5,
  fragment: 0.1,
  windowMinBytes: 128 * 1024,
  windowMaxBytes: 4 * 1024 * 1024,
  tcpTimeoutMs: 60_000,
  connectTimeoutMs: 20_000,
}

/** One end hears of a reset so much later than the other, at most. */
const RESET_MS = 20

export interface Link {
  /** Nothing gets through in this direction. */
  cut: boolean
  extraDelayMs: number
  /** Chance that a bit of a piece flips which TCP's checksum does not notice; on connections to the ports of `flippedPorts`. */
  flip: number
}

const OPEN_LINK: Link = { cut: false, extraDelayMs: 0, flip: 0 }

export class SimNetwork {
  readonly world: World
  readonly options: NetworkOptions
  readonly hosts: SimHost[] = []
  readonly #byAddress = new Map<string, SimHost>()
  readonly #links = new Map<number, Link>()
  readonly listeners = new Map<string, SimListener>()
  readonly ends = new Set<SimEnd>()
  /** Those whose protocol has checksums of its own. */
  readonly flippedPorts = new Set<number>()
  /** Bits that have flipped. */
  flips = 0
  readonly #holding = new Set<SimEnd>()
  /** Where bytes are on their way. */
  readonly buffers = new Slabs()
  readonly random: Prng
  #connections = 0

  constructor(world: World, options: Partial<NetworkOptions> = {}) {
    this.world = world
    this.options = { ...CALM_NETWORK, ...options }
    this.random = world.random('network')
  }

  addHost(host: SimHost): number {
    assert(!this.#byAddress.has(host.address), `two hosts with address ${host.address}`)
    this.#byAddress.set(host.address, host)
    this.hosts.push(host)
    return this.hosts.length
  }

  /** The host an address means when `from` uses it. */
  hostAt(from: SimHost, address: string): SimHost | undefined {
    if (address === '127.0.0.1' || address === 'localhost' || address === '::1') return from
    const byName = this.#byAddress.get(address)
    return byName ?? this.hosts.find((host) => host.name === address)
  }

  /** The directed link, to be changed in place (then call `linksChanged`). */
  link(from: SimHost, to: SimHost): Link {
    const key = from.number * 65536 + to.number
    let link = this.#links.get(key)
    if (!link) {
      link = { ...OPEN_LINK }
      this.#links.set(key, link)
    }
    return link
  }

  cut(from: SimHost, to: SimHost): void {
    this.world.note('cut', () => `${from.name} -> ${to.name}`)
    this.link(from, to).cut = true
  }

  heal(from: SimHost, to: SimHost): void {
    this.world.note('heal', () => `${from.name} -> ${to.name}`)
    this.link(from, to).cut = false
    this.linksChanged()
  }

  healAll(): void {
    this.world.note('heal all', () => '')
    for (const link of this.#links.values()) {
      link.cut = false
      link.extraDelayMs = link.flip = 0
    }
    this.linksChanged()
  }

  passes(from: SimHost, to: SimHost): boolean {
    if (!from.up || !to.up) return false
    return from === to || !this.#links.get(from.number * 65536 + to.number)?.cut
  }

  delayMs(from: SimHost, to: SimHost): number {
    const o = this.options
    if (from === to) return 0.005 + this.random.unit() * 0.02
    let delay = o.delayMinMs + this.random.unit() * (o.delayMaxMs - o.delayMinMs)
    if (this.random.chance(o.slow)) delay += this.random.unit() * o.slowMs
    return delay + (this.#links.get(from.number * 65536 + to.number)?.extraDelayMs ?? 0)
  }

  flipChance(from: SimHost, to: SimHost): number {
    return this.#links.get(from.number * 65536 + to.number)?.flip ?? 0
  }

  /** Bytes that waited for a link go on. */
  linksChanged(): void {
    for (const end of [...this.#holding]) end.flushHeld()
  }

  holding(end: SimEnd, holds: boolean): void {
    if (holds) this.#holding.add(end)
    else this.#holding.delete(end)
  }

  /** What stands before a host forgets such a part of its connections: both ends are told, each in its time, and what was on its way is lost. Returns how many. */
  resetConnections(host: SimHost, share: number): number {
    let count = 0
    for (const end of [...this.ends]) {
      // of each connection one end is met first, whichever host it is on
      if (end.host === end.other.host || (end.host !== host && end.other.host !== host) || end.id > end.other.id || !this.random.chance(share)) continue
      count++
      for (const each of [end, end.other]) this.world.schedule(this.random.unit() * RESET_MS, 'forgotten', () => each.forgotten())
    }
    return count
  }

  hostDown(host: SimHost): void {
    for (const [key, listener] of this.listeners) if (listener.host === host) this.listeners.delete(key)
    for (const end of [...this.ends]) if (end.host === host) end.vanish()
  }

  nextConnection(): number {
    return ++this.#connections
  }

  listen(process: SimProcess, key: string, wake: () => void, backlog: number): SimListener {
    if (this.listeners.has(key)) throw new IoError('EADDRINUSE', `listen ${key}: address already in use`)
    const listener = new SimListener(process, key, wake, backlog)
    this.listeners.set(key, listener)
    return listener
  }

  freePort(host: SimHost): number {
    for (;;) {
      const port = 32768 + this.random.below(28000)
      if (!this.listeners.has(`${host.address}:${port}`)) return port
    }
  }

  /**
   * Connects to a listener (`key` names it on `to`'s kernel); `connected(end, 0)` or `connected(undefined, -errno)` follows, from the host's kernel.
   * Returns a function that gives up.
   */
  connect(process: SimProcess, to: SimHost | undefined, key: string, connected: (end: SimEnd | undefined, result: number) => void): () => void {
    const from = process.host
    const { world } = this
    let over = false
    const finish = (end: SimEnd | undefined, result: number) => {
      if (over) return
      over = true
      connected(end, result)
    }
    if (!to) {
      from.schedule(0.01, 'no route', () => finish(undefined, -Errno.EHOSTUNREACH))
      return () => {
        over = true
      }
    }
    const startedMs = world.nowMs
    let retryMs = 1000
    const attempt = () => {
      if (over) return
      const listener = this.listeners.get(key)
      const retry = () => {
        if (over) return
        const spentMs = world.nowMs - startedMs
        if (spentMs + retryMs > this.options.connectTimeoutMs) {
          from.schedule(Math.max(0.01, this.options.connectTimeoutMs - spentMs), 'connect timeout', () => finish(undefined, -Errno.ETIMEDOUT))
          return
        }
        from.schedule(retryMs, 'connect again', attempt)
        retryMs *= 2
      }
      from.schedule(process.localNowMs - world.nowMs + this.delayMs(from, to), 'syn', () => {
        if (over) return
        if (!this.passes(from, to) || !this.passes(to, from)) {
          retry()
          return
        }
        const target = this.listeners.get(key) ?? listener
        if (!target?.open) {
          from.schedule(this.delayMs(to, from), 'refused', () => finish(undefined, -Errno.ECONNREFUSED))
          return
        }
        if (target.backlogFull) {
          retry()
          return
        }
        const near = new SimEnd(this, process, from)
        const far = new SimEnd(this, target.process, to)
        near.other = far
        far.other = near
        near.port = far.port = Number(key.slice(key.lastIndexOf(':') + 1))
        target.add(far)
        from.schedule(this.delayMs(to, from), 'connected', () => {
          if (over) near.close()
          else finish(near, 0)
        })
      })
    }
    attempt()
    return () => {
      over = true
    }
  }
}

export class SimListener {
  readonly process: SimProcess
  readonly host: SimHost
  readonly key: string
  open = true
  readonly waiting: SimEnd[] = []
  readonly #wake: () => void
  readonly #backlog: number

  constructor(process: SimProcess, key: string, wake: () => void, backlog: number) {
    this.process = process
    this.host = process.host
    this.key = key
    this.#wake = wake
    this.#backlog = backlog
    process.onEnd((how) => {
      if (how === 'power') this.open = false
      // The last thing a kernel takes down
      else this.host.schedule(20 + process.random('end').unit() * 5, 'listener gone', () => this.close())
    })
  }

  get backlogFull(): boolean {
    return this.waiting.length >= this.#backlog
  }

  add(end: SimEnd): void {
    this.waiting.push(end)
    this.#wake()
  }

  close(): void {
    if (!this.open) return
    this.open = false
    const { listeners } = this.host.network
    if (listeners.get(this.key) === this) listeners.delete(this.key)
    for (const end of this.waiting.splice(0)) end.reset()
  }
}

interface Data {
  readonly kind: 'data'
  readonly slab: Slab
  readonly start: number
  readonly length: number
}

type Packet = Data | { readonly kind: 'room'; readonly count: number } | { readonly kind: 'fin' } | { readonly kind: 'reset' }

/** One end of a stream, in its host's kernel. */
export class SimEnd implements EventOwner {
  readonly network: SimNetwork
  readonly process: SimProcess
  readonly host: SimHost
  readonly id: number
  other!: SimEnd
  /** That was connected to; NaN: not a port. */
  port = Number.NaN
  /** Called when there is something to read, room to send, or an end. */
  onChange: (() => void) | undefined
  readonly #inbox: Data[] = []
  /** Bytes taken of the first. */
  #inboxTaken = 0
  inboxBytes = 0
  /** The peer has sent all it will. */
  ended = false
  /** errno of a reset or a timeout; 0 = none. */
  error = 0
  /** This host's kernel no longer knows the connection. */
  gone = false
  closed = false
  #windowBytes: number
  #aheadBytes = 0
  #lastArrivalMs = 0
  readonly #held: Packet[] = []
  #heldSince = 0

  constructor(network: SimNetwork, process: SimProcess, host: SimHost) {
    this.network = network
    this.process = process
    this.host = host
    this.id = network.nextConnection()
    const { windowMinBytes, windowMaxBytes } = network.options
    this.#windowBytes = network.random.between(windowMinBytes, windowMaxBytes)
    network.ends.add(this)
    process.onEnd((how) => {
      if (how === 'power') this.vanish()
      else this.host.schedule(process.random('end').unit() * 15, 'socket gone', () => this.close())
    })
  }

  /** Bytes the kernel takes now. */
  get room(): number {
    return this.error || this.closed ? 0 : this.#windowBytes - this.#aheadBytes
  }

  /** Takes a copy of bytes; they arrive in any pieces. */
  push(source: Uint8Array, sourceStart: number, lengthBytes: number): void {
    const { random, options, buffers } = this.network
    this.#aheadBytes += lengthBytes
    const { slab, at } = buffers.place(lengthBytes)
    copyBytes(slab.bytes, at, source, sourceStart, lengthBytes)
    let start = 0
    while (lengthBytes - start > 1 && random.chance(options.fragment)) {
      const n = random.chance(0.2) ? 1 : random.between(1, lengthBytes - start - 1)
      this.#transmit({ kind: 'data', slab: slab.shared(), start: at + start, length: n })
      start += n
    }
    this.#transmit({ kind: 'data', slab, start: at + start, length: lengthBytes - start })
  }

  /** Moves up to `lengthBytes` to `target`; returns how many. */
  take(target: Uint8Array, start: number, lengthBytes: number): number {
    let done = 0
    while (done < lengthBytes && this.#inbox.length > 0) {
      const chunk = this.#inbox[0]!
      const n = Math.min(chunk.length - this.#inboxTaken, lengthBytes - done)
      copyBytes(target, start + done, chunk.slab.bytes, chunk.start + this.#inboxTaken, n)
      done += n
      this.#inboxTaken += n
      if (this.#inboxTaken === chunk.length) {
        this.#inbox.shift()
        this.#inboxTaken = 0
        chunk.slab.release()
      }
    }
    this.inboxBytes -= done
    if (done > 0 && !this.other.gone) {
      if (this.network.passes(this.host, this.other.host) && this.#held.length === 0) this.other.gotRoom(done)
      else this.#transmit({ kind: 'room', count: done })
    }
    return done
  }

  gotRoom(count: number): void {
    this.#aheadBytes -= count
    this.onChange?.()
  }

  /** close(2): the peer reads what was sent, then an end; a reset if something unread is thrown away here. */
  close(): void {
    if (this.closed || this.gone) return
    this.closed = true
    this.onChange = undefined
    if (this.error) this.#forget()
    else if (this.inboxBytes > 0) this.reset()
    else this.#transmit({ kind: 'fin' })
  }

  reset(): void {
    if (this.gone) return
    this.closed = true
    this.onChange = undefined
    this.#transmit({ kind: 'reset' })
    this.#forget()
  }

  /** A packet was lost on the way: what is sent from now on arrives in so many ms at the earliest. Other connections go on. */
  stall(ms: number): void {
    this.#lastArrivalMs = Math.max(this.#lastArrivalMs, this.network.world.nowMs + ms)
  }

  get place(): string {
    return `${this.host.name} -> ${this.other.host.name}`
  }

  /** Of its packets, whatever becomes of their sender: they are on their way. */
  deliver(event: SimEvent): void {
    runEvent(event)
  }

  /** It is told that the connection is no more; so is the peer, if it sends something. */
  forgotten(): void {
    if (this.gone || this.error) return
    this.#held.length = 0
    this.network.holding(this, false)
    this.#fail(Errno.ECONNRESET)
    this.gone = true
  }

  /** The host lost its power. */
  vanish(): void {
    this.#held.length = 0
    this.network.holding(this, false)
    this.#forget()
  }

  #forget(): void {
    this.gone = true
    this.network.ends.delete(this)
  }

  #transmit(packet: Packet): void {
    if (this.#held.length > 0 || !this.network.passes(this.host, this.other.host)) {
      this.#hold(packet)
      return
    }
    const { world } = this.network
    const awayMs = this.process.alive ? this.process.localNowMs - world.nowMs : 0
    const atMs = Math.max(this.#lastArrivalMs, world.nowMs + awayMs + this.network.delayMs(this.host, this.other.host))
    this.#lastArrivalMs = atMs
    if (packet.kind === 'data') this.#flip(packet)
    const fromBoots = this.host.boots
    const bytes = packet.kind === 'data' ? packet.length : -1
    world.scheduleAt(
      atMs,
      packet.kind,
      () => {
        if (this.#held.length > 0 || !this.network.passes(this.host, this.other.host)) {
          // Lost on the way: sent again once the link heals, if the sender still has its power
          if (this.host.up && this.host.boots === fromBoots) this.#hold(packet)
          return
        }
        this.other.#arrived(packet)
      },
      this.id,
      bytes,
      this,
    )
  }

  /** The bytes are the kernel's own. */
  #flip({ slab, start, length }: Data): void {
    const { network } = this
    const chance = network.flipChance(this.host, this.other.host)
    if (chance === 0 || !network.flippedPorts.has(this.port) || !network.random.chance(chance)) return
    network.flips++
    const bit = network.random.below(length * 8)
    slab.bytes[start + (bit >> 3)]! ^= 1 << (bit & 7)
    network.world.note('flipped bit', () => `${this.host.name} -> ${this.other.host.name}, ${bit >> 3} of ${length}`)
  }

  #hold(packet: Packet): void {
    this.#held.push(packet)
    if (this.#held.length > 1) return
    this.#heldSince = this.network.world.nowMs
    this.network.holding(this, true)
    const since = this.#heldSince
    this.host.schedule(this.network.options.tcpTimeoutMs, 'given up', () => {
      if (this.#held.length === 0 || this.#heldSince !== since) return
      this.#held.length = 0
      this.network.holding(this, false)
      if (this.gone) return
      this.#fail(Errno.ETIMEDOUT)
    })
  }

  /** The link may be open again: the retransmission timer finds out after a while (the longer the cut, the later). */
  flushHeld(): void {
    if (this.#held.length === 0 || !this.network.passes(this.host, this.other.host)) return
    const heldMs = this.network.world.nowMs - this.#heldSince
    const delayMs = 0.2 + this.network.random.unit() * Math.min(2000, heldMs)
    this.host.schedule(delayMs, 'sent again', () => {
      if (this.#held.length === 0 || !this.network.passes(this.host, this.other.host)) return
      const packets = this.#held.splice(0)
      this.#heldSince = 0
      this.network.holding(this, false)
      for (const packet of packets) this.#transmit(packet)
    })
  }

  #arrived(packet: Packet): void {
    if (this.gone) {
      // A kernel that does not know the connection says so
      const other = this.other
      if (packet.kind !== 'reset' && !other.gone && !other.error) {
        this.network.world.schedule(this.network.delayMs(this.host, other.host), 'reset', () => {
          if (!other.gone && this.network.passes(this.host, other.host)) other.#fail(Errno.ECONNRESET)
        })
      }
      return
    }
    switch (packet.kind) {
      case 'data':
        if (this.closed) {
          // Bytes for a socket nobody reads any more
          this.reset()
          return
        }
        this.#inbox.push(packet)
        this.inboxBytes += packet.length
        break
      case 'room':
        this.#aheadBytes -= packet.count
        break
      case 'fin':
        this.ended = true
        if (this.closed) this.#forget()
        break
      case 'reset':
        this.#fail(Errno.ECONNRESET)
        return
    }
    this.onChange?.()
  }

  #fail(error: number): void {
    if (this.error) return
    this.error = error
    this.#inbox.length = 0
    this.inboxBytes = 0
    const { onChange } = this
    if (this.closed) this.#forget()
    else this.network.ends.delete(this)
    onChange?.()
  }
}
