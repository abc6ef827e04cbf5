import assert from 'node:assert/strict'
import test from 'node:test'
import { ChainCluster, pattern, TestClient } from '../../test/support/zz-chain-cluster.ts'
import { Status } from '../base/status.ts'

async function three(options: Partial<ConstructorParameters<typeof ChainCluster>[0]> = {}) {
  const cluster = new ChainCluster({ nodes: 3, slots: 8, ...options })
  await cluster.start()
  await cluster.until('sessions up', () =>
    cluster.nodes.every(
      (node) => node.plane.peers.peers.filter((peer) => peer.up).length === options.nodes! - 1 || node.plane.peers.peers.filter((peer) => peer.up).length === 2,
    ),
  )
  return { cluster, clients: cluster.nodes.map((node) => new TestClient(node)) }
}

test('three replicas: writes through every node, read back on every node, replicas byte-equal', async () => {
  const { cluster, clients } = await three()
  await cluster.world.settle(
    (async () => {
      const writes = Array.from({ length: 120 }, (_, i) => clients[i % 3]!.write(i % 10, i * 4096, pattern(i, 4096)))
      for (const status of await Promise.all(writes)) assert.equal(status, Status.SUCCESS)
      for (let i = 0; i < 120; i++) {
        const { status, bytes } = await clients[(i + 1) % 3]!.read(i % 10, i, 1)
        assert.equal(status, Status.SUCCESS)
        assert.deepEqual(bytes, pattern(i, 4096))
      }
    })(),
    20_000,
  )
  await cluster.until('quiet', () => cluster.quiet)
  cluster.assertEqual()
})

test('large and sub-page writes travel the chain', async () => {
  const { cluster, clients } = await three({ seed: 5 })
  await cluster.world.settle(
    (async () => {
      const large = pattern(1, 1024 * 1024)
      const model = new Uint8Array(1024 * 1024 + 4096)
      model.set(large)
      assert.equal(await clients[0]!.write(3, 0, large), Status.SUCCESS)
      const edge = pattern(2, 512 * 21)
      model.set(edge, 512 * 3)
      assert.equal(await clients[1]!.write(3, 512 * 3, edge), Status.SUCCESS)
      const big = pattern(3, 255 * 4096 - 1024)
      model.set(big, 512 * 5)
      assert.equal(await clients[2]!.write(3, 512 * 5, big), Status.SUCCESS)
      for (const client of clients) assert.deepEqual((await client.read(3, 0, 256)).bytes, model.subarray(0, 1024 * 1024))
      assert.equal(await clients[1]!.zero(3, 2, 1022), Status.SUCCESS)
      for (const client of clients) assert.ok((await client.read(3, 2, 256)).bytes.every((byte) => byte === 0))
    })(),
    20_000,
  )
  await cluster.until('quiet', () => cluster.quiet)
  cluster.assertEqual()
})
