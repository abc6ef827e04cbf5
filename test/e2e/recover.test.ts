/** The operator goes on without a node that holds last copies. Real processes. */
import assert from 'node:assert/strict'
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
