import assert from 'node:assert/strict'
import test from 'node:test'
import { ChainCluster, pattern, TestClient } from '../../test/support/chain-cluster.ts'
import { Status } from '../base/status.ts'
import { KiB, MiB } from '../base/units.ts'
import { CHANNELS_PER_CLIENT } from '../store/channel-rows.ts'
import { Credits, HOPS, SMALLEST_PEER_BYTES } from './credits.ts'
import { DEFAULT_LIMITS } from './data-plane.ts'
import { PayloadPool } from './payload-pool.ts'

test('the credits of all peers together fit into rows and memory, for as many peers as there can be', () => {
  for (let peers = 1; peers <= 63; peers++) {
    const credits = new Credits(64, { rows: 128, bytes: 8 * MiB })
    const poolBytes = Math.max(64 * MiB, peers * SMALLEST_PEER_BYTES)
    credits.share(peers, { rows: 128, bytes: 8 * MiB }, 8192, poolBytes)
    let rows = 0
    let bytes = 0
    for (let peer = 0; peer < peers; peer++) {
      credits.start(peer)
      for (let hop = 0; hop < HOPS; hop++) {
        assert.ok(credits.grantBytes(peer, hop) >= MiB && credits.grantRows(peer, hop) >= 1)
        rows += credits.grantRows(peer, hop)
        bytes += credits.grantBytes(peer, hop)
      }
    }
    assert.ok(rows <= 8192 && bytes <= poolBytes, `${peers} peers: ${rows} rows, ${bytes} bytes`)
  }
})

test('copies of what clients here write take nothing of what is set apart for peers, whose forwards they may wait for', async () => {
  const cluster = new ChainCluster({ nodes: 1, slots: 1 })
  await cluster.start()
  const { arena } = cluster.node(1).queue
  const pool = new PayloadPool(arena, MiB)
  const page = pool.alloc(4 * KiB)
  assert.ok(page !== -1)
  const copy = pool.copyOf(page, 4 * KiB)
  assert.ok(copy !== -1)
  const taken: number[] = []
  for (let bytes = 32 * MiB; bytes >= 4 * KiB; bytes /= 2) for (let more = arena.alloc(bytes); more !== -1; more = arena.alloc(bytes)) taken.push(more)
  assert.equal(pool.copyOf(page, 4 * KiB), -1)
  assert.ok(pool.alloc(MiB) !== -1, 'what a peer has credit for finds its place')
  pool.free(copy)
  assert.ok(pool.copyOf(page, 4 * KiB) !== -1)
})

test('updates that peers have credit for, and those of all channels here, find a row: what waits for one would hold up the forwards behind it', () => {
  const { creditBytes, recordsMax, updatesMax } = DEFAULT_LIMITS
  for (const rows of [DEFAULT_LIMITS.creditRows, 256]) {
    for (let peers = 1; peers <= 63; peers++) {
      const credits = new Credits(64, { rows, bytes: creditBytes })
      credits.share(peers, { rows, bytes: creditBytes }, recordsMax / 2, 2 ** 30)
      credits.start(0)
      assert.ok(peers * credits.grantRows(0, 0) + 2 * CHANNELS_PER_CLIENT <= updatesMax, `${peers} peers, ${rows} rows`)
    }
  }
})

test('twelve nodes full of their own buffers still take what peers send', { timeout: 240_000 }, async () => {
  const NODES = 12
  const cluster = new ChainCluster({
    nodes: NODES,
    slots: 16,
    chainOf: (slot) => [0, 1, 2].map((i) => ((slot + i * 5) % NODES) + 1),
    queue: { arenaBytes: 208 * MiB },
    plane: { limits: { peerPoolBytes: 16 * MiB } },
  })
  await cluster.start()
  await cluster.until('sessions', () => cluster.nodes.every(({ plane }) => plane.peers.peers.filter((peer) => peer.up).length === NODES - 1))
  const held = cluster.nodes.map(({ queue }) => {
    const pages: number[] = []
    for (let page = queue.arena.alloc(256 * KiB); page !== -1; page = queue.arena.alloc(256 * KiB)) pages.push(page)
    // what the clients below need
    for (const page of pages.splice(0, 10)) queue.arena.free(page as never)
    return pages.length
  })
  assert.ok(held.every((count) => count > 0))
  const clients = cluster.nodes.map((node) => new TestClient(node))
  await cluster.world.settle(
    (async () => {
      const calls: Promise<number>[] = []
      for (let i = 0; i < 10 * NODES; i++) calls.push(clients[i % NODES]!.write(i % 48, 0, pattern(i, 256 * KiB)))
      for (const status of await Promise.all(calls)) assert.equal(status, Status.SUCCESS)
    })(),
    60_000,
  )
  for (const { told } of cluster.nodes) assert.ok(!told.some((message) => message.type === 'log' && /too small/.test(message.message)))
  await cluster.until('quiet', () => cluster.quiet)
  cluster.assertEqual()
})
