/**
 * Fixed byte layouts, declared once as a table of fields in the order of the bytes.
 *
 *   export const NbdRequest = struct('NbdRequest', { size: 28, endian: 'big', source: 'NBD proto.md' },
 *     { magic: u32, flags: u16, type: u16, cookie: u64, offset: u53, length: u32 })
 *
 *   off the hot path   NbdRequest.encode(view, at, { magic, flags, type, cookie: { hi, lo }, offset, length })
 *                      const request = NbdRequest.decode(view, at)          an object; `bytes` fields are copies
 *   per I/O            NbdRequest.get.offset(view, at)                      no allocation
 *                      NbdRequest.set.cookieHi(view, at, hi)
 *                      at + NbdRequest.offsets.length
 *   the peer's bytes   const reason = NbdRequest.invalid(view, at)          null, or why they must be refused
 *
 * The derived functions are straight-line code generated when the module loads; a table whose fields do not sum to `size` throws there.
 *
 * Invariants: `encode` asserts that every value fits its field (a wrong value is our bug). `set` does not check: it truncates as DataView does.
 * `get` of a u53 field returns 2^53 or more exactly when the bytes hold a number that does not fit; `invalid` and `decode` refuse those.
 * `zero` fields are written as zeros by `encode`; `decode` ignores them, `invalid` refuses other content.
 */
import { assert } from '../base/assert.ts'

/** A 64-bit value as two unsigned 32-bit halves: hot paths keep BigInt out. */
export interface U64 {
  readonly hi: number
  readonly lo: number
}

type NumberKind = 'u8' | 'u16' | 'u32' | 'i32' | 'u53'
type Kind = NumberKind | 'u64' | 'bytes' | 'zero'

export interface Field<K extends Kind = Kind> {
  readonly kind: K
  readonly size: number
  /** For the documentation page. */
  readonly note: string
}

function field<K extends Kind>(kind: K, size: number): Field<K> {
  return { kind, size, note: '' }
}

export const u8 = field('u8', 1)
export const u16 = field('u16', 2)
export const u32 = field('u32', 4)
export const i32 = field('i32', 4)
/** Eight bytes whose value must be below 2^53: a JS number. */
export const u53 = field('u53', 8)
/** Eight bytes of any value: cookies, and ids that are compared only. */
export const u64 = field('u64', 8)
/** `count` bytes taken as they are. */
export const bytes = (count: number): Field<'bytes'> => field('bytes', count)
/** `count` reserved bytes: written as zeros. */
export const zero = (count: number): Field<'zero'> => field('zero', count)
/** The same field with a remark for the documentation page. */
export function note<K extends Kind>(of: Field<K>, text: string): Field<K> {
  return { ...of, note: text }
}

type Fields = Readonly<Record<string, Field>>
type Valued<F extends Fields> = { [K in keyof F & string]: F[K]['kind'] extends 'zero' ? never : K }[keyof F & string]
type ValueOf<K extends Kind> = K extends NumberKind ? number : K extends 'u64' ? U64 : Uint8Array
type Accessors<F extends Fields, Fn> = {
  readonly [K in keyof F & string as F[K]['kind'] extends NumberKind ? K : F[K]['kind'] extends 'u64' ? `${K}Hi` | `${K}Lo` : never]: Fn
}

/** One row of the documentation page. */
export interface StructDocRow {
  readonly name: string
  readonly offset: number
  readonly size: number
  readonly type: string
  readonly note: string
}

export interface StructOptions {
  /** Bytes in all; the fields must sum to it. */
  readonly size: number
  readonly endian: 'big' | 'little'
  /** Where the layout is defined: an RFC section, a document, a design note. */
  readonly source: string
}

