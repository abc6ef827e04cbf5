/**
 * The disks of the configuration before anything is mounted: do they exist, how large are they, what are they called?
 *
 * A disk is named for good by the uuid in its superblock. A blank one gets a uuid now, remembered in data_dir/disks.json until the
 * disk is formatted with it (after the node became a member: only then there is a cluster to write into the superblock).
 * What has failed, or was not there, is remembered in that file, too: such a disk may have been without power, and a failed one cannot be told so itself.
 *
 * Invariant: once a disk has been formatted, its uuid is never given to what is found blank at its path (`rememberFormatted`): a disk swapped for an
 * empty one would answer for the old one's data with zeros.
 *
 * A disk that does not answer holds up one thread of the pool that the metadata needs as well, and nothing else.
 */
import { closeSync, existsSync, fsyncSync, openSync, readFileSync, renameSync, type Stats, statfsSync, statSync, writeSync } from 'node:fs'
import { type FileHandle, lstat, open, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { crc32c } from '../base/crc32c.ts'
import { messageOf, XsanError } from '../base/errors.ts'
import type { StatusName } from '../base/status.ts'
import { formatSize, MiB, PAGE_BYTES } from '../base/units.ts'
import { secondSuperblockOffset } from '../store/layout.ts'
import type { FileSpace } from '../store/mount-options.ts'
import { decodeSuperblock, type SuperblockFound, uuidText } from '../store/superblock.ts'
import type { DeviceConfig } from './config.ts'

const NAMES_FILE = 'disks.json'
/** In data_dir. There once the node has run. */
export const METADATA_DIR = 'meta'

const WIPE =
  'If what is on it may be lost, and only then: remove it if it is a file, zero its first and its last MiB if it is a device, and start the node again. It becomes a new disk, and the other copies rebuild it.'

/** `wipefs` would not do: it leaves most of what it finds. */
const WIPE_FOREIGN =
  'If it may be lost, and only then: blkdiscard it, or zero its first and its last MiB; if it is a file, truncate it to nothing, and give "size".'

export interface FoundDisk {
  readonly uuid: string
  readonly path: string
  readonly type: string
  readonly role: string
  readonly capacityBytes: number
  /** Has a superblock of ours: mount it. Else format it first. */
  readonly formatted: boolean
  /** The file does not exist: create it with this many bytes when formatting. */
  readonly createBytes?: number
  /** A new disk, where this node had another one. */
  readonly replaces?: string
  /** It had failed, or was not there, since it was mounted last, or nobody knows: the drive may have been without power though its host was not. */
  readonly wasAway?: true
  /** It is a disk of this node and cannot be used: it counts as failed, nothing on it is touched. */
  readonly broken?: Broken
}

interface Broken {
  readonly status: StatusName
  readonly message: string
  readonly nextStep: string
}

export interface FoundDisks {
  readonly disks: FoundDisk[]
  /** Of a node that has been in use: what is configured and not there, or cannot say which disk it was. The cluster takes them for failed until they are back. */
  readonly leftOut: readonly XsanError[]
}

/** A disk that has not answered for so long is left out; with more of them there is no thread left for the metadata (libuv has four). */
const HUNG_MS = 20_000
const HUNG_MAX = 3

/**
 * Throws DISK_NOT_FOUND, DISK_FOREIGN, DISK_INCOMPATIBLE or DISK_CORRUPTED, naming the device and its place in the configuration: for disks that were never
 * in use here. One that was, and is gone, damaged, or does not answer now, keeps no node from starting.
 */
export async function findDisks(
  devices: readonly DeviceConfig[],
  dataDir: string,
  newUuid: () => string,
  { hungMs = HUNG_MS, openFile = (path) => open(path, 'r') }: { hungMs?: number; openFile?: OpenFile } = {},
): Promise<FoundDisks> {
  const names = readNames(dataDir)
  const leftOut: XsanError[] = []
  const isInUse = existsSync(join(dataDir, METADATA_DIR))
  const found: FoundDisk[] = []
  let hung = 0
  // one after the other: those that answer are not to wait for threads that those that do not have taken
  for (const [index, device] of devices.entries()) {
    const place = `storage.devices[${index}]`
    try {
      const disk = await unlessHung(findDisk(device, place, names, newUuid, openFile), hungMs, `${place}: ${device.path}`)
      found.push(disk.formatted && wasAway(disk.uuid, names) ? { ...disk, wasAway: true } : disk)
    } catch (error) {
      const wasOurs = Object.hasOwn(names, device.path) && names[device.path]!.formatted
      if (!(error instanceof XsanError) || !(isGone(error) ? wasOurs : error.status === 'DISK_CORRUPTED' && isInUse)) throw error
      if (error instanceof Hung && ++hung > HUNG_MAX) throw error
      leftOut.push(error)
    }
  }
  const twice = found.find(({ uuid }, index) => found.findIndex((other) => other.uuid === uuid) !== index)
  if (twice) throw new XsanError('INVALID_PARAM', `${twice.path} is the same disk as another one of storage.devices (${twice.uuid})`, 'Name each disk once.')
  // of those left out as well: they may be back
  const remembered = devices.filter(({ path }) => Object.hasOwn(names, path) && !found.some((disk) => disk.path === path))
  writeNames(dataDir, [
    ...found.map(({ wasAway: away = false, ...disk }) => ({ ...disk, away })),
    ...remembered.map(({ path }) => ({ path, ...names[path]!, away: true })),
  ])
  return { disks: found, leftOut }
}

class Hung extends XsanError {}

async function unlessHung<T>(looking: Promise<T>, hungMs: number, what: string): Promise<T> {
  const hung = Promise.withResolvers<never>()
  const timer = setTimeout(
    () => hung.reject(new Hung('READ_FAILED', `${what} has not answered for ${hungMs} ms`, 'Look at the disk and the kernel log.')),
    hungMs,
  )
  try {
    return await Promise.race([looking, hung.promise])
  } finally {
    clearTimeout(timer)
  }
}

/** Not: no permission, which is not the disk's fault. */
function isGone({ status, cause }: XsanError): boolean {
  const code = (cause as NodeJS.ErrnoException | undefined)?.code ?? ''
  return status === 'DISK_NOT_FOUND' || (status === 'READ_FAILED' && !['EACCES', 'EPERM', 'EMFILE', 'ENFILE'].includes(code))
}

/** Of each file system that is left for others, at most: a node's metadata may lie there too, and must be able to grow when the disks no longer can. */
const KEPT_BYTES_MAX = 256 * MiB
const KEPT_SHARE = 20

export function spaceOf(path: string): FileSpace {
  const { bavail, blocks, bsize } = statfsSync(path)
  // some file systems of the user's (FUSE) do not tell
  if (blocks === 0) return { spareBytes: Number.POSITIVE_INFINITY, allocatedBytes: 0 }
  return { spareBytes: bavail * bsize - Math.min(KEPT_BYTES_MAX, (blocks * bsize) / KEPT_SHARE), allocatedBytes: statSync(path).blocks * 512 }
}

/** What may run out underneath: files that are larger than what their file system could ever give them. One sentence each. */
export function overcommitted(disks: readonly FoundDisk[]): string[] {
  return disks.flatMap(({ path, capacityBytes }) => {
    const at = existsSync(path) ? path : dirname(path)
    const stat = statSync(at)
    if (!stat.isFile() && !stat.isDirectory()) return []
    const { bavail, blocks, bsize } = statfsSync(at)
    if (blocks === 0) return []
    const allocatedBytes = stat.isFile() ? stat.blocks * 512 : 0
    const leftBytes = capacityBytes - allocatedBytes - bavail * bsize
    if (leftBytes <= 0) return []
    return [
      `${path} may grow to ${formatSize(capacityBytes)}, but its file system has ${formatSize(bavail * bsize)} left: when that is full, this disk takes no new blocks`,
    ]
  })
}

/** What may be a mistake: new disks where this node had others. One sentence each. */
export function replaced(disks: readonly FoundDisk[]): string[] {
  return disks.flatMap(({ path, replaces, createBytes }) =>
    replaces === undefined
      ? []
      : [`${path} ${createBytes === undefined ? 'is blank' : 'is not there'}, where disk ${replaces} of this node was: a new disk is made there`],
  )
}

/** All of them have a superblock by now, but for those that could not be formatted. Call before any of them may serve. */
export function rememberFormatted(disks: readonly FoundDisk[], dataDir: string, isUnusable: (disk: FoundDisk) => boolean = () => false): void {
  const used = disks.filter((disk) => disk.formatted || !isUnusable(disk))
  const others = Object.entries(readNames(dataDir)).filter(([path]) => !used.some((disk) => disk.path === path))
  writeNames(dataDir, [
    ...used.map((disk) => ({ path: disk.path, uuid: disk.uuid, formatted: true, away: isUnusable(disk) })),
    ...others.map(([path, name]) => ({ path, ...name })),
  ])
}

/** The disk has failed: what it is when it is back, nobody knows. */
export function rememberFailed({ uuid }: FoundDisk, dataDir: string): void {
  const all = Object.entries(readNames(dataDir))
  writeNames(
    dataDir,
    all.map(([path, name]) => ({ path, ...name, ...(name.uuid === uuid ? { away: true } : {}) })),
  )
}

interface Remembered {
  readonly uuid: string
  readonly formatted: boolean
  /** Has failed, or was not there, since it was mounted last. */
  readonly away?: boolean
}

function wasAway(uuid: string, names: Names): boolean {
  return Object.values(names).find((name) => name.uuid === uuid)?.away !== false
}
type Names = Readonly<Record<string, Remembered>>

function readNames(dataDir: string): Names {
  const path = join(dataDir, NAMES_FILE)
  if (!existsSync(path)) return {}
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as Names
  } catch (error) {
    throw new XsanError(
      'DISK_CORRUPTED',
      `${path} is damaged: ${messageOf(error)}`,
      'Remove it: it is written anew from the disks; only blank disks get other names.',
      {
        cause: error,
      },
    )
  }
}

