import assert from 'node:assert/strict'
import test from 'node:test'
import { LatencyHistogram, WaitTotals } from '../base/latency.ts'
import { metricsText } from './metrics.ts'

async function textOf(counters: Record<string, number>): Promise<string[]> {
  const text = await metricsText({
    version: '1.0.0',
    nodeId: 'node-1',
    counters: () => counters,
    disks: () => [],
    resync: () => ({ blocksLeft: 0, bytesMoved: 0, bytesNeeded: 0, lostPages: 2 }),
    state: () => 'ready',
  })
  return text.split('\n')
}

test('base units, _total on what rises, the document names in the HELP text', async () => {
  const lines = await textOf({ read_latency_us: 1_500_000, reliable_forward: 7, requests_in_flight: 2, 'control.lease_left_ms': 1500 })
  for (const line of [
    'xsan_read_latency_seconds_total 1.5',
    'xsan_reliable_forward_total 7',
    '# HELP xsan_reliable_forward_total reliable_forward, storage.reliable_forward',
    '# TYPE xsan_requests_in_flight gauge',
    'xsan_requests_in_flight 2',
    'xsan_control_lease_left_seconds 1.5',
    'xsan_node_state{state="ready"} 1',
    'xsan_lost_pages 2',
    'xsan_node_state{state="failed"} 0',
  ])
    assert.ok(lines.includes(line), `${line}\n${lines.join('\n')}`)
})

test('queue latencies are histograms, waits are a count and a sum', async () => {
  const counters: Record<string, number> = {}
  const latency = new LatencyHistogram()
  latency.record(0.05)
  latency.record(9999)
  latency.addTo(counters, 'storage.read.queue_latency')
  const waits = new WaitTotals()
  waits.enter(0, 2)
  waits.addTo(counters, 'storage.wait_post', 250)
  const lines = await textOf(counters)
  for (const line of [
    '# TYPE xsan_storage_read_queue_latency_seconds histogram',
    'xsan_storage_read_queue_latency_seconds_bucket{le="0.000064"} 1',
    'xsan_storage_read_queue_latency_seconds_bucket{le="+Inf"} 2',
    'xsan_storage_read_queue_latency_seconds_count 2',
    'xsan_storage_read_queue_latency_seconds_sum 9.99905',
    'xsan_storage_wait_post_total 2',
    'xsan_storage_wait_post_seconds_total 0.5',
    'xsan_storage_wait_post_in_flight 2',
  ])
    assert.ok(lines.includes(line), `${line}\n${lines.join('\n')}`)
})

test('a label of a counter becomes one of its series, with one head for all', async () => {
  const lines = await textOf({ 'nbd_connections{volume=3}': 2, 'nbd_connections{volume=4}': 1 })
  assert.equal(lines.filter((line) => line.startsWith('# TYPE xsan_nbd_connections ')).length, 1)
  assert.ok(lines.includes('xsan_nbd_connections{volume="3"} 2'))
  assert.ok(lines.includes('xsan_nbd_connections{volume="4"} 1'))
})
