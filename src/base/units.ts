/** Sizes of the layout, and sizes as people write them. The unit is the last word of a name. */
import { XsanError } from './errors.ts'

export const KiB = 1024
export const MiB = 1024 * KiB
export const GiB = 1024 * MiB
export const TiB = 1024 * GiB
const PiB = 1024 * TiB
const EiB = 1024 * PiB

/** Smallest unit a client may address (advertised on every export). */
export const SECTOR_BYTES = 512
/** Unit of checksums, versions and journal payloads. */
export const PAGE_BYTES = 4096
export const SECTORS_PER_PAGE = PAGE_BYTES / SECTOR_BYTES
/** Unit of placement and replication. */
export const BLOCK_BYTES = 4 * MiB
export const PAGES_PER_BLOCK = BLOCK_BYTES / PAGE_BYTES
/** Largest single chain operation (a write to one block is cut into pieces of at most this). */
export const CHAIN_OP_BYTES_MAX = 1 * MiB
export const CHAIN_OP_PAGES_MAX = CHAIN_OP_BYTES_MAX / PAGE_BYTES
/** The clocks of two nodes differ in their rate by at most this part (leases, lives of writes). */
export const CLOCK_DRIFT_MAX = 0.01
/** Largest request an export accepts. */
export const REQUEST_BYTES_MAX = 32 * MiB

const FACTORS: ReadonlyArray<readonly [string, number]> = [
  ['E', EiB],
  ['P', PiB],
  ['T', TiB],
  ['G', GiB],
  ['M', MiB],
  ['K', KiB],
]

/** `10G`, `10GiB`, `512M`, `4096` -> bytes (binary units). Throws INVALID_PARAM naming the text. */
export function parseSize(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([KMGTPE])?(i?B)?$/i.exec(text.trim())
  if (!match) throw new XsanError('INVALID_PARAM', `"${text}" is not a size`, 'Write a number with an optional unit, such as 512M, 10G or 10GiB.')
  const factor = FACTORS.find(([unit]) => unit === match[2]?.toUpperCase())?.[1] ?? 1
  const bytes = Number(match[1]) * factor
  if (bytes > Number.MAX_SAFE_INTEGER) throw new XsanError('INVALID_PARAM', `"${text}" is more than can be counted`, 'Write less than 8P.')
  if (!Number.isInteger(bytes)) throw new XsanError('INVALID_PARAM', `"${text}" is not a whole number of bytes`, 'Use a whole number of a smaller unit.')
  return bytes
}

/** Bytes as a person reads them: `1.5GiB`. */
export function formatSize(bytes: number): string {
  for (const [unit, factor] of FACTORS) if (bytes >= factor) return `${Number((bytes / factor).toFixed(1))}${unit}iB`
  return `${bytes}B`
}