function writeNames(dataDir: string, disks: ReadonlyArray<Remembered & { readonly path: string }>): void {
  const path = join(dataDir, NAMES_FILE)
  const next = JSON.stringify(Object.fromEntries(disks.map(({ path: of, uuid, formatted, away }) => [of, { uuid, formatted, away }])), null, 2)
  if (existsSync(path) && readFileSync(path, 'utf8') === next) return
  const fd = openSync(`${path}.tmp`, 'w')
  try {
    writeSync(fd, next)
    fsyncSync(fd)
  } finally {
    closeSync(fd)
  }
  renameSync(`${path}.tmp`, path)
}

async function findDisk(device: DeviceConfig, place: string, names: Names, newUuid: () => string, openFile: OpenFile): Promise<FoundDisk> {
  const { path, type, role, size } = device
  const remembered = Object.hasOwn(names, path) ? names[path] : undefined
  const blank = () => {
    if (remembered === undefined) return { uuid: newUuid() }
    return remembered.formatted ? { uuid: newUuid(), replaces: remembered.uuid } : { uuid: remembered.uuid }
  }
  const what = await unlessMissing(stat(path), `${place}: ${path}`)
  if (what === undefined) {
    if ((await unlessMissing(lstat(path), `${place}: ${path}`)) !== undefined) {
      throw new XsanError('DISK_NOT_FOUND', `${place}: ${path} is a symbolic link that leads nowhere`, 'Correct the path, or see why the device is missing.')
    }
    if (size === undefined) {
      throw new XsanError('DISK_NOT_FOUND', `${place}: there is no ${path}`, 'Correct the path; or, to have a file created there, add "size", such as "10G".')
    }
    if ((await unlessMissing(stat(dirname(path)), `${place}: ${path}`)) === undefined)
      throw new XsanError('DISK_NOT_FOUND', `${place}: there is no directory ${dirname(path)}`, 'Create it first.')
    return { ...blank(), path, type, role, capacityBytes: size, formatted: false, createBytes: size }
  }
  if (!what.isFile() && !what.isBlockDevice())
    throw new XsanError('INVALID_PARAM', `${place}: ${path} is neither a block device nor a file`, 'Name a disk, or a file.')
  const wasOurs = remembered?.formatted === true
  const page = await readEnds(path, place, wasOurs, openFile)
  const capacityBytes = page.sizeBytes === 0 && size !== undefined ? size : page.sizeBytes
  const superblock = page.first === undefined ? 'damaged' : decode(page.first, path)
  // a first page that is lost, overwritten or not yet written (a power loss while it was formatted) does not make another disk of it: the second superblock tells
  if (remembered !== undefined && (superblock === 'foreign' || superblock === 'blank')) {
    const second = page.last === undefined ? 'blank' : decode(page.last, path)
    if (typeof second === 'object' && uuidText(second.diskUuid) === remembered.uuid)
      return { uuid: remembered.uuid, path, type, role, capacityBytes, formatted: true }
    if (wasOurs && (superblock === 'foreign' || second === 'damaged' || !page.endsBlank)) {
      const message = `${place}: ${path} held a disk of this node, and holds something else now`
      return { uuid: remembered.uuid, path, type, role, capacityBytes, formatted: true, broken: { status: 'DISK_CORRUPTED', message, nextStep: WIPE } }
    }
  }
  // not every file system begins on the first page: btrfs leaves 64 KiB to others
  const found = superblock === 'blank' && !page.endsBlank ? 'foreign' : superblock
  switch (found) {
    case 'foreign':
      throw new XsanError('DISK_FOREIGN', `${place}: ${path} holds something that is not XSAN's`, WIPE_FOREIGN)
    case 'blank':
      return {
        ...blank(),
        path,
        type,
        role,
        capacityBytes,
        formatted: false,
        ...(page.sizeBytes === 0 && size !== undefined ? { createBytes: size } : {}),
      }
    case 'damaged':
      // Its second superblock may be good: the mount decides
      if (remembered !== undefined) return { uuid: remembered.uuid, path, type, role, capacityBytes, formatted: true }
      throw new XsanError('DISK_CORRUPTED', `${place}: the superblock of ${path} is damaged`, WIPE)
    default:
      return { uuid: uuidText(found.diskUuid), path, type, role, capacityBytes, formatted: true }
  }
}

