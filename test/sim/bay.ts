/** A bay of a node: in it stands one disk after the other. The cluster knows each by its uuid, and the bay by its path. */
import { assert } from '../../src/base/assert.ts'
import { crc32c } from '../../src/base/crc32c.ts'
import { PAGE_BYTES } from '../../src/base/units.ts'
import type { SimDisk } from '../../src/env/sim/disk.ts'
import type { SimHost } from '../../src/env/sim/host.ts'
import type { DiskStore } from '../../src/store/disk-store.ts'
import { Superblock } from '../../src/store/layout.ts'
import type { Fault } from './faults.ts'
import { Ledger } from './ledger.ts'

export class Bay {
  readonly disk: SimDisk
  readonly path: string
  /** The disk in it was made to fail: it may have to be replaced. */
  suffered = false
  /** It has been formatted to the end. */
  formatted = false
  /** What was written to its journal. */
  ledger = new Ledger()
  /** What the last process to mount it made of it, and how often it had been without power then. */
  mounted: { readonly store: DiskStore; readonly powerCycles: number } | undefined
  /** Its node remembers that it has failed since it was mounted last: nobody knows what the drive has dropped. */
  wasAway = false
  /** A fault's: what happens when its store finds that the disk has failed. */
  onFailed: (() => void) | undefined
  /** When it was mounted last, it lacked records that the process before had been given. */
  cameBackLacking = false
  /** Disks that have stood here. */
  #disks = 1
  #dropped = 0
  readonly #host: SimHost
  readonly #node: number
  readonly #number: number

  /** `node` and `number` count from 0. */
  constructor(host: SimHost, options: { readonly node: number; readonly number: number; readonly unreadableTorn: number }) {
    const { node, number, unreadableTorn } = options
    this.#host = host
    this.#node = node
    this.#number = number
    const mount = number === 0 ? '/disk/' : `/disk${number}/`
    this.path = `${mount}0`
    this.disk = host.addDisk({ name: `d${number}`, mount, direct: true, alignmentBytes: 512, unreadableTorn })
  }

  get uuid(): string {
    return `d15c0000-0000-4000-${8000 + this.#number}-${String(this.#disks).padStart(6, '0')}${String(this.#node + 1).padStart(6, '0')}`
  }

  /** Its last process ended before the disk had all that was given to it: in its memory, and on its media if the power went too. */
  get lacksRecords(): boolean {
    if (this.mounted === undefined) return false
    const { store } = this.mounted
    return store.journal.nextSeq - 1 > (this.lostPower ? store.durableSeq : store.stagedSeq)
  }

  /** Counts how often what was not on stable storage may have gone: with the power of its host, or of the drive alone. */
  get powerCycles(): number {
    return this.#host.boots + this.#dropped
  }

  /** Its drive has lost its power since it was mounted last. */
  get lostPower(): boolean {
    return this.mounted !== undefined && this.mounted.powerCycles !== this.powerCycles
  }

  /**
   * Its drive has lost what it had not put on stable storage, though its host kept its power. What is torn can be read: an unreadable page may be what was
   * acknowledged last then, and its disk is not used any more.
   */
  drop(unflushed: Fault['unflushed']): void {
    this.#host.world.note('disk drops', () => `${this.#host.name} ${this.path}, unflushed: ${unflushed}`)
    this.#dropped++
    for (const file of this.disk.files) file.powerLoss(unflushed, 0)
  }

  /** Its node has been told that it cannot be used. */
  failed(): void {
    this.wasAway = true
    this.onFailed?.()
  }

  /** An empty disk stands where the old one was. No process may use it. */
  replace(): void {
    this.disk.replace()
    this.#disks++
    this.formatted = false
    this.mounted = undefined
    this.wasAway = false
    this.cameBackLacking = false
    this.repair()
  }

  /** The disk works again, with all that was written to it. No process may use it. */
  repair(): void {
    this.disk.resume()
    this.disk.gone = false
    Object.assign(this.disk.faults, { readEio: 0, writeEio: 0, flushEio: 0 })
    this.suffered = false
  }

  /**
   * Its disk, which must be idle, says that it is of a format with a feature this version does not know. Returns what undoes it, and says whether the disk is
   * as it was left; bits that have rotted meanwhile are nobody's fault.
   */
  formatOfTheFuture(): () => boolean {
    const file = this.disk.files.find(({ path }) => path === this.path)
    assert(file !== undefined, 'a disk that was never mounted')
    const pages = [0, file.sizeBytes / PAGE_BYTES - 1]
    const before = pages.map((page) => file.pages.get(page))
    for (const page of pages) {
      const bytes = file.pages.get(page)!.slice()
      const view = new DataView(bytes.buffer)
      Superblock.set.incompat(view, 0, 0x8000_0000)
      Superblock.set.crc(view, 0, 0)
      Superblock.set.crc(view, 0, crc32c(bytes))
      file.pages.set(page, bytes)
    }
    // All of it is on stable storage: what differs later was written later
    file.flushed(file.beginFlush())
    const left = new Map(file.pages)
    const { rotten } = this.disk.shown
    return () => {
      const isSame = file.pages.size === left.size && [...left].every(([page, bytes]) => file.pages.get(page) === bytes)
      for (const [i, page] of pages.entries()) file.pages.set(page, before[i]!)
      return isSame || this.disk.shown.rotten > rotten
    }
  }
}
