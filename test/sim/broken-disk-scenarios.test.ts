/** A disk that cannot be mounted, on a node that has another one. */
import assert from 'node:assert/strict'
import { Status } from '../../src/base/status.ts'
import { BLOCK_BYTES, GiB } from '../../src/base/units.ts'
import { ReplicaState } from '../../src/placement/chain.ts'
import { slotOf } from '../../src/placement/ring.ts'
import type { Bay } from './bay.ts'
import type { SimVolume } from './cluster.ts'
import { type Scenario, scenario } from './scenario.ts'
import type { ClientSeat } from './workload.ts'

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

const LARGE_BYTES = 65_536

/** Deep queues over the seat of one node, by block; how each write ended, -1 as long as it has not. */
class DeepQueue {
  readonly ended: number[] = []
  readonly #t: Scenario
  readonly #volume: SimVolume
  readonly #seat: ClientSeat
  /** Large writes all have the same content: the arena is small. */
  readonly #sharedPage: number

  constructor(t: Scenario, volume: SimVolume, number: number) {
    this.#t = t
    this.#volume = volume
    this.#seat = t.node(number).seat!
    this.#sharedPage = this.#seat.queue.arena.alloc(LARGE_BYTES)
  }

  /** Blocks of the volume whose only copy is on the disk. */
  blocksOf(disk: number): number[] {
    const { chains } = this.#t.state!
    const count = this.#volume.sizeBytes / BLOCK_BYTES
    return Array.from({ length: count }, (_, index) => index).filter((index) => {
      return chains[slotOf(this.#volume.volume, index, chains.length)]!.entries[0]!.disk === disk
    })
  }

  write(offsetBytes: number, lengthBytes: number): number {
    const { queue, volumes } = this.#seat
    const row = this.ended.push(-1) - 1
    const isShared = lengthBytes > 4096
    const page = isShared ? this.#sharedPage : queue.arena.alloc(4096)
    assert.notEqual(page, -1)
    const done = (_row: number, status: number) => {
      this.ended[row] = status
      if (!isShared) queue.arena.free(page as never)
    }
    const tag = queue.register('a write', () => volumes.write(this.#volume.volume, offsetBytes, lengthBytes, page, 0, done, row))
    queue.timeout(0, tag, 0)
    return row
  }

  /** So many writes of that length, each at the beginning of one of the block's first pages. */
  pages(block: number, count: number, lengthBytes: number): number[] {
    return Array.from({ length: count }, (_, i) => this.write(block * BLOCK_BYTES + (i % 64) * 16 * 4096, lengthBytes))
  }

  whole(blocks: readonly number[]): number[] {
    return blocks.map((index) => this.write(index * BLOCK_BYTES, 4096))
  }

  async allEnd(what: string, rows: readonly number[], limitMs: number): Promise<void> {
    await this.#t.until(what, () => rows.every((row) => this.ended[row] !== -1), limitMs)
    for (const row of rows) assert.equal(this.ended[row], Status.SUCCESS)
  }
}

/** Two disks of the node that head slots, and the bay of the second one. */
function twoDisksOf(t: Scenario, number: number) {
  const node = t.node(number)
  const [well, hung] = [...t.state!.disks.values()].filter((disk) => disk.node === node.control!.member!.node)
  return { well: well!.disk, hung: hung!.disk, bay: node.bays.find(({ uuid }) => uuid === hung!.uuid)! }
}

const hasFailed = (t: Scenario) => () => [...t.state!.disks.values()].some(({ state }) => state === 'failed')

for (const { head, lengthBytes } of [
  { head: 1, lengthBytes: 512 },
  { head: 2, lengthBytes: 4096 },
  { head: 2, lengthBytes: LARGE_BYTES },
]) {
  scenario(
    `one of two disks with the only copies hangs and fails under deep queues of ${lengthBytes} bytes at ${head === 1 ? 'its own' : 'another'} node: writes to the other disk go on at their speed, new blocks too`,
    async (t) => {
      const volume = await t.createVolume('deep', { sizeBytes: 300 * BLOCK_BYTES })
      const { well, hung, bay } = twoDisksOf(t, head)
      const queue = new DeepQueue(t, volume, 1)
      const [goesOn, stands] = [queue.blocksOf(well), queue.blocksOf(hung)]
      await queue.allEnd(
        'both disks have pages',
        [goesOn[0]!, stands[0]!].flatMap((block) => queue.pages(block, 64, 4096)),
        10_000,
      )
      await t.seconds(3)

      bay.disk.hang()
      queue.pages(stands[0]!, 300, lengthBytes)
      queue.whole(stands.slice(1))
      await t.seconds(0.05)
      await queue.allEnd('writes, while the disk hangs', queue.pages(goesOn[0]!, 100, lengthBytes), 400)
      await queue.allEnd('new blocks, while it hangs', queue.whole(goesOn.slice(1, 20)), 400)
      await t.until('the disk has failed', hasFailed(t), 20_000)
      queue.pages(stands[0]!, 300, lengthBytes)
      await t.seconds(1)
      await queue.allEnd('writes, when it has failed', queue.pages(goesOn[0]!, 100, lengthBytes), 400)
      await queue.allEnd('new blocks, when it has failed', queue.whole(goesOn.slice(20, 40)), 400)
    },
    { nodes: head === 1 ? 1 : 3, disksPerNode: 2, replicas: 1, diskBytes: GiB, limits: { clientOpsMax: 4096 } },
  )
}

scenario(
  'the only copies of a disk are given up and begin anew on another one of its node; the old one is back before all of it is forgotten: no write waits for it',
  async (t, volume) => {
    const node = t.node(1)
    const blocks = () => Array.from({ length: volume.sizeBytes / BLOCK_BYTES }, (_, index) => index)
    const queue = new DeepQueue(t, volume, 1)
    await queue.allEnd('both disks have pages', queue.whole(blocks()), 10_000)
    const { bays } = node
    const [old, other] = bays as [Bay, Bay]
    const stateOf = ({ uuid }: Bay) => [...t.state!.disks.values()].find((disk) => disk.uuid === uuid)!.state
    old.disk.faults.writeEio = 1
    queue.whole(blocks())
    await t.until('the disk has failed', () => stateOf(old) === 'failed', 20_000)
    await t.settle(t.insist('xsan.v1.Cluster/Recover', { acceptDataLoss: true }))
    const isServed = () => t.state!.chains.every(({ entries }) => entries.some(({ state }) => state === ReplicaState.SERVING))
    await t.until('all parts are served', isServed, 10_000)
    for (const present of [[other], bays]) {
      old.repair()
      node.crash({ losing: 'nothing' })
      Object.assign(node, { bays: present })
      node.restart()
      await t.until('it serves', () => node.seat !== undefined && t.leader !== undefined && isServed(), 20_000)
    }
    await t.until('the disk is used again', () => stateOf(old) === 'ok', 10_000)
    const again = new DeepQueue(t, volume, 1)
    await again.allEnd('writes, with the old disk back', again.whole(blocks()), 10_000)
    await t.allIsWell()
  },
  { nodes: 1, disksPerNode: 2, replicas: 1 },
)