function decode(bytes: Uint8Array, path: string): SuperblockFound {
  return decodeSuperblock({ bytes, view: new DataView(bytes.buffer), crc32c: (_, delta, length) => crc32c(bytes.subarray(delta, delta + length)) }, 0, path)
}

/** As much of each end is zero where a disk is blank: what labels of other owners lie in. */
const END_BYTES = MiB

interface Ends {
  /** The first page, and that of the second superblock, where there is one; undefined as well: it cannot be read. */
  readonly first: Uint8Array | undefined
  readonly last: Uint8Array | undefined
  readonly endsBlank: boolean
  readonly sizeBytes: number
}

type OpenFile = (path: string) => Promise<Pick<FileHandle, 'read' | 'stat' | 'close'>>

/** Of a disk of this node one of the two superblocks need not be readable: as when it is damaged. */
async function readEnds(path: string, place: string, wasOurs: boolean, openFile: OpenFile): Promise<Ends> {
  try {
    const file = await openFile(path)
    try {
      const read = async (offset: number, lengthBytes: number): Promise<Uint8Array> => {
        const bytes = new Uint8Array(lengthBytes)
        await file.read(bytes, 0, lengthBytes, offset)
        return bytes
      }
      let failure: unknown
      const superblock = async (offset: number): Promise<Uint8Array | undefined> => {
        try {
          return await read(offset, PAGE_BYTES)
        } catch (error) {
          if (!wasOurs || failure !== undefined) throw error
          failure = error
          return undefined
        }
      }
      const what = await file.stat()
      const first = await superblock(0)
      const sizeBytes = what.isFile() ? what.size : await blockDeviceBytes(file)
      const last = sizeBytes < 2 * PAGE_BYTES ? undefined : await superblock(secondSuperblockOffset({ sizeBytes }))
      const isBlank = async (offset: number) => isZero(await read(offset, END_BYTES))
      const endsBlank = first !== undefined && isZero(first) && (await isBlank(0)) && (await isBlank(Math.max(0, sizeBytes - END_BYTES)))
      return { first, last, endsBlank, sizeBytes }
    } finally {
      await file.close()
    }
  } catch (error) {
    throw unreadable(`${place}: ${path}`, error)
  }
}

const isZero = (bytes: Uint8Array): boolean => bytes.every((byte) => byte === 0)

/** Node has no ioctl: the last readable byte is found by halving. */
async function blockDeviceBytes(file: Pick<FileHandle, 'read'>): Promise<number> {
  const probe = new Uint8Array(1)
  const readable = async (offset: number) => (await file.read(probe, 0, 1, offset)).bytesRead === 1
  let good = 0
  let bad = 2 ** 52
  while (bad - good > 512) {
    const middle = Math.floor((good + bad) / 2 / 512) * 512
    if (await readable(middle)) good = middle
    else bad = middle
  }
  return bad
}

/** Undefined: nothing is there. */
async function unlessMissing(looking: Promise<Stats>, place: string): Promise<Stats | undefined> {
  try {
    return await looking
  } catch (error) {
    if (['ENOENT', 'ENOTDIR', 'ELOOP'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined
    throw unreadable(place, error)
  }
}

function unreadable(place: string, error: unknown): XsanError {
  const nextStep = 'Look at its permissions, and at the kernel log for errors of the disk.'
  return new XsanError('READ_FAILED', `${place} cannot be read: ${messageOf(error)}`, nextStep, { cause: error })
}
