/**
 * The simulated control environment of one process: calls, datagrams, a key-value store, a clock, randomness, a log, and the ports
 * between its main thread and its reactors. Everything ends with the process; only what a {@link SimKvStore} holds outlives it.
 *
 * Whatever settles a promise or calls a handler sets `world.asyncPending`, so that promises run before the next event.
 */
import { assert } from '../../base/assert.ts'
import { messageOf, XsanError } from '../../base/errors.ts'
import type { Prng } from '../../base/prng.ts'
import type {
  CallContext,
  CallOptions,
  Clock,
  ControlEnv,
  Datagram,
  Entropy,
  Kv,
  KvOp,
  Log,
  LogLevelName,
  Message,
  MethodHandler,
  Rpc,
  TimerId,
} from '../control.ts'
import type { SimHost, SimProcess } from './host.ts'
import type { SimIoQueue } from './ioqueue.ts'
import type { SimListener, SimNetwork } from './network.ts'
import type { SimEvent, World } from './world.ts'

/** What a message looks like on the other side. The default is a deep copy; one made from proto/ adds defaults and refuses unknown fields. */
export interface RpcCodec {
  request(method: string, message: Message): Message
  response(method: string, message: Message): Message
}

const CLONE: RpcCodec = {
  request: (_method, message) => structuredClone(message),
  response: (_method, message) => structuredClone(message),
}

/** A connection on which nothing came through for so long is given up (keepalive of the real one). */
const RPC_KEEPALIVE_MS = 8_000
const RPC_RETRY_MS = 50
/** Chance that a call overtakes an earlier one to the same server. */
const RPC_REORDER = 0.05

/** As `structuredClone`, which takes several times as long for what messages are made of. */
export function copyOf<T>(value: T): T {
  if (typeof value !== 'object' || value === null) {
    if (typeof value === 'function' || typeof value === 'symbol') throw new TypeError(`a message cannot carry a ${typeof value}`)
    return value
  }
  if (Array.isArray(value)) return value.map(copyOf) as T
  if (value instanceof Uint8Array && value.buffer instanceof ArrayBuffer && !Buffer.isBuffer(value)) return value.slice() as T
  if (Object.getPrototypeOf(value) !== Object.prototype) return structuredClone(value)
  const copy: Record<string, unknown> = {}
  for (const [name, field] of Object.entries(value)) copy[name] = copyOf(field)
  return copy as T
}

/** What the control environments of one world share. */
export class SimControlNetwork {
  readonly network: SimNetwork
  readonly codec: RpcCodec
  readonly rpcServers = new Map<string, SimRpc>()
  readonly datagrams = new Map<string, SimDatagram>()
  readonly groups = new Map<string, Set<SimDatagram>>()
  readonly datagramFaults = { loss: 0, duplicate: 0, late: 0, lateMs: 20 }
  /** Called with each log line of any process. */
  onLog: ((line: SimLogLine) => void) | undefined

  constructor(network: SimNetwork, codec: RpcCodec = CLONE) {
    this.network = network
    this.codec = codec
  }

  /** A new environment for `process`; its Kv is the store of that name on its host, locked by it. */
  env(process: SimProcess, options: { kvName?: string } = {}): SimControlEnv {
    return {
      rpc: new SimRpc(this, process),
      datagram: new SimDatagram(this, process),
      kv: new SimKv(process, kvStore(process.host, options.kvName ?? 'kv')),
      clock: new SimClock(process),
      entropy: new SimEntropy(process),
      log: new SimLog(this, process, {}),
    }
  }
}

export interface SimControlEnv extends ControlEnv {
  readonly rpc: SimRpc
  readonly datagram: SimDatagram
  readonly kv: SimKv
  readonly clock: SimClock
  readonly log: SimLog
}

// ---- calls -----------------------------------------------------------------------------------------------------------
interface Call {
  readonly method: string
  readonly address: string
  readonly respond: (outcome: { response: Message } | { error: unknown }) => void
  over: boolean
}

export class SimRpc implements Rpc {
  readonly #shared: SimControlNetwork
  readonly #process: SimProcess
  readonly #world: World
  readonly #random: Prng
  readonly #methods = new Map<string, MethodHandler>()
  readonly #serving = new Set<Call>()
  readonly #lastArrivalMs = new Map<string, number>()
  #listener: SimListener | undefined
  #address = ''
  #closed = false
  /** Calls this process has made that have not ended. */
  callsOut = 0

