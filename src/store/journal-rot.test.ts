import assert from 'node:assert/strict'
import test from 'node:test'
import { Bench, DISK_BYTES } from '../../test/support/store-bench.ts'
import { XsanError } from '../base/errors.ts'
import { Status } from '../base/status.ts'
import { MiB, PAGE_BYTES } from '../base/units.ts'
import type { DiskStore } from './disk-store.ts'
import { BATCH_MAGIC, BatchHeader, BatchKind, planGeometry, segmentPages } from './layout.ts'
import { RecordKind, StageRecord } from './store.ts'

/** So large that nothing is destaged. */
const SIZES = { journalBytes: 32 * MiB, segmentBytes: 4 * MiB }
const GEOMETRY = planGeometry(DISK_BYTES, SIZES)
const FIRST_PAGE = GEOMETRY.journalOffset / PAGE_BYTES
const record = new StageRecord()

/** Pages from the beginning of one block on. Returns the record's place among those staged. */
async function stage(bench: Bench, store: DiskStore, id: number, pageCount: number, index = 0): Promise<{ seq: number; page: number }> {
  const { page, crcs } = bench.payload(pageCount)
  Object.assign(record, { kind: RecordKind.WRITE, slot: 1, idHigh: 1, idLow: id, volume: 5, layer: 0, index, firstPage: 0, pageCount })
  Object.assign(record, { payloadPage: page, crcs, crcFirst: 0, durable: true, clientHigh: 0 })
  await bench.until(() => store.admit(record, false) === Status.SUCCESS)
  return { seq: store.stage(record), page }
}

async function write(bench: Bench, store: DiskStore, id: number, pageCount: number, index = 0): Promise<void> {
  const { seq, page } = await stage(bench, store, id, pageCount, index)
  await bench.until(() => bench.events.durable >= seq)
  bench.free(page)
}

/** Two of the largest writes at once: the second one's batch does not know the first as durable. */
async function writeTwo(bench: Bench, store: DiskStore, id: number): Promise<void> {
  const staged = [await stage(bench, store, id, 256), await stage(bench, store, id + 1, 256)]
  await bench.until(() => bench.events.durable >= staged[1]!.seq)
  for (const { page } of staged) bench.free(page)
}

interface Found {
  readonly page: number
  readonly kind: number
  readonly segment: number
  readonly payloadPages: number
}

/** The batches on the disk, in the order of their places. */
function batches(bench: Bench): Found[] {
  const found: Found[] = []
  const bytes = new Uint8Array(PAGE_BYTES)
  const view = new DataView(bytes.buffer)
  for (let page = FIRST_PAGE; page < FIRST_PAGE + GEOMETRY.segmentCount * segmentPages(GEOMETRY); page++) {
    bench.file.readInto(page * PAGE_BYTES, bytes, 0, PAGE_BYTES)
    const { get } = BatchHeader
    if (get.magic(view, 0) !== BATCH_MAGIC) continue
    found.push({ page, kind: get.kind(view, 0), segment: get.segment(view, 0), payloadPages: get.payloadPages(view, 0) })
  }
  return found
}

const segmentsOf = (bench: Bench) => Math.max(...batches(bench).map(({ segment }) => segment))

async function isRefused(bench: Bench, status: string, title: string): Promise<void> {
  await assert.rejects(bench.mount(), (error) => error instanceof XsanError && error.status === status, title)
}

test('a journal that has lost what was durable is refused, wherever the lost part lies and whatever shows it', async () => {
  const make = async (): Promise<Bench> => {
    const bench = new Bench(1)
    await bench.format(SIZES)
    const store = await bench.mount()
    let id = 1
    while (segmentsOf(bench) < 2) await write(bench, store, id++, 256)
    for (let i = 0; i < 4; i++) await write(bench, store, id++, 1)
    bench.kill()
    return bench
  }
  const records = (bench: Bench, segment: number) => batches(bench).filter((batch) => batch.kind === BatchKind.RECORDS && batch.segment === segment)
  const cases: Array<[string, (bench: Bench) => number]> = [
    ['the last batch of a segment', (bench) => records(bench, 1).at(-1)!.page],
    ['a batch in the middle', (bench) => records(bench, 1)[1]!.page],
    ['the beginning of the second segment', (bench) => batches(bench).find(({ kind, segment }) => kind === BatchKind.SEGMENT_START && segment === 2)!.page],
    ['the first batch of the second segment', (bench) => records(bench, 2)[0]!.page],
    ['the beginning of the only segment known to be needed', (bench) => batches(bench)[0]!.page],
  ]
  for (const [title, pageOf] of cases) {
    const bench = await make()
    bench.file.flipBit(pageOf(bench), 300)
    await isRefused(bench, 'DISK_CORRUPTED', title)
  }
})

