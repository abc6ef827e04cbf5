/**
 * A disk that lies once: one page of what the store keeps beside the data (superblocks, journal, extent table, page tables) is an older one, damaged,
 * or another one when it is mounted again. Then the disk is refused, or pages are told as bad; never is a wrong page given out. Only the end of the
 * journal of a process that was killed may be missing without a trace: nothing on this disk can know of it.
 *
 * And a mount that loses its power, again and again: nothing that was durable before is missing in the end.
 */
import assert from 'node:assert/strict'
import test, { after } from 'node:test'
import { Bench, DISK_BYTES } from '../../test/support/store-bench.ts'
import { XsanError } from '../base/errors.ts'
import type { Prng } from '../base/prng.ts'
import { Status } from '../base/status.ts'
import { MiB, PAGE_BYTES } from '../base/units.ts'
import type { DiskStore } from './disk-store.ts'
import { planGeometry } from './layout.ts'
import { NO_BLOCK, RecordKind, StageRecord } from './store.ts'

/** `SEEDS=FIRST+COUNT` runs others. */
const [FIRST = 1, COUNT = 5] = (process.env['SEEDS'] ?? '').split('+').filter(Boolean).map(Number)
const GEOMETRY = planGeometry(DISK_BYTES, { journalBytes: 16 * MiB, segmentBytes: 4 * MiB })
const BLOCKS = 5
/** Pages of these blocks that are written to: of two leaves. */
const PAGES = Array.from({ length: 40 }, (_, i) => (i < 24 ? i : 240 + i))
const FILLER = 9
/** Operations on one disk, each with its number as content. */
class Disk {
  readonly bench: Bench
  readonly random: Prng
  readonly record = new StageRecord()
  store!: DiskStore
  /** Per block and page: [number of the operation, content from there on], 0: zeros. */
  readonly history = new Map<string, Array<readonly [number, number]>>()
  op = 0
  #filled = 0

  constructor(seed: number) {
    this.bench = new Bench(seed, { unreadableTorn: 2 })
    this.random = this.bench.world.random('operations')
  }

  /** Ends when the record is durable. */
  async #stage(kind: RecordKind, index: number, firstPage: number, pageCount: number): Promise<void> {
    await (await this.#begin(kind, index, firstPage, pageCount))()
  }

