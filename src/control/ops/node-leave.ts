import { XsanError } from '../../base/errors.ts'
import type { NodeNumber } from '../../base/ids.ts'
import type { Operation } from './operation.ts'

export interface NodeLeaveArgs {
  readonly node: NodeNumber
  /** Refused when fewer nodes with disks would stay than this; undefined: at any rate. */
  readonly copies?: number
}

/** The node is to be removed: no replica starts on it, those on it move away. */
export const nodeLeave: Operation<NodeLeaveArgs, null> = {
  feature: 1,
  apply(state, { node, copies }) {
    const record = state.nodes.get(node)
    if (record === undefined && state.wasRemoved(node)) return null
    if (record === undefined) throw new XsanError('NODE_NOT_FOUND', `there is no node ${node}`, 'See `xsan node list`.')
    if (record.state === 'leaving') return null
    if (![...state.nodes.values()].some((other) => other.node !== node && other.state === 'member')) {
      const why = state.nodes.size === 1 ? 'the only node' : 'the last node that stays'
      throw new XsanError(
        'BUSY',
        `${record.id} is ${why}: a cluster has at least one`,
        'Add a node first; to give the cluster up, stop its daemons and wipe their disks.',
      )
    }
    const others = state.nodesWithDisks()
    const hasDisks = others.delete(node)
    if (others.size === 0 && state.chains.some(({ entries }) => entries.some((entry) => entry.node === node)))
      throw new XsanError('BUSY', `no other node than ${record.id} has disks that can be used: its copies could go nowhere`, 'Add a node with disks first.')
    if (copies !== undefined && hasDisks && others.size < copies) {
      throw new XsanError(
        'BUSY',
        `without ${record.id} there are ${others.size} nodes with disks for ${copies} copies`,
        'Add a node first, or say --force: all data has a copy less then.',
      )
    }
    state.putNode({ ...record, state: 'leaving' })
    return null
  },
}
