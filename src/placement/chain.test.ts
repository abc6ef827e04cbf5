import assert from 'node:assert/strict'
import test, { after } from 'node:test'
import type { ChainVersion, DiskNumber, Incarnation, NodeNumber, SlotIndex } from '../base/ids.ts'
import { Prng } from '../base/prng.ts'
import {
  apartFromPairs,
  CHAIN_ENTRIES_MAX,
  type Chain,
  type ChainEntry,
  type ChainEvent,
  DiskUse,
  entryOf,
  firstChain,
  formatChain,
  GONE,
  headOf,
  invalidChain,
  type LastId,
  nextChain,
  nextStep,
  ownEntry,
  packChains,
  REPLICA_STATE_NAMES,
  ReplicaState,
  settle,
  syncingOf,
  TRANSITIONS,
  type Transition,
  type TransitionName,
  unmetConditions,
  unpackChains,
} from './chain.ts'
import { CoordinatorView, View } from './view.ts'

const { SERVING, DRAINING, SYNCING, LASTSRV, WAITING, OFFLINE } = ReplicaState

// ---- which cells of the table the tests of this file reach -------------------------------------------------------------

/** `row fired`, and `row ! condition` = the row did not apply for this condition alone. */
const reached = new Set<string>()

function observe(chain: Chain, event: ChainEvent): Chain | null {
  for (const transition of TRANSITIONS as readonly Transition[]) {
    const candidates: readonly ChainEntry[] =
      transition.from !== GONE
        ? chain.entries.filter((entry) => entry.state === transition.from)
        : event.add === undefined
          ? []
          : [{ ...event.add, state: OFFLINE, since: chain.version, incarnation: event.views.incarnation(event.add.node) }]
    for (const entry of candidates) {
      const unmet = unmetConditions(transition, chain, entry, event)
      if (unmet.length === 1) reached.add(`${transition.name} ! ${unmet[0]}`)
    }
  }
  const frozen = JSON.stringify(chain)
  const step = nextStep(chain, event)
  assert.equal(JSON.stringify(chain), frozen, 'the input is not touched')
  if (step === null) return null
  reached.add(`${step.transition} fired`)
  assert.equal(step.chain.version, chain.version + 1)
  assert.equal(invalidChain(step.chain), null)
  return step.chain
}

after(() => {
  for (const transition of TRANSITIONS as readonly Transition[]) {
    for (const cell of [`${transition.name} fired`, ...transition.when.map((condition) => `${transition.name} ! ${condition}`)]) {
      assert.ok(reached.has(cell), `no test of the transition table reaches: ${cell}`)
    }
  }
})

// ---- a short way to write chains and events ------------------------------------------------------------------------------

const STATES: Record<string, ReplicaState> = { s: SERVING, d: DRAINING, y: SYNCING, l: LASTSRV, w: WAITING, o: OFFLINE }

/** `chain('1s 2d 3y')`: disk 1 on node 1 SERVING ..., all since 1, incarnation 1, in version 5. */
function chain(text: string): Chain {
  const entries = text
    .split(' ')
    .filter((word) => word !== '')
    .map((word) => {
      const number = Number.parseInt(word, 10)
      return { disk: number as DiskNumber, node: number as NodeNumber, state: STATES[word.at(-1)!]!, since: 1 as ChainVersion, incarnation: 1 as Incarnation }
    })
  return { version: 5 as ChainVersion, entries }
}
const show = (of: Chain | null) =>
  of === null
    ? null
    : of.entries
        .map((entry) => `${entry.disk}${REPLICA_STATE_NAMES[entry.state][0]!.toLowerCase()}`.replace(/s$/, entry.state === SYNCING ? 'y' : 's'))
        .join(' ')

