/** The failure table of the design, row by row, on whole simulated clusters. */
import assert from 'node:assert/strict'
import { scenario } from './scenario.ts'

scenario('a killed process costs the others a stall well under a second and no error; back again, it catches up', async (t, volume) => {
  t.load(volume, { on: [1, 2], ops: 200 })
  await t.seconds(1)
  t.node(3).crash({ losing: 'nothing' })
  await t.seconds(1.5)
  t.node(3).restart()
  await t.clientsDone()
  t.assertNoErrors()
  assert.ok(t.longestStallMs < 500, `the longest operation took ${t.longestStallMs} ms`)
  await t.allIsWell()
})

scenario('the leader is killed: another leads within an election, data goes on', async (t, volume) => {
  const leader = t.leader
  const others = [1, 2, 3].filter((number) => number !== leader)
  t.load(volume, { on: others, ops: 300 })
  await t.seconds(1)
  t.node(leader).crash({ losing: 'nothing' })
  await t.until('another leads', () => t.leader !== 0 && t.leader !== leader, 3000)
  await t.clientsDone()
  t.assertNoErrors()
  assert.ok(t.longestStallMs < 1000, `the longest operation took ${t.longestStallMs} ms`)
  t.node(leader).restart()
  await t.allIsWell()
})

scenario('a host without power costs one lease, and loses nothing that was acknowledged', async (t, volume) => {
  t.load(volume, { on: [1, 2], ops: 400 })
  await t.seconds(1)
  t.node(3).host.losePower('random')
  await t.seconds(6)
  t.node(3).restart()
  await t.clientsDone()
  t.assertNoErrors()
  assert.ok(t.longestStallMs < 5000, `the longest operation took ${t.longestStallMs} ms`)
  await t.allIsWell()
})

scenario('a node that is cut off serves nothing stale; the majority stalls for one lease', async (t, volume) => {
  t.load(volume, { on: [1, 2], ops: 500 })
  t.load(volume, { on: [3], ops: 300, readShare: 1 })
  await t.seconds(1)
  t.node(3).isolate()
  await t.seconds(8)
  t.node(3).rejoin()
  await t.clientsDone()
  await t.allIsWell()
})

scenario('a frozen process is replaced, and says nothing stale when it goes on', async (t, volume) => {
  t.load(volume, { on: [1, 2, 3], ops: 400, readShare: 0.7 })
  await t.seconds(1)
  t.node(2).freeze()
  await t.seconds(5)
  t.node(2).thaw()
  await t.clientsDone()
  await t.allIsWell()
})

scenario('without a quorum service pauses, and goes on when one node returns', async (t, volume) => {
  t.load(volume, { on: [1], ops: 600 })
  await t.seconds(1)
  t.node(2).crash({ losing: 'nothing' })
  t.node(3).crash({ losing: 'nothing' })
  await t.seconds(5)
  const before = t.history.okCount
  await t.seconds(3)
  assert.ok(t.history.okCount - before <= 1, 'nothing is served without a lease')
  t.node(3).restart()
  await t.until('service again', () => t.history.okCount > before + 20, 10_000)
  t.node(2).restart()
  await t.clientsDone()
  await t.allIsWell()
})

scenario('all power is lost: everything acknowledged is there when it returns', async (t, volume) => {
  t.load(volume, { on: [1, 2, 3], ops: 500 })
  await t.seconds(2)
  t.history.allPowerLost(t.world.nowMs)
  for (const node of t.nodes) node.crash({ losing: 'unflushed' })
  await t.seconds(2)
  for (const node of t.nodes) node.restart()
  await t.clientsDone()
  await t.allIsWell()
})

scenario(
  'all power is lost with sync_when_write off: everything flushed is there',
  async (t, volume) => {
    t.load(volume, { on: [1, 2, 3], ops: 500 })
    await t.seconds(2)
    t.history.allPowerLost(t.world.nowMs)
    for (const node of t.nodes) node.crash({ losing: 'everything unflushed' })
    await t.seconds(2)
    for (const node of t.nodes) node.restart()
    await t.clientsDone()
    await t.allIsWell()
  },
  { syncWhenWrite: false },
)

scenario('each node is killed in turn while another comes back: no error, replicas equal', async (t, volume) => {
  t.load(volume, { on: [1, 2, 3], ops: 500 })
  for (const number of [1, 2, 3]) {
    t.node(number).crash({ losing: 'nothing' })
    await t.seconds(1)
    t.node(number).restart()
    await t.healthy()
  }
  await t.clientsDone()
  t.assertNoErrors()
  await t.allIsWell()
})

scenario('bits rot on one node: nobody notices', async (t, volume) => {
  t.load(volume, { on: [1, 2, 3], ops: 800, thinkMs: 5 })
  for (let i = 0; i < 20; i++) {
    await t.seconds(0.2)
    t.node(2).rot(3)
  }
  await t.clientsDone()
  t.assertNoErrors()
  await t.healthy()
})

scenario('a disk that fails leaves its chains; nobody notices', async (t, volume) => {
  t.load(volume, { on: [1, 2, 3], ops: 400 })
  await t.seconds(1)
  t.node(3).disk.gone = true
  await t.clientsDone()
  t.assertNoErrors()
  const { state } = t
  assert.ok(state?.chains.every((chain) => chain.entries.filter((entry) => entry.state === 0).length === 2))
  assert.deepEqual(t.history.check().violations, [])
})

scenario('a disk that hangs leaves its chains after two seconds', async (t, volume) => {
  t.load(volume, { on: [1, 2], ops: 400 })
  await t.seconds(1)
  t.node(3).disk.hang()
  await t.clientsDone()
  t.assertNoErrors()
  assert.ok(t.longestStallMs < 5000, `the longest operation took ${t.longestStallMs} ms`)
  assert.deepEqual(t.history.check().violations, [])
})
