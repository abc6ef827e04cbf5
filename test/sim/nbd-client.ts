/**
 * Clients that speak NBD's bytes to the real server of a node, over the simulated network: each connection is a process of its own on an
 * initiator's host, so that a lost connection is, for whoever sits on it, the end of that process (what it had under way may have happened or
 * not), and the next connection goes to any node.
 *
 * The bytes are written and read here by hand, after the NBD project's proto.md, not with the tables of src/wire: a mistake in those would be
 * made on both sides alike. They are sent in pieces of any size and received in pieces of any size.
 */
import { assert } from '../../src/base/assert.ts'
import type { Prng } from '../../src/base/prng.ts'
import { type Done, WriteFlag } from '../../src/base/request.ts'
import { Status } from '../../src/base/status.ts'
import { PAGE_BYTES } from '../../src/base/units.ts'
import { AsyncIo } from '../../src/env/async-io.ts'
import type { Handle } from '../../src/env/ioqueue.ts'
import { SimHost, type SimProcess } from '../../src/env/sim/host.ts'
import type { SimIoQueue } from '../../src/env/sim/ioqueue.ts'
import type { SimCluster } from './cluster.ts'
import type { SimNode } from './node.ts'
import type { ClientSeat, SeatVolumes } from './workload.ts'

export const NBD_PORT = 10809
const ARENA_BYTES = 4 * 1024 * 1024
const STAGE_BYTES = 64 * 1024
/** Who waits longer for any answer gives the connection up, as initiators do. */
const PATIENCE_MS = [3000, 12_000] as const
const PATIENCE_EVERY_MS = 500
/** Share of the pieces sent or received that are tiny. */
const TINY = 0.2
const TINY_BYTES_MAX = 40

const Command = { READ: 0, WRITE: 1, FLUSH: 3, TRIM: 4, WRITE_ZEROES: 6 } as const
const FUA = 1
const OPT_EXPORT_NAME = 1
const OPT_GO = 7
const OPT_STRUCTURED_REPLY = 8
const REP_ACK = 1
const REQUEST_BYTES = 28

/** An answer that breaks the protocol. */
class Nonsense extends Error {
  override name = 'Nonsense'
}

interface Pending {
  readonly command: number
  readonly page: number
  readonly offsetBytes: number
  readonly lengthBytes: number
  readonly done: Done
  readonly row: number
  readonly sinceMs: number
}

/** Connections of one initiator, one at a time. */
export class NbdInitiator {
  readonly #cluster: SimCluster
  readonly #name: string
  readonly #volume: string
  readonly #random: Prng
  readonly #host: SimHost
  readonly #choose: () => SimNode | undefined
  #connection: NbdConnection | undefined
  connections = 0

  /** `choose`: the node to connect to next. */
  constructor(cluster: SimCluster, options: { name: string; number: number; volume: string; random: Prng; choose: () => SimNode | undefined }) {
    this.#cluster = cluster
    this.#name = options.name
    this.#volume = options.volume
    this.#random = options.random
    this.#choose = options.choose
    this.#host = new SimHost(cluster.network, { name: options.name, address: `10.0.2.${options.number}` })
  }

  /** Nothing of it is left on any node soon. */
  close(): void {
    this.#connection?.process.kill()
  }

