/**
 * The simulator's share of CI: a fixed budget of seeds of each profile, each run twice (same seed, same trace), then the canaries.
 *
 *   node test/sim/ci.ts [--seeds N] [--canary-seconds S]
 *
 * Exits 0 only if no seed breaks a promise, every hash is the same twice, and no canary that was given its seeds stays unfound.
 */
import { parseArgs } from 'node:util'
import { CANARIES } from './canaries.ts'
import type { Profile } from './faults.ts'
import { runSchedule, scheduleOf } from './run.ts'

const { values } = parseArgs({ options: { seeds: { type: 'string', default: '6' }, 'canary-seconds': { type: 'string', default: '60' } } })
const seedsPerProfile = Number(values.seeds)
const canarySeconds = Number(values['canary-seconds'])
const seconds = () => Number(process.hrtime.bigint()) / 1e9
const say = (line: string) => void process.stdout.write(`${line}\n`)

let failed = 0
let virtualSeconds = 0
let events = 0
const began = seconds()
for (const profile of ['calm', 'rough', 'brutal', 'swarm'] satisfies Profile[]) {
  for (let seed = 1; seed <= seedsPerProfile; seed++) {
    const first = await runSchedule(scheduleOf(seed, profile))
    const second = await runSchedule(scheduleOf(seed, profile))
    virtualSeconds += first.virtualSeconds + second.virtualSeconds
    events += first.events + second.events
    const violations = [...first.violations]
    if (first.hash !== second.hash) violations.push({ promise: 'the same seed gives the same trace', detail: `${first.hash}, then ${second.hash}` })
    if (first.undecided > 0) violations.push({ promise: 'every history is decided', detail: `${first.undecided} pages were too much work` })
    for (const { promise, detail } of violations) say(`profile ${profile} seed ${seed}: ${promise}: ${detail}`)
    if (violations.length > 0) {
      failed++
      say(`replay: npx xsan sim --seed ${seed} --profile ${profile} --check-determinism`)
    }
  }
}
const took = seconds() - began
say(
  `${4 * seedsPerProfile} seeds, each twice, ${failed} failed; ${Math.round(virtualSeconds / took)} simulated seconds and ${Math.round(events / took)} events per second`,
)

const deadline = seconds() + canarySeconds
for (const canary of CANARIES) {
  const undo = canary.plant()
  let found = 0
  let tried = 0
  try {
    for (let seed = 1; seed <= canary.seedsMax && found === 0 && seconds() < deadline; seed++, tried++) {
      if ((await runSchedule(scheduleOf(seed, canary.profile))).violations.length > 0) found = seed
    }
  } finally {
    undo()
  }
  if (found > 0) say(`canary ${canary.name}: found by seed ${found}`)
  else if (tried >= canary.seedsMax) {
    failed++
    say(`canary ${canary.name}: NOT FOUND in ${tried} seeds (${canary.bug})`)
  } else say(`canary ${canary.name}: not yet found in ${tried} seeds; its time is over`)
}
process.exitCode = failed === 0 ? 0 : 1