export interface Struct<F extends Fields> {
  readonly name: string
  readonly size: number
  readonly endian: 'big' | 'little'
  readonly source: string
  /** Byte offset of each field from the start of the struct. */
  readonly offsets: { readonly [K in keyof F & string]: number }
  readonly get: Accessors<F, (view: DataView, at: number) => number>
  readonly set: Accessors<F, (view: DataView, at: number, value: number) => void>
  encode(view: DataView, at: number, values: ValuesOf<F>): void
  /** Throws {@link DecodeError} when `invalid` gives a reason other than non-zero reserved bytes. */
  decode(view: DataView, at: number): ValuesOf<F>
  /** Why the bytes at `at` are not this struct (too short, a number too large, reserved bytes not zero), or null. */
  invalid(view: DataView, at: number): string | null
  readonly docs: readonly StructDocRow[]
}

type ValuesOf<F extends Fields> = { readonly [K in Valued<F>]: ValueOf<F[K]['kind']> }
/** The values of a struct: `type NbdRequest = StructValues<typeof NbdRequest>`. */
export type StructValues<S> = S extends Struct<infer F> ? ValuesOf<F> : never

/** The peer's, or the disk's, bytes do not fit the layout. */
export class DecodeError extends Error {
  override name = 'DecodeError'
}

const TWO_32 = 0x1_0000_0000
const GETTER = { u8: 'getUint8', u16: 'getUint16', u32: 'getUint32', i32: 'getInt32' } as const
const SETTER = { u8: 'setUint8', u16: 'setUint16', u32: 'setUint32', i32: 'setInt32' } as const
const RANGE = { u8: [0, 0xff], u16: [0, 0xffff], u32: [0, 0xffffffff], i32: [-0x80000000, 0x7fffffff], u53: [0, Number.MAX_SAFE_INTEGER] } as const

interface Support {
  assert: typeof assert
  DecodeError: typeof DecodeError
}

