import assert from 'node:assert/strict'
import test from 'node:test'
import { Prng } from '../base/prng.ts'
import { ChannelRows, CLIENTS_MAX, ROW_WORDS, ROWS_MAX } from './channel-rows.ts'

test('a channel nothing was seen of has no row', () => {
  const rows = new ChannelRows()
  assert.equal(rows.lookup(256, 1, 3), -1)
  rows.set(256, 1, 3, 7, 12, 1, 5)
  assert.equal(rows.lookup(256, 1, 4), -1)
  assert.equal(rows.lookup(256, 2, 3), -1)
  assert.equal(rows.lookup(256, 1, 999), -1)
})

test('an old record forwarded again leaves a newer row alone', () => {
  const rows = new ChannelRows()
  rows.set(256, 1, 0, 2 ** 40 + 7, 12, 1, 5)
  rows.set(256, 1, 0, 6, 13, 1, 6)
  const row = rows.lookup(256, 1, 0)
  assert.deepEqual([rows.seq[row], rows.slot[row], rows.idHigh[row], rows.idLow[row], rows.held[row]], [2 ** 40 + 7, 12, 1, 5, 1])
})

test('a merge takes the higher seq, of equal seq the held one, and rows of other slots as not held', () => {
  const source = new ChannelRows()
  source.set(256, 1, 0, 10, 1, 1, 1)
  source.set(256, 1, 1, 10, 2, 1, 2)
  source.set(256, 1, 2, 10, 1, 1, 3)
  source.set(512, 9, 255, 10, 1, 1, 4)
  const target = new ChannelRows()
  target.set(256, 1, 0, 11, 5, 9, 9)
  target.set(256, 1, 1, 10, 2, 1, 2)
  target.set(256, 1, 2, 10, 1, 1, 3)
  target.clearHeld(1)
  target.merge(1, source.pack())
  const at = (high: number, low: number, channel: number) => {
    const row = target.lookup(high, low, channel)
    return [target.seq[row], target.slot[row], target.held[row]]
  }
  assert.deepEqual(at(256, 1, 0), [11, 5, 1])
  assert.deepEqual(at(256, 1, 1), [10, 2, 1])
  assert.deepEqual(at(256, 1, 2), [10, 1, 1])
  assert.deepEqual(at(512, 9, 255), [10, 1, 1])
  const third = new ChannelRows()
  third.merge(2, source.pack())
  assert.equal(third.held[third.lookup(256, 1, 0)], 0)
  assert.equal(third.held[third.lookup(256, 1, 1)], 1)
})

test('bytes that are no rows are refused', () => {
  const rows = new ChannelRows()
  assert.throws(() => rows.merge(1, new Uint32Array(ROW_WORDS - 1)), /not whole rows/)
  assert.throws(() => rows.merge(1, Uint32Array.of(1, 1, 256, 0, 1, 0, 0, 0)), /channel 256/)
  assert.throws(() => rows.merge(1, Uint32Array.of(1, 1, 0, 0, 0, 0, 0, 0)), /sequence number 0/)
})

test('fenced incarnations of a client go, others stay, and the table does not fill up', () => {
  const rows = new ChannelRows()
  for (let n = 1; n <= CLIENTS_MAX; n++) rows.set(256, n, n % 256, n, 1, 1, n)
  assert.equal(rows.hasRoomFor(256, 5), true)
  assert.equal(rows.hasRoomFor(512, 5), false)
  rows.expire(256, CLIENTS_MAX - 9)
  assert.equal(rows.clientCount, 10)
  assert.equal(rows.count, 10)
  for (let n = 1; n <= CLIENTS_MAX; n++) assert.equal(rows.lookup(256, n, n % 256) >= 0, n >= CLIENTS_MAX - 9)
  assert.equal(rows.hasRoomFor(512, 5), true)
})

test('random sets, packs and expiries agree with a plain map', () => {
  const prng = new Prng(7)
  const rows = new ChannelRows()
  const model = new Map<string, { high: number; low: number; channel: number; seq: number; slot: number; held: number }>()
  for (let step = 0; step < 20_000; step++) {
    const high = prng.between(1, 5) << 8
    const low = prng.between(1, 8)
    const channel = prng.below(256)
    const key = `${high}/${low}/${channel}`
    const kind = prng.below(1000)
    if (kind < 990) {
      const seq = prng.between(1, 1000)
      const slot = prng.below(16)
      rows.set(high, low, channel, seq, slot, 1, step)
      if ((model.get(key)?.seq ?? 0) <= seq) model.set(key, { high, low, channel, seq, slot, held: 1 })
    } else if (kind < 995) {
      const slot = prng.below(16)
      rows.clearHeld(slot)
      for (const row of model.values()) if (row.slot === slot) row.held = 0
    } else if (kind < 998) {
      rows.expire(high, low)
      for (const [k, row] of model) if (row.high === high && row.low < low) model.delete(k)
    } else {
      const packed = rows.pack()
      rows.clear()
      rows.merge(-1, packed)
    }
  }
  assert.equal(rows.count, model.size)
  for (const row of model.values()) {
    const at = rows.lookup(row.high, row.low, row.channel)
    assert.deepEqual([rows.seq[at], rows.slot[at], rows.held[at]], [row.seq, row.slot, row.held])
  }
})

test('rows of a resync have room or have not, whatever their order; those of processes that were followed make room for a replay', () => {
  const rows = new ChannelRows()
  for (let client = 1; client <= 64; client++) for (let channel = 0; channel < 256; channel++) rows.set(256 * client, 1, channel, 1, 1, 1, 1)
  assert.equal(rows.count, ROWS_MAX)
  const packed = rows.pack()
  const again = new ChannelRows()
  again.merge(-1, packed)
  assert.equal(again.count, ROWS_MAX, 'as many as there may be come back from a checkpoint')
  assert.equal(rows.hasRoomForAll(packed), true)
  const other = packed.slice(0, 2 * ROW_WORDS)
  other.set([256 * 65, 1, 0], ROW_WORDS)
  assert.equal(rows.hasRoomForAll(other), false)
  // what follows in the journal is of a time when the first process of a client had expired
  rows.set(256, 2, 0, 1, 1, 1, 1)
  assert.equal(rows.lookup(256, 1, 0), -1)
  assert.equal(rows.count, ROWS_MAX - 256 + 1)
})