test('a segment whose beginning is damaged does not end a journal that goes on far behind it', async () => {
  const bench = new Bench(3)
  await bench.format({ journalBytes: 80 * MiB, segmentBytes: 8 * MiB })
  const store = await bench.mount()
  for (let i = 0; i < 9; i++) await writeTwo(bench, store, 1 + i * 2)
  bench.kill()
  const start = (segment: number) => (GEOMETRY.journalOffset + segment * 8 * MiB) / PAGE_BYTES
  bench.file.flipBit(start(2), 300)
  await isRefused(bench, 'DISK_CORRUPTED', 'segments 2 and 3 hold what was durable')
  bench.file.flipBit(start(2), 300)
  bench.file.flipBit(start(3), 300)
  await isRefused(bench, 'DISK_CORRUPTED', 'segment 3 holds what was durable')
})

test('after a clean stop a page that has rotted in the newest part of the journal is that page, not the end of the journal', async () => {
  const bench = new Bench(2)
  await bench.format(SIZES)
  let store = await bench.mount()
  await write(bench, store, 1, 4)
  await write(bench, store, 2, 2)
  await bench.settle(store.close())
  const last = batches(bench).findLast(({ payloadPages }) => payloadPages === 2)!
  bench.file.flipBit(last.page + 1, 300)
  store = await bench.mount()
  assert.deepEqual([store.lastHigh[1], store.lastLow[1]], [1, 2])
  const buffer = bench.alloc(4)
  const block = store.findBlock(5, 0, 0)
  assert.deepEqual(await bench.read(store, block, 0, 1, buffer), { status: Status.BLOCK_CORRUPTED, extra: 0 })
  assert.equal((await bench.read(store, block, 1, 3, buffer)).status, Status.SUCCESS)
})

test('a rotten page that the superblock knows as durable is that page, not a reason to refuse the disk', async () => {
  const bench = new Bench(6)
  await bench.format({ journalBytes: 16 * MiB, segmentBytes: 4 * MiB })
  let store = await bench.mount()
  let id = 0
  while (store.journal.headSegment < 3) await write(bench, store, ++id, 256)
  await write(bench, store, ++id, 3)
  await bench.until(() => store.journal.tailSegment > 1)
  bench.kill()
  const last = batches(bench).findLast(({ payloadPages }) => payloadPages === 3)!
  bench.file.flipBit(last.page + 2, 300)
  store = await bench.mount()
  assert.equal(store.lastLow[1], id)
  const block = store.findBlock(5, 0, 0)
  const buffer = bench.alloc(3)
  assert.deepEqual(await bench.read(store, block, 1, 1, buffer), { status: Status.BLOCK_CORRUPTED, extra: 1 })
  for (const page of [0, 2]) assert.equal((await bench.read(store, block, page, 1, buffer)).status, Status.SUCCESS)
})

test('once a disk was sealed, the end of its journal is not taken for torn, whatever happens to the power', async () => {
  const make = async (change: (bench: Bench, page: number) => void): Promise<Bench> => {
    const bench = new Bench(7)
    await bench.format(SIZES)
    const store = await bench.mount()
    for (let id = 1; id <= 3; id++) await write(bench, store, id, id)
    await bench.settle(store.seal())
    bench.powerLoss('keep')
    change(bench, batches(bench).at(-1)!.page)
    return bench
  }
  await isRefused(await make((bench, page) => bench.file.flipBit(page, 300)), 'DISK_CORRUPTED', 'its descriptor has rotted')
  await isRefused(await make((bench, page) => bench.file.badPages.add(page)), 'READ_FAILED', 'its descriptor cannot be read')
  const payloads: Array<(bench: Bench, page: number) => void> = [
    (bench, page) => bench.file.flipBit(page + 2, 300),
    (bench, page) => bench.file.badPages.add(page + 2),
  ]
  for (const [i, status] of [Status.BLOCK_CORRUPTED, Status.READ_FAILED].entries()) {
    const bench = await make(payloads[i]!)
    const store = await bench.mount()
    assert.equal(store.lastLow[1], 3)
    assert.equal((await bench.read(store, store.findBlock(5, 0, 0), 1, 1, bench.alloc(1))).status, status)
  }
})

