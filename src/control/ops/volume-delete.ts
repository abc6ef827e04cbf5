import { XsanError } from '../../base/errors.ts'
import type { VolumeNumber } from '../../base/ids.ts'
import type { VolumeRecord } from '../state.ts'
import type { Operation } from './operation.ts'

/** The volume leaves the table; the disks give its blocks back when they see that. */
export const volumeDelete: Operation<{ readonly volume: VolumeNumber }, VolumeRecord> = {
  feature: 1,
  apply(state, { volume }) {
    const record = state.volumes.get(volume)
    if (record === undefined) throw new XsanError('VOLUME_NOT_FOUND', `there is no volume ${volume}`, 'See `xsan volume list`.')
    state.removeVolume(volume)
    return record
  },
}
