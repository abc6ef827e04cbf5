/**
 * What LevelDB does not tell: that it has gone back. It drops records of its write-ahead log that rot has made unreadable, and opens without a word. A node
 * that forgets what it has promised in Raft (a vote, an entry it has acknowledged) can break the safety of all others, so this has to be noticed.
 *
 * Three guards, each for what the others cannot see:
 * - **the log before it is opened** ({@link rotInLog}): an unreadable record is rot when a later write begins behind it, for a write begins when the one before
 *   is on stable storage. Without that it may as well be a write that was never acknowledged; a loss of power may leave any parts of one. Logs whose content
 *   is in tables say nothing: LevelDB unlinks them and does not sync its directory, so that a file system may bring one back after a loss of power, in any state.
 * - **the mark** ({@link Mark}): the number of the last acknowledged write, in a file beside the store; the same number is part of each write. A store that
 *   ends below its mark has lost its end. The mark is not synced for itself: after a loss of power it may be behind, never ahead of what was acknowledged.
 * - **a checksum per value** ({@link seal}): what rots in a table.
 *
 *   mark file:  two slots of 512 bytes, written in turn:  magic u32 | number f64 | crc32c of these u32      little-endian
 *   value:      the bytes | crc32c of key and bytes u32
 *   log file:   blocks of 32 KiB:  masked crc32c u32 | length u16 | type u8 | data  ...                      (LevelDB's log_format.md)
 *   manifest:   a log of edits, each of fields:  tag varint | what belongs to it; the last LOG_NUMBER counts (LevelDB's version_edit.cc)
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
 * Where LevelDB's logs are rotten; undefined: nowhere, as far as a reader can tell. To be asked before LevelDB opens: it removes them. Two logs count
 * when a table was about to be made of the older one.
 */
export function rotInLog(directory: string): string | undefined {
  if (statSync(directory, { throwIfNoEntry: false })?.isDirectory() !== true) return undefined
  const { first, previous } = logsInUse(directory)
  const logs = readdirSync(directory)
    .filter((name) => /^\d+\.log$/.test(name))
    .map((name) => ({ name, number: Number.parseInt(name, 10) }))
    .filter(({ number }) => number >= first || number === previous)
    .sort((a, b) => a.number - b.number)
  let bad: string | undefined
  for (const { name } of logs) {
    const bytes = readFileSync(join(directory, name))
    for (let block = 0; block < bytes.length; block += BLOCK_BYTES) {
      const { records, badAt } = readBlock(bytes, block)
      if (bad !== undefined && records.some(({ type }) => type === RecordType.FULL || type === RecordType.FIRST)) return bad
      if (badAt >= 0) bad ??= `${name} at byte ${badAt}`
    }
  }
  return undefined
}

/** The logs that LevelDB will read: from the number `first` on, and `previous`. All of them where the manifest does not say. */
function logsInUse(directory: string): { readonly first: number; readonly previous: number } {
  const found = { first: 0, previous: 0 }
  for (const edit of editsOf(directory)) {
    const fields = new EditReader(edit)
    for (let field = fields.next(); field !== undefined; field = fields.next()) {
      if (field.tag === EditTag.LOG_NUMBER) found.first = field.value
      else if (field.tag === EditTag.PREVIOUS_LOG_NUMBER) found.previous = field.value
    }
  }
  return found
}

/** Of the current manifest, up to what cannot be read: LevelDB itself judges that. */
function editsOf(directory: string): Buffer[] {
  const current = join(directory, 'CURRENT')
  const name = statSync(current, { throwIfNoEntry: false })?.isFile() === true ? readFileSync(current, 'latin1').trim() : ''
  const manifest = join(directory, name)
  if (!/^MANIFEST-\d+$/.test(name) || statSync(manifest, { throwIfNoEntry: false })?.isFile() !== true) return []
  const bytes = readFileSync(manifest)
  const edits: Buffer[] = []
  let parts: Buffer[] = []
  for (let block = 0; block < bytes.length; block += BLOCK_BYTES) {
    const { records, badAt } = readBlock(bytes, block)
    for (const { type, data } of records) {
      if (type === RecordType.FULL || type === RecordType.FIRST) parts = []
      parts.push(data)
      if (type === RecordType.FULL || type === RecordType.LAST) edits.push(Buffer.concat(parts))
    }
    if (badAt >= 0) break
  }
  return edits
}

