/**
 * Schedules of faults: made from a seed and a profile, plain data, so that one can be saved, shrunk and replayed.
 * A fault names when it begins and how long it lasts; node and disk are indexes from 0.
 */
import type { Prng } from '../../src/base/prng.ts'
import type { Seed } from '../../src/env/sim/world.ts'
import { NEWER_FORMS } from './older-binary.ts'

export const SCHEDULE_FORMAT = 3

export const FAULT_KINDS = [
  'kill',
  'freeze',
  'power',
  'power-all',
  'isolate',
  'cut',
  'slow-link',
  'bad-wire',
  'disk-slow',
  'disk-hang',
  'disk-eio',
  'bit-rot',
  'misdirect',
  'drift',
  'pauses',
  'datagram-loss',
  'late-timers',
  'drift-beyond',
  'stop',
  'upgrade',
  'disk-gone',
  'disk-full',
  'node-add',
  'node-remove',
  'volume-churn',
  'volume-grow',
  'setting',
  'disk-again',
  'older-binary',
  'far-link',
  'reset',
  'metadata-fails',
] as const
/** Kinds of aimed runs alone: they wait for the moment that matters. */
export const AIMED_KINDS = [
  'last-copy',
  'late-stream',
  'slow-reads',
  'remove-syncing',
  'remove-returning',
  'remove-draining',
  'remove-late',
  'clock-fast',
  'straggler',
  'slowing-link',
] as const
export type FaultKind = (typeof FAULT_KINDS)[number] | (typeof AIMED_KINDS)[number]
/** What comes of faults, beside themselves. */
export const CONSEQUENCES = ['disk-replaced', 'disk-tried-again', 'torn-unreadable'] as const
/** What a run counts as having had: a fault that found nothing to break is none of it. */
export type Effect = FaultKind | (typeof CONSEQUENCES)[number]

export interface Fault {
  readonly kind: FaultKind
  readonly atMs: number
  readonly durationMs: number
  readonly node: number
  /** The other end of a cut or a slow link. */
  readonly other: number
  /** Rate, delay or drift, by kind. */
  readonly amount: number
  readonly unflushed: 'random' | 'lose' | 'keep'
}

/** Short, aimed runs (focus.ts). */
export const FOCUS_NAMES = [
  'blackouts',
  'blackouts-relaxed',
  'flushes',
  'flushes-returning',
  'flushes-draining',
  'fua',
  'destage',
  'removals-away',
  'captures',
  'churn',
  'contention',
  'last-copies',
  'recoveries',
  'clocks',
  'handovers',
  'removals',
  'reports',
  'cancels',
  'abandoned',
  'starved',
  'slow-ways',
  'leases',
  'cuts',
  'rot',
  'members',
  'leavers',
  'drains',
  'operators',
  'disks',
  'retries',
  'retries-destaging',
] as const
export type FocusName = (typeof FOCUS_NAMES)[number]

export interface Schedule {
  readonly format: typeof SCHEDULE_FORMAT
  readonly seed: Seed
  readonly profile: Profile
  /** A short, aimed run instead of the profile's. */
  readonly focus?: FocusName
  /** The bug that was planted when it was recorded. */
  readonly canary?: string
  readonly nodes: number
  readonly clients: number
  readonly opsPerClient: number
  readonly durationMs: number
  readonly faults: readonly Fault[]
}

export const PROFILES = ['calm', 'rough', 'brutal', 'swarm'] as const
export type Profile = (typeof PROFILES)[number]

