/**
 * Three real nodes under a load that knows every legal content of every sector, through the loss of each of them. After every fault: no error was
 * seen, nothing acknowledged is missing through any node, no read went back in time, and the copies are equal.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { closeSync, openSync, readSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import test, { after, before, beforeEach } from 'node:test'
import { bin, run, sleep, until } from '../support/commands.ts'
import { DevCluster, type DevNode } from '../support/dev-cluster.ts'
import { VerifiedLoad } from '../support/verified-load.ts'

const SIZE_BYTES = 48 * 1024 * 1024
/** Of a cluster made by `dev up`, the default. */
const LEASE_MS = 2000
/** Longest wait for one answer after the kill of one process. A busy test machine gets ten times what the benchmark asks for. */
const STALL_MS_MAX = 5000
const TEST_MS = 120_000
const PAGE_BYTES = 4096
/** What a test has written lies within the first part of a disk. */
const SEARCHED_BYTES = 512 * 1024 * 1024

let cluster: DevCluster
/** Every test has a volume of its own. */
let volume = ''
let volumes = 0

before(
  async () => {
    cluster = await DevCluster.up({ nodes: 3, replicas: 3, diskSize: '2G' })
  },
  { timeout: TEST_MS },
)
beforeEach(async () => {
  await cluster.healthy()
  volume = `volume-${++volumes}`
  await cluster.createVolume(volume, String(SIZE_BYTES))
})
after(() => cluster?.end(), { timeout: 60_000 })

/** All nodes as endpoints; writes begin through `first`. `round`: of several loads on one volume. */
function load(first: string, round = 0): VerifiedLoad {
  return new VerifiedLoad({
    endpoints: cluster.nodes.map(({ id }) => cluster.endpoint(id)),
    exportName: volume,
    sizeBytes: SIZE_BYTES,
    seed: volumes,
    firstSequence: round * 1_000_000,
    first: cluster.nodes.findIndex(({ id }) => id === first),
    patienceMs: 8000,
  })
}

/** The load goes on: at least 50 more answers. */
async function goesOn(running: VerifiedLoad, timeoutMs = 20_000): Promise<void> {
  const from = running.answers
  await until('the load goes on', timeoutMs, () => running.answers > from + 50)
}

/** After the fault: all of it is there, through every node, in every copy. */
async function assertWhole(running: VerifiedLoad): Promise<void> {
  await running.stop()
  for (let endpoint = 0; endpoint < cluster.nodes.length; endpoint++) await running.verify(endpoint)
  assert.deepEqual(running.violations, [])
  assert.deepEqual(running.stats.errors, {}, 'errors seen by the client')
  assert.ok((await cluster.assertReplicasEqual(volume)) > 0)
}

/** `cluster status` of the one node left: what it knows now, who is missing, nothing of before; exit code 6, no quorum. */
async function assertSaysWhoIsMissing(survivor: DevNode, missing: readonly string[]): Promise<void> {
  const { code, stdout, stderr } = await run(bin('xsan'), ['--server', survivor.grpc, 'cluster', 'status', '-o', 'json'])
  assert.equal(code, 6, stderr)
  assert.match(stderr, /error XSAN-101 CLUSTER_NOT_READY: No leader: 2 of the 3 voters .* Start 1 of /)
  const status = JSON.parse(stdout) as {
    leaderless: boolean
    health: string
    reasons: string[]
    leader: string
    nodes: Array<{ id: string; state: string; chains_serving?: number }>
    chains: { total: number; unknown: number; full: number; unavailable: number }
  }
  assert.deepEqual([status.leaderless, status.health, status.leader], [true, 'unavailable', ''])
  assert.deepEqual([status.chains.unknown, status.chains.full, status.chains.unavailable], [status.chains.total, 0, 0])
  for (const { id, state, chains_serving: serves } of status.nodes)
    assert.deepEqual([id, state, serves], missing.includes(id) ? [id, 'unknown', undefined] : [id, 'waiting', 0])
  const reasons = status.reasons.join('\n')
  for (const id of missing) assert.match(reasons, new RegExp(`Node ${id} does not answer: nothing answers at .*ECONNREFUSED`))
}

