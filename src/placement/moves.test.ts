import assert from 'node:assert/strict'
import test from 'node:test'
import type { ChainVersion, DiskNumber, Incarnation, NodeNumber } from '../base/ids.ts'
import { Prng } from '../base/prng.ts'
import { type Chain, type ChainEvent, entryOf, firstChain, formatChain, ReplicaState, settle, syncingOf } from './chain.ts'
import { givenUpBeside, type Move, planMoves } from './moves.ts'
import { placeSlots } from './place.ts'
import { View } from './view.ts'

const { SERVING, DRAINING, SYNCING, LASTSRV, WAITING, OFFLINE } = ReplicaState
const INCARNATION = 1 as Incarnation
const disks = (...numbers: number[]) => numbers as DiskNumber[]
/** Two disks per node: 1 and 2 on node 1, 3 and 4 on node 2 ... */
const nodeOf = (disk: DiskNumber) => Math.ceil(disk / 2) as NodeNumber
const ALL_UP: ChainEvent = { views: { view: () => View.UP, incarnation: () => INCARNATION } }

function chain(states: ReadonlyArray<readonly [number, ReplicaState]>): Chain {
  return {
    version: 3 as ChainVersion,
    entries: states.map(([disk, state]) => ({
      disk: disk as DiskNumber,
      node: nodeOf(disk as DiskNumber),
      state,
      since: 1 as ChainVersion,
      incarnation: INCARNATION,
    })),
  }
}
const next = (states: ReadonlyArray<readonly [number, ReplicaState]>, desired: DiskNumber[]) => planMoves([chain(states)], [desired], nodeOf)[0] ?? null

/** What the coordinator makes of a move when everybody is up and answers at once. */
function carryOut(before: Chain, move: Move): Chain {
  const facts: Omit<ChainEvent, 'views'> =
    move.kind === 'add' ? { add: { disk: move.disk, node: move.node } } : move.kind === 'remove' ? { remove: move.disk } : { drain: move.disk }
  let after = settle(before, { ...ALL_UP, ...facts })
  if (move.kind === 'drain') {
    assert.equal(entryOf(after, move.disk)?.state, DRAINING, formatChain(after))
    after = settle(after, { ...ALL_UP, drained: { disk: move.disk, version: after.version, incarnation: INCARNATION }, leave: move.leave })
  }
  for (let syncing = syncingOf(after); syncing !== undefined; syncing = syncingOf(after)) after = settle(after, { ...ALL_UP, upToDate: syncing })
  return after
}

test('a slot whose new places are lost one after another, before any has caught up, never runs out of places', () => {
  const down = new Set<number>()
  const event: ChainEvent = { views: { view: (node) => (down.has(node) ? View.DOWN : View.UP), incarnation: () => INCARNATION } }
  let now = firstChain([{ disk: 1 as DiskNumber, node: nodeOf(1 as DiskNumber), incarnation: INCARNATION }])
  for (let disk = 3; disk < 100; disk += 2) {
    const wanted = disks(1, disk)
    for (let move = planMoves([now], [wanted], nodeOf)[0]; move !== undefined; move = planMoves([now], [wanted], nodeOf)[0]) {
      const facts = move.kind === 'add' ? { add: { disk: move.disk, node: move.node } } : { remove: move.disk }
      const next = settle(now, { ...event, ...facts })
      assert.notEqual(next, now, `${JSON.stringify(move)} changes nothing in ${formatChain(now)}`)
      now = next
    }
    assert.equal(syncingOf(now)?.disk, disk, formatChain(now))
    down.add(nodeOf(disk as DiskNumber))
    now = settle(now, event)
  }
})

