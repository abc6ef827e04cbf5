/**
 * Replays schedules by hand:
 *
 *   node test/sim/model/main.ts [--trace] NAME=VALUE ..      bounds, budgets, seed and count as of test/model/README.md
 *
 * Prints the first divergences and a summary; exits 0 only without any. --trace shows every event, for one schedule.
 */
import { type Mix, printSchedules } from './model.ts'
import { Divergence, Replay } from './replay.ts'

const SHOWN_MAX = 5

const args = process.argv.slice(2)
const mix: Mix = Object.fromEntries(
  args.filter((arg) => arg.includes('=')).map((arg) => [arg.slice(0, arg.indexOf('=')), Number(arg.slice(arg.indexOf('=') + 1))]),
)
const trace = args.includes('--trace') ? { trace: (line: string) => void process.stdout.write(`${line}\n`) } : {}
const schedules = printSchedules(mix)
const before = process.cpuUsage()
let steps = 0
let diverged = 0
for (const schedule of schedules) {
  try {
    steps += (await new Replay(schedule, trace).run()).steps
  } catch (error) {
    if (!(error instanceof Divergence)) throw error
    if (++diverged <= SHOWN_MAX) process.stdout.write(`${error.message}\n`)
  }
}
const { user, system } = process.cpuUsage(before)
process.stdout.write(`${JSON.stringify({ schedules: schedules.length, diverged, steps, cpuMs: Math.round((user + system) / 1000) })}\n`)
process.exitCode = diverged > 0 ? 1 : 0
