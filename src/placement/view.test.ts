import assert from 'node:assert/strict'
import test from 'node:test'
import type { Incarnation, NodeNumber } from '../base/ids.ts'
import { CoordinatorView, View, viewsFromRows } from './view.ts'

const { DOWN, MAYBE, UP } = View
const node = (n: number) => n as NodeNumber
const incarnation = (n: number) => n as Incarnation

function threeUp(): CoordinatorView {
  const view = new CoordinatorView()
  view.newLeader([1, 2, 3].map((n) => [node(n), incarnation(5)] as const))
  for (const n of [1, 2, 3]) assert.equal(view.renewal(node(n), incarnation(5)), true)
  return view
}
const states = (view: CoordinatorView) => view.rows().map((row) => row.view)

test('evidence against one node lowers every other to MAYBE until it renews', () => {
  const view = threeUp()
  assert.deepEqual(view.evidence([{ node: node(2), incarnation: incarnation(5) }]), [2])
  assert.deepEqual(states(view), [MAYBE, DOWN, MAYBE])
  view.renewal(node(3), incarnation(5))
  assert.deepEqual(states(view), [MAYBE, DOWN, UP])
})

test('losses found together are one event', () => {
  const view = threeUp()
  assert.deepEqual(view.evidence([1, 2].map((n) => ({ node: node(n), incarnation: incarnation(5) }))), [1, 2])
  assert.deepEqual(states(view), [DOWN, DOWN, MAYBE])
})

test('a second proof of the same death, or a proof against another process, is no news', () => {
  const view = threeUp()
  view.evidence([{ node: node(2), incarnation: incarnation(5) }])
  view.renewal(node(1), incarnation(5))
  assert.deepEqual(view.evidence([{ node: node(2), incarnation: incarnation(5) }]), [])
  assert.deepEqual(view.evidence([{ node: node(1), incarnation: incarnation(4) }]), [])
  assert.deepEqual(states(view), [UP, DOWN, MAYBE])
})

test('a newer registration is evidence against the older process, an old one is nothing', () => {
  const view = threeUp()
  view.registered(node(1), incarnation(5))
  assert.deepEqual(states(view), [UP, UP, UP])
  view.registered(node(1), incarnation(6))
  assert.deepEqual(states(view), [DOWN, MAYBE, MAYBE])
  assert.equal(view.renewal(node(1), incarnation(5)), false)
  assert.deepEqual(states(view), [DOWN, MAYBE, MAYBE])
  assert.equal(view.renewal(node(1), incarnation(6)), true)
  assert.deepEqual(states(view), [UP, MAYBE, MAYBE])
})

test('a new leader believes nothing, a node nobody knows is MAYBE, a node that left is forgotten', () => {
  const view = threeUp()
  view.evidence([{ node: node(2), incarnation: incarnation(5) }])
  view.newLeader([[node(1), incarnation(7)]])
  assert.deepEqual(view.rows(), [{ node: 1, view: MAYBE, incarnation: 7 }])
  assert.equal(view.view(node(9)), MAYBE)
  assert.equal(view.incarnation(node(9)), 0)
  assert.equal(view.renewal(node(9), incarnation(1)), false)
  view.forget(node(1))
  assert.deepEqual(view.rows(), [])
})

test('views travel in a command', () => {
  const view = threeUp()
  view.evidence([{ node: node(2), incarnation: incarnation(5) }])
  const received = viewsFromRows(JSON.parse(JSON.stringify(view.rows())))
  assert.deepEqual(
    [1, 2, 3, 4].map((n) => [received.view(node(n)), received.incarnation(node(n))]),
    [
      [MAYBE, 5],
      [DOWN, 5],
      [MAYBE, 5],
      [MAYBE, 0],
    ],
  )
})
