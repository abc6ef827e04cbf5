import { XsanError } from '../../base/errors.ts'
import type { NodeNumber } from '../../base/ids.ts'
import type { Operation } from './operation.ts'

/** From this feature level on; before, all nodes have to do alike what an older one does. */
const HEEDS_STAY = 4

/** The node and its disks go for good, once no chain names them; not when its removal was called off (`node.stay`) while this was on its way into the log. */
export const nodeRemove: Operation<{ readonly node: NodeNumber }, null> = {
  feature: 1,
  apply(state, { node }) {
    const record = state.nodes.get(node)
    if (record === undefined) return null
    if (record.state !== 'leaving' && state.featureLevel >= HEEDS_STAY) throw new XsanError('BUSY', `${record.id} stays: its removal was called off`)
    if (state.chains.some((chain) => chain.entries.some((entry) => entry.node === node))) {
      throw new XsanError('BUSY', `${record.id} still holds replicas`, 'Wait until they have moved: see `xsan cluster status`.')
    }
    for (const disk of [...state.disks.values()].filter((of) => of.node === node)) state.removeDisk(disk.disk)
    state.removeNode(node)
    return null
  },
}
