/** Model and code agree: schedules of the protocol model are replayed against the real chains. See replay.ts for what that means. */
import assert from 'node:assert/strict'
import test from 'node:test'
import { Replicas } from '../../../src/chain/replica.ts'
import { SyncSession } from '../../../src/chain/session.ts'
import { ChainTable } from '../../../src/chain/table.ts'
import { ChannelRows } from '../../../src/store/channel-rows.ts'
import { canaryOf, method, replace } from '../canaries.ts'
import { followsModel } from './follows.ts'
import { type Mix, printLines, printSchedules } from './model.ts'
import { Divergence, Replay } from './replay.ts'
import { parseSchedule, SCHEDULE_FORMAT } from './schedule.ts'

const EVERY_FAULT: Mix = { slots: 1, blocks: 2, kill: 2, expire: 2, leader: 1, brk: 1, cancel: 1, dup: 2, drain: 1, ops: 3, lag: 1 }

/** Most of the writes come while members join: answers that come too late, records that installed blocks hold. */
const RESYNC: Mix = { slots: 1, mx: 1, blocks: 2, kill: 1, expire: 1, brk: 1, ops: 7, len: 120, lag: 1 }
const POWER: Mix = { slots: 1, mx: 2, blocks: 2, power: 2, kill: 1, expire: 1, brk: 1, ops: 3, lag: 1 }
const TWO_SLOTS: Mix = { slots: 2, mx: 2, my: 2, blocks: 2, kill: 2, expire: 1, brk: 1, cancel: 1, dup: 2, ops: 3, lag: 1 }

followsModel('kills and late tables, one slot', 600, { slots: 1, blocks: 2, kill: 2, ops: 3, lag: 1 })
followsModel('every fault but power losses, one slot', 600, EVERY_FAULT)
followsModel('writes while members join', 300, RESYNC)

interface Bug {
  readonly name: string
  readonly mix: Mix
  readonly plant: () => () => void
}
const BUGS: readonly Bug[] = [
  ...['no-reforward', 'dedupe-off', 'up-to-date-too-early'].map((name) => ({ name, mix: EVERY_FAULT, plant: canaryOf(name)!.plant })),
  { name: 'an answer that came too late is installed', mix: RESYNC, plant: () => replace(SyncSession.prototype, 'skipOf', () => () => 0) },
  { name: 'what an installed block holds is staged again', mix: RESYNC, plant: () => replace(SyncSession.prototype, 'covers', () => () => false) },
  { name: 'a session keeps its own rows as held', mix: EVERY_FAULT, plant: () => replace(ChannelRows.prototype, 'clearHeld', () => () => undefined) },
  { name: 'rows of other slots come as held', mix: TWO_SLOTS, plant: canaryOf('rows-of-other-slots-held')!.plant },
  {
    name: 'a record is acknowledged when it is staged',
    mix: POWER,
    plant: () => {
      let isInside = false
      return method<Replicas, [number, number], void>(
        Replicas.prototype,
        'onStaged',
        (original) =>
          function (storeIndex, upTo) {
            if (isInside) return
            isInside = true
            original.call(this, storeIndex, upTo)
            this.onDurable(storeIndex, upTo)
            isInside = false
          },
      )
    },
  },
  {
    name: 'a lease is used before its table',
    mix: EVERY_FAULT,
    plant: () =>
      method<ChainTable, [number, number], void>(
        ChainTable.prototype,
        'grantLease',
        (original) =>
          function (untilMs) {
            original.call(this, untilMs, 0)
          },
      ),
  },
]
const SCHEDULES_MAX = 60

for (const { name, mix, plant } of BUGS) {
  test(`a planted bug is noticed by the replay: ${name}`, { timeout: 300_000 }, async (t) => {
    const schedules = printSchedules({ ...mix, seed: 1, count: SCHEDULES_MAX })
    const undo = plant()
    try {
      for (const [i, schedule] of schedules.entries()) {
        try {
          await new Replay(schedule).run()
        } catch (error) {
          assert.ok(error instanceof Divergence)
          t.diagnostic(`after ${i + 1} schedules: ${error.message.slice(0, 200)}`)
          return
        }
      }
    } finally {
      undo()
    }
    assert.fail(`not in ${SCHEDULES_MAX} schedules`)
  })
}

test('the same schedule comes from the same seed, and one of another format is refused by name', () => {
  const mix = { slots: 1, kill: 1, ops: 2, seed: 5, count: 2 }
  assert.deepEqual(printLines(mix), printLines(mix))
  const [line = ''] = printLines(mix)
  assert.throws(() => parseSchedule(line.replace(SCHEDULE_FORMAT, 'xsan-schedule 2')), /"xsan-schedule 2", this replay reads "xsan-schedule 1"/)
  assert.throws(() => parseSchedule(line.slice(0, 200)), /cut short/)
})
