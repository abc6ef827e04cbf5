/** Model and code agree: schedules of the protocol model are replayed against the real chains. See replay.ts for what that means. */
import assert from 'node:assert/strict'
import test from 'node:test'
import { canaryOf } from '../canaries.ts'
import { type Mix, printLines, printSchedules } from './model.ts'
import { Divergence, Replay, type ReplayCounts } from './replay.ts'
import { parseSchedule, SCHEDULE_FORMAT } from './schedule.ts'

/** Share of the schedules that is replayed: 1 in CI, more by hand. */
const SCALE = Number(process.env['XSAN_MODEL_SCALE'] ?? 1)

const MIXES: ReadonlyArray<{ readonly title: string; readonly count: number; readonly mix: Mix }> = [
  { title: 'kills and late tables, one slot', count: 60, mix: { slots: 1, blocks: 2, kill: 2, ops: 3, lag: 1 } },
  {
    title: 'every fault but power losses, one slot',
    count: 60,
    mix: { slots: 1, blocks: 2, kill: 2, expire: 2, leader: 1, brk: 1, cancel: 1, dup: 2, drain: 1, ops: 3, lag: 1 },
  },
  { title: 'joining members', count: 30, mix: { slots: 1, mx: 2, blocks: 2, kill: 1, expire: 2, brk: 1, cancel: 1, dup: 1, drain: 1, ops: 3, lag: 1 } },
  {
    title: 'two slots that share their disks',
    count: 30,
    mix: { slots: 2, mx: 2, blocks: 2, kill: 2, expire: 1, leader: 1, brk: 1, cancel: 1, dup: 1, drain: 1, ops: 3, lag: 1 },
  },
  {
    title: 'power losses, one slot',
    count: 60,
    mix: { slots: 1, mx: 2, blocks: 2, power: 2, kill: 1, expire: 1, leader: 1, brk: 1, cancel: 1, dup: 1, drain: 1, ops: 3, lag: 1 },
  },
  {
    title: 'power losses, two slots',
    count: 30,
    mix: { slots: 2, mx: 2, my: 2, blocks: 2, power: 2, kill: 1, expire: 1, brk: 1, cancel: 1, dup: 1, drain: 1, ops: 3, lag: 1 },
  },
]

async function replayAll(mix: Mix, count: number): Promise<ReplayCounts> {
  const total: ReplayCounts = { steps: 0, chainSteps: 0, chainStepsSettled: 0, acknowledged: 0, resyncs: 0 }
  for (const schedule of printSchedules({ ...mix, seed: 1, count })) {
    const counts = await new Replay(schedule).run()
    for (const key of Object.keys(total) as Array<keyof ReplayCounts>) total[key] += counts[key]
  }
  return total
}

for (const { title, count, mix } of MIXES) {
  test(`the code follows the model step by step: ${title}`, { timeout: 600_000 }, async (t) => {
    const counts = await replayAll(mix, count * SCALE)
    t.diagnostic(`${count * SCALE} schedules, ${JSON.stringify(counts)}`)
    assert.ok(counts.acknowledged > (count * SCALE) / 2 && counts.resyncs > (count * SCALE) / 4 && counts.chainStepsSettled > count * SCALE)
  })
}

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
    const { schedules, message } = await foundAfter(canary, MIXES[1]!.mix, 20)
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
