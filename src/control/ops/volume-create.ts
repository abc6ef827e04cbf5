import { XsanError } from '../../base/errors.ts'
import { BLOCK_BYTES, SECTOR_BYTES } from '../../base/units.ts'
import { REPLICAS_MAX } from '../../placement/chain.ts'
import type { VolumeRecord } from '../state.ts'
import type { Operation } from './operation.ts'

export const VOLUMES_MAX = 10_000
/** Block indexes have 32 bits. */
export const VOLUME_BYTES_MAX = Math.min(Number.MAX_SAFE_INTEGER, 2 ** 31 * BLOCK_BYTES)

export type VolumeCreateArgs = Omit<VolumeRecord, 'volume'>

export const volumeCreate: Operation<VolumeCreateArgs, VolumeRecord> = {
  feature: 1,
  apply(state, args) {
    state.theCluster
    checkName(args.name)
    checkSize(args.sizeBytes)
    const known = state.findVolume(args.name)
    if (known !== undefined) {
      throw new XsanError('VOLUME_EXISTS', `there is a volume ${args.name} already (number ${known.volume})`, 'Choose another name, or delete it first.')
    }
    if (state.volumes.size >= VOLUMES_MAX) throw new XsanError('INSUFFICIENT_SPACE', `the cluster has ${VOLUMES_MAX} volumes`, 'Delete some first.')
    if (!(Number.isInteger(args.replicas) && args.replicas >= 1 && args.replicas <= REPLICAS_MAX)) {
      throw new XsanError('INVALID_PARAM', `${args.replicas} replicas of ${args.name}`, `Take 1 up to ${REPLICAS_MAX}.`)
    }
    const members = state.nodesWithDisks()
    if (args.replicas > members.size) {
      const nodes = members.size === 1 ? 'only 1 node has' : `only ${members.size} nodes have`
      throw new XsanError(
        'INVALID_PARAM',
        `${args.replicas} replicas of ${args.name} take ${args.replicas} nodes with disks, ${nodes} any`,
        'Ask for fewer --replicas, or add nodes with `xsan cluster add`.',
      )
    }
    if (!(Number.isInteger(args.minCopies) && args.minCopies >= 1 && args.minCopies <= args.replicas)) {
      throw new XsanError('INVALID_PARAM', `min_copies ${args.minCopies} of ${args.replicas} replicas`, 'Take 1 up to the number of replicas.')
    }
    const { name, sizeBytes, replicas, minCopies, syncWhenWrite, readOnly, createdAtMs } = args
    const record: VolumeRecord = { volume: state.takeVolumeNumber(), name, sizeBytes, replicas, minCopies, syncWhenWrite, readOnly, createdAtMs }
    state.putVolume(record)
    return record
  },
}

export function checkName(name: string): void {
  if (!/^[A-Za-z][A-Za-z0-9._-]{0,62}$/.test(name)) {
    throw new XsanError('INVALID_PARAM', `${JSON.stringify(name)} cannot name a volume`, 'Use letters, digits, ".", "_" and "-", a letter first, at most 63.')
  }
}

export function checkSize(sizeBytes: number): void {
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes < SECTOR_BYTES || sizeBytes > VOLUME_BYTES_MAX || sizeBytes % SECTOR_BYTES !== 0) {
    throw new XsanError('INVALID_PARAM', `a volume of ${sizeBytes} bytes`, `Take a multiple of ${SECTOR_BYTES}, at most ${VOLUME_BYTES_MAX}.`)
  }
}
