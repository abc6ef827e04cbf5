import assert from 'node:assert/strict'
import test from 'node:test'
import { Prng } from '../base/prng.ts'
import { bytes, DecodeError, i32, note, type StructValues, struct, u8, u16, u32, u53, u64, zero } from './struct.ts'

const Request = struct(
  'Request',
  { size: 28, endian: 'big', source: 'test' },
  { magic: u32, flags: u16, type: u16, cookie: u64, offset: note(u53, 'bytes from the start'), length: u32 },
)
const All = struct(
  'All',
  { size: 40, endian: 'little', source: 'test' },
  { a: u8, reserved: zero(1), b: u16, c: u32, d: i32, e: u53, f: u64, g: bytes(4), pad: zero(8) },
)

const hex = (view: DataView) => Buffer.from(view.buffer, view.byteOffset, view.byteLength).toString('hex')

test('a struct encodes big endian at the offset asked for and touches nothing else', () => {
  const view = new DataView(new ArrayBuffer(32))
  new Uint8Array(view.buffer).fill(0xee)
  Request.encode(view, 2, { magic: 0x25609513, flags: 1, type: 0x0203, cookie: { hi: 0x8899aabb, lo: 0xccddeeff }, offset: 2 ** 32 * 5 + 7, length: 4096 })
  assert.equal(hex(view), 'eeee2560951300010203' + '8899aabbccddeeff' + '0000000500000007' + '00001000' + 'eeee')
  assert.deepEqual(Request.offsets, { magic: 0, flags: 4, type: 6, cookie: 8, offset: 16, length: 24 })
  assert.equal(Request.get.offset(view, 2), 2 ** 32 * 5 + 7)
  assert.equal(Request.get.cookieHi(view, 2), 0x8899aabb)
  assert.equal(Request.get.cookieLo(view, 2), 0xccddeeff)
})

test('a struct encodes little endian, and works in a view that does not start at its buffer', () => {
  const view = new DataView(new ArrayBuffer(64), 8, 44)
  new Uint8Array(view.buffer).fill(0xee)
  All.encode(view, 1, { a: 1, b: 0x0203, c: 4, d: -2, e: 2 ** 53 - 1, f: { hi: 1, lo: 2 }, g: Uint8Array.of(9, 8, 7, 6) })
  assert.equal(
    hex(view),
    'ee' + '0100' + '0302' + '04000000' + 'feffffff' + 'ffffffffffff1f00' + '0200000001000000' + '09080706' + '0000000000000000' + 'eeeeee',
  )
  const values: StructValues<typeof All> = All.decode(view, 1)
  assert.deepEqual(values, { a: 1, b: 0x0203, c: 4, d: -2, e: 2 ** 53 - 1, f: { hi: 1, lo: 2 }, g: Uint8Array.of(9, 8, 7, 6) })
  values.g[0] = 77
  assert.equal(view.getUint8(29), 9, 'decoded bytes are a copy')
})

test('decode returns what encode was given, and setters write what getters read, for random values', () => {
  const prng = new Prng(1)
  const view = new DataView(new ArrayBuffer(80))
  const other = new DataView(new ArrayBuffer(80))
  for (let i = 0; i < 2000; i++) {
    const g = new Uint8Array(4)
    prng.fill(g)
    const e = (prng.u32() % 2 ** 21) * 2 ** 32 + prng.u32()
    const values = { a: prng.below(256), b: prng.below(65536), c: prng.u32(), d: prng.u32() | 0, e, f: { hi: prng.u32(), lo: prng.u32() }, g }
    const at = prng.below(40)
    All.encode(view, at, values)
    assert.deepEqual(All.decode(view, at), values)
    All.set.a(other, at, values.a)
    All.set.b(other, at, values.b)
    All.set.c(other, at, values.c)
    All.set.d(other, at, values.d)
    All.set.e(other, at, values.e)
    All.set.fHi(other, at, values.f.hi)
    All.set.fLo(other, at, values.f.lo)
    const { get } = All
    assert.deepEqual(
      [get.a(other, at), get.b(other, at), get.c(other, at), get.d(other, at), get.e(other, at), get.fHi(other, at), get.fLo(other, at)],
      [values.a, values.b, values.c, values.d, values.e, values.f.hi, values.f.lo],
    )
  }
})

test('bytes that do not fit are refused with a reason', () => {
  const view = new DataView(new ArrayBuffer(40))
  assert.equal(All.invalid(view, 0), null)
  assert.match(All.invalid(view, 1) ?? '', /takes 40 bytes/)
  assert.match(All.invalid(view, -1) ?? '', /takes 40 bytes/)
  assert.throws(() => All.decode(view, 1), DecodeError)
  view.setUint32(16, 2 ** 21, true)
  assert.match(All.invalid(view, 0) ?? '', /All\.e is 2\^53 or more/)
  assert.ok(All.get.e(view, 0) > Number.MAX_SAFE_INTEGER)
  assert.throws(() => All.decode(view, 0), /2\^53/)
  view.setUint32(16, 2 ** 21 - 1, true)
  assert.equal(All.invalid(view, 0), null)
  view.setUint8(39, 1)
  assert.match(All.invalid(view, 0) ?? '', /All\.pad is reserved/)
  All.decode(view, 0)
})

test('a value that does not fit its field is our bug', () => {
  const view = new DataView(new ArrayBuffer(40))
  const good = { a: 1, b: 2, c: 3, d: 4, e: 5, f: { hi: 0, lo: 0 }, g: new Uint8Array(4) }
  All.encode(view, 0, good)
  for (const bad of [
    { a: 256 },
    { a: -1 },
    { b: 65536 },
    { c: 2 ** 32 },
    { c: 1.5 },
    { d: 2 ** 31 },
    { e: 2 ** 53 },
    { e: -1 },
    { e: Number.NaN },
    { f: { hi: 2 ** 32, lo: 0 } },
    { g: new Uint8Array(3) },
  ]) {
    assert.throws(() => All.encode(view, 0, { ...good, ...bad }), /AssertionError|All\./)
  }
})

test('a table that contradicts itself throws when it is declared', () => {
  assert.throws(() => struct('Wrong', { size: 5, endian: 'big', source: 'test' }, { a: u32 }), /its fields are 4 bytes, declared 5/)
  assert.throws(() => struct('Wrong', { size: 4, endian: 'big', source: 'test' }, { 'a-b': u32 }), /cannot name a field/)
  assert.throws(() => struct('Wrong', { size: 12, endian: 'big', source: 'test' }, { a: u64, aHi: u32 }), /same accessor/)
})

test('the documentation rows name every field with its place', () => {
  assert.deepEqual(
    Request.docs.map((row) => [row.name, row.offset, row.size, row.type, row.note]),
    [
      ['magic', 0, 4, 'u32', ''],
      ['flags', 4, 2, 'u16', ''],
      ['type', 6, 2, 'u16', ''],
      ['cookie', 8, 8, 'u64', ''],
      ['offset', 16, 8, 'u53', 'bytes from the start'],
      ['length', 24, 4, 'u32', ''],
    ],
  )
})
