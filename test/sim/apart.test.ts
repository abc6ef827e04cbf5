/** Two nodes that live, hold their leases, and do not reach each other: chains through both are led around it. */
import assert from 'node:assert/strict'
import { isMember } from '../../src/placement/chain.ts'
import { scenario } from './scenario.ts'

for (const ways of ['both ways', 'one way'] as const) {
  scenario(`two nodes do not reach each other (${ways}), a third reaches both: writes through it stall for seconds, none fails`, async (t, volume) => {
    const leader = t.leader
    const [one, other] = [1, 2, 3].filter((number) => number !== leader).map((number) => t.node(number))
    t.load(volume, { on: [leader], ops: 600, readShare: 0.3 })
    await t.seconds(1)
    t.network.cut(one!.host, other!.host)
    if (ways === 'both ways') t.network.cut(other!.host, one!.host)
    const numbers = [one!, other!].map((node) => node.control!.member!.node)
    const hasNeighbours = () =>
      t.state!.chains.some(({ entries }) =>
        entries.some((entry, i) => {
          const next = entries[i + 1]
          return next !== undefined && isMember(entry.state) && isMember(next.state) && numbers.includes(entry.node) && numbers.includes(next.node)
        }),
      )
    await t.until('no chain needs that way', () => !hasNeighbours(), 12_000)
    await t.clientsDone()
    t.assertNoErrors()
    assert.ok(t.longestStallMs < 9000, `the longest operation took ${t.longestStallMs} ms`)
    const { reasons } = (await t.settle(t.insist('xsan.v1.Cluster/Status', {}))) as { reasons: string[] }
    assert.ok(
      reasons.some((reason) => reason.startsWith('Nodes node-') && reason.includes('do not reach the data ports of each other')),
      reasons.join(' '),
    )
    // every part keeps a copy that serves, most of them all three: the third node stands between the two
    await t.seconds(20)
    const served = t.state!.chains.map(({ entries }) => entries.filter((entry) => isMember(entry.state)).length)
    assert.ok(Math.min(...served) >= 2, `a part with ${Math.min(...served)} copies`)
    t.load(volume, { on: [leader], ops: 100 })
    await t.clientsDone()
    t.assertNoErrors()
    t.network.healAll()
    await t.allIsWell()
  })
}
