import assert from 'node:assert/strict'
import test from 'node:test'
import { crc32c } from './crc32c.ts'
import { Prng } from './prng.ts'

const text = (s: string) => new TextEncoder().encode(s)

test('the vectors of RFC 3720 appendix B.4 give their checksums', () => {
  assert.equal(crc32c(text('123456789')), 0xe3069283)
  assert.equal(crc32c(new Uint8Array(32)), 0x8a9136aa)
  assert.equal(crc32c(new Uint8Array(32).fill(0xff)), 0x62a8ab43)
  assert.equal(crc32c(Uint8Array.from({ length: 32 }, (_, i) => i)), 0x46dd794e)
  assert.equal(crc32c(Uint8Array.from({ length: 32 }, (_, i) => 31 - i)), 0x113fdb5c)
  assert.equal(crc32c(new Uint8Array(0)), 0)
})

test('a checksum continued over pieces equals that of the whole, for any cut and alignment', () => {
  const random = new Prng(1)
  const bytes = new Uint8Array(5000)
  random.fill(bytes)
  const slow = (start: number, end: number) => {
    let c = 0xffffffff
    for (let i = start; i < end; i++) {
      c ^= bytes[i]!
      for (let k = 0; k < 8; k++) c = c & 1 ? (c >>> 1) ^ 0x82f63b78 : c >>> 1
    }
    return ~c >>> 0
  }
  for (let i = 0; i < 50; i++) {
    const start = random.below(4000)
    const end = start + random.below(1000)
    const cut = random.between(start, end)
    const whole = crc32c(bytes, start, end)
    assert.equal(whole, slow(start, end))
    assert.equal(crc32c(bytes, cut, end, crc32c(bytes, start, cut)), whole)
  }
})
