/**
 * Many reads or writes of whole pages as one piece of work: pages that follow each other on the disk are one request, some requests are under
 * way at a time, and one promise tells the end. (A promise per request would cost the reactor a trip through the event loop each.)
 *
 * A file in memory is moved inside the submitting call, on the reactor's thread: there only some pages are under way at a time, so that clients are
 * looked at between them.
 */
import { assert } from '../base/assert.ts'
import { XsanError } from '../base/errors.ts'
import { PAGE_BYTES } from '../base/units.ts'
import { Errno, errnoName, type Handle, type IoQueue, type Tag } from '../env/ioqueue.ts'

const PARALLEL_MAX = 32
/** Pages of one request; the ranges of a gathered write are at most as many. */
const REQUEST_PAGES_MAX = 128
/** Pages under way, unless a request alone has more: on a disk, and in memory (about 50 us). */
const PAGES_UNDER_WAY_MAX = PARALLEL_MAX * REQUEST_PAGES_MAX
const PAGES_UNDER_WAY_IN_MEMORY_MAX = 16
const TRIES_MAX = 1000

export class BulkIo {
  readonly #queue: IoQueue
  readonly #file: Handle
  readonly #path: string
  readonly #tag: Tag
  readonly #pagesMax: number
  readonly #pagesUnderWayMax: number
  /** Per request: where it begins on the disk, its pages in `#pages` ([first, first + count)), and how many have been moved. */
  readonly #offset: Float64Array
  readonly #first: Int32Array
  readonly #count: Int32Array
  readonly #moved: Int32Array
  readonly #tries: Int32Array
  readonly #pages: Int32Array
  #requests = 0
  #pageCount = 0
  #nextOffset = -1
  #writing = false
  #next = 0
  #ended = 0
  #underWay = 0
  #pagesUnderWay = 0
  /** Whenever a request has ended. */
  readonly #onMoved: (() => void) | undefined
  /** At once when a write has failed, while others of the work are still under way. */
  readonly #onWriteFailed: ((reason: string) => void) | undefined
  /** Counted by the watch over hanging I/O; when the work got on last. */
  tick = 0
  #tickOfLast = 0
  #failure: XsanError | undefined
  #settle: { resolve: () => void; reject: (error: XsanError) => void } | undefined

  /** `pagesMax`: of one piece of work; `inMemory`: there is no medium below the kernel. */
  constructor(
    queue: IoQueue,
    options: { file: Handle; path: string; pagesMax: number; inMemory: boolean; onMoved?: () => void; onWriteFailed?: (reason: string) => void },
  ) {
    this.#onMoved = options.onMoved
    this.#onWriteFailed = options.onWriteFailed
    const { pagesMax } = options
    this.#queue = queue
    this.#file = options.file
    this.#path = options.path
    this.#pagesMax = pagesMax
    this.#pagesUnderWayMax = options.inMemory ? PAGES_UNDER_WAY_IN_MEMORY_MAX : PAGES_UNDER_WAY_MAX
    this.#offset = new Float64Array(pagesMax)
    this.#first = new Int32Array(pagesMax)
    this.#count = new Int32Array(pagesMax)
    this.#moved = new Int32Array(pagesMax)
    this.#tries = new Int32Array(pagesMax)
    this.#pages = new Int32Array(pagesMax)
    this.#tag = queue.register('store bulk', (row, result) => this.#onDone(row, result))
  }

  /** Tick at which the work under way began or got on last; Infinity without any. */
  oldestTick(): number {
    return this.#underWay > 0 ? this.#tickOfLast : Number.POSITIVE_INFINITY
  }

