import { XsanError } from '../../base/errors.ts'
import type { NodeNumber } from '../../base/ids.ts'
import type { Operation } from './operation.ts'

/** The node is to be removed: no replica starts on it, those on it move away. */
export const nodeLeave: Operation<{ readonly node: NodeNumber }, null> = {
  feature: 1,
  apply(state, { node }) {
    const record = state.nodes.get(node)
    if (record === undefined) throw new XsanError('NODE_NOT_FOUND', `there is no node ${node}`, 'See `xsan node list`.')
    if (record.state !== 'leaving') state.putNode({ ...record, state: 'leaving' })
    return null
  },
}