/** `views('1 2- 3? 4*')`: 1 UP, 2 DOWN, 3 MAYBE, 4 UP in a newer incarnation than the chain's. */
function views(text: string): Pick<ChainEvent, 'views'> {
  const words = new Map(text.split(' ').map((word) => [Number.parseInt(word, 10), word]))
  return {
    views: {
      view: (node) => {
        const word = words.get(node) ?? '?'
        return word.includes('-') ? View.DOWN : word.includes('?') ? View.MAYBE : View.UP
      },
      incarnation: (node) => ((words.get(node) ?? '').includes('*') ? 2 : 1) as Incarnation,
    },
  }
}
const disk = (n: number) => n as DiskNumber
const failed = (...disks: number[]) => ({ diskUse: (d: DiskNumber) => (disks.includes(d) ? DiskUse.FAILED : DiskUse.NORMAL) })
const apart = (...pairs: Array<readonly [number, number]>) => ({ apart: apartFromPairs(pairs.map(([a, b]) => [a as NodeNumber, b as NodeNumber])) })
const leaving = (...disks: number[]) => ({ diskUse: (d: DiskNumber) => (disks.includes(d) ? DiskUse.LEAVING : DiskUse.NORMAL) })
const id = (of: number, lo: number, more: Partial<LastId> = {}): LastId => ({
  disk: disk(of),
  incarnation: 1 as Incarnation,
  version: 5 as ChainVersion,
  hi: 0,
  lo,
  ...more,
})
const report = (of: number, since = 1, incarnation = 1) => ({
  upToDate: { disk: disk(of), since: since as ChainVersion, incarnation: incarnation as Incarnation },
})
const confirm = (of: number, version = 5, incarnation = 1) => ({
  drained: { disk: disk(of), version: version as ChainVersion, incarnation: incarnation as Incarnation },
})

