/** What the ledger of a disk and the looks at acknowledgements find; that honest runs break nothing is the matter of every other run. */
import assert from 'node:assert/strict'
import test from 'node:test'
import { BLOCK_BYTES } from '../../src/base/units.ts'
import type { DiskStore } from '../../src/store/disk-store.ts'
import { canaryOf } from './canaries.ts'
import { watchPages } from './checkers.ts'
import { Ledger } from './ledger.ts'
import { runSchedule, scheduleFor } from './run.ts'
import { Scenario } from './scenario.ts'

const PROMISES = {
  'replayed-rows-held': 'a disk that comes back holds what was written to it',
  'flush-of-a-disk-at-once': 'who reports has it on stable storage',
  'draining-head-orders': 'only the head of a chain orders',
  'ack-before-tail': 'an acknowledged write is on every member',
  'superblock-not-flushed': 'a segment is freed when nothing needs it',
  'rows-expire-too-early': 'a channel row stays while its client may ask again',
  'digests-tell-nothing': 'who reports holds what its source holds',
  'removed-block-stays': 'who reports holds what its source holds',
  'report-before-the-stream': 'who reports is past all that it was answered',
  'read-of-another-version': 'a read is answered as it was asked',
  'fua-lost-where-split': 'what is asked for with FUA is durable when it ends',
  'said-before-stored': 'who says something in Raft would know it again',
  'lease-counted-too-long': 'a lease ends for its holder before it does for the leader',
} as const

/** Some bugs do harm in few runs. */
const SEEDS = 4

for (const [name, promise] of Object.entries(PROMISES)) {
  test(`the bug ${name} breaks what is looked at in that moment: ${promise}`, { timeout: 240_000 }, async () => {
    const { plan, plant } = canaryOf(name)!
    const undo = plant()
    try {
      const found: string[] = []
      for (let seed = 1; seed <= SEEDS && !found.includes(promise); seed++)
        found.push(...(await runSchedule(scheduleFor(seed, plan), { stacks: false })).violations.map((violation) => violation.promise))
      assert.ok(found.includes(promise), JSON.stringify(found))
    } finally {
      undo()
    }
  })
}

test('a disk that comes back with more, with less, or with something else than was written to it is found out', async () => {
  const t = new Scenario({ seed: 3, nodes: 1 })
  await t.form()
  const volume = await t.createVolume('db', { sizeBytes: BLOCK_BYTES })
  t.load(volume, { on: [1], ops: 20, readShare: 0 })
  await t.seconds(3)
  const node = t.node(1)
  const store = node.bays[0]!.ledger.store!
  const { ledger } = node.bays[0]!
  const { view } = node.queue!.arena
  const { stagedSeq } = store
  assert.ok(stagedSeq > 5 && store.rows.count > 0)
  const withEnd = (position: number) =>
    Object.create(store, { stagedSeq: { value: position }, disk: { value: store.disk }, generation: { value: 1 } }) as DiskStore
  const boots = node.host.boots
  assert.deepEqual(ledger.mounted(store, view, boots, 0), [])
  store.rows.held.fill(0)
  assert.match(ledger.mounted(store, view, boots, 0).join(), /not held; it was seq/)
  assert.match(ledger.mounted(withEnd(stagedSeq + 1), view, boots, 0).join(), /is the last that was written/)
})

test('what was durable, or staged while the power stayed, and does not come back is found out', async () => {
  for (const lost of ['power', 'process']) {
    const ledger = new Ledger()
    const listened = { journal: {}, rows: {} }
    const mount = (stagedSeq: number, durableSeq: number, boots: number) =>
      ledger.mounted(
        { ...listened, stagedSeq, durableSeq, slotCount: 0, disk: 1, generation: 1, failed: false } as never,
        new DataView(new ArrayBuffer(0)),
        boots,
        0,
      )
    mount(0, 0, 1)
    Object.assign(ledger.store!, { stagedSeq: 9, durableSeq: 5 })
    const found = mount(lost === 'power' ? 4 : 8, 8, lost === 'power' ? 2 : 1).join()
    assert.match(found, lost === 'power' ? /and 5 was durable/ : /though the power stayed, and 9 was staged/)
  }
})

test('a page that is not what was written is a bug of the store, unless somebody spoiled the disk', () => {
  const found: string[] = []
  let isSpoiled = true
  const reader = { corruptedCount: 0, verify: () => void reader.corruptedCount++ }
  watchPages(
    { reader, disk: 1 } as never,
    () => isSpoiled,
    (detail) => found.push(detail),
  )
  reader.verify()
  assert.deepEqual(found, [])
  isSpoiled = false
  reader.verify()
  assert.match(found.join(), /nobody spoiled it/)
})
