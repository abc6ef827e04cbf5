import assert from 'node:assert/strict'
import test from 'node:test'
import { ChainCluster, pattern, TestClient, VOLUME } from '../../test/support/chain-cluster.ts'
import { Status } from '../base/status.ts'
import { ReplicaState } from '../placement/chain.ts'
import { View } from '../placement/view.ts'

const KEEP_MS = 1000
const LAST_LOOK_MS = 3 * KEEP_MS

/** Three nodes with a block each; the third one leaves the chain, and lives, has a lease and hears every table. */
async function leftByThree(replicas: number) {
  const volumes = [{ volume: 1 as never, name: 'db', sizeBytes: 2 ** 30, replicas, syncWhenWrite: true, readOnly: false }]
  const cluster = new ChainCluster({ nodes: 3, slots: 1, seed: 5, volumes, chainOf: () => [1, 2, 3], plane: { limits: { keepMovedMs: KEEP_MS } } })
  await cluster.start()
  const status = await cluster.world.settle(new TestClient(cluster.node(1)).write(0, 0, pattern(1)), 5000)
  assert.equal(status, Status.SUCCESS)
  await cluster.until('quiet', () => cluster.quiet)
  cluster.views[2] = View.DOWN
  cluster.step()
  cluster.step({ remove: cluster.node(3).disk })
  assert.deepEqual(
    cluster.chains[0]!.entries.map(({ node }) => node),
    [1, 2],
  )
  await cluster.until('it has the table', () => cluster.node(3).plane.table.entryCount[0] === 2)
  assert.ok(cluster.node(3).store.usedBytes > 0)
  return cluster
}

test('what is left of a copy gives its space back when others hold as many as are wanted, not at once', async () => {
  const cluster = await leftByThree(2)
  await cluster.world.runFor(KEEP_MS - 200)
  assert.ok(cluster.node(3).store.usedBytes > 0, 'it may come back')
  await cluster.until('its space is free', () => cluster.node(3).store.usedBytes === 0, LAST_LOOK_MS)
  for (const number of [1, 2]) assert.ok(cluster.node(number).store.usedBytes > 0)
  cluster.views[2] = View.UP
  cluster.step({ add: { disk: cluster.node(3).disk, node: 3 as never } })
  await cluster.until('it has copied all of it', () => cluster.chains[0]!.entries.length === 3 && cluster.allServing)
  cluster.assertEqual()
})

test('what is left of a copy stays where the chain has fewer than are wanted, and where a node has no lease: it may not know the chain of now', async () => {
  const short = await leftByThree(3)
  await short.world.runFor(LAST_LOOK_MS)
  assert.ok(short.node(3).store.usedBytes > 0)
  const unsure = await leftByThree(2)
  unsure.leaseMs = 0
  unsure.node(3).plane.table.endLease()
  await unsure.world.runFor(LAST_LOOK_MS)
  assert.ok(unsure.node(3).store.usedBytes > 0)
})

test('a copy whose blocks have been swept is not taken for one, whatever its ids: an older one that is there serves when the others are lost', async () => {
  const volumes = [{ volume: 1 as never, name: 'db', sizeBytes: 2 ** 30, replicas: 1, syncWhenWrite: true, readOnly: false }]
  const cluster = new ChainCluster({ nodes: 3, slots: 1, seed: 6, volumes, chainOf: () => [1, 2, 3], plane: { limits: { keepMovedMs: KEEP_MS } } })
  await cluster.start()
  const write = (tag: number) => cluster.world.settle(new TestClient(cluster.node(1)).write(0, 0, pattern(tag)), 5000)
  assert.equal(await write(1), Status.SUCCESS)
  await cluster.kill(2)
  assert.equal(await write(2), Status.SUCCESS)
  await cluster.until('quiet', () => cluster.quiet)
  cluster.views[2] = View.DOWN
  cluster.step()
  cluster.step({ remove: cluster.node(3).disk })
  await cluster.until('its space is free', () => cluster.node(3).store.usedBytes === 0, LAST_LOOK_MS)
  cluster.views[2] = View.UP
  await cluster.kill(1)
  cluster.restart(2)
  cluster.step({ add: { disk: cluster.node(3).disk, node: 3 as never } })
  await cluster.world.runFor(100)
  cluster.step({ acceptDataLoss: true })
  const serving = cluster.chains[0]!.entries.filter(({ state }) => state === ReplicaState.SERVING).map(({ node }) => node as number)
  assert.deepEqual(serving, [2])
  const { bytes } = await cluster.world.settle(new TestClient(cluster.node(2)).read(0, 0, 1), 5000)
  assert.deepEqual(bytes, pattern(1))
})

test('a write of a deleted volume that reaches a replica long after gives its space back, too', async () => {
  const cluster = new ChainCluster({ nodes: 2, slots: 1, seed: 7, chainOf: () => [1, 2], plane: { limits: { keepMovedMs: 20_000 } } })
  await cluster.start()
  const [head, tail] = [cluster.node(1), cluster.node(2)]
  cluster.network.cut(head.host, tail.host)
  cluster.network.cut(tail.host, head.host)
  void new TestClient(head).write(0, 0, pattern(1))
  await cluster.world.runFor(100)
  assert.ok(head.store.usedBytes > 0)
  cluster.volumes = cluster.volumes.filter(({ volume }) => volume !== VOLUME)
  cluster.publish([0])
  await cluster.world.runFor(12_000)
  assert.equal(head.store.usedBytes, 0)
  cluster.network.healAll()
  await cluster.until('it has come through', () => tail.store.usedBytes > 0, 5000)
  await cluster.until('its space is free', () => tail.store.usedBytes === 0, 30_000)
  cluster.assertEqual()
})
