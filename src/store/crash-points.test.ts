/**
 * Every moment of short pieces of work at which a disk can crash, and everything that the crash can leave there (crash-points.ts). After each of them the
 * disk mounts; it holds what it held after some record, not before the last one that had been promised; every page of that reads as it was written; what is
 * written then is there after the next crash; and a crash in the midst of that mount and of those writes is one like any other.
 *
 * The short form takes some of the crashes of each piece of work, always the same ones. `CRASH_POINTS=all` takes all of them, and more pieces of work
 * (hours); `CRASH_POINTS=NFOSD` takes all of this piece of work, `CRASH_POINTS=NFOSD/12` with the simulator's seed 12.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { method, replace } from '../../test/sim/canaries.ts'
import { type CrashState, DeviceLog, fileOf, type Image } from '../../test/support/crash-points.ts'
import { Bench, PATH, Recorder, SLOTS } from '../../test/support/store-bench.ts'
import { XsanError } from '../base/errors.ts'
import { Prng } from '../base/prng.ts'
import { Status } from '../base/status.ts'
import { MiB, PAGE_BYTES, PAGES_PER_BLOCK } from '../base/units.ts'
import { AsyncIo } from '../env/async-io.ts'
import { SimIoQueue } from '../env/sim/ioqueue.ts'
import { PageMemory } from '../env/sim/memory.ts'
import type { DiskStore } from './disk-store.ts'
import { Journal } from './journal.ts'
import { ROWS_PER_TABLE_PAGE, SEGMENT_BYTES_MIN } from './layout.ts'
import { type BlockInstall, type BlockRow, NO_BLOCK, PAGE_LOST, PageFlag, RecordKind, StageRecord } from './store.ts'

const ARENA_BYTES = 12 * MiB
const VOLUME = 5
const SWEPT_VOLUME = 9
/** The client whose channels the records have. Every other channel is one of its earlier process, until that is fenced. */
const CLIENT = 256
const FENCED = 1
/** The background work leaves a journal that has been calm for so long (destage.ts). */
const CALM_MS = 1100
/** In ms: a disk that has nothing else to do has room for a record by then. */
const WAITS_MAX = 10_000
/** Blocks that are only there to fill the disk. */
const FILL_FROM = 100

/** What a disk is known to hold after a record, in words that can be compared. */
interface Held {
  readonly seq: number
  readonly print: string
  /** Channel rows of a process that may be fenced: then they go sooner or later. */
  readonly fencedRows: string
}

/** What was promised at a moment of the log, for all crashes from then on. */
interface Promised {
  readonly time: number
  /** Survives a kill; survives a power loss. Nothing is lost but what comes after it. */
  readonly staged: number
  readonly durable: number
  /** A close has begun, and no mount has ended since: the disk may say of itself that nothing can be missing. */
  readonly isClosed: boolean
  /** What the disk says of that; undefined: either. */
  readonly lostPower: boolean | undefined
  /** Of the last mount that ended well. */
  readonly generation: number
  readonly isFenced: boolean
  readonly held: readonly Held[]
}

/** What one life hands on to the next: a disk as a crash left it, and what must be true of it. */
interface Left {
  readonly image: Image
  readonly bad: readonly number[]
  readonly boot: number
  readonly promised: Omit<Promised, 'time'>
  readonly nextId: number
  readonly sizeBytes: number
}

/** Of a life that has ended, for the next one. What an image holds is none of it. */
const memory: { arena: Uint8Array<ArrayBuffer> | undefined; readonly pages: PageMemory } = { arena: undefined, pages: new PageMemory() }

/** One disk from a mount on, with the log of all that happens to it. */
class Life {
  readonly bench: Bench
  readonly log: DeviceLog
  readonly record = new StageRecord()
  readonly promises: Promised[] = []
  readonly #left: Left
  #store: DiskStore | undefined
  nextId: number
  #payloads: number[] = []
  blocks = 0

  constructor(left: Left, seed: number) {
    this.#left = left
    this.nextId = left.nextId
    this.bench = newBench(seed)
    this.log = new DeviceLog(this.bench.disk, fileOf(this.bench.disk, PATH, left.sizeBytes, left.image, left.bad))
    this.promises.push({ ...left.promised, time: 0 })
  }

