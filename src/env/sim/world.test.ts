import assert from 'node:assert/strict'
import test from 'node:test'
import { World } from './world.ts'

test('events run by time, then in the order they were scheduled; cancelled ones do not run', async () => {
  const world = new World({ seed: 1 })
  const order: string[] = []
  world.schedule(5, 'e', () => order.push('late'))
  world.schedule(1, 'e', () => order.push('first'))
  world.schedule(1, 'e', () => order.push('second'))
  world.cancel(world.schedule(2, 'e', () => order.push('cancelled')))
  await world.runFor(10)
  assert.deepEqual(order, ['first', 'second', 'late'])
  assert.equal(world.nowMs, 10)
})

test('promise chains of any depth run to their end before the next event', async () => {
  const world = new World({ seed: 1 })
  const order: string[] = []
  const deep = async () => {
    for (let i = 0; i < 5000; i++) await Promise.resolve()
    order.push('deep')
  }
  world.schedule(1, 'e', () => {
    world.asyncPending = true
    void deep()
  })
  world.schedule(1, 'e', () => order.push('next event'))
  await world.runFor(2)
  assert.deepEqual(order, ['deep', 'next event'])
})

test('the same seed gives the same hash, another seed or one event more another', async () => {
  const run = async (seed: number, extra: boolean) => {
    const world = new World({ seed })
    const random = world.random('test')
    let left = 1000
    const step = () => {
      if (left-- > 0) world.schedule(random.unit(), 'step', step, random.u32())
    }
    step()
    if (extra) world.schedule(3, 'extra', () => {})
    await world.runFor(10_000)
    return world.hash
  }
  const hash = await run(7, false)
  assert.equal(await run(7, false), hash)
  assert.notEqual(await run(8, false), hash)
  assert.notEqual(await run(7, true), hash)
  assert.notEqual(await run(2 ** 40 + 7, false), hash, 'all bits of the seed count')
})

test('settle drives the world until a promise is done, and says when it never is', async () => {
  const world = new World({ seed: 1 })
  const after = (delayMs: number) =>
    new Promise<number>((resolve) =>
      world.schedule(delayMs, 'timer', () => {
        world.asyncPending = true
        resolve(world.nowMs)
      }),
    )
  assert.equal(await world.settle(after(1000), 2000), 1000)
  await assert.rejects(world.settle(after(1000), 500), /not settled/)
})

test('a real timer started inside the simulation is noticed', async () => {
  const world = new World({ seed: 1 })
  const timers = [setTimeout(() => {}, 1000), setTimeout(() => {}, 1000)]
  try {
    assert.throws(() => world.assertNothingReal(), /something real/)
  } finally {
    for (const timer of timers) clearTimeout(timer)
  }
})

test('events without promises are quick', { timeout: 30_000 }, async (t) => {
  const world = new World({ seed: 1 })
  let count = 0
  const step = () => {
    if (count++ < 300_000) world.schedule(1, 'step', step, count)
  }
  for (let i = 0; i < 100; i++) step()
  const began = process.hrtime.bigint()
  await world.run(() => count >= 300_000, 1e9)
  const seconds = Number(process.hrtime.bigint() - began) / 1e9
  t.diagnostic(`${Math.round(count / seconds)} events/s`)
})
