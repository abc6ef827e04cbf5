/**
 * Every content that a crash can leave of a simulated file. A log notes each write and flush of the file's disk, when it began and when it ended; from
 * that follows, for each moment, which writes are on stable storage and which the crash may leave out, or cut in two.
 *
 *   power loss: of the writes not yet flushed, and of those under way, any may be missing or torn
 *   kill: what has ended is there; of what was under way, any may be missing or cut short
 *
 * Not every subset is tried (there are too many), but none, all, each one alone, each one missing, each beginning of their sequence, and each one torn in
 * several ways with all or none of the others. Bounded black-box testing has found that few writes out of order are enough: ALICE (Pillai et al., OSDI
 * 2014), CrashMonkey (Mohan et al., OSDI 2018).
 */
import { PAGE_BYTES, SECTOR_BYTES } from '../../src/base/units.ts'
import { type SimDisk, SimFile } from '../../src/env/sim/disk.ts'

/** Pages by number; those that are not there are zeros. Nobody changes the content of one. */
export type Image = ReadonlyMap<number, Uint8Array>

/** Larger writes are cut at some of their pages only. */
const CUTS_MAX = 6

interface LoggedWrite {
  readonly begin: number
  end: number
  /** It is on stable storage from then on. */
  durableFrom: number
  readonly pages: Map<number, Uint8Array>
}

/** What a crash leaves of the i-th page of a write: all of it, nothing, its first sector, all but that, or nothing that can be read. */
type PageFate = 'new' | 'old' | 'head' | 'rest' | 'bad'
interface Fate {
  readonly name: string
  readonly of: (page: number) => PageFate
}
const WHOLE: Fate = { name: '', of: () => 'new' }
const ABSENT: Fate = { name: 'absent', of: () => 'old' }

export interface CrashState {
  readonly how: 'power' | 'kill'
  /** Of the log. */
  readonly time: number
  /** In words. */
  readonly what: string
  /** A write is there in part. */
  readonly isTorn: boolean
  readonly fates: ReadonlyMap<number, Fate>
}

export class DeviceLog {
  /** Counts beginnings and ends of writes and flushes. */
  time = 0
  readonly #base: Image
  readonly #baseBad: readonly number[]
  readonly #writes: LoggedWrite[] = []

