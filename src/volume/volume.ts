/**
 * Everything an export sees: byte ranges of volumes. Splits requests at block boundaries and at the largest chain operation, gathers the
 * pieces' outcomes, keeps the I/O counters of the documents (checklist 4.19).
 *
 * A request inside one block goes straight through to the block client: no row, no copy. Only larger ones take a row here.
 * Replication, retries and exactly-once are the block client's; protocol errors and their numbers are the export's.
 *
 * Buffers: whole pages of the arena; byte i of a request at `bufferPage * 4096 + offsetBytes % 4096 + i`. So every piece is page-aligned in
 * the same buffer. They belong to the layers below until `done`.
 */
import { assert } from '../base/assert.ts'
import { columns, f64, i32 } from '../base/columns.ts'
import type { VolumeNumber } from '../base/ids.ts'
import { type Done, WriteFlag } from '../base/request.ts'
import { Status } from '../base/status.ts'
import { BLOCK_BYTES, CHAIN_OP_BYTES_MAX, PAGE_BYTES, SECTOR_BYTES } from '../base/units.ts'
import type { BlockClient } from '../chain/block-client.ts'
import type { Arena } from '../env/arena.ts'
import { IoStats } from './io-stats.ts'

/** Requests of all exports of a reactor under way at one time, at most: a quarter of what the block client takes. */
const REQUESTS_MAX = 4096
/** Pieces of one request under way at one time: a request to zero 4 GiB has 1024. */
const PIECES_AT_ONCE_MAX = 16

const Kind = { READ: 0, WRITE: 1, ZERO: 2 } as const

export interface OpenVolume {
  readonly volume: VolumeNumber
  readonly sizeBytes: number
  readonly readOnly: boolean
}

export class VolumeLayer {
  readonly stats = new IoStats()
  /** Exports have no more requests than this under way, all together (`enter`): then each finds its row, and at least one operation of the block client. */
  readonly requestsMax: number
  #entered = 0
  readonly #client: BlockClient
  readonly #arena: Arena
  readonly #requests
  readonly #callers: Array<Done | undefined>
  readonly #pieceDone: Done
  /** Pieces under way apart from the first of each request, and how many there may be. */
  #extraPieces = 0
  readonly #extraPiecesMax: number

