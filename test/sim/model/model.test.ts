/** Model and code agree: schedules of the protocol model are replayed against the real chains. See replay.ts for what that means. */
import assert from 'node:assert/strict'
import test from 'node:test'
import { canaryOf } from '../canaries.ts'
import { followsModel } from './follows.ts'
import { type Mix, printLines, printSchedules } from './model.ts'
import { Divergence, Replay } from './replay.ts'
import { parseSchedule, SCHEDULE_FORMAT } from './schedule.ts'

const EVERY_FAULT: Mix = { slots: 1, blocks: 2, kill: 2, expire: 2, leader: 1, brk: 1, cancel: 1, dup: 2, drain: 1, ops: 3, lag: 1 }

followsModel('kills and late tables, one slot', 500, { slots: 1, blocks: 2, kill: 2, ops: 3, lag: 1 })
followsModel('every fault but power losses, one slot', 500, EVERY_FAULT)

/** How many schedules it takes until the replay notices the bug. */
async function foundAfter(canary: string, mix: Mix, count: number): Promise<{ schedules: number; message: string }> {
  const schedules = printSchedules({ ...mix, seed: 1, count })
  const undo = canaryOf(canary)!.plant()
  try {
    for (const [i, schedule] of schedules.entries()) {
      try {
        await new Replay(schedule).run()
      } catch (error) {
        assert.ok(error instanceof Divergence)
        return { schedules: i + 1, message: error.message }
      }
    }
  } finally {
    undo()
  }
  return { schedules: 0, message: 'not found' }
}

for (const canary of ['no-reforward', 'dedupe-off', 'up-to-date-too-early']) {
  test(`a planted bug is noticed by the replay: ${canary}`, { timeout: 300_000 }, async (t) => {
    const { schedules, message } = await foundAfter(canary, EVERY_FAULT, 20)
    assert.ok(schedules > 0, message)
    t.diagnostic(`after ${schedules} schedules: ${message.slice(0, 200)}`)
  })
}

test('the same schedule comes from the same seed, and one of another format is refused by name', () => {
  const mix = { slots: 1, kill: 1, ops: 2, seed: 5, count: 2 }
  assert.deepEqual(printLines(mix), printLines(mix))
  const [line = ''] = printLines(mix)
  assert.throws(() => parseSchedule(line.replace(SCHEDULE_FORMAT, 'xsan-schedule 2')), /"xsan-schedule 2", this replay reads "xsan-schedule 1"/)
  assert.throws(() => parseSchedule(line.slice(0, 200)), /cut short/)
})
