/**
 * What a simulation reached: each row of the table by which chains change, each reason for which a replica refuses, and each fault that found
 * something to break. What is never reached by many seeds is not tested by them.
 */
import { type StatusName, statusName } from '../../src/base/status.ts'
import { Client } from '../../src/chain/client.ts'
import { Forwarding } from '../../src/chain/forward.ts'
import { Coordinator } from '../../src/control/leader.ts'
import { TRANSITIONS } from '../../src/placement/chain.ts'
import { CONSEQUENCES, type Effect, FAULT_KINDS } from './faults.ts'

/** Times reached, by kind and name. */
export type Coverage = Readonly<Record<string, number>>

/** What seeds do not reach, and why: it is no gap that they do not, and an error in this list when they do. */
export const NOT_BY_SEEDS: Readonly<Record<string, string>> = {
  'row accept loss':
    'the operator gives up data, which the history would call a violation: recover-scenarios.test.ts and scenarios.test.ts do it, and see that it was done',
  'answer DUPLICATE_OLD':
    'an update behind a later one of its channel has lost its session, or its life is over: both are looked at before. coverage.test.ts asks a head directly',
  'answer PERMISSION_DENIED':
    'the table that fences a client closes its sessions before anything of it is tried again, and that is looked at first. coverage.test.ts asks a head directly',
  'answer WRITE_FAILED': 'a disk that fails is out of use for its replicas in the same turn: what was refused is asked for elsewhere',
}

/** What a few seeds may miss, and who asks for it whatever they do. */
export const NOT_ALWAYS: Readonly<Record<string, string>> = {
  'answer READ_ONLY': 'coverage.test.ts',
  'answer VOLUME_NOT_FOUND': 'coverage.test.ts',
  'answer STOPPING': 'coverage.test.ts',
  'answer REQUEST_REFUSED': 'coverage.test.ts',
  'answer BLOCK_CORRUPTED': 'lost-pages.test.ts',
  'answer READ_FAILED': 'lost-pages.test.ts',
}

/** Answers to a try of a read or an update, and refusals of a forward, that the protocol knows. */
const ANSWERS: readonly StatusName[] = [
  'SUCCESS',
  'ROUTING_STALE',
  'NOT_HEAD',
  'REQUEST_REFUSED',
  'LEASE_EXPIRED',
  'WRITE_EXPIRED',
  'DUPLICATE_OLD',
  'CONNECTION_LOST',
  'STOPPING',
  'PERMISSION_DENIED',
  'READ_ONLY',
  'VOLUME_NOT_FOUND',
  'INSUFFICIENT_SPACE',
  'BLOCK_CORRUPTED',
  'READ_FAILED',
  'WRITE_FAILED',
]
const FORWARD_REFUSALS: readonly StatusName[] = ['ROUTING_STALE', 'REQUEST_REFUSED', 'WRITE_FAILED']

const counts = new Map<string, number>()
/** What would be is asked for, and nothing of it done. */
let isPreview = false
const count = (what: string) => {
  if (!isPreview) counts.set(what, (counts.get(what) ?? 0) + 1)
}

/** Once per process: counts from now on. */
export function startCoverage(): void {
  for (const transition of TRANSITIONS) {
    const { name } = transition
    // A step names its row in what it returns
    Object.defineProperty(transition, 'name', {
      get() {
        count(`row ${name}`)
        return name
      },
    })
  }
  const { onAnswer } = Client.prototype
  Client.prototype.onAnswer = function (op, generation, status, chainVersion) {
    count(`answer ${statusName(status)}`)
    onAnswer.call(this, op, generation, status, chainVersion)
  }
  const { unfinishedCopies } = Coordinator.prototype
  Coordinator.prototype.unfinishedCopies = function () {
    isPreview = true
    try {
      return unfinishedCopies.call(this)
    } finally {
      isPreview = false
    }
  }
  const { refuse } = Forwarding.prototype
  Forwarding.prototype.refuse = function (row, status) {
    count(`forward ${statusName(status)}`)
    refuse.call(this, row, status)
  }
}

/** What was reached since the last call. */
export function takeCoverage(): Coverage {
  const taken = Object.fromEntries(counts)
  counts.clear()
  return taken
}

export function addCoverage(to: Map<string, number>, more: Coverage): void {
  for (const [what, times] of Object.entries(more)) to.set(what, (to.get(what) ?? 0) + times)
}

/** A kind of fault that a swarm's runs have less often is tested by few of them. */
const RARE_SHARE = 0.05
/** Below so many runs a share says little. */
const RUNS_FOR_SHARES = 100
const EFFECTS: readonly Effect[] = [...FAULT_KINDS, ...CONSEQUENCES]

/** In how many of 100 runs each fault took effect, and which have become rare: one whose rate is too low, or that finds nothing to break any more. */
export function faultShares(reached: ReadonlyMap<string, number>, runs: number): { readonly text: string; readonly rare: readonly Effect[] } {
  const shareOf = (effect: Effect) => (reached.get(`fault ${effect}`) ?? 0) / runs
  const text = EFFECTS.map((effect) => `${effect} ${Math.round(100 * shareOf(effect))}`).join(', ')
  return {
    text: `faults that took effect, in so many of 100 runs: ${text}`,
    rare: runs < RUNS_FOR_SHARES ? [] : EFFECTS.filter((effect) => shareOf(effect) < RARE_SHARE),
  }
}

const KINDS: ReadonlyArray<readonly [title: string, kind: string, names: readonly string[]]> = [
  ['rows of the chain table', 'row', TRANSITIONS.map(({ name }) => name)],
  ['answers', 'answer', ANSWERS],
  ['refusals of forwards', 'forward', FORWARD_REFUSALS],
  ['faults', 'fault', EFFECTS],
]

/** What seeds should have reached and did not, and what they did although it is said that they cannot. */
export function coverageGaps(reached: ReadonlyMap<string, number>): string[] {
  const all = KINDS.flatMap(([, kind, names]) => names.map((name) => `${kind} ${name}`))
  return all.flatMap((what) => {
    const why = NOT_BY_SEEDS[what]
    if (NOT_ALWAYS[what] !== undefined) return []
    if (why === undefined) return reached.has(what) ? [] : [`${what}: never reached`]
    return reached.has(what) ? [`${what}: reached, though "${why}"`] : []
  })
}

/** In words: how much of each kind, and what not. */
export function coverageText(reached: ReadonlyMap<string, number>): string[] {
  return KINDS.map(([title, kind, names]) => {
    const missing = names.filter((name) => !reached.has(`${kind} ${name}`))
    return `reached ${names.length - missing.length} of ${names.length} ${title}${missing.length === 0 ? '' : `; not: ${missing.join(', ')}`}`
  })
}
