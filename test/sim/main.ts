/**
 * What `xsan sim` does: whole clusters in one process, from a seed, with faults; says which promise broke and how to see it again.
 * What it prints with `-o json`, its options and its exit codes are used by scripts.
 */
import { execFileSync } from 'node:child_process'
import { accessSync, closeSync, constants, openSync, readSync, statSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { formatError, messageOf, XsanError } from '../../src/base/errors.ts'
import { loadAddon } from '../../src/env/native/addon.ts'
import type { Seed } from '../../src/env/sim/world.ts'
import { CANARIES, canaryOf } from './canaries.ts'
import { addCoverage, coverageText, faultShares } from './coverage.ts'
import { describeFault, FOCUS_NAMES, type FocusName, PROFILES, type Profile, parseSchedule, type Schedule, shrink } from './faults.ts'
import { shownOf } from './history.ts'
import { Picture } from './picture.ts'
import { runTasks, type TaskResult } from './pool.ts'
import { type Plan, planText, type RunResult, runSchedule, scheduleFor } from './run.ts'

const USAGE = `Usage: xsan sim [--seed N | --seeds [A..]B | --schedule FILE] [options]

Runs whole clusters in one process under a virtual clock, with faults, and checks every promise.

  --seed N              one seed, any 64-bit number (default 1)
  --seeds [A..]B        all of them, from 1 unless given; prints one line per failing seed, and a summary
  --jobs J              processes at one time with --seeds (default 1)
  --profile NAME        ${PROFILES.join(' | ')} (default rough)
  --focus NAME          instead of a profile, short runs aimed at one sort of promise:
                        ${FOCUS_NAMES.join(' | ')}
  --canary NAME         plants a bug that has to be found (with the profile or focus that finds it, unless one is given)
  --canaries            lists their names; on a terminal and with -o json, what they are too
  --schedule FILE       replays a saved schedule of faults
  --shrink FILE         after a failure: looks for a smaller schedule that still fails the same way, and saves it
  --picture FILE        draws messages, operations and faults over virtual time (HTML)
  --check-determinism   runs twice and compares
  --trace               every event in words, on standard error
  -o json               one JSON object

Examples:
  xsan sim --seed 7 --profile brutal
  xsan sim --seeds 1..1000 --jobs 2 --profile swarm -o json
`

interface Options {
  readonly plan: Plan
  readonly canary: string | undefined
  readonly json: boolean
  readonly trace: boolean
  readonly checkDeterminism: boolean
  readonly shrinkTo: string | undefined
  readonly pictureTo: string | undefined
}

/** `argv` without "xsan sim". Returns the exit code: 0 only when nothing was violated; 1 violations; 2 none, but a file was not written; 64 wrong options. */
export async function simMain(argv: readonly string[]): Promise<number> {
  try {
    return await run(argv)
  } catch (error) {
    const known = error instanceof XsanError ? error : undefined
    const isUsage = known ? known.status === 'INVALID_PARAM' : (error as { code?: string }).code?.startsWith('ERR_PARSE_ARGS')
    if (!isUsage) throw error
    // parseArgs goes on about arguments that begin with a dash; one sentence is enough
    const shown = known ?? wrong(messageOf(error).split(/\. |\n/)[0]!, 'xsan sim --help')
    process.stderr.write(`${formatError(shown)}\n`)
    return 64
  }
}

async function run(argv: readonly string[]): Promise<number> {
  const { values } = parseArgs({
    args: withNegativeNumbers(argv),
    options: {
      seed: { type: 'string' },
      seeds: { type: 'string' },
      jobs: { type: 'string', default: '1' },
      profile: { type: 'string' },
      focus: { type: 'string' },
      canary: { type: 'string' },
      canaries: { type: 'boolean', default: false },
      schedule: { type: 'string' },
      shrink: { type: 'string' },
      picture: { type: 'string' },
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
  if (!['text', 'table', 'json'].includes(values.output)) throw wrong(`unknown output "${values.output}"`, 'Use -o json, or leave it out.')
  const isJson = values.output === 'json'
  if (values.canaries) {
    if (isJson) print(CANARIES.map(({ name, bug, plan, seedsMax }) => ({ name, bug, ...plan, seeds_max: seedsMax })))
    else for (const { name, bug } of CANARIES) process.stdout.write(process.stdout.isTTY ? `${name}: ${bug}\n` : `${name}\n`)
    return 0
  }
  const sources = [values.seed, values.seeds, values.schedule].filter((source) => source !== undefined)
  if (sources.length > 1) throw wrong('more than one of --seed, --seeds and --schedule', 'Give one of them.')
  for (const file of [values.shrink, values.picture]) if (file !== undefined) checkWritable(file)
  const jobs = parseJobs(values.jobs)
  const options: Options = {
    plan: planOf(values.profile, values.focus, values.canary),
    canary: values.canary,
    json: isJson,
    trace: values.trace,
    checkDeterminism: values['check-determinism'],
    shrinkTo: values.shrink,
    pictureTo: values.picture,
  }
  checkAddon()
  if (values.seeds !== undefined) {
    const alone = (['shrink', 'picture', 'trace'] as const).find((name) => values[name] !== undefined && values[name] !== false)
    if (alone) throw wrong(`--${alone} is for one seed`, 'Give it with --seed.')
    return runRange(parseRange(values.seeds), jobs, options)
  }
  if (values.schedule !== undefined) {
    if (values.profile !== undefined || values.focus !== undefined) throw wrong('a saved schedule has its own profile', 'Leave out --profile and --focus.')
    const schedule = readSchedule(values.schedule)
    return runOne(schedule, { ...options, canary: options.canary ?? schedule.canary }, values.schedule)
  }
  return runOne(scheduleFor(parseSeed(values.seed ?? '1'), options.plan), options, undefined)
}

/** `--seed -1` as `--seed=-1`: a number, not an option. */
function withNegativeNumbers(argv: readonly string[]): string[] {
  const args: string[] = []
  for (const arg of argv) {
    if (/^-\d/.test(arg) && /^--\w+$/.test(args.at(-1) ?? '')) args.push(`${args.pop()}=${arg}`)
    else args.push(arg)
  }
  return args
}

function planOf(profile: string | undefined, focus: string | undefined, canary: string | undefined): Plan {
  if (profile !== undefined && focus !== undefined) throw wrong('both --profile and --focus', 'Give one of them.')
  if (profile !== undefined && !PROFILES.includes(profile as Profile)) throw wrong(`unknown profile "${profile}"`, `Use one of ${PROFILES.join(', ')}.`)
  if (focus !== undefined && !FOCUS_NAMES.includes(focus as FocusName)) throw wrong(`unknown focus "${focus}"`, `Use one of ${FOCUS_NAMES.join(', ')}.`)
  const planted = canary === undefined ? undefined : canaryOf(canary)
  if (canary !== undefined && !planted) throw wrong(`unknown canary "${canary}"`, 'xsan sim --canaries lists them.')
  if (profile !== undefined) return { profile: profile as Profile }
  if (focus !== undefined) return { focus: focus as FocusName }
  return planted?.plan ?? { profile: 'rough' }
}

/** Of a schedule, as its first line names it. */
function describePlan({ profile, focus }: Schedule): string {
  return focus === undefined ? `profile ${profile}` : `focus ${focus}`
}

async function runOne(schedule: Schedule, options: Options, file: string | undefined): Promise<number> {
  const commit = commitOf()
  const say = (line: string) => void (options.json ? process.stderr : process.stdout).write(`${line}\n`)
  say(`seed ${schedule.seed} commit ${commit} ${describePlan(schedule)}${options.canary ? ` canary ${options.canary}` : ''}`)
  const undo = options.canary === undefined ? undefined : canaryOf(options.canary)!.plant()
  try {
    const trace = options.trace ? (line: string) => void process.stderr.write(`${line}\n`) : undefined
    const picture = options.pictureTo === undefined ? undefined : new Picture(schedule)
    const began = process.hrtime.bigint()
    const result = await runSchedule(schedule, { trace: both(trace, picture?.onTrace), onHistory: picture?.onHistory })
    const seconds = Number(process.hrtime.bigint() - began) / 1e9
    const violations = [...result.violations]
    let isAllSaved = true
    const save = (file: string, text: string, what: string): boolean => {
      const isSaved = writeFile(file, text)
      if (isSaved) say(`${what} is in ${file}`)
      else isAllSaved = false
      return isSaved
    }
    if (picture) save(options.pictureTo!, picture.html(result, commit), 'the picture')
    if (options.checkDeterminism) {
      const again = await runSchedule(schedule)
      if (again.hash !== result.hash) violations.push({ promise: 'the same seed gives the same trace', detail: `${result.hash}, then ${again.hash}` })
    }
    if (violations.length > 0 && options.shrinkTo !== undefined) {
      const promises = new Set(result.violations.map(({ promise }) => promise))
      const fails = async (candidate: Schedule) => (await runSchedule(candidate, { stacks: false })).violations.some(({ promise }) => promises.has(promise))
      const small = promises.size > 0 ? await shrink(schedule, fails) : schedule
      const saved: Schedule = options.canary === undefined ? small : { ...small, canary: options.canary }
      const size = `${small.faults.length} of ${schedule.faults.length} faults, ${small.clients} clients, ${small.opsPerClient} operations each`
      const isSaved = save(options.shrinkTo, `${JSON.stringify(saved, undefined, 2)}\n`, `a schedule that fails with ${size}`)
      if (isSaved) say(`replay: npx xsan sim --schedule ${quoted(options.shrinkTo)}`)
    }
    if (options.json) {
      print({
        seed: schedule.seed,
        commit,
        profile: schedule.profile,
        ...(schedule.focus === undefined ? {} : { focus: schedule.focus }),
        hash: result.hash,
        virtual_seconds: result.virtualSeconds,
        events: result.events,
        operations: result.operations,
        undecided_pages: result.undecided,
        violations: violations.map(({ promise, detail }) => ({ promise, detail })),
      })
    } else printText(result, violations, schedule, seconds)
    if (violations.length === 0) return isAllSaved ? 0 : NOT_SAVED
    say(`violated: ${[...new Set(violations.map(({ promise }) => promise))].join('; ')}`)
    const which = file === undefined ? `--seed ${schedule.seed} ${planText(options.plan)}` : `--schedule ${quoted(file)}`
    say(`replay: npx xsan sim ${which}${options.canary ? ` --canary ${options.canary}` : ''}`)
    return 1
  } finally {
    undo?.()
  }
}

function printText(result: RunResult, violations: RunResult['violations'], schedule: Schedule, seconds: number): void {
  const lines = [
    `${result.virtualSeconds} s of virtual time, ${result.events} events, hash ${result.hash}`,
    speedText(result.virtualSeconds, result.events, seconds),
    `${result.operations} operations, ${result.succeeded} succeeded, the longest took ${result.longestMs} ms`,
  ]
  for (const [name, count] of Object.entries(result.ends).sort(([a], [b]) => (a < b ? -1 : 1))) lines.push(`  ${name}: ${count}`)
  if (result.undecided > 0) lines.push(`${result.undecided} pages were too much work to decide`)
  if (violations.length > 0) {
    lines.push('faults:', ...schedule.faults.map((fault) => `  ${fault.atMs} ms: ${describeFault(fault)}`))
    lines.push('last lines of the nodes:', ...result.log.slice(-20).map((line) => `  ${line}`))
    for (const { promise, detail } of shownOf(violations)) lines.push(`VIOLATED: ${promise}`, ...detail.split('\n').map((line) => `  ${line}`))
  }
  process.stdout.write(`${lines.join('\n')}\n`)
}

function speedText(virtualSeconds: number, events: number, seconds: number): string {
  return `${Math.round(virtualSeconds / seconds)} simulated seconds and ${Math.round(events / seconds)} events per second`
}

const SEEDS_END = 1n << 64n

interface SeedRange {
  readonly text: string
  readonly from: bigint
  readonly to: bigint
}

function parseRange(text: string): SeedRange {
  const match = /^(?:(0x[0-9a-f]+|\d+)\.\.)?(0x[0-9a-f]+|\d+)$/i.exec(text)
  if (!match) throw wrong(`"${text}" is not a range of seeds`, 'Write it as 1..1000, or one seed with --seed.')
  const [from, to] = [BigInt(match[1] ?? 1), BigInt(match[2]!)]
  if (to >= SEEDS_END) throw wrong(`the seed ${match[2]} has more than 64 bits`, 'Use whole numbers of at most 64 bits.')
  if (to < from) throw wrong(`"${text}" is empty`, `The smaller one first: ${to}..${from}`)
  return { text, from, to }
}

function parseJobs(text: string): number {
  const jobs = /^\d{1,3}$/.test(text) ? Number(text) : 0
  if (jobs < 1 || jobs > 256) throw wrong(`"${text}" is not a number of processes`, 'Use 1 to 256.')
  return jobs
}

async function runRange({ text, from, to }: SeedRange, jobs: number, options: Options): Promise<number> {
  const commit = commitOf()
  const { plan, canary } = options
  const plantedText = canary ? ` --canary ${canary}` : ''
  const say = (line: string) => void (options.json ? process.stderr : process.stdout).write(`${line}\n`)
  say(`seeds ${text} commit ${commit} ${planText(plan)}${plantedText}`)
  let seeds = 0
  let failed = 0
  let events = 0
  let virtualSeconds = 0
  let undecided = 0
  let firstFailure: Seed | undefined
  const reached = new Map<string, number>()
  const began = process.hrtime.bigint()
  function* tasks() {
    for (let seed = from; seed <= to; seed++) yield { seed: seedOf(seed), plan, canary, twice: options.checkDeterminism }
  }
  const interrupt = new AbortController()
  const onInterrupt = () => interrupt.abort()
  process.once('SIGINT', onInterrupt)
  const count = (task: { readonly seed: Seed }, result: TaskResult): void => {
    seeds++
    events += result.events
    virtualSeconds += result.virtualSeconds
    undecided += result.undecided
    addCoverage(reached, result.coverage)
    const [violation] = result.violations
    if (violation === undefined) return
    failed++
    if (firstFailure === undefined || BigInt(task.seed) < BigInt(firstFailure)) firstFailure = task.seed
    const { promise, detail } = violation
    if (options.json) print({ seed: task.seed, hash: result.hash, promise, detail })
    else
      process.stdout.write(
        `seed ${task.seed}: ${promise}: ${detail.split('\n')[0]}; replay: npx xsan sim --seed ${task.seed} ${planText(plan)}${plantedText}\n`,
      )
  }
  await runTasks(tasks(), jobs, count, interrupt.signal)
  process.removeListener('SIGINT', onInterrupt)
  const seconds = Number(process.hrtime.bigint() - began) / 1e9
  if (options.json) {
    print({
      seeds,
      failed,
      first_failure: firstFailure ?? null,
      commit,
      ...plan,
      events,
      virtual_seconds: Math.round(virtualSeconds),
      undecided_pages: undecided,
      seconds: Math.round(seconds),
      events_per_second: Math.round(events / seconds),
      virtual_seconds_per_second: Math.round(virtualSeconds / seconds),
      reached: Object.fromEntries([...reached].sort(([a], [b]) => (a < b ? -1 : 1))),
    })
  } else {
    const first = firstFailure === undefined ? '' : `, the first is ${firstFailure}`
    const unsure = undecided === 0 ? '' : `, ${undecided} pages were too much work to decide`
    process.stdout.write(
      `${seeds} seeds, ${failed} failed${first}${unsure}; ${speedText(virtualSeconds, events, seconds)}\n${coverageText(reached).join('\n')}\n`,
    )
    const { text, rare } = faultShares(reached, seeds)
    if (seeds > 0) process.stdout.write(`${text}\n`)
    if (rare.length > 0 && 'profile' in plan && plan.profile === 'swarm') process.stdout.write(`RARE: ${rare.join(', ')}\n`)
    // scripts take the last line, whatever else is for people
    print({ seeds, failed, first_failure: firstFailure ?? null })
  }
  if (interrupt.signal.aborted) {
    process.stderr.write(`interrupted after ${seeds} of ${to - from + 1n} seeds\n`)
    return INTERRUPTED
  }
  return failed === 0 ? 0 : 1
}

/** Exit code of a program that SIGINT ends, as shells have it. */
const INTERRUPTED = 130
/** Nothing was violated, and a file that was asked for is not there. */
const NOT_SAVED = 2

function both(a: ((line: string) => void) | undefined, b: ((line: string) => void) | undefined): ((line: string) => void) | undefined {
  if (!a || !b) return a ?? b
  return (line) => {
    a(line)
    b(line)
  }
}

/** Numbers as far as JavaScript has them, decimal text above. */
function seedOf(bits: bigint): Seed {
  return bits <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(bits) : String(bits)
}

function parseSeed(text: string): Seed {
  if (!/^(0x[0-9a-fA-F]+|-?\d+)$/.test(text)) throw wrong(`"${text}" is not a seed`, 'Use a whole number of at most 64 bits.')
  const negative = text.startsWith('-')
  const value = negative ? -BigInt(text.slice(1)) : BigInt(text)
  if (value >= SEEDS_END || value < -(SEEDS_END / 2n)) throw wrong(`the seed ${text} has more than 64 bits`, 'Use a whole number of at most 64 bits.')
  return seedOf(BigInt.asUintN(64, value))
}

/** A long one has thousands of faults, and these take 100 bytes each. */
const SCHEDULE_BYTES_MAX = 8 << 20

/** At most that much of it, wherever it comes from: a pipe too, or a device without an end. */
function readText(file: string): string {
  const fd = openSync(file, 'r')
  try {
    const bytes = Buffer.alloc(SCHEDULE_BYTES_MAX + 1)
    let length = 0
    for (let read = -1; read !== 0 && length < bytes.length; length += read) read = readSync(fd, bytes, length, bytes.length - length, null)
    if (length > SCHEDULE_BYTES_MAX) throw new Error(`not a schedule: more than ${SCHEDULE_BYTES_MAX} bytes`)
    return bytes.toString('utf8', 0, length)
  } finally {
    closeSync(fd)
  }
}

function readSchedule(file: string): Schedule {
  try {
    const schedule = parseSchedule(readText(file))
    if (schedule.canary !== undefined && !canaryOf(schedule.canary)) throw new Error(`schedule: unknown canary ${schedule.canary}`)
    return schedule
  } catch (error) {
    throw new XsanError('INVALID_PARAM', `${file}: ${messageOf(error)}`, 'Name a file that --shrink saved.', { cause: error })
  }
}

/** Without it no node starts, in any run: that is nothing that a run has found. */
function checkAddon(): void {
  try {
    loadAddon()
  } catch (error) {
    throw new XsanError('CLUSTER_NOT_READY', messageOf(error), 'tools/bootstrap', { cause: error })
  }
}

/** A run may take minutes: what it leads to must have a place. */
function checkWritable(file: string): void {
  try {
    if (file === '') throw new Error('the name is empty')
    const found = statSync(file, { throwIfNoEntry: false })
    if (found?.isDirectory()) throw new Error('it is a directory')
    accessSync(found ? file : dirname(file), constants.W_OK)
  } catch (error) {
    throw new XsanError('INVALID_PARAM', `"${file}" cannot be written: ${messageOf(error)}`, 'Name a file in a directory that exists.', { cause: error })
  }
}

/** As a shell takes it for one word. */
function quoted(word: string): string {
  return /^[\w./:@%+,=-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`
}

/** False: it could not be written, which is said, and what the run has found follows all the same. */
function writeFile(file: string, text: string): boolean {
  try {
    writeFileSync(file, text)
    return true
  } catch (error) {
    const why = new XsanError('WRITE_FAILED', `${file} cannot be written: ${messageOf(error)}`, 'Name a file in a directory that exists and has room.')
    process.stderr.write(`${formatError(why)}\n`)
    return false
  }
}

function wrong(message: string, nextStep: string): XsanError {
  return new XsanError('INVALID_PARAM', message, nextStep)
}

function print(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`)
}

/** Also of a clone that belongs to another user. */
function commitOf(): string {
  try {
    return execFileSync('git', ['-c', 'safe.directory=*', 'rev-parse', '--short', 'HEAD'], {
      cwd: fileURLToPath(new URL('.', import.meta.url)),
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim()
  } catch {
    return 'unknown'
  }
}
