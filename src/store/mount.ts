/**
 * Formatting and mounting a disk. Mount: lock -> superblock (ours? known?) -> extent table -> page tables -> replay -> make it durable -> new
 * generation -> free journal segments if there are too few -> fresh segment -> serve.
 *
 * Nothing is written before the disk is known to be ours and makes sense, and replay does not begin before the lock is held: an I/O of a killed
 * process keeps its lock until it has ended.
 */
import { messageOf, XsanError } from '../base/errors.ts'
import { BLOCK_BYTES, formatSize, KiB, MiB, PAGE_BYTES } from '../base/units.ts'
import type { AsyncIo } from '../env/async-io.ts'
import { type Handle, IoError, type OpenedFile } from '../env/ioqueue.ts'
import { BlockTable } from './block-table.ts'
import { ChannelRows } from './channel-rows.ts'
import { Deferred } from './deferred.ts'
import { Destage } from './destage.ts'
import { DiskStore } from './disk-store.ts'
import { journalArenaBytes } from './journal.ts'
import { LEAVES_PER_BLOCK, leafOffset, planGeometry, secondSuperblockOffset, tablePageCount, tablePageOffset } from './layout.ts'
import type { FileSpace, FormatOptions, MountOptions } from './mount-options.ts'
import { failureOf, REPLAY_BYTES, readFully, readReadable, replay, writeFully } from './replay.ts'
import { Reservation, reserveFixed } from './reservation.ts'
import {
  decodeSuperblock,
  encodeSuperblock,
  invalidSuperblock,
  losePower,
  nameBytes,
  type SuperblockState,
  servedNone,
  superblockOffset,
  uuidBytes,
  uuidText,
} from './superblock.ts'
import { SuperblockWriter } from './superblock-writer.ts'
import { checkLeaf, checkTablePage, diskTagOf, isTablePage, loadLeaf, loadTablePage, loseLeaf, newer, tablePageDigest } from './tables.ts'

const LOCK_RETRY_MS = 50
const LOCK_WAIT_MS = 10_000
/** Who mounts or formats a disk gives it up after so many times `hungMs` without any answer. */
const MOUNT_HUNG = 10
/** Buffer of the destage; less when the arena is small, or shared by many disks: all of them together take no more than one part in so many. */
const DESTAGE_BUFFER_PAGES = [4096, 2048, 1024, 256, 64]
const DESTAGE_SHARE = 4
/** That buffer is no larger than one part in so many of the journal (but a segment at least). */
const DESTAGE_ROUNDS = 2
/** The start of a disk that must be blank to be formatted without force. */
const BLANK_BYTES = 64 * KiB
const CHUNK_PAGES = 64
const ENOUGH: FileSpace = { spareBytes: Number.POSITIVE_INFINITY, allocatedBytes: 0 }
/** Blocks whose page tables are read at one time. */
const LEAF_READS_PARALLEL = 8

/** Opens with the lock, waiting for a process that is just ending. */
async function openLocked(io: AsyncIo, path: string, options: { createBytes?: number | undefined; waitMs: number }): Promise<OpenedFile> {
  const { queue } = io
  const until = queue.nowMs + options.waitMs
  for (;;) {
    try {
      return queue.openFile(options.createBytes === undefined ? { path, lock: true } : { path, lock: true, createBytes: options.createBytes })
    } catch (error) {
      if (!(error instanceof IoError)) throw error
      const busy = error.code === 'EWOULDBLOCK' || error.code === 'EAGAIN' || error.code === 'EBUSY'
      if (!busy) throw openError(path, error)
      if (queue.nowMs >= until)
        throw new XsanError('BUSY', `${path} is in use by another process`, 'Stop the other xsand, or whatever has the disk open.', { cause: error })
      await io.sleep(LOCK_RETRY_MS)
    }
  }
}

function openError(path: string, error: IoError): XsanError {
  if (error.code === 'ENOENT') return new XsanError('DISK_NOT_FOUND', `${path} does not exist`, 'Check the path, or create the disk.', { cause: error })
  if (error.code === 'EACCES' || error.code === 'EPERM')
    return new XsanError('PERMISSION_DENIED', `${path}: ${error.message}`, 'Give the user of xsand read and write access to it.', { cause: error })
  if (error.code === 'ENOSPC') return new XsanError('INSUFFICIENT_SPACE', `${path}: ${error.message}`, 'Free space on that file system.', { cause: error })
  return new XsanError('READ_FAILED', `${path}: ${error.message}`, '', { cause: error })
}

