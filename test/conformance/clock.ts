/** What every Clock must do. */
import assert from 'node:assert/strict'
import test from 'node:test'
import type { Clock } from '../../src/env/control.ts'
import type { Fixture, MakeFixture } from './fixture.ts'

export function clockConformance(name: string, makeFixture: MakeFixture<Clock>): void {
  const scenario = (title: string, body: (clock: Clock, fixture: Fixture<Clock>) => Promise<void>) =>
    test(`${name}: ${title}`, { timeout: 30_000 }, async () => {
      const fixture = await makeFixture()
      try {
        await body((await fixture.create()).subject, fixture)
      } finally {
        await fixture.close()
      }
    })
  const after = (clock: Clock, delayMs: number) => new Promise<void>((resolve) => clock.setTimer(delayMs, resolve))

  scenario('a timer fires once, not before its delay', async (clock, fixture) => {
    const beganMs = clock.nowMs()
    let fired = 0
    let tookMs = 0
    clock.setTimer(20, () => {
      fired++
      tookMs = clock.nowMs() - beganMs
    })
    await fixture.run(after(clock, 60))
    assert.equal(fired, 1)
    assert.ok(tookMs >= 20, `fired after ${tookMs} ms`)
  })

  scenario('the shorter of two timers fires first', async (clock, fixture) => {
    const order: string[] = []
    clock.setTimer(40, () => order.push('long'))
    clock.setTimer(10, () => order.push('short'))
    await fixture.run(after(clock, 100))
    assert.deepEqual(order, ['short', 'long'])
  })

  scenario('a timer never fires inside setTimer, not even one of 0 ms', async (clock, fixture) => {
    let fired = false
    clock.setTimer(0, () => {
      fired = true
    })
    assert.equal(fired, false)
    await fixture.run(after(clock, 20))
    assert.equal(fired, true)
  })

  scenario('a cleared timer does not fire; clearing it again, or one that has fired, is harmless', async (clock, fixture) => {
    let fired = 0
    const id = clock.setTimer(10, () => fired++)
    clock.clearTimer(id)
    clock.clearTimer(id)
    const spent = clock.setTimer(5, () => {})
    await fixture.run(after(clock, 50))
    clock.clearTimer(spent)
    assert.equal(fired, 0)
  })

  scenario('the clock never goes back', async (clock, fixture) => {
    let last = clock.nowMs()
    for (let i = 0; i < 20; i++) {
      await fixture.run(after(clock, 1))
      const now = clock.nowMs()
      assert.ok(now >= last)
      last = now
    }
  })

  scenario('wall time is a date of this century', async (clock) => {
    assert.ok(clock.wallMs() > 1_700_000_000_000)
  })
}