const EditTag = {
  COMPARATOR: 1,
  LOG_NUMBER: 2,
  NEXT_FILE_NUMBER: 3,
  LAST_SEQUENCE: 4,
  COMPACT_POINTER: 5,
  DELETED_FILE: 6,
  NEW_FILE: 7,
  PREVIOUS_LOG_NUMBER: 9,
} as const

/** What follows each tag: numbers (varints), then strings (their length, their bytes). */
const EDIT_FIELDS: Readonly<Record<number, { readonly numbers: number; readonly strings: number }>> = {
  [EditTag.COMPARATOR]: { numbers: 0, strings: 1 },
  [EditTag.LOG_NUMBER]: { numbers: 1, strings: 0 },
  [EditTag.NEXT_FILE_NUMBER]: { numbers: 1, strings: 0 },
  [EditTag.LAST_SEQUENCE]: { numbers: 1, strings: 0 },
  [EditTag.COMPACT_POINTER]: { numbers: 1, strings: 1 },
  [EditTag.DELETED_FILE]: { numbers: 2, strings: 0 },
  [EditTag.NEW_FILE]: { numbers: 3, strings: 2 },
  [EditTag.PREVIOUS_LOG_NUMBER]: { numbers: 1, strings: 0 },
}

class EditReader {
  readonly #bytes: Buffer
  #at = 0

  constructor(bytes: Buffer) {
    this.#bytes = bytes
  }

  /** The next field with its first number; undefined: the edit ends, or nobody knows what follows. */
  next(): { readonly tag: number; readonly value: number } | undefined {
    const tag = this.#number()
    const fields = EDIT_FIELDS[tag]
    if (fields === undefined) return undefined
    const value = fields.numbers > 0 ? this.#number() : 0
    for (let i = 1; i < fields.numbers; i++) this.#number()
    for (let i = 0; i < fields.strings; i++) this.#at += this.#number()
    return this.#at <= this.#bytes.length ? { tag, value } : undefined
  }

  #number(): number {
    let value = 0
    for (let scale = 1; this.#at < this.#bytes.length; scale *= 128) {
      const byte = this.#bytes[this.#at++]!
      value += (byte & 127) * scale
      if (byte < 128) return value
    }
    this.#at = this.#bytes.length + 1
    return 0
  }
}

interface LogBlock {
  readonly records: ReadonlyArray<{ readonly type: number; readonly data: Buffer }>
  /** Where the first record begins that cannot be read; -1: all can. */
  readonly badAt: number
}

/** The readable records at the beginning of a block. */
function readBlock(bytes: Buffer, block: number): LogBlock {
  const end = Math.min(block + BLOCK_BYTES, bytes.length)
  const records: Array<{ type: number; data: Buffer }> = []
  for (let at = block; end - at >= HEADER_BYTES; ) {
    const next = at + HEADER_BYTES + bytes.readUInt16LE(at + 4)
    const type = bytes[at + 6]!
    if (type < RecordType.FULL || type > RecordType.LAST || next > end || unmasked(bytes.readUInt32LE(at)) !== crc32c(bytes, at + 6, next) >>> 0)
      return { records, badAt: at }
    records.push({ type, data: bytes.subarray(at + HEADER_BYTES, next) })
    at = next
  }
  return { records, badAt: -1 }
}

/** LevelDB masks the checksums it stores. */
function unmasked(stored: number): number {
  const rotated = (stored - 0xa282_ead8) >>> 0
  return ((rotated >>> 17) | (rotated << 15)) >>> 0
}
