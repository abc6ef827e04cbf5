import assert from 'node:assert/strict'
import test from 'node:test'
import { ChainCluster, pattern, TestClient, VOLUME } from '../../test/support/chain-cluster.ts'
import { Status } from '../base/status.ts'
import { MiB } from '../base/units.ts'
import { ReplicaState } from '../placement/chain.ts'
import { slotOf } from '../placement/ring.ts'
import { View } from '../placement/view.ts'
import { Shares } from './shares.ts'

const SLOTS = 16

/** Slots alternate between sole copies on nodes 1 and 2; node 3 has clients only. */
async function twoSoleCopies(options: Partial<ConstructorParameters<typeof ChainCluster>[0]> = {}) {
  const cluster = new ChainCluster({ nodes: 3, slots: SLOTS, chainOf: (slot) => [(slot % 2) + 1], ...options })
  await cluster.start()
  const on = (node: number) => Array.from({ length: 400 }, (_, index) => index).filter((index) => (slotOf(1, index, SLOTS) % 2) + 1 === node)
  return { cluster, client: new TestClient(cluster.node(3)), blocks: { lost: on(1), well: on(2) } }
}

test('groups that stand still have a half, a quarter, ...; somebody else always finds something', () => {
  const shares = new Shares(3, 255)
  const takeAll = (group: number) => {
    let taken = 0
    while (shares.take(group)) taken++
    return taken
  }
  assert.deepEqual([takeAll(0), takeAll(1), takeAll(2), shares.free], [128, 64, 32, 31])
  shares.isAlone = true
  assert.equal(128 + takeAll(0), 128 + 31)
})

test('writes to a slot that nobody serves any more keep no write to another from its channel', { timeout: 60_000 }, async () => {
  const { cluster, client, blocks } = await twoSoleCopies({ plane: { settings: { retryTotalMs: 4000, writeLifeMs: 1000 } } })
  for (const index of [blocks.lost[0]!, blocks.well[0]!]) assert.equal(await cluster.world.settle(client.write(index, 0, pattern(1)), 5000), Status.SUCCESS)
  // asked, and never answered: nobody will know what became of them, and their cancels keep their channels
  cluster.node(1).storeOptions.stageMs = 1e9
  const lost = Array.from({ length: 600 }, (_, i) => client.write(blocks.lost[0]!, i * 4096, pattern(i)))
  await cluster.world.runFor(100)
  await cluster.kill(1)
  const later = Array.from({ length: 600 }, (_, i) => client.write(blocks.lost[1]!, i * 4096, pattern(i)))
  await cluster.world.runFor(50)
  const beganMs = cluster.world.nowMs
  for (let i = 0; i < 5; i++) assert.equal(await cluster.world.settle(client.write(blocks.well[0]!, i * 4096, pattern(i)), 5000), Status.SUCCESS)
  assert.ok(cluster.world.nowMs - beganMs < 50, `five writes took ${cluster.world.nowMs - beganMs} ms`)
  const ends = new Set(await cluster.world.settle(Promise.all([...lost, ...later]), 60_000))
  assert.deepEqual([...ends].sort(), [Status.NETWORK_TIMEOUT, Status.VOLUME_UNAVAILABLE].sort())
  // and as long as their cancels are tried
  const afterMs = cluster.world.nowMs
  const many = Array.from({ length: 600 }, (_, i) => client.write(blocks.well[1]!, i * 4096, pattern(i)))
  for (const status of await cluster.world.settle(Promise.all(many), 5000)) assert.equal(status, Status.SUCCESS)
  assert.ok(cluster.world.nowMs - afterMs < 500, `600 writes took ${cluster.world.nowMs - afterMs} ms`)
})

test('writes that their heads refuse one after another, thousands of them, end one after another', { timeout: 60_000 }, async () => {
  const cluster = new ChainCluster({ nodes: 1, slots: 1, plane: { settings: { retryTotalMs: 4000 } }, queue: { arenaBytes: 128 * MiB } })
  await cluster.start()
  const client = new TestClient(cluster.node(1))
  assert.equal(await cluster.world.settle(client.write(0, 0, pattern(1)), 5000), Status.SUCCESS)
  cluster.node(1).storeOptions.stageMs = 50
  const writes = Array.from({ length: 255 }, (_, i) => client.write(0, (i + 1) * 4096, pattern(i)))
  await cluster.world.runFor(1)
  const { node } = { node: cluster.node(1) }
  const refused = Array.from({ length: 6000 }, () => client.zero(0, 0, 1))
  await cluster.world.runFor(1)
  node.plane.writes.readOnly = true
  for (const status of await cluster.world.settle(Promise.all(writes), 5000)) assert.equal(status, Status.SUCCESS)
  for (const status of await cluster.world.settle(Promise.all(refused), 5000)) assert.equal(status, Status.READ_ONLY)
})

test('writes of a slot whose other copy is away for long keep no credit from the slots that are served again', { timeout: 60_000 }, async () => {
  const cluster = new ChainCluster({
    nodes: 3,
    slots: 2,
    chainOf: (slot) => (slot === 0 ? [1, 2] : [1]),
    plane: { limits: { creditRows: 4 }, settings: { retryTotalMs: 10_000 } },
  })
  await cluster.start()
  const client = new TestClient(cluster.node(3))
  const of = (slot: number) => Array.from({ length: 64 }, (_, index) => index).filter((index) => slotOf(VOLUME, index, 2) === slot)
  for (const slot of [0, 1]) assert.equal(await cluster.world.settle(client.write(of(slot)[0]!, 0, pattern(1)), 5000), Status.SUCCESS)
  cluster.node(2).process.freeze()
  const undecided = Array.from({ length: 8 }, (_, page) => client.write(of(0)[0]!, page * 4096, pattern(page)))
  await cluster.world.runFor(100)
  const { records } = cluster.node(1).plane.replicas
  assert.equal(records.inUse, 4)
  // node 2 is lost, and node 1 away for a moment: slot 0 waits for node 2, slot 1 goes on
  cluster.node(2).kill()
  cluster.views[1] = View.DOWN
  cluster.fence(cluster.node(1))
  await cluster.world.runFor(50)
  cluster.views[0] = View.UP
  cluster.step()
  await cluster.world.runFor(50)
  cluster.step()
  assert.deepEqual([cluster.chains[0]!.entries[0]!.state, cluster.chains[1]!.entries[0]!.state], [ReplicaState.LASTSRV, ReplicaState.SERVING])
  assert.equal(await cluster.world.settle(client.write(of(1)[0]!, 0, pattern(2)), 5000), Status.SUCCESS)
  // and when it is back, all is as it was
  cluster.restart(2)
  await cluster.until('all serve', () => cluster.allServing)
  for (const write of undecided) assert.equal(await cluster.world.settle(write, 10_000), Status.SUCCESS)
  await cluster.until('quiet', () => cluster.quiet)
  cluster.assertEqual()
})
