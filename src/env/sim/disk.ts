/**
 * Disks and files with two images: what the kernel holds, and what is on stable storage.
 *
 *   write -> present content of the page (kernel)        kill: stays      power loss: any part of it may be gone
 *   fdatasync, completed -> every write that had completed when it was submitted is durable
 *
 * The older content of each page changed since is kept per epoch (an epoch ends where an fdatasync was submitted), so that a power
 * loss can put back, sector by sector, any content the page had since its last flush.
 */
import { assert } from '../../base/assert.ts'
import type { Prng } from '../../base/prng.ts'
import { PAGE_BYTES, SECTOR_BYTES } from '../../base/units.ts'
import { Errno } from '../ioqueue.ts'
import { copyBytes, removeFrom } from './bytes.ts'
import type { SimHost, SimProcess } from './host.ts'
import type { SimEvent } from './world.ts'

export interface SimDiskOptions {
  readonly name: string
  /** Files whose path starts with this lie here. */
  readonly mount: string
  /** O_DIRECT works: offsets and lengths must be multiples of `alignmentBytes`. */
  readonly direct?: boolean
  readonly alignmentBytes?: number
  /** As on tmpfs: nothing survives a power loss. */
  readonly volatile?: boolean
  readonly isBlockDevice?: boolean
  /** false: a file system that cannot allocate ahead of writes. */
  readonly reserves?: boolean
  /** Room for pages ever written; infinite unless given. */
  readonly capacityBytes?: number
  /** Of the pages that a power loss tears, at most so many cannot be read afterwards. */
  readonly unreadableTorn?: number
}

export interface DiskFaults {
  /** Chance of an EIO per read / write / flush. */
  readEio: number
  writeEio: number
  flushEio: number
  /** Chance of a read or write that does less than asked. */
  short: number
  /** Chance and length of a slow request. */
  slow: number
  slowMs: number
  /** Mean time of a flush or a synced write beyond that of a write: none on a drive with a protected cache, ms on most. */
  flushMs: number
  /** Mean time of a read beyond that of a write: none on flash, ms where a head has to move. */
  readMs: number
  /** Chance that a write goes to another place of the same file. */
  misdirect: number
}

export const CALM_DISK: DiskFaults = { readEio: 0, writeEio: 0, flushEio: 0, short: 0.01, slow: 0.005, slowMs: 10, flushMs: 0, readMs: 0, misdirect: 0 }

interface Epoch {
  readonly serial: number
  /** Content before the first change in this epoch, in the order of those changes; null = never written. */
  readonly before: Map<number, Uint8Array | null>
}

/** A request under way in the kernel; it outlives the process that made it. */
interface DiskRequest {
  readonly owner: SimProcess
  readonly label: string
  readonly fn: () => void
  /** What a power loss in the middle of it does. */
  readonly tear: (() => void) | undefined
  event: SimEvent | undefined
}

export class SimDisk {
  readonly host: SimHost
  readonly name: string
  readonly mount: string
  readonly options: SimDiskOptions
  readonly faults: DiskFaults = { ...CALM_DISK }
  /** Every request fails: the device is gone. */
  gone = false
  usedPages = 0
  /** Something on it is not what was written: it has rotted, or lies in another place. */
  spoiled = false
  /** How often its faults have shown: requests that failed, writes that went astray, torn pages that cannot be read, pages that have rotted. */
  readonly shown = { failures: 0, astray: 0, unreadable: 0, rotten: 0 }
  /** Writes there go astray, and stay there; everywhere unless given. Asked for each such write. */
  misdirectWithin: (() => { readonly fromBytes: number; readonly toBytes: number } | undefined) | undefined
  /** Writes to pages never written, whose space was not allocated before, fail with ENOSPC. */
  full = false
  #hung = false
  readonly #flushRandom: Prng
  readonly #readRandom: Prng
  readonly #latencyRandom: Prng
  /** In the order of their beginnings. */
  readonly #requests: DiskRequest[] = []

  constructor(host: SimHost, options: SimDiskOptions) {
    this.host = host
    this.options = options
    this.name = options.name
    this.mount = options.mount
    this.#flushRandom = host.random(`disk ${this.name} flush`)
    this.#readRandom = host.random(`disk ${this.name} read`)
    this.#latencyRandom = host.random(`disk ${this.name} latency`)
  }

  /** For one page more. */
  get hasRoom(): boolean {
    const { capacityBytes } = this.options
    return !this.full && (capacityBytes === undefined || (this.usedPages + 1) * PAGE_BYTES <= capacityBytes)
  }

