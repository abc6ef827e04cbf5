import assert from 'node:assert/strict'
import test from 'node:test'
import { ChainCluster, pattern, TestClient, VOLUME } from '../../test/support/chain-cluster.ts'
import { Status } from '../base/status.ts'
import { BLOCK_BYTES } from '../base/units.ts'
import { ReplicaState } from '../placement/chain.ts'
import { slotOf } from '../placement/ring.ts'

test('a head orders no new block that another member has no space for; blocks that are there, and chains without that disk, go on', {
  timeout: 60_000,
}, async () => {
  const cluster = new ChainCluster({ nodes: 4, slots: 2, chainOf: (slot) => (slot === 0 ? [1, 2, 3] : [1, 2, 4]), plane: { settings: { retryTotalMs: 5000 } } })
  await cluster.start()
  const client = new TestClient(cluster.node(4))
  const write = (index: number) => cluster.world.settle(client.write(index, 0, pattern(index + 1)), 5000)
  const of = (slot: number) => Array.from({ length: 64 }, (_, index) => index).filter((index) => slotOf(VOLUME, index, 2) === slot)
  const [first, second, third] = of(0) as [number, number, number]
  assert.equal(await write(first), Status.SUCCESS)
  const fill = (n: number) => Object.defineProperty(cluster.node(n).store, 'rejectCreate', { value: true, configurable: true })
  fill(3)
  await cluster.world.runFor(50)
  assert.equal(await write(second), Status.INSUFFICIENT_SPACE)
  assert.equal(await write(first), Status.SUCCESS)
  assert.equal(await write(of(1)[0]!), Status.SUCCESS)
  // a session that begins later is told
  await cluster.kill(1)
  cluster.restart(1)
  await cluster.until('all serve again', () => cluster.allServing)
  assert.equal(await write(second), Status.INSUFFICIENT_SPACE)
  Reflect.deleteProperty(cluster.node(3).store, 'rejectCreate')
  await cluster.world.runFor(50)
  assert.equal(await write(second), Status.SUCCESS)
  // who is gone says nothing any more
  fill(3)
  await cluster.world.runFor(50)
  await cluster.kill(3)
  await cluster.world.runFor(100)
  assert.equal(await write(third), Status.SUCCESS)
})

test('a disk without space for new blocks that is being brought up to date holds up no write: it goes on when it has some', { timeout: 60_000 }, async () => {
  const cluster = new ChainCluster({ nodes: 3, slots: 1, chainOf: () => [1, 2, 3], plane: { settings: { retryTotalMs: 5000 } } })
  await cluster.start()
  const client = new TestClient(cluster.node(1))
  const write = (index: number) => cluster.world.settle(client.write(index, 0, pattern(index + 1)), 5000)
  assert.equal(await write(0), Status.SUCCESS)
  await cluster.kill(3)
  assert.equal(await write(1), Status.SUCCESS)
  cluster.restart(3)
  const { store } = cluster.node(3)
  const { capacityBytes } = store
  Object.assign(store, { capacityBytes: store.usedBytes })
  await cluster.world.runFor(200)
  const state = () => cluster.chains[0]!.entries[2]!.state
  assert.equal(state(), ReplicaState.SYNCING)
  for (const index of [0, 1, 2, 3, 2]) assert.equal(await write(index), Status.SUCCESS)
  assert.equal(state(), ReplicaState.SYNCING)
  Object.assign(store, { capacityBytes })
  await cluster.until('all serve', () => cluster.allServing)
  assert.ok(store.findBlock(VOLUME, 0, 3) >= 0)
  cluster.assertEqual()
})

test('a copy that is being brought up to date leaves the last extents of its disk to those that count, and asks for what it has no space for now and then', {
  timeout: 60_000,
}, async () => {
  const cluster = new ChainCluster({ nodes: 3, slots: 2, chainOf: () => [1, 2, 3], store: { keptBlocks: 4 } })
  await cluster.start()
  const client = new TestClient(cluster.node(1))
  const write = async (index: number) => assert.equal(await cluster.world.settle(client.write(index, 0, pattern(index + 1)), 5000), Status.SUCCESS)
  const of = (slot: number) => Array.from({ length: 64 }, (_, index) => index).filter((index) => slotOf(VOLUME, index, 2) === slot)
  const [first, second] = [of(0), of(1)]
  for (const index of [...first.slice(0, 4), ...second.slice(0, 2)]) await write(index)
  await cluster.kill(3)
  for (const index of second.slice(2, 12)) await write(index)
  cluster.restart(3)
  const { store, plane } = cluster.node(3)
  const { capacityBytes } = store
  Object.assign(store, { capacityBytes: 10 * BLOCK_BYTES })
  const state = (slot: number) => cluster.chains[slot]!.entries.find(({ node }) => node === 3)!.state
  await cluster.until('the slot for which there is space serves', () => state(0) === ReplicaState.SERVING)
  await cluster.world.runFor(200)
  assert.deepEqual([state(1), store.usedBytes / BLOCK_BYTES], [ReplicaState.SYNCING, 8])
  for (const index of second.slice(12, 16)) await write(index)
  assert.equal(store.usedBytes / BLOCK_BYTES, 8)
  const { calls } = plane
  const call = calls.call.bind(calls)
  let asked = 0
  calls.call = (...args) => {
    asked++
    return call(...args)
  }
  await cluster.world.runFor(3000)
  assert.ok(asked > 0 && asked <= 16, `asked ${asked} times in 3 s`)
  Object.assign(store, { capacityBytes })
  await cluster.until('all serve', () => cluster.allServing)
  cluster.assertEqual()
})

test('new blocks that wait behind others which find no space hold nothing for longer than their life: writes to blocks that are there go on', {
  timeout: 60_000,
}, async () => {
  const cluster = new ChainCluster({ nodes: 3, slots: 2, chainOf: (slot) => (slot === 0 ? [1, 2] : [1]), plane: { limits: { creditRows: 20 } } })
  await cluster.start()
  const client = new TestClient(cluster.node(3))
  const of = (slot: number) => Array.from({ length: 128 }, (_, index) => index).filter((index) => slotOf(VOLUME, index, 2) === slot)
  const there = of(1)[0]!
  assert.equal(await cluster.world.settle(client.write(there, 0, pattern(1)), 5000), Status.SUCCESS)
  // they were under way when the disk became full
  const { store } = cluster.node(2)
  const { capacityBytes } = store
  Object.assign(store, { capacityBytes: store.usedBytes })
  Object.defineProperty(store, 'rejectCreate', { value: false, configurable: true })
  const stuck = of(0)
    .slice(0, 30)
    .map((index) => client.write(index, 0, pattern(index)))
  await cluster.world.runFor(100)
  assert.deepEqual([cluster.node(1).plane.replicas.records.inUse, cluster.node(1).plane.writes.updates.inUse], [16, 20])
  assert.equal(await cluster.world.settle(client.write(there, 0, pattern(2)), 20_000), Status.SUCCESS)
  Object.assign(store, { capacityBytes })
  for (const write of stuck) assert.equal(await cluster.world.settle(write, 20_000), Status.SUCCESS)
  await cluster.until('quiet', () => cluster.quiet)
  cluster.assertEqual()
})
