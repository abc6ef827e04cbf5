import { XsanError } from '../../base/errors.ts'
import type { DiskNumber, Incarnation } from '../../base/ids.ts'
import type { Operation } from './operation.ts'

export interface DiskFailedArgs {
  readonly disk: DiskNumber
  readonly reason: string
  /** Of the process that says so: what an earlier one found is no news of the present one. */
  readonly incarnation?: Incarnation
}

/** Its node has stopped serving every replica on the disk, and says so. */
export const diskFailed: Operation<DiskFailedArgs, null> = {
  feature: 1,
  apply(state, { disk, reason, incarnation }) {
    const record = state.disks.get(disk)
    if (record === undefined) throw new XsanError('DISK_NOT_FOUND', `there is no disk ${disk}`)
    if (incarnation !== undefined && incarnation !== state.incarnation(record.node)) return null
    if (record.state !== 'failed') state.putDisk({ ...record, state: 'failed', reason })
    return null
  },
}