  get store(): DiskStore {
    return this.#store!
  }

  async mount(): Promise<void> {
    const { bench } = this
    const before = this.promises.at(-1)!
    const events = new Recorder()
    events.onStaged = (upTo) => this.#promise({ staged: upTo })
    events.onDurable = (upTo) => this.#promise({ durable: upTo })
    events.onFailed = (reason) => assert.fail(`the disk fails: ${reason}`)
    this.#store = await bench.mount({ bootId: `boot-${this.#left.boot}`, events })
    const { stagedSeq, generation, lostPower } = this.store
    const promised = Math.max(before.durable, before.staged)
    assert.ok(stagedSeq >= promised, `record ${promised} had been promised, the journal ends with ${stagedSeq}`)
    assert.ok(generation > before.generation, `generation ${generation} again`)
    if (before.lostPower !== undefined) assert.equal(lostPower, before.lostPower, 'lost power')
    else if (!lostPower && before.isClosed) assert.equal(stagedSeq, before.held.at(-1)!.seq, 'something was lost, and the disk says that nothing was')
    const last = before.held.findLast(({ seq }) => seq <= stagedSeq)!
    const now = heldBy(this.store, stagedSeq)
    const what = `the disk holds something else than after record ${stagedSeq}`
    assert.equal(now.print, last.print, what)
    if (!before.isFenced) assert.equal(now.fencedRows, last.fencedRows, what)
    const held = [...before.held.filter(({ seq }) => seq < last.seq), now]
    this.#promise({ staged: stagedSeq, durable: stagedSeq, isClosed: false, lostPower, generation, held })
    await this.#readAll()
  }

  /** The disk as a crash of this life leaves it. */
  leftBy(state: CrashState): Left {
    const { time: _, ...promised } = this.promises.findLast(({ time }) => time <= state.time)!
    const { boot, sizeBytes } = this.#left
    const { nextId } = this
    const left = { ...this.log.imageOf(state), nextId, sizeBytes }
    if (state.how === 'kill') return { ...left, boot, promised }
    // what a mount has not yet said of a disk that was closed before it is not lost
    const lostPower = promised.lostPower || !promised.isClosed ? true : undefined
    return { ...left, boot: boot + 1, promised: { ...promised, staged: 0, lostPower } }
  }

