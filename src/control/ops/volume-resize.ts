import { XsanError } from '../../base/errors.ts'
import type { VolumeNumber } from '../../base/ids.ts'
import { formatSize } from '../../base/units.ts'
import type { VolumeRecord } from '../state.ts'
import type { Operation } from './operation.ts'
import { checkSize } from './volume-create.ts'

export interface VolumeResizeArgs {
  readonly volume: VolumeNumber
  readonly sizeBytes: number
}

/** Volumes only grow: nothing gives back the blocks beyond a smaller end, and what is left there would come back when it grows again. */
export const volumeResize: Operation<VolumeResizeArgs, VolumeRecord> = {
  feature: 1,
  apply(state, { volume, sizeBytes }) {
    const record = state.volumes.get(volume)
    if (record === undefined) throw new XsanError('VOLUME_NOT_FOUND', `there is no volume ${volume}`, 'See `xsan volume list`.')
    checkSize(sizeBytes)
    if (sizeBytes < record.sizeBytes) {
      throw new XsanError(
        'INVALID_PARAM',
        `${record.name} has ${formatSize(record.sizeBytes)} and cannot become smaller: ${formatSize(sizeBytes)}`,
        'Make a new volume of that size and copy what you need, with nbdcopy for example.',
      )
    }
    const next = { ...record, sizeBytes }
    if (sizeBytes !== record.sizeBytes) state.putVolume(next)
    return next
  },
}
