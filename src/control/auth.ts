/**
 * Members prove to each other that they are: every call between nodes is signed with the cluster's key, over its method and all its fields.
 * Against strangers on the network, not against who can read it (TLS is for that).
 */
import { XsanError } from '../base/errors.ts'
import type { Message } from '../env/control.ts'
import type { Hmac } from './options.ts'

const encoder = new TextEncoder()

/** Fields that are not there and fields with their default value are the same message. */
function isDefault(value: unknown): boolean {
  if (value === undefined || value === null || value === 0 || value === '' || value === false) return true
  return Array.isArray(value) || value instanceof Uint8Array ? value.length === 0 : false
}

export class Authenticator {
  readonly #hmac: Hmac
  readonly #key: Uint8Array

  constructor(hmac: Hmac, clusterKey: Uint8Array) {
    this.#hmac = hmac
    this.#key = clusterKey
  }

  sign(method: string, request: Message): Message {
    return { ...request, auth: this.#mac(method, request) }
  }

  /** Throws PERMISSION_DENIED. */
  check(method: string, request: Message): void {
    const auth = request['auth']
    if (!(auth instanceof Uint8Array) || !equalBytes(auth, this.#mac(method, request))) {
      throw new XsanError('PERMISSION_DENIED', `${method}: the caller is not a member of this cluster`, 'Join it with a token: `xsan cluster join TOKEN`.')
    }
  }

  /** Over a text and, behind it, all its byte arrays: one mac per call, however many messages it carries. */
  #mac(method: string, request: Message): Uint8Array {
    const blobs: Uint8Array[] = []
    const text = encoder.encode(`${method}\n${canonical(request, blobs)}`)
    if (blobs.length === 0) return this.#hmac(this.#key, text)
    const all = new Uint8Array(blobs.reduce((sum, { length }) => sum + length, text.length))
    all.set(text)
    let at = text.length
    for (const blob of blobs) {
      all.set(blob, at)
      at += blob.length
    }
    return this.#hmac(this.#key, all)
  }
}

/** More are names that a peer has given, as many as it likes. */
const FIELDS_FEW = 32

/**
 * One text per message, whoever's object it is: fields in the order of their names. Byte arrays go to `blobs`, in order; the text has their lengths
 * (it is self-delimiting: braces, brackets, and JSON for what may hold anything), so that no two messages are the same bytes.
 */
function canonical(value: unknown, blobs: Uint8Array[]): string {
  if (value instanceof Uint8Array) {
    blobs.push(value)
    return `x${value.length}`
  }
  if (Array.isArray(value)) {
    let text = '['
    for (const item of value) text += `${canonical(item, blobs)},`
    return `${text}]`
  }
  if (typeof value === 'number' && Number.isFinite(value)) return `${value}`
  if (typeof value !== 'object' || value === null) return JSON.stringify(value)
  const fields = value as Record<string, unknown>
  let text = '{'
  for (const key of sorted(Object.keys(fields))) if (key !== 'auth' && !isDefault(fields[key])) text += `${key}:${canonical(fields[key], blobs)},`
  return `${text}}`
}

/** In place; a message has few fields, for which this is quicker than the general sort. */
function sorted(names: string[]): string[] {
  if (names.length > FIELDS_FEW) return names.sort()
  for (let i = 1; i < names.length; i++) {
    const name = names[i]!
    let at = i
    for (; at > 0 && names[at - 1]! > name; at--) names[at] = names[at - 1]!
    names[at] = name
  }
  return names
}

/** Takes the same time wherever they differ. */
export function equalBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false
  let difference = 0
  for (let i = 0; i < a.length; i++) difference |= a[i]! ^ b[i]!
  return difference === 0
}

export function toHex(bytes: Uint8Array): string {
  let text = ''
  for (const byte of bytes) text += byte.toString(16).padStart(2, '0')
  return text
}

export function fromHex(text: string): Uint8Array {
  return Uint8Array.from({ length: text.length >> 1 }, (_, i) => Number.parseInt(text.slice(2 * i, 2 * i + 2), 16))
}
