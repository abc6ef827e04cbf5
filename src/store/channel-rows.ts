/**
 * One row per (client, channel) that ever updated this disk: what makes a retried update apply exactly once (protocol 7 and 9).
 *
 * A row is { seq, slot, id, held }. `held`: the record that set it is on this disk; a row that came from elsewhere for another slot, or
 * that a resync session distrusts, keeps its seq but is not held.
 *
 * Invariants: seq never goes down in memory (only a lost journal suffix takes it back); a row exists when its seq is above 0;
 * a row counts as held only for its own slot (callers compare `slot`).
 *
 * When there is no room for a row, those of processes that a later process of the same client has followed go: that one has registered, so they are
 * fenced. A replay needs that: what has expired since is still in the journal.
 *
 * Clients are found by open addressing; each has a bank of 256 rows, row = bank * 256 + channel. The banks grow by doubling: read the columns
 * through the object (`rows.seq[row]`), never keep them over a `set` or `merge`.
 *
 * A packed row (resync, segment checkpoints), eight u32:
 *
 *   clientHigh | clientLow | channel | seq / 2^32 | seq % 2^32 | held << 31 | slot | idHigh | idLow
 */
import { assert } from '../base/assert.ts'
import { XsanError } from '../base/errors.ts'

/** Channels of one client (protocol 4). */
export const CHANNELS_PER_CLIENT = 256
/** u32 words of one packed row. */
export const ROW_WORDS = 8
/** Clients known at one time; each is a reactor of a node until Raft fences its incarnation. */
export const CLIENTS_MAX = 1024
/** Rows known at one time: bounds the checkpoint at the start of each journal segment (32 bytes per row). */
export const ROWS_MAX = 16_384

const HELD_BIT = 0x8000_0000
const BANKS_AT_START = 4
const EMPTY = 0
/** Open addressing over at most CLIENTS_MAX banks, a quarter full at most. */
const INDEX_SIZE = CLIENTS_MAX * 4

export class ChannelRows {
  /** Last sequence number taken from the channel; 0 = no row. */
  seq = new Float64Array(BANKS_AT_START * CHANNELS_PER_CLIENT)
  slot = new Int32Array(BANKS_AT_START * CHANNELS_PER_CLIENT)
  idHigh = new Uint32Array(BANKS_AT_START * CHANNELS_PER_CLIENT)
  idLow = new Uint32Array(BANKS_AT_START * CHANNELS_PER_CLIENT)
  held = new Uint8Array(BANKS_AT_START * CHANNELS_PER_CLIENT)

  /** Rows of a client have gone: there may be room for others. Called in the midst of it. */
  onDropped: (() => void) | undefined

  readonly #bankHigh = new Uint32Array(CLIENTS_MAX)
  readonly #bankLow = new Uint32Array(CLIENTS_MAX)
  /** Bank + 1 by hash of the client; 0 = empty. */
  readonly #index = new Int32Array(INDEX_SIZE)
  #banks = 0
  #count = 0

  /** Rows that exist. */
  get count(): number {
    return this.#count
  }

  get clientCount(): number {
    return this.#banks
  }

  /** Row of the channel, or -1 when nothing of it was ever seen. */
  lookup(clientHigh: number, clientLow: number, channel: number): number {
    if (channel < 0 || channel >= CHANNELS_PER_CLIENT) return -1
    const bank = this.#findBank(clientHigh, clientLow)
    if (bank < 0) return -1
    const row = bank * CHANNELS_PER_CLIENT + channel
    return this.seq[row] === 0 ? -1 : row
  }

