/** A node that is removed while nobody can tell it. */
import assert from 'node:assert/strict'
import { scenario } from './scenario.ts'

scenario(
  'a node that was away while it was removed is told so when it comes back, and stays out',
  async (t, volume) => {
    t.load(volume, { on: [1, 2], ops: 100 })
    await t.seconds(1)
    t.node(4).crash({ losing: 'nothing' })
    await t.settle(t.insist('xsan.v1.Cluster/RemoveNode', { nodeId: 'node-4' }))
    await t.until('node 4 is gone from the cluster', () => t.state?.nodes.size === 3)
    await t.until('and from Raft', () =>
      t.nodes.some(
        (node) =>
          node.control?.member?.raft?.isLeader &&
          node.control.member.raft.members.learners.length === 0 &&
          node.control.member.raft.members.voters.length === 3,
      ),
    )
    t.node(4).start()
    await t.until(
      'node 4 knows',
      () => t.node(4).fatal !== undefined,
      20_000,
      () => t.node(4).control?.status.detail ?? '',
    )
    assert.match(t.node(4).fatal!.message, /removed from the cluster/)
    await t.clientsDone()
    t.assertNoErrors()
    await t.allIsWell()
    assert.equal(t.members().length, 3)
  },
  { nodes: 4 },
)

scenario(
  'the leader may be removed where two nodes stay, of which one votes',
  async (t, volume) => {
    const { leader } = t
    const others = [1, 2, 3].filter((number) => number !== leader)
    t.load(volume, { on: others, ops: 100 })
    await t.settle(t.insist('xsan.v1.Cluster/RemoveNode', { nodeId: `node-${leader}` }))
    await t.until('it is gone from the cluster', () => t.state?.nodes.size === 2, 60_000)
    await t.until('it knows', () => t.node(leader).fatal !== undefined, 20_000)
    await t.clientsDone()
    t.assertNoErrors()
    await t.allIsWell()
    assert.deepEqual(
      t.members().map((node) => node.index + 1),
      others,
    )
  },
  { replicas: 2 },
)