/** from, event, the chain after one step (null: none), the row. */
const CASES: ReadonlyArray<readonly [string, ChainEvent, string | null, TransitionName | null]> = [
  // a loss
  ['1s 2s 3s', views('1- 2 3?'), '2s 3s 1o', 'drop'],
  ['1s 2s 3s', views('1* 2? 3'), '2s 3s 1o', 'drop'],
  ['1s 2s 3s', views('1- 2? 3?'), null, null],
  ['1s 2s 3s', views('1 2 3'), null, null],
  ['1s 2s 3o', views('1- 2 3-'), '2s 3o 1o', 'drop'],
  ['1s 2s 3s', { ...views('1- 2 3?'), ...failed(2) }, null, null],
  ['1s 2s 3s', views('1- 2- 3-'), '1l 2l 3l', 'lose'],
  ['1s 2s 3y 4w 5o', views('1- 2- 3 4 5'), '1l 2l 3w 4w 5o', 'lose'],
  ['1s 2s', views('1- 2?'), null, null],
  ['1s 2s', { ...views('1- 2'), ...failed(2) }, '1l 2l', 'lose'],
  ['1s', views('1*'), '1l', 'lose'],
  // a loss beside a draining one
  ['1d 2s 3s', views('1 2- 3-'), '1s 2o 3o', 'rescue'],
  ['1s 2d 3y', views('1- 2 3'), '2s 3y 1o', 'rescue'],
  ['1d 2s', views('1? 2-'), null, null],
  ['1d 2s', views('1 2?'), null, null],
  ['1d 2s', views('1- 2-'), '1l 2l', 'lose'],
  ['1d 2s', { ...views('1 2-'), ...failed(1) }, '1l 2l', 'lose'],
  // the last that served come back
  ['1l 2l 3o', { ...views('1 2 3-'), lastIds: [id(1, 7), id(2, 9)] }, '2s 1w 3o', 'recover'],
  ['1l 2l', { ...views('1 2'), lastIds: [id(1, 7), id(2, 7)] }, '1s 2w', 'recover'],
  ['1l 2l', { ...views('1 2'), lastIds: [id(1, 0xffff_ffff), id(2, 3, { hi: 1 })] }, '2s 1w', 'recover'],
  ['1l 2l', { ...views('1 2'), lastIds: [id(1, 7, { powerLost: true }), id(2, 7)] }, '2s 1w', 'recover'],
  ['1l 2l', { ...views('1 2'), lastIds: [id(1, 8, { powerLost: true }), id(2, 7)] }, '1s 2w', 'recover'],
  ['1l 2l', { ...views('1 2'), lastIds: [id(1, 8, { incomplete: true }), id(2, 7)] }, '2s 1w', 'recover'],
  ['1l 2l', { ...views('1 2'), lastIds: [id(1, 8, { incomplete: true }), id(2, 0)] }, '2s 1w', 'recover'],
  ['1l 2l', { ...views('1 2'), lastIds: [id(1, 8, { damaged: true }), id(2, 7)] }, '2s 1w', 'recover'],
  ['1l 2l', { ...views('1 2'), lastIds: [id(1, 8, { damaged: true }), id(2, 7, { damaged: true })] }, '1s 2w', 'recover'],
  ['1l 2l', { ...views('1 2'), lastIds: [id(1, 8, { damaged: true }), id(2, 7, { incomplete: true })] }, '1s 2w', 'recover'],
  ['1l 2l', { ...views('1 2?'), lastIds: [id(1, 9), id(2, 7)] }, null, null],
  ['1l 2l', { ...views('1 2'), lastIds: [id(1, 9)] }, null, null],
  ['1l 2l', { ...views('1 2*'), lastIds: [id(1, 9), id(2, 7)] }, null, null],
  ['1l 2l', { ...views('1 2*'), lastIds: [id(1, 9), id(2, 7, { incarnation: 2 as Incarnation })] }, '1s 2w', 'recover'],
  ['1l 2l', { ...views('1 2'), lastIds: [id(1, 9), id(2, 7, { version: 0 as ChainVersion })] }, null, null],
  ['1l 2l', { ...views('1 2'), lastIds: [id(1, 9), id(2, 7, { version: 6 as ChainVersion })] }, null, null],
  ['1l 2l', { ...views('1- 2'), lastIds: [id(2, 7)], recoverWithoutAll: true }, '2s 1w', 'recover'],
  ['1l 2l', { ...views('1- 2-'), lastIds: [id(2, 7)], recoverWithoutAll: true }, null, null],
  ['1l 2l', { ...views('1? 2'), lastIds: [id(2, 7)], recoverWithoutAll: true }, null, null],
  ['1l 2l', { ...views('1 2'), lastIds: [id(2, 7)], recoverWithoutAll: true }, null, null],
  ['1l 2l', { ...views('1 2'), ...failed(1), lastIds: [id(1, 9), id(2, 7)] }, null, null],
  ['1l 2w', { ...views('1 2'), lastIds: [id(2, 7)], recoverWithoutAll: true }, null, null],
  // nothing of them will
  ['1l 2w 3w', { ...views('1- 2 3'), acceptDataLoss: true, lastIds: [id(2, 4), id(3, 5)] }, '3s 2w 1o', 'accept loss'],
  ['1l 2w', { ...views('1 2'), acceptDataLoss: true, lastIds: [id(2, 4)] }, null, null],
  // a copy of one time is better than one whose resync never ended, and that is better than none
  ['1l 2w 3w', { ...views('1- 2 3'), acceptDataLoss: true, lastIds: [id(2, 4), id(3, 5, { incomplete: true })] }, '2s 3w 1o', 'accept loss'],
  [
    '1l 2w 3w',
    { ...views('1- 2 3'), acceptDataLoss: true, lastIds: [id(2, 4, { incomplete: true }), id(3, 5, { incomplete: true })] },
    '3s 2w 1o',
    'accept loss',
  ],
  ['1l 2w 3w', { ...views('1- 2 3'), acceptDataLoss: true, lastIds: [id(2, 0), id(3, 0, { incomplete: true })] }, '3s 2w 1o', 'accept loss'],
  ['1l 2w 3w', { ...views('1- 2 3'), acceptDataLoss: true, lastIds: [id(2, 4), id(3, 5, { damaged: true })] }, '3s 2w 1o', 'accept loss'],
  // what another copy holds is known before one is taken
  ['1l 2w 3w', { ...views('1- 2 3'), acceptDataLoss: true }, null, null],
  ['1l 2w 3w', { ...views('1- 2 3'), acceptDataLoss: true, lastIds: [id(2, 4)] }, null, null],
  ['1l 2w 3w', { ...views('1- 2 3?'), acceptDataLoss: true, lastIds: [id(2, 4)] }, null, null],
  ['1l 2w 3w', { ...views('1- 2 3'), ...failed(3), acceptDataLoss: true, lastIds: [id(2, 4)] }, '2s 3w 1o', 'accept loss'],
  ['1l 2w 3o', { ...views('1- 2 3'), acceptDataLoss: true, lastIds: [id(2, 4)] }, '1l 2w 3w', 'return'],
  ['1l 2w 3o', { ...views('1- 2 3?'), acceptDataLoss: true, lastIds: [id(2, 4)] }, null, null],
  ['1l 2w 3o', { ...views('1- 2 3-'), acceptDataLoss: true, lastIds: [id(2, 4)] }, '2s 3o 1o', 'accept loss'],
  // whoever is in doubt may be there
  ['1l 2w', { ...views('1? 2'), acceptDataLoss: true, lastIds: [id(2, 4)] }, null, null],
  ['1l 2w', { ...views('1? 2'), ...failed(1), acceptDataLoss: true, lastIds: [id(2, 4)] }, '2s 1o', 'accept loss'],
  ['1l 2w', { ...views('1- 2'), lastIds: [id(2, 4)] }, null, null],
  ['1s 2y 3w', { ...views('1? 2 3'), acceptDataLoss: true }, null, null],
  ['1s 2w', { ...views('1- 2'), acceptDataLoss: true, lastIds: [id(2, 4)] }, '1l 2w', 'lose'],
  // catching up
  ['1s 2o', views('1? 2'), '1s 2w', 'return'],
  ['1s 2o', views('1 2?'), null, null],
  ['1s 2o', { ...views('1 2'), ...leaving(2) }, null, null],
  // it may be the last copy there is
  ['1l 2o', { ...views('1- 2'), ...leaving(2) }, '1l 2w', 'return'],
  ['1s 2o', { ...views('1 2'), ...failed(2) }, null, null],
  ['1s 2w 3w', views('1? 2 3'), '1s 2y 3w', 'sync'],
  ['1s 2w 3w', views('1 2? 3'), '1s 3y 2w', 'sync'],
  ['1s 2y 3w', views('1 2 3'), null, null],
  ['1l 2w', views('1 2'), null, null],
  ['1s 2w', { ...views('1 2'), ...leaving(2) }, null, null],
  ['1s 2w 3o', views('1 2- 3-'), '1s 3o 2o', 'stop waiting'],
  ['1s 2w', { ...views('1 2'), ...failed(2) }, '1s 2o', 'stop waiting'],
  ['1s 2w', views('1? 2?'), null, null],
  ['1s 2w', views('1? 2*'), '1s 2y', 'sync'],
  ['1s 2y 3w', views('1? 2- 3?'), '1s 3w 2o', 'stop syncing'],
  ['1s 2y', views('1? 2*'), '1s 2o', 'stop syncing'],
  ['1s 2y', { ...views('1? 2'), ...failed(2) }, '1s 2o', 'stop syncing'],
  ['1s 2y 3o', { ...views('1? 2 3?'), ...report(2) }, '1s 2s 3o', 'up to date'],
  ['1s 2y', { ...views('1? 2?'), ...report(2) }, null, null],
  ['1s 2y', { ...views('1 2'), ...report(2, 2) }, null, null],
  ['1s 2y', { ...views('1 2'), ...report(2, 1, 2) }, null, null],
  ['1s 2y', { ...views('1 2'), ...report(3) }, null, null],
  ['1s 2w', { ...views('1 2?'), ...report(2) }, null, null],
  // nodes that live and do not reach each other
  ['1s 2s 3s', { ...views('1 2 3'), ...apart([1, 2]) }, '1s 2d 3s', 'drain'],
  ['1s 2s 3s', { ...views('1 2 3'), ...apart([1, 3]) }, null, null],
  ['1s 2s 3s', { ...views('1 2 3'), ...apart([1, 2], [1, 3]) }, '1d 2s 3s', 'drain'],
  ['1s 2s 3s', { ...views('1 2 3'), ...apart([1, 2], [2, 3]) }, '1s 2d 3s', 'drain'],
  ['1s 2d 3s', { ...views('1 2 3'), ...apart([1, 2]) }, null, null],
  ['1s 2s', { ...views('1? 2'), ...apart([1, 2]) }, null, null],
  ['1s 3s 2o', { ...views('1 2 3'), ...apart([1, 2]) }, '1s 3s 2w', 'return'],
  ['1s 3s 2w', { ...views('1 2 3'), ...apart([1, 2]) }, '1s 3s 2y', 'sync'],
  ['1s 2w', { ...views('1 2'), ...apart([1, 2]) }, null, null],
  ['1s 2w 3w', { ...views('1 2 3'), ...apart([1, 2]) }, '1s 3y 2w', 'sync'],
  ['1s 3s 2y', { ...views('1 2 3'), ...apart([2, 3]) }, '1s 3s 2o', 'stop syncing'],
  ['1s 3s 2y', { ...views('1 2 3'), ...apart([1, 2]) }, null, null],
  // draining
  ['1s 2s 3s', { ...views('1 2 3?'), drain: disk(1) }, '1d 2s 3s', 'drain'],
  ['1s 2s 3s', { ...views('1 2? 3?'), drain: disk(1) }, null, null],
  ['1s 2s 3s', { ...views('1? 2 3'), drain: disk(1) }, '1d 2s 3s', 'drain'],
  ['1s', { ...views('1'), drain: disk(1) }, null, null],
  ['1s 2d 3s', { ...views('1 2 3'), drain: disk(1) }, null, null],
  ['1s 2s', { ...views('1- 2'), drain: disk(1) }, '2s 1o', 'drop'],
  ['1s 2s', { ...views('1 2'), ...failed(1) }, '1d 2s', 'drain'],
  ['1s 2s', { ...views('1 2'), drain: disk(3) }, null, null],
  ['1d 2s 3y', { ...views('1 2 3'), ...confirm(1) }, '2s 3y 1o', 'drained'],
  ['1d 2s', { ...views('1 2'), ...confirm(1), leave: true }, '2s', 'drained, leaves'],
  ['1d 2s', { ...views('1- 2'), leave: true }, '2s', 'drained, leaves'],
  ['1d 2s', views('1- 2'), '2s 1o', 'drained'],
  ['1d 2s', views('1* 2'), '2s 1o', 'drained'],
  ['1d 2s', { ...views('1 2'), leave: true }, null, null],
  ['1d 2s', { ...views('1 2'), ...confirm(1, 4) }, null, null],
  ['1d 2s', { ...views('1 2'), ...confirm(1, 5, 2) }, null, null],
  ['1d 2s', { ...views('1 2?'), ...confirm(1) }, null, null],
  ['1d 2s', { ...views('1 2?'), ...confirm(1), leave: true }, null, null],
  ['1d 2s 3s', { ...views('1- 2? 3-'), leave: true }, null, null],
  // coming and going
  ['1s 2o', { ...views('1 2 3-'), add: { disk: disk(3), node: 3 as NodeNumber } }, '1s 2o 3o', 'add'],
  ['1s', { ...views('1 2'), add: { disk: disk(1), node: 1 as NodeNumber } }, null, null],
  ['1s 2o', { ...views('1 2'), remove: disk(2) }, '1s', 'remove offline'],
  ['1s 2w', { ...views('1 2'), remove: disk(2) }, '1s', 'remove waiting'],
  ['1s 2y', { ...views('1 2'), remove: disk(2) }, '1s', 'remove syncing'],
  ['1s 2s', { ...views('1 2'), remove: disk(2) }, null, null],
  ['1d 2s', { ...views('1 2'), remove: disk(1) }, null, null],
  ['1l 2l', { ...views('1? 2?'), remove: disk(1) }, null, null],
]

