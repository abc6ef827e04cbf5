/** Bit rot on the only copy that serves, while others catch up from it: one page is repaired or lost, and the cluster heals. */
import assert from 'node:assert/strict'
import { Status } from '../../src/base/status.ts'
import { PAGE_BYTES } from '../../src/base/units.ts'
import { ReplicaState } from '../../src/placement/chain.ts'
import type { SimVolume } from './cluster.ts'
import { type Scenario, scenario } from './scenario.ts'

const ROTTEN_PAGES = 400

/**
 * Node 3 misses what clients of nodes 1 and 2 write; then node 2 goes, pages of node 1 rot, and node 3 comes back: it must learn from node 1.
 * Node 2 is back when node 3 asks if `with2`, with its disk or a new one.
 */
async function rotOnTheOnlyCopy(t: Scenario, volume: SimVolume): Promise<void> {
  t.load(volume, { on: [1, 2, 3], ops: 100 })
  await t.clientsDone()
  t.node(3).crash({ losing: 'nothing' })
  t.load(volume, { on: [1, 2], ops: 1200, readShare: 0.1, thinkMs: 4 })
  await t.clientsDone(120_000)
  t.assertNoErrors()
  t.node(2).crash({ losing: 'nothing' })
  t.node(1).rot(ROTTEN_PAGES)
  t.node(3).restart()
  await t.until(
    'node 1 serves alone',
    () => t.state?.chains.every(({ entries }) => entries.filter((entry) => entry.state === ReplicaState.SERVING).length >= 1) === true,
    30_000,
  )
}

/** Status of a read of one page through each node. */
async function statusesOf(t: Scenario, volume: SimVolume, page: number): Promise<number[]> {
  const statuses: number[] = []
  for (const node of t.nodes) {
    const seat = node.seat!
    const buffer = seat.queue.arena.alloc(PAGE_BYTES)
    let status = -1
    seat.process.schedule(0, 'read', () => {
      seat.volumes.read(volume.volume, page * PAGE_BYTES, PAGE_BYTES, buffer, (_row: number, result: number) => (status = result), 0)
      node.plane?.settle()
    })
    assert.ok(await t.world.run(() => status >= 0, 20_000), 'the read ends')
    seat.queue.arena.free(buffer as never)
    statuses.push(status)
  }
  return statuses
}

const lostOn = (t: Scenario, number: number) => t.node(number).plane!.lostPages()

for (const nbd of [false, true]) {
  scenario(
    `pages that rot on the only serving copy are lost as pages when nobody has them: all else heals${nbd ? ', and NBD clients get errors for them alone' : ''}`,
    async (t, volume) => {
      await rotOnTheOnlyCopy(t, volume)
      t.node(2).replaceDisk()
      t.node(2).restart()
      await t.healthy()
      const lost = lostOn(t, 3)
      assert.ok(lost.length > 0, 'some pages are lost')
      for (const number of [1, 2]) assert.ok(lostOn(t, number).length >= lost.length, `node ${number} names them too`)
      for (const { index, page } of lost.slice(0, 3))
        assert.deepEqual(
          await statusesOf(t, volume, index * 1024 + page),
          [1, 2, 3].map(() => Status.BLOCK_CORRUPTED),
        )
      const { reasons, health } = (await t.settle(t.node(1).call('xsan.v1.Cluster/Status', {}))) as { reasons: string[]; health: string }
      assert.equal(health, 'at-risk')
      assert.match(reasons.join(' '), /pages of 4 KiB are lost, no copy holds them: volume db at \d+/)
      const { index } = lost[0]!
      const { replicas } = (await t.settle(t.node(2).call('xsan.v1.Debug/BlockLocation', { block: `db:${index}` }))) as {
        replicas: Array<{ lostPages: number[] }>
      }
      assert.equal(replicas.length, 3)
      for (const { lostPages } of replicas) assert.ok(lostPages.includes(lost[0]!.page))
      // NBD knows but one error for it, EIO
      t.load(volume, { on: [1, 2, 3], ops: 200, nbd })
      await t.clientsDone()
      const failures = Object.keys(t.failures)
      assert.ok(failures.length > 0 && failures.every((name) => name.endsWith(nbd ? ' READ_FAILED' : ' BLOCK_CORRUPTED')), failures.join(', '))
      await t.allIsWell()
    },
    { nbd },
  )
}

scenario('pages that rot on the only serving copy come back from one that only waits', async (t, volume) => {
  await rotOnTheOnlyCopy(t, volume)
  t.node(2).restart()
  await t.healthy()
  // what was taken for lost before node 2 could be asked is found there
  await t.until('nothing is lost', () => [1, 2, 3].every((number) => lostOn(t, number).length === 0), 60_000)
  assert.ok(t.nodes.some((node) => node.plane!.counters.pagesRepaired > 0))
  t.load(volume, { on: [1, 2, 3], ops: 200 })
  await t.clientsDone()
  t.assertNoErrors()
  await t.allIsWell()
})
