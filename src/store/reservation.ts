/**
 * The space of a disk that is a file: it is had before it is promised, so that a file system that fills up refuses new blocks and nothing else.
 *
 *   superblocks, journal, extent table      allocated before the disk serves
 *   extents 0 .. reservedRows - 1           allocated, each with its page tables: new blocks take these
 *   extents from there on                   may not be there when they are wanted
 *
 * The store takes free extents from the lowest on (or those given back, which keep their space), so what is allocated is always a beginning of
 * the disk: one number, which needs no place on it. Some extents are allocated ahead, in the background, a stretch at a time; one request per
 * stretch, nothing per write.
 *
 * Block devices have all their space. So have files on file systems that cannot allocate ahead, as far as anybody can tell: there a write that
 * finds no space fails the disk.
 */
import { messageOf, XsanError } from '../base/errors.ts'
import { BLOCK_BYTES, formatSize, MiB, PAGE_BYTES } from '../base/units.ts'
import type { AsyncIo } from '../env/async-io.ts'
import { ALLOCATE_BYTES_MAX, Errno, errnoName, type Handle, type OpenedFile, type Tag } from '../env/ioqueue.ts'
import type { BlockTable } from './block-table.ts'
import { dataOffset, type Geometry, LEAVES_PER_BLOCK, leafOffset, secondSuperblockOffset } from './layout.ts'
import type { FileSpace } from './mount-options.ts'

/** Extents allocated ahead (each head has up to 16 new blocks under way): a share of the disk within these bounds; half of them are kept for others than clients when there are no more to be had. */
const AHEAD_SHARE = 8
const AHEAD_MIN = 8
const AHEAD_MAX = 128
/** How often a full file system is looked at again. */
const RETRY_MS = 2000

/** With its page tables. */
const EXTENT_BYTES = BLOCK_BYTES + LEAVES_PER_BLOCK * 2 * PAGE_BYTES
const NO_SPACE: ReadonlySet<number> = new Set([-Errno.ENOSPC, -Errno.EDQUOT])
const UNKNOWN: ReadonlySet<number> = new Set([-Errno.EOPNOTSUPP, -Errno.EINVAL])

export interface ReservationOptions {
  readonly io: AsyncIo
  readonly file: OpenedFile
  readonly path: string
  readonly geometry: Geometry
  readonly table: BlockTable
  /** May throw: the path is another thing than the open file. */
  readonly space: () => FileSpace
  readonly onRoom: () => void
  readonly onNote: (message: string, fields?: Readonly<Record<string, unknown>>) => void
}

export class Reservation {
  /** No more extents are to be had from the file system for now. */
  exhausted = false
  readonly #o: ReservationOptions
  readonly #ahead: number
  readonly #retryTag: Tag
  #running: Promise<void> | undefined
  #retrying = false
  #stopping = false
  #isUntold = false

