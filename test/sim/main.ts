/**
 * What `xsan sim` does: whole clusters in one process, from a seed, with faults; says which promise broke and how to see it again.
 * What it prints with `-o json`, its options and its exit codes are used by scripts.
 */
import { execFileSync, spawn } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { messageOf, XsanError } from '../../src/base/errors.ts'
import type { Seed } from '../../src/env/sim/world.ts'
import { CANARIES, canaryOf } from './canaries.ts'
import { describeFault, PROFILES, type Profile, parseSchedule, type Schedule, shrink } from './faults.ts'
import { type RunResult, runSchedule, scheduleOf } from './run.ts'

const USAGE = `Usage: xsan sim [--seed N | --seeds A..B | --schedule FILE] [options]

Runs whole clusters in one process under a virtual clock, with faults, and checks every promise.

  --seed N              one seed, any 64-bit number (default 1)
  --seeds A..B          all of them; prints one line per failing seed, and a summary
  --jobs J              processes at one time with --seeds (default 1)
  --profile NAME        ${PROFILES.join(' | ')} (default rough)
  --canary NAME         plants a bug that has to be found; --canaries lists them
  --schedule FILE       replays a saved schedule of faults
  --shrink FILE         after a failure: looks for a smaller schedule that still fails, and saves it
  --check-determinism   runs twice and compares
  --trace               every event in words, on standard error
  -o json               one JSON object

Examples:
  xsan sim --seed 7 --profile brutal
  xsan sim --seeds 1..1000 --jobs 2 --profile swarm -o json
`

interface Options {
  readonly profile: Profile
  readonly canary: string | undefined
  readonly json: boolean
  readonly trace: boolean
  readonly checkDeterminism: boolean
  readonly shrinkTo: string | undefined
}

/** `argv` without "xsan sim". Returns the exit code: 0 only when nothing was violated; 1 violations; 64 wrong options. */
export async function simMain(argv: readonly string[]): Promise<number> {
  try {
    return await run(argv)
  } catch (error) {
    if (!(error instanceof XsanError) && !(error as { code?: string }).code?.startsWith('ERR_PARSE_ARGS')) throw error
    process.stderr.write(`error: ${messageOf(error)}\n${error instanceof XsanError && error.nextStep ? `${error.nextStep}\n` : ''}`)
    return 64
  }
}

async function run(argv: readonly string[]): Promise<number> {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      seed: { type: 'string' },
      seeds: { type: 'string' },
      jobs: { type: 'string', default: '1' },
      profile: { type: 'string', default: 'rough' },
      canary: { type: 'string' },
      canaries: { type: 'boolean', default: false },
      schedule: { type: 'string' },
      shrink: { type: 'string' },
      'check-determinism': { type: 'boolean', default: false },
      trace: { type: 'boolean', default: false },
      output: { type: 'string', short: 'o', default: 'text' },
      help: { type: 'boolean', short: 'h', default: false },
    },
  })
  if (values.help) {
    process.stdout.write(USAGE)
    return 0
  }
  if (!PROFILES.includes(values.profile as Profile)) throw wrong(`unknown profile "${values.profile}"`, `Use one of ${PROFILES.join(', ')}.`)
  if (!['text', 'json'].includes(values.output)) throw wrong(`unknown output "${values.output}"`, 'Use -o json, or leave it out.')
  const options: Options = {
    profile: values.profile as Profile,
    canary: values.canary,
    json: values.output === 'json',
    trace: values.trace,
    checkDeterminism: values['check-determinism'],
    shrinkTo: values.shrink,
  }
  if (values.canaries) {
    if (options.json) print(CANARIES.map(({ name, bug, profile, seedsMax }) => ({ name, bug, profile, seeds_max: seedsMax })))
    else for (const { name, bug } of CANARIES) process.stdout.write(`${name}: ${bug}\n`)
    return 0
  }
  if (options.canary !== undefined && !canaryOf(options.canary)) throw wrong(`unknown canary "${options.canary}"`, 'xsan sim --canaries lists them.')
  if (values.seeds !== undefined) return runRange(values.seeds, values.jobs, options)
  const schedule = values.schedule === undefined ? scheduleOf(parseSeed(values.seed ?? '1'), options.profile) : readSchedule(values.schedule)
  return runOne(schedule, options, values.schedule)
}