async function roleOf(role: string): Promise<string> {
  const replica = (await cluster.replicas(`${volume}:0`)).find((candidate) => candidate.role === role)
  assert.ok(replica, `block 0 has no ${role}`)
  return replica.nodeId
}

const victims: ReadonlyArray<readonly [title: string, pick: () => Promise<string>, throughIt: boolean]> = [
  ['the head of a chain', () => roleOf('head'), false],
  ['the middle of a chain', () => roleOf('middle'), false],
  ['the tail of a chain', () => roleOf('tail'), false],
  ['the Raft leader', () => cluster.leader(), false],
  ["a follower that is the client's own node, the client going on through another", async () => cluster.others(await cluster.leader())[0]!.id, true],
]

for (const [title, pick, throughIt] of victims) {
  test(`kill and restart of ${title} loses nothing`, { timeout: TEST_MS }, async () => {
    const victim = await pick()
    const running = load(throughIt ? victim : cluster.others(victim)[0]!.id)
    running.start()
    try {
      await goesOn(running)
      running.mark()
      await cluster.kill(victim)
      await goesOn(running)
      await sleep(1500)
      assert.ok(running.longestMs < STALL_MS_MAX, `an answer took ${running.longestMs.toFixed(0)} ms`)
      await cluster.start(victim)
      await cluster.healthy()
      await goesOn(running)
      await assertWhole(running)
    } finally {
      running.close()
    }
  })
}

test('a node frozen past its lease and back serves nothing stale', { timeout: TEST_MS }, async () => {
  for (const round of [0, 1]) {
    const leader = await cluster.leader()
    const victim = round === 0 ? leader : cluster.others(leader)[0]!.id
    const running = load(cluster.others(victim)[0]!.id, round)
    running.start()
    try {
      await goesOn(running)
      cluster.signal(victim, 'SIGSTOP')
      await sleep(2 * LEASE_MS)
      await goesOn(running)
      cluster.signal(victim, 'SIGCONT')
      await sleep(500)
      await goesOn(running)
      await cluster.healthy()
      await assertWhole(running)
    } finally {
      cluster.signal(victim, 'SIGCONT')
      running.close()
    }
  }
})

test('a write left in a frozen node does not land over a newer one when the node goes on', { timeout: TEST_MS }, async () => {
  const victim = cluster.others(await cluster.leader())[0]!.id
  const [other] = cluster.others(victim)
  const page = (byte: number) => Buffer.alloc(4096, byte)
  const stuck = await cluster.nbd(victim, volume)
  const moving = await cluster.nbd(other!.id, volume)
  try {
    const offsets = Array.from({ length: 8 }, (_, i) => i * 4 * 1024 * 1024 + 8192)
    for (const offset of offsets) await stuck.write(offset, page(1))
    cluster.signal(victim, 'SIGSTOP')
    // lies in the frozen node's socket
    for (const offset of offsets) stuck.write(offset, page(2)).catch(() => {})
    await sleep(LEASE_MS + 1000)
    stuck.destroy()
    for (const offset of offsets) await moving.write(offset, page(3))
    cluster.signal(victim, 'SIGCONT')
    await sleep(3000)
    await cluster.healthy()
    for (const offset of offsets) {
      const found = await moving.read(offset, 4096)
      assert.ok(found.equals(page(3)), `at ${offset}: write ${found[0]} instead of 3`)
    }
  } finally {
    cluster.signal(victim, 'SIGCONT')
    stuck.destroy()
    moving.destroy()
  }
})

/** Flips a bit of each of these pages wherever the node's disk holds it, underneath its process; returns how many it found. */
function rot(id: string, pages: readonly Buffer[]): number {
  const wanted = new Set(pages.map((page) => page.toString('latin1', 0, 16)))
  const fd = openSync(join(cluster.dir, id, 'disk-0'), 'r+')
  let found = 0
  try {
    const chunk = Buffer.alloc(1024 * 1024)
    for (let at = 0; at < SEARCHED_BYTES && readSync(fd, chunk, 0, chunk.length, at) === chunk.length; at += chunk.length) {
      for (let page = 0; page < chunk.length; page += PAGE_BYTES) {
        if (!wanted.has(chunk.toString('latin1', page, page + 16))) continue
        writeSync(fd, Buffer.from([chunk[page + 100]! ^ 4]), 0, 1, at + page + 100)
        found++
      }
    }
  } finally {
    closeSync(fd)
  }
  return found
}

