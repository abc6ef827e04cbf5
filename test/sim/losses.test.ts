/** What is lost with the memory of all replicas, on whole simulated clusters: a later flush says so. */
import assert from 'node:assert/strict'
import type { VolumeNumber } from '../../src/base/ids.ts'
import { Status } from '../../src/base/status.ts'
import { PAGE_BYTES } from '../../src/base/units.ts'
import { slotOf } from '../../src/placement/ring.ts'
import type { SimNode } from './node.ts'
import { type Scenario, scenario } from './scenario.ts'

type Start = (seat: NonNullable<SimNode['seat']>, done: (row: number, status: number) => void) => void

/** One operation of a client on the node. */
async function run(t: Scenario, node: SimNode, start: Start): Promise<number> {
  const { seat } = node
  assert.ok(seat, `${node.id} runs`)
  let status = -1
  seat.process.schedule(0, 'client call', () => {
    start(seat, (_row, result) => {
      status = result
    })
    node.plane!.settle()
  })
  await t.until('the operation ends', () => status >= 0, 60_000)
  return status
}

async function writePage(t: Scenario, node: SimNode, volume: VolumeNumber, tag: number): Promise<void> {
  const page = node.seat!.queue.arena.alloc(PAGE_BYTES)
  node.seat!.queue.arena.bytes.fill(tag, page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
  assert.equal(await run(t, node, (seat, done) => seat.volumes.write(volume, 0, PAGE_BYTES, page, 0, done, 0)), Status.SUCCESS)
  node.seat!.queue.arena.free(page as never)
}

async function readByte(t: Scenario, node: SimNode, volume: VolumeNumber): Promise<number> {
  const page = node.seat!.queue.arena.alloc(PAGE_BYTES)
  assert.equal(await run(t, node, (seat, done) => seat.volumes.read(volume, 0, PAGE_BYTES, page, done, 0)), Status.SUCCESS)
  const byte = node.seat!.queue.arena.bytes[page * PAGE_BYTES]!
  node.seat!.queue.arena.free(page as never)
  return byte
}

const flush = (t: Scenario, node: SimNode, volume: VolumeNumber) => run(t, node, (seat, done) => seat.volumes.flush(volume, done, 0))

for (const losing of ['everything unflushed', 'nothing'] as const) {
  const isLost = losing !== 'nothing'
  scenario(
    isLost
      ? 'three replicas of five nodes lose power: the unflushed write is gone, and the next flush of a client elsewhere fails, once'
      : 'three replicas of five nodes are killed: the unflushed write is there, and the next flush succeeds',
    async (t, { volume }) => {
      const chain = t.node(1).control!.member!.state.chains[slotOf(volume, 0, 16)]!
      const holders = new Set(chain.entries.map((entry) => t.node(1).control!.member!.state.nodes.get(entry.node)!.id))
      const client = t.nodes.find((node) => !holders.has(node.id))!
      await writePage(t, client, volume, 1)
      assert.equal(await flush(t, client, volume), Status.SUCCESS)
      await writePage(t, client, volume, 2)
      const hit = t.nodes.filter((node) => holders.has(node.id))
      for (const node of hit) node.crash({ losing })
      await t.seconds(1)
      for (const node of hit) node.restart()
      await t.healthy()
      assert.equal(await readByte(t, client, volume), isLost ? 1 : 2)
      if (isLost) assert.equal(await flush(t, client, volume), Status.WRITE_FAILED)
      assert.equal(await flush(t, client, volume), Status.SUCCESS)
      await writePage(t, client, volume, 3)
      assert.equal(await flush(t, client, volume), Status.SUCCESS)
      await t.allIsWell()
    },
    { nodes: 5, syncWhenWrite: false },
  )
}