  #promise(change: Partial<Promised>): void {
    this.promises.push({ ...this.promises.at(-1)!, ...change, time: this.log.time })
  }

  /** A record has been staged: what the disk holds from then on. */
  entered(): void {
    const { held } = this.promises.at(-1)!
    this.#promise({ held: [...held, heldBy(this.store, this.store.journal.nextSeq - 1)] })
  }

  async work(text: string): Promise<void> {
    const random = this.bench.world.random('work')
    for (const letter of text) {
      const step = STEPS[letter]
      assert.ok(step !== undefined, `no step ${letter}`)
      await step(this)
      await this.bench.world.runFor(random.unit() * 0.3)
    }
    const { bench, store } = this
    await bench.until(() => store.stagedSeq === store.journal.nextSeq - 1 && bench.disk.underWay === 0, WAITS_MAX)
    for (const page of this.#payloads.splice(0)) this.bench.free(page)
  }

  payload(pages: number): { page: number; crcs: Uint32Array } {
    const payload = this.bench.payload(pages)
    this.#payloads.push(payload.page)
    return payload
  }

  stage(
    kind: RecordKind,
    of: { volume?: number; index?: number; slot?: number; firstPage?: number; pages?: number; durable?: boolean; channel?: number },
  ): void {
    const { volume = VOLUME, index = 0, slot = index % 3, firstPage = 0, pages = 0, durable = true, channel = 0 } = of
    const { record, store } = this
    const clientLow = channel % 2 === 1 && !this.promises.at(-1)!.isFenced ? FENCED : FENCED + 1
    Object.assign(record, { kind, slot, idHigh: 1, idLow: this.nextId, volume, layer: 0, index, firstPage, pageCount: pages, durable })
    Object.assign(record, { clientHigh: channel === 0 ? 0 : CLIENT, clientLow, channel, seq: this.nextId++ })
    const { page, crcs } = kind === RecordKind.WRITE ? this.payload(pages) : { page: 0, crcs: new Uint32Array(0) }
    Object.assign(record, { payloadPage: page, crcs, crcFirst: 0 })
    if (store.admit(record, false) !== Status.SUCCESS) return
    store.stage(record)
    this.entered()
  }

  async install(index: number, flags: readonly number[], firstPage: number, remove: boolean): Promise<void> {
    const data = flags.filter((flag) => flag === PageFlag.DATA).length
    const { page, crcs } = data > 0 ? this.payload(data) : { page: 0, crcs: new Uint32Array(0) }
    const id = this.nextId++
    let next = 0
    const rows = this.store.rows.pack()
    // the source has seen a later update of each channel
    for (let w = 0; w < rows.length; w += 8) rows[w + 4] = id
    const of = { slot: index % 3, volume: VOLUME, layer: 0, index, payloadPage: page, remove, rows, lastHigh: 1, lastLow: id }
    const given: BlockInstall = {
      ...of,
      pages: Uint16Array.from(flags, (_, i) => firstPage + i),
      flags: Uint8Array.from(flags),
      idHigh: Uint32Array.from(flags, (flag) => (flag === PageFlag.NEVER ? 0 : 1)),
      idLow: Uint32Array.from(flags, (flag) => (flag === PageFlag.NEVER ? 0 : id)),
      crc: Uint32Array.from(flags, (flag) => (flag === PageFlag.DATA ? crcs[next++]! : flag & PAGE_LOST ? ZERO_CRC : 0)),
    }
    await this.enter((store) => store.install(given))
  }

  blockOf(index: number): BlockRow {
    return this.store.findBlock(VOLUME, 0, index)
  }

  isBusy(of: { index: number }): boolean {
    Object.assign(this.record, { kind: RecordKind.WRITE, volume: VOLUME, layer: 0, index: of.index, pageCount: 1, clientHigh: 0 })
    return this.store.admit(this.record, false) === Status.BUSY
  }

  /** So many blocks, of those with a number from there on that are there. */
  removeFrom(from: number, count: number): void {
    const there = this.store.listBlocks(VOLUME, from, count)
    for (const index of there) this.stage(RecordKind.REMOVE, { index, durable: false })
  }

  /** As soon as there is room for it. */
  async enter(what: (store: DiskStore) => void): Promise<void> {
    for (let waits = 0; ; waits++) {
      try {
        what(this.store)
        break
      } catch (error) {
        if (!(error instanceof XsanError && error.status === 'BUSY') || waits === WAITS_MAX) throw error
        await this.bench.world.runFor(1)
      }
    }
    this.entered()
  }

  fence(): void {
    this.store.rows.expire(CLIENT, FENCED + 1)
    this.#promise({ isFenced: true })
  }

  /** Free journal segments, the one being written not counted. */
  get freeSegments(): number {
    const { headSegment, tailSegment } = this.store.journal
    return SEGMENTS - (headSegment - tailSegment + 1)
  }

  async repair(): Promise<void> {
    const [lost] = this.store.lostPages(1)
    if (lost === undefined) return
    const { store, bench } = this
    const capture = store.capture(lost.block)
    const idHigh = capture.idHigh[lost.page]!
    const idLow = capture.idLow[lost.page]!
    store.release(capture)
    const { page } = this.payload(1)
    bench.queue.arena.bytes.fill(0, page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
    const before = store.journal.nextSeq
    const repaired = store.repairPage(lost.block, lost.page, idHigh, idLow, page, ZERO_CRC)
    assert.equal(store.journal.nextSeq, before + 1, 'there was room for the repair')
    this.entered()
    assert.ok(await bench.settle(repaired))
  }

  async forgive(): Promise<void> {
    if (!this.store.lostPower) return
    this.#promise({ lostPower: undefined })
    await this.bench.settle(this.store.forgetPowerLoss())
    this.#promise({ lostPower: false })
  }

  async seal(): Promise<void> {
    this.#promise({ isClosed: true })
    await this.bench.settle(this.store.seal())
  }

  nextSegment(): void {
    this.store.journal.keepTogether(SEGMENT_BYTES_MIN / PAGE_BYTES)
    this.record.clientHigh = 0
    Object.assign(this.record, { kind: RecordKind.EMPTY, slot: 2, idHigh: 1, idLow: this.nextId++, pageCount: 0, firstPage: 0, clientHigh: 0, durable: true })
    this.store.stage(this.record)
    this.entered()
  }

  async close(): Promise<void> {
    const { bench, store } = this
    this.#promise({ isClosed: true })
    await bench.settle(store.close())
    this.#promise({ staged: store.stagedSeq, durable: store.stagedSeq })
  }

  /** The next process of the same host; `lostPower` as it was. */
  async restart(): Promise<void> {
    this.#payloads = []
    this.bench.kill()
    await this.mount()
  }

  async #readAll(): Promise<void> {
    const { bench, store } = this
    const buffer = bench.alloc(PAGES_AT_ONCE)
    for (let slot = 0; slot < SLOTS; slot++) {
      for (const row of store.blocksOf(slot)) {
        const capture = store.capture(row)
        for (let first = 0; first < PAGES_PER_BLOCK; first += PAGES_AT_ONCE) {
          const flags = capture.flags.subarray(first, first + PAGES_AT_ONCE)
          if (!flags.includes(PageFlag.DATA)) continue
          for (const [from, count] of stretchesOf(flags)) {
            const status = await bench.settle(store.readCaptured(capture, first + from, count, buffer))
            assert.equal(status, Status.SUCCESS, `pages ${first + from}+${count} of block ${store.blockIdentity(row).index}`)
            for (let i = 0; i < count; i++) {
              const isData = flags[from + i] === PageFlag.DATA
              const crc = bench.queue.arena.crc32c(buffer + i, 0, PAGE_BYTES)
              assert.equal(crc, isData ? capture.crc[first + from + i] : ZERO_CRC, `page ${first + from + i}`)
            }
          }
        }
        store.release(capture)
      }
    }
    bench.free(buffer)
  }

  /** Its memory is used again. */
  end(): void {
    memory.arena = this.bench.queue.arena.retire()
    memory.pages.retire()
  }
}