async function runOne(schedule: Schedule, options: Options, file: string | undefined): Promise<number> {
  const commit = commitOf()
  const say = (line: string) => void (options.json ? process.stderr : process.stdout).write(`${line}\n`)
  say(`seed ${schedule.seed} commit ${commit} profile ${schedule.profile}${options.canary ? ` canary ${options.canary}` : ''}`)
  const undo = options.canary === undefined ? undefined : canaryOf(options.canary)!.plant()
  try {
    const trace = options.trace ? (line: string) => void process.stderr.write(`${line}\n`) : undefined
    const result = await runSchedule(schedule, { trace })
    const violations = [...result.violations]
    if (options.checkDeterminism) {
      const again = await runSchedule(schedule)
      if (again.hash !== result.hash) violations.push({ promise: 'the same seed gives the same trace', detail: `${result.hash}, then ${again.hash}` })
    }
    if (violations.length > 0 && options.shrinkTo !== undefined) {
      const small = await shrink(schedule, async (candidate) => (await runSchedule(candidate)).violations.length > 0)
      writeFileSync(options.shrinkTo, `${JSON.stringify(small, undefined, 2)}\n`)
      say(
        `a smaller schedule that fails (${small.faults.length} of ${schedule.faults.length} faults) is in ${options.shrinkTo}: xsan sim --schedule ${options.shrinkTo}`,
      )
    }
    if (options.json) {
      print({
        seed: schedule.seed,
        commit,
        profile: schedule.profile,
        hash: result.hash,
        virtual_seconds: result.virtualSeconds,
        events: result.events,
        operations: result.operations,
        undecided_pages: result.undecided,
        violations: violations.map(({ promise, detail }) => ({ promise, detail })),
      })
    } else printText(result, violations, schedule)
    if (violations.length === 0) return 0
    say(`violated: ${violations.map(({ promise }) => promise).join('; ')}`)
    const which = file === undefined ? `--seed ${schedule.seed} --profile ${schedule.profile}` : `--schedule ${file}`
    say(`replay: npx xsan sim ${which}${options.canary ? ` --canary ${options.canary}` : ''}`)
    return 1
  } finally {
    undo?.()
  }
}

function printText(result: RunResult, violations: RunResult['violations'], schedule: Schedule): void {
  const lines = [
    `${result.virtualSeconds} s of virtual time, ${result.events} events, hash ${result.hash}`,
    `${result.operations} operations, ${result.succeeded} succeeded, the longest took ${result.longestMs} ms`,
  ]
  for (const [name, count] of Object.entries(result.ends).sort(([a], [b]) => (a < b ? -1 : 1))) lines.push(`  ${name}: ${count}`)
  if (result.undecided > 0) lines.push(`${result.undecided} pages were too much work to decide`)
  if (violations.length > 0) {
    lines.push('faults:', ...schedule.faults.map((fault) => `  ${fault.atMs} ms: ${describeFault(fault)}`))
    lines.push('last lines of the nodes:', ...result.log.slice(-20).map((line) => `  ${line}`))
    for (const { promise, detail } of violations) lines.push(`VIOLATED: ${promise}`, ...detail.split('\n').map((line) => `  ${line}`))
  }
  process.stdout.write(`${lines.join('\n')}\n`)
}

