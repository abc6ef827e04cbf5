/**
 * The traces that broke earlier drafts of the protocol (its last section), as scenarios: the faults are aimed at the moment of the trace, clients
 * work all the time, and what they saw must have an explanation. Traces that need one message to be held back between two others (a grant used
 * before its table, channel rows of other slots) are schedules of the model, replayed in test/sim/model; a grant between proposal and apply of a drop is
 * asked for in src/control/leader.test.ts, flush answers of different tables in src/chain/flush.test.ts.
 */
import assert from 'node:assert/strict'
import { ReplicaState } from '../../src/placement/chain.ts'
import { type Scenario, scenario } from './scenario.ts'

/** Numbers (from 1) of the nodes with an entry of that state in any chain. */
function nodesThatAre(t: Scenario, state: ReplicaState): number[] {
  const found = new Set<number>()
  for (const { entries } of t.state?.chains ?? []) {
    for (const entry of entries) {
      if (entry.state === state) found.add(t.nodes.findIndex((node) => node.control?.member?.node === entry.node) + 1)
    }
  }
  return [...found].filter((number) => number > 0)
}

/** Node `number` is down for a while, in which enough is written that its resync takes a moment; returns when it is SYNCING. */
async function returns(t: Scenario, number: number, awayMs = 1000): Promise<void> {
  t.node(number).crash({ losing: 'nothing' })
  await t.seconds(awayMs / 1000)
  // Its resync is not over at once
  t.node(number).disk.faults.slow = 0.5
  t.node(number).disk.faults.slowMs = 40
  t.node(number).restart()
  await t.until('it is SYNCING', () => nodesThatAre(t, ReplicaState.SYNCING).includes(number))
}

function wellAgain(t: Scenario): void {
  for (const { disk } of t.nodes) Object.assign(disk.faults, { slow: 0.005, slowMs: 10, readMs: 0 })
}

for (const syncWhenWrite of [true, false]) {
  const relaxed = syncWhenWrite ? '' : ' (sync_when_write off)'

  scenario(
    `a SYNCING member that outlives its sources does not serve, and its report of then is worth nothing${relaxed}`,
    async (t, volume) => {
      t.load(volume, { on: [1, 2, 3], ops: 600 })
      await t.seconds(0.5)
      await returns(t, 3)
      t.node(1).crash({ losing: 'nothing' })
      t.node(2).crash({ losing: 'nothing' })
      await t.seconds(2.5)
      const served = t.history.okCount
      await t.seconds(1)
      assert.equal(t.history.okCount, served, 'alone it serves nothing')
      t.node(1).restart()
      await t.seconds(1)
      t.node(2).restart()
      wellAgain(t)
      await t.clientsDone()
      await t.allIsWell()
    },
    { syncWhenWrite },
  )

  scenario(
    `all power goes in the middle of a resync: the SYNCING member has acknowledged only what it keeps, flushes have asked it, too${relaxed}`,
    async (t, volume) => {
      t.load(volume, { on: [1, 2], ops: 900, readShare: 0.3 })
      for (let i = 0; i < 3; i++) {
        await returns(t, 3, 400)
        await t.seconds(0.01 * i)
        t.history.allPowerLost(t.world.nowMs)
        for (const node of t.nodes) node.crash({ losing: i === 1 ? 'everything unflushed' : 'unflushed' })
        await t.seconds(0.5)
        for (const node of t.nodes) node.restart()
        wellAgain(t)
        await t.healthy()
      }
      await t.clientsDone()
      await t.allIsWell()
    },
    { syncWhenWrite },
  )

  scenario(
    `snapshots from one member, forwards from another: the source of a resync dies, and dies again${relaxed}`,
    async (t, volume) => {
      t.load(volume, { on: [1, 2, 3], ops: 800, readShare: 0.3 })
      await t.seconds(0.5)
      for (const source of [2, 1]) {
        await returns(t, 3, 300)
        t.node(source).crash({ losing: 'nothing' })
        await t.seconds(0.3)
        t.node(source).restart()
        wellAgain(t)
        await t.healthy(150_000)
      }
      await t.clientsDone()
      await t.allIsWell()
    },
    { syncWhenWrite },
  )
}

scenario('a drop in favour of a survivor that is already dead: both go within the same moment, in either order', async (t, volume) => {
  t.load(volume, { on: [1], ops: 500 })
  for (const [first, second] of [
    [2, 3],
    [3, 2],
  ] as const) {
    await t.seconds(0.5)
    t.node(first).crash({ losing: 'nothing' })
    await t.seconds(0.02)
    t.node(second).crash({ losing: 'nothing' })
    await t.seconds(1)
    t.node(first).restart()
    t.node(second).restart()
    await t.healthy(150_000)
  }
  await t.clientsDone()
  await t.allIsWell()
})

scenario('a head whose lease ended answers late, after the others have gone on without it', async (t, volume) => {
  t.load(volume, { on: [1, 2, 3], ops: 600 })
  for (const number of [1, 2]) {
    await t.seconds(0.5)
    // Its disk is slow, so that writes and reads are under way in the very moment
    Object.assign(t.node(number).disk.faults, { slow: 0.8, slowMs: 200 })
    await t.seconds(0.2)
    t.node(number).freeze()
    await t.seconds(4)
    t.node(number).thaw()
    wellAgain(t)
    await t.healthy(150_000)
  }
  await t.clientsDone()
  await t.allIsWell()
})

