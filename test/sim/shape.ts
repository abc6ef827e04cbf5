/**
 * What a cluster looks like that a profile's faults are let loose on: drawn from the seed alone, each trait from a stream of its own, so that a
 * new one leaves the others as they were. Aimed runs have the plain shape. What is drawn here is not in a saved schedule: whoever changes it raises
 * SCHEDULE_FORMAT (faults.ts), or saved ones would be replayed on another cluster.
 */
import { KiB, MiB } from '../../src/base/units.ts'
import { FEATURE_LEVEL } from '../../src/control/state.ts'
import { type Seed, seededPrng } from '../../src/env/sim/world.ts'
import type { SimClusterOptions } from './cluster.ts'

export type Shape = Required<Pick<SimClusterOptions, 'nbd' | 'disksPerNode' | 'slotCount' | 'limits'>> &
  Pick<SimClusterOptions, 'diskBytes' | 'replicas' | 'network' | 'unreadableTorn' | 'featureMax'>

export const PLAIN_SHAPE: Shape = { nbd: false, disksPerNode: 1, slotCount: 16, limits: {} }

/** So few that everybody waits for everybody. */
const SMALL_LIMITS = { creditRows: 8, creditBytes: 2 * MiB, recordsMax: 256, updatesMax: 32, readsMax: 32, clientOpsMax: 64 }
/** What is larger than a window takes several ways to and fro, and where a link is slow, long. */
const SMALL_WINDOWS = { windowMinBytes: 16 * KiB, windowMaxBytes: 64 * KiB }
/** Pages that a loss of power tears on a disk, and that cannot be read afterwards. */
const UNREADABLE_TORN = 4
/** Room for nine blocks beside the journal: clients that fill all volumes do not find it. */
const SMALL_DISK_BYTES = 56 * MiB

export function shapeOf(seed: Seed): Shape {
  const random = (trait: string) => seededPrng(seed).fork(trait)
  const isTwoCopies = random('copies').chance(0.1)
  const isSmallDisk = random('disk size').chance(0.1)
  return {
    // most clients speak NBD then, in the other runs none
    nbd: random('nbd').chance(0.3),
    disksPerNode: random('disks per node').chance(0.3) ? 2 : 1,
    slotCount: random('slots').pick([16, 16, 16, 4, 64]),
    limits: random('limits').chance(0.2) ? SMALL_LIMITS : {},
    ...(isSmallDisk ? { diskBytes: SMALL_DISK_BYTES } : {}),
    ...(random('windows').chance(0.3) ? { network: SMALL_WINDOWS } : {}),
    featureMax: random('feature level').pick([FEATURE_LEVEL, FEATURE_LEVEL, FEATURE_LEVEL - 1, 1]),
    ...(random('torn pages').chance(0.7) ? { unreadableTorn: UNREADABLE_TORN } : {}),
    ...(isTwoCopies ? { replicas: 2 } : {}),
  }
}

/** Share of its clients' operations that are large, so that the journals come round. */
export function largeShareOf(seed: Seed): number {
  return seededPrng(seed).fork('large operations').chance(0.3) ? 0.25 : 0
}

/** Share of what zeroes that takes whole blocks. */
export function removeShareOf(seed: Seed): number {
  return seededPrng(seed).fork('removals').pick([0, 0, 0.05, 0.3])
}

/** Whether clients go on within the outcome of what has ended. */
export function isEagerOf(seed: Seed): boolean {
  return seededPrng(seed).fork('eager clients').chance(0.25)
}

/** Nodes of a cluster at its start. */
export function nodesOf(seed: Seed): number {
  return seededPrng(seed).fork('nodes').pick([3, 3, 3, 3, 4, 5])
}
