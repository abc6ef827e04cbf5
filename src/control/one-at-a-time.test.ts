import assert from 'node:assert/strict'
import test from 'node:test'
import { OneAtATime } from './one-at-a-time.ts'

const turn = () => new Promise((resolve) => setImmediate(resolve))

/** Work whose runs end when the test says so. */
function work(): { readonly begun: () => number; readonly end: () => void; readonly work: OneAtATime } {
  const ends: Array<() => void> = []
  let begun = 0
  return {
    begun: () => begun,
    end: () => ends.shift()!(),
    work: new OneAtATime(() => {
      begun++
      return new Promise((resolve) => ends.push(resolve))
    }),
  }
}

test('what is asked for in one turn is one run, what is asked for during a run is one more, which begins after it', async () => {
  const { begun, end, work: errand } = work()
  for (let i = 0; i < 3; i++) errand.ask()
  await turn()
  assert.equal(begun(), 1)
  for (let i = 0; i < 3; i++) errand.ask()
  await turn()
  assert.equal(begun(), 1, 'never two at a time')
  end()
  await turn()
  assert.equal(begun(), 2)
  end()
  await turn()
  assert.equal(begun(), 2, 'nobody has asked again')
  errand.ask()
  await turn()
  assert.equal(begun(), 3)
})

test('after a stop nothing begins, neither what was asked for before it nor after', async () => {
  const { begun, end, work: errand } = work()
  errand.ask()
  await turn()
  errand.ask()
  errand.stop()
  end()
  await turn()
  errand.ask()
  await turn()
  assert.equal(begun(), 1)
  const { begun: other, work: never } = work()
  never.ask()
  never.stop()
  await turn()
  assert.equal(other(), 0)
})