  /** May a row of this client be added? When false its updates must wait for `expire`. */
  hasRoomFor(clientHigh: number, clientLow: number): boolean {
    if (this.#count >= ROWS_MAX - CHANNELS_PER_CLIENT) return this.#findBank(clientHigh, clientLow) >= 0 && this.#count < ROWS_MAX
    return this.#banks < CLIENTS_MAX || this.#findBank(clientHigh, clientLow) >= 0
  }

  /** May all these packed rows be merged? */
  hasRoomForAll(packed: Uint32Array): boolean {
    let rows = this.#count
    const clients = new Set<number>()
    for (let w = 0; w < packed.length; w += ROW_WORDS) {
      if (this.lookup(packed[w]!, packed[w + 1]!, packed[w + 2]!) >= 0) continue
      rows++
      if (this.#findBank(packed[w]!, packed[w + 1]!) < 0) clients.add(packed[w]! * 0x1_0000_0000 + packed[w + 1]!)
    }
    return rows <= ROWS_MAX && this.#banks + clients.size <= CLIENTS_MAX
  }

  /** Staging a record: takes the row unless it already has a later seq (an old record, forwarded again). */
  set(clientHigh: number, clientLow: number, channel: number, seq: number, slot: number, idHigh: number, idLow: number): void {
    if (!(channel >= 0 && channel < CHANNELS_PER_CLIENT)) assert(false, `channel ${channel}`)
    if (!(seq > 0)) assert(false, `channel ${channel}: sequence ${seq}`)
    const row = this.#rowOf(clientHigh, clientLow, channel)
    const before = this.seq[row]!
    if (seq < before) return
    if (before === 0) this.#count++
    this.#put(row, seq, slot, idHigh, idLow, 1)
  }

  /** The row of that channel; room is made for one that is not there yet. */
  #rowOf(clientHigh: number, clientLow: number, channel: number): number {
    const bank = this.#findBank(clientHigh, clientLow)
    if (bank >= 0 && (this.seq[bank * CHANNELS_PER_CLIENT + channel] !== 0 || this.#count < ROWS_MAX)) return bank * CHANNELS_PER_CLIENT + channel
    if (this.#count >= ROWS_MAX || (bank < 0 && this.#banks >= CLIENTS_MAX)) this.#dropFollowed(clientHigh, clientLow)
    assert(this.#count < ROWS_MAX, `more than ${ROWS_MAX} client channels on one disk`)
    return this.#bankOf(clientHigh, clientLow) * CHANNELS_PER_CLIENT + channel
  }

  #dropFollowed(clientHigh: number, clientLow: number): void {
    const newest = new Map([[clientHigh, clientLow]])
    for (let bank = 0; bank < this.#banks; bank++) {
      const client = this.#bankHigh[bank]!
      newest.set(client, Math.max(newest.get(client) ?? 0, this.#bankLow[bank]!))
    }
    for (const [client, incarnation] of newest) this.expire(client, incarnation)
  }

  /** Start of a resync session: the disk's own rows of the slot keep their seq and are no longer held. */
  clearHeld(slot: number): void {
    const rows = this.#banks * CHANNELS_PER_CLIENT
    for (let row = 0; row < rows; row++) if (this.slot[row] === slot) this.held[row] = 0
  }

  /** All rows, {@link ROW_WORDS} words each. */
  pack(): Uint32Array {
    const packed = new Uint32Array(this.#count * ROW_WORDS)
    this.packInto(packed, 0)
    return packed
  }

  /** Packs into `words` from word `at` on; returns the rows written. */
  packInto(words: Uint32Array, at: number): number {
    let w = at
    for (let bank = 0; bank < this.#banks; bank++) {
      for (let channel = 0; channel < CHANNELS_PER_CLIENT; channel++) {
        const row = bank * CHANNELS_PER_CLIENT + channel
        const seq = this.seq[row]!
        if (seq === 0) continue
        words[w] = this.#bankHigh[bank]!
        words[w + 1] = this.#bankLow[bank]!
        words[w + 2] = channel
        words[w + 3] = seq / 0x1_0000_0000
        words[w + 4] = seq
        words[w + 5] = this.slot[row]! | (this.held[row] === 1 ? HELD_BIT : 0)
        words[w + 6] = this.idHigh[row]!
        words[w + 7] = this.idLow[row]!
        w += ROW_WORDS
      }
    }
    return (w - at) / ROW_WORDS
  }

  /**
   * Rows of another disk that come with the resync of `slot`: rows of other slots come as not held; the higher seq wins, of equal seq the held one.
   * -1 takes them as they are (a checkpoint of this disk). Throws INVALID_PARAM on bytes that are no rows; asserts that there is room (`hasRoomForAll`).
   */
  merge(slot: number, packed: Uint32Array): void {
    checkPackedRows(packed)
    for (let w = 0; w < packed.length; w += ROW_WORDS) {
      const clientHigh = packed[w]!
      const clientLow = packed[w + 1]!
      const seq = packed[w + 3]! * 0x1_0000_0000 + packed[w + 4]!
      const rowSlot = packed[w + 5]! & 0x7fff_ffff
      const held = packed[w + 5]! >= HELD_BIT && (slot === -1 || rowSlot === slot) ? 1 : 0
      const row = this.#rowOf(clientHigh, clientLow, packed[w + 2]!)
      const before = this.seq[row]!
      if (seq < before || (seq === before && (held === 0 || this.held[row] === 1))) continue
      if (before === 0) this.#count++
      this.#put(row, seq, rowSlot, packed[w + 6]!, packed[w + 7]!, held)
    }
  }

  /** Raft has fenced every incarnation of the client below this one: their rows go. Not journaled: called again after each mount. */
  expire(clientHigh: number, belowIncarnation: number): void {
    for (let bank = this.#banks - 1; bank >= 0; bank--) {
      if (this.#bankHigh[bank] === clientHigh && this.#bankLow[bank]! < belowIncarnation) this.#dropBank(bank)
    }
  }

  /** Raft has fenced all incarnations of these clients for good. */
  expireAll(isGone: (clientHigh: number) => boolean): void {
    for (let bank = this.#banks - 1; bank >= 0; bank--) if (isGone(this.#bankHigh[bank]!)) this.#dropBank(bank)
  }

  clear(): void {
    this.#index.fill(EMPTY)
    this.seq.fill(0)
    this.held.fill(0)
    this.#banks = 0
    this.#count = 0
  }

  #put(row: number, seq: number, slot: number, idHigh: number, idLow: number, held: number): void {
    this.seq[row] = seq
    this.slot[row] = slot
    this.idHigh[row] = idHigh
    this.idLow[row] = idLow
    this.held[row] = held
  }

  #findBank(clientHigh: number, clientLow: number): number {
    for (let i = hashOf(clientHigh, clientLow); ; i = (i + 1) & (INDEX_SIZE - 1)) {
      const bank = this.#index[i]! - 1
      if (bank < 0) return -1
      if (this.#bankHigh[bank] === clientHigh && this.#bankLow[bank] === clientLow) return bank
    }
  }

  #bankOf(clientHigh: number, clientLow: number): number {
    const found = this.#findBank(clientHigh, clientLow)
    if (found >= 0) return found
    assert(this.#banks < CLIENTS_MAX, `more than ${CLIENTS_MAX} clients on one disk`)
    const bank = this.#banks++
    if (bank * CHANNELS_PER_CLIENT >= this.seq.length) this.#grow()
    this.#bankHigh[bank] = clientHigh
    this.#bankLow[bank] = clientLow
    this.#enter(bank)
    return bank
  }

  #enter(bank: number): void {
    let i = hashOf(this.#bankHigh[bank]!, this.#bankLow[bank]!)
    while (this.#index[i] !== EMPTY) i = (i + 1) & (INDEX_SIZE - 1)
    this.#index[i] = bank + 1
  }

  /** The last bank takes the place of the dropped one, and the index is built anew: rare, and never leaves tombstones. */
  #dropBank(bank: number): void {
    const from = bank * CHANNELS_PER_CLIENT
    for (let row = from; row < from + CHANNELS_PER_CLIENT; row++) if (this.seq[row] !== 0) this.#count--
    const last = --this.#banks
    const lastFrom = last * CHANNELS_PER_CLIENT
    if (bank !== last) {
      this.#bankHigh[bank] = this.#bankHigh[last]!
      this.#bankLow[bank] = this.#bankLow[last]!
      for (const column of [this.seq, this.slot, this.idHigh, this.idLow, this.held]) column.copyWithin(from, lastFrom, lastFrom + CHANNELS_PER_CLIENT)
    }
    this.seq.fill(0, lastFrom, lastFrom + CHANNELS_PER_CLIENT)
    this.held.fill(0, lastFrom, lastFrom + CHANNELS_PER_CLIENT)
    this.#index.fill(EMPTY)
    for (let b = 0; b < this.#banks; b++) this.#enter(b)
    this.onDropped?.()
  }

  #grow(): void {
    const size = this.seq.length * 2
    const larger = <T extends Float64Array | Int32Array | Uint32Array | Uint8Array>(column: T, next: T): T => {
      next.set(column)
      return next
    }
    this.seq = larger(this.seq, new Float64Array(size))
    this.slot = larger(this.slot, new Int32Array(size))
    this.idHigh = larger(this.idHigh, new Uint32Array(size))
    this.idLow = larger(this.idLow, new Uint32Array(size))
    this.held = larger(this.held, new Uint8Array(size))
  }
}

/** Why these words are not packed rows, or null. */
export function invalidPackedRows(packed: Uint32Array): string | null {
  if (packed.length % ROW_WORDS !== 0) return `${packed.length} words are not whole rows`
  if (packed.length > ROWS_MAX * ROW_WORDS) return `${packed.length / ROW_WORDS} rows, at most ${ROWS_MAX}`
  for (let w = 0; w < packed.length; w += ROW_WORDS) {
    if (packed[w + 2]! >= CHANNELS_PER_CLIENT) return `channel ${packed[w + 2]}`
    if (packed[w + 3]! >= 2 ** 21) return 'sequence number above 2^53'
    if (packed[w + 3] === 0 && packed[w + 4] === 0) return 'sequence number 0'
  }
  return null
}

/** Throws INVALID_PARAM. */
export function checkPackedRows(packed: Uint32Array): void {
  const reason = invalidPackedRows(packed)
  if (reason !== null) throw new XsanError('INVALID_PARAM', `channel rows: ${reason}`)
}

function hashOf(clientHigh: number, clientLow: number): number {
  let h = Math.imul(clientHigh ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(clientLow, 0xc2b2ae35)
  h ^= h >>> 15
  return (Math.imul(h, 0x27d4eb2f) >>> 7) & (INDEX_SIZE - 1)
}
