import assert from 'node:assert/strict'
import test from 'node:test'
import type { ChainVersion, DiskNumber, Incarnation, NodeNumber } from '../base/ids.ts'
import { type Chain, type LastId, mayHaveLostUnflushed, ReplicaState } from './chain.ts'

const { SERVING, SYNCING, LASTSRV, WAITING, OFFLINE } = ReplicaState

/** Entries as [disk, state, incarnation]; every disk on a node of its own. */
function chain(version: number, ...entries: ReadonlyArray<readonly [number, ReplicaState, number]>): Chain {
  return {
    version: version as ChainVersion,
    entries: entries.map(([disk, state, incarnation]) => ({
      disk: disk as DiskNumber,
      node: disk as unknown as NodeNumber,
      state,
      since: 1 as ChainVersion,
      incarnation: incarnation as Incarnation,
    })),
  }
}
const idOf = (disk: number, incarnation: number, powerLost: boolean, lo = 1): LastId => ({
  disk: disk as DiskNumber,
  incarnation: incarnation as Incarnation,
  version: 2 as ChainVersion,
  hi: 1,
  lo,
  powerLost,
})

test('nothing is lost while somebody who took part in writes goes on', () => {
  const before = chain(1, [1, SERVING, 1], [2, SERVING, 1], [3, SYNCING, 1])
  assert.equal(mayHaveLostUnflushed(before, chain(2, [2, SERVING, 1], [3, SYNCING, 1], [1, OFFLINE, 1])), false)
  assert.equal(mayHaveLostUnflushed(before, chain(3, [3, SERVING, 1], [1, OFFLINE, 1], [2, OFFLINE, 1])), false)
  assert.equal(mayHaveLostUnflushed(before, chain(2, [1, LASTSRV, 1], [2, LASTSRV, 1], [3, WAITING, 1])), false, 'nobody serves yet')
})

test('a recovered slot has lost unflushed writes unless the one who serves kept its memory, and is known to', () => {
  const before = chain(2, [1, LASTSRV, 2], [2, LASTSRV, 2])
  const recovered = chain(3, [1, SERVING, 2], [2, WAITING, 2])
  assert.equal(mayHaveLostUnflushed(before, recovered, [idOf(1, 2, false), idOf(2, 2, true)]), false)
  assert.equal(mayHaveLostUnflushed(before, recovered, [idOf(1, 2, true), idOf(2, 2, true)]), true)
  assert.equal(mayHaveLostUnflushed(before, recovered, [idOf(1, 1, false)]), true, 'the word of an earlier process')
  assert.equal(mayHaveLostUnflushed(before, recovered), true)
  // restarted and recovered within one event
  assert.equal(mayHaveLostUnflushed(chain(1, [1, SERVING, 1]), chain(3, [1, SERVING, 2]), [idOf(1, 2, true)]), true)
})

test('who lost its memory and has all that another has who kept it has lost nothing that was acknowledged', () => {
  const before = chain(2, [1, LASTSRV, 2], [2, LASTSRV, 2])
  const recovered = chain(3, [1, SERVING, 2], [2, WAITING, 2])
  const lost = (...ids: LastId[]) => mayHaveLostUnflushed(before, recovered, ids)
  // the head had ordered a record more than had come to the other one
  assert.equal(lost(idOf(1, 2, true, 9), idOf(2, 2, false, 8)), false)
  assert.equal(lost(idOf(1, 2, true, 9), idOf(2, 2, false, 9)), false)
  assert.equal(lost(idOf(1, 2, true, 8), idOf(2, 2, false, 9)), true, 'it serves for another reason')
  assert.equal(lost(idOf(1, 2, true, 9), { ...idOf(2, 2, false, 8), incomplete: true }), true)
  assert.equal(lost(idOf(1, 2, true, 9), idOf(2, 1, false, 8)), true, 'the word of an earlier process')
  assert.equal(lost(idOf(1, 2, true, 9), { ...idOf(2, 2, false, 8), version: 0 as ChainVersion }), true, 'the word of an earlier loss')
  const waited = chain(2, [1, LASTSRV, 2], [2, WAITING, 2])
  assert.equal(mayHaveLostUnflushed(waited, recovered, [idOf(1, 2, true, 9), idOf(2, 2, false, 8)]), true, 'who had not served last')
})

test('who serves after data loss was accepted lacks whatever it lacks', () => {
  const before = chain(2, [1, LASTSRV, 2], [2, WAITING, 2])
  assert.equal(mayHaveLostUnflushed(before, chain(3, [2, SERVING, 2], [1, OFFLINE, 2]), [idOf(2, 2, false)]), true)
})
