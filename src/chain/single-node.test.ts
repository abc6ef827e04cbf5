import assert from 'node:assert/strict'
import test from 'node:test'
import { ChainCluster, pattern, TestClient, VOLUME } from '../../test/support/chain-cluster.ts'
import type { VolumeNumber } from '../base/ids.ts'
import { Status } from '../base/status.ts'

async function single(seed = 1) {
  const cluster = new ChainCluster({ nodes: 1, slots: 4, seed })
  await cluster.start()
  return { cluster, client: new TestClient(cluster.node(1)) }
}

test('one replica: what is written is read back, never-written pages are zeros', async () => {
  const { cluster, client } = await single()
  await cluster.world.settle(
    (async () => {
      const bytes = pattern(7, 3 * 4096)
      assert.equal(await client.write(5, 8 * 4096, bytes), Status.SUCCESS)
      const { status, bytes: got } = await client.read(5, 7, 5)
      assert.equal(status, Status.SUCCESS)
      assert.deepEqual(got.subarray(4096, 4 * 4096), bytes)
      assert.ok(got.subarray(0, 4096).every((byte) => byte === 0))
      assert.equal(await client.zero(5, 9, 1), Status.SUCCESS)
      const after = await client.read(5, 8, 3)
      assert.deepEqual(after.bytes.subarray(0, 4096), bytes.subarray(0, 4096))
      assert.ok(after.bytes.subarray(4096, 8192).every((byte) => byte === 0))
    })(),
    5000,
  )
  assert.equal(cluster.node(1).plane.replicas.records.inUse, 0)
})

test('sub-page writes are merged over the newest content, also when they race for one page', async () => {
  const { cluster, client } = await single(3)
  const model = new Uint8Array(4 * 4096)
  await cluster.world.settle(
    (async () => {
      for (let round = 0; round < 20; round++) {
        const writes: Promise<number>[] = []
        for (let sector = 0; sector < 16; sector++) {
          // disjoint ranges, so that their order does not matter
          const bytes = pattern(round * 100 + sector, 1024)
          model.set(bytes, sector * 1024)
          writes.push(client.write(1, sector * 1024, bytes))
        }
        for (const status of await Promise.all(writes)) assert.equal(status, Status.SUCCESS)
        assert.deepEqual((await client.read(1, 0, 4)).bytes, model)
      }
      const bytes = pattern(1, 512 * 9)
      assert.equal(await client.write(1, 512 * 7, bytes), Status.SUCCESS)
      model.set(bytes, 512 * 7)
      assert.deepEqual((await client.read(1, 0, 4)).bytes, model)
    })(),
    60_000,
  )
})

test('without a lease nothing is answered; with it again everything is', async () => {
  const { cluster, client } = await single()
  cluster.leaseMs = 0
  await cluster.world.runFor(3000)
  assert.equal(cluster.node(1).client.ready, false)
  let answered = 0
  const pending = [client.write(1, 0, pattern(1)), client.read(1, 0, 1)].map((call) => call.then(() => answered++))
  await cluster.world.runFor(2000)
  assert.equal(answered, 0)
  cluster.leaseMs = 2000
  await cluster.world.settle(Promise.all(pending), 5000)
  assert.equal(cluster.node(1).client.ready, true)
})

test('an unknown volume is refused, never inside the call; 300 writes share 255 channels', async () => {
  const { cluster, client } = await single()
  await cluster.world.settle(
    (async () => {
      assert.equal(await client.write(1, 0, pattern(1), { volume: 99 as VolumeNumber }), Status.VOLUME_NOT_FOUND)
      const writes = Array.from({ length: 300 }, (_, i) => client.write(i % 7, i * 4096, pattern(i)))
      for (const status of await Promise.all(writes)) assert.equal(status, Status.SUCCESS)
      for (let i = 0; i < 300; i++) assert.deepEqual((await client.read(i % 7, i, 1)).bytes, pattern(i))
      assert.equal(await client.flush(VOLUME), Status.SUCCESS)
    })(),
    5000,
  )
})

test('a full disk refuses new blocks and takes overwrites', async () => {
  const cluster = new ChainCluster({ nodes: 1, slots: 4, store: { capacityBlocks: 2 } })
  await cluster.start()
  const client = new TestClient(cluster.node(1))
  await cluster.world.settle(
    (async () => {
      assert.equal(await client.write(1, 0, pattern(1)), Status.SUCCESS)
      assert.equal(await client.write(2, 0, pattern(2)), Status.SUCCESS)
      assert.equal(await client.write(3, 0, pattern(3)), Status.INSUFFICIENT_SPACE)
      assert.equal(await client.write(2, 0, pattern(4)), Status.SUCCESS)
      assert.deepEqual((await client.read(2, 0, 1)).bytes, pattern(4))
    })(),
    5000,
  )
})

test('a stopped reactor has answered everything it began, and refuses what is new', async () => {
  const { cluster, client } = await single()
  const began = Array.from({ length: 20 }, (_, i) => client.write(i, 0, pattern(i)))
  await cluster.world.runFor(0.2)
  cluster.node(1).send({ type: 'stop' })
  for (const status of await cluster.world.settle(Promise.all(began), 5000)) assert.equal(status, Status.SUCCESS)
  await cluster.until('stopped', () => cluster.node(1).told.some((message) => message.type === 'stopped'))
  assert.equal(await cluster.world.settle(client.write(1, 0, pattern(1)), 1000), Status.STOPPING)
  const { store } = cluster.node(1)
  assert.deepEqual([store.sealed, store.durableSeq], [true, store.stagedSeq], 'a loss of power is none from now on')
})
