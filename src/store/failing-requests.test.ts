/**
 * A disk of which one request fails, whichever of a short piece of work it is, or of a mount; with it goes what the drive had not put on stable storage. Or the
 * process is killed there, and a request of the next mount fails. The disk is mounted again, as often as that takes: everything promised as durable is there,
 * page by page; if anything else is missing the disk says so; and it is refused only as one that fails, never as one that is damaged.
 *
 * Each request fails in one of many ways, drawn from a seed. The short form takes half of them; `SEEDS=FIRST+COUNT` takes all of them, of those seeds.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { fileOf, type Image } from '../../test/support/crash-points.ts'
import { Bench, PATH } from '../../test/support/store-bench.ts'
import { XsanError } from '../base/errors.ts'
import { Prng } from '../base/prng.ts'
import { Status } from '../base/status.ts'
import { MiB, PAGE_BYTES } from '../base/units.ts'
import { PageMemory } from '../env/sim/memory.ts'
import type { DiskStore } from './disk-store.ts'
import { SEGMENT_BYTES_MIN } from './layout.ts'
import type { MountOptions } from './mount-options.ts'
import { type BlockInstall, NO_BLOCK, PageFlag, RecordKind, StageRecord } from './store.ts'

const isLong = process.env['SEEDS'] !== undefined
const [FIRST = 5, COUNT = 1] = (process.env['SEEDS'] ?? '').split('+').filter(Boolean).map(Number)
const DISK_BYTES = 64 * MiB
const ARENA_BYTES = 12 * MiB
const VOLUME = 5
const BLOCKS = 4
/** Pages of these blocks that are written to: of two leaves. */
const PAGES = [0, 1, 2, 3, 300, 301]
const SEGMENTS = 4
const WAITS_MAX = 20_000

/** What happens when a request ends, and what goes with it. */
interface Failure {
  /** Counted from 1. */
  readonly request: number
  /** Not the disk fails then, the process is killed. */
  readonly kills: boolean
  /** Of the request itself: nothing of it reached the medium, or some part of it (all of it, where it was the flush that failed). */
  readonly applied: 'nothing' | 'part'
  /** Of what had not been flushed. */
  readonly drops: 'keep' | 'lose' | 'random'
  /** Every write and flush that begins later fails as well. */
  readonly isLasting: boolean
  /** The process stands still for so long: it is told together with what came after it. */
  readonly standsMs: number
}

const memory: { arena: Uint8Array<ArrayBuffer> | undefined; readonly pages: PageMemory } = { arena: undefined, pages: new PageMemory() }

/** Content of each page by name, and what else is told of the disk. */
type Content = ReadonlyMap<string, number>

class Life {
  readonly bench: Bench
  readonly random: Prng
  readonly record = new StageRecord()
  store!: DiskStore
  /** What the disk holds after each record, by position. */
  states: Array<{ readonly seq: number; readonly held: Content }> = [{ seq: 0, held: new Map() }]
  /** Told to somebody. */
  durable = 0
  staged = 0
  nextId = 1
  requests = 0
  /** No background work. */
  #isFilling = false
  /** Words of the way here. */
  path: string[] = []
  #failure: Failure | undefined
  /** Requests that had begun then; 0: it has not happened. */
  #failedAt = 0

  constructor(seed: number, image: Image) {
    const arenaMemory = (): Uint8Array<ArrayBuffer> => {
      const bytes = memory.arena ?? new Uint8Array(ARENA_BYTES)
      memory.arena = undefined
      return bytes
    }
    this.bench = new Bench(seed, {}, { arenaBytes: ARENA_BYTES, arenaMemory, pages: memory.pages })
    this.random = this.bench.world.random('work')
    Object.assign(this.bench.disk.faults, { short: 0.02, slow: 0.1, slowMs: 4, flushMs: this.random.pick([0, 1, 4]) })
    this.#inOrder()
    fileOf(this.bench.disk, PATH, DISK_BYTES, image)
    this.#watch()
  }

