import { XsanError } from '../../base/errors.ts'
import type { DiskNumber } from '../../base/ids.ts'
import type { Operation } from './operation.ts'

/** Its node has stopped serving every replica on the disk, and says so. */
export const diskFailed: Operation<{ readonly disk: DiskNumber; readonly reason: string }, null> = {
  feature: 1,
  apply(state, { disk, reason }) {
    const record = state.disks.get(disk)
    if (record === undefined) throw new XsanError('DISK_NOT_FOUND', `there is no disk ${disk}`)
    if (record.state !== 'failed') state.putDisk({ ...record, state: 'failed', reason })
    return null
  },
}