  constructor(options: ReservationOptions) {
    this.#o = options
    this.#ahead = Math.min(AHEAD_MAX, Math.max(AHEAD_MIN, Math.ceil(options.table.extentCount / AHEAD_SHARE)))
    this.#retryTag = options.io.queue.register('store space', (_row, result) => {
      this.#retrying = false
      if (result >= 0) this.kick()
    })
  }

  get isComplete(): boolean {
    const { table } = this.#o
    return table.reservedRows === table.extentCount
  }

  /** While no more can be had, clients get no new blocks from the last so many free extents: they are for what comes from other nodes. */
  get keptRows(): number {
    return this.#ahead / 2
  }

  /** Why new blocks are refused although the disk is not full; '' when it is not so. */
  get reason(): string {
    return this.exhausted ? `the file system of ${this.#o.path} is full` : ''
  }

  /** Mount, after replay: the space of what exists, and of some extents more. Without space the disk serves what it has. */
  async begin(): Promise<void> {
    const { table, file, geometry } = this.#o
    if (file.isBlockDevice) return
    table.limitReserved()
    const result = await allocateFixed(this.#o.io, file.handle, geometry)
    if (UNKNOWN.has(result)) return this.#giveUp(result)
    if (result < 0) this.#o.onNote('the file system has no space for the journal of this disk', { path: this.#o.path, error: errnoName(result) })
    await this.#extend(0, table.reservedRows)
    if (!this.isComplete) await this.#run()
  }

  /** Some free extents were taken: allocates more when few are left. Never waits. */
  kick(): void {
    if (this.isComplete || this.#running !== undefined || this.#stopping || this.#retrying || this.#o.table.freeCount >= this.#ahead) return
    this.#running = this.#run().finally(() => {
      this.#running = undefined
    })
  }

  /** Resolves when nothing is under way any more. */
  async stop(): Promise<void> {
    this.#stopping = true
    await this.#running
    this.#o.io.queue.cancelTimeout(this.#retryTag, 0)
    while (this.#retrying) await this.#o.io.sleep(0.2)
  }

  async #run(): Promise<void> {
    const { table } = this.#o
    while (!this.isComplete && !this.#stopping && table.freeCount < this.#ahead) {
      const from = table.reservedRows
      const wanted = Math.min(this.#ahead, table.extentCount - from)
      // a stretch, or what there is of it
      const got = (await this.#extend(from, from + wanted)) || (wanted > 1 && (await this.#extend(from, from + 1)))
      if (!got) {
        this.#tryLater()
        return
      }
      this.#setExhausted(false)
      this.#o.onRoom()
    }
  }

  #tryLater(): void {
    if (this.isComplete || this.#stopping) return
    this.#setExhausted(true)
    this.#retrying = true
    this.#o.io.queue.timeout(RETRY_MS, this.#retryTag, 0)
    this.#o.onRoom()
  }

  #setExhausted(exhausted: boolean): void {
    if (this.exhausted === exhausted) return
    this.exhausted = exhausted
    const { path, table, onNote } = this.#o
    const fields = { path, extents: table.reservedRows, of: table.extentCount }
    onNote(exhausted ? 'the file system under a disk is full: it takes no new blocks' : 'the file system under a disk has space again', fields)
  }

  /** The space of extents [from, to), and their page tables. False: there is none. */
  async #extend(from: number, to: number): Promise<boolean> {
    const { io, file, geometry, table } = this.#o
    const isNew = to > table.reservedRows
    if (isNew && !this.#canSpare(from, to)) return false
    const leaves = leafOffset(geometry, from, 0, 0)
    const data = dataOffset(geometry, from, 0)
    let result = await allocate(io, file.handle, leaves, leafOffset(geometry, to, 0, 0) - leaves)
    if (result === 0) result = await allocate(io, file.handle, data, dataOffset(geometry, to, 0) - data)
    if (UNKNOWN.has(result)) {
      this.#giveUp(result)
      return false
    }
    if (result < 0 && !NO_SPACE.has(result) && !this.exhausted) this.#o.onNote('space cannot be allocated', { path: this.#o.path, error: errnoName(result) })
    if (result === 0 && isNew) table.reservedRows = to
    return result === 0
  }

  /** What the file has already (an earlier mount allocated it) costs nothing. */
  #canSpare(from: number, to: number): boolean {
    const { geometry } = this.#o
    const { spareBytes, allocatedBytes } = this.#space()
    const rowsThere = Math.floor((allocatedBytes - geometry.pageTableOffset - PAGE_BYTES) / EXTENT_BYTES)
    return spareBytes >= (to - Math.max(from, rowsThere)) * EXTENT_BYTES
  }

  /** The path may lead nowhere, or elsewhere, while the disk is open: then the file system says with each allocation what it has. */
  #space(): FileSpace {
    try {
      return this.#o.space()
    } catch (error) {
      if (!this.#isUntold) this.#o.onNote('the file system does not tell its space', { path: this.#o.path, error: messageOf(error) })
      this.#isUntold = true
      return { spareBytes: Number.POSITIVE_INFINITY, allocatedBytes: 0 }
    }
  }

  #giveUp(result: number): void {
    const { table, path, onNote } = this.#o
    onNote('this file system cannot allocate space ahead: if it fills up, the disk fails', { path, error: errnoName(result) })
    table.reservedRows = table.extentCount
    this.exhausted = false
    this.#o.onRoom()
  }
}

/** Superblocks, journal and extent table. 0 or -errno. */
async function allocateFixed(io: AsyncIo, file: Handle, geometry: Geometry): Promise<number> {
  const first = await allocate(io, file, 0, geometry.pageTableOffset)
  return first < 0 ? first : await allocate(io, file, secondSuperblockOffset(geometry), PAGE_BYTES)
}

/** Format: throws INSUFFICIENT_SPACE when the file system has no space for a disk that holds nothing yet. */
export async function reserveFixed(io: AsyncIo, file: OpenedFile, path: string, geometry: Geometry): Promise<void> {
  if (file.isBlockDevice) return
  const result = await allocateFixed(io, file.handle, geometry)
  if (!NO_SPACE.has(result)) return
  throw new XsanError(
    'INSUFFICIENT_SPACE',
    `the file system of ${path} has no space for a disk with a journal of ${formatSize(geometry.segmentCount * geometry.segmentBytes)}`,
    `Free some space there: ${formatSize(Math.ceil(geometry.pageTableOffset / MiB) * MiB)} and more; or put the disk elsewhere.`,
  )
}

async function allocate(io: AsyncIo, file: Handle, offsetBytes: number, lengthBytes: number): Promise<number> {
  for (let done = 0; done < lengthBytes; ) {
    const part = Math.min(ALLOCATE_BYTES_MAX, lengthBytes - done)
    const result = await io.allocate(file, offsetBytes + done, part)
    if (result === -Errno.EINTR || result === -Errno.EAGAIN) continue
    if (result < 0) return result
    done += part
  }
  return 0
}
