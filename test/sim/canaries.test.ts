/** Planted bugs that need a power loss at the right moment, each in a scenario made for it. The others: test/sim/ci.ts. */
import assert from 'node:assert/strict'
import test from 'node:test'
import { BLOCK_BYTES } from '../../src/base/units.ts'
import { canaryOf } from './canaries.ts'
import { Scenario } from './scenario.ts'

const SEEDS_MAX = 8

/** All power is lost while clients write and flush; how many pages have no explanation then. */
async function violations(canary: string | undefined, seed: number): Promise<number> {
  const undo = canary === undefined ? () => undefined : canaryOf(canary)!.plant()
  try {
    const t = new Scenario({ seed, nodes: 3 })
    await t.form()
    await t.healthy()
    t.load(await t.createVolume('db', { sizeBytes: 3 * BLOCK_BYTES, syncWhenWrite: false }), { on: [1, 2, 3], ops: 400, thinkMs: 4 })
    await t.seconds(1)
    t.history.allPowerLost(t.world.nowMs)
    for (const node of t.nodes) node.crash({ losing: 'everything unflushed' })
    await t.seconds(1)
    for (const node of t.nodes) node.restart()
    await t.clientsDone()
    return t.history.check().violations.length
  } finally {
    undo()
  }
}

test('a flush that asks nobody is found out by a loss of power; without the bug all is well', { timeout: 240_000 }, async () => {
  let found = 0
  for (let seed = 1; seed <= SEEDS_MAX && found === 0; seed++) found = await violations('flush-not-sent', seed)
  assert.ok(found > 0, `not found in ${SEEDS_MAX} seeds`)
  assert.equal(await violations(undefined, 1), 0)
})
