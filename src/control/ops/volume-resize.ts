import { XsanError } from '../../base/errors.ts'
import type { VolumeNumber } from '../../base/ids.ts'
import { formatSize } from '../../base/units.ts'
import type { VolumeRecord } from '../state.ts'
import type { Operation } from './operation.ts'
import { checkSize } from './volume-create.ts'

export interface VolumeResizeArgs {
  readonly volume: VolumeNumber
  readonly sizeBytes: number
  readonly allowShrink: boolean
}

export const volumeResize: Operation<VolumeResizeArgs, VolumeRecord> = {
  feature: 1,
  apply(state, { volume, sizeBytes, allowShrink }) {
    const record = state.volumes.get(volume)
    if (record === undefined) throw new XsanError('VOLUME_NOT_FOUND', `there is no volume ${volume}`, 'See `xsan volume list`.')
    checkSize(sizeBytes)
    if (sizeBytes < record.sizeBytes && !allowShrink) {
      throw new XsanError(
        'INVALID_PARAM',
        `${record.name} has ${formatSize(record.sizeBytes)}: what lies beyond ${formatSize(sizeBytes)} would be lost`,
        'Say --shrink if that is meant.',
      )
    }
    const next = { ...record, sizeBytes }
    if (sizeBytes !== record.sizeBytes) state.putVolume(next)
    return next
  },
}
