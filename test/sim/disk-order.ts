/**
 * What a store may do to its disk, and when, looked at as it does it: a loss of power in the right moment would tell of it, later and seldom; here
 * every single write counts, also where the power stays.
 *
 *   journal ──────> leaf of a page table, page of the extent table   only of what is durable in the journal
 *   journal ──────> extent                                            never a page that a capture or a read under way still reads there
 *   superblock ───> segment free                                      only when it says so on stable storage, as everything it relies on does,
 *                                                                     and no capture or read under way reads in that segment
 *
 * Disks that somebody spoiled, or whose writes go astray, are out of it: the order is what they break.
 */
import { PAGE_BYTES, PAGES_PER_BLOCK } from '../../src/base/units.ts'
import type { Handle } from '../../src/env/ioqueue.ts'
import { SimFile } from '../../src/env/sim/disk.ts'
import type { SimProcess } from '../../src/env/sim/host.ts'
import type { SimIoQueue } from '../../src/env/sim/ioqueue.ts'
import type { DiskStore } from '../../src/store/disk-store.ts'
import {
  ExtentRow,
  ExtentTableHeader,
  type Geometry,
  LEAVES_PER_BLOCK,
  PAGE_ENTRY_BYTES,
  PAGES_PER_LEAF,
  PageEntry,
  ROWS_PER_TABLE_PAGE,
  Superblock,
  secondSuperblockOffset,
  segmentPages,
} from '../../src/store/layout.ts'
import { PageFlag } from '../../src/store/store.ts'
import type { Ledger } from './ledger.ts'

type Found = (promise: string, detail: string) => void

const TABLES = 'tables say only what is durable in the journal'
const IN_USE = 'nothing is overwritten while it is read'
const FREED = 'a segment is freed when nothing needs it'

/** A capture, or a read under way: pages of one row and where they were when it began (a capture's change when they reach the kernel). */
interface Held {
  readonly what: string
  readonly row: number
  readonly firstPage: number
  readonly loc: Uint32Array
  readonly flags: Uint8Array
}

interface Watched {
  readonly store: DiskStore
  readonly ledger: Ledger
  readonly geometry: Geometry
  readonly isSpoiled: () => boolean
  readonly found: Found
}

/** Files of a process by their handles: what it writes to a mounted disk is looked at. */
export class DiskOrder {
  readonly #process: SimProcess
  readonly #view: DataView
  readonly #paths = new Map<string, Handle>()
  readonly #watched = new Map<Handle, Watched>()

  constructor(queue: SimIoQueue, process: SimProcess) {
    this.#process = process
    this.#view = queue.arena.view
    const { openFile, write } = queue
    queue.openFile = (options) => {
      const opened = openFile.call(queue, options)
      this.#paths.set(options.path, opened.handle)
      return opened
    }
    queue.write = (handle, offsetBytes, page, deltaBytes, lengthBytes, tag, row) => {
      const watched = this.#watched.get(handle)
      if (watched !== undefined) this.#tableWritten(watched, offsetBytes, page * PAGE_BYTES + deltaBytes)
      write.call(queue, handle, offsetBytes, page, deltaBytes, lengthBytes, tag, row)
    }
  }

  /** The file at that path has been mounted; what the store does from now on is looked at. */
  mounted(store: DiskStore, file: SimFile, geometry: Geometry, ledger: Ledger, found: Found): void {
    const { disk } = file
    const isSpoiled = () => disk.spoiled || disk.gone || disk.faults.misdirect > 0
    const watched = { store, ledger, geometry, isSpoiled, found: (promise: string, detail: string) => found(promise, `disk ${store.disk}: ${detail}`) }
    this.#watched.set(this.#paths.get(file.path)!, watched)
    const held = holdersOf(store)
    file.writeFrom = (offsetBytes, source, start, lengthBytes) => {
      if (held.size > 0 && this.#process.alive && offsetBytes >= geometry.extentsOffset) overwritten(watched, held, offsetBytes, lengthBytes)
      return SimFile.prototype.writeFrom.call(file, offsetBytes, source, start, lengthBytes)
    }
    const { journal } = store
    const { freeUpTo } = journal
    journal.freeUpTo = (segment) => {
      freed(watched, file, held, segment)
      freeUpTo.call(journal, segment)
    }
  }

  #tableWritten({ store, ledger, geometry, found }: Watched, offsetBytes: number, at: number): void {
    if (offsetBytes < geometry.extentTableOffset || offsetBytes >= geometry.extentsOffset) return
    const view = this.#view
    const { durableSeq } = store
    if (offsetBytes < geometry.pageTableOffset) {
      for (let i = 0; i < ROWS_PER_TABLE_PAGE; i++) {
        const from = at + ExtentTableHeader.size + i * ExtentRow.size
        if (ExtentRow.get.used(view, from) === 0 || ExtentRow.get.birthSeq(view, from) <= durableSeq) continue
        found(TABLES, `a block that record ${ExtentRow.get.birthSeq(view, from)} creates goes into the extent table, and ${durableSeq} is durable`)
      }
      return
    }
    const leaf = Math.floor((offsetBytes - geometry.pageTableOffset) / PAGE_BYTES / 2)
    const row = Math.floor(leaf / LEAVES_PER_BLOCK)
    const firstPage = (leaf % LEAVES_PER_BLOCK) * PAGES_PER_LEAF
    ledger.notDurable(({ volume, layer, index }, position, page, idHigh, idLow) => {
      // a page that an install takes away looks like one that has not come to its table yet
      if (idHigh === 0 && idLow === 0) return
      if (page < firstPage || page >= firstPage + PAGES_PER_LEAF || store.findBlock(volume, layer, index) !== row) return
      const entry = at + (page - firstPage) * PAGE_ENTRY_BYTES
      if (PageEntry.get.idHi(view, entry) !== idHigh || PageEntry.get.idLo(view, entry) !== idLow) return
      found(TABLES, `page ${page} of block ${volume}:${index} goes into its page table as of record ${position}, and ${durableSeq} is durable`)
    })
  }
}