/** Faults of a kind per simulated second, for each profile but swarm. */
const RATES: Readonly<Record<(typeof FAULT_KINDS)[number], readonly [calm: number, rough: number, brutal: number]>> = {
  kill: [0.05, 0.1, 0.3],
  freeze: [0, 0.05, 0.15],
  power: [0, 0.05, 0.15],
  'power-all': [0, 0.01, 0.05],
  isolate: [0, 0.05, 0.15],
  cut: [0, 0.05, 0.3],
  'slow-link': [0.05, 0.1, 0.3],
  'bad-wire': [0, 0.03, 0.1],
  'disk-slow': [0.05, 0.1, 0.3],
  'disk-hang': [0, 0.02, 0.05],
  'disk-eio': [0, 0.005, 0.02],
  'bit-rot': [0, 0.05, 0.1],
  misdirect: [0, 0.03, 0.1],
  drift: [0, 0.05, 0.1],
  pauses: [0, 0.05, 0.2],
  'datagram-loss': [0.05, 0.1, 0.2],
  'late-timers': [0.02, 0.05, 0.1],
  'drift-beyond': [0, 0, 0.03],
  stop: [0.02, 0.03, 0.08],
  upgrade: [0.01, 0.01, 0.02],
  'disk-gone': [0, 0.005, 0.02],
  'disk-full': [0, 0.02, 0.05],
  'node-add': [0.005, 0.01, 0.02],
  'node-remove': [0.005, 0.01, 0.02],
  'volume-churn': [0.02, 0.03, 0.06],
  'volume-grow': [0.02, 0.03, 0.06],
  setting: [0.02, 0.05, 0.1],
  'disk-again': [0, 0.01, 0.03],
  'older-binary': [0.01, 0.01, 0.03],
  'far-link': [0, 0.03, 0.1],
  reset: [0.01, 0.05, 0.2],
  'metadata-fails': [0.01, 0.02, 0.06],
}

/** A run without any of these needs no rebuilding: they cost the most. A swarm has each in so many of its runs, and then once or twice. */
const DEAR: ReadonlySet<FaultKind> = new Set(['disk-eio', 'disk-gone', 'disk-again', 'node-add', 'node-remove', 'upgrade', 'older-binary'])
const DEAR_SHARE = 0.25
/** What came later is drawn from a stream of its own, so that the schedules of seeds stay what they were but for it. */
const LATER: ReadonlySet<FaultKind> = new Set(['reset', 'metadata-fails'])
/** What destroys copies for good. */
export const DESTRUCTIVE: ReadonlySet<FaultKind> = new Set(['bit-rot', 'misdirect', 'disk-eio', 'disk-gone'])

/** Kinds a profile leaves out unless the cluster under test promises to stand them. */
export interface ScheduleOptions {
  readonly seed: Seed
  readonly profile: Profile
  readonly nodes: number
  readonly durationMs: number
  readonly without?: readonly FaultKind[]
}

export function makeSchedule(prng: Prng, options: ScheduleOptions): Schedule {
  const { profile, nodes, durationMs } = options
  const faults: Fault[] = []
  // What destroys copies for good hits one node only: more than one would be allowed to lose data
  const victim = prng.below(nodes)
  for (const kind of FAULT_KINDS) {
    const random = LATER.has(kind) ? prng.fork(kind) : prng
    const [calm, rough, brutal] = RATES[kind]
    let rate = profile === 'calm' ? calm : profile === 'rough' ? rough : brutal
    if (profile === 'swarm') {
      const rates = DEAR.has(kind) ? (1000 / durationMs) * (1 + random.unit()) : brutal * (0.3 + 2 * random.unit())
      rate = random.chance(DEAR.has(kind) ? DEAR_SHARE : 0.5) ? rates : 0
    }
    if (options.without?.includes(kind)) continue
    // So that what is rarer than one in a run begins anywhere, or not at all
    let atMs = -random.unit() * (rate > 0 ? Math.min(1000 / rate, 1e6) : 0)
    while (rate > 0) {
      // Gaps between half and one and a half of the mean
      atMs += (1000 / rate) * (0.5 + random.unit())
      if (atMs >= durationMs) break
      if (atMs < 0) continue
      const node = DESTRUCTIVE.has(kind) ? victim : random.below(nodes)
      faults.push({
        kind,
        atMs: Math.round(atMs),
        durationMs: durationOf(random, kind),
        node,
        other: nodes > 1 ? (node + random.between(1, nodes - 1)) % nodes : node,
        amount: amountOf(random, kind),
        unflushed: random.pick(['random', 'random', 'lose', 'keep'] as const),
      })
    }
  }
  faults.sort((a, b) => a.atMs - b.atMs)
  return {
    format: SCHEDULE_FORMAT,
    seed: options.seed,
    profile,
    nodes,
    clients: prng.between(3, 6),
    opsPerClient: Math.round(durationMs / 30),
    durationMs,
    faults,
  }
}

