import assert from 'node:assert/strict'
import test from 'node:test'
import { ChainCluster, PageLoad } from '../../test/support/chain-cluster.ts'
import { View } from '../placement/view.ts'

/** A kill or a power loss, a freeze past the lease, a broken session, a drain, one after the other, under load. */
async function torture(seed: number, rounds: number, lagMs = 0) {
  const cluster = new ChainCluster({ nodes: 4, slots: 8, seed, chainOf: (slot) => [0, 1, 2].map((i) => ((slot + i) % 4) + 1) })
  await cluster.start()
  cluster.lagMs = lagMs
  const load = new PageLoad(cluster)
  load.run(16)
  await cluster.world.runFor(100)
  const random = cluster.world.random('torture')
  for (let round = 0; round < rounds; round++) {
    const number = random.between(1, 4)
    const node = cluster.node(number)
    switch (random.below(6)) {
      case 0:
        await cluster.kill(number, { keep: random.below(3), proofMs: random.between(1, 300) })
        await cluster.world.runFor(random.between(1, 400))
        cluster.restart(number)
        break
      case 1:
        await cluster.kill(number, { power: true, keep: random.below(3), proofMs: random.between(1, 300) })
        await cluster.world.runFor(random.between(1, 400))
        cluster.restart(number)
        break
      case 2: {
        // frozen past its lease: dropped, and back as the same process
        node.process.freeze()
        await cluster.world.runFor(cluster.leaseMs + cluster.lagMs + 50)
        cluster.fence(node)
        await cluster.world.runFor(random.between(1, 300))
        node.process.thaw()
        await cluster.world.runFor(random.between(1, 50))
        cluster.views[number - 1] = View.UP
        cluster.sendTable(node)
        cluster.step()
        cluster.grant(node)
        break
      }
      case 3: {
        // all connections of a node break, nobody is dropped
        for (const other of cluster.nodes) if (other !== node && other.up) other.plane.peers.peerDown(node.number, node.incarnation)
        break
      }
      case 5: {
        // cut off from all others, in one direction or both, until its lease is over
        const others = cluster.nodes.filter((other) => other !== node)
        const way = random.below(3)
        for (const other of others) {
          if (way !== 0) cluster.network.cut(node.host, other.host)
          if (way !== 1) cluster.network.cut(other.host, node.host)
        }
        cluster.cutOff.add(number)
        await cluster.world.runFor(cluster.leaseMs + cluster.lagMs + 50)
        cluster.fence(node)
        await cluster.world.runFor(random.between(1, 300))
        cluster.network.healAll()
        cluster.cutOff.delete(number)
        await cluster.world.runFor(random.between(1, 50))
        cluster.views[number - 1] = View.UP
        cluster.sendTable(node)
        cluster.step()
        cluster.grant(node)
        break
      }
      case 4: {
        const slot = random.below(8)
        const serving = cluster.chains[slot]!.entries.filter((entry) => entry.state === 0)
        const entry = random.pick(serving)
        if (serving.length < 2) break
        cluster.step({ drain: entry.disk }, [slot])
        await cluster.world.runFor(random.between(2, 30))
        const { version } = cluster.chains[slot]!
        cluster.step({ drained: { disk: entry.disk, version, incarnation: entry.incarnation } }, [slot])
        break
      }
    }
    await cluster.world.runFor(random.between(1, 200))
    if (random.chance(0.5)) await cluster.until(`resynced after round ${round}`, () => cluster.allServing, 20_000)
  }
  await cluster.until('resynced', () => cluster.allServing, 20_000)
  await cluster.world.runFor(200)
  await load.stop()
  assert.equal(load.failures, 0)
  await cluster.world.settle(load.verify(), 20_000)
  await cluster.until('quiet', () => cluster.quiet)
  cluster.assertEqual()
  return { hash: cluster.world.hash, load }
}

for (let seed = 1; seed <= Number(process.env.XSAN_CHAIN_SEEDS ?? 4); seed++) {
  test(`seed ${seed}: kills, power losses, freezes, broken connections and drains under load lose nothing`, { timeout: 120_000 }, async () => {
    const { load } = await torture(seed, Number(process.env.XSAN_CHAIN_ROUNDS ?? 8))
    assert.ok(load.writes > 100)
  })
}

for (let seed = 101; seed <= 100 + Number(process.env.XSAN_CHAIN_SEEDS ?? 2); seed++) {
  test(`seed ${seed}: the same, while every node learns tables late`, { timeout: 120_000 }, async () => {
    await torture(seed, Number(process.env.XSAN_CHAIN_ROUNDS ?? 6), 30)
  })
}

test('the same seed gives the same history', { timeout: 120_000 }, async () => {
  assert.equal((await torture(1, 3)).hash, (await torture(1, 3)).hash)
})
