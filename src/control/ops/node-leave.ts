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
    const left = state.nodesWithDisks()
    if (copies !== undefined && left.delete(node) && left.size < copies) {
      throw new XsanError('BUSY', `without ${record.id} there are ${left.size} nodes with disks for ${copies} copies`, 'Add a node first, or say --force.')
    }
    state.putNode({ ...record, state: 'leaving' })
    return null
  },
}
