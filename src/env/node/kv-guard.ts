/**
 * What LevelDB does not tell: that it has gone back. It drops records of its write-ahead log that rot has made unreadable, and opens without a word. A node
 * that forgets what it has promised in Raft (a vote, an entry it has acknowledged) can break the safety of all others, so this has to be noticed.
 *
 * Three guards, each for what the others cannot see:
 * - **the log before it is opened** ({@link rotInLog}): an unreadable record is rot when a later write begins behind it, for a write begins when the one before
 *   is on stable storage. Without that it may as well be a write that was never acknowledged; a loss of power may leave any parts of one.
 * - **the mark** ({@link Mark}): the number of the last acknowledged write, in a file beside the store; the same number is part of each write. A store that
 *   ends below its mark has lost its end. The mark is not synced for itself: after a loss of power it may be behind, never ahead of what was acknowledged.
 * - **a checksum per value** ({@link seal}): what rots in a table.
 *
 *   mark file:  two slots of 512 bytes, written in turn:  magic u32 | number f64 | crc32c of these u32      little-endian
 *   value:      the bytes | crc32c of key and bytes u32
 *   log file:   blocks of 32 KiB:  masked crc32c u32 | length u16 | type u8 | data  ...                      (LevelDB's log_format.md)
 */
import { closeSync, constants, fsyncSync, openSync, readdirSync, readFileSync, readSync, statSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { crc32c } from '../../base/crc32c.ts'

const MARK_FILE = 'xsan.mark'
const MARK_MAGIC = 0x4d4e_5358
const SLOT_BYTES = 512
const SLOT_USED_BYTES = 16
const SEAL_BYTES = 4

export class Mark {
  /** Of the last acknowledged write; 0: none, or not known. */
  readonly found: number
  readonly #fd: number
  readonly #slot = new Uint8Array(SLOT_USED_BYTES)
  readonly #view = new DataView(this.#slot.buffer)

  /** In the directory of the store, so that both are removed together. */
  constructor(directory: string) {
    this.#fd = openSync(join(directory, MARK_FILE), constants.O_RDWR | constants.O_CREAT, 0o600)
    this.found = Math.max(this.#read(0), this.#read(1))
  }

  /** The write of that number is on stable storage. */
  set(number: number): void {
    this.#view.setUint32(0, MARK_MAGIC, true)
    this.#view.setFloat64(4, number, true)
    this.#view.setUint32(12, crc32c(this.#slot, 0, 12), true)
    writeSync(this.#fd, this.#slot, 0, SLOT_USED_BYTES, (number % 2) * SLOT_BYTES)
  }

  close(): void {
    fsyncSync(this.#fd)
    closeSync(this.#fd)
  }

  #read(slot: number): number {
    if (readSync(this.#fd, this.#slot, 0, SLOT_USED_BYTES, slot * SLOT_BYTES) !== SLOT_USED_BYTES) return 0
    if (this.#view.getUint32(0, true) !== MARK_MAGIC || this.#view.getUint32(12, true) !== crc32c(this.#slot, 0, 12) >>> 0) return 0
    return this.#view.getFloat64(4, true)
  }
}

const keyBytes = new TextEncoder()

/** The value as it is stored. */
export function seal(key: string, value: Uint8Array): Uint8Array {
  const sealed = new Uint8Array(value.length + SEAL_BYTES)
  sealed.set(value)
  new DataView(sealed.buffer).setUint32(value.length, sealOf(key, value), true)
  return sealed
}

/** The value, or undefined: it is not what was stored under that key. */
export function unseal(key: string, sealed: Uint8Array): Uint8Array | undefined {
  const length = sealed.length - SEAL_BYTES
  if (length < 0) return undefined
  const value = sealed.subarray(0, length)
  return new DataView(sealed.buffer, sealed.byteOffset).getUint32(length, true) === sealOf(key, value) ? value : undefined
}

function sealOf(key: string, value: Uint8Array): number {
  return crc32c(value, 0, value.length, crc32c(keyBytes.encode(key))) >>> 0
}

const BLOCK_BYTES = 32 * 1024
const HEADER_BYTES = 7
/** A write is one FULL record, or FIRST, any MIDDLE, LAST. */
const RecordType = { FULL: 1, FIRST: 2, MIDDLE: 3, LAST: 4 } as const

/**
 * Where LevelDB's logs are rotten; undefined: nowhere, as far as a reader can tell. To be asked before LevelDB opens: it removes them. Two logs are there
 * when a table was about to be made of the older one.
 */
export function rotInLog(directory: string): string | undefined {
  if (statSync(directory, { throwIfNoEntry: false })?.isDirectory() !== true) return undefined
  const names = readdirSync(directory).filter((name) => /^\d+\.log$/.test(name))
  let bad: string | undefined
  for (const name of names.sort((a, b) => Number.parseInt(a, 10) - Number.parseInt(b, 10))) {
    const bytes = readFileSync(join(directory, name))
    for (let block = 0; block < bytes.length; block += BLOCK_BYTES) {
      const { begins, badAt } = readBlock(bytes, block)
      if (begins && bad !== undefined) return bad
      if (badAt >= 0) bad ??= `${name} at byte ${badAt}`
    }
  }
  return undefined
}

/** Whether a write begins among the readable records of the block, and where the first record begins that cannot be read; -1: all can. */
function readBlock(bytes: Buffer, block: number): { readonly begins: boolean; readonly badAt: number } {
  const end = Math.min(block + BLOCK_BYTES, bytes.length)
  let begins = false
  for (let at = block; end - at >= HEADER_BYTES; ) {
    const next = at + HEADER_BYTES + bytes.readUInt16LE(at + 4)
    const type = bytes[at + 6]!
    if (type < RecordType.FULL || type > RecordType.LAST || next > end || unmasked(bytes.readUInt32LE(at)) !== crc32c(bytes, at + 6, next) >>> 0)
      return { begins, badAt: at }
    if (type <= RecordType.FIRST) begins = true
    at = next
  }
  return { begins, badAt: -1 }
}

/** LevelDB masks the checksums it stores. */
function unmasked(stored: number): number {
  const rotated = (stored - 0xa282_ead8) >>> 0
  return ((rotated >>> 17) | (rotated << 15)) >>> 0
}
