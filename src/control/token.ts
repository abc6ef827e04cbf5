/**
 * Join tokens: what a new node has to know of the cluster, in one line to copy.
 *
 *   xsan1.<base64url of JSON {c: cluster id, u: cluster uuid, a: addresses of members, s: secret}>
 *
 * The cluster keeps only a keyed hash of the secret; a token is good once, until it expires.
 */
import { XsanError } from '../base/errors.ts'
import { toHex } from './auth.ts'
import type { Hmac } from './options.ts'

const PREFIX = 'xsan1.'
const ADDRESSES_MAX = 16
const encoder = new TextEncoder()

export interface JoinToken {
  readonly clusterId: string
  readonly clusterUuid: string
  readonly addresses: readonly string[]
  readonly secret: string
}

export function encodeToken(token: JoinToken): string {
  const json = JSON.stringify({ c: token.clusterId, u: token.clusterUuid, a: token.addresses.slice(0, ADDRESSES_MAX), s: token.secret })
  return PREFIX + Buffer.from(json, 'utf8').toString('base64url')
}

/** Throws INVALID_PARAM. */
export function decodeToken(text: string): JoinToken {
  const trimmed = text.trim()
  const refuse = (why: string) => new XsanError('INVALID_PARAM', `this is no join token: ${why}`, 'Copy the whole line that `xsan cluster add` printed.')
  if (!trimmed.startsWith(PREFIX)) throw refuse(`it does not begin with "${PREFIX}"`)
  if (trimmed.length > 8192) throw refuse('it is too long')
  let json: unknown
  try {
    json = JSON.parse(Buffer.from(trimmed.slice(PREFIX.length), 'base64url').toString('utf8'))
  } catch {
    throw refuse('it is cut short or changed')
  }
  const { c, u, a, s } = (json ?? {}) as Readonly<Record<string, unknown>>
  const isText = (value: unknown): value is string => typeof value === 'string' && value !== ''
  if (!isText(c) || !isText(u) || !isText(s) || !Array.isArray(a) || a.length === 0 || a.length > ADDRESSES_MAX || !a.every(isText)) {
    throw refuse('it lacks a part')
  }
  return { clusterId: c, clusterUuid: u, addresses: a, secret: s }
}

/** What the replicated state keeps of a secret. */
export function hashSecret(hmac: Hmac, clusterUuid: string, secret: string): string {
  return toHex(hmac(encoder.encode(clusterUuid), encoder.encode(secret)))
}