test('every row of the transition table does what it says, and nothing else happens', () => {
  for (const [from, event, to, row] of CASES) {
    const before = chain(from)
    const step = nextStep(before, event)
    assert.deepEqual([show(observe(before, event)), step?.transition ?? null], [to, row], `${from} under ${JSON.stringify({ ...event, views: undefined })}`)
  }
})

test('the table recovers nobody beside a SERVING replica even in a chain that could not be', () => {
  observe(chain('1s 2l'), { ...views('1? 2'), lastIds: [id(2, 7)] })
  assert.equal(nextChain(chain('1s 2l'), { ...views('1? 2'), lastIds: [id(2, 7)] }), null)
})

test('a step stamps who changed state with the new version and the registered incarnation, and only them', () => {
  const dropped = nextChain(chain('1s 2s 3y'), views('1* 2 3'))!
  assert.deepEqual(
    dropped.entries.map((entry) => [entry.disk, entry.since, entry.incarnation]),
    [
      [2, 1, 1],
      [3, 1, 1],
      [1, 6, 2],
    ],
  )
  const draining = nextChain(chain('1s 2s'), { ...views('1 2'), drain: disk(1) })!
  assert.deepEqual(draining.entries[0], { disk: 1, node: 1, state: DRAINING, since: 1, incarnation: 1 })
  const rescued = nextChain(draining, views('1 2-'))!
  assert.deepEqual(rescued.entries[0], { disk: 1, node: 1, state: SERVING, since: 1, incarnation: 1 })
})