scenario('a read begun while its node is dropped is not answered after the node has come back', async (t, volume) => {
  t.load(volume, { on: [1, 2], ops: 700, readShare: 0.2 })
  t.load(volume, { on: [3], ops: 400, readShare: 1, depth: 16, thinkMs: 150 })
  await t.seconds(0.5)
  // Less than what makes a disk count as dead
  t.node(3).disk.faults.readMs = 1100
  t.node(3).isolate()
  const number = t.node(3).control!.member!.node
  await t.until('it is dropped', () => t.state!.chains.every(({ entries }) => entries.every((of) => of.node !== number || of.state !== ReplicaState.SERVING)))
  t.node(3).rejoin()
  const { table } = t.node(3).plane!
  const { reads } = t.node(3).plane!.reads
  const spans = () =>
    reads.slot.some((slot, row) => reads.isUsed(row) && reads.chainVersion[row]! < table.version[slot]! && table.ownState[slot] === ReplicaState.SERVING)
  await t.until('it serves again what it read before', spans, 3000)
  await t.seconds(2)
  wellAgain(t)
  await t.clientsDone()
  await t.allIsWell()
})

scenario('reports of earlier sessions: a member that is SYNCING again and again is up to date only at the last time', async (t, volume) => {
  t.load(volume, { on: [1, 2], ops: 900, readShare: 0.2 })
  for (let i = 0; i < 4; i++) {
    await returns(t, 3, 100)
    await t.seconds(0.005 + 0.01 * i)
  }
  wellAgain(t)
  await t.clientsDone()
  t.assertNoErrors()
  await t.healthy(150_000)
  await t.allIsWell()
})

scenario('a tail that diverged is brought back to what the others hold: pages that differ, not pages that are newer', async (t, volume) => {
  t.load(volume, { on: [1, 2, 3], ops: 800, readShare: 0.3, depth: 6 })
  for (let i = 0; i < 3; i++) {
    await t.seconds(0.4)
    const head = t.nodes.findIndex((node) => node.control?.member?.node === t.state!.chains[0]!.entries[0]!.node) + 1
    // It orders and stages what nobody else hears of
    for (const other of t.nodes) if (other.index !== head - 1) t.network.cut(t.node(head).host, other.host)
    await t.seconds(0.05)
    t.node(head).crash({ losing: 'nothing' })
    t.network.healAll()
    await t.seconds(1)
    t.node(head).restart()
    await t.healthy(150_000)
  }
  await t.clientsDone()
  await t.allIsWell()
})

scenario('a head killed and back within its lease is not the head it was', async (t, volume) => {
  await t.settle(t.insist('xsan.v1.Config/Set', { key: 'failover.trust_refused', valueJson: 'false' }))
  t.load(volume, { on: [1, 2, 3], ops: 600 })
  for (const number of [1, 2, 3]) {
    await t.seconds(0.4)
    t.node(number).crash({ losing: 'nothing' })
    await t.seconds(0.03)
    t.node(number).restart()
    await t.healthy(150_000)
  }
  await t.clientsDone()
  await t.allIsWell()
})

scenario(
  'a cancel that only the head knows of confirms nothing: clients leave in the middle of their writes while heads die',
  async (t, volume) => {
    t.load(volume, { on: [1, 2, 3], ops: 900, readShare: 0.3, depth: 4, nbd: true })
    for (let i = 0; i < 6; i++) {
      await t.seconds(0.3)
      const head = t.nodes.findIndex((node) => node.control?.member?.node === t.state!.chains[i]!.entries[0]!.node) + 1
      for (const initiator of t.initiators) initiator.close()
      await t.seconds(0.002 * i)
      t.node(head).crash({ losing: 'nothing' })
      await t.seconds(0.5)
      t.node(head).restart()
      await t.healthy(200_000)
    }
    await t.clientsDone()
    await t.allIsWell()
  },
  { nbd: true, writeLifeMs: 500 },
)

scenario('a member that drains keeps its place and its term of service: kills while a node is removed', async (t, volume) => {
  t.load(volume, { on: [1, 2], ops: 900 })
  const added = t.addNode()
  await t.settle(t.join(added), 60_000)
  t.operate('remove', () => t.insist('xsan.v1.Cluster/RemoveNode', { nodeId: 'node-3' }))
  for (let i = 0; i < 2; i++) {
    await t.until('it drains', () => nodesThatAre(t, ReplicaState.DRAINING).includes(3) || t.state?.nodeById('node-3') === undefined, 60_000)
    const victim = i === 0 ? added : t.node(3)
    if (victim.removed || !victim.running) continue
    victim.crash({ losing: 'nothing' })
    await t.seconds(0.3)
    victim.restart()
  }
  await t.until('node-3 is gone', () => t.state?.nodeById('node-3') === undefined, 200_000)
  await t.clientsDone()
  await t.healthy(150_000)
  await t.allIsWell()
})
