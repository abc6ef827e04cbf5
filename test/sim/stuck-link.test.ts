/**
 * Two nodes that live and hold their leases, and cannot reach each other: what one has sent to the other waits in a socket for as long as that
 * lasts. A write whose client has gone must not come out of it after its life (protocol 16), over what was written by another way since.
 */
import assert from 'node:assert/strict'
import { BLOCK_BYTES, PAGE_BYTES } from '../../src/base/units.ts'
import { slotOf } from '../../src/placement/ring.ts'
import type { VolumeLayer } from '../../src/volume/volume.ts'
import { writeStamps } from './history.ts'
import type { SimNode } from './node.ts'
import { type Scenario, scenario } from './scenario.ts'

/** Calls a volume of the node in a turn of its queue; resolves with the status. */
function inTurn(node: SimNode, call: (done: (row: number, status: number) => void) => void): { status: number } {
  const outcome = { status: -1 }
  const { queue } = node.seat!
  const tag = queue.register('a call', () =>
    call((_row, status) => {
      outcome.status = status
    }),
  )
  queue.timeout(0, tag, 0)
  return outcome
}

function cut(t: Scenario, from: SimNode, to: SimNode, ways: string): void {
  if (ways !== 'from the head') t.network.cut(from.host, to.host)
  if (ways !== 'to the head') t.network.cut(to.host, from.host)
}

for (const ways of ['both ways', 'to the head', 'from the head']) {
  scenario(
    `a write of a client that has gone, stuck between two live nodes (${ways}), never lands over a newer one`,
    async (t, volume) => {
      // a block of which neither exporter nor leader is the head, and the exporter has no copy
      const chainOf = (i: number) => t.state!.chains[slotOf(volume.volume, i, t.state!.chains.length)]!.entries
      const nodeOf = (number: number) => t.nodes.find(({ control }) => control?.member?.node === number)!
      const leader = t.node(t.leader)
      const exporterOf = (i: number) => t.nodes.find((node) => chainOf(i).every((entry) => nodeOf(entry.node) !== node))!
      let index = 0
      while (nodeOf(chainOf(index)[0]!.node) === leader || exporterOf(index) === leader) index++
      const head = nodeOf(chainOf(index)[0]!.node)
      const exporter = exporterOf(index)
      const offsetBytes = index * BLOCK_BYTES + 2 * PAGE_BYTES

      cut(t, exporter, head, ways)
      const { queue } = exporter.seat!
      const volumes = exporter.seat!.volumes as VolumeLayer
      const page = queue.arena.alloc(PAGE_BYTES)
      const place = { volume: volume.volume, offsetBytes, lengthBytes: PAGE_BYTES }
      const stuck = t.history.beginWrite({ client: 'one that goes', ...place, nowMs: t.world.nowMs })
      writeStamps(queue.arena.bytes, page * PAGE_BYTES, stuck)
      let isGone = false
      const done = (_row: number, status: number): void => {
        assert.ok(isGone && status !== 0, `the stuck write ended with ${status}`)
        queue.arena.free(page as never)
      }
      // what is sent when nothing has been heard for a while, but not long enough to be sure
      await t.seconds(0.5)
      inTurn(exporter, () => volumes.write(volume.volume, offsetBytes, PAGE_BYTES, page, 0, done, 7))
      await t.seconds(0.1)
      isGone = true
      volumes.orphan(done, 7)
      t.history.clientDied('one that goes', t.world.nowMs + 4000)

      await t.seconds(8)
      const newer = t.writeOnce(volume, leader.seat!, offsetBytes, PAGE_BYTES)
      await t.until('the newer write', () => newer.ended, 20_000)
      const content = async (): Promise<Uint8Array> => {
        const seat = leader.seat!
        const buffer = seat.queue.arena.alloc(PAGE_BYTES)
        const read = inTurn(leader, (ended) => seat.volumes.read(volume.volume, offsetBytes, PAGE_BYTES, buffer, ended, 0))
        await t.until('a read', () => read.status === 0)
        const bytes = seat.queue.arena.bytes.slice(buffer * PAGE_BYTES, (buffer + 1) * PAGE_BYTES)
        seat.queue.arena.free(buffer as never)
        return bytes
      }
      const written = await content()
      t.network.healAll()
      await t.seconds(15)
      assert.deepEqual(await content(), written, 'the newer write has stayed')
      await t.readAll(volume)
      await t.allIsWell()
    },
    { replicas: 2 },
  )
}
