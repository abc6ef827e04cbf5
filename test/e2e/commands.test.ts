/** The commands against a real cluster: the JSON that scripts read, exit codes, and what errors say. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import test, { after, before } from 'node:test'
import { bin, endChild, must, type Ran, run, until } from '../support/commands.ts'
import { DevCluster } from '../support/dev-cluster.ts'

const TEST_MS = 60_000
const GiB = 1024 ** 3
let cluster: DevCluster

before(
  async () => {
    cluster = await DevCluster.up({ nodes: 3, replicas: 3, diskSize: '1G' })
  },
  { timeout: 120_000 },
)
after(() => cluster?.end(), { timeout: 60_000 })

function ask(program: 'xsan' | 'xsan-debug', server: string, ...args: string[]): Promise<Ran> {
  return run(bin(program), args, { env: { XSAN_SERVER: server } })
}
async function json<T>(program: 'xsan' | 'xsan-debug', ...args: string[]): Promise<T> {
  const { stdout, stderr, code } = await ask(program, cluster.nodes[0]!.grpc, ...args, '-o', 'json')
  assert.equal(code, 0, stderr)
  assert.equal(stderr, '')
  return JSON.parse(stdout) as T
}
async function refused(code: number, pattern: RegExp, ...args: string[]): Promise<void> {
  const ran = await ask('xsan', cluster.nodes[0]!.grpc, ...args)
  assert.equal(ran.code, code, `${args.join(' ')}: ${ran.stderr}`)
  assert.match(ran.stderr, pattern)
  assert.match(ran.stderr, /^error XSAN-\d{3} [A-Z_]+: .+ Try: .+/)
  assert.equal(ran.stdout, '')
}

test('cluster status: health, leader, a state per node, resync', { timeout: TEST_MS }, async () => {
  const status = await json<Record<string, unknown>>('xsan', 'cluster', 'status')
  assert.equal(status['cluster_id'], cluster.clusterId)
  assert.equal(status['health'], 'safe')
  assert.deepEqual(status['reasons'], [])
  assert.ok(cluster.nodes.some(({ id }) => id === status['leader']))
  assert.deepEqual(
    (status['nodes'] as Array<{ id: string; state: string }>).map(({ id, state }) => [id, state]),
    [
      ['node-1', 'ready'],
      ['node-2', 'ready'],
      ['node-3', 'ready'],
    ],
  )
  const resync = status['resync'] as Record<string, unknown>
  for (const key of ['blocks_left', 'bytes_moved', 'bytes_needed']) assert.equal(typeof resync[key], 'number', key)
  assert.equal((await json<Record<string, unknown>>('xsan', 'cluster', 'status', '--wait', 'healthy', '--timeout', '10s'))['health'], 'safe')
})

test('a volume from create to delete, by any node', { timeout: TEST_MS }, async () => {
  const made = await json<Record<string, unknown>>('xsan', 'volume', 'create', 'db1', '1G', '--replicas', '3')
  assert.equal(made['name'], 'db1')
  assert.equal(made['size_bytes'], GiB)
  assert.equal(made['replicas'], 3)
  assert.equal(typeof made['id'], 'number')
  for (const { nbd } of cluster.nodes) assert.ok((made['uris'] as string[]).includes(`${nbd}/db1`), `${nbd} in ${String(made['uris'])}`)
  for (const { grpc } of cluster.nodes) {
    const { stdout } = await ask('xsan', grpc, 'volume', 'info', 'db1', '-o', 'json')
    assert.equal((JSON.parse(stdout) as { id: number }).id, made['id'])
  }
  assert.deepEqual(
    (await json<{ volumes: Array<{ name: string }> }>('xsan', 'volume', 'list')).volumes.map(({ name }) => name),
    ['db1'],
  )
  const client = await cluster.nbd('node-2', 'db1')
  await client.write(0, Buffer.alloc(4096, 1))
  assert.equal((await json<Record<string, unknown>>('xsan', 'volume', 'resize', 'db1', '2G'))['size_bytes'], 2 * GiB)
  await client.write(GiB, Buffer.alloc(4096, 2))
  await client.close()
  await refused(1, /cannot become smaller/, 'volume', 'resize', 'db1', '1G')
  assert.equal((await json<Record<string, unknown>>('xsan', 'volume', 'delete', 'db1', '--yes'))['name'], 'db1')
  assert.deepEqual((await json<{ volumes: unknown[] }>('xsan', 'volume', 'list')).volumes, [])
})

test('what cannot be is refused with code, name, cause, next step and exit code', { timeout: TEST_MS }, async () => {
  await json('xsan', 'volume', 'create', 'twice', '64M')
  await refused(3, /XSAN-203 VOLUME_EXISTS: .*twice/, 'volume', 'create', 'twice', '64M')
  await refused(5, /XSAN-200 VOLUME_NOT_FOUND: .*nosuch/, 'volume', 'info', 'nosuch')
  await refused(5, /XSAN-200 VOLUME_NOT_FOUND: .*nosuch/, 'volume', 'delete', 'nosuch', '--yes')
  await refused(64, /is not a size/, 'volume', 'create', 'x', 'huge')
  await refused(64, /16E" is more than can be counted/, 'volume', 'create', 'x', '16E')
  await refused(64, /missing required argument 'size'\. Try: xsan volume create --help/, 'volume', 'create', 'x')
  await refused(1, /XSAN-002/, 'volume', 'create', 'bad name!', '64M')
  await refused(1, /XSAN-\d+ .*(copies|nodes|replicas)/i, 'volume', 'create', 'x', '64M', '--replicas', '5')
  await refused(64, /--yes/, 'volume', 'delete', 'twice')
  await refused(64, /creat/, 'volume', 'creat', 'x', '1G')
  await refused(5, /XSAN-105 NODE_NOT_FOUND: .*node-9/, 'cluster', 'remove', 'node-9', '--yes')
  await refused(2, /XSAN-100 NODE_UNREACHABLE: .*127\.0\.0\.1:1/, '--server', '127.0.0.1:1', 'volume', 'list')
})

test('--dry-run says what would happen, refuses what would be refused, and changes nothing', { timeout: TEST_MS }, async () => {
  const volumes = async () => (await json<{ volumes: Array<{ name: string; size_bytes: number }> }>('xsan', 'volume', 'list')).volumes
  await json('xsan', 'volume', 'create', 'dry', '64M')
  const before = await volumes()
  const made = await json<Record<string, unknown>>('xsan', 'volume', 'create', 'other', '1G', '--dry-run')
  assert.deepEqual([made['dry_run'], made['name'], made['size_bytes'], made['id']], [true, 'other', GiB, 0])
  await refused(3, /VOLUME_EXISTS/, 'volume', 'create', 'dry', '64M', '--dry-run')
  assert.equal((await json<Record<string, unknown>>('xsan', 'volume', 'resize', 'dry', '1G', '--dry-run'))['size_bytes'], GiB)
  await refused(1, /cannot become smaller/, 'volume', 'resize', 'dry', '4M', '--dry-run')
  assert.equal((await json<Record<string, unknown>>('xsan', 'volume', 'delete', 'dry', '--dry-run'))['name'], 'dry')
  assert.equal((await json<Record<string, unknown>>('xsan', 'config', 'set', 'log.level', 'DEBUG', '--dry-run'))['value'], 'DEBUG')
  await refused(1, /restart required/, 'config', 'set', 'cluster.bind_port', '1', '--dry-run')
  assert.equal((await json<Record<string, unknown>>('xsan', 'cluster', 'remove', 'node-3', '--force', '--dry-run'))['chains'], 4096)
  assert.deepEqual((await json<{ volumes: unknown[] }>('xsan', 'cluster', 'recover', '--dry-run')).volumes, [])
  assert.deepEqual(await volumes(), before)
  const { items } = await json<{ items: Array<{ key: string; value: unknown }> }>('xsan', 'config', 'show')
  assert.equal(items.find(({ key }) => key === 'log.level')?.value, 'INFO')
  assert.equal((await json<{ health: string }>('xsan', 'cluster', 'status')).health, 'safe')
})

test('--watch prints one JSON object per line until it is interrupted', { timeout: TEST_MS }, async () => {
  const child = spawn(bin('xsan'), ['--server', cluster.nodes[0]!.grpc, 'node', 'list', '--watch', '-o', 'json'], { stdio: ['ignore', 'pipe', 'ignore'] })
  let stdout = ''
  child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()))
  await until('three lines', 30_000, () => stdout.split('\n').length > 3)
  await endChild(child)
  for (const line of stdout.trimEnd().split('\n').slice(0, 3)) assert.equal((JSON.parse(line) as { nodes: unknown[] }).nodes.length, 3)
})

test('xsan-debug: blocks of a volume, and version, state and checksum of every copy', { timeout: TEST_MS }, async () => {
  const { id } = await json<{ id: number }>('xsan', 'volume', 'create', 'looked-at', '64M')
  const client = await cluster.nbd('node-1', 'looked-at')
  await client.write(0, Buffer.alloc(8192, 3))
  await client.write(12 * 1024 * 1024, Buffer.alloc(4096, 4))
  await client.close()
  for (const name of [String(id), 'looked-at']) {
    const { blocks } = await json<{ blocks: Array<{ block_id: string; index: number }> }>('xsan-debug', 'volume-info', name)
    assert.deepEqual(
      blocks.map(({ index }) => index),
      [0, 3],
    )
    for (const block of [blocks[1]!.block_id, 'looked-at:3']) {
      const location = await json<{ chain_version: number; replicas: Array<Record<string, unknown>> }>('xsan-debug', 'block-location', block)
      assert.equal(location.replicas.length, 3)
      for (const replica of location.replicas) {
        assert.equal(replica['state'], 'SERVING')
        for (const key of ['update_ver', 'commit_ver', 'chain_ver', 'checksum', 'size_bytes', 'timestamp_ms', 'block_state']) assert.ok(key in replica, key)
        assert.equal(replica['update_ver'], location.replicas[0]!['update_ver'])
        assert.equal(replica['checksum'], location.replicas[0]!['checksum'])
        assert.notEqual(replica['checksum'], 0)
        assert.deepEqual([replica['size_bytes'], replica['pages']], [4096, 1])
      }
      assert.deepEqual(
        location.replicas.map(({ role }) => role),
        ['head', 'middle', 'tail'],
      )
    }
  }
  assert.equal((await json<{ health: string }>('xsan-debug', 'cluster-status')).health, 'safe')
})

test('perf-stats and /metrics count what was done; /healthz and /readyz answer', { timeout: TEST_MS }, async () => {
  await json('xsan', 'volume', 'create', 'loaded', '64M')
  const client = await cluster.nbd('node-2', 'loaded')
  type Loaded = { nodes: Array<{ id: string; ops_per_second: number; bytes_per_second: number }> }
  await until('heartbeats say how much node-2 has to do', 20_000, async () => {
    for (let i = 0; i < 200; i++) await client.write((i % 16_000) * 4096, Buffer.alloc(4096, i % 256))
    const { nodes: loaded } = await json<Loaded>('xsan', 'node', 'list')
    return loaded.some(({ id, ops_per_second: ops, bytes_per_second: bytes }) => id === 'node-2' && ops > 0 && bytes >= 4096)
  })
  const { exports } = await json<{ exports: Array<{ volume: string; node_id: string; connections: number }> }>('xsan', 'export', 'list', '--volume', 'loaded')
  assert.ok(exports.some(({ node_id: node, connections }) => node === 'node-2' && connections === 1))
  await client.close()
  const { nodes } = await json<{ nodes: Array<{ node_id: string; counters: Record<string, number> }> }>('xsan-debug', 'perf-stats')
  assert.equal(nodes.length, 3)
  const sum = (counter: string) => nodes.reduce((total, { counters }) => total + (counters[counter] ?? 0), 0)
  for (const counter of [
    'read_ops',
    'write_ops',
    'read_bytes',
    'write_bytes',
    'read_latency_us',
    'write_latency_us',
    'network_bytes_sent',
    'network_bytes_recv',
  ])
    for (const { counters, node_id } of nodes) assert.equal(typeof counters[counter], 'number', `${counter} of ${node_id}`)
  for (const { counters } of nodes) for (const counter of Object.keys(counters)) assert.match(counter, /^[a-z0-9_.]+(\{[a-z]+=\d+\})?$/)
  assert.ok(sum('write_ops') >= 3)
  assert.ok(sum('network_bytes_sent') > 8192)
  for (const { admin } of cluster.nodes) {
    assert.equal((await fetch(`${admin}/healthz`)).status, 200)
    assert.equal((await fetch(`${admin}/readyz`)).status, 200)
    const metrics = await (await fetch(`${admin}/metrics`)).text()
    assert.match(metrics, /^xsan_build_info\{.*\} 1$/m)
    assert.match(metrics, /^xsan_write_ops_total/m)
  }
})

test('node, disk, export and config list what there is', { timeout: TEST_MS }, async () => {
  assert.equal((await json<{ nodes: unknown[] }>('xsan', 'node', 'list')).nodes.length, 3)
  const { disks } = await json<{ disks: Array<Record<string, unknown>> }>('xsan', 'disk', 'list')
  assert.equal(disks.length, 3)
  const { exports } = await json<{ exports: Array<Record<string, unknown>> }>('xsan', 'export', 'list')
  assert.ok(exports.length > 0)
  const shown = await must(bin('xsan'), ['config', 'show', '--server', cluster.nodes[0]!.grpc, '-o', 'json'])
  assert.match(shown.stdout, /network\.heartbeat_interval/)
})
