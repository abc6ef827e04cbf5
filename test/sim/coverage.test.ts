/** What is counted as reached, and the refusals that no seed reaches: they are asked for directly, so that they are no dead code. */
import assert from 'node:assert/strict'
import test from 'node:test'
import { FlightEvent } from '../../src/base/flight.ts'
import { Status } from '../../src/base/status.ts'
import { BLOCK_BYTES, PAGE_BYTES } from '../../src/base/units.ts'
import { NONE } from '../../src/chain/records.ts'
import { slotOf } from '../../src/placement/ring.ts'
import { RecordKind } from '../../src/store/store.ts'
import { coverageGaps, coverageText, faultShares, NOT_BY_SEEDS } from './coverage.ts'
import { Scenario } from './scenario.ts'

const everything = () => new Map(coverageGaps(new Map()).map((gap) => [gap.replace(': never reached', ''), 1] as const))

test('a row or a refusal that is not reached is a gap, and so is one that is said to be out of reach and is not', () => {
  const reached = everything()
  assert.deepEqual(coverageGaps(reached), [])
  reached.delete('row rescue')
  assert.deepEqual(coverageGaps(reached), ['row rescue: never reached'])
  assert.match(coverageText(reached)[0]!, /^reached 15 of 17 rows of the chain table; not: rescue, accept loss$/)
  reached.set('row rescue', 1)
  const [out = ''] = Object.keys(NOT_BY_SEEDS)
  reached.set(out, 1)
  assert.match(coverageGaps(reached).join(), new RegExp(`^${out}: reached, though`))
})

test('a kind of fault that few runs have is named, once there are enough of them to say so', () => {
  const reached = new Map([['fault kill', 60]])
  for (const effect of faultShares(new Map(), 100).rare) if (effect !== 'kill') reached.set(`fault ${effect}`, effect === 'misdirect' ? 4 : 10)
  const { text, rare } = faultShares(reached, 100)
  assert.deepEqual(rare, ['misdirect'])
  assert.match(text, /kill 60, .* misdirect 4,/)
  assert.deepEqual(faultShares(new Map(), 99).rare, [])
})

test('a head refuses an older request of a channel, a process that is fenced, volumes that are not there or read-only, and everything while it stops', {
  timeout: 120_000,
}, async () => {
  const t = new Scenario({ seed: 3, nodes: 3 })
  await t.form()
  await t.healthy()
  const { volume } = await t.createVolume('db', { sizeBytes: BLOCK_BYTES })
  const slot = slotOf(volume, 0, t.state!.chains.length)
  const head = t.nodes.find((node) => node.control!.member!.node === t.state!.chains[slot]!.entries[0]!.node)!
  const other = t.nodes.find((node) => node !== head)!
  const { plane } = head
  const { updates } = plane!.writes
  const { node, incarnation } = other.control!.member!
  await t.until('they have a session', () => plane!.peers.indexOf(node) >= 0)
  const peer = plane!.peers.indexOf(node)
  const answers: number[] = []
  const { writes } = plane!
  /** What the head answers to an empty update of the other node's first channel. */
  const ask = async (
    seq: number,
    clientIncarnation: number,
    from = NONE,
    differently: { kind?: number; volume?: number; lengthBytes?: number } = {},
  ): Promise<number> => {
    const u = updates.alloc()
    const values = {
      peer: from,
      session: from === NONE ? 0 : plane!.peers.sessionOf(from),
      requestRow: 0,
      requestGeneration: -1,
      slot,
      chainVersion: plane!.table.version[slot]!,
      kind: RecordKind.EMPTY,
      durable: 1,
      clientHigh: (node << 8) >>> 0,
      clientLow: clientIncarnation,
      channel: 200,
      seq,
      deadlineMs: Number.POSITIVE_INFINITY,
      receivedMs: head.queue!.nowMs,
      volume: 0,
      layer: 0,
      index: 0,
      offsetBytes: 0,
      lengthBytes: 0,
      bufferPage: NONE,
      owned: 0,
      ...differently,
    }
    for (const [column, value] of Object.entries(values)) updates[column as keyof typeof values][u] = value
    answers.length = 0
    head.process!.schedule(0, 'an update', () => {
      writes.submit(u)
      plane!.settle()
    })
    await t.until('it is answered', () => answers.length > 0)
    return answers[0]!
  }
  const { queue } = head
  const { record } = queue!.flight
  queue!.flight.record = (event, a = 0, b = 0, c = 0) => {
    if (event === FlightEvent.UPDATE_ANSWERED && a === slot) answers.push(b)
    record.call(queue!.flight, event, a, b, c)
  }
  try {
    assert.equal(await ask(8, incarnation), Status.SUCCESS)
    assert.equal(await ask(7, incarnation), Status.DUPLICATE_OLD)
    assert.equal(await ask(9, incarnation - 1, peer), Status.PERMISSION_DENIED)
    const zero = { kind: RecordKind.ZERO, lengthBytes: PAGE_BYTES }
    assert.equal(await ask(9, incarnation, NONE, { ...zero, volume: 0 }), Status.VOLUME_NOT_FOUND)
    assert.equal(await ask(9, incarnation, NONE, { ...zero, volume: volume + 1 }), Status.BUSY, 'its sender may know a newer table')
    writes.readOnly = true
    assert.equal(await ask(9, incarnation, NONE, { ...zero, volume }), Status.READ_ONLY)
    writes.readOnly = false
    writes.stopping = true
    assert.equal(await ask(9, incarnation, peer), Status.STOPPING)
    writes.stopping = false
    const { storeFailed } = plane!.replicas
    storeFailed.fill(true)
    assert.equal(await ask(9, incarnation), Status.REQUEST_REFUSED)
    storeFailed.fill(false)
    assert.equal(await ask(8, incarnation), Status.SUCCESS, 'the same once more is answered, and not ordered again')
  } finally {
    queue!.flight.record = record
  }
})