function durationOf(random: Prng, kind: FaultKind): number {
  switch (kind) {
    case 'kill':
    case 'power':
    case 'power-all':
      return random.chance(0.3) ? random.between(1, 200) : random.between(200, 8000)
    case 'freeze':
    case 'isolate':
    case 'cut':
      return random.chance(0.5) ? random.between(10, 1500) : random.between(1500, 8000)
    case 'disk-hang':
      return random.between(100, 6000)
    case 'disk-eio':
      return random.between(100, 2000)
    case 'misdirect':
      return random.between(2000, 10_000)
    case 'stop':
      return random.between(1, 3000)
    case 'disk-gone':
    case 'disk-full':
    case 'older-binary':
      return random.between(500, 5000)
    default:
      return random.between(100, 5000)
  }
}

export function amountOf(random: Prng, kind: FaultKind): number {
  switch (kind) {
    case 'slow-link':
      return random.between(1, 100)
    case 'far-link':
      return random.between(100, 600)
    case 'reset':
      return random.chance(0.3) ? 1 : random.unit()
    case 'bad-wire':
      return 0.001 + random.unit() * 0.05
    case 'misdirect':
      return 0.1 + random.unit() * 0.9
    case 'disk-slow':
      return random.between(5, 300)
    case 'disk-eio':
      return random.unit() * 0.2
    case 'disk-again':
      return 0.05 + random.unit() * 0.6
    case 'bit-rot':
      return random.between(1, 4)
    case 'drift':
      // Within the bound of 1 %, either way, for both ends together; every other one at it
      return Math.max(-0.005, Math.min(0.005, (random.unit() - 0.5) * 0.02))
    case 'pauses':
      return random.between(1, 300)
    case 'datagram-loss':
      return random.unit()
    case 'late-timers':
      return random.between(5, 500)
    case 'drift-beyond':
      // Too slow: it believes in its lease for longer than it has one
      return -(0.02 + random.unit() * 0.5)
    case 'setting':
      return random.below(1000)
    case 'last-copy':
    case 'late-stream':
    case 'remove-draining':
      return random.between(50, 600)
    case 'older-binary':
      return random.below(NEWER_FORMS.length)
    case 'slow-reads':
      return random.between(100, 400)
    case 'remove-late':
      return random.between(200, 600)
    case 'straggler':
      return random.between(1500, 4000)
    case 'slowing-link':
      return random.between(500, 1500)
    case 'clock-fast':
      // Too fast: as a leader it takes the leases of others for over before they are
      return 0.05 + random.unit() * 0.5
    default:
      return 0
  }
}

