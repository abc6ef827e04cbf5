/**
 * What a simulation reached: each row of the table by which chains change, and each reason for which a replica refuses. What is never reached
 * by many seeds is not tested by them.
 */
import { type StatusName, statusName } from '../../src/base/status.ts'
import { Client } from '../../src/chain/client.ts'
import { Forwarding } from '../../src/chain/forward.ts'
import { TRANSITIONS } from '../../src/placement/chain.ts'

/** Times reached, by kind and name. */
export type Coverage = Readonly<Record<string, number>>

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
const count = (what: string) => counts.set(what, (counts.get(what) ?? 0) + 1)

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

/** In words: how much of each kind, and what not. */
export function coverageText(reached: ReadonlyMap<string, number>): string[] {
  const kinds: ReadonlyArray<readonly [title: string, kind: string, names: readonly string[]]> = [
    ['rows of the chain table', 'row', TRANSITIONS.map(({ name }) => name)],
    ['answers', 'answer', ANSWERS],
    ['refusals of forwards', 'forward', FORWARD_REFUSALS],
  ]
  return kinds.map(([title, kind, names]) => {
    const missing = names.filter((name) => !reached.has(`${kind} ${name}`))
    return `reached ${names.length - missing.length} of ${names.length} ${title}${missing.length === 0 ? '' : `; not: ${missing.join(', ')}`}`
  })
}
