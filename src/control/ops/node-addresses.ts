import { XsanError } from '../../base/errors.ts'
import type { Incarnation, NodeNumber } from '../../base/ids.ts'
import type { Operation } from './operation.ts'

export interface NodeAddressesArgs {
  readonly node: NodeNumber
  readonly incarnation: Incarnation
  readonly data: string
  readonly nbd: string
}

/** The data plane listens elsewhere than the process thought when it registered (a port of 0 in the configuration). */
export const nodeAddresses: Operation<NodeAddressesArgs, null> = {
  feature: 1,
  apply(state, { node, incarnation, data, nbd }) {
    const record = state.nodes.get(node)
    if (record === undefined || record.incarnation !== incarnation)
      throw new XsanError('NODE_NOT_FOUND', `node ${node} of incarnation ${incarnation} is not the registered one`)
    state.putNode({ ...record, data, nbd })
    return null
  },
}
