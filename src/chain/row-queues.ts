/**
 * Rows of a table that wait, first come, first served, in one queue per group: linked through the table's `next`, so that nothing is allocated. A row
 * is in one queue at most.
 */
import { NONE } from './records.ts'

export class RowQueues {
  /** Rows in all queues together. */
  count = 0
  readonly groups: number
  readonly #next: Int32Array
  readonly #first: Int32Array
  readonly #last: Int32Array

  constructor(next: Int32Array, groups: number) {
    this.groups = groups
    this.#next = next
    this.#first = new Int32Array(groups).fill(NONE)
    this.#last = new Int32Array(groups).fill(NONE)
  }

  /** NONE: nobody waits. */
  first(group: number): number {
    return this.#first[group]!
  }

  last(group: number): number {
    return this.#last[group]!
  }

  push(group: number, row: number): void {
    this.#next[row] = NONE
    const last = this.#last[group]!
    if (last === NONE) this.#first[group] = row
    else this.#next[last] = row
    this.#last[group] = row
    this.count++
  }

  /** Takes the first out of a queue that is not empty. */
  shift(group: number): number {
    const row = this.#first[group]!
    const next = this.#next[row]!
    this.#first[group] = next
    if (next === NONE) this.#last[group] = NONE
    this.count--
    return row
  }
}
