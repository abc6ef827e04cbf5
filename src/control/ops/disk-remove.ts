import { XsanError } from '../../base/errors.ts'
import type { DiskNumber } from '../../base/ids.ts'
import type { Operation } from './operation.ts'

/** The disk goes for good, once no chain names it. */
export const diskRemove: Operation<{ readonly disk: DiskNumber }, null> = {
  feature: 1,
  apply(state, { disk }) {
    if (!state.disks.has(disk)) return null
    if (state.chains.some((chain) => chain.entries.some((entry) => entry.disk === disk))) {
      throw new XsanError('BUSY', `disk ${disk} still holds replicas`, 'Wait until they have moved: see `xsan cluster status`.')
    }
    state.removeDisk(disk)
    return null
  },
}
