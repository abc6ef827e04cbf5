/**
 * A load that knows what it may read. Every sector it writes describes itself:
 *
 *   0        8     12     16                        512
 *   | offset | seq | crc32 | words from offset and seq |
 *
 * `seq` counts the writes of that sector. A sector has at most one write in flight; one whose connection was lost, or whose node is silent for
 * `patienceMs`, is sent again (the same bytes) through the next node until it is acknowledged. So at any time
 *
 *   floor  = newest seq acknowledged or read so far   <=   what a read started now may return   <=   issued = newest seq sent
 *
 * Invariants: below the floor is a lost write or a read that went back in time; above `issued`, a wrong checksum or a wrong offset is corruption.
 * An answer that comes after the patience is over (a node that was frozen) is checked as any other, against the floor of the time the read was sent.
 */
import { crc32 } from 'node:zlib'
import { Prng } from '../../src/base/prng.ts'
import { sleep } from './commands.ts'
import { ConnectionLost, type Endpoint, NbdClient, NbdError } from './nbd-client.ts'

const SECTOR_BYTES = 512
const HEADER_BYTES = 16
const RECONNECT_MS = 50
const VERIFY_BYTES = 1024 * 1024

export interface LoadOptions {
  readonly endpoints: readonly Endpoint[]
  readonly exportName: string
  /** The load stays in the first bytes of the volume; a multiple of 512. */
  readonly sizeBytes: number
  readonly seed: number
  /** Requests in flight. */
  readonly depth?: number
  /** Of all requests. */
  readonly readShare?: number
  /** Endpoint used for writes at first. */
  readonly first?: number
  /** Reads go to any endpoint that is connected, not only to the one of the writes. */
  readonly readEverywhere?: boolean
  readonly patienceMs?: number
  readonly requestBytesMax?: number
  /** Above every sequence of an earlier load whose sectors the range still holds. */
  readonly firstSequence?: number
}

export interface LoadStats {
  writes: number
  reads: number
  /** Requests sent again after a lost connection or a silent node. */
  retries: number
  /** Answers with an error number, by number. */
  errors: Record<number, number>
  /** Longest time from the first sending of a request to its answer, since the last `mark`. */
  longestMs: number
  /** Longest time without any answer, since the last `mark`. */
  longestGapMs: number
}

export class VerifiedLoad {
  readonly stats: LoadStats = { writes: 0, reads: 0, retries: 0, errors: {}, longestMs: 0, longestGapMs: 0 }
  /** What must never be; the tests want it empty. */
  readonly violations: string[] = []
  readonly #options: Required<LoadOptions>
  readonly #issued: Uint32Array
  readonly #floor: Uint32Array
  /** 1: a write of this sector is in flight. */
  readonly #busy: Uint8Array
  readonly #prng: Prng
  readonly #clients: Array<NbdClient | undefined>
  /** All that were ever made: an answer may still come on one that was given up. */
  readonly #made = new Set<NbdClient>()
  readonly #connecting: Array<Promise<NbdClient> | undefined>
  #current: number
  #running = false
  #lanes: Array<Promise<void>> = []
  #lastAnswerMs = 0
  readonly #open = new Set<{ readonly sinceMs: number }>()

  constructor(options: LoadOptions) {
    this.#options = { depth: 8, readShare: 0.4, first: 0, readEverywhere: true, patienceMs: 1500, requestBytesMax: 32 * 1024, firstSequence: 0, ...options }
    const sectors = options.sizeBytes / SECTOR_BYTES
    this.#issued = new Uint32Array(sectors).fill(this.#options.firstSequence)
    this.#floor = new Uint32Array(sectors)
    this.#busy = new Uint8Array(sectors)
    this.#prng = new Prng(options.seed)
    this.#clients = options.endpoints.map(() => undefined)
    this.#connecting = options.endpoints.map(() => undefined)
    this.#current = this.#options.first
  }

  start(): void {
    this.#running = true
    this.mark()
    this.#lanes = Array.from({ length: this.#options.depth }, () => this.#lane())
  }

  /** Stops, and waits until every write is acknowledged. */
  async stop(timeoutMs = 30_000): Promise<void> {
    this.#running = false
    const lanes = this.#lanes
    this.#lanes = []
    const late = sleep(timeoutMs).then(() => {
      throw new Error(`requests are still open ${timeoutMs} ms after the load was stopped`)
    })
    late.catch(() => {})
    await Promise.race([Promise.all(lanes), late])
  }