/** In words, for the trace and the picture. */
export function describeFault(fault: Fault): string {
  const node = `node ${fault.node + 1}`
  const span = `for ${fault.durationMs} ms`
  switch (fault.kind) {
    case 'kill':
      return `${node} is killed, back after ${fault.durationMs} ms`
    case 'freeze':
      return `${node} is frozen ${span}`
    case 'power':
      return `${node} loses power ${span}, unflushed data: ${fault.unflushed}`
    case 'power-all':
      return `all nodes lose power ${span}, unflushed data: ${fault.unflushed}`
    case 'isolate':
      return `${node} is cut off ${span}`
    case 'cut':
      return `nothing gets from ${node} to node ${fault.other + 1} ${span}`
    case 'slow-link':
      return `${fault.amount} ms more from ${node} to node ${fault.other + 1} ${span}`
    case 'far-link':
      return `${fault.amount} ms more between ${node} and node ${fault.other + 1}, either way, ${span}`
    case 'reset':
      return `${Math.round(fault.amount * 100)} % of the connections of ${node} are reset`
    case 'metadata-fails':
      return `the metadata of ${node} cannot be written ${span}`
    case 'bad-wire':
      return `bits flip in ${(fault.amount * 100).toFixed(1)} % of what gets from ${node} to node ${fault.other + 1} ${span}`
    case 'misdirect':
      return `the disk of ${node} puts ${Math.round(fault.amount * 100)} % of its data where it does not belong ${span}`
    case 'disk-slow':
      return `the disk of ${node} takes up to ${fault.amount} ms more ${span}`
    case 'disk-hang':
      return `the disk of ${node} hangs ${span}`
    case 'disk-eio':
      return `the disk of ${node} fails ${Math.round(fault.amount * 100)} % of its requests ${span}, and is replaced if that was too much`
    case 'disk-again':
      return `the disk of ${fault.unflushed === 'random' ? node : 'every node'} fails ${Math.round(fault.amount * 100)} % of its writes and flushes ${span}, and is tried again`
    case 'bit-rot':
      return `${fault.amount} pages rot on the disk of ${node}`
    case 'drift':
      return `the clock of ${node} runs ${(fault.amount * 100).toFixed(2)} % off`
    case 'pauses':
      return `${node} is away for up to ${fault.amount} ms between two lines of its code, ${span}`
    case 'datagram-loss':
      return `${Math.round(fault.amount * 100)} % of datagrams are lost ${span}`
    case 'late-timers':
      return `timers of ${node} fire up to ${fault.amount} ms late ${span}`
    case 'drift-beyond':
      return `the clock of ${node} runs ${(fault.amount * 100).toFixed(1)} % off, beyond the bound, ${span}`
    case 'stop':
      return `${node} is stopped, as for maintenance, back ${fault.durationMs} ms after its end`
    case 'upgrade':
      return 'all nodes are upgraded, one after the other'
    case 'disk-gone':
      return `the disk of ${node} is gone; an empty one in its place after ${fault.durationMs} ms`
    case 'disk-full':
      return `the disk of ${node} takes no new blocks ${span}`
    case 'node-add':
      return 'a node is added'
    case 'node-remove':
      return `${node} is removed, after another one was added if it would be missed`
    case 'volume-churn':
      return `a volume is made, used ${span}, and deleted`
    case 'volume-grow':
      return 'a volume grows by a block'
    case 'setting':
      return `a setting of the cluster is changed ${span}`
    case 'older-binary':
      return `${node} is started with an older version, which does not know the form of its ${NEWER_FORMS[fault.amount]}, ${span}`
    case 'slow-reads':
      return `reads take about ${Math.round(fault.amount)} ms more on the disk of ${node} ${span}`
    case 'straggler':
      return `all nodes lose power ${span}, and ${node} for ${fault.amount} ms more, unflushed data: ${fault.unflushed}`
    case 'slowing-link':
      return `with each second ${Math.round(fault.amount)} ms more from ${node} to node ${fault.other + 1} ${span}`
    case 'clock-fast':
      return `the clock of ${node} runs ${(fault.amount * 100).toFixed(1)} % too fast ${span}`
    case 'remove-syncing':
      return 'a node is added, and removed when a copy on it is SYNCING'
    case 'remove-returning':
      return `${node} is killed, back after ${fault.durationMs} ms over slow links, and removed when a copy on it is SYNCING`
    case 'remove-draining':
      return `${node} is removed; when a copy on it is DRAINING the nodes of the others are killed for ${fault.amount} ms`
    case 'remove-late':
      return `${node} is removed; what it says comes to the leader ${fault.amount} ms late, ${span}`
    case 'late-stream':
    case 'last-copy': {
      const late = fault.kind === 'last-copy' ? '' : ', forwards to it come late while it is SYNCING'
      const then = fault.unflushed === 'keep' ? '' : `, and then it loses power, unflushed data: ${fault.unflushed}`
      return `${node} is killed, back after ${fault.durationMs} ms${late}; when a copy on it serves again the nodes of the others are killed for ${fault.amount} ms${then}`
    }
  }
}

