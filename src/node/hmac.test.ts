import assert from 'node:assert/strict'
import test from 'node:test'
import { createHmacSha256 } from './hmac.ts'

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')
const text = (words: string) => new TextEncoder().encode(words)

test('RFC 4231, cases 1 and 2, first and later calls with a key', () => {
  const hmac = createHmacSha256()
  for (let round = 0; round < 2; round++) {
    assert.equal(hex(hmac(new Uint8Array(20).fill(0x0b), text('Hi There'))), 'b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7')
    assert.equal(hex(hmac(text('Jefe'), text('what do ya want for nothing?'))), '5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843')
  }
})

test('a key that is changed in its place is another key', () => {
  const hmac = createHmacSha256()
  const key = new Uint8Array(32).fill(1)
  const first = hex(hmac(key, text('x')))
  key[0] = 2
  assert.notEqual(hex(hmac(key, text('x'))), first)
  key[0] = 1
  assert.equal(hex(hmac(key, text('x'))), first)
})
