import assert from 'node:assert/strict'
import test from 'node:test'
import { ChainCluster, pattern, RELAXED_VOLUME, TestClient, VOLUME } from '../../test/support/chain-cluster.ts'
import type { VolumeNumber } from '../base/ids.ts'
import { Status } from '../base/status.ts'
import { PAGE_BYTES } from '../base/units.ts'
import { slotOf } from '../placement/ring.ts'
import { View } from '../placement/view.ts'

/** Chains of nodes 1 and 2; node 3 has clients only. */
async function twoAndClient(settings: { retryTotalMs?: number } = {}) {
  const cluster = new ChainCluster({ nodes: 3, slots: 4, chainOf: () => [1, 2], plane: { settings } })
  await cluster.start()
  const client = new TestClient(cluster.node(3))
  assert.equal(await cluster.world.settle(client.write(0, 0, pattern(1)), 5000), Status.SUCCESS)
  return { cluster, client }
}

function killServers(cluster: ChainCluster): void {
  for (const number of [1, 2]) {
    cluster.node(number).kill()
    cluster.views[number - 1] = 0
  }
  cluster.step()
}

test('a retry that reaches the new head before its table does is answered from the channel row', { timeout: 60_000 }, async () => {
  const { cluster, client } = await twoAndClient()
  // the write takes effect; its answer does not arrive
  cluster.network.cut(cluster.node(1).host, cluster.node(3).host)
  const write = client.write(0, 4096, pattern(2))
  await cluster.world.runFor(20)
  assert.equal(client.pending, 1)
  killServers(cluster)
  cluster.network.healAll()
  cluster.restart(1)
  await cluster.world.runFor(20)
  // from here on node 1 hears nothing: that it serves again, the client learns first
  cluster.cutOff.add(1)
  cluster.restart(2)
  await cluster.until('a head', () => cluster.chains.every((chain) => chain.entries[0]!.state === 0))
  assert.ok(cluster.chains.every((chain) => chain.entries[0]!.node === 1))
  await cluster.world.runFor(1200)
  assert.equal(client.pending, 1)
  const told = cluster.node(1).told.filter((message) => message.type === 'needTable').length
  assert.ok(told > 0, 'the retry came before the table')
  cluster.cutOff.delete(1)
  cluster.grant(cluster.node(1))
  cluster.sendTable(cluster.node(1))
  assert.equal(await cluster.world.settle(write, 10_000), Status.SUCCESS)
  assert.equal(cluster.node(1).plane.counters.updatesCached, 1)
  assert.deepEqual((await cluster.world.settle(client.read(0, 1, 1), 5000)).bytes, pattern(2))
})

test('a flush does not succeed while the replicas that hold unflushed writes serve nobody', { timeout: 60_000 }, async () => {
  const { cluster, client } = await twoAndClient({ retryTotalMs: 1000 })
  assert.equal(await cluster.world.settle(client.write(0, 0, pattern(3), { volume: RELAXED_VOLUME }), 5000), Status.SUCCESS)
  killServers(cluster)
  assert.equal(await cluster.world.settle(client.flush(RELAXED_VOLUME), 5000), Status.VOLUME_UNAVAILABLE)
})

test('a write whose client has gone while it waited for a channel is not begun when one is free', { timeout: 60_000 }, async () => {
  const cluster = new ChainCluster({ nodes: 3, slots: 1, chainOf: () => [1, 2], plane: { settings: { writeLifeMs: 400 } } })
  await cluster.start()
  cluster.leaseMs = 60_000
  for (const node of cluster.nodes) cluster.grant(node)
  await cluster.world.runFor(5)
  const client = new TestClient(cluster.node(1))
  cluster.node(2).process.freeze()
  const writes = Array.from({ length: 260 }, (_, i) => client.write(0, (i + 1) * 4096, pattern(i)))
  const orphan = client.orphanable(0, 0, pattern(999))
  await cluster.world.runFor(20)
  orphan.orphan()
  await cluster.world.runFor(1000)
  assert.equal(client.pending, 261)
  cluster.fence(cluster.node(2))
  for (const status of await cluster.world.settle(Promise.all(writes), 10_000)) assert.equal(status, Status.SUCCESS)
  assert.equal(await cluster.world.settle(orphan.status, 5000), Status.VOLUME_UNAVAILABLE)
  const { bytes } = await cluster.world.settle(client.read(0, 0, 1), 5000)
  assert.ok(bytes.every((byte) => byte === 0))
})

test('a client that was gone before a standstill was noticed: its write is cancelled, not retried', { timeout: 60_000 }, async () => {
  const { cluster } = await twoAndClient()
  const client = new TestClient(cluster.node(3))
  cluster.leaseMs = 0
  await cluster.world.runFor(2500)
  const write = client.orphanable(0, 0, pattern(7))
  await cluster.world.runFor(20)
  const { queue } = cluster.node(3)
  write.orphan(queue.nowMs - 30_000)
  cluster.leaseMs = 2000
  for (const node of cluster.nodes) cluster.grant(node)
  assert.notEqual(await cluster.world.settle(write.status, 10_000), Status.SUCCESS)
  assert.deepEqual((await cluster.world.settle(client.read(0, 0, 1), 5000)).bytes, pattern(1))
})

test('after a standstill the sessions are new ones: nothing queued before it is sent', { timeout: 60_000 }, async () => {
  const { cluster, client } = await twoAndClient()
  const node = cluster.node(3)
  const { session } = node.plane.peers.peers[0]!
  node.process.freeze()
  await cluster.world.runFor(1000)
  node.process.thaw()
  await cluster.world.runFor(500)
  assert.equal(node.plane.peers.peers[0]!.session, session)
  node.process.freeze()
  await cluster.world.runFor(3000)
  node.process.thaw()
  await cluster.until('a new session', () => node.plane.peers.peers.every((peer) => peer.up && peer.session > session))
  assert.equal(await cluster.world.settle(client.write(0, 0, pattern(5)), 5000), Status.SUCCESS)
})

