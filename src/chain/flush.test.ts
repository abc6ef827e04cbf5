import assert from 'node:assert/strict'
import test from 'node:test'
import { ChainCluster, pattern, RELAXED_VOLUME, TestClient, VOLUME } from '../../test/support/chain-cluster.ts'
import { Status } from '../base/status.ts'
import { BLOCK_BYTES } from '../base/units.ts'
import { slotOf } from '../placement/ring.ts'

/** Chains of nodes 1 and 2; node 3 has clients only. Nothing becomes durable by itself. */
async function relaxed() {
  const cluster = new ChainCluster({ nodes: 3, slots: 2, chainOf: () => [1, 2] })
  await cluster.start()
  const client = new TestClient(cluster.node(3))
  const write = (tag: number) => cluster.world.settle(client.write(0, 0, pattern(tag), { volume: RELAXED_VOLUME }), 5000)
  const flush = (by = client) => cluster.world.settle(by.flush(RELAXED_VOLUME), 10_000)
  const read = async () => (await cluster.world.settle(client.read(0, 0, 1, RELAXED_VOLUME), 5000)).bytes
  return { cluster, client, write, flush, read }
}

async function allDown(cluster: ChainCluster, power: boolean): Promise<void> {
  for (const number of [1, 2]) {
    if (power) cluster.node(number).losePower()
    else cluster.node(number).kill()
    cluster.views[number - 1] = 0
  }
  cluster.step()
  for (const number of [1, 2]) cluster.restart(number)
  await cluster.until('serving', () => cluster.allServing)
}

test('a flush after all replicas lost their memory fails once: what was acknowledged before may be gone', { timeout: 60_000 }, async () => {
  const { cluster, client, write, flush, read } = await relaxed()
  assert.equal(await write(1), Status.SUCCESS)
  assert.equal(await flush(), Status.SUCCESS)
  assert.equal(await write(2), Status.SUCCESS)
  await allDown(cluster, true)
  assert.deepEqual(await read(), pattern(1), 'the premise: the unflushed write is lost')
  assert.equal(await flush(), Status.WRITE_FAILED)
  assert.equal(await flush(), Status.SUCCESS)
  assert.equal(await write(3), Status.SUCCESS)
  assert.equal(await flush(), Status.SUCCESS)
  assert.equal(await cluster.world.settle(client.flush(VOLUME), 5000), Status.SUCCESS)
  // the processes that came up before the slots were recovered had no clients that could know; they tell theirs all the same
  assert.equal(await flush(new TestClient(cluster.node(1))), Status.WRITE_FAILED)
  await cluster.kill(1)
  cluster.restart(1)
  await cluster.until('serving', () => cluster.allServing)
  assert.equal(await flush(new TestClient(cluster.node(1))), Status.SUCCESS, 'a process that starts later tells nobody')
})

test('a flush after all replicas were killed succeeds: the kernel kept what they had acknowledged', { timeout: 60_000 }, async () => {
  const { cluster, write, flush, read } = await relaxed()
  assert.equal(await write(1), Status.SUCCESS)
  await allDown(cluster, false)
  assert.equal(await flush(), Status.SUCCESS)
  assert.deepEqual(await read(), pattern(1))
})

test('processes that the chains do not count yet answer no flush: what those before them had acknowledged may be gone', { timeout: 60_000 }, async () => {
  const { cluster, client, write } = await relaxed()
  assert.equal(await write(1), Status.SUCCESS)
  for (const number of [1, 2]) {
    cluster.node(number).losePower()
    cluster.views[number - 1] = 0
    cluster.node(number).start()
    cluster.registered[number - 1] = cluster.node(number).incarnation
  }
  // they are registered, everybody knows it, and the chains still name the processes that lost their memory
  cluster.revision = ((cluster.revision as number) + 1) as never
  for (const node of cluster.nodes) cluster.sendTable(node)
  for (const node of cluster.nodes) cluster.grant(node)
  const flush = client.flush(RELAXED_VOLUME)
  await cluster.world.runFor(500)
  assert.equal(cluster.losses, 0, 'the premise: the loss is not counted yet')
  cluster.step()
  for (const number of [1, 2]) cluster.views[number - 1] = 2
  cluster.publish([0, 1])
  cluster.step()
  await cluster.until('serving', () => cluster.allServing)
  assert.equal(await cluster.world.settle(flush, 10_000), Status.WRITE_FAILED)
})

test('a flush that began before the loss, and ends after it, fails', { timeout: 60_000 }, async () => {
  const { cluster, client, write } = await relaxed()
  assert.equal(await write(1), Status.SUCCESS)
  for (const number of [1, 2]) cluster.network.cut(cluster.node(3).host, cluster.node(number).host)
  const flush = client.flush(RELAXED_VOLUME)
  await cluster.world.runFor(50)
  const recovered = allDown(cluster, true)
  cluster.network.healAll()
  await recovered
  assert.equal(await cluster.world.settle(flush, 10_000), Status.WRITE_FAILED)
})

