import { XsanError } from '../../base/errors.ts'
import type { NodeNumber } from '../../base/ids.ts'
import type { Operation } from './operation.ts'

/** The node and its disks go for good, once no chain names them. */
export const nodeRemove: Operation<{ readonly node: NodeNumber }, null> = {
  feature: 1,
  apply(state, { node }) {
    const record = state.nodes.get(node)
    if (record === undefined) return null
    if (state.chains.some((chain) => chain.entries.some((entry) => entry.node === node))) {
      throw new XsanError('BUSY', `${record.id} still holds replicas`, 'Wait until they have moved: see `xsan cluster status`.')
    }
    for (const disk of [...state.disks.values()].filter((of) => of.node === node)) state.removeDisk(disk.disk)
    state.removeNode(node)
    return null
  },
}
