/**
 * Schedules that once broke a promise, as `xsan sim --shrink` saves them: test/sim/regressions/*.json. One that names a canary breaks it with
 * that bug planted, and nothing without it: so a checker or a workload that has gone blind is noticed.
 */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import test from 'node:test'
import { canaryOf } from './canaries.ts'
import { parseSchedule } from './faults.ts'
import { runSchedule } from './run.ts'

const DIRECTORY = new URL('regressions/', import.meta.url)

for (const file of readdirSync(DIRECTORY)
  .filter((name) => name.endsWith('.json'))
  .sort()) {
  test(`the schedule ${file} breaks no promise any more`, { timeout: 240_000 }, async () => {
    const schedule = parseSchedule(readFileSync(new URL(file, DIRECTORY), 'utf8'))
    assert.deepEqual((await runSchedule(schedule)).violations, [])
    if (schedule.canary === undefined) return
    const undo = canaryOf(schedule.canary)!.plant()
    try {
      assert.notDeepEqual((await runSchedule(schedule)).violations, [], `the planted bug ${schedule.canary} is not found any more`)
    } finally {
      undo()
    }
  })
}