test('a loss that was told to a client that had gone meanwhile is told again', { timeout: 60_000 }, async () => {
  const { cluster, client, write, flush } = await relaxed()
  assert.equal(await write(1), Status.SUCCESS)
  for (const number of [1, 2]) cluster.network.cut(cluster.node(3).host, cluster.node(number).host)
  const given = client.orphanableFlush(RELAXED_VOLUME)
  await cluster.world.runFor(50)
  // its connection is closed, and it asks again by another one
  given.orphan()
  const again = client.flush(RELAXED_VOLUME)
  const recovered = allDown(cluster, true)
  cluster.network.healAll()
  await recovered
  assert.equal(await cluster.world.settle(given.status, 10_000), Status.WRITE_FAILED)
  assert.equal(await cluster.world.settle(again, 10_000), Status.WRITE_FAILED)
  assert.equal(await flush(), Status.SUCCESS)
})

test('whoever connects within a minute of a loss may have been there', { timeout: 60_000 }, async () => {
  const { cluster } = await relaxed()
  const { client } = cluster.node(3)
  const past = () => client.pastLossCount(RELAXED_VOLUME)
  await allDown(cluster, true)
  const { losses } = cluster
  assert.ok(losses > 0)
  assert.deepEqual([client.lossCount(RELAXED_VOLUME), past()], [losses, 0])
  await cluster.world.runFor(30_000)
  await allDown(cluster, true)
  assert.ok(cluster.losses > losses)
  await cluster.world.runFor(31_000)
  assert.equal(past(), 0)
  await cluster.world.runFor(30_000)
  assert.equal(past(), cluster.losses)
})

test('a slot that has been served since its host lost power has lost nothing with the next process, while another slot is waited for', {
  timeout: 60_000,
}, async () => {
  const cluster = new ChainCluster({ nodes: 3, slots: 2, chainOf: (slot) => (slot === 0 ? [1] : [1, 2]) })
  await cluster.start()
  for (const number of [1, 2]) {
    cluster.node(number).losePower()
    cluster.views[number - 1] = 0
  }
  cluster.step()
  const isServed = () => cluster.chains[0]!.entries[0]!.state === 0
  cluster.restart(1)
  await cluster.until('the slot without another copy is served', isServed)
  assert.equal(cluster.losses, 1)
  await cluster.world.runFor(1500)
  await cluster.kill(1)
  assert.equal(isServed(), false)
  cluster.restart(1)
  await cluster.until('it is served again', isServed)
  assert.equal(cluster.losses, 1)
  assert.equal(cluster.node(1).store.lostPower, true, 'the premise: the other slot waits')
  await cluster.kill(1, { power: true })
  cluster.restart(1)
  await cluster.until('it is served once more', isServed)
  assert.equal(cluster.losses, 2)
})

/** All nodes hear that the volumes acknowledge from memory no more. */
async function relaxedNoMore(cluster: ChainCluster): Promise<void> {
  cluster.volumes = cluster.volumes.map((volume) => ({ ...volume, syncWhenWrite: true }))
  cluster.revision = ((cluster.revision as number) + 1) as never
  for (const node of cluster.nodes) cluster.sendTable(node, [])
  await cluster.world.runFor(10)
}

test('a volume that no longer acknowledges from memory is flushed until all of its past is durable', { timeout: 60_000 }, async () => {
  const { cluster, write, flush, read, client } = await relaxed()
  assert.equal(await write(1), Status.SUCCESS)
  // node 3 hears of the change, and with it everybody; what it knew before it had written
  await relaxedNoMore(cluster)
  assert.equal(await flush(), Status.SUCCESS)
  const { flushes } = cluster.node(3).plane.counters
  assert.ok(flushes > 0, 'the replicas were asked')
  assert.equal(await flush(), Status.SUCCESS)
  assert.equal(cluster.node(3).plane.counters.flushes, flushes, 'once')
  await allDown(cluster, true)
  assert.deepEqual(await read(), pattern(1))
  // a client whose node has not heard of it still gets durable writes
  cluster.volumes = cluster.volumes.map((volume) => ({ ...volume, syncWhenWrite: false }))
  cluster.revision = ((cluster.revision as number) + 1) as never
  cluster.sendTable(cluster.node(3), [])
  await cluster.world.runFor(10)
  assert.equal(await cluster.world.settle(client.write(0, 0, pattern(2), { volume: RELAXED_VOLUME }), 5000), Status.SUCCESS)
  cluster.volumes = cluster.volumes.map((volume) => ({ ...volume, syncWhenWrite: true }))
  await allDown(cluster, true)
  assert.deepEqual(await read(), pattern(2))
})