  /** Of what happens to that file from now on; nothing may be under way. */
  constructor(disk: SimDisk, file: SimFile) {
    this.#base = new Map(file.pages)
    this.#baseBad = [...file.badPages]
    let current: LoggedWrite | undefined
    const request = disk.request.bind(disk)
    disk.request = (owner, label, lengthBytes, fn, tear) => {
      const isWrite = label === 'write' || label === 'synced write'
      if (!isWrite && label !== 'flush') return request(owner, label, lengthBytes, fn, tear)
      const begin = ++this.time
      const write: LoggedWrite = { begin, end: Number.POSITIVE_INFINITY, durableFrom: Number.POSITIVE_INFINITY, pages: new Map() }
      if (isWrite) this.#writes.push(write)
      const logged = (): void => {
        if (isWrite) current = write
        fn()
        current = undefined
        const end = ++this.time
        if (isWrite) write.end = end
        if (label === 'synced write') write.durableFrom = end
        if (!isWrite) for (const each of this.#writes) if (each.end < begin) each.durableFrom = Math.min(each.durableFrom, end)
      }
      request(owner, label, lengthBytes, logged, tear)
    }
    const writeFrom = file.writeFrom.bind(file)
    file.writeFrom = (offsetBytes, source, start, lengthBytes) => {
      const result = writeFrom(offsetBytes, source, start, lengthBytes)
      const first = offsetBytes / PAGE_BYTES
      for (let page = 0; page * PAGE_BYTES < result; page++) {
        const at = start + page * PAGE_BYTES
        current?.pages.set(first + page, source.slice(at, at + PAGE_BYTES))
      }
      return result
    }
  }

  /** All of them, each image once: at the last moment at which it can arise, when most had been promised. */
  crashStates(): CrashState[] {
    const states = new Map<string, CrashState>()
    for (let time = 0; time <= this.time; time++) for (const state of this.statesAt(time)) states.set(`${state.how} ${state.what}`, state)
    return [...states.values()]
  }

  /** What a crash at that moment can leave. */
  *statesAt(time: number): Generator<CrashState> {
    const begun = this.#writes.findLastIndex((write) => write.begin <= time) + 1
    for (const how of ['power', 'kill'] as const) {
      const open: number[] = []
      for (let w = 0; w < begun; w++) {
        const { end, durableFrom } = this.#writes[w]!
        if ((how === 'power' ? durableFrom : end) > time) open.push(w)
      }
      for (const fates of this.#combinations(open, how)) {
        const isTorn = [...fates.values()].some((fate) => fate !== ABSENT)
        yield { how, time, what: this.#nameOf(begun, fates), isTorn, fates }
      }
    }
  }

  /** What the file holds after that crash, and its pages that cannot be read. */
  imageOf({ fates, time }: CrashState): { image: Image; bad: number[] } {
    const image = new Map(this.#base)
    const bad = new Set(this.#baseBad)
    for (const [w, { begin, pages }] of this.#writes.entries()) {
      if (begin > time) break
      const fate = fates.get(w) ?? WHOLE
      let i = 0
      for (const [page, content] of pages) {
        const left = fate.of(i++)
        if (left === 'old') continue
        bad.delete(page)
        if (left === 'bad') bad.add(page)
        image.set(page, left === 'new' || left === 'bad' ? content : torn(image.get(page), content, left))
      }
    }
    return { image, bad: [...bad] }
  }

  *#combinations(open: readonly number[], how: CrashState['how']): Generator<Map<number, Fate>> {
    const absent = (of: readonly number[]): Map<number, Fate> => new Map(of.map((w) => [w, ABSENT]))
    yield new Map()
    for (const [i, w] of open.entries()) {
      const others = open.filter((other) => other !== w)
      yield absent([w])
      yield absent(others)
      yield absent(open.slice(i))
      for (const fate of this.#tears(w, how)) {
        yield new Map([[w, fate]])
        yield absent(others).set(w, fate)
      }
    }
  }

  *#tears(w: number, how: CrashState['how']): Generator<Fate> {
    const count = this.#writes[w]!.pages.size
    const cuts = count <= CUTS_MAX ? Array.from({ length: count - 1 }, (_, i) => i + 1) : [1, 2, count >> 1, count - 1]
    for (const cut of cuts) yield { name: `first ${cut}`, of: (page) => (page < cut ? 'new' : 'old') }
    if (how === 'kill') return
    for (const cut of [0, ...cuts]) {
      yield { name: `bad ${cut}`, of: (page) => (page < cut ? 'new' : page === cut ? 'bad' : 'old') }
      yield { name: `head ${cut}`, of: (page) => (page < cut ? 'new' : page === cut ? 'head' : 'old') }
      yield { name: `all but ${cut}`, of: (page) => (page === cut ? 'old' : 'new') }
    }
    yield { name: 'rest', of: (page) => (page === 0 ? 'rest' : 'new') }
  }

  #nameOf(begun: number, fates: ReadonlyMap<number, Fate>): string {
    // that the last writes are not there is the same as that they have not begun
    let end = begun
    while (end > 0 && fates.get(end - 1) === ABSENT) end--
    const parts: string[] = [`${end} writes`]
    for (const [w, fate] of [...fates].sort(([a], [b]) => a - b)) {
      if (w >= end) continue
      const pages = [...this.#writes[w]!.pages.keys()]
      parts.push(`write ${w} (page ${pages[0]}, ${pages.length}) ${fate.name}`)
    }
    return parts.join(', ')
  }
}

function torn(old: Uint8Array | undefined, content: Uint8Array, left: 'head' | 'rest'): Uint8Array {
  const page = old?.slice() ?? new Uint8Array(PAGE_BYTES)
  if (left === 'head') page.set(content.subarray(0, SECTOR_BYTES))
  else page.set(content.subarray(SECTOR_BYTES), SECTOR_BYTES)
  return page
}

/** A file with that content on a disk. */
export function fileOf(disk: SimDisk, path: string, sizeBytes: number, image: Image, bad: readonly number[] = []): SimFile {
  const file = new SimFile(disk, path, sizeBytes)
  for (const [page, content] of image) file.pages.set(page, content)
  for (const page of bad) file.badPages.add(page)
  disk.host.files.set(path, file)
  return file
}