test('a page of the journal that cannot be read refuses the disk where it may have been acknowledged, and is the end of the journal where a write lost its power', async () => {
  const kill = (bench: Bench) => bench.kill()
  const losePower = (bench: Bench) => bench.powerLoss('keep')
  const make = async (end: (bench: Bench) => void, pages: (found: readonly Found[]) => number[]): Promise<Bench> => {
    const bench = new Bench(4)
    await bench.format(SIZES)
    const store = await bench.mount()
    for (let id = 1; id <= 4; id++) await write(bench, store, id, id)
    end(bench)
    for (const page of pages(batches(bench).filter(({ kind }) => kind === BatchKind.RECORDS))) bench.file.badPages.add(page)
    return bench
  }
  /** The id of the last record there, and what a read of the pages of the first one says. */
  const mounted = async (bench: Bench) => {
    const store = await bench.mount()
    const { status } = await bench.read(store, store.findBlock(5, 0, 0), 0, 4, bench.alloc(4))
    return { store, found: [store.lastLow[1], status] }
  }
  const last = (found: readonly Found[]) => [found[3]!.page]
  const lastPayload = (found: readonly Found[]) => [found[3]!.page + 2]
  const whatFollows = (found: readonly Found[]) => [found[3]!.page + 5]
  for (const pages of [last, lastPayload, whatFollows]) await isRefused(await make(kill, pages), 'READ_FAILED', 'it may have been acknowledged')
  await isRefused(await make(losePower, (found) => [found[2]!.page]), 'READ_FAILED', 'the batch behind it knew that it was durable')
  const many = (found: readonly Found[]) => Array.from({ length: 65 }, (_, i) => found[3]!.page + i)
  await isRefused(await make(losePower, many), 'READ_FAILED', 'no write leaves so many')

  for (const [pages, end] of [
    [last, 3],
    [lastPayload, 3],
    [whatFollows, 4],
  ] as const) {
    const bench = await make(losePower, pages)
    let { store, found } = await mounted(bench)
    assert.deepEqual(found, [end, Status.SUCCESS])
    await write(bench, store, 9, 4)
    bench.kill()
    ;({ store, found } = await mounted(bench))
    assert.deepEqual(found, [9, Status.SUCCESS], 'and what came afterwards is there, whatever can be read by then')
    bench.file.badPages.clear()
    bench.kill()
    assert.deepEqual((await mounted(bench)).found, [9, Status.SUCCESS])
  }
  // not needed: free, or acknowledged for sure and told by who reads it
  const free = await make(kill, () => [FIRST_PAGE + 3 * segmentPages(GEOMETRY), FIRST_PAGE + 4 * segmentPages(GEOMETRY) + 500])
  assert.deepEqual((await mounted(free)).found, [4, Status.SUCCESS])
  const closed = await make(kill, () => [])
  await closed.settle((await mounted(closed)).store.close())
  for (const { page } of batches(closed).filter(({ payloadPages }) => payloadPages > 0)) closed.file.badPages.add(page + 1)
  closed.file.badPages.add(batches(closed).at(-1)!.page + 1)
  assert.deepEqual((await mounted(closed)).found, [4, Status.READ_FAILED])

  const sealed = await make(kill, () => [])
  await sealed.settle((await mounted(sealed)).store.seal())
  const end = batches(sealed).at(-1)!.page + 20
  for (let page = end; page < end + 300; page++) sealed.file.badPages.add(page)
  sealed.kill()
  assert.deepEqual((await mounted(sealed)).found, [4, Status.SUCCESS], 'nobody has to read so far')
})

