/** The two superblocks: who a disk belongs to, how it is cut, where replay begins. Written alternately; the valid copy of the higher generation counts. */
import { assert } from '../base/assert.ts'
import { XsanError } from '../base/errors.ts'
import { BLOCK_BYTES, PAGE_BYTES } from '../base/units.ts'
import type { Arena } from '../env/arena.ts'
import {
  FORMAT_VERSION,
  type Geometry,
  invalidGeometry,
  KNOWN_INCOMPAT,
  KNOWN_RO_COMPAT,
  NAME_BYTES,
  SLOTS_MAX,
  SUPERBLOCK_MAGIC,
  Superblock,
  secondSuperblockOffset,
} from './layout.ts'
import type { Generation } from './tables.ts'

/** Behind the struct: a bit per slot. Of slots beyond nothing is known. */
const SERVED_BYTES = PAGE_BYTES - Superblock.size

export interface SuperblockState {
  generation: number
  readonly disk: number
  readonly diskUuid: Uint8Array
  readonly journalUuid: Uint8Array
  readonly clusterId: string
  readonly nodeId: string
  bootId: string
  lostPower: boolean
  /** While `lostPower`: slots that have been served since all the same, a bit each. */
  readonly servedSince: Uint8Array
  clean: boolean
  mountGeneration: number
  readonly slotCount: number
  readonly geometry: Geometry
  /** Oldest journal segment that replay needs. */
  tailSegment: number
  /** Generation of the last completed round of the destage, and the digest of the extent table as it left it (tables.ts). */
  tables: Generation
  tablesDigest: number
  /** Journal position known durable. */
  durableSeq: number
  /** The host lost power, and nothing has been written to the journal since: its last write may be torn. */
  mayEndTorn: boolean
}

export function encodeSuperblock(arena: Arena, bufferPage: number, s: SuperblockState): void {
  const at = bufferPage * PAGE_BYTES
  arena.bytes.fill(0, at, at + PAGE_BYTES)
  Superblock.encode(arena.view, at, {
    magic: SUPERBLOCK_MAGIC,
    formatVersion: FORMAT_VERSION,
    crc: 0,
    generation: s.generation,
    compat: 0,
    roCompat: 0,
    incompat: 0,
    disk: s.disk,
    diskUuid: s.diskUuid,
    journalUuid: s.journalUuid,
    clusterId: nameBytes(s.clusterId),
    nodeId: nameBytes(s.nodeId),
    bootId: nameBytes(s.bootId),
    lostPower: s.lostPower ? 1 : 0,
    clean: s.clean ? 1 : 0,
    mountGeneration: s.mountGeneration,
    sizeBytes: s.geometry.sizeBytes,
    slotCount: s.slotCount,
    pageBytes: PAGE_BYTES,
    blockBytes: BLOCK_BYTES,
    segmentCount: s.geometry.segmentCount,
    segmentBytes: s.geometry.segmentBytes,
    journalOffset: s.geometry.journalOffset,
    extentTableOffset: s.geometry.extentTableOffset,
    pageTableOffset: s.geometry.pageTableOffset,
    extentsOffset: s.geometry.extentsOffset,
    extentCount: s.geometry.extentCount,
    tailSegment: s.tailSegment,
    tablesMount: s.tables.mount,
    tablesRound: s.tables.round,
    tablesDigest: s.tablesDigest,
    durableSeq: s.durableSeq,
    mayEndTorn: s.mayEndTorn ? 1 : 0,
  })
  arena.bytes.set(s.servedSince, at + Superblock.size)
  Superblock.set.crc(arena.view, at, arena.crc32c(bufferPage, 0, PAGE_BYTES))
}

/** None of them. */
export function servedNone(): Uint8Array {
  return new Uint8Array(SERVED_BYTES)
}

/** What was not durable may be missing, of whatever slot. */
export function losePower(s: SuperblockState): void {
  s.lostPower = true
  s.servedSince.fill(0)
}

export function hasServedSince({ servedSince }: SuperblockState, slot: number): boolean {
  return slot < SERVED_BYTES * 8 && (servedSince[slot >>> 3]! & (1 << (slot & 7))) !== 0
}

/** False: it is noted already, or cannot be. */
export function noteServed(s: SuperblockState, slot: number): boolean {
  if (slot >= SERVED_BYTES * 8 || hasServedSince(s, slot)) return false
  s.servedSince[slot >>> 3]! |= 1 << (slot & 7)
  return true
}

