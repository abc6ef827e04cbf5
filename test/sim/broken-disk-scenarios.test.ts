/** A disk that cannot be mounted, on a node that has another one. */
import assert from 'node:assert/strict'
import { Status } from '../../src/base/status.ts'
import { BLOCK_BYTES, GiB } from '../../src/base/units.ts'
import { slotOf } from '../../src/placement/ring.ts'
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

scenario(
  'one of two disks with the only copies hangs and fails under deep queues: writes to the other one go on at their speed, new blocks and parts of pages too',
  async (t) => {
    const volume = await t.createVolume('deep', { sizeBytes: 200 * BLOCK_BYTES })
    const [node] = t.nodes
    const { queue, volumes } = node!.seat!
    const ended: number[] = []
    const write = (offsetBytes: number, lengthBytes: number) => {
      const row = ended.push(-1) - 1
      const page = queue.arena.alloc(4096)
      assert.notEqual(page, -1)
      const done = (_row: number, status: number) => {
        ended[row] = status
      }
      const tag = queue.register('a write', () => volumes.write(volume.volume, offsetBytes, lengthBytes, page, 0, done, row))
      queue.timeout(0, tag, 0)
      return row
    }
    const all = async (what: string, rows: readonly number[], limitMs: number) => {
      await t.until(what, () => rows.every((row) => ended[row] !== -1), limitMs)
      for (const row of rows) assert.equal(ended[row], Status.SUCCESS)
    }
    const disks = [...new Set(t.state!.chains.map(({ entries }) => entries[0]!.disk))]
    assert.equal(disks.length, 2)
    const blocksOf = (disk: number) =>
      Array.from({ length: 200 }, (_, index) => index).filter(
        (index) => t.state!.chains[slotOf(volume.volume, index, t.state!.chains.length)]!.entries[0]!.disk === disk,
      )
    const [well, hung] = disks.map(blocksOf) as [number[], number[]]
    const bay = node!.bays.find(({ uuid }) => uuid === t.state!.disks.get(disks[1]!)!.uuid)!
    const parts = (blocks: readonly number[], count: number) => Array.from({ length: count }, (_, i) => write(blocks[0]! * BLOCK_BYTES + i * 4096, 512))
    const whole = (blocks: readonly number[]) => blocks.map((index) => write(index * BLOCK_BYTES, 4096))
    const pages = (blocks: readonly number[]) => Array.from({ length: 300 }, (_, i) => write(blocks[0]! * BLOCK_BYTES + i * 4096, 4096))
    await all('both disks have pages', [...pages(well), ...pages(hung)], 10_000)
    await t.seconds(2)

    bay.disk.hang()
    parts(hung, 300)
    whole(hung.slice(1))
    await t.seconds(0.01)
    await all('parts of pages, while the other disk hangs', parts(well, 200), 300)
    await all('new blocks, while the other disk hangs', whole(well.slice(1, 30)), 300)
    await t.until('the disk has failed', () => [...t.state!.disks.values()].some(({ state }) => state === 'failed'), 20_000)
    parts(hung, 300)
    await t.seconds(1)
    await all('parts of pages, when it has failed', parts(well, 200), 300)
    await all('new blocks, when it has failed', whole(well.slice(30)), 300)
  },
  { nodes: 1, disksPerNode: 2, replicas: 1, diskBytes: GiB, limits: { clientOpsMax: 4096 } },
)
