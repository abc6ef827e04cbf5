/** Versions that follow each other: what an older one does not know, it refuses; nothing comes that it does not know before the last node knows it. */
import assert from 'node:assert/strict'
import { FEATURE_LEVEL } from '../../src/control/state.ts'
import type { SimNode } from './node.ts'
import { OlderBinary } from './older-binary.ts'
import { scenario } from './scenario.ts'

scenario('a binary refuses metadata of a newer form by name, in both halves, and leaves it as it was', async (t, volume) => {
  t.load(volume, { on: [1, 2], ops: 300 })
  for (const form of ['identity', 'state'] as const) {
    t.node(3).crash({ losing: 'nothing' })
    t.node(3).older = OlderBinary.install(t.node(3), form)
    t.node(3).restart()
    await t.until('it has refused', () => t.node(3).older!.refused)
    t.node(3).installNewer()
    t.node(3).restart()
    await t.healthy()
  }
  await t.clientsDone()
  t.assertNoErrors()
  await t.allIsWell()
})

scenario(
  'nodes are upgraded one after the other: no command comes that an older one does not know, and the level rises with the last one',
  async (t, volume) => {
    const restart = async (node: SimNode, featureMax: number) => {
      node.crash({ losing: 'nothing' })
      node.featureMax = featureMax
      node.restart()
    }
    t.load(volume, { on: [1, 2, 3], ops: 600 })
    // the oldest one does not lead, so that it is asked to take what it does not know
    for (const node of [t.node(1), t.node(2)]) {
      await restart(node, FEATURE_LEVEL)
      await t.seconds(2)
      await t.healthy()
    }
    if (t.leader === 3) {
      await restart(t.node(3), 1)
      await t.seconds(2)
      await t.healthy()
    }
    await assert.rejects(t.settle(t.insist('xsan.v1.Cluster/RemoveNode', { nodeId: 'node-3', cancel: true })), { status: 'NOT_SUPPORTED' })
    await t.seconds(2)
    assert.equal(t.node(3).running && t.node(3).control?.isReady, true, 'the older one goes on')
    assert.equal(t.state!.featureLevel, 1)
    await restart(t.node(3), FEATURE_LEVEL)
    await t.until('the level is raised', () => t.state!.featureLevel === FEATURE_LEVEL)
    await restart(t.node(2), FEATURE_LEVEL - 1)
    const reason = new RegExp(`feature level ${FEATURE_LEVEL}, (this program|the node) knows ${FEATURE_LEVEL - 1}`)
    await t.until('it has refused', () => reason.test(t.node(2).fatal?.message ?? ''))
    await restart(t.node(2), FEATURE_LEVEL)
    await t.clientsDone()
    t.assertNoErrors()
    await t.allIsWell()
  },
  { featureMax: 1 },
)