  get files(): SimFile[] {
    return [...this.host.files.values()].filter((file) => file.disk === this)
  }

  /** It answers nothing at present. */
  get isHung(): boolean {
    return this.#hung
  }

  /** Requests wait from now on; none completes. */
  hang(): void {
    this.host.world.note('disk hangs', () => `${this.host.name} ${this.name}`)
    this.#hung = true
  }

  resume(): void {
    if (!this.#hung) return
    this.host.world.note('disk goes on', () => `${this.host.name} ${this.name}`)
    this.#hung = false
    for (const request of this.#requests) if (!request.event) this.#launch(request, this.#latencyMs(0))
  }

  /** An empty device stands in its place. */
  replace(): void {
    this.host.world.note('disk replaced', () => `${this.host.name} ${this.name}`)
    for (const file of this.files) this.host.files.delete(file.path)
    this.gone = false
    this.full = false
    this.spoiled = false
    this.usedPages = 0
  }

  /** Flips one bit of each of `count` random written pages at `fromBytes` or behind it, in what is stored, without a trace. */
  rot(count: number, fromBytes = 0): void {
    const random = this.host.random(`disk ${this.name} rot`)
    for (let i = 0; i < count; i++) {
      const candidates = this.files.flatMap((file) => [...file.pages.keys()].filter((page) => page * PAGE_BYTES >= fromBytes).map((page) => ({ file, page })))
      if (candidates.length === 0) return
      const { file, page } = random.pick(candidates)
      this.spoiled = true
      this.shown.rotten++
      file.flipBit(page, random.below(PAGE_BYTES * 8))
    }
  }

  get underWay(): number {
    return this.#requests.length
  }

  /** Requests of that process still under way. */
  underWayOf(process: SimProcess): number {
    let count = 0
    for (const request of this.#requests) if (request.owner === process) count++
    return count
  }

  /** Runs `fn` in the kernel after this device's latency for so many bytes; `tear` instead when the power goes first. */
  request(owner: SimProcess, label: string, lengthBytes: number, fn: () => void, tear?: () => void): void {
    const request: DiskRequest = { owner, label, fn, tear, event: undefined }
    this.#requests.push(request)
    if (!this.#hung)
      this.#launch(
        request,
        owner.localNowMs -
          owner.world.nowMs +
          this.#latencyMs(lengthBytes) +
          (label === 'flush' || label === 'synced write' ? this.#flushMs() : label === 'read' ? this.#readMs() : 0),
      )
  }

  powerLoss(unflushed: 'random' | 'lose' | 'keep'): void {
    for (const request of this.#requests) {
      if (request.event) this.host.world.cancel(request.event)
      request.tear?.()
    }
    this.#requests.length = 0
    this.#hung = false
    for (const file of this.files) {
      file.lockedBy = undefined
      if (this.options.volatile) this.host.files.delete(file.path)
      else file.powerLoss(unflushed)
    }
  }

  #launch(request: DiskRequest, delayMs: number): void {
    request.event = this.host.schedule(delayMs, request.label, () => {
      if (this.#hung) {
        request.event = undefined
        return
      }
      removeFrom(this.#requests, request)
      request.fn()
    })
  }

  #flushMs(): number {
    return this.faults.flushMs * (0.3 + 1.4 * this.#flushRandom.unit())
  }

  #readMs(): number {
    return this.faults.readMs * (0.3 + 1.4 * this.#readRandom.unit())
  }

  #latencyMs(lengthBytes: number): number {
    const random = this.#latencyRandom
    let latencyMs = 0.02 + random.unit() * 0.1 + lengthBytes / 1_000_000
    if (random.chance(this.faults.slow)) latencyMs += random.unit() * this.faults.slowMs
    return latencyMs
  }
}

export class SimFile {
  readonly disk: SimDisk
  readonly path: string
  sizeBytes: number
  lockedBy: SimProcess | undefined
  readonly pages = new Map<number, Uint8Array>()
  /** Reading these pages fails until they are written again. */
  readonly badPages = new Set<number>()
  #epochs: Epoch[] = []
  #serial = 0
  /** Per page: 1 when its space was allocated. */
  #reserved = new Uint8Array(0)

  constructor(disk: SimDisk, path: string, sizeBytes: number) {
    this.disk = disk
    this.path = path
    this.sizeBytes = sizeBytes
  }

  /** Bytes read (short at the end of the file), or -errno. */
  readInto(offsetBytes: number, target: Uint8Array, start: number, lengthBytes: number): number {
    const count = Math.max(0, Math.min(lengthBytes, this.sizeBytes - offsetBytes))
    for (let done = 0; done < count; ) {
      const page = Math.floor((offsetBytes + done) / PAGE_BYTES)
      const within = (offsetBytes + done) % PAGE_BYTES
      const n = Math.min(PAGE_BYTES - within, count - done)
      if (this.badPages.has(page)) return done > 0 ? done : -Errno.EIO
      const content = this.pages.get(page)
      if (content) copyBytes(target, start + done, content, within, n)
      else target.fill(0, start + done, start + done + n)
      done += n
    }
    return count
  }

  /** Bytes written, or -errno. */
  writeFrom(offsetBytes: number, source: Uint8Array, start: number, lengthBytes: number): number {
    const end = offsetBytes + lengthBytes
    if (this.disk.options.isBlockDevice && end > this.sizeBytes) return -Errno.ENOSPC
    for (let done = 0; done < lengthBytes; ) {
      const page = Math.floor((offsetBytes + done) / PAGE_BYTES)
      const within = (offsetBytes + done) % PAGE_BYTES
      const n = Math.min(PAGE_BYTES - within, lengthBytes - done)
      if (n === PAGE_BYTES && isZero(source, start + done)) {
        if (!this.#writeZeroPage(page)) return done > 0 ? done : -Errno.ENOSPC
        this.badPages.delete(page)
        done += n
        continue
      }
      const content = this.#writable(page, n === PAGE_BYTES)
      if (!content) return done > 0 ? done : -Errno.ENOSPC
      copyBytes(content, within, source, start + done, n)
      this.badPages.delete(page)
      done += n
    }
    if (end > this.sizeBytes) this.sizeBytes = end
    return lengthBytes
  }

  /** 0, or -errno. What has its space keeps it, whatever content is lost with the power: file systems journal that. */
  allocate(offsetBytes: number, lengthBytes: number): number {
    const { disk } = this
    if (disk.options.isBlockDevice || disk.options.reserves === false) return -Errno.EOPNOTSUPP
    const end = Math.ceil((offsetBytes + lengthBytes) / PAGE_BYTES)
    if (this.#reserved.length < end) {
      const larger = new Uint8Array(Math.max(end, Math.ceil(this.sizeBytes / PAGE_BYTES)))
      larger.set(this.#reserved)
      this.#reserved = larger
    }
    for (let page = Math.floor(offsetBytes / PAGE_BYTES); page < end; page++) {
      if (this.#reserved[page] === 1) continue
      if (!this.pages.has(page)) {
        if (!disk.hasRoom) return -Errno.ENOSPC
        disk.usedPages++
      }
      this.#reserved[page] = 1
    }
    return 0
  }

  /** Everything written so far belongs to the flush that starts now; give what this returns to `flushed` when it succeeds. */
  beginFlush(): number {
    return this.#serial++
  }

  flushed(serial: number): void {
    this.#epochs = this.#epochs.filter((epoch) => epoch.serial > serial)
  }

  /** A write that asked for it is on stable storage: whole pages of it keep their present content, whatever else is lost. */
  persisted(offsetBytes: number, lengthBytes: number): void {
    const end = Math.floor((offsetBytes + lengthBytes) / PAGE_BYTES)
    for (let page = Math.ceil(offsetBytes / PAGE_BYTES); page < end; page++) for (const epoch of this.#epochs) epoch.before.delete(page)
  }

  /** Pages whose present content a power loss may take away. */
  get unflushedPages(): number {
    const pages = new Set<number>()
    for (const epoch of this.#epochs) for (const page of epoch.before.keys()) pages.add(page)
    return pages.size
  }

  /** Whether a power loss may take away the present content of a page in [fromBytes, toBytes). */
  hasUnflushed(fromBytes: number, toBytes: number): boolean {
    for (const epoch of this.#epochs) for (const page of epoch.before.keys()) if (page * PAGE_BYTES >= fromBytes && page * PAGE_BYTES < toBytes) return true
    return false
  }

  flipBit(page: number, bit: number): void {
    const content = this.pages.get(page)
    if (!content) return
    // A copy, so that older contents that share the array are not touched
    const rotten = content.slice()
    rotten[bit >> 3] = rotten[bit >> 3]! ^ (1 << (bit & 7))
    this.pages.set(page, rotten)
  }

  powerLoss(unflushed: 'random' | 'lose' | 'keep', unreadableMax = this.disk.options.unreadableTorn ?? 0): void {
    const epochs = this.#epochs
    this.#epochs = []
    if (unflushed === 'keep' || epochs.length === 0) return
    const random = this.disk.host.random(`disk ${this.disk.name} power`)
    const way = unflushed === 'lose' ? 'nothing' : random.pick(['nothing', 'everything', 'prefix', 'pages', 'sectors', 'sectors'] as const)
    if (way === 'everything') return
    const unreadable = this.disk.host.random(`disk ${this.disk.name} unreadable`)
    let unreadableLeft = unreadableMax
    let changes = 0
    for (const epoch of epochs) changes += epoch.before.size
    const keepFirst = way === 'prefix' ? random.below(changes + 1) : 0
    // Newest epoch first: each step back puts an older content in place
    let position = changes
    for (let e = epochs.length - 1; e >= 0; e--) {
      const before = [...epochs[e]!.before]
      for (let i = before.length - 1; i >= 0; i--) {
        position--
        if (way === 'prefix' && position < keepFirst) continue
        if (way === 'pages' && random.chance(0.5)) continue
        const [page, old] = before[i]!
        const torn = way === 'sectors' || (way === 'prefix' && position === keepFirst)
        if (!torn) {
          this.#restore(page, old)
          continue
        }
        const now = this.pages.get(page)
        if (!now) continue
        const mixed = now.slice()
        for (let s = 0; s < PAGE_BYTES; s += SECTOR_BYTES) {
          if (random.chance(0.5)) continue
          if (old) mixed.set(old.subarray(s, s + SECTOR_BYTES), s)
          else mixed.fill(0, s, s + SECTOR_BYTES)
        }
        this.pages.set(page, mixed)
        if (unreadableLeft > 0 && unreadable.chance(0.5)) {
          unreadableLeft--
          this.badPages.add(page)
          this.disk.shown.unreadable++
        }
      }
    }
  }

  #restore(page: number, old: Uint8Array | null): void {
    if (old) this.pages.set(page, old)
    else if (this.pages.delete(page) && this.#reserved[page] !== 1) this.disk.usedPages--
  }

  /** Present content of a page, to be written in place (as a whole: it may hold anything before); undefined when there is no room for it. */
  #writable(page: number, asWhole: boolean): Uint8Array | undefined {
    const old = this.pages.get(page)
    const isOurs = this.#remember(page, old)
    if (isOurs === undefined) return undefined
    if (isOurs && old !== ZERO_PAGE) {
      assert(old !== undefined, 'a changed page has content')
      return old
    }
    const content = this.disk.host.world.memory.page()
    if (!asWhole) {
      if (old && old !== ZERO_PAGE) content.set(old)
      else content.fill(0)
    }
    this.pages.set(page, content)
    return content
  }

  /** A page of zeros costs no memory. False: there is no room for it. */
  #writeZeroPage(page: number): boolean {
    if (this.#remember(page, this.pages.get(page)) === undefined) return false
    this.pages.set(page, ZERO_PAGE)
    return true
  }

  /** Keeps what the page held before the epoch under way. Returns whether it was kept already; undefined when there is no room for the page. */
  #remember(page: number, old: Uint8Array | undefined): boolean | undefined {
    let epoch = this.#epochs.at(-1)
    if (!epoch || epoch.serial !== this.#serial) {
      epoch = { serial: this.#serial, before: new Map() }
      this.#epochs.push(epoch)
    }
    if (!old && this.#reserved[page] !== 1) {
      if (!this.disk.hasRoom) return undefined
      this.disk.usedPages++
    }
    if (epoch.before.has(page)) return true
    epoch.before.set(page, old ?? null)
    return false
  }
}

/**
 * Stands for every page of zeros; nobody writes into it. Not a Buffer: `slice` of one shares its memory, and what changes a copy would change every page of
 * zeros of every disk.
 */
const ZERO_PAGE = new Uint8Array(PAGE_BYTES)
const ZEROS = Buffer.from(ZERO_PAGE.buffer)

function isZero(bytes: Uint8Array, start: number): boolean {
  for (let i = start; i < start + PAGE_BYTES; i += 256) if (bytes[i] !== 0) return false
  return ZEROS.equals(bytes.subarray(start, start + PAGE_BYTES))
}
