import assert from 'node:assert/strict'
import test from 'node:test'
import { ChainCluster, pattern, TestClient } from '../../test/support/chain-cluster.ts'
import { Status } from '../base/status.ts'
import { CallKind } from '../wire/peer.ts'

test('a slot of more blocks than one answer lists is compared in parts, while it is written to, and its source changes', { timeout: 120_000 }, async () => {
  const BLOCKS = 1300
  const cluster = new ChainCluster({ nodes: 3, slots: 1, chainOf: () => [1, 2, 3], store: { capacityBlocks: 2000 } })
  await cluster.start()
  const client = new TestClient(cluster.node(1))
  const write = (index: number, tag: number) => client.write(index, 0, pattern(tag, 512))
  const all = async (calls: Array<Promise<number>>) => {
    for (const status of await cluster.world.settle(Promise.all(calls), 60_000)) assert.equal(status, Status.SUCCESS)
  }
  for (let from = 0; from < BLOCKS; from += 130) await all(Array.from({ length: 130 }, (_, i) => write(from + i, from + i)))
  await cluster.until('quiet', () => cluster.quiet)
  await cluster.kill(3)
  // differences in every part of the list, and blocks that the returner has never seen
  await all([0, 3, 511, 512, 700, 1023, 1024, 1299, 1400, 1500].map((index) => write(index, 5000 + index)))
  cluster.restart(3)
  const { plane } = cluster.node(3)
  const calls: number[] = []
  const { call } = plane.calls
  plane.calls.call = (peer, kind, args, page, capacity) => {
    calls.push(kind)
    return call.call(plane.calls, peer, kind, args, page, capacity)
  }
  let written = 0
  let isDone = false
  const writer = async () => {
    while (!isDone) {
      const number = written++
      assert.equal(await write((number * 37) % 1600, 9000 + number), Status.SUCCESS)
    }
  }
  const load = Promise.all(Array.from({ length: 16 }, writer))
  await cluster.until('a list has begun', () => calls.includes(CallKind.LIST_BLOCKS))
  await cluster.kill(2)
  await cluster.until('resynced', () => cluster.chains[0]!.entries.some((entry) => entry.node === 3 && entry.state === 0), 30_000)
  isDone = true
  await cluster.world.settle(load, 5000)
  assert.ok(written > 20)
  assert.ok(calls.filter((kind) => kind === CallKind.LIST_BLOCKS).length >= 3, 'more than one part')
  await cluster.until('quiet', () => cluster.quiet)
  cluster.assertEqual()
})
