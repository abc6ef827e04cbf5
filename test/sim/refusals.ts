/**
 * What the simulator reaches, line by line: how often each row of the transition table was applied, and how often each place in the source that
 * refuses (gives a status other than success, or a reason for which a connection is closed) was reached, over seeds of all profiles and aims and all
 * scenarios. (coverage.ts counts answers by their status, cheaply, in every run.)
 *
 *   node test/sim/refusals.ts [--seeds N]        N seeds of each profile (default 4), half as many of each aim; scenarios always
 *
 * Counts come from V8's block coverage, so that nothing in src/ has to count for it. Exits 1 when something was never reached that
 * is not known to be out of reach (`OUT_OF_REACH`, with the reason).
 */
import { readdirSync, readFileSync } from 'node:fs'
import { Session } from 'node:inspector/promises'
import test, { after } from 'node:test'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const SOURCE = new URL('../../src/', import.meta.url)
/** Where the protocol refuses. */
const HANDLERS = ['chain', 'export/nbd', 'volume'].map((path) => new URL(`${path}/`, SOURCE).href)

export interface Site {
  readonly line: number
  readonly offset: number
  /** The expression that refuses, and its line. */
  readonly what: string
  readonly text: string
}

/** A status in a place where it is given, not compared; or a reason why a connection is closed. */
const GIVES = /(?<![=!]== )(?<!case )\bStatus\.(?!SUCCESS\b)([A-Z_]+)|(?<=return )(['`])[a-z][^'`\n]{8,}\2/g

/** Refusals in a source file. Sets and tables of statuses (a status alone on its line) are none. */
export function sitesOf(source: string): Site[] {
  const sites: Site[] = []
  let start = 0
  source.split('\n').forEach((text, i) => {
    const code = text.trim()
    if (!/^(\*|\/\*|\/\/|import|Status\.[A-Z_]+,$|const [A-Z_]+\b.*new (Set|Map))/.test(code)) {
      for (const match of text.matchAll(GIVES)) {
        const what = match[1] ?? match[0]
        // `[=!]== a || Status.X` and the like
        if (/[=!]==\s*$/.test(text.slice(0, match.index))) continue
        sites.push({ line: i + 1, offset: start + match.index, what, text: code })
      }
    }
    start += text.length + 1
  })
  return sites
}

export interface Range {
  readonly startOffset: number
  readonly endOffset: number
  readonly count: number
}

/** How often the code at an offset ran: what the innermost range around it says. */
export function countAt(ranges: readonly Range[], offset: number): number {
  let best: Range | undefined
  for (const range of ranges) {
    if (range.startOffset > offset || range.endOffset <= offset) continue
    if (best === undefined || range.endOffset - range.startOffset <= best.endOffset - best.startOffset) best = range
  }
  return best?.count ?? 0
}

/** Refusals that no simulated run can reach, by file and text; each with the reason. */
const OUT_OF_REACH: ReadonlyArray<{ readonly file: string; readonly text: RegExp; readonly why: string }> = [
  { file: 'chain/peers.ts', text: /does not know the key/, why: 'all simulated nodes have the key; src/chain/network.test.ts has one without' },
  { file: 'chain/', text: /PROTOCOL_ERROR/, why: 'arguments of a length that no node of this version sends; src/chain/network.test.ts sends garbage' },
  { file: 'chain/', text: /REQUEST_TOO_LARGE/, why: 'more blocks or rows than simulated disks hold' },
  { file: 'chain/', text: /nobody waits for|longer than asked|not expected here|a bad range/, why: 'no node of this version sends it' },
]

const SCENARIOS = [
  'scenarios',
  'traces',
  'losses',
  'absence',
  'apart',
  'broken-disk-scenarios',
  'lost-pages',
  'recover-scenarios',
  'removed',
  'stuck-link',
  'coverage',
  'checkers',
] as const

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { seeds: { type: 'string', default: '4' } } })
  const session = new Session()
  session.connect()
  await session.post('Profiler.enable')
  await session.post('Profiler.startPreciseCoverage', { callCount: true, detailed: true })
  const rows = await countTransitions()
  for (const file of SCENARIOS) await import(`./${file}.test.ts`)
  for (const directory of ['chain/', 'volume/', 'export/nbd/']) {
    for (const file of readdirSync(new URL(directory, SOURCE))) if (file.endsWith('.test.ts')) await import(new URL(directory + file, SOURCE).href)
  }
  const { FOCUS_NAMES, PROFILES } = await import('./faults.ts')
  const { planText, runSchedule, scheduleFor } = await import('./run.ts')
  const seeds = Number(values.seeds)
  const plans = [...PROFILES.map((profile) => ({ plan: { profile }, count: seeds })), ...FOCUS_NAMES.map((focus) => ({ plan: { focus }, count: seeds / 2 }))]
  for (const { plan, count } of plans) {
    test(`${Math.ceil(count)} seeds of ${planText(plan)}`, async () => {
      for (let seed = 1; seed <= Math.ceil(count); seed++) await runSchedule(scheduleFor(seed, plan), { stacks: false })
    })
  }
  after(async () => {
    const { result } = await session.post('Profiler.takePreciseCoverage')
    process.exitCode = report(rows, result) ? 0 : 1
  })
}

/** Counts, by row of the transition table, how often it was applied: that alone reads the row's name. */
async function countTransitions(): Promise<Map<string, number>> {
  const { TRANSITIONS } = await import('../../src/placement/chain.ts')
  const counts = new Map<string, number>()
  for (const row of TRANSITIONS) {
    const { name } = row
    counts.set(name, 0)
    Object.defineProperty(row, 'name', {
      get() {
        counts.set(name, counts.get(name)! + 1)
        return name
      },
    })
  }
  return counts
}

interface ScriptCoverage {
  readonly url: string
  readonly functions: ReadonlyArray<{ readonly ranges: readonly Range[] }>
}

function report(rows: ReadonlyMap<string, number>, scripts: readonly ScriptCoverage[]): boolean {
  const say = (line: string) => void process.stdout.write(`${line}\n`)
  const missing: string[] = []
  say('\nrows of the transition table, and how often they were applied')
  for (const [name, count] of rows) {
    say(`${String(count).padStart(9)}  ${name}`)
    if (count === 0) missing.push(`transition ${name}`)
  }
  let reached = 0
  let known = 0
  say('\nrefusals, and how often they were given')
  for (const { url, functions } of [...scripts].sort((a, b) => (a.url < b.url ? -1 : 1))) {
    if (!HANDLERS.some((prefix) => url.startsWith(prefix)) || url.endsWith('.test.ts')) continue
    const file = url.slice(SOURCE.href.length)
    const ranges = functions.flatMap((of) => of.ranges)
    for (const site of sitesOf(readFileSync(fileURLToPath(url), 'utf8'))) {
      const count = countAt(ranges, site.offset)
      const place = `${file}:${site.line} ${site.what}`
      const out = OUT_OF_REACH.find((of) => file.startsWith(of.file) && (of.text.test(site.text) || of.text.test(site.what)))
      say(`${String(count).padStart(9)}  ${place}${count === 0 && out ? ` (out of reach: ${out.why})` : ''}`)
      if (count > 0) reached++
      else if (out) known++
      else missing.push(`${place}   ${site.text.slice(0, 120)}`)
    }
  }
  say(`\n${reached} refusals reached, ${known} out of reach, ${missing.length} never reached:`)
  for (const line of missing) say(`  ${line}`)
  return missing.length === 0
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main()