test('a missing replica is added first, a surplus one drained when all desired serve, then the head set right', () => {
  assert.deepEqual(
    next(
      [
        [1, SERVING],
        [3, SERVING],
      ],
      disks(1, 5),
    ),
    { kind: 'add', slot: 0, disk: 5, node: 3 },
  )
  assert.equal(
    next(
      [
        [1, SERVING],
        [3, SERVING],
        [5, SYNCING],
      ],
      disks(1, 5),
    ),
    null,
  )
  assert.deepEqual(
    next(
      [
        [1, SERVING],
        [3, SERVING],
        [5, SERVING],
      ],
      disks(1, 5),
    ),
    { kind: 'drain', slot: 0, disk: 3, leave: true },
  )
  assert.equal(
    next(
      [
        [1, SERVING],
        [3, DRAINING],
        [5, SERVING],
      ],
      disks(1, 5),
    ),
    null,
  )
  assert.equal(
    next(
      [
        [1, SERVING],
        [5, SERVING],
      ],
      disks(1, 5),
    ),
    null,
  )
  assert.deepEqual(
    next(
      [
        [5, SERVING],
        [1, SERVING],
      ],
      disks(1, 5),
    ),
    { kind: 'drain', slot: 0, disk: 5, leave: false },
  )
  assert.equal(
    planMoves(
      [
        chain([
          [5, SERVING],
          [1, SERVING],
        ]),
      ],
      [disks(1, 5)],
      nodeOf,
      { reorderHeads: false },
    ).length,
    0,
  )
})

test('replicas that do not serve make room, and the last that serve are left alone', () => {
  assert.deepEqual(
    next(
      [
        [1, SERVING],
        [3, SYNCING],
      ],
      disks(1, 5),
    ),
    { kind: 'remove', slot: 0, disk: 3 },
  )
  assert.deepEqual(
    next(
      [
        [1, SERVING],
        [3, SERVING],
        [5, OFFLINE],
      ],
      disks(1, 3),
    ),
    { kind: 'remove', slot: 0, disk: 5 },
  )
  assert.equal(
    next(
      [
        [1, SERVING],
        [3, OFFLINE],
        [5, OFFLINE],
      ],
      disks(1, 3),
    ),
    null,
    'a copy that may return is kept while a desired one is away',
  )
  assert.equal(
    next(
      [
        [1, LASTSRV],
        [3, WAITING],
      ],
      disks(5),
    ),
    null,
  )
  assert.equal(next([[1, SERVING]], disks()), null)
})

test('a replica moves between disks of one node without being twice on it, and not while nobody else serves', () => {
  assert.deepEqual(
    next(
      [
        [1, SERVING],
        [3, SERVING],
      ],
      disks(2, 3),
    ),
    { kind: 'drain', slot: 0, disk: 1, leave: true },
  )
  assert.deepEqual(
    next(
      [
        [3, SERVING],
        [1, OFFLINE],
      ],
      disks(2, 3),
    ),
    { kind: 'remove', slot: 0, disk: 1 },
  )
  assert.equal(next([[1, SERVING]], disks(2)), null)
  assert.equal(
    next(
      [
        [1, SERVING],
        [3, OFFLINE],
      ],
      disks(2, 3),
    ),
    null,
    'it waits for the other copy',
  )
  assert.deepEqual(next([[1, SERVING]], disks(2, 3)), { kind: 'add', slot: 0, disk: 3, node: 2 }, 'another node first')
})

test('a copy that was given up goes where another one of its node serves, whatever its state', () => {
  for (const state of [OFFLINE, WAITING, SYNCING]) {
    const twice = chain([
      [2, SERVING],
      [3, SERVING],
      [1, state],
    ])
    assert.equal(givenUpBeside(twice)?.disk, 1)
    const left = settle(twice, { ...ALL_UP, remove: 1 as DiskNumber })
    assert.deepEqual(
      left.entries.map(({ disk }) => disk),
      [2, 3],
      formatChain(left),
    )
  }
  const twoWait = chain([
    [3, SERVING],
    [1, WAITING],
    [2, OFFLINE],
  ])
  assert.equal(givenUpBeside(twoWait), undefined)
})