const SEGMENTS = 4
const PAGES_AT_ONCE = 256
const ZERO_CRC = 0x98f9_4189

/** Pages that can be read, as [first, count]. */
function* stretchesOf(flags: Uint8Array): Generator<[number, number]> {
  for (let from = 0; from < flags.length; ) {
    let to = from
    while (to < flags.length && (flags[to]! & PAGE_LOST) === 0) to++
    if (to > from) yield [from, to - from]
    from = to + 1
  }
}

/** Everything that a disk tells of what it holds. */
function heldBy(store: DiskStore, seq: number): Held {
  const lines: string[] = [`${store.usedBytes / MiB} MiB used`]
  for (let slot = 0; slot < SLOTS; slot++) {
    const blocks = store.blocksOf(slot)
    const [high, low] = [store.lastHigh[slot]!, store.lastLow[slot]!]
    if (blocks.length === 0 && high === 0 && low === 0 && !store.isIncomplete(slot)) continue
    lines.push(`slot ${slot}: last ${high}:${low}, ${store.isIncomplete(slot) ? 'incomplete, ' : ''}digest ${store.slotDigest(slot)}`)
    for (const row of blocks) {
      const { volume, index } = store.blockIdentity(row)
      const { updateHigh, updateLow, checksum, sizeBytes, pages } = store.describe(row)
      lines.push(`  block ${volume}/${index}: ${updateHigh}:${updateLow}, ${pages} pages, ${sizeBytes} bytes, ${checksum}`)
    }
  }
  const lost = store.lostPages(Number.POSITIVE_INFINITY).map(({ block, page }) => `${store.blockIdentity(block).index}/${page}`)
  if (lost.length > 0) lines.push(`lost: ${lost.sort().join(' ')}`)
  const packed = store.rows.pack()
  const rows: string[] = []
  const fencedRows: string[] = []
  for (let w = 0; w < packed.length; w += 8) (packed[w + 1] === FENCED ? fencedRows : rows).push(packed.subarray(w, w + 8).join(' '))
  return { seq, print: [...lines, ...rows.sort()].join('\n'), fencedRows: fencedRows.sort().join('\n') }
}