/** Pages of the arena for the time of `fn`. */
async function withPages<T>(io: AsyncIo, pages: number, fn: (page: number) => Promise<T>): Promise<T> {
  const { arena } = io.queue
  const page = arena.alloc(pages * PAGE_BYTES)
  if (page === -1) throw new XsanError('NO_BUFFER', `no ${pages} pages of memory to look at a disk`, 'Give the node more memory.')
  try {
    return await fn(page)
  } finally {
    arena.free(page)
  }
}

/** Throws DISK_FOREIGN unless the disk is blank or `force` is set; INVALID_PARAM when it is too small; READ_FAILED or WRITE_FAILED when it is the disk. */
export async function formatStore(io: AsyncIo, options: FormatOptions): Promise<void> {
  await unlessHung({ ...options, io, what: 'being formatted' }, format(io, options))
}

async function format(io: AsyncIo, options: FormatOptions): Promise<void> {
  const { path, identity } = options
  nameBytes(identity.clusterId)
  nameBytes(identity.nodeId)
  if (options.createBytes !== undefined) planGeometry(options.createBytes, options)
  const file = await openLocked(io, path, { createBytes: options.createBytes, waitMs: 0 })
  try {
    const geometry = planGeometry(file.sizeBytes, options)
    await withPages(io, 2 * CHUNK_PAGES, async (page) => {
      const second = secondSuperblockOffset(geometry)
      if (options.force !== true) {
        const pages = BLANK_BYTES / PAGE_BYTES
        await readFully(io, file.handle, 0, page, pages, path)
        await readFully(io, file.handle, second, page + pages, 1, path)
        const bytes = io.queue.arena.bytes.subarray(page * PAGE_BYTES, (page + pages + 1) * PAGE_BYTES)
        if (bytes.some((byte) => byte !== 0))
          throw new XsanError('DISK_FOREIGN', `${path} is not blank: it holds ${whatIs(io, page, path)}`, 'Wipe it, or format with force.')
      }
      await reserveFixed(io, file, path, geometry)
      io.queue.arena.bytes.fill(0, page * PAGE_BYTES, (page + CHUNK_PAGES) * PAGE_BYTES)
      await writeFully(io, file.handle, 0, page, BLANK_BYTES / PAGE_BYTES, path)
      // A journal that has its blocks already is written without changing the file system's metadata
      if (!file.volatile && !file.isBlockDevice) {
        const end = geometry.extentTableOffset
        for (let at = geometry.journalOffset; at < end; at += CHUNK_PAGES * PAGE_BYTES) {
          await writeFully(io, file.handle, at, page, Math.min(CHUNK_PAGES, (end - at) / PAGE_BYTES), path)
        }
      }
      const state: SuperblockState = {
        generation: 0,
        disk: options.disk,
        diskUuid: uuidBytes(options.diskUuid),
        journalUuid: uuidBytes(options.journalUuid),
        clusterId: identity.clusterId,
        nodeId: identity.nodeId,
        bootId: '',
        clean: true,
        mountGeneration: 0,
        slotCount: options.slotCount,
        geometry,
        tailSegment: 1,
        lostPower: false,
        servedSince: servedNone(),
        tables: { mount: 0, round: 0 },
        tablesDigest: 0,
        durableSeq: 0,
        mayEndTorn: false,
      }
      for (state.generation = 1; state.generation <= 2; state.generation++) {
        encodeSuperblock(io.queue.arena, page, state)
        await writeFully(io, file.handle, superblockOffset(state), page, 1, path)
        await sync(io, file.handle, path)
      }
    })
  } finally {
    await io.close(file.handle)
  }
}

/** In words, for the refusal. */
function whatIs(io: AsyncIo, page: number, path: string): string {
  try {
    const found = decodeSuperblock(io.queue.arena, page, path)
    if (typeof found === 'object') return `a disk of XSAN cluster ${found.clusterId}, node ${found.nodeId}`
    return found === 'damaged' ? 'a damaged XSAN disk' : 'other data'
  } catch (error) {
    if (error instanceof XsanError) return 'a disk of another version of XSAN'
    throw error
  }
}