  close(): void {
    this.#running = false
    for (const client of this.#made) client.destroy()
  }

  /** Begins a new measurement of the longest waits. */
  mark(): void {
    this.stats.longestMs = 0
    this.stats.longestGapMs = 0
    this.#lastAnswerMs = performance.now()
  }

  get answers(): number {
    return this.stats.writes + this.stats.reads
  }

  /** As `stats.longestMs`, with what requests still open have waited so far. */
  get longestMs(): number {
    const nowMs = performance.now()
    let longest = this.stats.longestMs
    for (const { sinceMs } of this.#open) longest = Math.max(longest, nowMs - sinceMs)
    return longest
  }

  get endpoint(): number {
    return this.#current
  }

  /** Reads the whole range through one endpoint and checks every byte. Nothing may be in flight. */
  async verify(endpoint: number): Promise<void> {
    const client = await this.#connect(endpoint)
    for (let offset = 0; offset < this.#options.sizeBytes; offset += VERIFY_BYTES) {
      const length = Math.min(VERIFY_BYTES, this.#options.sizeBytes - offset)
      const floor = this.#floor.slice(offset / SECTOR_BYTES, (offset + length) / SECTOR_BYTES)
      this.#check(await client.read(offset, length), offset, floor, `endpoint ${endpoint}, after`)
    }
  }

  async #lane(): Promise<void> {
    while (this.#running) {
      const write = this.#prng.unit() >= this.#options.readShare
      const { offset, length } = this.#range()
      if (write) await this.#write(offset, length)
      else await this.#read(offset, length)
    }
  }

  #range(): { offset: number; length: number } {
    const { sizeBytes, requestBytesMax } = this.#options
    // mostly whole pages, as file systems do; a quarter in odd sectors
    const unit = this.#prng.below(4) === 0 ? SECTOR_BYTES : 4096
    const length = unit * (1 + this.#prng.below(this.#prng.below(4) === 0 ? Math.max(1, Math.floor(requestBytesMax / unit)) : 1))
    const offset = unit * this.#prng.below(Math.floor((sizeBytes - length) / unit) + 1)
    return { offset, length }
  }

  async #write(offset: number, length: number): Promise<void> {
    const first = offset / SECTOR_BYTES
    const last = (offset + length) / SECTOR_BYTES
    for (let sector = first; sector < last; sector++) {
      if (this.#busy[sector] === 1) return sleep(0)
    }
    const data = Buffer.alloc(length)
    for (let sector = first; sector < last; sector++) {
      this.#busy[sector] = 1
      this.#issued[sector]!++
      describeSector(data, (sector - first) * SECTOR_BYTES, sector, this.#issued[sector]!)
    }
    await this.#patiently((client) => client.write(offset, data), false)
    for (let sector = first; sector < last; sector++) {
      this.#busy[sector] = 0
      this.#floor[sector] = this.#issued[sector]!
    }
    this.stats.writes++
  }

  async #read(offset: number, length: number): Promise<void> {
    await this.#patiently(async (client, endpoint) => {
      const floor = this.#floor.slice(offset / SECTOR_BYTES, (offset + length) / SECTOR_BYTES)
      this.#check(await client.read(offset, length), offset, floor, `endpoint ${endpoint}`)
    }, true)
    this.stats.reads++
  }