async function runRange(range: string, jobsText: string, options: Options): Promise<number> {
  const match = /^(\d+)\.\.(\d+)$/.exec(range)
  if (!match) throw wrong(`"${range}" is not a range of seeds`, 'Write it as 1..1000.')
  const [from, to] = [BigInt(match[1]!), BigInt(match[2]!)]
  const jobs = Number(jobsText)
  if (!Number.isInteger(jobs) || jobs < 1 || jobs > 256) throw wrong(`"${jobsText}" is not a number of processes`, 'Use 1 to 256.')
  if (to < from) throw wrong(`"${range}" is empty`, 'Write it as 1..1000.')
  const commit = commitOf()
  const say = (line: string) => void (options.json ? process.stderr : process.stdout).write(`${line}\n`)
  say(`seeds ${range} commit ${commit} profile ${options.profile}${options.canary ? ` canary ${options.canary}` : ''}`)
  let seeds = 0
  let failed = 0
  let events = 0
  let virtualSeconds = 0
  let undecided = 0
  let firstFailure: Seed | undefined
  const began = process.hrtime.bigint()
  const worker = fileURLToPath(new URL('worker.ts', import.meta.url))
  const one = async (job: number) => {
    const first = from + BigInt(job)
    if (first > to) return
    const child = spawn(
      process.execPath,
      ['--disable-warning=ExperimentalWarning', worker, options.profile, String(first), String(to), String(jobs), options.canary ?? ''],
      {
        stdio: ['ignore', 'pipe', 'inherit'],
      },
    )
    const ended = new Promise<number>((resolve) => child.on('close', (code) => resolve(code ?? 1)))
    for await (const line of createInterface({ input: child.stdout })) {
      const result = JSON.parse(line) as Omit<RunResult, 'log'>
      seeds++
      events += result.events
      virtualSeconds += result.virtualSeconds
      undecided += result.undecided
      if (result.violations.length === 0) continue
      failed++
      if (firstFailure === undefined || BigInt(result.seed) < BigInt(firstFailure)) firstFailure = result.seed
      const { promise, detail } = result.violations[0]!
      if (options.json) print({ seed: result.seed, hash: result.hash, promise, detail })
      else
        process.stdout.write(
          `seed ${result.seed}: ${promise}: ${detail.split('\n')[0]}\n  replay: npx xsan sim --seed ${result.seed} --profile ${options.profile}\n`,
        )
    }
    const code = await ended
    if (code !== 0) throw new Error(`a worker ended with code ${code}`)
  }
  await Promise.all(Array.from({ length: jobs }, (_, job) => one(job)))
  const seconds = Number(process.hrtime.bigint() - began) / 1e9
  if (options.json) {
    print({
      seeds,
      failed,
      first_failure: firstFailure ?? null,
      commit,
      profile: options.profile,
      events,
      virtual_seconds: Math.round(virtualSeconds),
      undecided_pages: undecided,
      seconds: Math.round(seconds),
    })
  } else {
    process.stdout.write(
      `${seeds} seeds, ${failed} failed${firstFailure === undefined ? '' : `, the first is ${firstFailure}`}; ${Math.round(virtualSeconds / seconds)} simulated seconds and ${Math.round(events / seconds)} events per second\n`,
    )
  }
  return failed === 0 ? 0 : 1
}

function parseSeed(text: string): Seed {
  if (!/^(0x[0-9a-fA-F]+|-?\d+)$/.test(text)) throw wrong(`"${text}" is not a seed`, 'Use a whole number of at most 64 bits.')
  const negative = text.startsWith('-')
  const value = negative ? -BigInt(text.slice(1)) : BigInt(text)
  if (value >= 1n << 64n || value < -(1n << 63n)) throw wrong(`the seed ${text} has more than 64 bits`, 'Use a whole number of at most 64 bits.')
  const bits = BigInt.asUintN(64, value)
  return bits <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(bits) : String(bits)
}

function readSchedule(file: string): Schedule {
  try {
    return parseSchedule(readFileSync(file, 'utf8'))
  } catch (error) {
    throw new XsanError('INVALID_PARAM', `${file}: ${messageOf(error)}`, 'Name a file that --shrink saved.', { cause: error })
  }
}

function wrong(message: string, nextStep: string): XsanError {
  return new XsanError('INVALID_PARAM', message, nextStep)
}

function print(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`)
}

function commitOf(): string {
  try {
    return execFileSync('git', ['rev-parse', '--short', 'HEAD'], {
      cwd: fileURLToPath(new URL('.', import.meta.url)),
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim()
  } catch {
    return 'unknown'
  }
}
