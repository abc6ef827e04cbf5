import assert from 'node:assert/strict'
import test from 'node:test'
import { LATENCY_BUCKETS_US, LatencyHistogram, WaitTotals } from './latency.ts'

test('a histogram counts each latency in every bucket it is not above', () => {
  const histogram = new LatencyHistogram()
  for (const ms of [0, 0.016, 0.0161, 3, 5000]) histogram.record(ms)
  const counters: Record<string, number> = {}
  histogram.addTo(counters, 'x')
  assert.equal(counters['x.le_16us'], 2)
  assert.equal(counters['x.le_64us'], 3)
  assert.equal(counters['x.le_1024us'], 3)
  assert.equal(counters['x.le_4096us'], 4)
  assert.equal(counters[`x.le_${LATENCY_BUCKETS_US.at(-1)}us`], 4)
  assert.equal(counters['x.count'], 5)
  assert.equal(counters['x.sum_us'], 5_003_032)
})

test('waits are summed exactly, also of those that still wait', () => {
  const waits = new WaitTotals()
  waits.enter(10)
  waits.enter(12, 2)
  waits.leave(15)
  waits.leave(16)
  const counters: Record<string, number> = {}
  waits.addTo(counters, 'w', 20)
  // one from 10 to 15, one from 12 to 16, one from 12 to now
  assert.deepEqual(counters, { 'w.count': 3, 'w.sum_us': (5 + 4 + 8) * 1000, 'w.in_flight': 1 })
})