type Step = (life: Life) => void | Promise<void>

/** What a piece of work is made of. Block 0 is the one that everything happens to. */
const STEPS: Readonly<Record<string, Step>> = {
  /** New block. */
  N: (life) => life.stage(RecordKind.WRITE, { index: life.blocks++ % 6, pages: 2, channel: 1 }),
  /** Overwrite of the first page and some others, not the same each time, in one batch. */
  O: (life) => {
    life.stage(RecordKind.WRITE, { pages: 1, channel: 2 })
    life.stage(RecordKind.WRITE, { firstPage: 1 + ((life.nextId * 7) % 90), pages: 3 })
  },
  /** Another leaf of the page table, from memory. */
  P: (life) => life.stage(RecordKind.WRITE, { firstPage: 300 + (life.nextId % 5), pages: 1, durable: false, channel: 3 }),
  /** Some pages become zeros. */
  Z: (life) => life.stage(RecordKind.ZERO, { firstPage: 1, pages: 2, durable: false }),
  /** The whole block does. */
  A: (life) => life.stage(RecordKind.ZERO, { pages: PAGES_PER_BLOCK }),
  R: (life) => life.stage(RecordKind.REMOVE, {}),
  /** Removed and made again at once. */
  Q: (life) => {
    life.stage(RecordKind.REMOVE, { durable: false })
    life.stage(RecordKind.WRITE, { firstPage: 2, pages: 1 })
  },
  /** Nothing, of a channel. */
  E: (life) => life.stage(RecordKind.EMPTY, { channel: 4 }),
  /** More than a write of the background work takes at one time. */
  L: (life) => life.stage(RecordKind.WRITE, { index: 1, pages: 256 }),
  F: async (life) => {
    await life.bench.settle(life.store.journal.durable())
  },
  /** A record at the beginning of the next segment. */
  S: (life) => {
    if (life.freeSegments >= 2) life.nextSegment()
  },
  /** The journal gets full, and what waits for room comes as soon as there is some. */
  w: async (life) => {
    while (life.freeSegments > 0) life.nextSegment()
    for (let i = 0; i < 2; i++) {
      await life.bench.until(() => life.freeSegments > 0, WAITS_MAX)
      life.nextSegment()
    }
  },
  /** The background work does what it can. */
  D: async (life) => await life.bench.world.runFor(CALM_MS),
  /** An answer of a resync: all kinds of pages. */
  I: (life) => life.install(0, [PageFlag.DATA, PageFlag.ZERO, PageFlag.NEVER, PageFlag.DATA, PageFlag.DATA | PAGE_LOST], 1, false),
  /** One that takes the block's place, in several parts. */
  J: (life) => life.install(0, new Array<number>(300).fill(PageFlag.DATA).fill(PageFlag.ZERO, 4, 296), 100, true),
  /** One of so many pages that it goes over the end of a segment, if two of `L` are before it. */
  T: (life) => life.install(2, new Array<number>(600).fill(PageFlag.DATA), 0, false),
  /** A lost page comes from another replica. */
  H: (life) => life.repair(),
  B: (life) => life.enter((store) => store.startSession(0)),
  C: async (life) => {
    await life.enter((store) => store.completeSession(0))
    life.store.endSession(0)
  },
  /** A deleted volume's block is made and swept. */
  G: async (life) => {
    life.stage(RecordKind.WRITE, { volume: SWEPT_VOLUME, index: 0, pages: 1 })
    await life.bench.settle(life.store.sweep((volume) => volume === SWEPT_VOLUME))
    life.entered()
  },
  /** The client's earlier process is fenced. */
  X: (life) => life.fence(),
  /** The disk gets full; then there is room for two again. */
  Y: async (life) => {
    const { store, bench } = life
    for (let index = FILL_FROM; store.usedBytes < store.capacityBytes; index++) {
      await bench.until(() => !life.isBusy({ index }), WAITS_MAX)
      life.stage(RecordKind.WRITE, { index, pages: 1, durable: false })
      assert.notEqual(life.blockOf(index), NO_BLOCK, `${store.usedBytes} of ${store.capacityBytes} bytes used, and there is no extent`)
    }
    life.removeFrom(FILL_FROM, 2)
  },
  /** Blocks fill the first page of the extent table: the disk has two of them then. */
  U: (life) => {
    for (let index = FILL_FROM; index < FILL_FROM + ROWS_PER_TABLE_PAGE; index++) life.stage(RecordKind.WRITE, { index, pages: 1, durable: false })
  },
  /** The block comes to the extent of another one, which has gone. */
  V: (life) => {
    life.stage(RecordKind.REMOVE, {})
    life.removeFrom(FILL_FROM, 1)
    life.stage(RecordKind.WRITE, { pages: 1 })
  },
  /** What the power loss before this mount may have taken is of no matter any more. */
  W: (life) => life.forgive(),
  /** The beginning of a clean stop: what is written afterwards is refused. */
  s: (life) => life.seal(),
  /** The process is killed, and another one takes the disk. */
  K: (life) => life.restart(),
  /** A clean stop. */
  M: async (life) => {
    await life.close()
    await life.restart()
  },
}

