/**
 * Two nodes that live and hold their leases, and cannot reach each other, or more and more slowly: what one has sent to the other waits in a socket for
 * as long as that lasts, or is on its way. A write whose client has gone must not come out of it after its life (protocol 16), over what was written by another way since.
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

/** So slowly that no end of the session is ever without something to hear for long. */
const SLOWER_MS = 300
const SLOWER_EVERY_S = 0.25
const SLOW_MS = 12_000

async function spoil(t: Scenario, from: SimNode, to: SimNode, ways: string): Promise<void> {
  if (ways === 'slower and slower') {
    const link = t.network.link(from.host, to.host)
    for (; link.extraDelayMs < SLOW_MS; link.extraDelayMs += SLOWER_MS) await t.seconds(SLOWER_EVERY_S)
    return
  }
  if (ways !== 'from the head') t.network.cut(from.host, to.host)
  if (ways !== 'to the head') t.network.cut(to.host, from.host)
}

for (const ways of ['both ways', 'to the head', 'from the head', 'slower and slower']) {
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

      await spoil(t, exporter, head, ways)
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
      // what is on its way comes before anything that the kernels say of its end
      await t.seconds(SLOW_MS / 2000)
      t.network.healAll()
      await t.seconds(15)
      assert.deepEqual(await content(), written, 'the newer write has stayed')
      await t.readAll(volume)
      await t.allIsWell()
    },
    { replicas: 2 },
  )
}
