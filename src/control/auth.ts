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

  #mac(method: string, request: Message): Uint8Array {
    return this.#hmac(this.#key, encoder.encode(`${method}\n${this.#canonical(request)}`))
  }

  /** One text per message, whoever's object it is: fields in the order of their names, bytes by their own mac. */
  #canonical(value: unknown): string {
    if (value instanceof Uint8Array) return `x${toHex(this.#hmac(this.#key, value))}`
    if (Array.isArray(value)) return `[${value.map((item) => this.#canonical(item)).join(',')}]`
    if (typeof value === 'object' && value !== null) {
      const fields = Object.entries(value)
        .filter(([key, field]) => key !== 'auth' && !isDefault(field))
        .sort(([a], [b]) => (a < b ? -1 : 1))
      return `{${fields.map(([key, field]) => `${key}:${this.#canonical(field)}`).join(',')}}`
    }
    return JSON.stringify(value)
  }
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
