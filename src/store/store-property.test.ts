/**
 * The disk store against the reference store, the same random operations on both, with kills, power losses and clean stops between them.
 * After each crash some prefix of the operations has survived: all that had been staged (kill) or durable (power loss) at least. The
 * reference is cut to the same prefix, and both must hold the same.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { Bench, SLOTS } from '../../test/support/store-bench.ts'
import type { Prng } from '../base/prng.ts'
import { Status } from '../base/status.ts'
import { BLOCK_BYTES, PAGE_BYTES, PAGES_PER_BLOCK } from '../base/units.ts'
import type { DiskStore } from './disk-store.ts'
import { type MemoryImage, MemoryStore } from './memory-store.ts'
import { type BlockCapture, type BlockInstall, NO_BLOCK, PAGE_LOST, PageFlag, RecordKind, type ReplicaStore, StageRecord } from './store.ts'

/** `SEEDS=FIRST+COUNT` runs others. */
const [FIRST = 1, COUNT = 6] = (process.env['SEEDS'] ?? '').split('+').filter(Boolean).map(Number)
const BLOCKS = 14
const NEVER_MS = 1e9
const NOTHING = { onStaged() {}, onDurable() {}, onFailed() {} }

/** Positions of the same operation in both. */
interface Op {
  readonly disk: number
  readonly memory: number
}

class Pair {
  readonly bench: Bench
  readonly random: Prng
  readonly record = new StageRecord()
  store!: DiskStore
  memory!: MemoryStore
  ops: Op[] = []
  /** Payload pages in use until the operation at that position is staged. */
  payloads: Array<{ page: number; seq: number }> = []
  nextId = 1
  nextSeq = 1
  crashes = 0
  readonly sessions = new Set<number>()

  constructor(seed: number) {
    this.bench = new Bench(seed, seed % 3 === 0 ? { volatile: true } : { unreadableTorn: (seed % 2) * 4 })
    this.random = this.bench.world.random('operations')
    Object.assign(this.bench.disk.faults, { short: 0.03, slow: 0.01 })
  }

  async mount(image?: MemoryImage): Promise<void> {
    const { bench } = this
    this.store = await bench.mount()
    const memory = { queue: bench.queue, disk: this.store.disk, slotCount: SLOTS, events: NOTHING, capacityBlocks: this.store.capacityBytes / BLOCK_BYTES }
    const options = { ...memory, stageMs: 0.01, durableMs: NEVER_MS, wallMs: () => 1_700_000_000_000 }
    this.memory = new MemoryStore(image === undefined ? options : { ...options, image })
    this.ops = [{ disk: this.store.stagedSeq, memory: this.memory.stagedSeq }]
    this.payloads = []
    this.sessions.clear()
  }