/** 'blank': only zeros. 'foreign': something else is there. 'damaged': ours, but its checksum is wrong. */
export type SuperblockFound = SuperblockState | 'blank' | 'foreign' | 'damaged'

/** Throws DISK_INCOMPATIBLE for a superblock of a format that this code does not know. Changes the buffer. */
export function decodeSuperblock(arena: Pick<Arena, 'bytes' | 'view' | 'crc32c'>, bufferPage: number, path: string): SuperblockFound {
  const { view } = arena
  const at = bufferPage * PAGE_BYTES
  const page = arena.bytes.subarray(at, at + PAGE_BYTES)
  const { get, set } = Superblock
  if (get.magicHi(view, at) !== SUPERBLOCK_MAGIC.hi || get.magicLo(view, at) !== SUPERBLOCK_MAGIC.lo)
    return page.every((byte) => byte === 0) ? 'blank' : 'foreign'
  const crc = get.crc(view, at)
  set.crc(view, at, 0)
  if (arena.crc32c(bufferPage, 0, PAGE_BYTES) !== crc) return 'damaged'
  const formatVersion = get.formatVersion(view, at)
  const incompat = get.incompat(view, at)
  const unknown = (incompat & ~KNOWN_INCOMPAT) | (get.roCompat(view, at) & ~KNOWN_RO_COMPAT)
  if (formatVersion !== FORMAT_VERSION || unknown !== 0) {
    const what =
      formatVersion !== FORMAT_VERSION
        ? `format ${formatVersion} (this is ${FORMAT_VERSION})`
        : `features 0x${(unknown >>> 0).toString(16)} that this version lacks`
    throw new XsanError(
      'DISK_INCOMPATIBLE',
      `${path} was written by another version of XSAN: it has ${what}`,
      'Run the version that wrote it on this node, or format the disk.',
    )
  }
  const s = Superblock.decode(view, at)
  const { sizeBytes, segmentBytes, segmentCount, journalOffset, extentTableOffset, pageTableOffset, extentsOffset, extentCount } = s
  return {
    generation: s.generation,
    disk: s.disk,
    diskUuid: s.diskUuid,
    journalUuid: s.journalUuid,
    clusterId: nameOf(s.clusterId),
    nodeId: nameOf(s.nodeId),
    bootId: nameOf(s.bootId),
    lostPower: s.lostPower === 1,
    servedSince: page.slice(Superblock.size),
    clean: s.clean === 1,
    mountGeneration: s.mountGeneration,
    slotCount: s.slotCount,
    geometry: { sizeBytes, segmentBytes, segmentCount, journalOffset, extentTableOffset, pageTableOffset, extentsOffset, extentCount },
    tailSegment: s.tailSegment,
    tables: { mount: s.tablesMount, round: s.tablesRound },
    tablesDigest: s.tablesDigest,
    durableSeq: s.durableSeq,
    mayEndTorn: s.mayEndTorn === 1,
  }
}

/** Why a decoded superblock cannot be used on a file of that size, or null. */
export function invalidSuperblock(s: SuperblockState, fileBytes: number): string | null {
  if (s.slotCount < 1 || s.slotCount > SLOTS_MAX) return `${s.slotCount} slots`
  return invalidGeometry(s.geometry, fileBytes)
}

/** Where the copy of this generation lies. */
export function superblockOffset(s: { generation: number; geometry: { sizeBytes: number } }): number {
  return s.generation % 2 === 0 ? 0 : secondSuperblockOffset(s.geometry)
}

export function nameBytes(text: string): Uint8Array {
  const out = new Uint8Array(NAME_BYTES)
  const encoded = new TextEncoder().encode(text)
  if (encoded.length >= NAME_BYTES) throw new XsanError('INVALID_PARAM', `"${text}" is longer than ${NAME_BYTES - 1} bytes`)
  out.set(encoded)
  return out
}

function nameOf(bytes: Uint8Array): string {
  const end = bytes.indexOf(0)
  return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end))
}

/** 16 bytes of 32 hex digits, dashes allowed. */
export function uuidBytes(text: string): Uint8Array {
  const hex = text.replaceAll('-', '')
  assert(/^[0-9a-fA-F]{32}$/.test(hex), `"${text}" is not a uuid`)
  return Uint8Array.from({ length: 16 }, (_, i) => Number.parseInt(hex.slice(i * 2, i * 2 + 2), 16))
}

export function uuidText(bytes: Uint8Array): string {
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`
}
