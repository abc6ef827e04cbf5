/**
 * The io queue for plain async code (mount, replay, destage, resync, logins): one promise per operation.
 * Not for the per-request path. Ownership of ranges is as in {@link IoQueue}.
 */

import { assert } from '../base/assert.ts'
import { columns, i32 } from '../base/columns.ts'
import { errnoName, type Handle, type IoQueue, type Tag } from './ioqueue.ts'

/**
 * Async operations under way at one time on a reactor: more than there can be repairs (of each read, merge and call served to 63 peers), negotiations
 * and all other work together.
 */
const ASYNC_OPS_MAX = 16_384
/** No handle. */
const NOTHING = -1

export class AsyncIo {
  readonly queue: IoQueue
  /** `written`: the file of a write or flush, else NOTHING. */
  readonly #ops = columns('async io', ASYNC_OPS_MAX, { written: i32 })
  readonly #resolve: Array<((result: number) => void) | undefined> = []
  readonly #tag: Tag
  /** Of operations on files: they are counted apart. */
  readonly #fileTag: Tag
  /** Operations on files: how many are under way, and how many have ended. */
  filesUnderWay = 0
  filesEnded = 0
  readonly #onWriteFailed = new Map<Handle, (error: string) => void>()

  constructor(queue: IoQueue) {
    this.queue = queue
    const complete = (row: number, result: number): void => {
      const resolve = this.#resolve[row]
      assert(resolve !== undefined, `async io: completion of unknown operation ${row}`)
      this.#resolve[row] = undefined
      this.#ops.free(row)
      queue.asyncPending = true
      resolve(result)
    }
    this.#tag = queue.register('async', complete)
    this.#fileTag = queue.register('async file', (row, result) => {
      this.filesUnderWay--
      this.filesEnded++
      if (result < 0) this.#onWriteFailed.get(this.#ops.written[row] as Handle)?.(errnoName(result))
      complete(row, result)
    })
  }

  /** Bytes read (maybe short) or -errno. */
  read(file: Handle, offsetBytes: number, page: number, deltaBytes: number, lengthBytes: number, crcIndex = -1): Promise<number> {
    return this.#startFile((row) => this.queue.read(file, offsetBytes, page, deltaBytes, lengthBytes, crcIndex, this.#fileTag, row))
  }

  write(file: Handle, offsetBytes: number, page: number, deltaBytes: number, lengthBytes: number): Promise<number> {
    return this.#startFile((row) => this.queue.write(file, offsetBytes, page, deltaBytes, lengthBytes, this.#fileTag, row), file)
  }

  /** Takes the segments listed on the queue just before this call. */
  writeSegments(file: Handle, offsetBytes: number, sync = false): Promise<number> {
    return this.#startFile((row) => this.queue.writeSegments(file, offsetBytes, sync, this.#fileTag, row), file)
  }

  fdatasync(file: Handle): Promise<number> {
    return this.#startFile((row) => this.queue.fdatasync(file, this.#fileTag, row), file)
  }

  /**
   * Until the file is closed, `fn` is called in the turn in which a write or flush of it from here is told to have failed: before what is told next, and so
   * before whoever waits for it goes on.
   */
  onWriteFailed(file: Handle, fn: (error: string) => void): void {
    this.#onWriteFailed.set(file, fn)
  }

  /** 0 or -errno, as {@link IoQueue.allocate}. */
  allocate(file: Handle, offsetBytes: number, lengthBytes: number): Promise<number> {
    return this.#startFile((row) => this.queue.allocate(file, offsetBytes, lengthBytes, this.#fileTag, row))
  }

  /** Resolves after at least `delayMs`. */
  async sleep(delayMs: number): Promise<void> {
    await this.#start((row) => this.queue.timeout(delayMs, this.#tag, row))
  }

  close(handle: Handle): Promise<number> {
    this.#onWriteFailed.delete(handle)
    return this.#start((row) => this.queue.close(handle, this.#tag, row))
  }

  /** Bytes received, 0 = closed by the peer, or -errno. */
  recv(socket: Handle, page: number, deltaBytes: number, lengthBytes: number, waitAll = false): Promise<number> {
    return this.#start((row) => this.queue.recv(socket, page, deltaBytes, lengthBytes, waitAll, this.#tag, row))
  }

  send(socket: Handle, page: number, deltaBytes: number, lengthBytes: number): Promise<number> {
    return this.#start((row) => this.queue.send(socket, page, deltaBytes, lengthBytes, this.#tag, row))
  }

  accept(listener: Handle): Promise<number> {
    return this.#start((row) => this.queue.accept(listener, this.#tag, row))
  }

  async connectTcp(options: { host: string; port: number }): Promise<{ handle: Handle; result: number }> {
    let handle!: Handle
    const result = await this.#start((row) => {
      handle = this.queue.connectTcp(options, this.#tag, row)
    })
    return { handle, result }
  }

  #startFile(prepare: (row: number) => void, written: Handle | typeof NOTHING = NOTHING): Promise<number> {
    this.filesUnderWay++
    return this.#start(prepare, written)
  }

  #start(prepare: (row: number) => void, written: Handle | typeof NOTHING = NOTHING): Promise<number> {
    const row = this.#ops.alloc()
    assert(row >= 0, `more than ${ASYNC_OPS_MAX} async operations under way`)
    this.#ops.written[row] = written
    return new Promise((resolve) => {
      this.#resolve[row] = resolve
      prepare(row)
    })
  }
}
