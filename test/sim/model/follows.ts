/** Tests that replay schedules of the protocol model against the real chains: shared by the test files beside. */
import assert from 'node:assert/strict'
import test from 'node:test'
import { type Mix, printSchedules } from './model.ts'
import { Replay, type ReplayCounts } from './replay.ts'

/** 1: what CI replays, 3000 schedules in one to two minutes of processor time. More by hand. */
const SCALE = Number(process.env['XSAN_MODEL_SCALE'] ?? 1)

/** `count` schedules of a mix, from seed 1, each followed to its end. */
export function followsModel(title: string, count: number, mix: Mix): void {
  test(`the code follows the model step by step: ${title}`, { timeout: 900_000 }, async (t) => {
    const schedules = printSchedules({ ...mix, seed: 1, count: Math.ceil(count * SCALE) })
    const total: ReplayCounts = { steps: 0, chainSteps: 0, chainStepsSettled: 0, acknowledged: 0, resyncs: 0 }
    for (const schedule of schedules) {
      const counts = await new Replay(schedule).run()
      for (const key of Object.keys(total) as Array<keyof ReplayCounts>) total[key] += counts[key]
    }
    t.diagnostic(`${schedules.length} schedules, ${JSON.stringify(total)}`)
    const least = schedules.length / 4
    assert.ok(total.acknowledged > least && total.resyncs > least && total.chainStepsSettled > least, 'the schedules show little')
  })
}
