/** What is left after a loss that the operator accepts: the best copy there is, and a word on what it is. */
import assert from 'node:assert/strict'
import { Status } from '../../src/base/status.ts'
import { BLOCK_BYTES, PAGE_BYTES } from '../../src/base/units.ts'
import { type ChainEntry, ReplicaState } from '../../src/placement/chain.ts'
import { slotOf } from '../../src/placement/ring.ts'
import type { SimVolume } from './cluster.ts'
import type { SimNode } from './node.ts'
import { type Scenario, scenario } from './scenario.ts'

const PAGES = 8
const BLOCKS = 128

/** One slot, its blocks of a volume, and the nodes that hold it. */
class Slot {
  readonly t: Scenario
  readonly number: number
  readonly volume: SimVolume
  readonly blocks: readonly number[]
  readonly nodes: readonly SimNode[]

  constructor(t: Scenario, volume: SimVolume) {
    const { chains, theCluster } = t.state!
    const blocksOf = (slot: number) =>
      Array.from({ length: BLOCKS }, (_, i) => i).filter((index) => slotOf(volume.volume, index, theCluster.slotCount) === slot)
    this.t = t
    this.volume = volume
    this.number = chains.findIndex((_, slot) => blocksOf(slot).length >= 4)
    this.blocks = blocksOf(this.number).slice(0, 4)
    this.nodes = chains[this.number]!.entries.map(({ node }) => t.nodes.find((each) => each.control!.member!.node === node)!)
  }

  entry(node: SimNode): ChainEntry {
    return this.t.state!.chains[this.number]!.entries.find((entry) => entry.node === node.index + 1)!
  }

  async becomes(node: SimNode, state: ReplicaState): Promise<void> {
    await this.t.until(
      `${node.id} is in state ${state}`,
      () => this.entry(node).state === state && node.plane?.table.version[this.number] !== undefined,
      60_000,
    )
  }

  async #io(node: SimNode, block: number, isWrite: boolean, use: (bytes: Uint8Array) => void): Promise<void> {
    const { queue, process, volumes } = node.seat!
    const page = queue.arena.alloc(PAGES * PAGE_BYTES)
    const bytes = queue.arena.bytes.subarray(page * PAGE_BYTES, (page + PAGES) * PAGE_BYTES)
    if (isWrite) use(bytes)
    let status = -1
    const done = (_row: number, result: number) => {
      status = result
    }
    process.schedule(0, 'client', () => {
      const { volume } = this.volume
      if (isWrite) volumes.write(volume, block * BLOCK_BYTES, bytes.length, page, 0, done, 0)
      else volumes.read(volume, block * BLOCK_BYTES, bytes.length, page, done, 0)
      node.plane!.settle()
    })
    await this.t.until('a client is answered', () => status >= 0)
    assert.equal(status, Status.SUCCESS)
    if (!isWrite) use(bytes)
    queue.arena.free(page as never)
  }

  /** The first pages of each block get that byte. */
  async fill(by: SimNode, byte: number): Promise<void> {
    for (const block of this.blocks) await this.#io(by, block, true, (bytes) => bytes.fill(byte))
  }

  /** What each block holds, as read through that node: one byte, or -1: not all pages the same. */
  async held(by: SimNode): Promise<number[]> {
    const found: number[] = []
    for (const block of this.blocks) await this.#io(by, block, false, (bytes) => found.push(bytes.every((byte) => byte === bytes[0]) ? bytes[0]! : -1))
    return found
  }
}

/** `old` has 1 in all blocks, complete; `unfinished` had 2, and has learned that there is 3 of the source, which is dead. Others keep the quorum. */
async function unfinishedResync(t: Scenario): Promise<{ slot: Slot; source: SimNode; unfinished: SimNode; old: SimNode; other: SimNode }> {
  const slot = new Slot(t, await t.createVolume('big', { sizeBytes: BLOCKS * BLOCK_BYTES }))
  const [source, unfinished, old] = slot.nodes as [SimNode, SimNode, SimNode]
  const other = t.nodes.find((node) => !slot.nodes.includes(node))!
  await slot.fill(other, 1)
  old.crash({ losing: 'nothing' })
  await slot.becomes(old, ReplicaState.OFFLINE)
  await slot.fill(other, 2)
  unfinished.crash({ losing: 'nothing' })
  await slot.becomes(unfinished, ReplicaState.OFFLINE)
  await slot.fill(other, 3)
  unfinished.restart()
  const session = () => unfinished.plane?.replicas.sessions.get(slot.number)
  await t.until('it knows which blocks differ, and has none of them', () => (session()?.todo.size ?? 0) > 0)
  const [a, b] = [source.stores[0]!, unfinished.stores[0]!]
  assert.deepEqual([b.lastHigh[slot.number], b.lastLow[slot.number]], [a.lastHigh[slot.number], a.lastLow[slot.number]], 'it knows the newest id of its source')
  assert.notDeepEqual(b.slotDigest(slot.number), a.slotDigest(slot.number), 'and not the content')
  source.crash({ losing: 'nothing' })
  await slot.becomes(source, ReplicaState.LASTSRV)
  return { slot, source, unfinished, old, other }
}

for (const how of ['goes on', 'starts anew', 'loses its power'] as const) {
  scenario(
    `the operator gives up the last server in the middle of a resync: an older copy that is complete serves, not the one that ${how} unfinished`,
    async (t) => {
      const { slot, source, unfinished, old, other } = await unfinishedResync(t)
      if (how === 'starts anew') unfinished.crash({ losing: 'nothing' })
      if (how === 'loses its power') unfinished.crash({ losing: 'everything unflushed' })
      unfinished.restart()
      old.restart()
      for (const node of [unfinished, old]) await slot.becomes(node, ReplicaState.WAITING)
      await t.seconds(1)
      const dry = await t.settle(t.insist('xsan.v1.Cluster/Recover', { dryRun: true }))
      assert.deepEqual([dry['waitsFor'], dry['unfinished']], [[source.id], []])
      await t.settle(t.insist('xsan.v1.Cluster/Recover', { acceptDataLoss: true }))
      await slot.becomes(unfinished, ReplicaState.SERVING)
      assert.ok(slot.entry(old).since < slot.entry(unfinished).since, 'the older copy serves first')
      assert.deepEqual(await slot.held(other), [1, 1, 1, 1])
      source.restart()
      await t.allIsWell()
      assert.deepEqual(await slot.held(source), [1, 1, 1, 1])
    },
    { nodes: 5 },
  )
}

scenario(
  'the operator gives up the last server in the middle of a resync, and no other copy is left: the unfinished one serves, and is named before and after',
  async (t) => {
    const { slot, unfinished, other } = await unfinishedResync(t)
    await t.seconds(1)
    const dry = await t.settle(t.insist('xsan.v1.Cluster/Recover', { dryRun: true }))
    assert.deepEqual(dry['unfinished'], [unfinished.id])
    await t.settle(t.insist('xsan.v1.Cluster/Recover', { acceptDataLoss: true }))
    await slot.becomes(unfinished, ReplicaState.SERVING)
    const held = await slot.held(other)
    assert.ok(
      held.every((byte) => byte === 2 || byte === 3),
      String(held),
    )
    assert.ok(t.logLines.some((line) => line.includes(`fromUnfinishedCopiesOn=["${unfinished.id}"]`)))
    await t.seconds(1)
    assert.equal(unfinished.stores[0]!.isIncomplete(slot.number), false, 'from here on it is what there is')
  },
  { nodes: 5 },
)