function newBench(seed: number): Bench {
  const arenaMemory = (): Uint8Array<ArrayBuffer> => {
    const bytes = memory.arena ?? new Uint8Array(ARENA_BYTES)
    memory.arena = undefined
    return bytes
  }
  const bench = new Bench(seed, {}, { arenaBytes: ARENA_BYTES, arenaMemory, pages: memory.pages })
  Object.assign(bench.disk.faults, { short: 0, slow: 0 })
  return bench
}

/** A disk as it is after its format. */
async function formatted(sizeBytes: number): Promise<Left> {
  const bench = newBench(1)
  await bench.format({ createBytes: sizeBytes })
  const image = new Map<number, Uint8Array>()
  for (const [page, content] of bench.file.pages) if (content.some((byte) => byte !== 0)) image.set(page, content.slice())
  const held = [{ seq: 0, print: '0 MiB used', fencedRows: '' }]
  const promised = { staged: 0, durable: 0, isClosed: true, lostPower: false, generation: 0, isFenced: false, held }
  memory.pages.retire()
  return { image, bad: [], boot: 1, promised, nextId: 1, sizeBytes }
}
const disks = { small: await formatted(64 * MiB), large: await formatted(160 * MiB) }

const ALL = Number.POSITIVE_INFINITY
/** What is done after a crash: one of these. */
const AFTERWARDS = ['OPNFE', 'QSOFD', 'INFZ', 'RNKO', 'YFR', 'LPSMOD', 'XEVO', 'WOSDs', 'OwOP']

/** Takes some of the crashes of a life, and some of the crashes of the lives after them: all, or so many of each. Returns how many. */
async function explore(life: Life, random: Prng, [most, ...deeper]: readonly number[], path: string): Promise<number> {
  let crashes = 0
  for (const state of most === ALL ? life.log.crashStates() : someOf(life.log, random, most!)) {
    const next = new Life(life.leftBy(state), random.u32())
    const afterwards = random.pick(AFTERWARDS)
    const here = `${path}\n  ${state.how} at ${state.time}: ${state.what}; then ${afterwards}`
    try {
      await next.mount()
      await next.work(afterwards)
    } catch (error) {
      throw new Error(`${here}\n${(error as Error).message}`, { cause: error })
    }
    next.end()
    crashes += 1 + (deeper.length > 0 ? await explore(next, random, deeper, here) : 0)
  }
  return crashes
}