  /** What the kernel has done first is told first. */
  #inOrder(): void {
    Object.assign(this.bench.queue.faults, { late: 0, reorder: 0 })
  }

  #watch(): void {
    const { disk } = this.bench
    const request = disk.request.bind(disk)
    disk.request = (owner, label, lengthBytes, fn, tear) => {
      const number = ++this.requests
      const failure = this.#failure
      const run = (): void => {
        const isOneMore = failure?.isLasting && this.#failedAt > 0 && number > this.#failedAt && label !== 'read'
        if (failure !== undefined && failure === this.#failure && owner.alive && (number === failure.request || isOneMore))
          this.#fail(failure, number, label, fn)
        else fn()
      }
      request(owner, label, lengthBytes, run, tear)
    }
  }

  #fail({ kills, applied, drops, standsMs }: Failure, number: number, label: string, fn: () => void): void {
    const { disk, file, process } = this.bench
    const isFirst = this.#failedAt === 0
    this.#failedAt = Math.max(this.#failedAt, this.requests)
    if (isFirst) this.path.push(`request ${number}: ${label}`)
    if (kills) {
      process.kill()
      fn()
      return
    }
    if (applied === 'nothing') disk.gone = true
    else Object.assign(disk.faults, { readEio: 1, writeEio: label === 'synced write' ? 0 : 1, flushEio: 1 })
    fn()
    disk.gone = false
    Object.assign(disk.faults, { readEio: 0, writeEio: 0, flushEio: 0 })
    // an allocation is the file system's
    if (label !== 'read' && label !== 'allocate' && drops !== 'keep') file.powerLoss(drops, 0)
    if (isFirst && standsMs > 0 && process.alive) process.pause(standsMs)
  }

  /** From now on, counting requests from 1. */
  failAt(failure: Failure | undefined): void {
    this.requests = this.#failedAt = 0
    this.#failure = failure
  }

  /** A request has failed, of the process that was killed there or of another one. */
  get hasFailed(): boolean {
    return this.#failedAt > 0
  }

  /** There is no work for this process any more. */
  get isOver(): boolean {
    return this.store.failed || !this.bench.process.alive
  }

  async mount(options: Partial<MountOptions> = {}): Promise<void> {
    const { bench } = this
    this.store = await bench.mount(options)
    this.#isFilling = false
    const { store } = this
    const { events } = bench
    events.onStaged = (upTo) => {
      this.staged = Math.max(this.staged, upTo)
    }
    events.onDurable = (upTo) => {
      this.durable = Math.max(this.durable, upTo)
    }
    assert.ok(store.stagedSeq >= this.durable, `record ${this.durable} was durable, the journal ends with ${store.stagedSeq}`)
    if (store.stagedSeq < this.staged) assert.ok(store.lostPower, `record ${this.staged} was staged, the journal ends with ${store.stagedSeq}, nothing is said`)
    this.states = this.states.filter(({ seq }) => seq <= store.stagedSeq)
    const held = await this.#contents()
    if (!store.failed) assert.deepEqual(held, this.states.at(-1)!.held)
    this.durable = this.staged = store.stagedSeq
  }

  async #contents(): Promise<Content> {
    const { bench, store } = this
    const buffer = bench.alloc(1)
    const held = new Map<string, number>()
    for (let index = 0; index < BLOCKS; index++) {
      const block = store.findBlock(VOLUME, 0, index)
      if (block === NO_BLOCK) continue
      for (const page of PAGES) {
        let { status, extra } = await bench.read(store, block, page, 1, buffer)
        if (status === Status.READ_FAILED && this.hasFailed) ({ status, extra } = await bench.read(store, block, page, 1, buffer))
        if (store.failed) return held
        assert.equal(status, Status.SUCCESS, `page ${extra} of block ${index}`)
        const words = new Uint32Array(bench.queue.arena.bytes.buffer, bench.queue.arena.bytes.byteOffset + buffer * PAGE_BYTES, PAGE_BYTES / 4)
        assert.ok(words.every((word) => word === words[0]))
        if (words[0] !== 0) held.set(`${index}/${page}`, words[0]!)
      }
    }
    bench.free(buffer)
    if (store.isIncomplete(0)) held.set('incomplete', 1)
    return held
  }

  #entered(seq: number, change: (held: Map<string, number>) => void): void {
    const held = new Map(this.states.at(-1)!.held)
    change(held)
    this.states.push({ seq, held })
  }

  /** Pages full of a number. */
  #payload(pages: number, content: number): { payloadPage: number; crcs: Uint32Array } {
    const { bench } = this
    const payloadPage = bench.alloc(pages)
    const { bytes } = bench.queue.arena
    new Uint32Array(bytes.buffer, bytes.byteOffset + payloadPage * PAGE_BYTES, (pages * PAGE_BYTES) / 4).fill(content)
    return { payloadPage, crcs: new Uint32Array(pages).fill(bench.queue.arena.crc32c(payloadPage, 0, PAGE_BYTES)) }
  }

  async stage(kind: RecordKind, index: number, firstPage: number, pageCount: number, durable: boolean): Promise<void> {
    const { record, store, bench } = this
    const id = this.nextId++
    Object.assign(record, { kind, slot: index, idHigh: 1, idLow: id, volume: VOLUME, layer: 0, index, firstPage, pageCount, durable, clientHigh: 0 })
    if (kind === RecordKind.WRITE) Object.assign(record, this.#payload(pageCount, id), { crcFirst: 0 })
    await bench.until(() => this.isOver || store.admit(record, false) === Status.SUCCESS, WAITS_MAX)
    if (this.isOver) return
    const seq = store.stage(record)
    this.#entered(seq, (held) => {
      for (const page of PAGES) {
        const key = `${index}/${page}`
        if (kind === RecordKind.REMOVE || (kind === RecordKind.ZERO && page >= firstPage && page < firstPage + pageCount)) held.delete(key)
        if (kind === RecordKind.WRITE && page >= firstPage && page < firstPage + pageCount) held.set(key, id)
      }
    })
  }

  async install(index: number, remove: boolean): Promise<void> {
    const id = this.nextId++
    const pages = [0, 1, 2, 300]
    const flags = [PageFlag.DATA, PageFlag.ZERO, PageFlag.DATA, PageFlag.DATA]
    const { payloadPage, crcs } = this.#payload(3, id)
    const given: BlockInstall = {
      ...{ slot: index, volume: VOLUME, layer: 0, index, payloadPage, remove, rows: new Uint32Array(0), lastHigh: 1, lastLow: id },
      ...{ pages: Uint16Array.from(pages), flags: Uint8Array.from(flags), idHigh: new Uint32Array(4).fill(1), idLow: new Uint32Array(4).fill(id) },
      crc: Uint32Array.from(flags, (flag) => (flag === PageFlag.DATA ? crcs[0]! : 0)),
    }
    await this.#enter(
      () => this.store.install(given),
      (held) => {
        if (remove) for (const page of PAGES) held.delete(`${index}/${page}`)
        for (const [i, page] of pages.entries()) {
          if (flags[i] === PageFlag.DATA) held.set(`${index}/${page}`, id)
          else held.delete(`${index}/${page}`)
        }
      },
    )
  }

  /** As soon as there is room for it. */
  async #enter(write: () => number, change: (held: Map<string, number>) => void): Promise<void> {
    while (!this.isOver) {
      try {
        const seq = write()
        this.#entered(seq, change)
        return
      } catch (error) {
        if (!(error instanceof XsanError && (error.status === 'BUSY' || this.store.failed))) throw error
        await this.bench.world.runFor(1)
      }
    }
  }

  /** A piece of work, or what of it comes before the disk fails. */
  async work(text: string): Promise<void> {
    const { bench, random } = this
    for (const letter of text) {
      if (this.isOver) break
      await this.#step(letter)
      await bench.world.runFor(random.pick([0, 0.05, 0.3]))
    }
  }

  async #step(letter: string): Promise<void> {
    const { bench, store } = this
    const index = this.nextId % BLOCKS
    switch (letter) {
      case 'W':
        return await this.stage(RecordKind.WRITE, index, this.nextId % 3, 2, true)
      case 'w':
        return await this.stage(RecordKind.WRITE, index, this.nextId % 2 === 0 ? 300 : 1, 1, false)
      case 'Z':
        return await this.stage(RecordKind.ZERO, index, 1, 2, false)
      case 'R':
        return await this.stage(RecordKind.REMOVE, index, 0, 0, false)
      case 'I':
        return await this.install(index, index === 0)
      case 'B':
        return await this.#enter(
          () => store.startSession(0),
          (held) => held.set('incomplete', 1),
        )
      case 'C':
        await this.#enter(
          () => store.completeSession(0),
          (held) => held.delete('incomplete'),
        )
        return store.endSession(0)
      case 'F':
        store.flush(() => undefined, 0)
        return
      case 'S': {
        // the next record begins a segment, if there is one
        const { journal } = store
        const free = () => SEGMENTS - (journal.headSegment - journal.tailSegment + 1)
        await bench.until(() => this.isOver || this.#isFilling || free() > 1, WAITS_MAX)
        if (this.isOver || free() === 0) return
        journal.keepTogether(SEGMENT_BYTES_MIN / PAGE_BYTES)
        return await this.stage(RecordKind.EMPTY, 2, 0, 0, true)
      }
      case 'p':
        // the journal fills up: the next mount has to make room
        this.#isFilling = true
        void store.destage.stop()
        return
      case 'D':
        return await bench.world.runFor(1100)
      case 'f':
        void store.forgetPowerLossOf([this.nextId % 16])
        return
      case 'g':
        void store.forgetPowerLoss()
        return
      case 's':
        void store.seal()
        return
      default:
        assert.fail(`no step ${letter}`)
    }
  }

  /** The process ends, and with it perhaps the power. */
  end(how: 'kill' | 'lose' | 'random'): void {
    const { bench } = this
    this.path.push(how)
    if (how === 'kill') bench.kill()
    else bench.powerLoss(how)
    this.#inOrder()
  }

  dispose(): void {
    memory.arena = this.bench.queue.arena.retire()
    memory.pages.retire()
  }
}

