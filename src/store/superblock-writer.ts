/**
 * The superblocks of one mount, written one after the other.
 *
 * Invariant: of the two copies one is on stable storage, and it is the other one that is written. So after a write of which that is not known the next goes to
 * the same place.
 */
import { XsanError } from '../base/errors.ts'
import type { PageNumber } from '../env/arena.ts'
import type { AsyncIo } from '../env/async-io.ts'
import { errnoName, type Handle } from '../env/ioqueue.ts'
import { writeFully } from './replay.ts'
import { encodeSuperblock, type SuperblockState, superblockOffset } from './superblock.ts'

export class SuperblockWriter {
  readonly #io: AsyncIo
  readonly #file: Handle
  readonly #path: string
  readonly #state: SuperblockState
  readonly #page: PageNumber
  #last: Promise<void> = Promise.resolve()
  #hasDiskFailed = false

  /** `state` as it was found; `page`: the writer's until `dispose`. */
  constructor(options: { io: AsyncIo; file: Handle; path: string; state: SuperblockState; page: PageNumber }) {
    this.#io = options.io
    this.#file = options.file
    this.#path = options.path
    this.#state = options.state
    this.#page = options.page
  }

  /** Before the first write: the copy that was found may be in the kernel alone, from a process that was killed. */
  async flushFound(): Promise<void> {
    try {
      await this.#flush()
    } catch (error) {
      this.#state.generation--
      throw error
    }
  }

  /** The state as it is when its turn comes. After a write that failed the disk has failed, and the next says so itself. */
  write(): Promise<void> {
    const write = () => this.#write()
    this.#last = this.#last.then(write, write)
    return this.#last
  }

  /** A flush under way succeeds all the same, whatever the drive has dropped of what was to be flushed. */
  diskFailed(): void {
    this.#hasDiskFailed = true
  }

  dispose(): void {
    this.#io.queue.arena.free(this.#page)
  }

  async #write(): Promise<void> {
    const hadFailed = this.#hasDiskFailed
    this.#state.generation++
    encodeSuperblock(this.#io.queue.arena, this.#page, this.#state)
    try {
      await writeFully(this.#io, this.#file, superblockOffset(this.#state), this.#page, 1, this.#path)
      await this.#flush()
      if (this.#hasDiskFailed && !hadFailed) throw new XsanError('WRITE_FAILED', `${this.#path}: the disk failed as a superblock was written`)
    } catch (error) {
      this.#state.generation--
      throw error
    }
  }

  async #flush(): Promise<void> {
    const result = await this.#io.fdatasync(this.#file)
    if (result < 0) throw new XsanError('WRITE_FAILED', `${this.#path}: fdatasync: ${errnoName(result)}`, 'Look at the disk and the kernel log.')
  }
}
