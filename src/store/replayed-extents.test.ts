import assert from 'node:assert/strict'
import test from 'node:test'
import { Bench } from '../../test/support/store-bench.ts'
import { Status } from '../base/status.ts'
import { MiB, PAGE_BYTES } from '../base/units.ts'
import type { DiskStore } from './disk-store.ts'
import { planGeometry, ROWS_PER_TABLE_PAGE } from './layout.ts'
import { RecordKind, StageRecord } from './store.ts'

/** On two pages of the extent table. */
const BLOCKS = ROWS_PER_TABLE_PAGE + 20
/** Four of these records do not fit one segment. */
const LARGE_PAGES = 256

const record = new StageRecord()
let nextId = 1

/** Stages a write of the block's first pages; returns where its content is. */
async function stage(bench: Bench, store: DiskStore, index: number, pageCount: number): Promise<number> {
  const { page, crcs } = bench.payload(pageCount)
  Object.assign(record, { kind: RecordKind.WRITE, slot: 1, idHigh: 1, idLow: nextId++, volume: 5, layer: 0, index, firstPage: 0, pageCount })
  Object.assign(record, { payloadPage: page, crcs, crcFirst: 0, durable: true, clientHigh: 0 })
  await bench.until(() => store.admit(record, false) === Status.SUCCESS)
  store.stage(record)
  return page
}

const extentOf = (store: DiskStore, index: number) => store.describe(store.findBlock(5, 0, index)).extent

test('blocks that a replay gave other extents survive a power loss between the writes of two pages of the extent table', async () => {
  const bench = new Bench(1)
  await bench.format({ createBytes: 320 * MiB, journalBytes: 16 * MiB })
  let store = await bench.mount()
  // the last of these begins the second segment, and a round for the first one: its tables name the blocks that the second one creates
  for (let i = 0; i < 4; i++) await stage(bench, store, 0, LARGE_PAGES)
  const words = new Map<number, number>()
  for (let index = 1; index <= BLOCKS; index++) {
    words.set(index, bench.queue.arena.view.getUint32((await stage(bench, store, index, 1)) * PAGE_BYTES))
  }
  await bench.until(() => store.counters.destagedSegments === 1 && bench.events.durable === nextId - 1)
  const extents = [...words.keys()].map((index) => extentOf(store, index))
  bench.kill()
  // The mount syncs twice (superblock, what was replayed), its first round when it has written the page tables, and then the pages of the
  // extent table: power is lost there
  const { io } = bench
  const sync = io.fdatasync.bind(io)
  let syncs = 0
  io.fdatasync = (file) => (++syncs === 4 ? new Promise(() => undefined) : sync(file))
  const { extentTableOffset } = planGeometry(320 * MiB, { journalBytes: 16 * MiB, segmentBytes: 4 * MiB })
  const second = { offset: extentTableOffset + 2 * PAGE_BYTES, bytes: new Uint8Array(2 * PAGE_BYTES) }
  bench.file.readInto(second.offset, second.bytes, 0, second.bytes.length)
  store = await bench.mount()
  const moved = [...words.keys()].filter((index, i) => extentOf(store, index) !== extents[i])
  assert.ok(moved.length > ROWS_PER_TABLE_PAGE, 'the replay gave blocks other extents, on the other page')
  await bench.until(() => syncs === 4)
  bench.powerLoss('keep')
  const written = new Uint8Array(2 * PAGE_BYTES)
  bench.file.readInto(second.offset, written, 0, written.length)
  assert.notDeepEqual(written, second.bytes)
  bench.file.writeFrom(second.offset, second.bytes, 0, second.bytes.length)
  store = await bench.mount()
  for (const [index, word] of words) {
    const page = bench.alloc(1)
    assert.equal((await bench.read(store, store.findBlock(5, 0, index), 0, 1, page)).status, Status.SUCCESS)
    assert.equal(bench.queue.arena.view.getUint32(page * PAGE_BYTES), word, `block ${index}`)
    bench.free(page)
  }
  await bench.settle(store.close())
})
