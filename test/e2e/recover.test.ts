/** Disks swapped, space given back, and the operator who goes on without a node that holds last copies. Real processes. */
import assert from 'node:assert/strict'
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import test, { after, before } from 'node:test'
import { bin, must, until } from '../support/commands.ts'
import { DevCluster } from '../support/dev-cluster.ts'

let cluster: DevCluster

before(
  async () => {
    cluster = await DevCluster.up({ nodes: 3, replicas: 2, diskSize: '512M' })
    await cluster.createVolume('v', '64M')
    await cluster.healthy()
  },
  { timeout: 120_000 },
)
after(() => cluster?.end(), { timeout: 60_000 })

interface Recovery {
  readonly slots: number
  readonly slots_total: number
  readonly waits_for: string[]
}

async function recover(...args: readonly string[]): Promise<Recovery> {
  const { stdout } = await must(bin('xsan'), ['--server', cluster.node('node-1').grpc, 'cluster', 'recover', ...args, '-o', 'json'])
  return JSON.parse(stdout) as Recovery
}

const MiB = 1024 * 1024

test('a disk swapped for a blank one gets its copies anew; a deleted volume gives its space back', { timeout: 120_000 }, async () => {
  await cluster.createVolume('other', '64M')
  const data = Buffer.alloc(8 * MiB, 5)
  for (const volume of ['v', 'other']) {
    const client = await cluster.nbd('node-1', volume)
    await client.write(0, data)
    await client.close()
  }
  const volumes = await cluster.call<{ volumes: Array<{ name: string; allocatedBytes: number }> }>('Volume/List')
  assert.deepEqual(
    volumes.volumes.map(({ name, allocatedBytes }) => [name, allocatedBytes]),
    [
      ['v', 8 * MiB],
      ['other', 8 * MiB],
    ],
  )
  await cluster.kill('node-2')
  rmSync(join(cluster.dir, 'node-2', 'disk-0'))
  await cluster.start('node-2')
  await cluster.healthy()
  const client = await cluster.nbd('node-2', 'v')
  assert.ok((await client.read(0, data.length)).equals(data))
  await client.close()
  assert.equal(await cluster.assertReplicasEqual('v', 2), 2)
  // the disk that was taken out, and whose copies are elsewhere, is no failure any more
  const states = async (all: boolean) => (await cluster.call<{ disks: Array<{ state: string }> }>('Disk/List', { all })).disks.map(({ state }) => state).sort()
  const present = await states(false)
  assert.ok(
    present.every((state) => state === 'ok'),
    String(present),
  )
  assert.deepEqual(await states(true), [...present, 'removed'])

  const used = async () => (await cluster.call<{ usedBytes: number }>('Cluster/Status')).usedBytes
  await until('two copies of two volumes are counted', 10_000, async () => (await used()) === 32 * MiB)
  await must(bin('xsan'), ['--server', cluster.node('node-1').grpc, 'volume', 'delete', 'other', '--yes'])
  await until('the space is free', 30_000, async () => (await used()) === 16 * MiB)
})

test('two of three nodes lost, one back: recover names the missing one, and goes on without it', { timeout: 120_000 }, async () => {
  assert.equal((await recover('--dry-run')).slots, 0)
  await Promise.all([cluster.kill('node-2'), cluster.kill('node-3')])
  await cluster.start('node-3')
  let missing: Recovery | undefined
  await until('only node-2 is waited for', 60_000, async () => {
    missing = await recover('--dry-run').catch(() => undefined)
    return missing !== undefined && missing.slots > 0 && missing.slots < missing.slots_total && missing.waits_for.join() === 'node-2'
  })
  await recover('--accept-data-loss', '--yes')
  await until('all data can be used', 60_000, async () => (await recover('--dry-run')).slots === 0)
})