async function formatted(): Promise<Image> {
  const bench = new Bench(1, {}, { arenaBytes: ARENA_BYTES })
  await bench.format({ createBytes: DISK_BYTES })
  return new Map([...bench.file.pages].filter(([, content]) => content.some((byte) => byte !== 0)).map(([page, content]) => [page, content.slice()]))
}
const BLANK = await formatted()

const WORK = ['WwIFSWwWSwZWSIFRSwfDW', 'SwSwFwFwWwFgwwwFwFFwwF', 'BWISwCWSFWwSRWwSfDwg', 'wWwSWFwpSZIwSWSws']
const AFTERWARDS = 'WwSWFSwWS'

/** How many requests the work has, and the mount after it. */
async function run(seed: number, text: string, draw: Prng, atWork?: Failure, atMount?: Failure): Promise<{ readonly work: number; readonly mount: number }> {
  const life = new Life(seed, BLANK)
  const { bench } = life
  try {
    await life.mount()
    await life.work('wWw')
    // what the disk has to say of its power is one of the things that are written
    life.end('random')
    life.staged = life.durable
    await life.mount()
    life.failAt(atWork)
    await life.work(text)
    // it has heard of it
    if (life.hasFailed) await bench.world.runFor(atWork!.standsMs + draw.pick([0.1, 0.3, 50]))
    const work = life.requests
    // what its node remembers: it has been told that the disk has failed
    let wasAway = life.store.failed
    let mount = 0
    life.end(atWork === undefined || draw.chance(0.7) ? 'kill' : 'random')
    life.failAt(atMount)
    for (let tries = 0; ; tries++) {
      // a process may try again what it could not mount
      let ends = true
      try {
        await life.mount({ wasAway })
        mount = life.requests
        if (!life.store.failed) break
      } catch (error) {
        if (!(error instanceof XsanError) || !life.hasFailed) throw error
        life.path.push(error.message)
        assert.match(error.status, /READ_FAILED|WRITE_FAILED/)
        ends = draw.chance(0.7)
      }
      assert.ok(tries < 2, 'nothing fails any more')
      wasAway = true
      life.failAt(undefined)
      if (ends) life.end(draw.pick(['kill', 'random', 'lose']))
    }
    life.failAt(undefined)
    await life.work(AFTERWARDS)
    assert.equal(bench.events.failed, undefined)
    life.end(draw.pick(['kill', 'random']))
    await life.mount()
    return { work, mount }
  } catch (error) {
    throw new Error(`${text}/${seed} ${JSON.stringify([atWork, atMount])}\n  ${life.path.join('\n  ')}\n${(error as Error).message}`, { cause: error })
  } finally {
    life.dispose()
  }
}