test('what is on a disk that has failed is kept in the chain until there are as many copies as wanted: the others may be lost before', () => {
  const keeping = (states: ReadonlyArray<readonly [number, ReplicaState]>, desired: DiskNumber[], kept: readonly number[] = [1]) =>
    planMoves([chain(states)], [desired], nodeOf, { reorderHeads: true, copies: 3, isKept: (disk) => kept.includes(disk) })[0] ?? null
  const two = [
    [3, SERVING],
    [5, SERVING],
    [1, OFFLINE],
  ] as const
  assert.equal(keeping(two, disks(3, 5)), null, 'nowhere else')
  assert.deepEqual(keeping(two, disks(3, 5), []), { kind: 'remove', slot: 0, disk: 1 }, 'its node is to be removed')
  assert.deepEqual(keeping(two, disks(3, 5, 2)), { kind: 'add', slot: 0, disk: 2, node: 1 }, 'beside it, on another disk of its node')
  assert.equal(keeping([...two.slice(0, 2), [2, SYNCING], [1, OFFLINE]], disks(3, 5, 2)), null)
  assert.deepEqual(keeping([...two.slice(0, 2), [7, SERVING], [1, OFFLINE]], disks(3, 5, 7)), { kind: 'remove', slot: 0, disk: 1 })
})

test('slots with the fewest serving replicas come first', () => {
  const moves = planMoves(
    [
      chain([
        [1, SERVING],
        [3, SERVING],
      ]),
      chain([[1, SERVING]]),
    ],
    [disks(1, 5), disks(1, 5)],
    nodeOf,
  )
  assert.deepEqual(
    moves.map(({ slot }) => slot),
    [1, 0],
  )
})

test('step by step every slot reaches its desired disks and head, with a copy to spare on the way', () => {
  const prng = new Prng(11)
  for (let round = 0; round < 300; round++) {
    const pick = () => {
      const picked: DiskNumber[] = []
      while (picked.length < 3) {
        const d = prng.between(1, 10) as DiskNumber
        if (picked.every((other) => nodeOf(other) !== nodeOf(d))) picked.push(d)
      }
      return picked
    }
    const desired = pick()
    let current = firstChain(pick().map((disk) => ({ disk, node: nodeOf(disk), incarnation: INCARNATION })))
    let steps = 0
    for (let move = planMoves([current], [desired], nodeOf)[0]; move !== undefined; move = planMoves([current], [desired], nodeOf)[0]) {
      assert.ok(++steps <= 12, `${formatChain(current)} does not reach ${desired}`)
      current = carryOut(current, move)
      assert.ok(current.entries.filter((entry) => entry.state === SERVING).length >= 2, formatChain(current))
    }
    assert.equal(current.entries[0]?.disk, desired[0])
    assert.deepEqual(current.entries.map((entry) => entry.disk).sort(), [...desired].sort())
  }
})

test('a cluster of one node grows to three, and every node heads its share', () => {
  const members = [1, 3, 5].map((d) => ({ disk: d as DiskNumber, node: nodeOf(d as DiskNumber), weight: 1 }))
  let chains = Array.from({ length: 64 }, () => firstChain([{ disk: 1 as DiskNumber, node: 1 as NodeNumber, incarnation: INCARNATION }]))
  const desired = placeSlots(members, { slotCount: 64, replicas: 3, previous: chains.map((c) => c.entries.map((entry) => entry.disk)) })
  for (let round = 0; round < 10; round++) {
    const moves = planMoves(chains, desired, nodeOf)
    chains = chains.map((c, slot) => {
      const move = moves.find((m) => m.slot === slot)
      return move === undefined ? c : carryOut(c, move)
    })
  }
  assert.deepEqual(planMoves(chains, desired, nodeOf), [])
  for (const { disk } of members) assert.ok(Math.abs(chains.filter((c) => c.entries[0]!.disk === disk).length - 64 / 3) <= 1)
})