async function pagesRepaired(id: string): Promise<number> {
  const metrics = await (await fetch(`${cluster.node(id).admin}/metrics`)).text()
  return Number(/^xsan_replica_pages_repaired_total(?:\{.*\})? (\d+)$/m.exec(metrics)?.[1])
}

test('pages that rot on one disk: nobody notices, each that is read comes from a peer, is repaired and counted', { timeout: TEST_MS }, async () => {
  const [{ id }] = cluster.nodes as [DevNode]
  const pages = Array.from({ length: 32 }, () => randomBytes(PAGE_BYTES))
  const client = await cluster.nbd(id, volume)
  try {
    for (const [i, page] of pages.entries()) await client.write(i * PAGE_BYTES, page)
    const before = await pagesRepaired(id)
    assert.equal(rot(id, pages), pages.length)
    const readAll = async () => {
      for (const [i, page] of pages.entries()) assert.ok((await client.read(i * PAGE_BYTES, PAGE_BYTES)).equals(page), `page ${i}`)
    }
    const repaired = async () => (await pagesRepaired(id)) - before
    await readAll()
    await until('each is counted', 10_000, async () => (await repaired()) === pages.length)
    await readAll()
    // counters are told now and then
    await sleep(2000)
    assert.equal(await repaired(), pages.length, 'they are good from then on')
  } finally {
    client.destroy()
  }
  await cluster.assertReplicasEqual(volume)
})

test('with two of three killed the volume pauses, and goes on when one returns', { timeout: TEST_MS }, async () => {
  const leader = await cluster.leader()
  const [survivor, second] = cluster.others(leader)
  const running = load(survivor!.id)
  running.start()
  try {
    await goesOn(running)
    await Promise.all([cluster.kill(leader), cluster.kill(second!.id)])
    await sleep(LEASE_MS + 1500)
    const paused = running.stats.writes
    await sleep(1500)
    assert.equal(running.stats.writes, paused, 'without a majority nothing may be acknowledged')
    await assertSaysWhoIsMissing(survivor!, [leader, second!.id])
    await cluster.start(second!.id)
    await goesOn(running, 40_000)
    await cluster.start(leader)
    await cluster.healthy()
    await assertWhole(running)
  } finally {
    running.close()
  }
})

test('after the kill of all three, every acknowledged byte is there', { timeout: TEST_MS }, async () => {
  const running = load(cluster.nodes[0]!.id)
  running.start()
  try {
    await goesOn(running)
    await Promise.all(cluster.nodes.map(({ id }) => cluster.kill(id)))
    await sleep(500)
    await Promise.all(cluster.nodes.map(({ id }) => cluster.start(id)))
    await cluster.healthy()
    await goesOn(running, 40_000)
    await assertWhole(running)
  } finally {
    running.close()
  }
})

test('SIGTERM of each node in turn: it drains, exits, and the client sees no error', { timeout: TEST_MS }, async () => {
  for (const [round, { id }] of cluster.nodes.entries()) {
    const running = load(id, round)
    running.start()
    try {
      await goesOn(running)
      const { pid } = cluster.node(id)
      cluster.signal(id, 'SIGTERM')
      await until(`${id} has stopped`, 15_000, async () => {
        await cluster.refresh()
        return cluster.node(id).state === 'dead'
      })
      assert.match(cluster.log(id).trimEnd().split('\n').at(-1)!, /"msg":"stopped"/, `log of PID ${pid}`)
      await goesOn(running)
      await cluster.start(id)
      await cluster.healthy()
      await running.stop()
      assert.deepEqual(running.violations, [])
      assert.deepEqual(running.stats.errors, {}, 'a node that stops answers what it has begun, and says goodbye by closing')
    } finally {
      running.close()
    }
  }
  assert.ok((await cluster.assertReplicasEqual(volume)) > 0)
})
