/**
 * Who may take how much of something that all need and that a standstill keeps: channels, credit, rows of merges.
 *
 * Who waits for a disk that hangs, or for a slot that nobody serves, gives nothing back. So whoever takes belongs to a group that stands still
 * together (the slots that one disk heads, the reads of one disk here, the calls to one peer), and takes another only while its group has less than
 * is still free:
 *
 *   one group that stands still has half, the next one a quarter, ...: there is always something left for those that go on
 *
 * Where there is only one group, nobody is to be protected, and it may have everything.
 */
export class Shares {
  /** How many nobody has. */
  free: number
  /** There is no other group. */
  isAlone: boolean
  /** What each group has. */
  readonly #held: Int32Array

  /** `total`: how many there are. */
  constructor(groups: number, total: number) {
    this.#held = new Int32Array(groups)
    this.free = total
    this.isAlone = groups === 1
  }

  mayTake(group: number): boolean {
    return this.free > 0 && (this.isAlone || this.#held[group]! < this.free)
  }

  /** False: the group may not take one now. */
  take(group: number): boolean {
    if (!this.mayTake(group)) return false
    this.#held[group]!++
    this.free--
    return true
  }

  giveBack(group: number): void {
    this.#held[group]!--
    this.free++
  }
}

/** Groups of disks: those of a cluster of up to so many have one each, in a larger one some share theirs. */
export const DISK_GROUPS = 64

export function groupOfDisk(disk: number): number {
  return disk % DISK_GROUPS
}
