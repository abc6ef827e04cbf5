/** Runs seeds in a process of its own: `worker.ts PROFILE FROM TO STEP [CANARY]`; one line of JSON per seed. */
import { canaryOf } from './canaries.ts'
import type { Profile } from './faults.ts'
import { runSchedule, scheduleOf } from './run.ts'

const [profile, from, to, step, canary] = process.argv.slice(2)
if (canary) canaryOf(canary)!.plant()
for (let seed = BigInt(from!); seed <= BigInt(to!); seed += BigInt(step!)) {
  const schedule = scheduleOf(seed <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(seed) : String(seed), profile as Profile)
  let result = await runSchedule(schedule, { stacks: false })
  if (result.violations.length > 0) result = await runSchedule(schedule)
  const { log: _log, ...rest } = result
  process.stdout.write(`${JSON.stringify(rest)}\n`)
}
