/**
 * What the volume layer sees of replication: reads, writes, zeroes and flushes of one block at a time, done for good or failed for good.
 * Implemented by `client.ts` (routing, channels, retries, cancels); a plain in-memory one serves the tests of the layers above.
 *
 * Each call takes (done, row): `done(row, status)` is called exactly once, never inside the call.
 * Success of a write: applied exactly once, on every replica in the acknowledgement path, durable there if the volume is `syncWhenWrite`.
 * Failure of a write: known not to take effect ever (cancelled through the log itself, protocol 16), or the client's connection to it is already closed.
 * NETWORK_TIMEOUT alone says that nobody knows: no replica could say for the retry budget and the life of a write after it. If it takes effect, then
 * before any write of the block that is begun after this answer.
 */
import type { VolumeNumber } from '../base/ids.ts'
import type { Done } from '../base/request.ts'

export interface BlockClient {
  /** Operations it takes at one time; one more is a mistake of the caller. */
  readonly operationsMax: number
  /**
   * Whole pages [firstPage, firstPage + pageCount) of block `index`, at most CHAIN_OP_PAGES_MAX, into arena pages from `bufferPage` on.
   * Never-written pages read as zeros. Status: SUCCESS, or after the retry budget BLOCK_CORRUPTED, VOLUME_UNAVAILABLE, VOLUME_NOT_FOUND, STOPPING.
   * BUFFER_LOST: the disk hangs, and may write to the buffer at any time from now on: leave it alone while it `isHeld`, read again into another one.
   */
  read(volume: VolumeNumber, index: number, firstPage: number, pageCount: number, bufferPage: number, done: Done, row: number): void
  /**
   * Bytes [offsetBytes, offsetBytes + lengthBytes) within block `index`; multiples of 512; the touched pages span at most CHAIN_OP_PAGES_MAX.
   * The payload lies in the arena so that the first touched page starts at `bufferPage`: byte i of the operation is at
   * bufferPage * 4096 + offsetBytes % 4096 + i. The rest of the first and last page is scratch: the head merges into it.
   * The buffer belongs to the chain layer until `done`.
   */
  write(volume: VolumeNumber, index: number, offsetBytes: number, lengthBytes: number, bufferPage: number, flags: number, done: Done, row: number): void
  /**
   * Of the buffer of an operation that has ended, a success too: whether a disk that hangs still has it. Its owner asks before the pages are
   * used for anything else, and now and then again; they may be held for ever.
   */
  isHeld(bufferPage: number, pageCount: number): boolean
  /** Whole pages become zeros (NBD TRIM and WRITE_ZEROES, SCSI UNMAP); a whole block may give its space back. At most PAGES_PER_BLOCK pages. */
  zero(volume: VolumeNumber, index: number, firstPage: number, pageCount: number, flags: number, done: Done, row: number): void
  /** Every write of the volume acknowledged before this call, on any connection of any node, is durable. At once when the volume is `syncWhenWrite`. */
  flush(volume: VolumeNumber, done: Done, row: number): void
  /** How often, as far as this node knows, writes of the volume that were acknowledged and not flushed may have been lost (flush.ts); only grows. */
  lossCount(volume: VolumeNumber): number
  /** Those of them that whoever connects now has nothing to do with. Of others it may have been told by nobody: it may be a client that was there, and was cut off. */
  pastLossCount(volume: VolumeNumber): number
  /**
   * The client that waits for (done, row) has gone (connection lost): the write is retried until `writeLifeMs` after `lostMs` at most, then cancelled; `done` still follows, with
   * NETWORK_TIMEOUT when nobody has decided it by the time at which its client would have been told so.
   * `lostMs`: since when it may have been gone, on the queue's clock; default: now. A process that stood still learns of it late.
   */
  orphan(done: Done, row: number, lostMs?: number): void
  /** The volume as the table has it, or undefined. */
  volumeByName(
    name: string,
  ): { readonly volume: VolumeNumber; readonly sizeBytes: number; readonly readOnly: boolean; readonly syncWhenWrite: boolean } | undefined
  /** Size now (resizes are seen without reconnecting); -1 when the volume is gone. */
  sizeBytes(volume: VolumeNumber): number
  volumeNames(): readonly string[]
  /** May this node serve I/O at all now (lease, table)? For readiness only; operations wait for it by themselves. */
  readonly ready: boolean
}