/** Whose disk is it? null when blank. Throws what a mount would throw about its format; looks only. */
export async function probeStore(
  io: AsyncIo,
  path: string,
): Promise<{ clusterId: string; nodeId: string; disk: number; diskUuid: string; slotCount: number; sizeBytes: number; capacityBytes: number } | null> {
  const file = await openLocked(io, path, { waitMs: 0 })
  try {
    const found = await withPages(io, 1, (page) => readSuperblock(io, file, page, path))
    if (found === null) return null
    const { clusterId, nodeId, disk, diskUuid, slotCount, geometry } = found.superblock
    return {
      clusterId,
      nodeId,
      disk,
      diskUuid: uuidText(diskUuid),
      slotCount,
      sizeBytes: geometry.sizeBytes,
      capacityBytes: geometry.extentCount * BLOCK_BYTES,
    }
  } finally {
    await io.close(file.handle)
  }
}

interface FoundSuperblock {
  readonly superblock: SuperblockState
  /** Why the other copy cannot be read: it may be the newer one. */
  readonly unreadable: XsanError | null
}

/** The newer valid superblock, or null when the disk is blank. */
async function readSuperblock(io: AsyncIo, file: OpenedFile, page: number, path: string): Promise<FoundSuperblock | null> {
  let best: SuperblockState | null = null
  let why: 'blank' | 'foreign' | 'damaged' = 'blank'
  if (file.sizeBytes < 2 * MiB) throw new XsanError('DISK_FOREIGN', `${path} is no XSAN disk: it has ${file.sizeBytes} bytes`, 'Check the path, or format it.')
  let unreadable: XsanError | null = null
  const offsets = [0, secondSuperblockOffset(file)]
  for (const offset of offsets) {
    const failure = await failureOf(readReadable(io, file.handle, offset, page, 1, path))
    if (failure !== null) {
      unreadable = failure
      continue
    }
    const found = decodeSuperblock(io.queue.arena, page, path)
    if (typeof found === 'string') {
      if (offset === 0 || found === 'damaged') why = found
      continue
    }
    if (best === null || found.generation > best.generation) best = found
    // what has grown since it was formatted has the second one where its end was
    const second = secondSuperblockOffset(found.geometry)
    if (second < file.sizeBytes && !offsets.includes(second)) offsets.push(second)
  }
  if (best === null) {
    if (unreadable !== null) throw unreadable
    if (why === 'blank') return null
    if (why === 'damaged')
      throw new XsanError('DISK_CORRUPTED', `${path}: both superblocks are damaged`, 'Format the disk again; its replicas are rebuilt from their peers.')
    throw new XsanError('DISK_FOREIGN', `${path} holds something else than an XSAN disk`, 'Check the path; to use this disk, wipe its beginning first.')
  }
  const reason = invalidSuperblock(best, file.sizeBytes)
  if (reason !== null)
    throw new XsanError('DISK_CORRUPTED', `${path}: the superblock makes no sense: ${reason}`, 'Format the disk again, or give it its old size back.')
  return { superblock: best, unreadable }
}

function refuseForeign(s: SuperblockState, options: MountOptions): void {
  const { path, identity } = options
  if (s.clusterId !== identity.clusterId)
    throw new XsanError(
      'DISK_FOREIGN',
      `${path} belongs to cluster ${s.clusterId}, this is ${identity.clusterId}`,
      'Give it back to its cluster, or wipe it to use it here.',
    )
  if (s.nodeId !== identity.nodeId)
    throw new XsanError(
      'DISK_FOREIGN',
      `${path} belongs to node ${s.nodeId}, this is ${identity.nodeId}`,
      'Give it back to its node, or wipe it to use it here.',
    )
  if (options.disk !== undefined && s.disk !== options.disk)
    throw new XsanError('DISK_FOREIGN', `${path} is disk ${s.disk}, expected was disk ${options.disk}`, 'Check whether two device paths were exchanged.')
  if (s.slotCount !== options.slotCount)
    throw new XsanError(
      'DISK_INCOMPATIBLE',
      `${path} was formatted for ${s.slotCount} slots, the cluster has ${options.slotCount}`,
      'Format the disk for this cluster.',
    )
}

