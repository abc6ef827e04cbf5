import assert from 'node:assert/strict'
import test from 'node:test'
import { Bench } from '../../test/support/store-bench.ts'
import { Status } from '../base/status.ts'
import { PAGE_BYTES } from '../base/units.ts'
import type { DiskStore } from './disk-store.ts'
import { NO_BLOCK, RecordKind, StageRecord } from './store.ts'

const record = new StageRecord()

function write(bench: Bench, store: DiskStore, o: { index: number; firstPage: number; pageCount: number; id: number; slot?: number; durable?: boolean }) {
  const { page, crcs } = bench.payload(o.pageCount)
  record.kind = RecordKind.WRITE
  record.slot = o.slot ?? 1
  record.idHigh = 1
  record.idLow = o.id
  record.volume = 5
  record.layer = 0
  record.index = o.index
  record.firstPage = o.firstPage
  record.pageCount = o.pageCount
  record.payloadPage = page
  record.crcs = crcs
  record.crcFirst = 0
  record.durable = o.durable ?? true
  record.clientHigh = 256
  record.clientLow = 1
  record.channel = 3
  record.seq = o.id
  assert.equal(store.admit(record, true), Status.SUCCESS)
  return { page, crcs, seq: store.stage(record) }
}

async function contentIs(bench: Bench, store: DiskStore, index: number, firstPage: number, pageCount: number, payload: number | null) {
  const buffer = bench.alloc(pageCount)
  const { status } = await bench.read(store, store.findBlock(5, 0, index), firstPage, pageCount, buffer)
  assert.equal(status, Status.SUCCESS)
  const { bytes } = bench.queue.arena
  const got = bytes.subarray(buffer * PAGE_BYTES, (buffer + pageCount) * PAGE_BYTES)
  if (payload === null) assert.ok(got.every((byte) => byte === 0))
  else assert.deepEqual(Buffer.compare(got, bytes.subarray(payload * PAGE_BYTES, (payload + pageCount) * PAGE_BYTES)), 0)
  bench.free(buffer)
}

test('what is staged can be read at once, and after it is durable, and after a kill, and after a clean stop', async () => {
  const bench = new Bench(1)
  await bench.format()
  let store = await bench.mount()
  await contentIs(bench, store, 0, 0, 1, null)
  const w = write(bench, store, { index: 0, firstPage: 10, pageCount: 3, id: 1 })
  await contentIs(bench, store, 0, 10, 3, w.page)
  await contentIs(bench, store, 0, 0, 4, null)
  await bench.until(() => bench.events.durable >= w.seq)
  assert.equal(bench.events.staged, w.seq)
  await contentIs(bench, store, 0, 10, 3, w.page)
  const copy = bench.queue.arena.bytes.slice(w.page * PAGE_BYTES, (w.page + 3) * PAGE_BYTES)
  for (const how of ['kill', 'power', 'close'] as const) {
    if (how === 'close') {
      await bench.settle(store.close())
      assert.equal(bench.queue.inFlight, 0)
    }
    if (how === 'power') bench.powerLoss()
    else bench.kill()
    store = await bench.mount()
    assert.equal(store.lostPower, how === 'power')
    const page = bench.alloc(3)
    bench.queue.arena.bytes.set(copy, page * PAGE_BYTES)
    await contentIs(bench, store, 0, 10, 3, page)
    const row = store.rows.lookup(256, 1, 3)
    assert.deepEqual([store.rows.seq[row], store.rows.held[row], store.lastHigh[1], store.lastLow[1]], [1, 1, 1, 1])
  }
  assert.equal(store.findBlock(5, 0, 1), NO_BLOCK)
})

test('a single page costs one write of two pages', async () => {
  const bench = new Bench(2)
  await bench.format()
  const store = await bench.mount()
  const before = store.journalUsedBytes
  const w = write(bench, store, { index: 0, firstPage: 0, pageCount: 1, id: 1 })
  await bench.until(() => bench.events.durable >= w.seq)
  assert.equal(store.journalUsedBytes - before, 2 * PAGE_BYTES)
})