  /** Ends when the record is staged; what it gives waits until it is durable. */
  async #begin(kind: RecordKind, index: number, firstPage: number, pageCount: number): Promise<() => Promise<void>> {
    const { bench, record, store } = this
    this.op++
    Object.assign(record, { kind, slot: index, idHigh: 1, idLow: this.op, volume: 5, layer: 0, index, firstPage, pageCount, durable: true, clientHigh: 0 })
    let page = -1
    if (kind === RecordKind.WRITE) {
      page = bench.alloc(pageCount)
      new Uint32Array(bench.queue.arena.bytes.buffer, bench.queue.arena.bytes.byteOffset + page * PAGE_BYTES, (pageCount * PAGE_BYTES) / 4).fill(this.op)
      record.payloadPage = page
      record.crcFirst = 0
      record.crcs = new Uint32Array(pageCount).fill(bench.queue.arena.crc32c(page, 0, PAGE_BYTES))
    }
    await bench.until(() => store.admit(record, false) === Status.SUCCESS)
    const seq = store.stage(record)
    const of = kind === RecordKind.REMOVE ? PAGES : PAGES.filter((each) => each >= firstPage && each < firstPage + pageCount)
    for (const each of of) {
      const key = `${index}/${each}`
      const list = this.history.get(key) ?? []
      this.history.set(key, list)
      list.push([this.op, kind === RecordKind.WRITE ? this.op : 0])
    }
    return async () => {
      await bench.until(() => bench.events.durable >= seq)
      if (page >= 0) bench.free(page)
    }
  }

  async work(operations: number): Promise<void> {
    const { random } = this
    for (let i = 0; i < operations; i++) {
      const draw = random.below(100)
      const index = random.below(BLOCKS)
      if (draw < 4) await this.#stage(RecordKind.REMOVE, index, 0, 0)
      else {
        const first = random.pick(PAGES)
        await this.#stage(draw < 16 ? RecordKind.ZERO : RecordKind.WRITE, index, first, random.pick([1, 1, 2, 5]))
      }
      if (random.chance(0.25)) await this.fill()
    }
  }

  /** So that the journal goes round: one large write, or two at once. */
  async fill(): Promise<void> {
    const writes: Array<() => Promise<void>> = []
    for (let count = this.random.pick([1, 2]); count > 0; count--) writes.push(await this.#begin(RecordKind.WRITE, FILLER, (this.#filled++ % 4) * 256, 256))
    for (const isDurable of writes) await isDurable()
  }

  /** What the store says of every page: a content, or -1: that it is bad. */
  async contents(): Promise<Map<string, number>> {
    const { bench, store } = this
    const buffer = bench.alloc(1)
    const found = new Map<string, number>()
    for (let index = 0; index < BLOCKS; index++) {
      const block = store.findBlock(5, 0, index)
      for (const page of PAGES) {
        const { status } = block === NO_BLOCK ? { status: Status.SUCCESS } : await bench.read(store, block, page, 1, buffer)
        const words = new Uint32Array(bench.queue.arena.bytes.buffer, bench.queue.arena.bytes.byteOffset + buffer * PAGE_BYTES, PAGE_BYTES / 4)
        const content = block === NO_BLOCK ? 0 : words[0]!
        if (status === Status.SUCCESS && block !== NO_BLOCK) assert.ok(words.every((word) => word === content))
        else if (status !== Status.SUCCESS) assert.ok(status === Status.BLOCK_CORRUPTED || status === Status.READ_FAILED)
        found.set(`${index}/${page}`, status === Status.SUCCESS ? content : -1)
      }
    }
    bench.free(buffer)
    return found
  }

  /** Content of a page after the operation of that number. */
  after(key: string, op: number): number {
    return this.history.get(key)?.findLast(([at]) => at <= op)?.[1] ?? 0
  }

  /** The number of the last operation of which everything that was found is, if that makes sense at all. */
  explained(found: ReadonlyMap<string, number>): number | undefined {
    for (let op = this.op; op >= 0; op--) if ([...found].every(([key, content]) => content === -1 || content === this.after(key, op))) return op
    return undefined
  }
}

const isJournal = (page: number) => page * PAGE_BYTES >= GEOMETRY.journalOffset && page * PAGE_BYTES < GEOMETRY.extentTableOffset
const isKept = (page: number) => page * PAGE_BYTES < GEOMETRY.extentsOffset || page * PAGE_BYTES === DISK_BYTES - PAGE_BYTES

/** How the mounts ended, for who wonders. */
const ends = new Map<string, number>()
after(() => process.env['SEEDS'] !== undefined && console.log(ends))
for (let seed = FIRST; seed < FIRST + COUNT; seed++) {
  test(`one page that is not what was written is never taken for it (seed ${seed})`, { timeout: 300_000 }, async () => {
    const disk = new Disk(seed)
    const { bench, random } = disk
    await bench.format()
    disk.store = await bench.mount()
    await disk.work(random.between(5, 40))
    const old = new Map([...bench.file.pages].filter(([page]) => isKept(page)).map(([page, content]) => [page, content.slice()]))
    if (random.chance(0.5)) {
      if (random.chance(0.5)) await bench.settle(disk.store.close())
      bench.kill()
      disk.store = await bench.mount()
    }
    await disk.work(random.between(5, 60))
    const isClosed = random.chance(0.5)
    if (isClosed) await bench.settle(disk.store.close())
    bench.kill()
    const image = new Map([...bench.file.pages].map(([page, content]) => [page, content.slice()]))
    const changed = [...image]
      .filter(([page, content]) => isKept(page) && Buffer.compare(content, old.get(page) ?? new Uint8Array(PAGE_BYTES)) !== 0)
      .map(([page]) => page)
    const notJournal = changed.filter((page) => !isJournal(page))
    // the same end, with another lie each time
    for (let lie = 0; lie < 12; lie++) {
      const page = random.pick(random.chance(0.7) && notJournal.length > 0 ? notJournal : changed)
      const how = random.pick(['lost', 'lost', 'rotten', 'astray', 'unreadable'] as const)
      const now = image.get(page)!
      const put = how === 'lost' ? (old.get(page) ?? new Uint8Array(PAGE_BYTES)) : how === 'astray' ? image.get(random.pick(changed))! : now.slice()
      if (how === 'rotten') put[random.below(PAGE_BYTES)]! ^= 1 << random.below(8)
      for (const at of bench.file.pages.keys()) if (!image.has(at)) bench.file.writeFrom(at * PAGE_BYTES, new Uint8Array(PAGE_BYTES), 0, PAGE_BYTES)
      for (const [at, content] of image) bench.file.writeFrom(at * PAGE_BYTES, content, 0, PAGE_BYTES)
      bench.file.writeFrom(page * PAGE_BYTES, put, 0, PAGE_BYTES)
      if (how === 'unreadable') bench.file.badPages.add(page)
      const what = `page ${page} (${isJournal(page) ? 'journal' : page * PAGE_BYTES < GEOMETRY.pageTableOffset ? 'superblock or extent table' : 'page tables or superblock'}) ${how}`
      let end = 'refused'
      try {
        disk.store = await bench.mount()
        const found = await disk.contents()
        const op = disk.explained(found)
        assert.notEqual(op, undefined, `${what}: pages of no one time`)
        end = [...found.values()].includes(-1) ? 'bad pages' : op === disk.op ? 'all there' : 'an earlier time'
        // the last ones, which were under way at one time: what comes later knows that what came before was durable
        const least = isClosed || !isJournal(page) ? disk.op : disk.op - 2
        const last = Math.max(...disk.store.lastLow)
        assert.ok(op! >= least && last >= least, `${what}: operation ${Math.min(op!, last)} is the last one there, not ${disk.op}`)
      } catch (error) {
        if (!(error instanceof XsanError)) throw error
        assert.equal(error.status, how === 'unreadable' ? 'READ_FAILED' : 'DISK_CORRUPTED', `${what}: ${error.message}`)
      }
      ends.set(end, (ends.get(end) ?? 0) + 1)
      bench.kill()
    }
  })
}