function failureAt(request: number, draw: Prng, mayKill: boolean): Failure {
  return {
    request,
    kills: mayKill && draw.chance(0.25),
    applied: draw.pick(['nothing', 'part']),
    drops: draw.pick(['keep', 'lose', 'lose', 'lose', 'random']),
    isLasting: draw.chance(0.3),
    standsMs: draw.pick([0, 0, 1, 5]),
  }
}

for (const text of WORK) {
  for (let seed = FIRST; seed < FIRST + COUNT; seed++) {
    test(`each request of ${text} fails, and each of the mount after it (seed ${seed})`, { timeout: 300_000 }, async () => {
      const draw = new Prng(seed)
      const requests = await run(seed, text, draw)
      const isLeftOut = () => !isLong && draw.chance(0.5)
      for (let request = 1; request <= requests.work; request++) {
        if (isLeftOut()) continue
        const isAlone = draw.chance(0.5)
        await run(seed, text, draw, failureAt(request, draw, true), isAlone ? undefined : failureAt(draw.between(1, requests.mount), draw, false))
      }
      for (let request = 1; request <= requests.mount; request++) if (!isLeftOut()) await run(seed, text, draw, undefined, failureAt(request, draw, false))
    })
  }
}

/** A request that is under way until `end` is called: it ends as that says. */
type Held = (end: (fn: () => void) => void) => void

