/** The search of history.ts against one without any of its short cuts, on small histories. */
import assert from 'node:assert/strict'
import test from 'node:test'
import { Prng } from '../../src/base/prng.ts'
import { SECTORS_PER_PAGE } from '../../src/base/units.ts'
import { checkPage, type PageOp } from './history.ts'

const SECTORS = 2
const CASES = 60_000

/** What a loss of power may bring back: the contents before the present one, oldest first, and how many of them an acknowledgement has made past. */
interface Memory {
  readonly now: readonly number[]
  readonly before: ReadonlyArray<readonly number[]>
  readonly firm: number
}

/** All that may follow by this operation. */
function outcomes(memory: Memory, op: PageOp): Memory[] {
  const { now, before, firm } = memory
  if (op.kind === 'read') return now.every((stamp, s) => (op.mask & (1 << s)) === 0 || stamp === op.stamps[s]) ? [memory] : []
  if (op.kind === 'loss') {
    if (op.keepsAcknowledged === true) return [memory, ...before.flatMap((then, i) => (i < firm ? [] : [{ now: then, before: before.slice(0, i), firm }]))]
    if (op.mayBeNone === true) return [memory, ...before.map((then, i) => ({ now: then, before: before.slice(0, i), firm: Math.min(firm, i) }))]
    return [now, ...before].map((then) => ({ now: then, before: [], firm: 0 }))
  }
  const next = now.map((stamp, s) => (op.mask & (1 << s) ? op.stamps[s]! : stamp))
  if (op.outcome !== 'ok') return [memory, op.durable && before.length === 0 ? { ...memory, now: next } : { now: next, before: [...before, now], firm }]
  return [op.durable ? { now: next, before: [], firm: 0 } : { now: next, before: [...before, now], firm: before.length + 1 }]
}

/** Tries every order that calls and returns allow. */
function isLinearizable(ops: readonly PageOp[], memory: Memory): boolean {
  if (ops.every(({ returnMs }) => returnMs === Number.POSITIVE_INFINITY)) return true
  return ops.some((op) => {
    if (ops.some((other) => other.returnMs < op.callMs)) return false
    const rest = ops.filter((other) => other !== op)
    // whoever was ordered before the end of its life and has waited comes before what was called after that
    if (op.kind === 'write' && rest.some(({ deadlineMs }) => deadlineMs !== undefined && deadlineMs < op.callMs)) {
      return op.outcome !== 'ok' && isLinearizable(rest, memory)
    }
    return outcomes(memory, op).some((next) => isLinearizable(rest, next))
  })
}

const NOTHING: Memory = { now: new Array(SECTORS).fill(0), before: [], firm: 0 }

/** Operations with what reads saw in one order that is allowed; then, often, one of them saw something else. */
function makeOps(random: Prng): PageOp[] {
  const span = random.between(6, 24)
  const hasLoss = random.chance(0.4)
  const isDurable = random.chance(0.5)
  const hasWaiting = random.chance(0.3)
  const ops: PageOp[] = []
  for (let id = 1, count = random.between(3, 8); id <= count; id++) {
    const kind = random.chance(0.4) ? 'read' : hasLoss && random.chance(0.2) ? 'loss' : 'write'
    const callMs = random.below(span)
    const deadlineMs = callMs + random.between(0, 8)
    const outcome = kind === 'write' ? random.pick(['ok', 'ok', 'ok', 'failed', 'unknown'] as const) : 'ok'
    const returnMs =
      kind === 'loss' ? callMs : outcome === 'unknown' && random.chance(0.3) ? Number.POSITIVE_INFINITY : callMs + random.between(0, outcome === 'ok' ? 8 : 16)
    const stamps = new Int32Array(SECTORS_PER_PAGE).fill(kind === 'write' && !random.chance(0.3) ? id : 0)
    const mask = kind === 'loss' ? 0 : random.pick([1, 2, 3, 3])
    ops.push({
      kind,
      id,
      client: `c${id}`,
      callMs,
      returnMs,
      outcome,
      mask,
      stamps,
      durable: kind !== 'write' || isDurable || (outcome === 'ok' && random.chance(0.2)),
      ...random.pick([{}, { keepsAcknowledged: true }, { mayBeNone: true }]),
      ...(hasWaiting && outcome === 'unknown' && deadlineMs < returnMs ? { deadlineMs } : {}),
    })
  }
  let memory = NOTHING
  for (let left = [...ops]; left.length > 0; ) {
    const op = random.pick(left.filter((one) => !left.some((other) => other.returnMs < one.callMs)))
    left = left.filter((other) => other !== op)
    if (op.kind === 'read') for (let s = 0; s < SECTORS; s++) op.stamps[s] = memory.now[s]!
    memory = random.pick(outcomes(memory, op))
  }
  const reads = ops.filter(({ kind }) => kind === 'read')
  if (reads.length > 0 && random.chance(0.6)) random.pick(reads).stamps[random.below(SECTORS)] = random.pick(ops).stamps[0]!
  return ops
}

test('the search finds what a plain one finds', { timeout: 300_000 }, () => {
  let valid = 0
  for (let seed = 1; seed <= CASES; seed++) {
    const ops = makeOps(new Prng(seed))
    const expected = isLinearizable(ops, NOTHING)
    if (expected) valid++
    assert.equal(checkPage(ops) === undefined, expected, `history ${seed}`)
  }
  assert.ok(valid > CASES * 0.3 && valid < CASES * 0.9, `${valid} of ${CASES} are valid`)
})