for (let seed = FIRST; seed < FIRST + COUNT; seed++) {
  test(`power lost at each sync of a mount that has to make room, and at one of the next mount: everything is there (seed ${seed})`, {
    timeout: 300_000,
  }, async () => {
    const disk = new Disk(1000 + seed)
    const { bench, random } = disk
    await bench.format()
    disk.store = await bench.mount()
    await disk.work(random.between(5, 40))
    // nothing leaves the journal from here on
    await bench.settle(disk.store.destage.stop())
    const segments = () => disk.store.journal.headSegment - disk.store.journal.tailSegment
    while (segments() < 2) await disk.work(1)
    for (let more = random.between(0, 10); more > 0 && segments() < 3; more--) await disk.work(1)
    bench.kill()
    const image = new Map([...bench.file.pages].map(([page, content]) => [page, content.slice()]))
    let syncs = 0
    /** The power is lost at that sync, if it comes to it. */
    const mount = async (lostAt: number): Promise<void> => {
      const { io } = bench
      const sync = io.fdatasync.bind(io)
      const lost = new Error('the power is lost')
      syncs = 0
      io.fdatasync = (file) => (++syncs === lostAt ? Promise.reject(lost) : sync(file))
      try {
        disk.store = await bench.mount()
      } catch (error) {
        if (error !== lost) throw error
        bench.powerLoss('random')
        return
      }
      if (disk.store.failed) bench.powerLoss('random')
      else if (lostAt !== Number.POSITIVE_INFINITY) bench.kill()
    }
    await mount(Number.POSITIVE_INFINITY)
    const inAll = syncs
    assert.ok(inAll >= 6, `${inAll} syncs: the mount has made room`)
    for (let at = 1; at <= inAll; at++) {
      bench.kill()
      // what the process still had under way
      await bench.world.runFor(1000)
      for (const page of bench.file.pages.keys()) if (!image.has(page)) bench.file.writeFrom(page * PAGE_BYTES, new Uint8Array(PAGE_BYTES), 0, PAGE_BYTES)
      for (const [page, content] of image) bench.file.writeFrom(page * PAGE_BYTES, content, 0, PAGE_BYTES)
      bench.file.flushed(bench.file.beginFlush())
      await mount(at)
      await mount(random.between(1, inAll))
      await mount(Number.POSITIVE_INFINITY)
      assert.equal(disk.explained(await disk.contents()), disk.op, `power lost at sync ${at}`)
    }
  })
}