/** Throws XsanError: BUSY, DISK_NOT_FOUND, DISK_FOREIGN, DISK_INCOMPATIBLE, DISK_CORRUPTED, NOT_FOUND (blank), READ_FAILED, WRITE_FAILED, NO_BUFFER. */
export async function mountStore(options: MountOptions): Promise<DiskStore> {
  const { io, path } = options
  const file = await openLocked(io, path, { waitMs: options.lockWaitMs ?? LOCK_WAIT_MS })
  const mounting = mountOpened(options, file).catch(async (error: unknown) => {
    await io.close(file.handle)
    throw error
  })
  const letGo = (store: DiskStore) =>
    void store.close().catch((error: unknown) => options.onNote?.('a disk that was given up cannot be closed', { path, error: messageOf(error) }))
  return await unlessHung({ ...options, what: 'its mount' }, mounting, letGo)
}

/**
 * A disk that keeps a request for too long counts as broken: the others of its node wait for this one. What the disk may still write to stays that of
 * the work, which goes on by itself should the disk answer after all; `onLate` is given what comes of it then.
 */
async function unlessHung<T>(
  options: { readonly io: AsyncIo; readonly path: string; readonly hungMs?: number; readonly what: string },
  work: Promise<T>,
  onLate?: (result: T) => void,
): Promise<T> {
  const { io, path, hungMs = 2000, what } = options
  const { queue } = io
  let looks = 0
  let ended = io.filesEnded
  let isHung = false
  const hung = Promise.withResolvers<never>()
  const tag = queue.register('disk watch', (_row, result) => {
    if (result < 0) return
    looks = io.filesUnderWay > 0 && io.filesEnded === ended ? looks + 1 : 0
    ended = io.filesEnded
    if (looks <= MOUNT_HUNG) {
      queue.timeout(hungMs, tag, 0)
      return
    }
    isHung = true
    queue.asyncPending = true
    hung.reject(new XsanError('READ_FAILED', `${path} has not answered ${what} for ${hungMs * MOUNT_HUNG} ms`, 'Look at the disk and the kernel log.'))
  })
  queue.timeout(hungMs, tag, 0)
  work.then(
    (result) => {
      queue.cancelTimeout(tag, 0)
      // whatever the disk does now, it is told already
      if (isHung) onLate?.(result)
    },
    () => queue.cancelTimeout(tag, 0),
  )
  return await Promise.race([work, hung.promise])
}

async function mountOpened(options: MountOptions, file: OpenedFile): Promise<DiskStore> {
  const { io, path } = options
  const { arena } = io.queue
  const found = await withPages(io, 1, (page) => readSuperblock(io, file, page, path))
  if (found === null) throw new XsanError('NOT_FOUND', `${path} is blank`, 'Format it as a disk of this node.')
  const { superblock, unreadable } = found
  refuseForeign(superblock, options)
  const { clean, mountGeneration: lastMount } = superblock
  const hasBooted = superblock.bootId !== options.bootId
  if (!clean && (hasBooted || options.wasAway)) losePower(superblock)
  if (!clean && hasBooted) superblock.mayEndTorn = true
  const superblockPage = arena.alloc(PAGE_BYTES)
  if (superblockPage === -1) throw new XsanError('NO_BUFFER', `no memory to mount ${path}`, 'Give the node more memory.')
  const superblocks = new SuperblockWriter({ io, file: file.handle, path, state: superblock, page: superblockPage })
  superblock.clean = false
  superblock.bootId = options.bootId
  superblock.mountGeneration++
  try {
    return await load(options, file, superblock, superblocks, { clean, lastMount })
  } catch (error) {
    if (!clean && error instanceof XsanError && error.status === 'WRITE_FAILED') {
      // what the kernel had kept of a process before it may be dropped now, and the flush of the next mount would say that it is durable
      losePower(superblock)
      await failureOf(superblocks.write())
    }
    superblocks.dispose()
    // to who had the newer superblock it might make sense
    throw unreadable !== null && error instanceof XsanError && error.status === 'DISK_CORRUPTED' ? unreadable : error
  }
}