test('one event may pass several versions until nothing more follows', () => {
  assert.equal(show(settle(chain('1s 2o 3o'), views('1 2 3'))), '1s 2y 3w')
  assert.equal(settle(chain('1s 2o 3o'), views('1 2 3')).version, 8)
  const still = chain('1s 2s')
  assert.equal(settle(still, views('1 2')), still)
})

test('a chain is never longer than its maximum', () => {
  const full = chain(Array.from({ length: CHAIN_ENTRIES_MAX }, (_, i) => `${i + 1}s`).join(' '))
  assert.equal(nextChain(full, { ...views('1'), add: { disk: disk(99), node: 99 as NodeNumber } }), null)
})

test('questions about a chain: head, SYNCING entry, own entry', () => {
  const c = chain('1d 2s 3y 4w 5o')
  assert.equal(headOf(c)?.disk, 1)
  assert.equal(headOf(chain('1l 2w')), undefined)
  assert.equal(syncingOf(c)?.disk, 3)
  assert.equal(entryOf(c, disk(5))?.state, OFFLINE)
  assert.equal(ownEntry(c, disk(2), 1 as Incarnation)?.state, SERVING)
  assert.equal(ownEntry(c, disk(2), 2 as Incarnation)?.state, OFFLINE)
  assert.equal(ownEntry(c, disk(4), 2 as Incarnation)?.state, WAITING)
  assert.equal(ownEntry(c, disk(9), 1 as Incarnation), undefined)
})