  /** Sends until it is answered, by another endpoint each time the connection is lost or the node is silent. */
  async #patiently(send: (client: NbdClient, endpoint: number) => Promise<void>, read: boolean): Promise<void> {
    const request = { sinceMs: performance.now() }
    this.#open.add(request)
    let endpoint = read && this.#options.readEverywhere ? this.#anyConnected() : this.#current
    for (;;) {
      let client: NbdClient | undefined
      try {
        client = await this.#connect(endpoint)
        await within(send(client, endpoint), this.#options.patienceMs)
        const nowMs = performance.now()
        this.stats.longestMs = Math.max(this.stats.longestMs, nowMs - request.sinceMs)
        this.stats.longestGapMs = Math.max(this.stats.longestGapMs, nowMs - this.#lastAnswerMs)
        this.#lastAnswerMs = nowMs
        this.#open.delete(request)
        return
      } catch (error) {
        if (error instanceof NbdError) this.stats.errors[error.errno] = (this.stats.errors[error.errno] ?? 0) + 1
        else if (error instanceof Silent) {
          // reads stay open: their late answers are checked too. A client that gives up on a path for its writes cuts it.
          if (!read) client?.destroy()
        } else if (!(error instanceof ConnectionLost) && client !== undefined) throw error
        this.stats.retries++
        if (this.#clients[endpoint] === client) {
          if (client === undefined || client.closed || error instanceof Silent) this.#clients[endpoint] = undefined
        }
        if (this.#current === endpoint) this.#current = (endpoint + 1) % this.#options.endpoints.length
        endpoint = this.#current
        await sleep(RECONNECT_MS)
      }
    }
  }

  #anyConnected(): number {
    const endpoint = this.#prng.below(this.#options.endpoints.length)
    if (this.#clients[endpoint]?.closed === false) return endpoint
    // find out in the background whether it is back
    this.#connect(endpoint).catch(() => {})
    return this.#current
  }

  #connect(endpoint: number): Promise<NbdClient> {
    const client = this.#clients[endpoint]
    if (client !== undefined && !client.closed) return Promise.resolve(client)
    this.#connecting[endpoint] ??= NbdClient.connect(this.#options.endpoints[endpoint]!, this.#options.exportName, 1000)
      .then((made) => {
        this.#clients[endpoint] = made
        this.#made.add(made)
        return made
      })
      .finally(() => {
        this.#connecting[endpoint] = undefined
      })
    return this.#connecting[endpoint]
  }

  #check(data: Buffer, offset: number, floor: Uint32Array, where: string): void {
    for (let i = 0; i < floor.length; i++) {
      const sector = offset / SECTOR_BYTES + i
      const seq = readSector(data, i * SECTOR_BYTES, sector)
      const issued = this.#issued[sector]!
      if (typeof seq === 'string') this.#violate(`${where}: sector ${sector}: ${seq}`)
      else if (seq < floor[i]!)
        this.#violate(`${where}: sector ${sector} holds write ${seq}, but ${floor[i]} was acknowledged or seen before (${issued} issued)`)
      else if (seq > issued) this.#violate(`${where}: sector ${sector} holds write ${seq} of ${issued}`)
      else if (seq > this.#floor[sector]!) this.#floor[sector] = seq
    }
  }

  #violate(what: string): void {
    if (this.violations.length < 20) this.violations.push(what)
  }
}

class Silent extends Error {}

async function within<T>(promise: Promise<T>, timeoutMs: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  promise.catch(() => {})
  try {
    return await Promise.race([
      promise,
      new Promise<never>((_, reject) => {
        timer = setTimeout(() => reject(new Silent(`no answer within ${timeoutMs} ms`)), timeoutMs)
      }),
    ])
  } finally {
    clearTimeout(timer)
  }
}

function describeSector(into: Buffer, at: number, sector: number, seq: number): void {
  into.writeBigUInt64LE(BigInt(sector), at)
  into.writeUInt32LE(seq, at + 8)
  let word = (Math.imul(sector, 0x9e3779b1) ^ Math.imul(seq, 0x85ebca6b)) >>> 0
  for (let i = HEADER_BYTES; i < SECTOR_BYTES; i += 4) {
    word = (Math.imul(word, 1664525) + 1013904223) >>> 0
    into.writeUInt32LE(word, at + i)
  }
  into.writeUInt32LE(0, at + 12)
  into.writeUInt32LE(crc32(into.subarray(at, at + SECTOR_BYTES)), at + 12)
}

/** The sequence of the write it holds, 0 for a sector never written, or what is wrong with it. */
function readSector(from: Buffer, at: number, sector: number): number | string {
  const bytes = Buffer.from(from.subarray(at, at + SECTOR_BYTES))
  const crc = bytes.readUInt32LE(12)
  bytes.writeUInt32LE(0, 12)
  const seq = bytes.readUInt32LE(8)
  if (seq === 0 && crc === 0 && bytes.every((byte) => byte === 0)) return 0
  if (crc32(bytes) !== crc) return `damaged (says it is write ${seq} of sector ${bytes.readBigUInt64LE(0)})`
  const own = Number(bytes.readBigUInt64LE(0))
  return own === sector ? seq : `holds write ${seq} of sector ${own}`
}
