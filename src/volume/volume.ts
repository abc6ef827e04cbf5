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
import { columns, i32 } from '../base/columns.ts'
import type { VolumeNumber } from '../base/ids.ts'
import type { Done } from '../base/request.ts'
import { Status } from '../base/status.ts'
import { BLOCK_BYTES, CHAIN_OP_BYTES_MAX, PAGE_BYTES, SECTOR_BYTES } from '../base/units.ts'
import type { BlockClient } from '../chain/block-client.ts'
import type { Arena } from '../env/arena.ts'
import { IoStats } from './io-stats.ts'

/** Requests of more than one piece under way at one time on a reactor. */
const SPLIT_REQUESTS_MAX = 1024
/** A 32 MiB request that starts inside a page has at most this many pieces (1 MiB each, cut at block boundaries, two edge pages). */
const PIECES_PER_REQUEST_MAX = 36

const Kind = { READ: 0, WRITE: 1, ZERO: 2 } as const

export interface OpenVolume {
  readonly volume: VolumeNumber
  readonly sizeBytes: number
  readonly readOnly: boolean
}

export class VolumeLayer {
  readonly stats = new IoStats()
  readonly #client: BlockClient
  readonly #arena: Arena
  readonly #requests = columns('split request', SPLIT_REQUESTS_MAX, { piecesLeft: i32, status: i32, callerRow: i32 })
  readonly #callers: Array<Done | undefined> = new Array(SPLIT_REQUESTS_MAX)
  readonly #pieceDone: Done

  constructor(client: BlockClient, arena: Arena) {
    this.#client = client
    this.#arena = arena
    this.#pieceDone = (request, status) => this.#onPiece(request, status)
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

  /** Never-written parts read as zeros. `done` is never called inside this call. */
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

  /** Every write of the volume acknowledged before this call, on any connection of any node, is durable. */
  flush(volume: VolumeNumber, done: Done, row: number): void {
    this.#client.flush(volume, done, row)
  }

  /** Whoever waited for (done, row) has gone, at `lostMs` or later: the write is given up soon (it still ends by `done`). */
  orphan(done: Done, row: number, lostMs?: number): void {
    for (let request = 0; this.#requests.inUse > 0 && request < SPLIT_REQUESTS_MAX; request++) {
      if (this.#requests.isUsed(request) && this.#callers[request] === done && this.#requests.callerRow[request] === row) {
        this.#client.orphan(this.#pieceDone, request, lostMs)
        return
      }
    }
    this.#client.orphan(done, row, lostMs)
  }

  /** May the caller start a request that could be split? False: wait for any of its own to end. */
  get hasRoom(): boolean {
    return this.#requests.inUse < SPLIT_REQUESTS_MAX
  }

  #split(kind: number, volume: VolumeNumber, offsetBytes: number, lengthBytes: number, bufferPage: number, flags: number, done: Done, row: number): void {
    assert(
      offsetBytes % SECTOR_BYTES === 0 && lengthBytes % SECTOR_BYTES === 0 && lengthBytes > 0,
      `request at ${offsetBytes}+${lengthBytes} is not in whole sectors`,
    )
    const request = this.#requests.alloc()
    assert(request >= 0, 'split requests exhausted: the export did not look at hasRoom')
    this.#requests.status[request] = Status.SUCCESS
    this.#requests.callerRow[request] = row
    this.#requests.piecesLeft[request] = 0
    this.#callers[request] = done
    const end = offsetBytes + lengthBytes
    const basePage = Math.floor(offsetBytes / PAGE_BYTES)
    let pieces = 0
    for (let at = offsetBytes; at < end; ) {
      const block = Math.floor(at / BLOCK_BYTES)
      const inBlock = at - block * BLOCK_BYTES
      const page = Math.floor(at / PAGE_BYTES)
      let pieceEnd = Math.min(end, (block + 1) * BLOCK_BYTES)
      if (kind === Kind.ZERO) {
        const isEdge = at % PAGE_BYTES !== 0 || pieceEnd - at < PAGE_BYTES
        pieceEnd = isEdge ? Math.min(pieceEnd, (page + 1) * PAGE_BYTES) : Math.floor(pieceEnd / PAGE_BYTES) * PAGE_BYTES
        this.#requests.piecesLeft[request]!++
        if (isEdge) this.#zeroEdge(volume, block, inBlock, pieceEnd - at, bufferPage + (at === offsetBytes ? 0 : 1), flags, request)
        else this.#client.zero(volume, block, inBlock / PAGE_BYTES, (pieceEnd - at) / PAGE_BYTES, flags, this.#pieceDone, request)
      } else {
        pieceEnd = Math.min(pieceEnd, page * PAGE_BYTES + CHAIN_OP_BYTES_MAX)
        this.#requests.piecesLeft[request]!++
        const piecePage = bufferPage + page - basePage
        if (kind === Kind.WRITE) this.#client.write(volume, block, inBlock, pieceEnd - at, piecePage, flags, this.#pieceDone, request)
        else {
          const firstPage = Math.floor(inBlock / PAGE_BYTES)
          const pageCount = Math.ceil((inBlock + pieceEnd - at) / PAGE_BYTES) - firstPage
          this.#client.read(volume, block, firstPage, pageCount, piecePage, this.#pieceDone, request)
        }
      }
      pieces++
      at = pieceEnd
    }
    assert(kind === Kind.ZERO || pieces <= PIECES_PER_REQUEST_MAX, `request of ${lengthBytes} bytes made ${pieces} pieces`)
  }

  #zeroEdge(volume: VolumeNumber, block: number, offsetInBlock: number, lengthBytes: number, page: number, flags: number, request: number): void {
    const from = page * PAGE_BYTES + (offsetInBlock % PAGE_BYTES)
    this.#arena.bytes.fill(0, from, from + lengthBytes)
    this.#client.write(volume, block, offsetInBlock, lengthBytes, page, flags, this.#pieceDone, request)
  }

  /** The first failure is the request's; it ends only when every piece has. */
  #onPiece(request: number, status: number): void {
    if (status !== Status.SUCCESS && this.#requests.status[request] === Status.SUCCESS) this.#requests.status[request] = status
    if (--this.#requests.piecesLeft[request]! > 0) return
    const done = this.#callers[request]!
    const row = this.#requests.callerRow[request]!
    const outcome = this.#requests.status[request]!
    this.#callers[request] = undefined
    this.#requests.free(request)
    done(row, outcome)
  }
}