/** From now on requests of which `isHeld` says so wait. */
function hold({ disk }: Bench, isHeld: (label: string) => boolean): Held[] {
  const held: Held[] = []
  const request = disk.request.bind(disk)
  disk.request = (owner, label, lengthBytes, fn, tear) => {
    if (isHeld(label)) held.push((end) => request(owner, label, lengthBytes, () => end(fn)))
    else request(owner, label, lengthBytes, fn, tear)
  }
  return held
}

/** What had not been flushed goes with it. */
function fails({ disk, file }: Bench, fn: () => void): void {
  disk.gone = true
  fn()
  disk.gone = false
  file.powerLoss('lose')
}

/** A record in the kernel alone. */
async function staged(life: Life): Promise<void> {
  await life.stage(RecordKind.WRITE, 0, 0, 1, false)
  await life.bench.until(() => life.store.stagedSeq === life.store.journal.nextSeq - 1)
}

test('when a write of the background work has failed no flush counts any more, though other writes of it are still under way', async () => {
  const life = new Life(1, BLANK)
  const { bench } = life
  await life.mount()
  const { store } = life
  for (const index of [0, 1]) await life.stage(RecordKind.WRITE, index, 0, 1, true)
  const writes = hold(bench, (label) => label === 'write' && store.destage.pagesWritten > 0 && writes.length < 2)
  for (const _ of [1, 2]) {
    store.journal.keepTogether(SEGMENT_BYTES_MIN / PAGE_BYTES)
    await life.stage(RecordKind.EMPTY, 3, 0, 0, true)
  }
  await bench.until(() => writes.length === 2)
  await staged(life)
  const told: number[] = []
  writes[0]!((fn) => {
    fails(bench, fn)
    store.flush((_row, status) => told.push(status), 0)
  })
  await bench.until(() => told.length > 0)
  assert.deepEqual(told, [Status.WRITE_FAILED])
  life.dispose()
})

test('a flush that has succeeded does not count when it is told in one turn with that of a superblock, which has failed', async () => {
  const life = new Life(1, BLANK)
  const { bench } = life
  await life.mount()
  const { store } = life
  const flushes = hold(bench, (label) => label === 'flush')
  void store.noteWhole()
  await bench.until(() => flushes.length === 1)
  await staged(life)
  const told: number[] = []
  store.flush((_row, status) => told.push(status), 0)
  await bench.until(() => flushes.length === 2)
  flushes[0]!((fn) => {
    fails(bench, fn)
    flushes[1]!((then) => then())
    bench.process.pause(5)
  })
  await bench.until(() => told.length > 0)
  assert.deepEqual(told, [Status.WRITE_FAILED])
  life.dispose()
})
