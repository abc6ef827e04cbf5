/**
 * Payload memory of one reactor: one page-aligned native mapping, cut by logic, touched by the io queue.
 * Payload never enters the JS heap; `bytes` is for headers (and for tests).
 *
 * An address is (page number, byte delta), so that pools above 2 GiB fit two int32 in a descriptor.
 * Ownership: a range handed to an operation of the io queue belongs to the queue until that operation's completion is
 * dispatched; nobody may write to it (a send, a write) or read it (a recv, a read) before.
 */
import type { Brand } from '../base/ids.ts'

/** First page of an allocated buffer. */
export type PageNumber = Brand<number, 'PageNumber'>

/** The four size classes of the product documents, by their upper bound. */
export const ArenaClass = { SMALL: 0, MEDIUM: 1, LARGE: 2, HUGE: 3 } as const
export type ArenaClass = (typeof ArenaClass)[keyof typeof ArenaClass]

export interface ArenaStats {
  /** Per class of {@link ArenaClass}: allocations alive, bytes alive. */
  readonly usedCount: readonly number[]
  readonly usedBytes: readonly number[]
  readonly freeBytes: number
  readonly totalBytes: number
}

export interface Arena {
  readonly totalPages: number
  /** The whole arena; index = page * 4096 + delta. */
  readonly bytes: Uint8Array
  readonly view: DataView
  /** `lengthBytes` rounded up to whole pages; -1 when there is no room (the caller waits or refuses: NO_BUFFER). */
  alloc(lengthBytes: number): PageNumber | -1
  /** Frees what `alloc` returned. Freeing twice or an unknown page is an assertion. */
  free(page: PageNumber): void
  /** CRC-32C (Castagnoli, RFC 3720 appendix B.4) of a range, as an unsigned 32-bit number. */
  crc32c(page: number, deltaBytes: number, lengthBytes: number): number
  stats(): ArenaStats
}