/** The rest of a mount. If it throws, the writer of superblocks stays the caller's. */
async function load(
  options: MountOptions,
  file: OpenedFile,
  superblock: SuperblockState,
  superblocks: SuperblockWriter,
  { clean, lastMount }: { readonly clean: boolean; readonly lastMount: number },
): Promise<DiskStore> {
  const { io, path } = options
  const { geometry, slotCount } = superblock
  const table = new BlockTable(geometry.extentCount, slotCount)
  const tableCopy = new Uint8Array(tablePageCount(geometry))
  const leafCopy = new Uint8Array(geometry.extentCount * LEAVES_PER_BLOCK)
  const isUnfinished = await loadTables(io, file.handle, path, superblock, table, tableCopy)
  const { lost, newestMount } = await loadLeaves(io, file.handle, path, superblock, table, leafCopy)
  table.fillFreeList()
  const incomplete = new Uint8Array(slotCount)

  const store = new DiskStore({
    options,
    file: file.handle,
    volatile: file.volatile,
    superblock,
    table,
    rows: new ChannelRows(),
    lastHigh: new Uint32Array(slotCount),
    lastLow: new Uint32Array(slotCount),
    incomplete,
    deferred: new Deferred(io.queue),
    superblocks,
  })
  try {
    await replayAndOpen(store, options, file, superblock, {
      clean,
      lastMount,
      newestMount,
      isUnfinished,
      table,
      incomplete,
      leafCopy,
      tableCopy,
      lost,
      superblocks,
    })
  } catch (error) {
    store.destage?.dispose()
    store.journal.dispose()
    throw error
  }
  return store
}

/** What disks take of an arena at least, together with the memory of the largest of their mounts. */
export function arenaBytesOf(disks: number, slots: number): number {
  const least = DESTAGE_BUFFER_PAGES.at(-1)! * PAGE_BYTES
  return disks * (journalArenaBytes(slots) + least + PAGE_BYTES) + REPLAY_BYTES
}

interface Loaded {
  readonly table: BlockTable
  readonly incomplete: Uint8Array
  readonly leafCopy: Uint8Array
  readonly tableCopy: Uint8Array
  readonly lost: number
  /** Of the superblock as it was found. */
  readonly clean: boolean
  readonly lastMount: number
  /** Of all parts of the tables. */
  readonly newestMount: number
  /** A round of the destage ended in the middle of the extent table. */
  readonly isUnfinished: boolean
  readonly superblocks: SuperblockWriter
}