/** What is read of the store, from now on. */
function holdersOf(store: DiskStore): ReadonlySet<Held> {
  const held = new Set<Held>()
  const { capture, release, reader } = store
  const { read } = reader
  const captures = new Map<object, Held>()
  store.capture = (block) => {
    const taken = capture.call(store, block)
    const { loc, flags } = taken as unknown as { loc: Uint32Array; flags: Uint8Array }
    const holder = { what: 'a capture', row: block, firstPage: 0, loc, flags }
    captures.set(taken, holder)
    held.add(holder)
    return taken
  }
  store.release = (taken) => {
    held.delete(captures.get(taken)!)
    captures.delete(taken)
    release.call(store, taken)
  }
  reader.read = (places, base, row, firstPage, pageCount, bufferPage, done, caller) => {
    const from = base + firstPage
    const holder = {
      what: 'a read',
      row,
      firstPage,
      loc: places.loc.slice(from, from + pageCount),
      flags: places.flags.slice(from, from + pageCount),
    }
    held.add(holder)
    const ended: typeof done = (...answer) => {
      held.delete(holder)
      done(...answer)
    }
    read.call(reader, places, base, row, firstPage, pageCount, bufferPage, ended, caller)
  }
  return held
}

function overwritten({ store, geometry, isSpoiled, found }: Watched, held: ReadonlySet<Held>, offsetBytes: number, lengthBytes: number): void {
  const first = Math.floor((offsetBytes - geometry.extentsOffset) / PAGE_BYTES)
  const end = first + Math.ceil(lengthBytes / PAGE_BYTES)
  for (const { what, row, firstPage, loc, flags } of held) {
    const from = row * PAGES_PER_BLOCK + firstPage
    for (let at = Math.max(first, from); at < Math.min(end, from + loc.length); at++) {
      if (loc[at - from] !== 0 || flags[at - from] !== PageFlag.DATA || isSpoiled() || store.failed) continue
      found(IN_USE, `page ${at - row * PAGES_PER_BLOCK} of extent ${row} is written over while ${what} needs it`)
      return
    }
  }
}

function freed({ store, geometry, isSpoiled, found }: Watched, file: SimFile, held: ReadonlySet<Held>, segment: number): void {
  if (isSpoiled() || store.failed) return
  const { journal } = store
  for (let s = journal.tailSegment; s < segment; s++) {
    const start = journal.segmentStart(s)
    const end = start + segmentPages(geometry)
    for (const { what, row, loc, flags } of held) {
      const page = loc.findIndex((place, i) => place > start && place < end && flags[i] === PageFlag.DATA)
      if (page >= 0) found(FREED, `segment ${s} is free while ${what} of extent ${row} needs page ${loc[page]} of the journal`)
    }
  }
  if (file.hasUnflushed(geometry.extentTableOffset, secondSuperblockOffset(geometry)))
    found(FREED, `segment ${segment - 1} is free, and what was moved out of it, or tables that say so, are not on stable storage`)
  const says = [0, secondSuperblockOffset(geometry)].some((offset) => {
    const bytes = file.pages.get(offset / PAGE_BYTES)
    if (bytes === undefined || file.hasUnflushed(offset, offset + PAGE_BYTES)) return false
    return Superblock.get.tailSegment(new DataView(bytes.buffer, bytes.byteOffset), 0) >= segment
  })
  if (!says) found(FREED, `segment ${segment - 1} is free, and no superblock on stable storage says so`)
}
