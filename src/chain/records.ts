/**
 * Updates that this reactor's replicas have taken and not yet let go of: from receipt (or ordering) until committed, staged here and out of every send.
 * One row per record and replica. A row is in the list of its slot while staged and uncommitted, and in the queues of its disk until
 * the journal has it.
 *
 * Payload: pages of the arena that belong to the row (`owned` 1: freed with it) or to a client operation of this node, which stays
 * pinned until the row is freed or takes a copy, because nobody knows when that will be.
 *
 * Also here: an update id as a pair of u32. The sequence number of a slot (sv, 40 bits) alone orders its log, so the rest of the chain
 * layer compares sv as plain numbers.
 */
import { columns, f64, i32, u8, u32 } from '../base/columns.ts'
import { CHAIN_OP_PAGES_MAX } from '../base/units.ts'

export const NONE = -1

const TWO_32 = 0x1_0000_0000

/** Slot sequence number of an id (protocol 1). */
export function svOf(idHigh: number, idLow: number): number {
  return (idHigh & 0xff) * TWO_32 + idLow
}
/** Version of the chain whose head gave the id. */
export function versionOf(idHigh: number): number {
  return idHigh >>> 8
}
export function idHighOf(chainVersion: number, sv: number): number {
  return ((chainVersion << 8) | Math.floor(sv / TWO_32)) >>> 0
}
export function idLowOf(sv: number): number {
  return sv >>> 0
}

export const RecordState = {
  /** In the kernel here, or never to be stored here: the store needs the payload no more. */
  STAGED: 1,
  /** As durable here as the record asks for. */
  READY: 2,
  COMMITTED: 4,
  /** Acknowledged without storing (protocol 22), or already held. */
  SKIPPED: 8,
  /** No longer of any slot's log here: only waits for the store and the sends to end. */
  DROPPED: 16,
  /** Has been sent to a successor once. */
  FORWARDED: 32,
} as const

export type Records = ReturnType<typeof recordRows>

export function recordRows(rowsMax: number) {
  const rows = columns('record', rowsMax, {
    slot: i32,
    state: u8,
    kind: u8,
    durable: u8,
    store: u8,
    sv: f64,
    idHigh: u32,
    idLow: u32,
    prevHigh: u32,
    prevLow: u32,
    volume: f64,
    layer: u32,
    index: u32,
    firstPage: i32,
    pageCount: i32,
    payloadPage: i32,
    owned: u8,
    clientHigh: u32,
    clientLow: u32,
    channel: i32,
    seq: f64,
    journalSeq: f64,
    /** Next in the list of the slot. */
    next: i32,
    nextStaged: i32,
    nextDurable: i32,
    /** Sends under way that read the payload. */
    sends: i32,
    /** Peer and hop whose credit the row holds; peer NONE: none. */
    peer: i32,
    hop: i32,
    /** Chain version in the forward that brought it. */
    chainVersion: i32,
    /** The disk the sender means. */
    disk: i32,
    /** Head: the update it answers; NONE. */
    update: i32,
    /** Client operation pinned by the payload; NONE. */
    pinned: i32,
    receivedMs: f64,
  })
  /** CRC of payload page i of row r at r * CHAIN_OP_PAGES_MAX + i. */
  return Object.assign(rows, { crcs: new Uint32Array(rowsMax * CHAIN_OP_PAGES_MAX) })
}