test('chains that break an invariant are told', () => {
  for (const [text, reason] of [
    ['1d 2d 3s', /two DRAINING/],
    ['1s 2y 3y', /two SYNCING/],
    ['1s 2l', /SERVING beside LASTSRV/],
    ['1d', /DRAINING without SERVING/],
    ['1y', /SYNCING without SERVING/],
    ['1y 2s', /out of order/],
    ['1s 1o', /disk 1 twice/],
  ] as const) {
    assert.match(invalidChain(chain(text)) ?? '', reason)
  }
  assert.match(invalidChain({ ...chain('1s'), version: 0 as ChainVersion }) ?? '', /version/)
  assert.equal(invalidChain(chain('1s 2d 3s 4y 5w 6o')), null)
})

test('packed chains come back as they were, and cut ones are refused', () => {
  const chains = [
    { slot: 3 as SlotIndex, chain: chain('1s 2d 3y 4w 5o') },
    { slot: 9 as SlotIndex, chain: { ...chain('1l'), entries: chain('1l').entries.map((entry) => ({ ...entry, incarnation: 0xffff_fff0 as Incarnation })) } },
  ]
  assert.deepEqual(unpackChains(packChains(chains)), chains)
  assert.deepEqual(unpackChains(new Int32Array(0)), [])
  assert.throws(() => unpackChains(packChains(chains).subarray(0, 20)), /cut short/)
})

test('4096 slots settle within a turn of the main thread', () => {
  const entry = (n: number, state: ReplicaState = SERVING): ChainEntry => ({
    disk: disk(n),
    node: n as NodeNumber,
    state,
    since: 1 as ChainVersion,
    incarnation: 1 as Incarnation,
  })
  const chains = Array.from({ length: 4096 }, (_, slot): Chain => ({ version: 5 as ChainVersion, entries: [0, 1, 2].map((i) => entry(((slot + i) % 5) + 1)) }))
  const event = views('1- 2 3 4 5')
  assert.equal(chains.filter((c) => settle(c, event) !== c).length, chains.filter((c) => entryOf(c, disk(1)) !== undefined).length)
})

// ---- the table under random events, against a deliberately dumb cluster ---------------------------------------------------

/** How the coordinator of a run cheats; the checks below must notice. */
type Canary = 'none' | 'a live lease counts as over' | 'a lease is granted before its table' | 'any up-to-date report counts' | 'draining is not confirmed'

const NODES = 4

interface ModelNode {
  alive: boolean
  incarnation: number
  lease: boolean
  diskFailed: boolean
  table: Chain
  /** Updates the replica holds, in order. */
  log: number[]
  /** Of the resync session: its `since`, 0 = none; and whether the copy was taken. */
  session: number
  copied: boolean
}

/** One slot of a cluster with instant messages: writes and copies are atomic, tables are learnt late, lease ends and deaths are found late. */
class Model {
  readonly prng: Prng
  readonly canary: Canary
  readonly view = new CoordinatorView()
  readonly registered = new Map<NodeNumber, Incarnation>()
  apart: Array<readonly [NodeNumber, NodeNumber]> = []
  readonly failedDisks = new Set<number>()
  readonly nodes: ModelNode[]
  chain: Chain
  acked: number[] = []
  written = 0
  reports: Array<NonNullable<ChainEvent['upToDate']>> = []
  ids: LastId[] = []
  trace: string[] = []

  constructor(seed: number, canary: Canary) {
    this.prng = new Prng(seed)
    this.canary = canary
    this.chain = firstChain([1, 2, 3].map((n) => ({ disk: disk(n), node: n as NodeNumber, incarnation: 1 as Incarnation })))
    this.nodes = Array.from({ length: NODES }, () => ({
      alive: true,
      incarnation: 1,
      lease: true,
      diskFailed: false,
      table: this.chain,
      log: [],
      session: 0,
      copied: false,
    }))
    for (let n = 1; n <= NODES; n++) this.registered.set(n as NodeNumber, 1 as Incarnation)
    this.view.newLeader(this.registered)
  }

  own(n: number): ChainEntry | undefined {
    const node = this.nodes[n - 1]!
    return ownEntry(node.table, disk(n), node.incarnation as Incarnation)
  }

