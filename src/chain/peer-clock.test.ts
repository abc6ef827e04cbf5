import assert from 'node:assert/strict'
import test from 'node:test'
import { Prng } from '../base/prng.ts'
import { PeerClock } from './peer-clock.ts'

test('nothing is known before something was said, nor in the next session', () => {
  const clock = new PeerClock()
  assert.equal(clock.isKnown, false)
  clock.learn(500, 20)
  assert.equal(clock.isKnown, true)
  assert.equal(clock.atLeastMs(20), 500)
  clock.forget()
  assert.equal(clock.isKnown, false)
  clock.learn(100, 30)
  assert.equal(clock.atLeastMs(30), 100, 'the clock of a host that was restarted')
})

test('what was long on its way does not spoil what is known', () => {
  const clock = new PeerClock()
  clock.learn(1000, 50)
  clock.learn(1500, 5000)
  assert.equal(clock.atLeastMs(5000), 1000 + 4950 * 0.99)
  clock.learn(5949.5, 5000)
  assert.equal(clock.atLeastMs(5000), 5949.5)
})

test("the other's clock never shows less, whatever the way took, for rates within the bound", () => {
  for (let seed = 1; seed <= 200; seed++) {
    const random = new Prng(seed)
    const unit = () => random.u32() / 2 ** 32
    const rate = 0.99 + unit() / 99
    const aheadMs = (unit() - 0.5) * 1e6
    const otherMs = (ownMs: number) => 1e7 + aheadMs + ownMs * rate
    const clock = new PeerClock()
    for (let ownMs = 1000; ownMs < 60_000; ownMs += 500 * unit()) {
      clock.learn(otherMs(ownMs - unit() * (seed % 3 === 0 ? 5000 : 1)), ownMs)
      for (const atMs of [ownMs - 100, ownMs, ownMs + 4000]) assert.ok(clock.atLeastMs(atMs) <= otherMs(atMs) + 1e-6)
    }
    if (seed % 3 !== 0) assert.ok(clock.atLeastMs(60_000) > otherMs(60_000) - 30)
  }
})