async function replayAndOpen(store: DiskStore, options: MountOptions, file: OpenedFile, superblock: SuperblockState, loaded: Loaded): Promise<void> {
  const { io, path } = options
  const { geometry } = superblock
  const { table, leafCopy, tableCopy, superblocks } = loaded
  const { journal } = store
  const found = await replay({
    io,
    file: file.handle,
    path,
    geometry,
    journalUuid: superblock.journalUuid,
    tailSegment: superblock.tailSegment,
    durableSeq: superblock.durableSeq,
    clean: loaded.clean && loaded.newestMount <= loaded.lastMount,
    mayEndTorn: superblock.mayEndTorn,
    lastMount: Math.max(loaded.lastMount, loaded.newestMount),
    table,
    rows: store.rows,
    lastHigh: store.lastHigh,
    lastLow: store.lastLow,
    incomplete: loaded.incomplete,
    birthRound: 1,
    touch: (row, segment) => journal.touch(row, segment),
  })
  // What survived a kill in the page cache is promised to be durable from here on, and the superblock that was found is not the only copy before it is
  await superblocks.flushFound()
  if (found.generation > superblock.mountGeneration) {
    // The superblocks are those of an earlier mount: the disk has lost later ones. That generation is not given twice, and what they said is not known.
    options.onNote?.('the superblock is older than the journal or the tables', {
      path,
      superblock: superblock.mountGeneration - 1,
      found: found.generation - 1,
    })
    superblock.mountGeneration = found.generation
    losePower(superblock)
  }
  if (loaded.isUnfinished || superblock.mountGeneration !== loaded.lastMount + 1) {
    // From here on the extent table counts as it was found: the next round writes over the copies that the last complete one left
    superblock.tables = { mount: superblock.mountGeneration, round: 0 }
    superblock.tablesDigest = digestOf(table)
  }
  // the first write of a mount: until all of it made sense, the other copy may be the one that counts, and not have been read
  await superblocks.write()
  const { lastBatch, lastCrc, headSegment, lastSeq } = found
  journal.resume({ generation: superblock.mountGeneration, lastBatch, lastCrc, headSegment, tailSegment: superblock.tailSegment, lastSeq })

  const pagesPerSegment = geometry.segmentBytes / PAGE_BYTES
  let isMounted = false
  const { freeBytes } = io.queue.arena.stats()
  const bufferPages = DESTAGE_BUFFER_PAGES.find((pages) => freeBytes >= pages * PAGE_BYTES * DESTAGE_SHARE * (options.disks ?? 1)) ?? 64
  store.destage = new Destage({
    io,
    file: file.handle,
    path,
    geometry,
    diskUuid: superblock.diskUuid,
    volatile: file.volatile,
    mountGeneration: superblock.mountGeneration,
    table,
    journal,
    reader: store.reader,
    leafCopy,
    tableCopy,
    bufferPages: Math.min(bufferPages, pagesPerSegment * Math.max(1, Math.floor(geometry.segmentCount / DESTAGE_ROUNDS))),
    setTail: async (segment, round) => {
      superblock.tailSegment = segment
      superblock.durableSeq = journal.durableSeq
      superblock.tables = round
      superblock.tablesDigest = digestOf(table)
      await superblocks.write()
    },
    unpinned: (row) => store.unpinned(row),
    capturesReleased: () => store.capturesReleased(),
    // a mount that fails says so itself
    onFailed: (reason) => {
      if (isMounted) store.fail(reason)
    },
    onNote: options.onNote ?? (() => {}),
    onBusy: () => {
      if (isMounted) store.watch()
    },
  })
  await store.destage.makeFree(2)
  store.reservation = new Reservation({
    io,
    file,
    path,
    geometry,
    table,
    space: () => options.space?.(path) ?? ENOUGH,
    onRoom: () => store.giveRoom(),
    onNote: options.onNote ?? (() => {}),
  })
  await store.reservation.begin()
  // at once: a flush that is told to have succeeded just behind it is not to be believed any more
  io.onWriteFailed(file.handle, (error) => store.fail(`${path}: a write or flush of the background work or of a superblock: ${error}`))
  journal.open()
  isMounted = true
  if (superblock.mayEndTorn) await store.noteWhole()
  store.destage.kick()
  options.onNote?.('disk mounted', {
    path,
    capacity: formatSize(store.capacityBytes),
    blocks: table.usedCount,
    replayedRecords: found.records,
    tornAtEnd: found.torn,
    lostPower: store.lostPower,
    lostLeaves: loaded.lost,
  })
}

async function sync(io: AsyncIo, file: Handle, path: string): Promise<void> {
  const result = await io.fdatasync(file)
  if (result < 0) throw new XsanError('WRITE_FAILED', `${path}: fdatasync failed (${result})`, 'Look at the disk and the kernel log.')
}

/** Of the current copies. */
function digestOf({ tableMount, tableRound }: BlockTable): number {
  let digest = 0
  for (let page = 0; page < tableMount.length; page++) digest = (digest + tablePageDigest(page, { mount: tableMount[page]!, round: tableRound[page]! })) >>> 0
  return digest
}

/**
 * Of each page the newest whole copy. Whether a crash ended a round of the destage in the middle of it: pages are newer than the last complete round.
 * Throws DISK_CORRUPTED when the copies of that round are not all there: a page is older than it should be, or gone; READ_FAILED when some could not be read.
 */