  learn(n: number): void {
    const node = this.nodes[n - 1]!
    node.table = this.chain
    const own = this.own(n)
    if (own?.state === SYNCING && node.session !== own.since) {
      node.session = own.since
      node.copied = false
      node.log = []
    }
  }

  /** A client's update at whoever takes itself for the head; reaches a random part of its chain. */
  write(): void {
    const heads = this.nodes
      .map((_, i) => i + 1)
      .filter(
        (n) => this.nodes[n - 1]!.alive && this.own(n)?.state === SERVING && headOf(this.nodes[n - 1]!.table)?.disk === n && !this.nodes[n - 1]!.diskFailed,
      )
    if (heads.length === 0) return
    const head = this.nodes[this.prng.pick(heads) - 1]!
    head.log.push(++this.written)
    const path = head.table.entries.filter((entry) => entry.state <= SYNCING)
    let stopsAt = this.prng.chance(0.6) ? path.length : this.prng.below(path.length + 1)
    for (let i = 1; i < path.length; i++) {
      const n = path[i]!.node
      const node = this.nodes[n - 1]!
      const own = this.own(n)
      if (!node.alive || node.diskFailed || node.table.version !== head.table.version || own === undefined || own.state > SYNCING)
        stopsAt = Math.min(stopsAt, i)
      if (i >= stopsAt) return
      if (own!.state !== SYNCING) {
        assert.deepEqual(node.log, head.log.slice(0, node.log.length), `node ${n} holds what its head does not`)
        node.log = [...head.log]
      } else if (node.copied) node.log = [...head.log]
    }
    if (head.lease) this.acked = [...head.log]
  }

  coordinate(facts: Omit<ChainEvent, 'views'>): void {
    const event: ChainEvent = {
      ...facts,
      views: this.view,
      diskUse: (d) => (this.failedDisks.has(d) ? DiskUse.FAILED : DiskUse.NORMAL),
      lastIds: this.ids,
      apart: apartFromPairs(this.apart),
    }
    const next = observe(this.chain, event)
    if (next === null) return
    this.trace.push(formatChain(next))
    this.chain = next
  }

  evidence(n: number): void {
    const node = this.nodes[n - 1]!
    this.view.evidence([{ node: n as NodeNumber, incarnation: node.incarnation as Incarnation }])
  }

  renew(n: number): void {
    const node = this.nodes[n - 1]!
    if (!node.alive || this.registered.get(n as NodeNumber) !== node.incarnation) return
    if (this.canary !== 'a lease is granted before its table') this.learn(n)
    node.lease = true
    this.view.renewal(n as NodeNumber, node.incarnation as Incarnation)
  }

  restart(n: number): void {
    const node = this.nodes[n - 1]!
    node.alive = true
    node.lease = false
    node.incarnation++
    node.diskFailed = false
    node.session = 0
    node.copied = false
  }

  register(n: number): void {
    const node = this.nodes[n - 1]!
    if (!node.alive || this.registered.get(n as NodeNumber) === node.incarnation) return
    this.registered.set(n as NodeNumber, node.incarnation as Incarnation)
    this.failedDisks.delete(n)
    this.view.registered(n as NodeNumber, node.incarnation as Incarnation)
  }

  resync(n: number): void {
    const node = this.nodes[n - 1]!
    const own = this.own(n)
    if (!node.alive || node.diskFailed || own?.state !== SYNCING) return
    if (node.copied) {
      this.reports.push({ disk: disk(n), since: own.since, incarnation: own.incarnation })
      return
    }
    const { entries } = node.table
    const source = entries[entries.findIndex((entry) => entry.disk === n) - 1]!.node
    const from = this.nodes[source - 1]!
    if (!from.alive || from.diskFailed || from.table.version !== node.table.version || (this.own(source)?.state ?? OFFLINE) > DRAINING) return
    node.log = [...from.log]
    node.copied = true
  }

  reportId(n: number): void {
    const node = this.nodes[n - 1]!
    if (!node.alive || node.diskFailed || this.own(n)?.state !== LASTSRV) return
    const known: LastId = { disk: disk(n), incarnation: node.incarnation as Incarnation, version: node.table.version, hi: 0, lo: node.log.at(-1) ?? 0 }
    this.ids = [...this.ids.filter((other) => other.disk !== n), known]
  }