test('a volume that acknowledges from memory again while its last flush is under way is flushed as before', { timeout: 60_000 }, async () => {
  const { cluster, client, write, flush, read } = await relaxed()
  const change = async (syncWhenWrite: boolean) => {
    cluster.volumes = cluster.volumes.map((volume) => ({ ...volume, syncWhenWrite }))
    cluster.revision = ((cluster.revision as number) + 1) as never
    for (const node of cluster.nodes) cluster.sendTable(node, [])
    await cluster.world.runFor(10)
  }
  assert.equal(await write(1), Status.SUCCESS)
  await change(true)
  // both have answered, by the table of that time, and node 3 has not heard them
  for (const number of [1, 2]) cluster.network.cut(cluster.node(number).host, cluster.node(3).host)
  const last = client.flush(RELAXED_VOLUME)
  await cluster.world.runFor(20)
  await change(false)
  cluster.network.healAll()
  assert.equal(await cluster.world.settle(last, 10_000), Status.SUCCESS)
  assert.equal(await write(2), Status.SUCCESS)
  assert.equal(await flush(), Status.SUCCESS)
  await allDown(cluster, true)
  assert.deepEqual(await read(), pattern(2))
})

test('a write that was on its way down the chain when its volume ceased to acknowledge from memory is durable when it is acknowledged', {
  timeout: 60_000,
}, async () => {
  const { cluster, client, flush, read } = await relaxed()
  // ordered, and not yet at the tail
  cluster.network.cut(cluster.node(1).host, cluster.node(2).host)
  const write = client.write(0, 0, pattern(1), { volume: RELAXED_VOLUME })
  await cluster.world.runFor(20)
  await relaxedNoMore(cluster)
  assert.equal(await flush(), Status.SUCCESS)
  const { flushes } = cluster.node(3).plane.counters
  cluster.network.healAll()
  assert.equal(await cluster.world.settle(write, 5000), Status.SUCCESS)
  assert.equal(await flush(), Status.SUCCESS)
  assert.equal(cluster.node(3).plane.counters.flushes, flushes, 'the premise: nobody is asked any more')
  await cluster.kill(1)
  cluster.node(2).losePower()
  cluster.views[1] = 0
  cluster.step()
  cluster.restart(2)
  await cluster.until('the tail serves', () => cluster.chains[0]!.entries[0]!.state === 0)
  assert.deepEqual(await read(), pattern(1))
})

/**
 * A volume of one block, whose slot node 1 serves, has grown by blocks in a slot of node 2. Nodes 2 and 3 have heard of it, node 1 has not, and node 4
 * exports the volume as it was. `write` and `read` are of one of the new blocks, by way of node 3.
 */
async function grown() {
  const slotOfFirst = slotOf(RELAXED_VOLUME, 0, 2)
  const volume = { volume: RELAXED_VOLUME, name: 'scratch', sizeBytes: BLOCK_BYTES, replicas: 1, syncWhenWrite: false, readOnly: false }
  const cluster = new ChainCluster({ nodes: 4, slots: 2, chainOf: (slot) => [slot === slotOfFirst ? 1 : 2], volumes: [volume] })
  cluster.leaseMsMax = cluster.leaseMs
  await cluster.start()
  await cluster.world.runFor(1.1 * cluster.leaseMs)
  let index = 1
  while (slotOf(RELAXED_VOLUME, index, 2) === slotOfFirst) index++
  cluster.volumes = [{ ...volume, sizeBytes: (index + 1) * BLOCK_BYTES }]
  cluster.revision = ((cluster.revision as number) + 1) as never
  for (const number of [2, 3]) cluster.sendTable(cluster.node(number), [])
  await cluster.world.runFor(10)
  const writer = new TestClient(cluster.node(3))
  const other = new TestClient(cluster.node(4))
  const write = (tag: number) => cluster.world.settle(writer.write(index, 0, pattern(tag), { volume: RELAXED_VOLUME }), 5000)
  const read = async () => (await cluster.world.settle(writer.read(index, 0, 1, RELAXED_VOLUME), 5000)).bytes
  const powerLoss = async () => {
    await cluster.kill(2, { power: true })
    cluster.restart(2)
    await cluster.until('serving', () => cluster.allServing)
  }
  return { cluster, other, write, read, powerLoss }
}

test('a flush by a node that does not know yet how large the volume is covers what was acknowledged behind the end that it knows', {
  timeout: 60_000,
}, async () => {
  const { cluster, other, write, read, powerLoss } = await grown()
  assert.equal(await write(1), Status.SUCCESS)
  assert.equal(await cluster.world.settle(other.flush(RELAXED_VOLUME), 1000), Status.SUCCESS)
  await powerLoss()
  assert.deepEqual(await read(), pattern(1))
})

test('no flush succeeds by a node that does not know, a lease later, how large the volume is', { timeout: 60_000 }, async () => {
  const { cluster, other, write, read, powerLoss } = await grown()
  await cluster.world.runFor(1.1 * cluster.leaseMs)
  assert.equal(await write(1), Status.SUCCESS)
  let status = -1
  void other.flush(RELAXED_VOLUME).then((outcome) => {
    status = outcome
  })
  await cluster.world.runFor(500)
  assert.equal(status, -1)
  for (const node of cluster.nodes) cluster.sendTable(node, [])
  assert.ok(await cluster.world.run(() => status !== -1, 5000))
  assert.equal(status, Status.SUCCESS)
  await powerLoss()
  assert.deepEqual(await read(), pattern(1))
  // and from then on it acknowledges from memory there, too
  assert.equal(await write(2), Status.SUCCESS)
  await powerLoss()
  assert.deepEqual(await read(), pattern(1))
})