test('a page that cannot be read is no torn write where the disk has failed, nor where the power was lost before the last process wrote', async () => {
  for (const how of ['an error of the disk', 'an earlier power loss'] as const) {
    const bench = new Bench(9)
    await bench.format(SIZES)
    let store = await bench.mount()
    await write(bench, store, 1, 1)
    if (how === 'an error of the disk') {
      await write(bench, store, 2, 2)
      store.fail('an error')
      await bench.world.runFor(100)
    } else {
      bench.powerLoss('keep')
      store = await bench.mount()
      await write(bench, store, 2, 2)
    }
    assert.equal(store.lostPower, true, how)
    bench.kill()
    bench.file.badPages.add(batches(bench).findLast(({ payloadPages }) => payloadPages === 2)!.page)
    for (const time of ['first', 'second']) {
      await isRefused(bench, 'READ_FAILED', `${how}, the ${time} time`)
      bench.kill()
    }
    bench.file.badPages.clear()
    store = await bench.mount()
    assert.ok(store.lastLow[1]! >= 2, how)
  }
})

test('a page of the journal that cannot be read when it is moved to its extent is lost as that page, in this mount or in the next; with many of them the disk fails', async () => {
  const sizes = { journalBytes: 16 * MiB, segmentBytes: 4 * MiB }
  /** Three pages in the first segment, then others until it has to be moved; those of the first batch at `bad` cannot be read by then. */
  const make = async (pageCount: number, bad: readonly number[], killed: boolean) => {
    const bench = new Bench(8)
    await bench.format(sizes)
    let store = await bench.mount()
    await write(bench, store, 1, pageCount, 1)
    const { page } = batches(bench).find(({ kind }) => kind === BatchKind.RECORDS)!
    for (const at of bad) bench.file.badPages.add(page + 1 + at)
    if (killed) await bench.settle(store.destage.stop())
    let id = 1
    while (store.journal.headSegment < 3) await write(bench, store, ++id, 256)
    if (killed) {
      await write(bench, store, ++id, 1)
      bench.kill()
      store = await bench.mount()
    }
    return { bench, store }
  }
  const isBad = async (bench: Bench, store: DiskStore, page: number) => {
    const buffer = bench.alloc(1)
    const { status } = await bench.read(store, store.findBlock(5, 0, 1), page, 1, buffer)
    bench.free(buffer)
    return status !== Status.SUCCESS
  }
  for (const killed of [false, true]) {
    const { bench, store } = await make(3, [1], killed)
    await bench.until(() => store.journal.tailSegment > 1 || store.failed)
    assert.equal(store.failed, false)
    const block = store.findBlock(5, 0, 1)
    assert.deepEqual(store.lostPages(9), [{ block, page: 1 }])
    assert.deepEqual([await isBad(bench, store, 0), await isBad(bench, store, 1), await isBad(bench, store, 2)], [false, true, false])
    bench.kill()
    const again = await bench.mount()
    assert.deepEqual(again.lostPages(9), [{ block, page: 1 }])
    const { page, crcs } = bench.payload(3)
    assert.equal(await bench.settle(again.repairPage(block, 1, 1, 1, page + 1, crcs[1]!)), false, 'other content')
    assert.equal(again.pageCrc(block, 1), store.pageCrc(block, 1), 'what it has to be is still known')
  }
  const all = Array.from({ length: 20 }, (_, i) => i)
  for (const [pageCount, bad] of [
    [20, all.slice(0, 17)],
    [3, [0, 1, 2]],
  ] as const) {
    const { bench, store } = await make(pageCount, bad, false)
    await bench.until(() => store.failed)
    assert.match(bench.events.failed!, /read at .*EIO/)
  }
})

test('a batch that reads differently the second time refuses the disk', async () => {
  for (const change of ['rotten', 'unreadable'] as const) {
    const bench = new Bench(5)
    await bench.format(SIZES)
    const store = await bench.mount()
    // more than the buffer of a replay
    for (let id = 1; id <= 3; id++) await write(bench, store, id, 256)
    bench.kill()
    const { page } = batches(bench).find(({ kind }) => kind === BatchKind.RECORDS)!
    const { io } = bench
    const read = io.read.bind(io)
    let reads = 0
    io.read = (file, offsetBytes, ...rest) => {
      const isSecond = offsetBytes <= page * PAGE_BYTES && offsetBytes + rest[2] > page * PAGE_BYTES && ++reads === 2
      if (isSecond && change === 'rotten') bench.file.flipBit(page, 900)
      else if (isSecond) bench.file.badPages.add(page)
      return read(file, offsetBytes, ...rest)
    }
    await isRefused(bench, change === 'rotten' ? 'DISK_CORRUPTED' : 'READ_FAILED', change)
  }
})