  deliverReport(): void {
    if (this.reports.length === 0) return
    const [told] = this.reports.splice(this.prng.below(this.reports.length), 1)
    const entry = this.chain.entries.find((other) => other.disk === told!.disk)
    this.coordinate({
      upToDate: this.canary === 'any up-to-date report counts' && entry !== undefined ? { ...told!, since: entry.since, incarnation: entry.incarnation } : told,
    })
  }

  drained(n: number): void {
    const node = this.nodes[n - 1]!
    const cheat = this.canary === 'draining is not confirmed'
    const table = cheat ? this.chain : node.table
    if (!(node.alive || cheat) || this.own(n) === undefined || entryOf(table, disk(n))?.state !== DRAINING) return
    this.coordinate({ drained: { disk: disk(n), version: table.version, incarnation: node.incarnation as Incarnation }, leave: this.prng.chance(0.3) })
  }

  step(): void {
    const n = this.prng.between(1, NODES)
    const node = this.nodes[n - 1]!
    const draw = this.prng.below(100)
    if (draw < 20) this.write()
    else if (draw < 40) this.renew(n)
    else if (draw < 51) this.coordinate({})
    else if (draw < 52) {
      const other = this.prng.between(1, NODES)
      this.apart = other === n ? [] : [...this.apart, [n as NodeNumber, other as NodeNumber]]
    } else if (draw < 57) this.learn(n)
    else if (draw < 65) this.resync(n)
    else if (draw < 70) this.deliverReport()
    else if (draw < 75) this.reportId(n)
    else if (draw < 79) this.register(n)
    else if (draw < 83) {
      if (!node.alive) this.restart(n)
    } else if (draw < 87) {
      if (!node.alive || this.prng.chance(0.5)) {
        if (this.canary !== 'a live lease counts as over') node.lease = false
        this.evidence(n)
      }
    } else if (draw < 90) {
      node.alive = false
      node.lease = false
    } else if (draw < 91) this.view.newLeader(this.registered)
    else if (draw < 92) {
      node.diskFailed = true
      this.failedDisks.add(n)
    } else if (draw < 94) this.coordinate({ drain: disk(n) })
    else if (draw < 96) this.drained(n)
    else if (draw < 97) this.coordinate({ add: { disk: disk(n), node: n as NodeNumber } })
    else if (draw < 98) this.coordinate({ remove: disk(n) })
    else if (draw < 99) this.coordinate({ recoverWithoutAll: true })
    else if (node.alive && this.prng.chance(0.3)) this.restart(n)
    this.check()
  }

  check(): void {
    for (let n = 1; n <= NODES; n++) {
      const node = this.nodes[n - 1]!
      if (!node.alive || !node.lease || node.diskFailed || this.own(n)?.state !== SERVING) continue
      assert.ok(
        this.acked.every((write, i) => node.log[i] === write),
        `node ${n} may serve reads and lacks acknowledged writes: has ${node.log}, acknowledged ${this.acked}, its table ${formatChain(node.table)}`,
      )
    }
  }

  /** Everything works again: the slot must come back by itself, with everybody serving. */
  heal(): void {
    this.apart = []
    for (let n = 1; n <= NODES; n++) if (!this.nodes[n - 1]!.alive || this.nodes[n - 1]!.diskFailed) this.restart(n)
    for (let round = 0; round < 60; round++) {
      for (let n = 1; n <= NODES; n++) this.register(n)
      for (let n = 1; n <= NODES; n++) {
        this.renew(n)
        this.resync(n)
        this.reportId(n)
        this.drained(n)
        this.coordinate({})
      }
      this.deliverReport()
      this.write()
      this.check()
    }
    assert.ok(
      this.chain.entries.every((entry) => entry.state === SERVING),
      `does not heal: ${formatChain(this.chain)}`,
    )
  }
}

function run(seed: number, canary: Canary, steps: number): void {
  const model = new Model(seed, canary)
  try {
    for (let i = 0; i < steps; i++) model.step()
    if (canary === 'none' && model.chain.entries.length > 0) model.heal()
  } catch (error) {
    throw new Error(`seed ${seed}: ${(error as Error).message}\n${model.trace.slice(-12).join('\n')}`)
  }
}

test('under random events nobody serves without every acknowledged write, and the chain heals', () => {
  for (let seed = 1; seed <= 400; seed++) run(seed, 'none', 400)
})

for (const canary of [
  'a live lease counts as over',
  'a lease is granted before its table',
  'any up-to-date report counts',
  'draining is not confirmed',
] as const) {
  test(`the random events find out when ${canary}`, () => {
    assert.throws(() => {
      for (let seed = 1; seed <= 2000; seed++) run(seed, canary, 400)
    }, /seed \d+: /)
  })
}
