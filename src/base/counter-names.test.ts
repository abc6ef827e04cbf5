import assert from 'node:assert/strict'
import test from 'node:test'
import { documentNamesOf, quantileUs, splitHistograms, withDocumentNames } from './counter-names.ts'
import { LatencyHistogram } from './latency.ts'

test("the documents' names stand beside ours", () => {
  const all = withDocumentNames({ reliable_forward: 4, read_ops: 1 })
  assert.deepEqual(all, { reliable_forward: 4, read_ops: 1, 'storage.reliable_forward': 4 })
  assert.deepEqual(documentNamesOf('wait_channel_lock'), ['storage.reliable_update.waited', 'storage.wait_channel_lock'])
})

test('a histogram comes back whole from the counters it travelled in', () => {
  const latency = new LatencyHistogram()
  for (const ms of [0.01, 0.05, 0.05, 2, 99_999]) latency.record(ms)
  const counters: Record<string, number> = { other: 1 }
  latency.addTo(counters, 'storage.read.queue_latency')
  const { histograms, rest } = splitHistograms(counters)
  assert.deepEqual(rest, { other: 1 })
  const [histogram] = histograms
  assert.equal(histogram?.name, 'storage.read.queue_latency')
  assert.equal(histogram.count, 5)
  assert.equal(histogram.sumUs, 100_001_110)
  assert.equal(quantileUs(histogram, 0.5), 64)
  assert.equal(quantileUs(histogram, 0.8), 4096)
  assert.equal(quantileUs(histogram, 0.99), Number.POSITIVE_INFINITY)
})