const DELAY_MS_MAX = 60_000
/**
 * What the amount of a fault may be, in a schedule written by hand too. Beyond it the fault is another one (a clock within the bound that is not), or none
 * that the checkers know how to judge (a clock that runs backwards).
 */
const AMOUNTS: Partial<Readonly<Record<FaultKind, { readonly least: number; readonly most: number; readonly whole?: true }>>> = {
  'slow-link': { least: 0, most: DELAY_MS_MAX },
  'far-link': { least: 0, most: DELAY_MS_MAX },
  reset: { least: 0, most: 1 },
  'bad-wire': { least: 0, most: 1 },
  'disk-slow': { least: 0, most: DELAY_MS_MAX },
  'disk-eio': { least: 0, most: 1 },
  'disk-again': { least: 0, most: 1 },
  'bit-rot': { least: 0, most: 10_000, whole: true },
  misdirect: { least: 0, most: 1 },
  drift: { least: -0.005, most: 0.005 },
  pauses: { least: 0, most: DELAY_MS_MAX },
  'datagram-loss': { least: 0, most: 1 },
  'late-timers': { least: 0, most: DELAY_MS_MAX },
  'drift-beyond': { least: -0.95, most: 0 },
  'clock-fast': { least: 0, most: 9 },
  setting: { least: 0, most: 1_000_000, whole: true },
  'older-binary': { least: 0, most: NEWER_FORMS.length - 1, whole: true },
  'slow-reads': { least: 0, most: DELAY_MS_MAX },
  straggler: { least: 0, most: DELAY_MS_MAX },
  'slowing-link': { least: 0, most: DELAY_MS_MAX },
  'last-copy': { least: 0, most: DELAY_MS_MAX },
  'late-stream': { least: 0, most: DELAY_MS_MAX },
  'remove-draining': { least: 0, most: DELAY_MS_MAX },
  'remove-late': { least: 0, most: DELAY_MS_MAX },
}
const SCHEDULE_LIMITS = { nodes: [1, 9], clients: [0, 64], opsPerClient: [0, 100_000], durationMs: [0, 3_600_000] } as const
const SCHEDULE_FAULTS_MAX = 10_000

function isSeed(value: unknown): boolean {
  if (typeof value === 'number') return Number.isSafeInteger(value) && value >= 0
  return typeof value === 'string' && /^\d{1,20}$/.test(value) && BigInt(value) < 1n << 64n
}

