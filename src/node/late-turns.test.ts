import assert from 'node:assert/strict'
import test from 'node:test'
import { LateTurns } from './late-turns.ts'

test("turns within the limit are nobody's business", () => {
  const late = new LateTurns(50)
  for (let s = 0; s < 300; s += 5) assert.equal(late.look(s * 1000, 50), undefined)
})

test('the first late turn is told at once, then the worst of each minute with how many there were', () => {
  const late = new LateTurns(50)
  assert.deepEqual(late.look(5000, 80), { ms: 80, times: 1 })
  for (let s = 10; s < 65; s += 5) assert.equal(late.look(s * 1000, s === 30 ? 200 : 60), undefined, `${s}`)
  assert.deepEqual(late.look(65_000, 60), { ms: 200, times: 12 })
  assert.equal(late.look(70_000, 10), undefined)
  assert.equal(late.look(200_000, 10), undefined, 'nothing happened since')
})

test('what is four times as bad as what was told does not wait', () => {
  const late = new LateTurns(50)
  late.look(5000, 80)
  assert.equal(late.look(10_000, 319), undefined)
  assert.deepEqual(late.look(15_000, 320), { ms: 320, times: 2 })
  assert.equal(late.look(20_000, 500), undefined)
})
