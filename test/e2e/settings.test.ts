/** Settings of the file and of the cluster reach what goes by them, without a restart where they are hot. Real processes. */
import assert from 'node:assert/strict'
import test, { after, before } from 'node:test'
import { bin, must, until } from '../support/commands.ts'
import { DevCluster } from '../support/dev-cluster.ts'
import { Errno, NbdClient, NbdError } from '../support/nbd-client.ts'

const PAGE = 4096
let cluster: DevCluster

before(
  async () => {
    cluster = await DevCluster.up({
      nodes: 1,
      diskSize: '512M',
      set: ['storage.read_only=true', 'network.max_connections=2', 'reactor.spin=50', 'nbd.bind_ip=0.0.0.0'],
    })
    await cluster.createVolume('v', '64M')
  },
  { timeout: 120_000 },
)
after(() => cluster?.end(), { timeout: 60_000 })

const set = (key: string, value: string) => must(bin('xsan'), ['--server', cluster.node('node-1').grpc, 'config', 'set', key, value])

async function errnoOf(attempt: Promise<unknown>): Promise<number> {
  try {
    await attempt
    return 0
  } catch (error) {
    if (error instanceof NbdError) return error.errno
    throw error
  }
}

test('storage.read_only of the file holds from the start; set at run time it changes under an open connection, and reads are served all the while', async () => {
  const client = await cluster.nbd('node-1', 'v')
  const page = Buffer.alloc(PAGE, 7)
  assert.equal(await errnoOf(client.write(0, page)), Errno.EPERM)
  assert.deepEqual(await client.read(0, PAGE), Buffer.alloc(PAGE))
  await set('storage.read_only', 'false')
  await until('writes are taken', 5000, async () => (await errnoOf(client.write(0, page))) === 0)
  await set('storage.read_only', 'true')
  await until('writes are refused', 5000, async () => (await errnoOf(client.write(0, page))) === Errno.EPERM)
  assert.equal(await errnoOf(client.writeZeroes(0, PAGE)), Errno.EPERM)
  assert.equal(await errnoOf(client.trim(0, PAGE)), Errno.EPERM)
  assert.deepEqual(await client.read(0, PAGE), page)
  await client.close()
})

test('an export on all addresses is named by one that a client can connect to', async () => {
  const { uris } = await cluster.call<{ uris: string[] }>('Volume/Info', { volume: 'v' })
  assert.equal(uris[0], `${cluster.node('node-1').nbd}/v`)
  assert.match(uris[0]!, /^nbd:\/\/127\.0\.0\.1:/)
  await (await cluster.nbd('node-1', 'v')).close()
})

test('network.max_connections of the file holds, and may be raised while the node runs', async () => {
  const clients = [await cluster.nbd('node-1', 'v'), await cluster.nbd('node-1', 'v')]
  await assert.rejects(NbdClient.connect(cluster.endpoint('node-1'), 'v', 2000))
  await set('network.max_connections', '3')
  clients.push(await cluster.nbd('node-1', 'v', 5000))
  await assert.rejects(NbdClient.connect(cluster.endpoint('node-1'), 'v', 2000))
  for (const client of clients) await client.close()
})

test("perf-stats and /metrics count what clients did, by the documents' names", async () => {
  await set('storage.read_only', 'false')
  const client = await cluster.nbd('node-1', 'v')
  await until('writes are taken', 5000, async () => (await errnoOf(client.write(0, Buffer.alloc(PAGE, 1)))) === 0)
  await client.read(0, PAGE)
  await client.flush()
  let counters: Record<string, number> = {}
  await until('the counters of the last second are there', 5000, async () => {
    const { stdout } = await must(bin('xsan-debug'), ['--server', cluster.node('node-1').grpc, 'perf-stats', '-o', 'json'])
    counters = (JSON.parse(stdout) as { nodes: Array<{ counters: Record<string, number> }> }).nodes[0]!.counters
    return (counters['read_ops'] ?? 0) > 0 && (counters['connections'] ?? 0) > 0 && (counters['write_ops'] ?? 0) > 0
  })
  const counted = ['read_ops', 'write_ops', 'read_bytes', 'write_bytes', 'read_latency_us', 'write_latency_us', 'reliable_update', 'aio_completed']
  for (const name of counted) assert.ok(counters[name]! > 0, `${name} is ${counters[name]}`)
  const known = ['network_bytes_sent', 'network_bytes_recv', 'reliable_forward', 'syncing_read', 'update_remote', 'forward_write_bytes', 'wait_channel_lock']
  for (const name of known) assert.equal(typeof counters[name], 'number', name)
  // checklist 0.14, 0.15, 0.16, 0.28, by the names of the documents
  for (const queue of ['read', 'update', 'default']) {
    assert.ok(counters[`storage.${queue}.queue_latency.count`]! > 0, queue)
    assert.ok(counters[`storage.${queue}.queue_latency.le_4194304us`]! > 0, queue)
  }
  for (const name of ['aio_enqueue', 'wait_aio', 'wait_sem', 'wait_batch', 'wait_post'])
    for (const part of ['count', 'sum_us']) assert.equal(typeof counters[`storage.${name}.${part}`], 'number', `${name}.${part}`)
  for (const name of ['aio_enqueue', 'wait_aio', 'wait_batch', 'wait_post']) assert.ok(counters[`storage.${name}.count`]! > 0, name)
  for (const name of ['read.count', 'read.bytes', 'req_write.bytes', 'reliable_forward', 'syncing_read', 'update_remote', 'forward.write_bytes'])
    assert.equal(typeof counters[`storage.${name}`], 'number', name)
  for (const name of ['forward.write_dist.to_4k', 'forward.syncing_bytes']) assert.equal(typeof counters[`storage.${name}`], 'number', name)
  const metrics = await (await fetch(`${cluster.node('node-1').admin}/metrics`)).text()
  assert.match(metrics, /^xsan_read_ops_total [1-9]/m)
  assert.match(metrics, /^xsan_write_latency_seconds_total 0?\.?\d/m)
  assert.match(metrics, /^xsan_connections [1-9]/m)
  await client.close()
})