export function struct<const F extends Fields>(name: string, options: StructOptions, fields: F): Struct<F> {
  const little = options.endian === 'little'
  const at = (offset: number) => (offset === 0 ? 'at' : `at + ${offset}`)
  const read = (kind: keyof typeof GETTER, offset: number) => `view.${GETTER[kind]}(${at(offset)}${kind === 'u8' ? '' : `, ${little}`})`
  const write = (kind: keyof typeof SETTER, offset: number, value: string) =>
    `view.${SETTER[kind]}(${at(offset)}, ${value}${kind === 'u8' ? '' : `, ${little}`})`
  /** Offsets of the high and the low half of an eight-byte field. */
  const high = (offset: number) => (little ? offset + 4 : offset)
  const low = (offset: number) => (little ? offset : offset + 4)

  const offsets: Record<string, number> = {}
  const docs: StructDocRow[] = []
  const getters: string[] = []
  const setters: string[] = []
  const checks: string[] = []
  const encodes: string[] = []
  const decodes: string[] = []
  const refuseLarge: string[] = []
  const refuseNonZero: string[] = []

  let offset = 0
  for (const [key, { kind, size, note }] of Object.entries(fields)) {
    assert(/^[A-Za-z_][A-Za-z0-9_]*$/.test(key), `${name}: "${key}" cannot name a field`)
    assert(Number.isInteger(size) && size > 0, `${name}.${key}: size ${size}`)
    offsets[key] = offset
    docs.push({ name: key, offset, size, type: kind === 'bytes' || kind === 'zero' ? `${kind}(${size})` : kind, note })
    const value = `values.${key}`
    switch (kind) {
      case 'u8':
      case 'u16':
      case 'u32':
      case 'i32':
        getters.push(`${key}: (view, at) => ${read(kind, offset)}`)
        setters.push(`${key}: (view, at, value) => { ${write(kind, offset, 'value')} }`)
        encodes.push(write(kind, offset, value))
        decodes.push(`${key}: ${read(kind, offset)}`)
        break
      case 'u53':
        getters.push(`${key}: (view, at) => ${read('u32', high(offset))} * ${TWO_32} + ${read('u32', low(offset))}`)
        setters.push(`${key}: (view, at, value) => { ${write('u32', high(offset), `value / ${TWO_32}`)}; ${write('u32', low(offset), 'value')} }`)
        encodes.push(write('u32', high(offset), `${value} / ${TWO_32}`), write('u32', low(offset), value))
        decodes.push(`${key}: ${read('u32', high(offset))} * ${TWO_32} + ${read('u32', low(offset))}`)
        refuseLarge.push(`if (${read('u32', high(offset))} >= ${2 ** 21}) return ${JSON.stringify(`${name}.${key} is 2^53 or more`)}`)
        break
      case 'u64':
        for (const [half, where] of [
          ['Hi', high(offset)],
          ['Lo', low(offset)],
        ] as const) {
          getters.push(`${key}${half}: (view, at) => ${read('u32', where)}`)
          setters.push(`${key}${half}: (view, at, value) => { ${write('u32', where, 'value')} }`)
          encodes.push(write('u32', where, `${value}.${half.toLowerCase()}`))
        }
        decodes.push(`${key}: { hi: ${read('u32', high(offset))}, lo: ${read('u32', low(offset))} }`)
        break
      case 'bytes':
        checks.push(`support.assert(${value}.length === ${size}, ${JSON.stringify(`${name}.${key} takes ${size} bytes`)})`)
        encodes.push(`new Uint8Array(view.buffer, view.byteOffset + ${at(offset)}, ${size}).set(${value})`)
        decodes.push(`${key}: new Uint8Array(view.buffer, view.byteOffset + ${at(offset)}, ${size}).slice()`)
        break
      case 'zero':
        encodes.push(`new Uint8Array(view.buffer, view.byteOffset + ${at(offset)}, ${size}).fill(0)`)
        refuseNonZero.push(
          `for (let i = 0; i < ${size}; i++) if (view.getUint8(${at(offset)} + i) !== 0) return ${JSON.stringify(`${name}.${key} is reserved and not zero`)}`,
        )
        break
    }
    if (kind !== 'bytes' && kind !== 'zero') {
      const numbers = kind === 'u64' ? [`${value}.hi`, `${value}.lo`] : [value]
      const [min, max] = RANGE[kind === 'u64' ? 'u32' : kind]
      for (const n of numbers) {
        checks.push(
          `if (!(Number.isInteger(${n}) && ${n} >= ${min} && ${n} <= ${max})) support.assert(false, ${JSON.stringify(`${name}.${key}: not a ${kind}: `)} + ${n})`,
        )
      }
    }
    offset += size
  }
  assert(offset === options.size, `${name}: its fields are ${offset} bytes, declared ${options.size}`)
  const accessors = [...getters.map((g) => g.slice(0, g.indexOf(':')))]
  assert(new Set(accessors).size === accessors.length, `${name}: two fields derive the same accessor name`)

  const short = `if (!(at >= 0 && at + ${offset} <= view.byteLength)) return ${JSON.stringify(`${name} takes ${offset} bytes, fewer are here`)}`
  const source = `'use strict'
    const malformed = (view, at) => { ${[short, ...refuseLarge].join('\n')}\nreturn null }
    return {
      get: { ${getters.join(',\n')} },
      set: { ${setters.join(',\n')} },
      encode(view, at, values) { ${[...checks, ...encodes].join('\n')} },
      decode(view, at) {
        const reason = malformed(view, at)
        if (reason !== null) throw new support.DecodeError(reason)
        return { ${decodes.join(',\n')} }
      },
      invalid(view, at) {
        const reason = malformed(view, at)
        if (reason !== null) return reason
        ${refuseNonZero.join('\n')}
        return null
      },
    }`
  const support: Support = { assert, DecodeError }
  const derived = new Function('support', source)(support) as Pick<Struct<F>, 'get' | 'set' | 'encode' | 'decode' | 'invalid'>
  return { name, size: options.size, endian: options.endian, source: options.source, offsets: offsets as Struct<F>['offsets'], docs, ...derived }
}