/** A schedule from text; throws an Error that says what is wrong with it. */
export function parseSchedule(text: string): Schedule {
  let value: Partial<Schedule>
  try {
    value = JSON.parse(text) as Partial<Schedule>
  } catch (error) {
    throw new Error(`not a schedule: ${error instanceof Error ? error.message : String(error)}`, { cause: error })
  }
  if (typeof value !== 'object' || value === null || !('format' in value)) throw new Error('not a schedule: it names no format')
  if (value.format !== SCHEDULE_FORMAT) throw new Error(`schedule format ${JSON.stringify(value.format)} is not ${SCHEDULE_FORMAT}, which this version replays`)
  if (!isSeed(value.seed)) throw new Error('schedule: seed is not a whole number of at most 64 bits')
  for (const [field, [least, most]] of Object.entries(SCHEDULE_LIMITS)) {
    const given: unknown = value[field as keyof typeof SCHEDULE_LIMITS]
    if (typeof given !== 'number' || !(given >= least && given <= most) || !Number.isInteger(given)) {
      throw new Error(`schedule: ${field} is not a whole number from ${least} to ${most}`)
    }
  }
  if (!PROFILES.includes(value.profile as Profile)) throw new Error(`schedule: unknown profile ${String(value.profile)}`)
  if (value.focus !== undefined && !FOCUS_NAMES.includes(value.focus)) throw new Error(`schedule: unknown focus ${String(value.focus)}`)
  if (value.canary !== undefined && typeof value.canary !== 'string') throw new Error('schedule: canary is not a name')
  if (!Array.isArray(value.faults)) throw new Error('schedule: faults is not a list')
  if (value.faults.length > SCHEDULE_FAULTS_MAX) throw new Error(`schedule: more than ${SCHEDULE_FAULTS_MAX} faults`)
  for (const [i, fault] of (value.faults as Array<Partial<Fault> | null>).entries()) {
    if (typeof fault !== 'object' || fault === null) throw new Error(`schedule: fault ${i} is not an object`)
    if (![...FAULT_KINDS, ...AIMED_KINDS].includes(fault.kind as FaultKind)) throw new Error(`schedule: fault ${i} is of unknown kind ${String(fault.kind)}`)
    for (const field of ['atMs', 'durationMs', 'node', 'other', 'amount'] as const) {
      if (typeof fault[field] !== 'number' || !Number.isFinite(fault[field])) throw new Error(`schedule: ${field} of fault ${i} is not a number`)
    }
    for (const field of ['node', 'other'] as const) {
      const node = fault[field]!
      if (!Number.isInteger(node) || node < 0 || node >= value.nodes!) throw new Error(`schedule: fault ${i} names node ${node} of ${value.nodes}`)
    }
    const { least, most, whole = false } = AMOUNTS[fault.kind!] ?? { least: Number.NEGATIVE_INFINITY, most: Number.POSITIVE_INFINITY }
    if (fault.amount! < least || fault.amount! > most || (whole && !Number.isInteger(fault.amount))) {
      throw new Error(`schedule: amount of fault ${i}, ${fault.kind}, is ${fault.amount}, not a ${whole ? 'whole ' : ''}number from ${least} to ${most}`)
    }
    const [, longestMs] = SCHEDULE_LIMITS.durationMs
    if (fault.atMs! > longestMs || fault.durationMs! > longestMs) throw new Error(`schedule: fault ${i} begins after, or lasts longer than, ${longestMs} ms`)
    if (fault.atMs! < 0 || fault.durationMs! < 0) throw new Error(`schedule: fault ${i} is before the start, or ends before it begins`)
    if (!['random', 'lose', 'keep'].includes(String(fault.unflushed))) throw new Error(`schedule: unflushed of fault ${i} is not random, lose or keep`)
  }
  return value as Schedule
}

/**
 * A smaller schedule that still fails: halves of the faults are left out, then smaller parts, then clients and operations, as long as
 * `fails` says yes. `runsMax` bounds how often it is asked.
 */
export async function shrink(schedule: Schedule, fails: (candidate: Schedule) => Promise<boolean>, runsMax = 100): Promise<Schedule> {
  let best = schedule
  let runs = 0
  const attempt = async (candidate: Schedule): Promise<boolean> => {
    if (runs++ >= runsMax || !(await fails(candidate))) return false
    best = candidate
    return true
  }
  for (let size = Math.ceil(best.faults.length / 2); size >= 1 && runs < runsMax; ) {
    let removed = false
    for (let start = 0; start < best.faults.length; ) {
      const faults = [...best.faults.slice(0, start), ...best.faults.slice(start + size)]
      if (await attempt({ ...best, faults })) removed = true
      else start += size
    }
    if (!removed || size > best.faults.length) size = size === 1 ? 0 : Math.ceil(size / 2)
  }
  while (best.clients > 1 && (await attempt({ ...best, clients: best.clients - 1 })));
  while (best.opsPerClient > 4 && (await attempt({ ...best, opsPerClient: Math.ceil(best.opsPerClient / 2) })));
  return best
}