  /** Calls to this process that it has not answered. */
  get callsIn(): number {
    return this.#serving.size
  }

  constructor(shared: SimControlNetwork, process: SimProcess) {
    this.#shared = shared
    this.#process = process
    this.#world = process.world
    this.#random = process.random('rpc')
    process.onEnd((how) => {
      this.#closed = true
      if (this.#shared.rpcServers.get(this.#address) === this) this.#shared.rpcServers.delete(this.#address)
      // A kernel closes the connections of a killed process; one without power says nothing
      const calls = [...this.#serving]
      this.#serving.clear()
      const fail = (call: Call) => call.respond({ error: unreachable(call, 'the connection was lost') })
      if (how === 'killed') for (const call of calls) process.host.schedule(this.#random.unit() * 10, 'rpc lost', () => fail(call))
      else for (const call of calls) this.#world.schedule(RPC_KEEPALIVE_MS, 'rpc lost', () => fail(call))
    })
  }

  serve(service: string, methods: Readonly<Record<string, MethodHandler>>): void {
    assert(this.#listener === undefined, `serve ${service}: already listening`)
    for (const [name, handler] of Object.entries(methods)) this.#methods.set(`${service}/${name}`, handler)
  }

  async listen(options: { host: string; port: number }): Promise<{ port: number }> {
    const { host } = this.#process
    const { network } = host
    const port = options.port || network.freePort(host)
    const key = `${host.address}:${port}`
    if (options.host !== '0.0.0.0' && network.hostAt(host, options.host) !== host) {
      throw new XsanError('INVALID_PARAM', `${options.host} is not an address of this host`, 'Set cluster.bind_ip to one that `ip addr` shows.')
    }
    if (network.listeners.has(key))
      throw new XsanError('BUSY', `port ${port} on ${options.host} is taken`, 'Stop that process, or choose another cluster.bind_port.')
    this.#listener = network.listen(this.#process, key, () => {}, 1024)
    this.#address = key
    this.#shared.rpcServers.set(key, this)
    return { port }
  }

  call(address: string, method: string, request: Message, { timeoutMs, metadata = {}, oneWay = false }: CallOptions): Promise<Message> {
    const process = this.#process
    const world = this.#world
    const { network } = this.#shared
    if (this.#closed) return Promise.reject(new XsanError('STOPPING', `${method}: this process is stopping`))
    // A copy at once: what the caller changes later is not sent
    const sent = this.#shared.codec.request(method, request)
    const from = process.host
    const colon = address.lastIndexOf(':')
    const to = network.hostAt(from, address.slice(0, colon))
    const key = to ? `${to.address}:${address.slice(colon + 1)}` : address
    this.callsOut++
    return new Promise((resolve, reject) => {
      let finished = false
      let deadline: SimEvent
      const finish = (outcome: { response: Message } | { error: unknown }) => {
        if (finished) return
        finished = true
        call.over = true
        world.cancel(deadline)
        if (!process.alive) return
        this.callsOut--
        world.asyncPending = true
        if ('response' in outcome) resolve(outcome.response)
        else reject(outcome.error)
      }
      /** Back over the network, when it lets it through. */
      const back = (outcome: { response: Message } | { error: unknown }) => {
        if (finished) return
        if (!to) return
        if (!network.passes(to, from)) {
          world.schedule(RPC_RETRY_MS * (0.5 + this.#random.unit()), 'rpc answer waits', () => back(outcome))
          return
        }
        world.schedule(network.delayMs(to, from), 'rpc answer', () => process.schedule(0, 'rpc done', () => finish(outcome)))
      }
      const call: Call = { method, address, over: false, respond: back }
      deadline = process.schedule(from.trueSpanMs(timeoutMs), 'rpc timeout', () => {
        finish({
          error: new XsanError('NETWORK_TIMEOUT', `${address} did not answer ${method} within ${timeoutMs} ms`, 'Look at the network and at that node.'),
        })
      })
      if (!to) {
        process.schedule(1, 'rpc no route', () => finish({ error: unreachable(call, 'no such host') }))
        return
      }
      const sentAtMs = world.nowMs
      const arrive = () => {
        if (!network.passes(from, to) || !network.passes(to, from)) {
          if (finished) return
          if (world.nowMs - sentAtMs >= RPC_KEEPALIVE_MS) process.schedule(0, 'rpc given up', () => finish({ error: unreachable(call, 'no answer') }))
          else world.schedule(RPC_RETRY_MS * (0.5 + this.#random.unit()), 'rpc waits', arrive)
          return
        }
        const server = this.#shared.rpcServers.get(key)
        if (!server) {
          back({ error: unreachable(call, 'connection refused') })
          return
        }
        const leftMs = timeoutMs - (world.nowMs - sentAtMs)
        server.#serve(call, sent, { peer: `${from.address}:0`, timeoutMs: Math.max(0, leftMs), metadata: { ...metadata } })
      }
      let atMs = process.localNowMs + network.delayMs(from, to)
      const lastMs = this.#lastArrivalMs.get(key) ?? 0
      if (atMs < lastMs && !this.#random.chance(RPC_REORDER)) atMs = lastMs
      this.#lastArrivalMs.set(key, Math.max(lastMs, atMs))
      world.scheduleAt(atMs, 'rpc', arrive)
      // what meets a partition from now on is lost: nobody waits for it
      if (oneWay) process.schedule(0, 'rpc sent', () => finish({ response: {} }))
    })
  }

  #serve(call: Call, request: Message, context: CallContext): void {
    this.#serving.add(call)
    const handler = this.#methods.get(call.method)
    this.#process.schedule(0.01, `rpc ${call.method}`, () => {
      this.#world.asyncPending = true
      const done = (outcome: { response: Message } | { error: unknown }) => {
        if (!this.#process.alive || !this.#serving.delete(call)) return
        call.respond(outcome)
      }
      if (!handler) {
        done({ error: new XsanError('NOT_SUPPORTED', `${call.address} does not know ${call.method}`, 'See whether that node runs the same version.') })
        return
      }
      handler(request, context).then(
        (response) => {
          let copy: Message
          try {
            copy = this.#shared.codec.response(call.method, response)
          } catch (error) {
            this.#world.fail(error)
            return
          }
          done({ response: copy })
        },
        (error: unknown) => {
          if (error instanceof XsanError) done({ error: new XsanError(error.status, error.message, error.nextStep) })
          else {
            this.#shared.onLog?.({ process: this.#process, level: 'ERROR', message: `${call.method} failed`, fields: { error } })
            done({ error: new XsanError('INTERNAL', messageOf(error), "Look for this message in the node's log.") })
          }
        },
      )
    })
  }

  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    this.#listener?.close()
    if (this.#shared.rpcServers.get(this.#address) === this) this.#shared.rpcServers.delete(this.#address)
  }
}

function unreachable(call: Call, why: string): XsanError {
  return new XsanError('NODE_UNREACHABLE', `${call.address} cannot be reached for ${call.method}: ${why}`, 'See whether that node runs.')
}

// ---- datagrams -------------------------------------------------------------------------------------------------------
export class SimDatagram implements Datagram {
  readonly #shared: SimControlNetwork
  readonly #process: SimProcess
  readonly #random: Prng
  #address = ''
  #group = ''
  #onMessage: ((bytes: Uint8Array, from: string) => void) | undefined

  constructor(shared: SimControlNetwork, process: SimProcess) {
    this.#shared = shared
    this.#process = process
    this.#random = process.random('datagram')
    process.onEnd(() => this.#leave())
  }

  async bind(
    options: { host: string; port: number; multicastGroup?: string | undefined },
    onMessage: (bytes: Uint8Array, from: string) => void,
  ): Promise<{ port: number; multicast: boolean }> {
    const { host } = this.#process
    let { port } = options
    while (port === 0 || (options.port === 0 && this.#shared.datagrams.has(`${host.address}:${port}`))) port = 32768 + this.#random.below(28000)
    const address = `${host.address}:${port}`
    if (this.#shared.datagrams.has(address)) {
      throw new XsanError('BUSY', `cannot receive on UDP ${options.host}:${port}: address already in use`, 'Stop what holds the port, or choose another one.')
    }
    this.#address = address
    this.#onMessage = onMessage
    this.#shared.datagrams.set(address, this)
    if (options.multicastGroup === undefined) return { port, multicast: false }
    const [group = '', groupPort = String(port)] = options.multicastGroup.split(':')
    const first = Number(group.split('.')[0])
    if (!(first >= 224 && first <= 239)) return { port, multicast: false }
    this.#group = `${group}:${groupPort}`
    let members = this.#shared.groups.get(this.#group)
    if (!members) {
      members = new Set()
      this.#shared.groups.set(this.#group, members)
    }
    members.add(this)
    return { port, multicast: true }
  }

  send(bytes: Uint8Array, to: string): void {
    if (!this.#onMessage || !this.#process.alive) return
    const copy = bytes.slice()
    const members = this.#shared.groups.get(to)
    if (members) for (const member of members) this.#sendOne(copy, member)
    else {
      const { network } = this.#shared
      const colon = to.lastIndexOf(':')
      const host = network.hostAt(this.#process.host, to.slice(0, colon))
      const target = host && this.#shared.datagrams.get(`${host.address}:${to.slice(colon + 1)}`)
      if (target) this.#sendOne(copy, target)
    }
  }

  async close(): Promise<void> {
    this.#leave()
  }

  #sendOne(bytes: Uint8Array, target: SimDatagram): void {
    const { network, datagramFaults: faults } = this.#shared
    const from = this.#process.host
    const to = target.#process.host
    const copies = this.#random.chance(faults.duplicate) ? 2 : 1
    for (let i = 0; i < copies; i++) {
      if (this.#random.chance(faults.loss)) continue
      const lateMs = this.#random.chance(faults.late) ? this.#random.unit() * faults.lateMs : 0
      const address = this.#address
      from.world.schedule(network.delayMs(from, to) + lateMs + this.#process.localNowMs - from.world.nowMs, 'datagram', () => {
        if (!network.passes(from, to)) return
        target.#process.schedule(0, 'datagram in', () => {
          if (!target.#onMessage) return
          from.world.asyncPending = true
          target.#onMessage(bytes.slice(), address)
        })
      })
    }
  }

  #leave(): void {
    if (this.#shared.datagrams.get(this.#address) === this) this.#shared.datagrams.delete(this.#address)
    this.#shared.groups.get(this.#group)?.delete(this)
    this.#onMessage = undefined
  }
}

// ---- key-value store -------------------------------------------------------------------------------------------------
/** What one LevelDB directory holds. */
export class SimKvStore {
  readonly name: string
  readonly entries = new Map<string, Uint8Array>()
  holder: SimKv | undefined
  /** Every batch fails from now on, as on a dead disk. */
  failing = false
  slowMs = 0.5

  constructor(name: string) {
    this.name = name
  }

  apply(ops: readonly KvOp[]): void {
    for (const op of ops) {
      if (op.type === 'put') this.entries.set(op.key, op.value)
      else this.entries.delete(op.key)
    }
  }
}

export function kvStore(host: SimHost, name: string): SimKvStore {
  let store = host.kvStores.get(name)
  if (!store) {
    store = new SimKvStore(name)
    host.kvStores.set(name, store)
  }
  return store
}

interface PendingBatch {
  readonly ops: readonly KvOp[]
  readonly resolve: () => void
  readonly reject: (error: unknown) => void
}

export class SimKv implements Kv {
  readonly store: SimKvStore
  readonly #process: SimProcess
  readonly #random: Prng
  readonly #pending: PendingBatch[] = []
  readonly #waitingForIdle: Array<() => void> = []
  #writing = false
  #closed = false
  /** A write has failed: it was the last. */
  #isBroken = false

  /** Throws BUSY when another process has the store open. */
  constructor(process: SimProcess, store: SimKvStore) {
    if (store.holder && !store.holder.#closed) {
      throw new XsanError('BUSY', `${store.name} is open in another process`, 'Stop that process.')
    }
    this.#process = process
    this.store = store
    this.#random = process.random(`kv ${store.name}`)
    store.holder = this
    process.onEnd(() => {
      // Of what was on its way, any beginning may have reached the disk
      const count = this.#random.below(this.#pending.length + 1)
      if (!store.failing && !this.#isBroken) for (const batch of this.#pending.slice(0, count)) store.apply(batch.ops)
      this.#pending.length = 0
      this.#closed = true
    })
  }

  /** Batches that are not on the disk yet. */
  get batches(): number {
    return this.#pending.length
  }

  async scan(prefix: string): Promise<Array<{ key: string; value: Uint8Array }>> {
    assert(!this.#closed, 'scan of a closed store')
    if (this.#pending.length > 0) await new Promise<void>((resolve) => this.#waitingForIdle.push(resolve))
    return [...this.store.entries]
      .filter(([key]) => key.startsWith(prefix))
      .sort(([a], [b]) => compareBytewise(a, b))
      .map(([key, value]) => ({ key, value: value.slice() }))
  }

  batch(ops: readonly KvOp[]): Promise<void> {
    if (this.#closed) return Promise.reject(new XsanError('STOPPING', `${this.store.name} is closed`))
    const copies = ops.map((op): KvOp => (op.type === 'put' ? { type: 'put', key: op.key, value: op.value.slice() } : { type: 'delete', key: op.key }))
    return new Promise((resolve, reject) => {
      this.#pending.push({ ops: copies, resolve, reject })
      this.#write()
    })
  }

  async close(): Promise<void> {
    if (this.#pending.length > 0) await new Promise<void>((resolve) => this.#waitingForIdle.push(resolve))
    this.#closed = true
    if (this.store.holder === this) this.store.holder = undefined
  }

  /** One device flush for all batches that wait, as a group. */
  #write(): void {
    if (this.#writing || this.#pending.length === 0) return
    this.#writing = true
    const count = this.#pending.length
    this.#process.schedule(0.05 + this.#random.unit() * this.store.slowMs, 'kv batch', () => {
      this.#writing = false
      this.#process.world.asyncPending = true
      for (const batch of this.#pending.splice(0, count)) {
        if (this.store.failing || this.#isBroken) {
          // what has failed may be there all the same, and is found by the next process; nothing is behind it
          if (!this.#isBroken && this.#random.chance(0.5)) this.store.apply(batch.ops)
          this.#isBroken = true
          batch.reject(new XsanError('WRITE_FAILED', `${this.store.name}: input/output error`, 'Look at the disk.'))
        } else {
          this.store.apply(batch.ops)
          batch.resolve()
        }
      }
      this.#write()
      if (this.#pending.length === 0) for (const resolve of this.#waitingForIdle.splice(0)) resolve()
    })
  }
}

/** Order of the UTF-8 forms, which is that of the code points. */
function compareBytewise(a: string, b: string): number {
  const n = Math.min(a.length, b.length)
  for (let i = 0; i < n; i++) {
    const x = a.charCodeAt(i)
    const y = b.charCodeAt(i)
    if (x === y) continue
    const xSurrogate = x >= 0xd800 && x < 0xe000
    const ySurrogate = y >= 0xd800 && y < 0xe000
    return xSurrogate === ySurrogate ? x - y : xSurrogate ? 1 : -1
  }
  return a.length - b.length
}

// ---- clock, randomness, log ------------------------------------------------------------------------------------------
/** Start of the simulated calendar: 2026-01-01. */
const WALL_START_MS = 1_767_225_600_000

export class SimClock implements Clock {
  readonly #process: SimProcess
  readonly #random: Prng
  /** Timers set and not yet fired or cleared. */
  readonly #timers = new Set<SimEvent>()
  /** Timers fire up to so much late. */
  lateMs = 1

  constructor(process: SimProcess) {
    this.#process = process
    this.#random = process.random('timers')
  }

  nowMs(): number {
    return this.#process.bootMs()
  }

  wallMs(): number {
    return WALL_START_MS + Math.floor(this.#process.localNowMs)
  }

  setTimer(delayMs: number, fn: () => void): TimerId {
    const { host, world } = this.#process
    const event = this.#process.schedule(host.trueSpanMs(Math.max(0, delayMs)) + this.#random.unit() * this.lateMs + 2 / 1024, 'timer', () => {
      if (!this.#timers.delete(event)) return
      world.asyncPending = true
      fn()
    })
    this.#timers.add(event)
    return event as unknown as TimerId
  }

  clearTimer(id: TimerId): void {
    const event = id as unknown as SimEvent
    if (this.#timers.delete(event)) this.#process.world.cancel(event)
  }

  get timersSet(): number {
    return this.#timers.size
  }
}

export class SimEntropy implements Entropy {
  readonly #random: Prng

  constructor(process: SimProcess) {
    this.#random = process.random('entropy')
  }

  u32(): number {
    return this.#random.u32()
  }

  bytes(count: number): Uint8Array {
    const bytes = new Uint8Array(count)
    this.#random.fill(bytes)
    return bytes
  }

  uuid(): string {
    const bytes = this.bytes(16)
    bytes[6] = (bytes[6]! & 15) | 64
    bytes[8] = (bytes[8]! & 63) | 128
    const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('')
    return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`
  }
}

export interface SimLogLine {
  readonly process: SimProcess
  readonly level: LogLevelName
  readonly message: string
  readonly fields: Readonly<Record<string, unknown>>
}

export class SimLog implements Log {
  readonly #shared: SimControlNetwork
  readonly #process: SimProcess
  readonly #fields: Readonly<Record<string, unknown>>

  constructor(shared: SimControlNetwork, process: SimProcess, fields: Readonly<Record<string, unknown>>) {
    this.#shared = shared
    this.#process = process
    this.#fields = fields
  }

  log(level: LogLevelName, message: string, fields: Readonly<Record<string, unknown>> = {}): void {
    if (!this.#process.alive) return
    const all = { ...this.#fields, ...fields }
    this.#process.world.note('log', () => `${this.#process.host.name} ${level} ${message} ${textOf(all)}`)
    this.#shared.onLog?.({ process: this.#process, level, message, fields: all })
  }

  child(fields: Readonly<Record<string, unknown>>): Log {
    return new SimLog(this.#shared, this.#process, { ...this.#fields, ...fields })
  }
}

/** Fields as one line, whatever they hold. */
export function textOf(fields: Readonly<Record<string, unknown>>): string {
  return Object.entries(fields)
    .map(([name, value]) => `${name}=${value instanceof Error ? value.message : typeof value === 'object' ? JSON.stringify(value) : String(value)}`)
    .join(' ')
}

// ---- main thread <-> reactor -----------------------------------------------------------------------------------------
interface SimPort<Out, In> {
  send(message: Out): void
  onMessage(handler: (message: In) => void): void
}

/**
 * The two ends of the message channel between the main thread of a process and a reactor. Order is kept; messages are copies.
 * The reactor's handler is called in a turn of its queue, as with the real one.
 */
export function portPair<Down, Up>(process: SimProcess, queue: SimIoQueue): { control: SimPort<Down, Up>; reactor: SimPort<Up, Down> } {
  const random = process.random(`port ${queue.name}`)
  const { world } = process
  const controlHandlers: Array<(message: Up) => void> = []
  const reactorHandlers: Array<(message: Down) => void> = []
  const toReactor: Down[] = []
  const toControl: Up[] = []
  let downAtMs = 0
  let upAtMs = 0
  const deliverUp = () => {
    if (controlHandlers.length === 0) return
    world.asyncPending = true
    while (toControl.length > 0) {
      const message = toControl.shift()!
      for (const handler of controlHandlers) handler(message)
    }
  }
  queue.onWake(() => {
    if (reactorHandlers.length === 0) return
    while (toReactor.length > 0) {
      const message = toReactor.shift()!
      for (const handler of reactorHandlers) handler(message)
    }
  })
  return {
    control: {
      send(message: Down): void {
        const copy = copyOf(message)
        downAtMs = Math.max(downAtMs, process.localNowMs + 0.005 + random.unit() * 0.1)
        process.schedule(downAtMs - process.localNowMs, 'to reactor', () => {
          toReactor.push(copy)
          queue.wake()
        })
      },
      onMessage(handler: (message: Up) => void): void {
        controlHandlers.push(handler)
        process.schedule(0, 'to control', deliverUp)
      },
    },
    reactor: {
      send(message: Up): void {
        const copy = copyOf(message)
        upAtMs = Math.max(upAtMs, process.localNowMs + 0.005 + random.unit() * 0.1)
        process.schedule(upAtMs - process.localNowMs, 'to control', () => {
          toControl.push(copy)
          deliverUp()
        })
      },
      onMessage(handler: (message: Down) => void): void {
        reactorHandlers.push(handler)
        queue.wake()
      },
    },
  }
}
