/**
 * Runs what a pool (pool.ts) asks for, in a process of its own: one JSON line in, one JSON line out. Ends with its input.
 * What comes back depends on the task alone, never on time, load or the other workers.
 */
import { createInterface } from 'node:readline'
import { canaryOf } from './canaries.ts'
import { type Coverage, startCoverage, takeCoverage } from './coverage.ts'
import type { Task, TaskResult } from './pool.ts'
import { type RunResult, runSchedule, scheduleFor } from './run.ts'

/** Without call stacks, which cost a tenth of the time; a run that fails is made again with them. */
async function run(task: Task, seed: Task['seed']): Promise<RunResult> {
  const schedule = scheduleFor(seed, task.plan)
  const result = await runSchedule(schedule, { stacks: false })
  return result.violations.length > 0 && task.untilFound === undefined ? await runSchedule(schedule) : result
}

/** Counted once per task, however often it runs. */
function effectsOf({ effects }: RunResult): Coverage {
  return Object.fromEntries(effects.map((effect) => [`fault ${effect}`, 1]))
}

async function perform(task: Task): Promise<TaskResult> {
  const undo = task.canary === undefined ? undefined : canaryOf(task.canary)!.plant()
  try {
    let result = await run(task, task.seed)
    let runs = 1
    let { events, virtualSeconds } = result
    const more = (next: RunResult) => {
      runs++
      events += next.events
      virtualSeconds += next.virtualSeconds
    }
    const violations = [...result.violations]
    if (task.twice) {
      const again = await run(task, task.seed)
      more(again)
      if (again.hash !== result.hash) violations.push({ promise: 'the same seed gives the same trace', detail: `${result.hash}, then ${again.hash}` })
    }
    for (let seed = Number(task.seed) + 1; result.violations.length === 0 && seed <= (task.untilFound ?? 0); seed++) {
      result = await run(task, seed)
      more(result)
      violations.push(...result.violations)
    }
    const { seed, hash, undecided } = result
    return { seed, hash, undecided, runs, events, virtualSeconds, violations, coverage: { ...takeCoverage(), ...effectsOf(result) } }
  } finally {
    undo?.()
  }
}

// whoever started it is gone
process.stdout.on('error', () => process.exit(1))
startCoverage()
for await (const line of createInterface({ input: process.stdin })) process.stdout.write(`${JSON.stringify(await perform(JSON.parse(line) as Task))}\n`)
