import assert from 'node:assert/strict'
import test from 'node:test'
import { Bench, SLOTS } from '../../test/support/store-bench.ts'
import { Status } from '../base/status.ts'
import { MiB, PAGE_BYTES } from '../base/units.ts'
import { CLIENTS_MAX, ROW_WORDS } from './channel-rows.ts'
import type { DiskStore } from './disk-store.ts'
import { checkpointPages } from './journal.ts'
import { RecordKind, StageRecord } from './store.ts'

const SEGMENT_PAGES = (4 * MiB) / PAGE_BYTES
const SEGMENTS = 4
const record = new StageRecord()
let nextId = 1

async function write(bench: Bench, store: DiskStore, pageCount: number): Promise<void> {
  const { page, crcs } = bench.payload(pageCount)
  Object.assign(record, { kind: RecordKind.WRITE, slot: 1, idHigh: 1, idLow: nextId++, volume: 5, layer: 0, index: 0, firstPage: 0, pageCount })
  Object.assign(record, { payloadPage: page, crcs, crcFirst: 0, durable: true, clientHigh: 0 })
  await bench.until(() => store.admit(record, false) === Status.SUCCESS)
  const seq = store.stage(record)
  await bench.until(() => bench.events.durable >= seq)
  bench.free(page)
}

test('channel rows that come with an install are all there after a crash, wherever in the journal the install lay, and when its first segment is gone', async () => {
  const clients = 4
  const rows = new Uint32Array(clients * 250 * ROW_WORDS)
  for (let i = 0; i < rows.length / ROW_WORDS; i++)
    rows.set([256 * (1 + (i % clients)), 1, Math.floor(i / clients), 0, 7, 2 | 0x8000_0000, 1, 1], i * ROW_WORDS)
  for (const left of [2, 4, 6, 9, 12]) {
    const bench = new Bench(left)
    await bench.format()
    let store = await bench.mount()
    // so many pages are left in the first segment
    const leftHere = () => store.journal.freePages - (SEGMENTS - 1) * (SEGMENT_PAGES - checkpointPages(SLOTS, 0))
    while (leftHere() - left >= 2) await write(bench, store, Math.min(256, leftHere() - left - 1))
    assert.ok(leftHere() - left < 2, `${leftHere()} pages are left`)
    store.startSession(2)
    const none = { pages: new Uint16Array(0), idHigh: new Uint32Array(0), idLow: new Uint32Array(0), crc: new Uint32Array(0), flags: new Uint8Array(0) }
    store.install({ ...none, slot: 2, volume: 0, layer: 0, index: 0, payloadPage: 0, remove: false, rows, lastHigh: 1, lastLow: 9 })
    store.endSession(2)
    const before = store.rows.pack()
    while (store.counters.destagedSegments === 0) await write(bench, store, 256)
    bench.kill()
    store = await bench.mount()
    assert.deepEqual([store.lastHigh[2], store.lastLow[2]], [1, 9])
    assert.equal(store.rows.count, rows.length / ROW_WORDS, `${left} pages were left in the segment`)
    assert.deepEqual(store.rows.pack(), before)
    await bench.settle(store.close())
  }
})

test('more processes of one client than there is room for, one after the other, are no obstacle for a replay', async () => {
  const bench = new Bench(20)
  await bench.format()
  let store = await bench.mount()
  const { page, crcs } = bench.payload(1)
  const last = CLIENTS_MAX + 100
  for (let incarnation = 1; incarnation <= last; incarnation++) {
    Object.assign(record, { kind: RecordKind.WRITE, slot: 1, idHigh: 1, idLow: nextId++, volume: 5, layer: 0, index: 0, firstPage: 0, pageCount: 1 })
    Object.assign(record, { payloadPage: page, crcs, crcFirst: 0, durable: true, clientHigh: 256, clientLow: incarnation, channel: 0, seq: 1 })
    await bench.until(() => store.admit(record, false) === Status.SUCCESS)
    const seq = store.stage(record)
    await bench.until(() => bench.events.durable >= seq)
    store.rows.expire(256, incarnation)
  }
  assert.equal(store.rows.clientCount, 1)
  bench.kill()
  store = await bench.mount()
  assert.ok(store.rows.lookup(256, last, 0) >= 0)
  store.rows.expire(256, last)
  assert.equal(store.rows.clientCount, 1)
  await bench.settle(store.close())
})
