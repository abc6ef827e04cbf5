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
  'the first node of a cluster, removed while it was away and did not vote any more, is told so when it comes back',
  async (t, volume) => {
    const raftOf = (number: number) => t.node(number).control?.member?.raft
    t.load(volume, { on: [2, 3], ops: 60 })
    await t.settle(t.insist('xsan.v1.Config/Set', { key: 'failover.replace_voter_after', valueJson: '700' }))
    t.node(1).crash({ losing: 'nothing' })
    await t.until('its vote is given to node 4', () => t.nodes.some((_, i) => raftOf(i + 1)?.isLeader && raftOf(i + 1)!.members.voters.join() === '2,3,4'))
    t.node(1).start()
    await t.until('it knows that it does not vote', () => raftOf(1)?.members.learners.includes(t.node(1).control!.member!.node) === true)
    await t.healthy()
    t.node(1).crash({ losing: 'nothing' })
    await t.settle(t.insist('xsan.v1.Cluster/RemoveNode', { nodeId: 'node-1' }))
    await t.until('it is gone from Raft', () => t.nodes.some((_, i) => raftOf(i + 1)?.isLeader && raftOf(i + 1)!.members.learners.length === 0))
    t.node(1).start()
    await t.until('it knows', () => t.node(1).fatal !== undefined, 20_000)
    assert.match(t.node(1).fatal!.message, /removed from the cluster/)
    await t.clientsDone()
    await t.allIsWell()
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

scenario(
  'a node that was away while another joined votes for it: it hears from the newcomer itself where to answer',
  async (t, volume) => {
    t.load(volume, { on: [1], ops: 60 })
    await t.clientsDone()
    await t.settle(t.insist('xsan.v1.Config/Set', { key: 'failover.rebuild_after', valueJson: '500' }))
    t.node(3).crash({ losing: 'nothing' })
    const newcomer = t.addNode()
    await t.settle(t.join(newcomer))
    await t.settle(t.insist('xsan.v1.Cluster/RemoveNode', { nodeId: 'node-2' }))
    await t.until('node 2 is gone', () => t.state?.nodes.size === 3 && !t.state.nodes.has(2 as never), 60_000)
    const votes = (number: number) => t.node(number).control?.member?.raft?.members.voters.includes(4 as never) === true
    await t.until('node 4 votes', () => votes(1) && votes(4))
    t.node(1).crash({ losing: 'nothing' })
    t.node(3).start()
    await t.until('node 4 leads', () => t.leader === 4, 20_000)
    t.node(1).start()
    await t.allIsWell()
    t.assertNoErrors()
  },
  { replicas: 2 },
)

scenario(
  'a node that runs, and is removed while it is cut off, is told so when it can be reached again',
  async (t, volume) => {
    await t.seconds(1)
    t.node(4).isolate()
    t.load(volume, { on: [1, 2], ops: 100 })
    await t.seconds(4)
    await t.settle(t.insist('xsan.v1.Cluster/RemoveNode', { nodeId: 'node-4' }))
    await t.until('node 4 is gone from the cluster', () => t.state?.nodes.size === 3)
    t.node(4).rejoin()
    await t.until('node 4 knows', () => t.node(4).fatal !== undefined, 20_000)
    assert.match(t.node(4).fatal!.message, /removed from the cluster/)
    await t.clientsDone()
    await t.allIsWell()
    assert.equal(t.members().length, 3)
  },
  { nodes: 4 },
)
