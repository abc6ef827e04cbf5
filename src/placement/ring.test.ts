import assert from 'node:assert/strict'
import test from 'node:test'
import type { DiskNumber } from '../base/ids.ts'
import { buildRing, firstPoint, hashBlock, hashPair, isSlotCount, slotOf } from './ring.ts'

test('the place of a block on the ring is part of the data: it never changes', () => {
  assert.deepEqual([hashBlock(0, 0), hashBlock(1, 0), hashBlock(1, 1), hashBlock(2 ** 40 + 3, 0xffff_ffff)], [3644920907, 1862843117, 2888850453, 210512311])
  assert.deepEqual([hashPair(1, 0), hashPair(0, 1)], [619189011, 3342626163])
})

test('a slot is a prefix of the hash, so that doubling the slots splits each in two', () => {
  for (let i = 0; i < 2000; i++) {
    const slot = slotOf(7, i, 4096)
    assert.equal(slot, hashBlock(7, i) >>> 20)
    assert.equal(Math.floor(slotOf(7, i, 8192) / 2), slot)
  }
  assert.equal(slotOf(7, 1, 1), 0)
  assert.deepEqual([1, 2, 4096, 0, 3, 4095, 1.5, 2 ** 21].map(isSlotCount), [true, true, true, false, false, false, false, false])
})

test('blocks of one volume, and first blocks of many volumes, spread evenly over the slots', () => {
  for (const hash of [(i: number) => slotOf(7, i, 256), (i: number) => slotOf(i, 0, 256), (i: number) => slotOf(i * 2 ** 32, 0, 256)]) {
    const counts = new Array<number>(256).fill(0)
    for (let i = 1; i <= 100_000; i++) counts[hash(i)]!++
    // chi square with 255 degrees of freedom: mean 255, standard deviation 22.6
    const expected = 100_000 / 256
    const chiSquare = counts.reduce((sum, count) => sum + (count - expected) ** 2 / expected, 0)
    assert.ok(chiSquare > 255 - 5 * 22.6 && chiSquare < 255 + 5 * 22.6, `chi square ${chiSquare}`)
  }
})

test('disks get virtual nodes by weight, and a slot starts at the first one clockwise', () => {
  const ring = buildRing(
    [
      { disk: 1 as DiskNumber, weight: 1 },
      { disk: 2 as DiskNumber, weight: 3 },
      { disk: 3 as DiskNumber, weight: 0.001 },
    ],
    100,
  )
  const count = (owner: number) => ring.owners.filter((o) => o === owner).length
  assert.ok(Math.abs(count(1) / count(0) - 3) < 0.1)
  assert.equal(count(2), 1)
  assert.ok(ring.points.every((point, i) => i === 0 || ring.points[i - 1]! <= point))
  for (let slot = 0; slot < 64; slot++) {
    const middle = ((slot + 0.5) * 2 ** 32) / 64
    const expected = ring.points.findIndex((point) => point >= middle)
    assert.equal(firstPoint(ring, slot, 64), Math.max(expected, 0))
  }
})
