/** Answers known at once that must not be given inside the call: they are given in a later turn of the io queue. */
import type { IoQueue, Tag } from '../env/ioqueue.ts'

export type Done = (row: number, status: number, extra: number) => void

const AT_START = 64

export class Deferred {
  readonly #queue: IoQueue
  readonly #tag: Tag
  #done: Done[] = new Array(AT_START)
  #row = new Int32Array(AT_START)
  #status = new Int32Array(AT_START)
  #extra = new Int32Array(AT_START)
  #count = 0
  #armed = false

  constructor(queue: IoQueue) {
    this.#queue = queue
    this.#tag = queue.register('store answers', () => {
      this.#armed = false
      const count = this.#count
      for (let i = 0; i < count; i++) this.#done[i]!(this.#row[i]!, this.#status[i]!, this.#extra[i]!)
      this.#keepFrom(count)
    })
  }

  /** Answers not yet given. */
  get count(): number {
    return this.#count
  }

  add(done: Done, row: number, status: number, extra: number): void {
    if (this.#count === this.#row.length) this.#grow()
    const i = this.#count++
    this.#done[i] = done
    this.#row[i] = row
    this.#status[i] = status
    this.#extra[i] = extra
    this.#arm()
  }

  #arm(): void {
    if (this.#armed) return
    this.#armed = true
    this.#queue.timeout(0, this.#tag, 0)
  }

  /** What was added while the answers were given comes in the next turn. */
  #keepFrom(given: number): void {
    const left = this.#count - given
    for (let i = 0; i < left; i++) this.#done[i] = this.#done[given + i]!
    this.#row.copyWithin(0, given, this.#count)
    this.#status.copyWithin(0, given, this.#count)
    this.#extra.copyWithin(0, given, this.#count)
    this.#count = left
    if (left > 0) this.#arm()
  }

  #grow(): void {
    const larger = (column: Int32Array<ArrayBuffer>) => {
      const next = new Int32Array(column.length * 2)
      next.set(column)
      return next
    }
    this.#row = larger(this.#row)
    this.#status = larger(this.#status)
    this.#extra = larger(this.#extra)
  }
}
