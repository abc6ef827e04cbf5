import assert from 'node:assert/strict'
import test from 'node:test'
import { ChainCluster, PageLoad } from '../../test/support/chain-cluster.ts'

async function loaded(options: Partial<ConstructorParameters<typeof ChainCluster>[0]> = {}) {
  const cluster = new ChainCluster({ nodes: 3, slots: 8, ...options })
  await cluster.start()
  const load = new PageLoad(cluster)
  load.run(24)
  await cluster.world.runFor(200)
  assert.ok(load.writes > 50, `${load.writes} writes`)
  return { cluster, load }
}

for (const number of [1, 2, 3]) {
  for (const power of [false, true]) {
    test(`node ${number} ${power ? 'loses power' : 'is killed'} under load: a short stall, no error; back it resyncs, and all are equal`, async () => {
      const { cluster, load } = await loaded({ seed: number * 10 + Number(power) })
      await cluster.kill(number, { power })
      await cluster.world.runFor(1000)
      const before = load.writes
      await cluster.world.runFor(200)
      assert.ok(load.writes > before + 30, `writes go on: ${load.writes - before}`)
      cluster.restart(number)
      await cluster.until('resynced', () => cluster.allServing, 20_000)
      await cluster.world.runFor(300)
      await load.stop()
      assert.equal(load.failures, 0)
      assert.ok(load.longestMs < 500, `longest stall ${load.longestMs} ms`)
      await cluster.world.settle(load.verify(), 10_000)
      await cluster.until('quiet', () => cluster.quiet)
      cluster.assertEqual()
      for (const node of cluster.nodes) assert.equal(node.store.captures, 0)
    })
  }
}

test('a loss of power is of no matter any more when everything on the disk has been served or resynced, and not before', async () => {
  const { cluster, load } = await loaded({ seed: 71 })
  await load.stop()
  for (const number of [1, 2, 3]) cluster.node(number).losePower()
  for (const number of [1, 2, 3]) cluster.fence(cluster.node(number))
  const lost = () => cluster.nodes.map((node) => node.store.lostPower)
  cluster.restart(1)
  await cluster.world.runFor(1500)
  assert.equal(cluster.node(1).store.lostPower, true, 'it waits for the others')
  // a process that is killed before it could serve leaves it at that
  await cluster.kill(1)
  for (const number of [1, 2, 3]) cluster.restart(number)
  assert.deepEqual(lost(), [true, true, true])
  await cluster.until('all serve', () => cluster.allServing, 20_000)
  await cluster.world.runFor(1500)
  assert.deepEqual(lost(), [false, false, false])
})
