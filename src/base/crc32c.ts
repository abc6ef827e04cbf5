/**
 * CRC-32C (Castagnoli), as in RFC 3720 appendix B.4: reflected polynomial 0x82f63b78, start and final xor 0xffffffff.
 * Eight bytes a step over tables ("slicing by 8", Kounavis and Berry 2005). For the simulator, tools and small headers; payload of
 * the real data path gets its checksum in the native engine.
 */

const TABLES: readonly Int32Array[] = makeTables()

function makeTables(): Int32Array[] {
  const tables = Array.from({ length: 8 }, () => new Int32Array(256))
  const first = tables[0]!
  for (let i = 0; i < 256; i++) {
    let c = i
    for (let k = 0; k < 8; k++) c = c & 1 ? (c >>> 1) ^ 0x82f63b78 : c >>> 1
    first[i] = c
  }
  for (let t = 1; t < 8; t++) {
    for (let i = 0; i < 256; i++) {
      const c = tables[t - 1]![i]!
      tables[t]![i] = (c >>> 8) ^ first[c & 255]!
    }
  }
  return tables
}

const T0 = TABLES[0]!
const T1 = TABLES[1]!
const T2 = TABLES[2]!
const T3 = TABLES[3]!
const T4 = TABLES[4]!
const T5 = TABLES[5]!
const T6 = TABLES[6]!
const T7 = TABLES[7]!

/** Unsigned 32 bits over bytes [start, end). `seed` continues an earlier result: crc32c(b, 0, n, crc32c(a)) is that of a followed by b. */
export function crc32c(bytes: Uint8Array, start = 0, end: number = bytes.length, seed = 0): number {
  let c = ~seed
  let i = start
  const fast = end - 7
  while (i < fast) {
    c ^= bytes[i]! | (bytes[i + 1]! << 8) | (bytes[i + 2]! << 16) | (bytes[i + 3]! << 24)
    c =
      T7[c & 255]! ^
      T6[(c >>> 8) & 255]! ^
      T5[(c >>> 16) & 255]! ^
      T4[c >>> 24]! ^
      T3[bytes[i + 4]!]! ^
      T2[bytes[i + 5]!]! ^
      T1[bytes[i + 6]!]! ^
      T0[bytes[i + 7]!]!
    i += 8
  }
  while (i < end) {
    c = T0[(c ^ bytes[i]!) & 255]! ^ (c >>> 8)
    i++
  }
  return ~c >>> 0
}
