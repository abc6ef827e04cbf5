/**
 * The simulator's share of CI: a stated number of seeds of each profile, each run twice (same seed, same trace), and all canaries, each to
 * its end. Nothing depends on time: a canary that is not found within its seeds is a failure, however fast or slow the machine.
 *
 *   node test/sim/ci.ts [--seeds N] [--jobs J]
 *
 * Exits 0 only if no seed breaks a promise, every history is decided, every hash is the same twice, every canary is found, and every row of the chain
 * table and every answer was reached (those that seeds cannot reach are named with the reason, and asked for in coverage.test.ts).
 */
import { parseArgs } from 'node:util'
import { CANARIES, type Canary } from './canaries.ts'
import { addCoverage, coverageGaps, coverageText, NOT_BY_SEEDS } from './coverage.ts'
import { FOCUS_NAMES, PROFILES } from './faults.ts'
import { runTasks, type Task } from './pool.ts'
import { planText } from './run.ts'

const { values } = parseArgs({ options: { seeds: { type: 'string', default: '16' }, jobs: { type: 'string', default: '2' } } })
const seedsPerProfile = Number(values.seeds)
/** Aimed runs are many, and what they aim at comes in most of them. */
const seedsPerFocus = Math.ceil(seedsPerProfile * 0.375)
const say = (line: string) => void process.stdout.write(`${line}\n`)

/** With fewer, something rare may not come. */
const SEEDS_FOR_COVERAGE = 16

interface CiTask extends Task {
  readonly planted?: Canary
}

function* tasks(): Generator<CiTask> {
  // The longest first, so that both processes end together
  for (const planted of CANARIES) yield { seed: 1, plan: planted.plan, canary: planted.name, untilFound: planted.seedsMax, planted }
  for (const profile of PROFILES) for (let seed = 1; seed <= seedsPerProfile; seed++) yield { seed, plan: { profile }, twice: true }
  for (const focus of FOCUS_NAMES) for (let seed = 1; seed <= seedsPerFocus; seed++) yield { seed, plan: { focus }, twice: true }
}

let failed = 0
let runs = 0
let virtualSeconds = 0
let events = 0
let found = 0
const reached = new Map<string, number>()
const began = process.hrtime.bigint()
await runTasks(tasks(), Number(values.jobs), (task, result) => {
  runs += result.runs
  events += result.events
  virtualSeconds += result.virtualSeconds
  const { planted } = task
  if (planted) {
    if (result.violations.length > 0) {
      found++
      say(`canary ${planted.name}: found by seed ${result.seed}`)
    } else {
      failed++
      say(`canary ${planted.name}: NOT FOUND in ${planted.seedsMax} seeds of ${planText(planted.plan)} (${planted.bug})`)
    }
    return
  }
  addCoverage(reached, result.coverage)
  const violations = [...result.violations]
  if (result.undecided > 0) violations.push({ promise: 'every history is decided', detail: `${result.undecided} pages were too much work` })
  if (violations.length === 0) return
  failed++
  for (const { promise, detail } of violations) say(`${planText(task.plan)} seed ${task.seed}: ${promise}: ${detail}`)
  say(`replay: npx xsan sim --seed ${task.seed} ${planText(task.plan)} --check-determinism`)
})
const seconds = Number(process.hrtime.bigint() - began) / 1e9
say(
  `${seedsPerProfile} seeds of each of ${PROFILES.length} profiles and ${seedsPerFocus} of each of ${FOCUS_NAMES.length} aims, each twice; ${found} of ${CANARIES.length} canaries found; ${failed} failed; ` +
    `${runs} runs in ${Math.round(seconds)} s: ${Math.round(virtualSeconds / seconds)} simulated seconds and ${Math.round(events / seconds)} events per second`,
)
for (const line of coverageText(reached)) say(line)
for (const [what, why] of Object.entries(NOT_BY_SEEDS)) say(`out of reach of seeds: ${what}: ${why}`)
if (seedsPerProfile >= SEEDS_FOR_COVERAGE) {
  for (const gap of coverageGaps(reached)) {
    failed++
    say(`COVERAGE: ${gap}`)
  }
}
process.exitCode = failed === 0 ? 0 : 1