  /** Adds one page: its place on the disk, its page of the arena. In the order of places, neighbours become one request. */
  add(offsetBytes: number, page: number): void {
    assert(this.#pageCount < this.#pagesMax, `more than ${this.#pagesMax} pages in one piece of work`)
    const last = this.#requests - 1
    if (offsetBytes === this.#nextOffset && this.#count[last]! < REQUEST_PAGES_MAX) this.#count[last]!++
    else {
      const row = this.#requests++
      this.#offset[row] = offsetBytes
      this.#first[row] = this.#pageCount
      this.#count[row] = 1
      this.#moved[row] = this.#tries[row] = 0
    }
    this.#pages[this.#pageCount++] = page
    this.#nextOffset = offsetBytes + PAGE_BYTES
  }

  /** Adds one page that is a request of its own. */
  addAlone(offsetBytes: number, page: number): void {
    this.#nextOffset = -1
    this.add(offsetBytes, page)
  }

  /** Reads what was added; each neighbour's arena page must follow the one before. Rejects with XsanError READ_FAILED. */
  read(): Promise<void> {
    return this.#run(false)
  }

  /** Rejects with XsanError WRITE_FAILED. */
  write(): Promise<void> {
    return this.#run(true)
  }

  async #run(writing: boolean): Promise<void> {
    this.#writing = writing
    this.#next = this.#ended = 0
    this.#tickOfLast = this.tick
    this.#failure = undefined
    try {
      if (this.#requests > 0) {
        await new Promise<void>((resolve, reject) => {
          this.#settle = { resolve, reject }
          this.#pump()
        })
      }
    } finally {
      this.#requests = this.#pageCount = 0
      this.#nextOffset = -1
    }
  }

  #pump(): void {
    while (this.#underWay < PARALLEL_MAX && this.#next < this.#requests && this.#failure === undefined) {
      const row = this.#next
      if (this.#underWay > 0 && this.#pagesUnderWay + this.#count[row]! > this.#pagesUnderWayMax) return
      this.#next++
      this.#underWay++
      this.#pagesUnderWay += this.#count[row]!
      this.#request(row)
    }
  }

  #request(row: number): void {
    const moved = this.#moved[row]!
    const first = this.#first[row]! + moved
    const count = this.#count[row]! - moved
    const offset = this.#offset[row]! + moved * PAGE_BYTES
    const page = this.#pages[first]!
    if (!this.#writing) this.#queue.read(this.#file, offset, page, 0, count * PAGE_BYTES, -1, this.#tag, row)
    else if (count === 1) this.#queue.write(this.#file, offset, page, 0, PAGE_BYTES, this.#tag, row)
    else {
      for (let i = 0; i < count; ) {
        const from = this.#pages[first + i]!
        let length = 1
        while (i + length < count && this.#pages[first + i + length] === from + length) length++
        this.#queue.segment(from, 0, length * PAGE_BYTES)
        i += length
      }
      this.#queue.writeSegments(this.#file, offset, false, this.#tag, row)
    }
  }

  #onDone(row: number, result: number): void {
    this.#tickOfLast = this.tick
    this.#onMoved?.()
    if (result >= 0) this.#moved[row]! += Math.floor(result / PAGE_BYTES)
    const again = result >= 0 || result === -Errno.EINTR || result === -Errno.EAGAIN
    if (this.#moved[row]! < this.#count[row]! && again && ++this.#tries[row]! <= TRIES_MAX) {
      this.#request(row)
      return
    }
    if (this.#moved[row]! < this.#count[row]!) {
      const what = this.#writing ? 'write' : 'read'
      const message = `${this.#path}: ${what} at ${this.#offset[row]}: ${errnoName(result)}`
      const isFirst = this.#failure === undefined
      this.#failure ??= new XsanError(this.#writing ? 'WRITE_FAILED' : 'READ_FAILED', message, 'Look at the disk and the kernel log.')
      if (isFirst && this.#writing) this.#onWriteFailed?.(message)
    }
    this.#underWay--
    this.#pagesUnderWay -= this.#count[row]!
    this.#ended++
    this.#pump()
    if (this.#underWay > 0 || (this.#failure === undefined && this.#ended < this.#requests)) return
    const settle = this.#settle!
    this.#settle = undefined
    this.#queue.asyncPending = true
    if (this.#failure === undefined) settle.resolve()
    else settle.reject(this.#failure)
  }
}