  #entered(disk: number, memory: number): void {
    this.ops.push({ disk, memory })
  }

  #freeStaged(): void {
    const { bench, store, memory } = this
    this.payloads = this.payloads.filter(({ page, seq }) => {
      const op = this.ops.find((o) => o.disk >= seq)!
      if (store.stagedSeq < seq || memory.stagedSeq < op.memory) return true
      bench.free(page)
      return false
    })
  }

  #identity(): { volume: number; layer: number; index: number; slot: number } {
    const index = this.random.below(BLOCKS)
    return { volume: 3 + (index % 2), layer: 0, index, slot: index % 5 }
  }

  stage(): boolean {
    const { random, record, store, memory } = this
    const { volume, layer, index, slot } = this.#identity()
    const draw = random.below(100)
    record.kind = draw < 80 ? RecordKind.WRITE : draw < 90 ? RecordKind.ZERO : draw < 94 ? RecordKind.REMOVE : RecordKind.EMPTY
    const pages = record.kind === RecordKind.EMPTY || record.kind === RecordKind.REMOVE ? 0 : random.pick([1, 1, 1, 2, 8, 64, 256])
    Object.assign(record, { volume, layer, index, slot, idHigh: 1 + this.crashes, idLow: this.nextId++ })
    record.pageCount = pages
    record.firstPage = random.below(PAGES_PER_BLOCK - pages)
    if (random.chance(0.7)) record.firstPage = Math.min(record.firstPage % 32, PAGES_PER_BLOCK - pages)
    record.clientHigh = random.chance(0.9) ? 256 * random.between(1, 3) : 0
    record.clientLow = 1
    record.channel = random.below(256)
    record.seq = this.nextSeq++
    record.durable = random.chance(0.5)
    record.crcs = new Uint32Array(0)
    if (record.kind === RecordKind.WRITE) {
      if (this.bench.queue.arena.stats().freeBytes < 24 * 1024 * 1024) return false
      const { page, crcs } = this.bench.payload(pages)
      record.payloadPage = page
      record.crcs = crcs
    }
    const status = store.admit(record, random.chance(0.5))
    if (status !== Status.SUCCESS) {
      if (record.kind === RecordKind.WRITE) this.bench.free(record.payloadPage)
      assert.ok(status === Status.BUSY || status === Status.INSUFFICIENT_SPACE)
      return false
    }
    const seq = store.stage(record)
    if (record.kind === RecordKind.WRITE) this.payloads.push({ page: record.payloadPage, seq })
    this.#entered(seq, memory.stage(record))
    return true
  }

  session(): void {
    const slot = this.random.below(5)
    if (this.sessions.delete(slot)) {
      // `setLast` is volatile: a record takes its place here, so that both stores hold the same after a crash
      Object.assign(this.record, { kind: RecordKind.EMPTY, slot, idHigh: 1 + this.crashes, idLow: this.nextId++, pageCount: 0, firstPage: 0, clientHigh: 0 })
      this.#entered(this.store.stage(this.record), this.memory.stage(this.record))
      if (this.random.chance(0.6)) {
        // where there is room for the one, there is for the other
        const seq = this.#unlessFull(() => this.store.completeSession(slot))
        if (seq !== undefined) this.#entered(seq, this.memory.completeSession(slot))
      }
      for (const s of [this.store, this.memory]) s.endSession(slot)
    } else {
      this.sessions.add(slot)
      this.#entered(this.store.startSession(slot), this.memory.startSession(slot))
    }
  }

  #unlessFull(write: () => number): number | undefined {
    try {
      return write()
    } catch (error) {
      assert.match(String(error), /full for the moment|no extent/)
      return undefined
    }
  }

  install(): void {
    const { random, store, memory } = this
    const identity = this.#identity()
    const count = random.pick([0, 1, 5, 300, 1000])
    const remove = random.chance(0.1)
    const pages = Uint16Array.from({ length: PAGES_PER_BLOCK }, (_, i) => i)
      .filter(() => random.chance(count / PAGES_PER_BLOCK))
      .filter(() => !remove)
    const lost = PageFlag.DATA | PAGE_LOST
    const flags = Uint8Array.from(pages, () =>
      random.chance(0.01) ? lost : random.pick([PageFlag.DATA, PageFlag.DATA, PageFlag.DATA, PageFlag.ZERO, PageFlag.NEVER]),
    )
    const data = flags.filter((flag) => flag === PageFlag.DATA).length
    if (this.bench.queue.arena.stats().freeBytes < 24 * 1024 * 1024) return
    const payload = data > 0 ? this.bench.payload(data) : { page: 0, crcs: new Uint32Array(0) }
    let next = 0
    const crc = Uint32Array.from(flags, (flag) => (flag === PageFlag.DATA ? payload.crcs[next++]! : flag === lost ? 0x1234_5678 : 0))
    const id = this.nextId++
    const never = (value: number) => Uint32Array.from(flags, (flag) => (flag === PageFlag.NEVER ? 0 : value))
    const rows = random.chance(0.5) ? this.memory.rows.pack() : new Uint32Array(0)
    for (let w = 0; w < rows.length; w += 8) if (random.chance(0.3)) rows[w + 4]! += 1
    const raises = random.chance(0.5)
    const given: BlockInstall = {
      ...identity,
      pages,
      idHigh: never(1 + this.crashes),
      idLow: never(id),
      crc,
      flags,
      payloadPage: payload.page,
      remove,
      rows,
      lastHigh: raises ? 1 + this.crashes : 0,
      lastLow: raises ? id : 0,
    }
    const seq = this.#unlessFull(() => store.install(given))
    if (data > 0 && seq !== undefined) this.payloads.push({ page: payload.page, seq })
    else if (data > 0) this.bench.free(payload.page)
    if (seq !== undefined) this.#entered(seq, memory.install(given))
  }

  async compareReads(): Promise<void> {
    const { bench, random, store, memory } = this
    const { volume, layer, index } = this.#identity()
    const pages = random.pick([1, 8, 256])
    const first = random.below(PAGES_PER_BLOCK - pages)
    const a = bench.alloc(pages)
    const b = bench.alloc(pages)
    const both = await bench.settle(
      Promise.all(
        [store, memory].map(
          (s: ReplicaStore, i) =>
            new Promise<number>((resolve) => {
              s.read(
                s.findBlock(volume, layer, index),
                first,
                pages,
                i === 0 ? a : b,
                (_row, status) => {
                  bench.queue.asyncPending = true
                  resolve(status)
                },
                0,
              )
            }),
        ),
      ),
    )
    const row = memory.findBlock(volume, layer, index)
    const isLost = row !== NO_BLOCK && Array.from({ length: pages }, (_, i) => memory.isLost(row, first + i)).includes(true)
    const wanted = isLost ? Status.BLOCK_CORRUPTED : Status.SUCCESS
    assert.deepEqual(both, [wanted, wanted])
    if (!isLost) assert.ok(this.#same(a, b, pages), 'a read differs')
    bench.free(a)
    bench.free(b)
  }

  #same(a: number, b: number, pages: number): boolean {
    const { bytes } = this.bench.queue.arena
    const slice = (page: number) => bytes.subarray(page * PAGE_BYTES, (page + pages) * PAGE_BYTES)
    return Buffer.compare(slice(a), slice(b)) === 0
  }

  async compareAll(withContent: boolean): Promise<void> {
    const { bench, store, memory } = this
    assert.equal(store.usedBytes, memory.usedBytes)
    const rows = (s: ReplicaStore) => {
      const packed = s.rows.pack()
      const lines: string[] = []
      for (let w = 0; w < packed.length; w += 8) lines.push(packed.subarray(w, w + 8).join(' '))
      return lines.sort()
    }
    assert.deepEqual(rows(store), rows(memory))
    for (let slot = 0; slot < SLOTS; slot++) {
      if (!this.sessions.has(slot)) assert.deepEqual([store.lastHigh[slot], store.lastLow[slot]], [memory.lastHigh[slot], memory.lastLow[slot]], `slot ${slot}`)
      assert.equal(store.isIncomplete(slot), memory.isIncomplete(slot), `slot ${slot}: incomplete`)
      const mine = store.blocksOf(slot)
      const theirs = memory.blocksOf(slot)
      assert.deepEqual(
        mine.map((row) => store.blockIdentity(row)),
        theirs.map((row) => memory.blockIdentity(row)),
      )
      for (let i = 0; i < mine.length; i++) await this.#compareBlock(mine[i]!, theirs[i]!, withContent)
      assert.deepEqual(store.slotDigest(slot), memory.slotDigest(slot))
    }
    assert.equal(bench.events.failed, undefined)
  }

  async #compareBlock(mine: number, theirs: number, withContent: boolean): Promise<void> {
    const { bench, store, memory } = this
    const a = store.capture(mine as never)
    const b = memory.capture(theirs as never)
    const columns = (c: BlockCapture) => [c.idHigh, c.idLow, c.crc, c.flags]
    assert.deepEqual(columns(a), columns(b))
    const { extent: _a, ...mineTold } = store.describe(mine as never)
    const { extent: _b, ...theirsTold } = memory.describe(theirs as never)
    if (withContent) assert.deepEqual({ ...mineTold, state: '' }, { ...theirsTold, state: '' })
    if (withContent) {
      const pages = 256
      const buffers = [bench.alloc(pages), bench.alloc(pages)]
      for (let first = 0; first < PAGES_PER_BLOCK; ) {
        // a lost page alone, others up to the next one
        const lost = a.flags.subarray(first, first + pages).findIndex((flag) => (flag & PAGE_LOST) !== 0)
        const count = lost === 0 ? 1 : lost > 0 ? lost : Math.min(pages, PAGES_PER_BLOCK - first)
        if (a.flags.subarray(first, first + count).some((flag) => flag & PageFlag.DATA)) {
          const statuses = await bench.settle(
            Promise.all([store.readCaptured(a, first, count, buffers[0]!), memory.readCaptured(b, first, count, buffers[1]!)]),
          )
          const wanted = lost === 0 ? Status.BLOCK_CORRUPTED : Status.SUCCESS
          assert.deepEqual(statuses, [wanted, wanted])
          if (lost !== 0) assert.ok(this.#same(buffers[0]!, buffers[1]!, count), 'content differs')
        }
        first += count
      }
      const lostOf = (s: typeof store | typeof memory, row: number) =>
        s
          .lostPages(Number.POSITIVE_INFINITY)
          .filter((each) => each.block === row)
          .map(({ page }) => page)
          .sort((x, y) => x - y)
      assert.deepEqual(lostOf(store, mine), lostOf(memory, theirs))
      for (const buffer of buffers) bench.free(buffer)
    }
    store.release(a)
    memory.release(b)
  }

  async run(steps: number): Promise<void> {
    const { random, bench } = this
    for (let i = 0; i < steps; i++) {
      const draw = random.below(1000)
      if (draw < 900) this.stage()
      else if (draw < 950) this.install()
      else if (draw < 960) this.session()
      else if (draw < 990) await this.compareReads()
      else await bench.settle(this.store.journal.durable())
      if (random.chance(0.3)) await bench.world.runFor(random.unit() * 2)
      this.#freeStaged()
    }
  }

  async crash(): Promise<void> {
    const { bench, random, store } = this
    const how = random.pick(bench.disk.options.volatile ? (['kill', 'close'] as const) : (['kill', 'power', 'power', 'close'] as const))
    if (how === 'close') {
      await bench.settle(store.close())
      assert.equal(store.durableSeq, store.journal.nextSeq - 1)
    }
    const promised = how === 'kill' ? store.stagedSeq : store.durableSeq
    if (how === 'power') bench.powerLoss()
    else bench.kill()
    this.crashes++
    const memory = this.memory
    const { ops } = this
    const before = ops[0]!
    this.store = await bench.mount()
    const survived = this.store.stagedSeq
    assert.ok(survived >= promised, `after ${how}: promised ${promised}, survived ${survived}`)
    const last = ops.findLast((op) => op.disk <= survived)!
    if (how === 'close') assert.equal(last, ops.at(-1))
    assert.equal(this.store.lostPower, how === 'power')
    await bench.settle(this.store.forgetPowerLoss())
    const image = memory.powerLoss(last.memory - before.memory)
    await bench.settle(this.store.close())
    await this.mount(image)
    this.nextId = 1
  }
}

for (let seed = FIRST; seed < FIRST + COUNT; seed++) {
  test(`disk and memory store agree over random operations and crashes (seed ${seed})`, async () => {
    const pair = new Pair(seed)
    await pair.bench.format()
    await pair.mount()
    for (let round = 0; round < 4; round++) {
      await pair.run(pair.random.pick([20, 60, 150]))
      if (pair.random.chance(0.4)) await pair.compareAll(false)
      await pair.crash()
      await pair.compareAll(true)
    }
    await pair.bench.settle(pair.store.close())
    // a timer that was cancelled may be told of it later
    await pair.bench.until(() => pair.bench.queue.inFlight === 0, 1000)
  })
}
