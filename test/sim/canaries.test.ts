/** The list of planted bugs; that each is found is the matter of test/sim/ci.ts. */
import assert from 'node:assert/strict'
import test from 'node:test'
import { ChainTable } from '../../src/chain/table.ts'
import { CANARIES, canaryOf } from './canaries.ts'
import { runSchedule, scheduleFor } from './run.ts'

test('there are at least twenty planted bugs, each with a name of its own and a bounded search', () => {
  assert.ok(CANARIES.length >= 20)
  assert.equal(new Set(CANARIES.map(({ name }) => name)).size, CANARIES.length)
  for (const { name, seedsMax } of CANARIES) assert.ok(seedsMax > 0 && seedsMax <= 100, name)
})

test('every bug can be planted, and is gone when it is undone', () => {
  const before = Object.getOwnPropertyDescriptors(ChainTable.prototype)
  for (const { plant } of CANARIES) plant()()
  assert.deepEqual(Object.getOwnPropertyDescriptors(ChainTable.prototype), before)
})

test('a flush that asks nobody is found out by a loss of power; without the bug the same seeds break nothing', { timeout: 240_000 }, async () => {
  const canary = canaryOf('flush-not-sent')!
  const violated = async (seed: number) => (await runSchedule(scheduleFor(seed, canary.plan), { stacks: false })).violations.length > 0
  const undo = canary.plant()
  let found = 0
  try {
    for (let seed = 1; seed <= canary.seedsMax && found === 0; seed++) if (await violated(seed)) found = seed
  } finally {
    undo()
  }
  assert.ok(found > 0, `not found in ${canary.seedsMax} seeds`)
  assert.equal(await violated(found), false)
})
