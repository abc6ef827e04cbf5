import assert from 'node:assert/strict'
import test from 'node:test'
import { Bench, Recorder } from '../../test/support/store-bench.ts'
import type { DiskNumber } from '../base/ids.ts'
import { PAGE_BYTES } from '../base/units.ts'
import { type MemoryImage, MemoryStore } from './memory-store.ts'
import { RecordKind, StageRecord } from './store.ts'

function make(seed: number) {
  const bench = new Bench(seed)
  const events = new Recorder()
  const mount = (image?: MemoryImage) => {
    const options = { queue: bench.queue, disk: 1 as DiskNumber, slotCount: 4, events, stageMs: 1, durableMs: 10 }
    return new MemoryStore(image === undefined ? options : { ...options, image })
  }
  const write = (store: MemoryStore, id: number, durable = true) => {
    const { page, crcs } = bench.payload(1)
    const record = new StageRecord()
    Object.assign(record, { kind: RecordKind.WRITE, slot: 1, idHigh: 1, idLow: id, volume: 2, index: 0, firstPage: 0, pageCount: 1 })
    Object.assign(record, { payloadPage: page, crcs, clientHigh: 256, clientLow: 1, channel: 1, seq: id, durable })
    return { page, seq: store.stage(record) }
  }
  return { bench, events, mount, write }
}

test('a kill keeps what was staged, a power loss what was durable, and `keep` records more', async () => {
  for (const [how, keep, last] of [
    ['kill', 0, 2],
    ['kill', 1, 3],
    ['power', 0, 1],
    ['power', 2, 3],
  ] as const) {
    const { bench, events, mount, write } = make(1)
    const store = mount()
    write(store, 1)
    await bench.until(() => events.durable === 1)
    write(store, 2)
    await bench.until(() => events.staged === 2)
    write(store, 3)
    const image = how === 'kill' ? store.kill(keep) : store.powerLoss(keep)
    const again = mount(image)
    assert.equal(again.lastLow[1], last)
    assert.equal(again.rows.seq[again.rows.lookup(256, 1, 1)], last)
    assert.equal(again.lostPower, how === 'power')
    assert.equal(again.stagedSeq, last)
  }
})

test('what does not ask for it becomes durable with a flush, and not before', async () => {
  const { bench, events, mount, write } = make(2)
  const store = mount()
  write(store, 1, false)
  await bench.world.runFor(1000)
  assert.deepEqual([events.staged, events.durable], [1, 0])
  let flushed = false
  store.flush(() => {
    flushed = true
  }, 0)
  await bench.until(() => flushed, 100)
  assert.equal(events.durable, 1)
})

test('a payload changed before it is staged is an assertion', async () => {
  const { bench, mount, write } = make(3)
  const { page } = write(mount(), 1)
  bench.queue.arena.bytes[page * PAGE_BYTES + 99]! ^= 1
  await assert.rejects(bench.world.runFor(100), /changed before it was staged/)
})
