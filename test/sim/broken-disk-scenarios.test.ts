/** A disk that cannot be mounted, on a node that has another one. */
import assert from 'node:assert/strict'
import { scenario } from './scenario.ts'

scenario(
  'one of two disks of a node cannot be mounted: the other one is used, what was on the broken one is rebuilt there, nobody notices',
  async (t, volume) => {
    t.load(volume, { on: [1, 2], ops: 500 })
    await t.seconds(1)
    const node = t.node(3)
    node.crash({ losing: 'nothing' })
    await t.seconds(1)
    const [used, broken] = node.bays
    const file = node.host.files.get(broken!.path)!
    for (const page of [0, file.sizeBytes / 4096 - 1]) file.flipBit(page, 777)
    node.restart()
    await t.until('it serves with the other disk', () => node.plane?.replicas.stores.length === 1, 10_000)
    const failed = () => [...t.state!.disks.values()].filter(({ state }) => state === 'failed')
    await t.until('the broken one is named', () => failed().length === 1, 10_000)
    assert.equal(failed()[0]!.uuid, broken!.uuid)
    assert.match(failed()[0]!.reason, /superblocks are damaged/)
    await t.clientsDone()
    t.assertNoErrors()
    await t.allIsWell()
    const ok = [...t.state!.disks.values()].find(({ uuid }) => uuid === used!.uuid)!.disk
    assert.ok(
      t.state!.chains.every(({ entries }) => entries.some(({ disk }) => disk === ok)),
      'all that node 3 has is on the disk that works',
    )
  },
  { disksPerNode: 2 },
)

scenario(
  'one of two disks of a node fails under a volume that acknowledges from memory: flushes go on without it',
  async (t, volume) => {
    const node = t.node(3)
    node.bays[1]!.disk.faults.writeEio = 1
    t.load(volume, { on: [1, 2, 3], ops: 300 })
    await t.until('the disk has failed', () => [...t.state!.disks.values()].some(({ state }) => state === 'failed'), 20_000)
    await t.clientsDone()
    t.assertNoErrors()
    assert.ok(t.longestStallMs < 20_000, `no operation took ${t.longestStallMs} ms`)
    await t.allIsWell()
  },
  { disksPerNode: 2, syncWhenWrite: false },
)