  /** A seat on the present connection; without one, a connection is begun and the answer is undefined. */
  readonly seat = (): ClientSeat | undefined => {
    const present = this.#connection
    if (present?.process.alive)
      return present.ready ? { process: present.process, queue: present.queue, volumes: present, trusted: present.trusted } : undefined
    const node = this.#choose()
    if (node === undefined) return undefined
    this.connections++
    const process = this.#host.start(`${this.#name}.${this.connections}`)
    const connection = new NbdConnection(process, node, this.#volume, this.#random)
    this.#connection = connection
    process.schedule(0, 'nbd connect', () => {
      this.#cluster.world.asyncPending = true
      connection.run().catch((error: unknown) => this.#cluster.world.fail(error))
    })
    return undefined
  }
}

class NbdConnection implements SeatVolumes {
  readonly process: SimProcess
  readonly queue: SimIoQueue
  readonly trusted: () => boolean
  ready = false
  readonly #io: AsyncIo
  readonly #random: Prng
  readonly #address: string
  readonly #volume: string
  readonly #pending = new Map<number, Pending>()
  #cookie = 0
  #socket: Handle | undefined
  #sizeBytes = 0
  #structured = false
  readonly #outPage: number
  readonly #inPage: number
  readonly #toSend: Uint8Array[] = []
  #sending = false
  /** What has come and was not taken: from `#gotStart` to `#gotEnd`. */
  #got = new Uint8Array(2 * STAGE_BYTES)
  #gotStart = 0
  #gotEnd = 0

  constructor(process: SimProcess, node: SimNode, volume: string, random: Prng) {
    this.process = process
    this.#volume = volume
    this.#random = random
    this.#address = node.host.address
    this.trusted = () => process.world.nowMs >= node.untrustedUntilMs
    this.queue = node.cluster.openQueue(process, 'initiator', ARENA_BYTES)
    this.queue.runReactor(() => {
      this.queue.turn(0)
    })
    this.#io = new AsyncIo(this.queue)
    this.#outPage = this.queue.arena.alloc(STAGE_BYTES)
    this.#inPage = this.queue.arena.alloc(STAGE_BYTES)
  }

  /** Connects, negotiates, and receives answers until the connection is lost: then its process ends. */
  async run(): Promise<void> {
    const { handle, result } = await this.#io.connectTcp({ host: this.#address, port: NBD_PORT })
    this.#socket = handle
    if (result < 0 || !(await this.#negotiate())) {
      this.#lost()
      return
    }
    this.ready = true
    this.#watch()
    while (await this.#answer());
    this.#lost()
  }

  #lost(): void {
    this.ready = false
    this.process.kill()
  }

  /** Gives up when an answer is overdue. */
  #watch(): void {
    const patienceMs = this.#random.between(...PATIENCE_MS)
    const look = () => {
      const oldest = Math.min(Number.POSITIVE_INFINITY, ...[...this.#pending.values()].map(({ sinceMs }) => sinceMs))
      if (this.process.localNowMs - oldest > patienceMs) this.#lost()
      else this.process.schedule(PATIENCE_EVERY_MS, 'initiator looks', look)
    }
    this.process.schedule(PATIENCE_EVERY_MS, 'initiator looks', look)
  }

  // ---- negotiation -------------------------------------------------------------------------------------------------------
  async #negotiate(): Promise<boolean> {
    const greeting = await this.#take(18)
    if (!greeting) return false
    if (text(greeting, 0, 16) !== 'NBDMAGICIHAVEOPT') throw new Nonsense('the greeting is not that of a fixed newstyle server')
    this.#send(words(16, (v) => v.setUint32(0, 3)).subarray(0, 4))
    if (this.#random.chance(0.5)) {
      this.#option(OPT_STRUCTURED_REPLY, new Uint8Array(0))
      const reply = await this.#optionReply(OPT_STRUCTURED_REPLY)
      if (!reply) return false
      this.#structured = reply.type === REP_ACK
    }
    const name = new TextEncoder().encode(this.#volume)
    if (this.#random.chance(0.3)) {
      this.#option(OPT_EXPORT_NAME, name)
      const info = await this.#take(10)
      if (!info) return false
      this.#sizeBytes = Number(view(info).getBigUint64(0))
      return true
    }
    const data = new Uint8Array(4 + name.length + 2)
    view(data).setUint32(0, name.length)
    data.set(name, 4)
    this.#option(OPT_GO, data)
    for (;;) {
      const reply = await this.#optionReply(OPT_GO)
      if (!reply || reply.type >= 0x8000_0000) return false
      if (reply.type === REP_ACK) return true
      if (view(reply.data).getUint16(0) === 0) this.#sizeBytes = Number(view(reply.data).getBigUint64(2))
    }
  }

  #option(option: number, data: Uint8Array): void {
    const head = words(16 + data.length, (v) => {
      v.setUint32(0, 0x49484156)
      v.setUint32(4, 0x454f5054)
      v.setUint32(8, option)
      v.setUint32(12, data.length)
    })
    head.set(data, 16)
    this.#send(head)
  }

  async #optionReply(option: number): Promise<{ type: number; data: Uint8Array } | undefined> {
    const head = await this.#take(20)
    if (!head) return undefined
    const v = view(head)
    if (v.getBigUint64(0) !== 0x3e889045565a9n || v.getUint32(8) !== option) throw new Nonsense('an option reply that answers nothing')
    const data = await this.#take(v.getUint32(16))
    return data && { type: v.getUint32(12), data }
  }

  // ---- requests ----------------------------------------------------------------------------------------------------------
  open(name: string) {
    return name === this.#volume && this.ready ? { volume: 0 as never, sizeBytes: this.#sizeBytes, readOnly: false } : undefined
  }

  zeroScratchPages(): number {
    return 0
  }

  read(_volume: number, offsetBytes: number, lengthBytes: number, page: number, done: Done, row: number): void {
    this.#request(Command.READ, 0, offsetBytes, lengthBytes, page, done, row)
  }

  write(_volume: number, offsetBytes: number, lengthBytes: number, page: number, flags: number, done: Done, row: number): void {
    this.#request(Command.WRITE, flags, offsetBytes, lengthBytes, page, done, row)
  }

  zero(_volume: number, offsetBytes: number, lengthBytes: number, _scratch: number, flags: number, done: Done, row: number): void {
    this.#request(Command.WRITE_ZEROES, flags, offsetBytes, lengthBytes, -1, done, row)
  }

  trim(_volume: number, offsetBytes: number, lengthBytes: number, flags: number, done: Done, row: number): boolean {
    this.#request(Command.TRIM, flags, offsetBytes, lengthBytes, -1, done, row)
    return true
  }

  flush(_volume: number, done: Done, row: number): void {
    this.#request(Command.FLUSH, 0, 0, 0, -1, done, row)
  }

  #request(command: number, flags: number, offsetBytes: number, lengthBytes: number, page: number, done: Done, row: number): void {
    const cookie = ++this.#cookie
    this.#pending.set(cookie, { command, page, offsetBytes, lengthBytes, done, row, sinceMs: this.process.localNowMs })
    const payloadBytes = command === Command.WRITE ? lengthBytes : 0
    const bytes = words(REQUEST_BYTES + payloadBytes, (v) => {
      v.setUint32(0, 0x25609513)
      v.setUint16(4, flags === WriteFlag.FUA ? FUA : 0)
      v.setUint16(6, command)
      v.setBigUint64(8, BigInt(cookie))
      v.setBigUint64(16, BigInt(offsetBytes))
      v.setUint32(24, lengthBytes)
    })
    if (payloadBytes > 0) {
      const at = page * PAGE_BYTES + (offsetBytes % PAGE_BYTES)
      bytes.set(this.queue.arena.bytes.subarray(at, at + payloadBytes), REQUEST_BYTES)
    }
    this.#send(bytes)
  }

  /** Takes one reply; false when the connection is lost. */
  async #answer(): Promise<boolean> {
    const head = await this.#take(16)
    if (!head) return false
    const v = view(head)
    const magic = v.getUint32(0)
    if (magic === 0x67446698) {
      const pending = this.#pendingOf(v.getBigUint64(8))
      const error = v.getUint32(4)
      if (pending.command === Command.READ) {
        if (this.#structured) throw new Nonsense('a read answered by a simple reply, though structured ones were agreed')
        if (error === 0 && !(await this.#takeData(pending, pending.lengthBytes))) return false
      }
      this.#finish(v.getBigUint64(8), error)
      return true
    }
    if (magic !== 0x668e33ef || !this.#structured) throw new Nonsense(`a reply with the magic number 0x${magic.toString(16)}`)
    const rest = await this.#take(4)
    if (!rest) return false
    const cookie = v.getBigUint64(8)
    const pending = this.#pendingOf(cookie)
    const type = v.getUint16(6)
    const lengthBytes = view(rest).getUint32(0)
    if (v.getUint16(4) !== 1) throw new Nonsense('a chunk that is not the last one')
    if (type === 1) {
      const offset = await this.#take(8)
      if (!offset) return false
      if (Number(view(offset).getBigUint64(0)) !== pending.offsetBytes || lengthBytes !== 8 + pending.lengthBytes)
        throw new Nonsense('data of another range than asked')
      if (!(await this.#takeData(pending, pending.lengthBytes))) return false
      this.#finish(cookie, 0)
      return true
    }
    if (type !== 0x8001) throw new Nonsense(`a chunk of type ${type}`)
    const data = await this.#take(lengthBytes)
    if (!data) return false
    this.#finish(cookie, view(data).getUint32(0))
    return true
  }

  #pendingOf(cookie: bigint): Pending {
    const pending = this.#pending.get(Number(cookie))
    if (!pending) throw new Nonsense(`an answer to ${cookie}, which is not waited for`)
    return pending
  }

  #finish(cookie: bigint, error: number): void {
    const pending = this.#pendingOf(cookie)
    this.#pending.delete(Number(cookie))
    pending.done(pending.row, STATUS_OF.get(error) ?? Status.INTERNAL)
  }

  // ---- bytes -------------------------------------------------------------------------------------------------------------
  #piece(lengthBytes: number): number {
    const most = this.#random.chance(TINY) ? TINY_BYTES_MAX : STAGE_BYTES
    return Math.min(lengthBytes, this.#random.between(1, most))
  }

  #send(bytes: Uint8Array): void {
    this.#toSend.push(bytes)
    if (this.#sending) return
    this.#sending = true
    void this.#pump()
  }

  async #pump(): Promise<void> {
    assert(this.#socket !== undefined, 'sending before there is a connection')
    for (let next = this.#toSend.shift(); next !== undefined; next = this.#toSend.shift()) {
      for (let at = 0; at < next.length; ) {
        const n = this.#piece(next.length - at)
        this.queue.arena.bytes.set(next.subarray(at, at + n), this.#outPage * PAGE_BYTES)
        // A lost connection is noticed by the receiving side
        if ((await this.#io.send(this.#socket, this.#outPage, 0, n)) < 0) return
        at += n
      }
    }
    this.#sending = false
  }

  /** More bytes in `#got`; false when the connection is lost. */
  async #more(): Promise<boolean> {
    const n = await this.#io.recv(this.#socket!, this.#inPage, 0, this.#piece(STAGE_BYTES))
    if (n <= 0) return false
    const from = this.#inPage * PAGE_BYTES
    if (this.#gotEnd + n > this.#got.length) {
      const left = this.#got.subarray(this.#gotStart, this.#gotEnd)
      if (left.length + n > this.#got.length / 2) this.#got = new Uint8Array(2 * (this.#got.length + n))
      this.#got.set(left)
      this.#gotStart = 0
      this.#gotEnd = left.length
    }
    this.#got.set(this.queue.arena.bytes.subarray(from, from + n), this.#gotEnd)
    this.#gotEnd += n
    return true
  }

  async #take(lengthBytes: number): Promise<Uint8Array | undefined> {
    while (this.#gotEnd - this.#gotStart < lengthBytes) if (!(await this.#more())) return undefined
    return this.#consume(lengthBytes).slice()
  }

  /** Of what has come; valid until more does. */
  #consume(lengthBytes: number): Uint8Array {
    this.#gotStart += lengthBytes
    return this.#got.subarray(this.#gotStart - lengthBytes, this.#gotStart)
  }

  async #takeData(pending: Pending, lengthBytes: number): Promise<boolean> {
    while (this.#gotEnd - this.#gotStart < lengthBytes) if (!(await this.#more())) return false
    this.queue.arena.bytes.set(this.#consume(lengthBytes), pending.page * PAGE_BYTES + (pending.offsetBytes % PAGE_BYTES))
    return true
  }
}

const STATUS_OF: ReadonlyMap<number, number> = new Map([
  [0, Status.SUCCESS],
  [1, Status.READ_ONLY],
  [5, Status.READ_FAILED],
  [22, Status.INVALID_PARAM],
  [28, Status.INSUFFICIENT_SPACE],
  [108, Status.STOPPING],
])

const view = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
const text = (bytes: Uint8Array, from: number, to: number) => String.fromCharCode(...bytes.subarray(from, to))

function words(lengthBytes: number, fill: (view: DataView) => void): Uint8Array {
  const bytes = new Uint8Array(lengthBytes)
  fill(view(bytes))
  return bytes
}
