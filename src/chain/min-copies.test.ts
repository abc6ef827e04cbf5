import assert from 'node:assert/strict'
import test from 'node:test'
import { ChainCluster, pattern, TestClient, VOLUME } from '../../test/support/chain-cluster.ts'
import { Status } from '../base/status.ts'

test('a volume with min_copies takes no writes on fewer, reads on; they go on when the copies are there again', { timeout: 60_000 }, async () => {
  const cluster = new ChainCluster({
    nodes: 3,
    slots: 2,
    chainOf: () => [1, 2],
    volumes: [
      { volume: VOLUME, name: 'two', sizeBytes: 2 ** 40, replicas: 2, minCopies: 2, syncWhenWrite: true, readOnly: false },
      { volume: 3 as never, name: 'one', sizeBytes: 2 ** 40, replicas: 2, syncWhenWrite: true, readOnly: false },
    ],
    plane: { settings: { retryTotalMs: 5000 } },
  })
  await cluster.start()
  const client = new TestClient(cluster.node(3))
  assert.equal(await cluster.world.settle(client.write(0, 0, pattern(1)), 5000), Status.SUCCESS)
  await cluster.kill(2)
  await cluster.world.runFor(5)
  const write = client.write(0, 0, pattern(2))
  const zero = client.zero(1, 0, 4)
  await cluster.world.runFor(2000)
  assert.equal(client.pending, 2, 'they wait')
  assert.ok(cluster.node(1).plane.counters.updatesWaitedForCopies > 0)
  assert.deepEqual((await cluster.world.settle(client.read(0, 0, 1), 5000)).bytes, pattern(1))
  assert.equal(await cluster.world.settle(client.write(0, 0, pattern(3), { volume: 3 as never }), 1000), Status.SUCCESS, 'others do not')
  cluster.restart(2)
  await cluster.until('two copies', () => cluster.allServing)
  assert.equal(await cluster.world.settle(write, 2000), Status.SUCCESS)
  assert.equal(await cluster.world.settle(zero, 2000), Status.SUCCESS)
  // and without them their time ends, and nothing of them ever takes effect
  await cluster.kill(2)
  await cluster.world.runFor(5)
  assert.equal(await cluster.world.settle(client.write(0, 0, pattern(4)), 10_000), Status.VOLUME_UNAVAILABLE)
  cluster.restart(2)
  await cluster.until('two copies', () => cluster.allServing)
  assert.deepEqual((await cluster.world.settle(client.read(0, 0, 1), 5000)).bytes, pattern(2))
})
