import assert from 'node:assert/strict'
import test from 'node:test'
import { Prng } from '../../src/base/prng.ts'
import { describeFault, FAULT_KINDS, FOCUS_NAMES, makeSchedule, PROFILES, parseSchedule, shrink } from './faults.ts'
import { scheduleFor } from './run.ts'

test('a schedule comes from its seed alone, survives being saved, and its faults can be told', () => {
  const kinds = new Set<string>()
  for (const profile of PROFILES) {
    for (let seed = 1; seed < 30; seed++) {
      const options = { seed, profile, nodes: 3, durationMs: 30_000 }
      const schedule = makeSchedule(new Prng(seed), options)
      assert.deepEqual(makeSchedule(new Prng(seed), options), schedule)
      assert.deepEqual(parseSchedule(JSON.stringify(schedule)), schedule)
      for (const fault of schedule.faults) {
        kinds.add(fault.kind)
        assert.notEqual(fault.node, fault.other)
        assert.ok(describeFault(fault).length > 5)
      }
    }
  }
  assert.deepEqual([...kinds].sort(), [...FAULT_KINDS].sort(), 'every kind occurs')
})

test('what an aimed run makes is within the bounds of a schedule', () => {
  for (const focus of FOCUS_NAMES) {
    for (let seed = 1; seed < 20; seed++) {
      const schedule = scheduleFor(seed, { focus })
      assert.deepEqual(parseSchedule(JSON.stringify(schedule)), schedule, `${focus} ${seed}`)
    }
  }
})

test('a schedule of another format, or a damaged one, is refused by name', () => {
  const schedule = makeSchedule(new Prng(1), { seed: 1, profile: 'brutal', nodes: 3, durationMs: 10_000 })
  assert.throws(() => parseSchedule('{'), /not a schedule/)
  assert.throws(() => parseSchedule('[]'), /names no format/)
  assert.throws(() => parseSchedule(JSON.stringify({ ...schedule, format: 99 })), /format 99/)
  assert.throws(() => parseSchedule(JSON.stringify({ ...schedule, profile: 'x' })), /profile x/)
  assert.throws(() => parseSchedule(JSON.stringify({ ...schedule, faults: [{ kind: 'flood' }] })), /kind flood/)
  assert.throws(() => parseSchedule(JSON.stringify({ ...schedule, faults: [{ ...schedule.faults[0], node: 7 }] })), /node 7/)
  const withFault = (fault: object) => () => parseSchedule(JSON.stringify({ ...schedule, faults: [{ ...schedule.faults[0], ...fault }] }))
  assert.throws(withFault({ kind: 'drift-beyond', amount: -1.5 }), /amount of fault 0, drift-beyond, is -1.5, not a number from -0.95 to 0/)
  assert.throws(withFault({ kind: 'drift', amount: 0.02 }), /amount of fault 0, drift, is 0.02/)
  assert.throws(withFault({ kind: 'setting', amount: 1.5 }), /amount of fault 0, setting, is 1.5, not a whole number/)
  assert.throws(withFault({ kind: 'kill', durationMs: 1e9 }), /fault 0 begins after, or lasts longer than, 3600000 ms/)
})

test('shrinking keeps what makes it fail and little else', async () => {
  const schedule = makeSchedule(new Prng(3), { seed: 3, profile: 'brutal', nodes: 3, durationMs: 60_000 })
  const needed = [schedule.faults[5]!, schedule.faults[40]!]
  const small = await shrink(schedule, async (candidate) => needed.every((fault) => candidate.faults.includes(fault)), 1000)
  assert.deepEqual(small.faults, needed)
  assert.equal(small.clients, 1)
})