  constructor(client: BlockClient, arena: Arena) {
    this.#client = client
    this.#arena = arena
    this.requestsMax = Math.min(REQUESTS_MAX, Math.max(1, Math.floor(client.operationsMax / 4)))
    this.#extraPiecesMax = Math.floor(client.operationsMax / 2)
    this.#requests = columns('split request', this.requestsMax, {
      kind: i32,
      volume: f64,
      offsetBytes: f64,
      /** What is not begun yet: [nextBytes, endBytes). */
      nextBytes: f64,
      endBytes: f64,
      bufferPage: i32,
      flags: i32,
      pieces: i32,
      status: i32,
      lossCount: i32,
      callerRow: i32,
    })
    this.#callers = new Array(this.requestsMax)
    this.#pieceDone = (request, status) => this.#onPiece(request, status)
  }

  /** Takes a place for a request that is to be made; false: as many as there may be are under way, in all exports together. */
  enter(): boolean {
    if (this.#entered === this.requestsMax) return false
    this.#entered++
    return true
  }

  /** The request has ended, and its answer has gone. */
  leave(): void {
    this.#entered--
  }

  volumeNames(): readonly string[] {
    return this.#client.volumeNames()
  }

  /** The volume of that name, or undefined. Nothing is held open: a deleted volume answers VOLUME_NOT_FOUND from then on. */
  open(name: string): OpenVolume | undefined {
    return this.#client.volumeByName(name)
  }

  sizeBytes(volume: VolumeNumber): number {
    return this.#client.sizeBytes(volume)
  }

  get ready(): boolean {
    return this.#client.ready
  }

  /** Never-written parts read as zeros. `done` is never called inside this call. BUFFER_LOST: see {@link BlockClient.read}. */
  read(volume: VolumeNumber, offsetBytes: number, lengthBytes: number, bufferPage: number, done: Done, row: number): void {
    const firstPage = Math.floor(offsetBytes / PAGE_BYTES)
    const pageCount = Math.ceil((offsetBytes + lengthBytes) / PAGE_BYTES) - firstPage
    const block = Math.floor(offsetBytes / BLOCK_BYTES)
    const pageInBlock = firstPage % (BLOCK_BYTES / PAGE_BYTES)
    if (pageCount * PAGE_BYTES <= CHAIN_OP_BYTES_MAX && (pageInBlock + pageCount) * PAGE_BYTES <= BLOCK_BYTES) {
      this.#client.read(volume, block, pageInBlock, pageCount, bufferPage, done, row)
      return
    }
    this.#split(Kind.READ, volume, offsetBytes, lengthBytes, bufferPage, 0, done, row)
  }

  isHeld(bufferPage: number, pageCount: number): boolean {
    return this.#client.isHeld(bufferPage, pageCount)
  }

  /** `flags`: WriteFlag. Success: on every replica that counts, durable if the volume is syncWhenWrite or FUA is set. */
  write(volume: VolumeNumber, offsetBytes: number, lengthBytes: number, bufferPage: number, flags: number, done: Done, row: number): void {
    const block = Math.floor(offsetBytes / BLOCK_BYTES)
    const inBlock = offsetBytes - block * BLOCK_BYTES
    if (inBlock + lengthBytes <= BLOCK_BYTES && (inBlock % PAGE_BYTES) + lengthBytes <= CHAIN_OP_BYTES_MAX) {
      this.#client.write(volume, block, inBlock, lengthBytes, bufferPage, flags, done, row)
      return
    }
    this.#split(Kind.WRITE, volume, offsetBytes, lengthBytes, bufferPage, flags, done, row)
  }

  /**
   * The range reads as zeros afterwards. Whole pages lose their data; the edges (parts of pages) are written, for which `scratchPage` names
   * two arena pages of the caller (see {@link zeroScratchPages}), owned by this layer until `done`.
   */
  zero(volume: VolumeNumber, offsetBytes: number, lengthBytes: number, scratchPage: number, flags: number, done: Done, row: number): void {
    this.#split(Kind.ZERO, volume, offsetBytes, lengthBytes, scratchPage, flags, done, row)
  }

  /** Pages of scratch `zero` needs for this range: 0 when it is page-aligned. */
  zeroScratchPages(offsetBytes: number, lengthBytes: number): number {
    return offsetBytes % PAGE_BYTES === 0 && lengthBytes % PAGE_BYTES === 0 ? 0 : 2
  }

  /** A hint: whole pages inside the range lose their data and read as zeros, parts of pages keep theirs. False: nothing to do (and no `done`). */
  trim(volume: VolumeNumber, offsetBytes: number, lengthBytes: number, flags: number, done: Done, row: number): boolean {
    const from = Math.ceil(offsetBytes / PAGE_BYTES) * PAGE_BYTES
    const to = Math.floor((offsetBytes + lengthBytes) / PAGE_BYTES) * PAGE_BYTES
    if (to <= from) return false
    this.#split(Kind.ZERO, volume, from, to - from, -1, flags, done, row)
    return true
  }

  /** How often acknowledged writes of the volume that no flush covered may have been lost. */
  lossCount(volume: VolumeNumber): number {
    return this.#client.lossCount(volume)
  }

  /** Those of them that whoever connects now has nothing to do with. */
  pastLossCount(volume: VolumeNumber): number {
    return this.#client.pastLossCount(volume)
  }

  /** Every write of the volume acknowledged before this call, on any connection of any node, is durable. */
  flush(volume: VolumeNumber, done: Done, row: number): void {
    this.#client.flush(volume, done, row)
  }

  /** Whoever waited for (done, row) has gone, at `lostMs` or later: the write is given up soon (it still ends by `done`), and nothing more of it is begun. */
  orphan(done: Done, row: number, lostMs?: number): void {
    const t = this.#requests
    for (let request = 0; t.inUse > 0 && request < t.rowsMax; request++) {
      if (t.isUsed(request) && this.#callers[request] === done && t.callerRow[request] === row) {
        if (t.nextBytes[request]! < t.endBytes[request]!) this.#giveUp(request, Status.CONNECTION_LOST)
        this.#client.orphan(this.#pieceDone, request, lostMs)
        return
      }
    }
    this.#client.orphan(done, row, lostMs)
  }

  /** Nothing more of the request is begun. The first reason stays, but for a lost buffer: its owner must know. */
  #giveUp(request: number, status: number): void {
    const t = this.#requests
    if (t.status[request] === Status.SUCCESS || status === Status.BUFFER_LOST) t.status[request] = status
    t.nextBytes[request] = t.endBytes[request]!
  }

  #split(kind: number, volume: VolumeNumber, offsetBytes: number, lengthBytes: number, bufferPage: number, flags: number, done: Done, row: number): void {
    assert(
      offsetBytes % SECTOR_BYTES === 0 && lengthBytes % SECTOR_BYTES === 0 && lengthBytes > 0,
      `request at ${offsetBytes}+${lengthBytes} is not in whole sectors`,
    )
    const t = this.#requests
    const request = t.alloc()
    assert(request >= 0, `more than ${t.rowsMax} requests: one was made without a place`)
    t.kind[request] = kind
    t.volume[request] = volume
    t.offsetBytes[request] = t.nextBytes[request] = offsetBytes
    t.endBytes[request] = offsetBytes + lengthBytes
    t.bufferPage[request] = bufferPage
    t.flags[request] = flags
    t.pieces[request] = 0
    t.status[request] = Status.SUCCESS
    t.lossCount[request] = this.#client.lossCount(volume)
    t.callerRow[request] = row
    this.#callers[request] = done
    this.#startPieces(request)
  }

  /** As many pieces as may be under way; the rest follows as they end. */
  #startPieces(request: number): void {
    const t = this.#requests
    while (t.nextBytes[request]! < t.endBytes[request]! && t.pieces[request]! < PIECES_AT_ONCE_MAX) {
      if (t.pieces[request]! > 0) {
        if (this.#extraPieces >= this.#extraPiecesMax) return
        this.#extraPieces++
      }
      t.pieces[request]!++
      this.#startPiece(request)
    }
  }

  #startPiece(request: number): void {
    const t = this.#requests
    const kind = t.kind[request]!
    const volume = t.volume[request] as VolumeNumber
    const bufferPage = t.bufferPage[request]!
    const flags = t.flags[request]!
    const at = t.nextBytes[request]!
    const block = Math.floor(at / BLOCK_BYTES)
    const inBlock = at - block * BLOCK_BYTES
    const page = Math.floor(at / PAGE_BYTES)
    let end = Math.min(t.endBytes[request]!, (block + 1) * BLOCK_BYTES)
    if (kind === Kind.ZERO) {
      const isEdge = at % PAGE_BYTES !== 0 || end - at < PAGE_BYTES
      end = isEdge ? Math.min(end, (page + 1) * PAGE_BYTES) : Math.floor(end / PAGE_BYTES) * PAGE_BYTES
      t.nextBytes[request] = end
      if (isEdge) this.#zeroEdge(volume, block, inBlock, end - at, bufferPage + (at === t.offsetBytes[request] ? 0 : 1), flags, request)
      else this.#client.zero(volume, block, inBlock / PAGE_BYTES, (end - at) / PAGE_BYTES, flags, this.#pieceDone, request)
      return
    }
    end = Math.min(end, page * PAGE_BYTES + CHAIN_OP_BYTES_MAX)
    t.nextBytes[request] = end
    const piecePage = bufferPage + page - Math.floor(t.offsetBytes[request]! / PAGE_BYTES)
    if (kind === Kind.WRITE) this.#client.write(volume, block, inBlock, end - at, piecePage, flags, this.#pieceDone, request)
    else {
      const firstPage = Math.floor(inBlock / PAGE_BYTES)
      const pageCount = Math.ceil((inBlock + end - at) / PAGE_BYTES) - firstPage
      this.#client.read(volume, block, firstPage, pageCount, piecePage, this.#pieceDone, request)
    }
  }

  /**
   * A piece that was acknowledged from memory may have been lost while others were under way. Of that loss a flush tells once, perhaps before this
   * request ends: were it a success then, the next flush would say that all of it is durable.
   */
  #mayBeLost(request: number): boolean {
    const t = this.#requests
    if (t.kind[request] === Kind.READ || t.status[request] !== Status.SUCCESS || t.flags[request]! & WriteFlag.FUA) return false
    return this.#client.lossCount(t.volume[request] as VolumeNumber) !== t.lossCount[request]
  }

  #zeroEdge(volume: VolumeNumber, block: number, offsetInBlock: number, lengthBytes: number, page: number, flags: number, request: number): void {
    const from = page * PAGE_BYTES + (offsetInBlock % PAGE_BYTES)
    this.#arena.bytes.fill(0, from, from + lengthBytes)
    this.#client.write(volume, block, offsetInBlock, lengthBytes, page, flags, this.#pieceDone, request)
  }

  /** The first failure is the request's: nothing more is begun, and it ends when every piece under way has. */
  #onPiece(request: number, status: number): void {
    const t = this.#requests
    if (status !== Status.SUCCESS) this.#giveUp(request, status)
    if (--t.pieces[request]! > 0) this.#extraPieces--
    this.#startPieces(request)
    if (t.pieces[request]! > 0) return
    const done = this.#callers[request]!
    const row = t.callerRow[request]!
    const outcome = this.#mayBeLost(request) ? Status.WRITE_FAILED : t.status[request]!
    this.#callers[request] = undefined
    t.free(request)
    done(row, outcome)
  }
}
