/** A replica whose resync never ended says so, and is the last to be taken when the data loss is accepted. */
import assert from 'node:assert/strict'
import test from 'node:test'
import { ChainCluster, pattern, TestClient } from '../../test/support/chain-cluster.ts'
import { Status } from '../base/status.ts'
import { ReplicaState } from '../placement/chain.ts'

const BLOCKS = 4

/** Node 3 holds the first writes, node 1 all; node 2 has learned of all of them in a resync that cannot end, for node 1 cannot read its disk. */
async function unfinished(seed: number): Promise<ChainCluster> {
  const cluster = new ChainCluster({ nodes: 3, slots: 1, seed, chainOf: () => [1, 2, 3] })
  await cluster.start()
  const client = new TestClient(cluster.node(1))
  const write = async (tag: number) => {
    for (let index = 0; index < BLOCKS; index++) {
      assert.equal(await cluster.world.settle(client.write(index, 0, pattern(tag + index, 8192)), 10_000), Status.SUCCESS)
    }
  }
  await write(10)
  await cluster.kill(3)
  await write(20)
  await cluster.kill(2)
  await write(30)
  cluster.node(1).store.failReads(true)
  cluster.restart(2)
  const newest = () => cluster.node(1).store.lastLow[0]!
  await cluster.until('the source has told its newest id', () => cluster.node(2).store.lastLow[0] === newest())
  await cluster.world.runFor(300)
  assert.equal(cluster.chains[0]!.entries.find(({ node }) => node === 2)!.state, ReplicaState.SYNCING)
  assert.equal(cluster.node(2).store.isIncomplete(0), true)
  return cluster
}

const serving = (cluster: ChainCluster) => cluster.chains[0]!.entries.filter(({ state }) => state === ReplicaState.SERVING).map(({ node }) => node as number)

async function contentIs(cluster: ChainCluster, number: number, tag: number): Promise<void> {
  const client = new TestClient(cluster.node(number))
  for (let index = 0; index < BLOCKS; index++) {
    const { status, bytes } = await cluster.world.settle(client.read(index, 0, 2), 10_000)
    assert.deepEqual([status, Buffer.compare(bytes, pattern(tag + index, 8192))], [Status.SUCCESS, 0], `block ${index}`)
  }
}

for (const [how, between] of [
  ['the same process', () => {}],
  ['another process', (cluster: ChainCluster) => cluster.kill(2).then(() => cluster.restart(2))],
  ['another process after a loss of power', (cluster: ChainCluster) => cluster.kill(2, { power: true }).then(() => cluster.restart(2))],
] as const) {
  test(`an older copy that is complete is taken rather than one that is not (${how})`, async () => {
    const cluster = await unfinished(7)
    await cluster.kill(1)
    await between(cluster)
    cluster.restart(3)
    await cluster.world.runFor(100)
    assert.deepEqual(serving(cluster), [])
    assert.equal(cluster.node(2).store.isIncomplete(0), true)
    cluster.step({ acceptDataLoss: true })
    assert.deepEqual(serving(cluster), [3])
    await cluster.until('both serve', () => serving(cluster).length === 2)
    assert.equal(cluster.node(2).store.isIncomplete(0), false)
    for (const number of [2, 3]) await contentIs(cluster, number, 10)
  })
}

test('with nothing else left the incomplete copy is taken, and counts as complete from then on', async () => {
  const cluster = await unfinished(8)
  await cluster.kill(1)
  await cluster.world.runFor(100)
  cluster.step({ acceptDataLoss: true })
  assert.deepEqual(serving(cluster), [2])
  await contentIs(cluster, 2, 20)
  await cluster.world.runFor(50)
  assert.equal(cluster.node(2).store.isIncomplete(0), false)
  await cluster.kill(2)
  cluster.restart(2)
  await cluster.until('it serves again', () => serving(cluster).length === 1)
  await contentIs(cluster, 2, 20)
})

test('a resync that ended is complete before it is reported, and stays so without the answer to the report', async () => {
  const cluster = new ChainCluster({ nodes: 2, slots: 1, seed: 9, chainOf: () => [1, 2] })
  await cluster.start()
  const client = new TestClient(cluster.node(1))
  const write = (tag: number) => cluster.world.settle(client.write(0, 0, pattern(tag, 8192)), 10_000)
  assert.equal(await write(1), Status.SUCCESS)
  await cluster.kill(2)
  assert.equal(await write(2), Status.SUCCESS)
  cluster.acceptReports = false
  cluster.restart(2)
  await cluster.until('resynced', () => cluster.node(2).plane.replicas.sessions.get(0)?.reported === true)
  assert.deepEqual([cluster.chains[0]!.entries[1]!.state, cluster.node(2).store.isIncomplete(0)], [ReplicaState.SYNCING, false])
  assert.equal(await write(3), Status.SUCCESS)
  await cluster.kill(1)
  cluster.step({ acceptDataLoss: true })
  assert.deepEqual(serving(cluster), [])
  await cluster.world.runFor(50)
  cluster.step({ acceptDataLoss: true })
  assert.deepEqual(serving(cluster), [2])
  const { status, bytes } = await cluster.world.settle(new TestClient(cluster.node(2)).read(0, 0, 2), 10_000)
  assert.deepEqual([status, Buffer.compare(bytes, pattern(3, 8192))], [Status.SUCCESS, 0])
})

test('a copy whose resync never heard its source is read from once the loss is accepted, and goes on from what it holds', async () => {
  const cluster = new ChainCluster({ nodes: 2, slots: 1, seed: 9, chainOf: () => [1, 2] })
  await cluster.start()
  const client = new TestClient(cluster.node(1))
  for (let tag = 1; tag <= 5; tag++) assert.equal(await cluster.world.settle(client.write(0, 0, pattern(tag, 8192)), 10_000), Status.SUCCESS)
  await cluster.kill(2)
  cluster.network.cut(cluster.node(1).host, cluster.node(2).host)
  cluster.restart(2)
  await cluster.world.runFor(100)
  assert.deepEqual([cluster.chains[0]!.entries[1]!.state, cluster.node(2).store.lastLow[0]], [ReplicaState.SYNCING, 0])
  await cluster.kill(1)
  await cluster.world.runFor(50)
  cluster.step({ acceptDataLoss: true })
  assert.deepEqual(serving(cluster), [2])
  const there = new TestClient(cluster.node(2))
  const read = async () => (await cluster.world.settle(there.read(0, 0, 2), 5000)).bytes
  assert.deepEqual(await read(), pattern(5, 8192))
  assert.equal(await cluster.world.settle(there.write(0, 4096, pattern(6)), 5000), Status.SUCCESS)
  assert.equal(cluster.node(2).store.lastLow[0], 6)
  await cluster.kill(2)
  cluster.restart(2)
  await cluster.until('it serves again', () => serving(cluster).length === 1)
  assert.deepEqual((await read()).subarray(4096), pattern(6))
})
