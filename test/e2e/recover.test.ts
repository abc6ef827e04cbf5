/** Disks swapped, space given back, and the operator who goes on without a node that holds last copies. Real processes. */
import assert from 'node:assert/strict'
import { closeSync, fstatSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import test, { after, before } from 'node:test'
import { bin, must, until } from '../support/commands.ts'
import { DevCluster, isAlive } from '../support/dev-cluster.ts'

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
  // more where copies were on a third node for a while
  await until('two copies of two volumes are counted', 10_000, async () => (await used()) >= 32 * MiB)
  const before = await used()
  await must(bin('xsan'), ['--server', cluster.node('node-1').grpc, 'volume', 'delete', 'other', '--yes'])
  await until('the space is free', 30_000, async () => (await used()) <= before - 16 * MiB)
})

test('a node whose only disk is damaged starts without it, exports and votes; its copies are built elsewhere; nothing on it is touched', {
  timeout: 180_000,
}, async () => {
  const data = Buffer.alloc(4 * MiB, 9)
  const writer = await cluster.nbd('node-1', 'v')
  await writer.write(4 * MiB, data)
  await writer.close()
  const disk = join(cluster.dir, 'node-3', 'disk-0')
  await cluster.kill('node-3')
  const rot = Buffer.alloc(4096, 0x5a)
  const fd = openSync(disk, 'r+')
  writeSync(fd, rot, 0, rot.length, 0)
  writeSync(fd, rot, 0, rot.length, fstatSync(fd).size - 4096)
  closeSync(fd)
  await cluster.start('node-3')
  const line =
    cluster
      .log('node-3')
      .split('\n')
      .find((text) => text.includes('a disk cannot be used, this node goes on with its others')) ?? ''
  assert.match(line, /held a disk of this node, and holds something else now/)
  assert.match(line, /only then: remove it if it is a file/)
  const disks = async () => (await cluster.call<{ disks: Array<{ nodeId: string; state: string; reason: string; replicas: number }> }>('Disk/List')).disks
  await until('its disk has failed, and holds no copy any more', 60_000, async () =>
    (await disks()).some(({ nodeId, state, replicas }) => nodeId === 'node-3' && state === 'failed' && replicas === 0),
  )
  const status = await cluster.call<{ reasons: string[]; chains: { total: number; full: number } }>('Cluster/Status')
  assert.match(status.reasons.join('\n'), /Disk .*node-3\/disk-0 of node-3 failed: .* holds something else now/)
  await until('every part has two copies', 60_000, async () => {
    const { chains } = await cluster.call<{ chains: { total: number; full: number } }>('Cluster/Status')
    return chains.full === chains.total
  })
  const reader = await cluster.nbd('node-3', 'v')
  assert.ok((await reader.read(4 * MiB, data.length)).equals(data))
  await reader.close()
  assert.ok(readFileSync(disk).subarray(0, 4096).equals(rot), 'never formatted by itself')
  // the next step that the log names
  await cluster.kill('node-3')
  rmSync(disk)
  await cluster.start('node-3')
  await cluster.healthy()
  await until('copies move to the new disk', 60_000, async () =>
    (await disks()).some(({ nodeId, state, replicas }) => nodeId === 'node-3' && state === 'ok' && replicas > 0),
  )
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

test('a node whose metadata has lost what it acknowledged does not start, so that it cannot vote twice; the others go on', { timeout: 120_000 }, async () => {
  await cluster.start('node-2')
  await cluster.healthy()
  // ended in order: the end of its log is acknowledged
  const { pid } = cluster.node('node-3')
  process.kill(pid, 'SIGTERM')
  await until('node-3 has ended', 30_000, () => !isAlive(pid))
  const meta = join(cluster.dir, 'node-3', 'data', 'meta')
  const log = join(meta, readdirSync(meta).find((name) => name.endsWith('.log'))!)
  const bytes = readFileSync(log)
  bytes[bytes.length - 1]! ^= 1
  writeFileSync(log, bytes)
  await assert.rejects(
    cluster.start('node-3'),
    /DISK_CORRUPTED: node-3: start failed at "metadata": .* has lost writes that were acknowledged: .* Try: Remove this node from the cluster/,
  )
  await assert.rejects(cluster.start('node-3'), /has lost writes that were acknowledged/, 'nor at the next start')
  const client = await cluster.nbd('node-1', 'v')
  await client.write(0, Buffer.alloc(4096, 3))
  await client.close()
})