test('the first write to a new volume waits for a head that has not heard of it; one to a volume that was deleted does not', { timeout: 60_000 }, async () => {
  const cluster = new ChainCluster({ nodes: 3, slots: 1, chainOf: () => [1, 2] })
  await cluster.start()
  const client = new TestClient(cluster.node(3))
  const added = 7 as VolumeNumber
  const { volumes } = cluster
  const tell = async (number: number) => {
    cluster.sendTable(cluster.node(number), [])
    await cluster.world.runFor(5)
  }
  cluster.volumes = [...volumes, { ...volumes[0]!, volume: added, name: 'new' }]
  await tell(3)
  let status: number | undefined
  void client.write(0, 0, pattern(1), { volume: added }).then((ended) => {
    status = ended
  })
  await cluster.world.runFor(300)
  assert.equal(status, undefined)
  for (const number of [1, 2]) await tell(number)
  await cluster.until('written', () => status === Status.SUCCESS)
  cluster.volumes = volumes
  await tell(1)
  assert.equal(await cluster.world.settle(client.write(0, 0, pattern(2), { volume: added }), 1000), Status.VOLUME_NOT_FOUND)
})

test('a process that the chains do not count yet takes no forward: they name one before it, which lost its memory', { timeout: 60_000 }, async () => {
  const { cluster, client } = await twoAndClient()
  const [head, tail] = [cluster.node(1), cluster.node(2)]
  // ordered by the head, and acknowledged by nobody
  tail.process.freeze()
  const write = client.write(0, 4096, pattern(2))
  await cluster.world.runFor(20)
  tail.losePower()
  tail.start()
  cluster.registered[1] = tail.incarnation
  cluster.revision = ((cluster.revision as number) + 1) as never
  for (const node of cluster.nodes) cluster.sendTable(node)
  for (const node of cluster.nodes) cluster.grant(node)
  await cluster.world.runFor(1000)
  const { forwardsRefused, forwardsReceived } = tail.plane.counters
  assert.ok(forwardsRefused > 1 && forwardsRefused === forwardsReceived, `${forwardsRefused} of ${forwardsReceived} refused`)
  assert.deepEqual([client.pending, head.plane.replicas.records.inUse, tail.plane.replicas.records.inUse], [1, 1, 0])
  // they take note of it
  cluster.views[1] = View.DOWN
  cluster.step()
  assert.equal(await cluster.world.settle(write, 1000), Status.SUCCESS)
  cluster.views[1] = View.UP
  cluster.step()
  await cluster.until('resynced', () => cluster.allServing)
  await cluster.until('quiet', () => cluster.quiet)
  cluster.assertEqual()
  assert.deepEqual((await cluster.world.settle(new TestClient(tail).read(0, 1, 1), 5000)).bytes, pattern(2))
})

test('what a client begins when it hears of an outcome that a new table brings comes after what its slot has not committed', { timeout: 60_000 }, async () => {
  const chains = [
    [1, 2],
    [1, 2, 3],
  ]
  const cluster = new ChainCluster({ nodes: 3, slots: 2, chainOf: (slot) => chains[slot]! })
  await cluster.start()
  // node 3 has compared slot 1, in which there is nothing yet, and is as good as up to date
  await cluster.kill(3)
  cluster.acceptReports = false
  cluster.restart(3)
  const [head, returner] = [cluster.node(1), cluster.node(3)]
  await cluster.until('its resync is at its end', () => returner.plane.replicas.sessions.get(1)?.reported === true)
  const inSlot = (slot: number) => [0, 1, 2, 3, 4, 5, 6, 7].find((index) => slotOf(VOLUME, index, 2) === slot)!
  const page = head.queue.arena.alloc(3 * PAGE_BYTES)
  for (let i = 0; i < 3; i++) head.queue.arena.bytes.set(pattern(i), (page + i) * PAGE_BYTES)
  const outcomes: Array<[row: number, status: number]> = []
  const write = (slot: number, row: number) => head.client.write(VOLUME, inSlot(slot), row * PAGE_BYTES, PAGE_BYTES, page + row, 0, done, row)
  const done = (row: number, status: number) => {
    outcomes.push([row, status])
    if (row === 0) write(1, 2)
  }
  cluster.node(2).process.freeze()
  head.process.schedule(0, 'writes', () => {
    write(1, 1)
    write(0, 0)
    head.plane.settle()
  })
  await cluster.world.runFor(50)
  assert.equal(outcomes.length, 0)
  // one table: in slot 0 the head is alone, and commits; in slot 1 it has another successor
  cluster.fence(cluster.node(2))
  await cluster.until('all have ended', () => outcomes.length === 3, 1000)
  for (const [row, status] of outcomes) assert.equal(status, Status.SUCCESS, `write ${row}`)
  cluster.acceptReports = true
  for (const message of returner.told.filter(({ type }) => type === 'upToDate')) cluster.heard(returner, returner.incarnation, message)
  await cluster.until('it serves', () => returner.plane.table.isOwnMember(1))
  await cluster.until('quiet', () => cluster.quiet)
  cluster.assertEqual()
  for (const row of [1, 2]) assert.deepEqual((await cluster.world.settle(new TestClient(returner).read(inSlot(1), row, 1), 5000)).bytes, pattern(row))
  const errors = cluster.nodes.flatMap(({ told }) => told.filter((message) => message.type === 'log' && message.level === 'ERROR'))
  assert.deepEqual(errors, [])
})
