/** Resync with something in its way. */
import assert from 'node:assert/strict'
import test from 'node:test'
import { ChainCluster, type ChainNode, pattern, TestClient } from '../../test/support/chain-cluster.ts'
import { XsanError } from '../base/errors.ts'
import { Status } from '../base/status.ts'
import type { ReactorToControl } from '../placement/messages.ts'

const BLOCKS = 6

class Cluster extends ChainCluster {
  readonly errors: string[] = []

  override heard(node: ChainNode, incarnation: number, message: ReactorToControl): void {
    super.heard(node, incarnation, message)
    if (message.type === 'log' && message.level === 'ERROR') this.errors.push(`node ${node.number}: ${message.message} ${JSON.stringify(message.fields)}`)
  }

  async fill(by: number, tag: number): Promise<void> {
    const client = new TestClient(this.node(by))
    for (let index = 0; index < BLOCKS; index++)
      assert.equal(await this.world.settle(client.write(index, 0, pattern(tag + index, 8192)), 10_000), Status.SUCCESS)
  }
}

test('a disk that is full is told once per slot, however often what comes to it is tried', async () => {
  const cluster = new Cluster({ nodes: 2, slots: 1, seed: 1, chainOf: () => [1, 2] })
  await cluster.start()
  await cluster.kill(2)
  await cluster.fill(1, 10)
  cluster.restart(2)
  const { store } = cluster.node(2)
  const install = store.install.bind(store)
  store.install = (given) => {
    if (given.pages.length > 0) throw new XsanError('INSUFFICIENT_SPACE', 'disk 2 has no extent', 'Add disks.')
    return install(given)
  }
  await cluster.world.runFor(3000)
  assert.equal(cluster.errors.length, 1, cluster.errors.join('\n'))
  store.install = install
  await cluster.until('both serve', () => cluster.allServing)
  cluster.assertEqual()
})
