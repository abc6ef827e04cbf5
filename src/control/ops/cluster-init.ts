import { XsanError } from '../../base/errors.ts'
import type { Incarnation, NodeNumber } from '../../base/ids.ts'
import { isSlotCount } from '../../placement/ring.ts'
import type { SettingValue } from '../state.ts'
import type { Operation } from './operation.ts'

export interface ClusterInitArgs {
  readonly id: string
  readonly uuid: string
  readonly key: string
  readonly slotCount: number
  readonly wallMs: number
  readonly settings: Readonly<Record<string, SettingValue>>
  readonly firstNode: { readonly id: string; readonly key: string; readonly zone: string; readonly rack: string }
}

/** The first command of a cluster: its identity, and its first node. Done again with the same uuid it says the same. */
export const clusterInit: Operation<ClusterInitArgs, { node: NodeNumber }> = {
  feature: 1,
  apply(state, args) {
    const cluster = state.cluster
    if (cluster !== undefined) {
      if (cluster.uuid === args.uuid) return { node: 1 as NodeNumber }
      throw new XsanError('ALREADY_EXISTS', `this node belongs to the cluster ${cluster.id} already`, 'See it with `xsan cluster status`.')
    }
    if (!isSlotCount(args.slotCount)) throw new XsanError('INVALID_PARAM', `${args.slotCount} slots: not a power of two`)
    state.setCluster({ id: args.id, uuid: args.uuid, key: args.key, slotCount: args.slotCount, createdAtMs: args.wallMs })
    for (const [key, value] of Object.entries(args.settings)) state.setSetting(key, value)
    const { id, key, zone, rack } = args.firstNode
    const node = state.takeNodeNumber()
    state.putNode({
      node,
      id,
      incarnation: 0 as Incarnation,
      zone,
      rack,
      key,
      state: 'member',
      version: '',
      dataDir: '',
      bootId: '',
      featureMax: 1,
      grpc: '',
      data: '',
      nbd: '',
      nbdSocket: '',
      admin: '',
    })
    return { node }
  },
}