async function loadTables(io: AsyncIo, file: Handle, path: string, s: SuperblockState, table: BlockTable, tableCopy: Uint8Array): Promise<boolean> {
  const pages = tablePageCount(s.geometry)
  const { arena } = io.queue
  let digest = 0
  let isUnfinished = false
  let unreadable: XsanError | null = null
  await withPages(io, CHUNK_PAGES, async (buffer) => {
    for (let first = 0; first < pages; first += CHUNK_PAGES / 2) {
      const count = Math.min(CHUNK_PAGES / 2, pages - first)
      const failure = await readReadable(io, file, tablePageOffset(s.geometry, first, 0), buffer, count * 2, path)
      unreadable ??= failure
      for (let i = 0; i < count; i++) {
        const tablePage = first + i
        const at = buffer + i * 2
        const written = [0, 1].map((copy) => isTablePage(arena, at + copy, s.diskUuid))
        const generations = [0, 1].map((copy) => checkTablePage(arena, at + copy, tablePage, s.diskUuid))
        const [a, b] = generations
        const complete = generations.filter((of) => of !== null && !newer(of, s.tables)).sort((x, y) => (newer(x!, y!) ? 1 : -1))
        digest = (digest + tablePageDigest(tablePage, complete.at(-1) ?? { mount: 0, round: 0 })) >>> 0
        if (a == null && b == null) {
          if (written[0] && written[1])
            throw new XsanError(
              'DISK_CORRUPTED',
              `${path}: both copies of page ${tablePage} of the extent table are damaged`,
              'Format the disk again; its replicas are rebuilt.',
            )
          continue
        }
        const copy = a == null || (b != null && newer(b, a)) ? 1 : 0
        tableCopy[tablePage] = copy
        const current = (copy === 1 ? b : a)!
        table.tableMount[tablePage] = current.mount
        table.tableRound[tablePage] = current.round
        if (newer(current, s.tables)) isUnfinished = true
        const reason = loadTablePage(arena, at + copy, table, tablePage, s.slotCount)
        if (reason !== null) throw new XsanError('DISK_CORRUPTED', `${path}: ${reason}`, 'Format the disk again; its replicas are rebuilt from their peers.')
      }
    }
  })
  if (digest !== s.tablesDigest)
    throw (
      unreadable ??
      new XsanError(
        'DISK_CORRUPTED',
        `${path}: pages of the extent table are older than the superblock, or damaged: the disk has lost what it had promised to keep`,
        'Format the disk again; its replicas are rebuilt from their peers.',
      )
    )
  return isUnfinished
}

interface Leaves {
  /** How many leaves no copy could give. */
  lost: number
  /** Newest mount that has written any of these tables. */
  newestMount: number
}

async function loadLeaves(io: AsyncIo, file: Handle, path: string, s: SuperblockState, table: BlockTable, leafCopy: Uint8Array): Promise<Leaves> {
  const pagesPerBlock = LEAVES_PER_BLOCK * 2
  const diskTag = diskTagOf(s.diskUuid)
  const found: Leaves = { lost: 0, newestMount: table.tableMount.reduce((most, mount) => Math.max(most, mount), 0) }
  await withPages(io, pagesPerBlock * LEAF_READS_PARALLEL, async (buffer) => {
    let next = 0
    let failure: unknown
    const worker = async (page: number): Promise<void> => {
      while (next < table.extentCount && failure === undefined) {
        const row = next++
        if (table.used[row] === 0 || table.leafMask[row] === 0) continue
        await readReadable(io, file, leafOffset(s.geometry, row, 0, 0), page, pagesPerBlock, path)
        for (let leaf = 0; leaf < LEAVES_PER_BLOCK; leaf++) takeLeaf(io, page + leaf * 2, table, row, leaf, diskTag, leafCopy, found)
      }
    }
    // all of them have ended before the buffer is given back, whatever one of them met
    const workers = Array.from({ length: LEAF_READS_PARALLEL }, (_, i) =>
      worker(buffer + i * pagesPerBlock).catch((error: unknown) => {
        failure ??= error
      }),
    )
    await Promise.all(workers)
    if (failure !== undefined) throw failure
  })
  return found
}

/** Two copies of a leaf are in the buffer. */
function takeLeaf(io: AsyncIo, page: number, table: BlockTable, row: number, leaf: number, diskTag: number, leafCopy: Uint8Array, found: Leaves): void {
  if ((table.leafMask[row]! & (1 << leaf)) === 0) return
  const { arena } = io.queue
  const place = row * LEAVES_PER_BLOCK + leaf
  const promised = { mount: table.leafMount[place]!, round: table.leafRound[place]! }
  const [a, b] = [0, 1].map((copy) => {
    const generation = checkLeaf(arena, page + copy, row, leaf, diskTag)
    return generation === null || newer(promised, generation) ? null : generation
  })
  if (a == null && b == null) {
    loseLeaf(table, row, leaf)
    found.lost++
    return
  }
  const copy = a == null || (b != null && newer(b, a)) ? 1 : 0
  const current = (copy === 1 ? b : a)!
  found.newestMount = Math.max(found.newestMount, current.mount)
  leafCopy[place] = copy
  table.leafMount[place] = current.mount
  table.leafRound[place] = current.round
  loadLeaf(arena, page + copy, table, row, leaf)
}
