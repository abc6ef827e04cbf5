import { XsanError } from '../../base/errors.ts'
import type { NodeNumber } from '../../base/ids.ts'
import type { Operation } from './operation.ts'

/** A removal that has not ended is called off: what has moved away comes back by and by. */
export const nodeStay: Operation<{ readonly node: NodeNumber }, null> = {
  feature: 2,
  apply(state, { node }) {
    const record = state.nodes.get(node)
    if (record === undefined) throw new XsanError('NODE_NOT_FOUND', `there is no node ${node} any more`, 'It is removed: wipe it, and join it anew.')
    if (record.state === 'leaving') state.putNode({ ...record, state: 'member' })
    return null
  },
}
