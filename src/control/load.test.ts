import assert from 'node:assert/strict'
import test from 'node:test'
import { LoadMeter } from './load.ts'

test('rates are those between two reports, by the clock of the reports', () => {
  const meter = new LoadMeter()
  assert.deepEqual(meter.load(undefined), { opsPerSecond: 0, bytesPerSecond: 0, queueDepth: 0 })
  meter.load({ reactor_clock_ms: 1000, read_ops: 10, write_ops: 5, read_bytes: 4096 })
  const next = { reactor_clock_ms: 1500, read_ops: 60, write_ops: 55, read_bytes: 8192, write_bytes: 4096, requests_in_flight: 7 }
  const load = { opsPerSecond: 200, bytesPerSecond: 16_384, queueDepth: 7 }
  assert.deepEqual(meter.load(next), load)
  assert.deepEqual(meter.load(next), load, 'the same report again')
})

test('a data plane that counts from 0 again is not a negative load', () => {
  const meter = new LoadMeter()
  meter.load({ reactor_clock_ms: 1000, read_ops: 1000 })
  assert.equal(meter.load({ reactor_clock_ms: 2000, read_ops: 3 }).opsPerSecond, 0)
})