function someOf(log: DeviceLog, random: Prng, count: number): CrashState[] {
  return Array.from({ length: count }, () => {
    const states = [...log.statesAt(random.below(log.time + 1))]
    // there are many more ways to tear a write than to lose it
    return random.pick(random.chance(0.5) ? states : states.filter(({ isTorn }) => !isTorn))
  })
}

async function run(text: string, seed: number, counts: readonly number[]): Promise<number> {
  const life = new Life(text.includes('U') ? disks.large : disks.small, seed)
  await life.mount()
  await life.work(text)
  life.end()
  return await explore(life, new Prng(seed), counts, `${text}/${seed}`)
}

/** Each step after each other one, on a disk with a block that the background work has brought to its extent. */
const BEFORE = 'NOSD'
const EACH = [...'NOPZARQELSDIJHBCGXVKM']

/** Every part of the store has its turn, and segments of the journal, copies of tables and extents are used again. */
const WORK = [
  'NLOPSZDSFRNDSOD',
  'NOSDPOSDZSDOSD',
  'NPMOSDQSDMASDK',
  'NNNBISCSDJFSDIBK',
  'GESDKGOSDSDMXE',
  'NOJSDISDJSDKVSD',
  'UFNSDVOSDVFSDK',
  'UNSDVSDVMVSDKD',
  'YFSDRSDONSDKY',
  'NOKOKPKZKQKIKO',
  'LNLSLFLSDLSD',
  'BISDCMBJSDKC',
  'LLTSDOSDTSDK',
  'NIHSDIHHSDsDKOSDs',
  'NPOwOZwNPOwKOw',
]

/** Bugs that must be found, so that this test cannot rot: each breaks one promise. */
const CANARIES: ReadonlyArray<{ readonly bug: string; readonly plant: () => () => void }> = [
  {
    bug: 'the background work and the mount do not flush',
    plant: () => replace(AsyncIo.prototype, 'fdatasync', () => () => Promise.resolve(0)),
  },
  {
    bug: 'the background work does not wait for the journal',
    plant: () => replace(Journal.prototype, 'durable', () => () => Promise.resolve(true)),
  },
  {
    bug: 'batches that want to be durable are not written so',
    plant: () =>
      method<SimIoQueue, Parameters<SimIoQueue['writeSegments']>, void>(
        SimIoQueue.prototype,
        'writeSegments',
        (original) =>
          function (file, offsetBytes, _sync, tag, row) {
            original.call(this, file, offsetBytes, false, tag, row)
          },
      ),
  },
  {
    bug: 'the superblocks do not take turns',
    plant: () =>
      method<AsyncIo, Parameters<AsyncIo['write']>, Promise<number>>(
        AsyncIo.prototype,
        'write',
        (original) =>
          function (file, offsetBytes, ...rest) {
            return original.call(this, file, offsetBytes === 0 ? disks.small.sizeBytes - PAGE_BYTES : offsetBytes, ...rest)
          },
      ),
  },
]

async function isFound(): Promise<boolean> {
  for (const text of WORK.filter((each) => !each.startsWith('U'))) {
    try {
      await run(text, 1, [30, 1])
    } catch (error) {
      // by a crash, not by the work itself
      assert.match(String(error), /; then /)
      return true
    }
  }
  return false
}

const [asked = '', seed = '1'] = (process.env['CRASH_POINTS'] ?? '').split('/')
const all = asked === 'all'
if (asked === '' || all) {
  for (const first of EACH) {
    test(`crashes of each step after ${first}`, async () => {
      for (const second of EACH) {
        if (!all) await run(BEFORE + first + second, 1, [1])
        else for (const third of EACH) await run(BEFORE + first + second + third, 1, [8])
      }
    })
  }
}
for (const text of asked === '' || all ? WORK : asked.split(',')) {
  test(`crashes of ${text}`, async (t) => {
    t.diagnostic(`${await run(text, Number(seed), asked === '' ? [30, 1] : [ALL, 1])} crashes`)
  })
}
if (asked === '') {
  for (const { bug, plant } of CANARIES) {
    test(`it is found when ${bug}`, async () => {
      const undo = plant()
      try {
        assert.ok(await isFound())
      } finally {
        undo()
      }
    })
  }
}
