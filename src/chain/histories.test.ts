import assert from 'node:assert/strict'
import test from 'node:test'
import { ChainCluster, pattern, TestClient } from '../../test/support/chain-cluster.ts'
import { Status } from '../base/status.ts'

/** One slot, chain 1 -> 2 -> 3; node 3 hangs, so that what is written stays uncommitted on node 2. */
async function uncommitted() {
  const cluster = new ChainCluster({ nodes: 3, slots: 1, chainOf: () => [1, 2, 3] })
  await cluster.start()
  const client = new TestClient(cluster.node(1))
  assert.equal(await cluster.world.settle(client.write(0, 0, pattern(1)), 5000), Status.SUCCESS)
  await cluster.until('quiet', () => cluster.quiet)
  return { cluster, client }
}

/** A new session between nodes 1 and 2: node 1 forwards again what is uncommitted. */
function breakSession(cluster: ChainCluster): void {
  cluster.node(2).plane.peers.peerDown(1, cluster.node(1).incarnation)
}

test('a different record at a sequence number that is not committed ends the process: two histories of one log', { timeout: 60_000 }, async () => {
  const { cluster, client } = await uncommitted()
  cluster.node(3).process.freeze()
  void client.write(0, 4096, pattern(2))
  void client.write(0, 8192, pattern(3))
  await cluster.world.runFor(20)
  const { replicas } = cluster.node(2).plane
  const row = replicas.firstRecord(0)
  assert.equal(replicas.records.sv[row], 2)
  replicas.records.idHigh[row] = replicas.records.idHigh[row]! + 256
  breakSession(cluster)
  await assert.rejects(async () => cluster.world.runFor(1000), /slot 0: two histories, record 2/)
})

test('a forward that contradicts what is committed here is refused: it is the peer that is wrong', { timeout: 60_000 }, async () => {
  const { cluster, client } = await uncommitted()
  // node 2 has committed the record, the word of it does not reach node 1
  cluster.network.cut(cluster.node(2).host, cluster.node(1).host)
  const write = client.write(0, 4096, pattern(2))
  await cluster.world.runFor(20)
  assert.equal(cluster.node(2).plane.replicas.committed[0], 2)
  const head = cluster.node(1).plane.replicas
  const row = head.firstRecord(0)
  head.records.idHigh[row] = head.records.idHigh[row]! ^ 0x100
  head.records.prevHigh[row] = 0
  cluster.network.healAll()
  breakSession(cluster)
  await cluster.world.runFor(1000)
  assert.ok(cluster.node(2).plane.counters.forwardsRefused > 0)
  assert.ok(cluster.node(2).told.some((message) => message.type === 'log' && message.level === 'ERROR' && /two histories/.test(message.message)))
  assert.equal(client.pending, 1, 'never acknowledged')
  void write
})

test('a forward from a node that is not the predecessor is refused', { timeout: 60_000 }, async () => {
  const { cluster, client } = await uncommitted()
  // node 1 believes that node 3 comes next, in the version that all know
  const { table } = cluster.node(1).plane
  const { replicas } = cluster.node(3).plane
  table.successorNode[0] = 3
  table.successorDisk[0] = 3
  const write = client.write(0, 4096, pattern(2))
  await cluster.world.runFor(1000)
  assert.equal(replicas.lastSv(0), 1)
  assert.equal(client.pending, 1)
  assert.ok(cluster.node(3).plane.counters.forwardsRefused > 0)
  void write
})
