import assert from 'node:assert/strict'
import { createHmac } from 'node:crypto'
import test from 'node:test'
import { Authenticator } from './auth.ts'
import type { Hmac } from './options.ts'
import { decodeToken, encodeToken, hashSecret } from './token.ts'

const hmac: Hmac = (key, bytes) => createHmac('sha256', key).update(bytes).digest()
const KEY = new Uint8Array(32).fill(7)

test('a signature survives the wire: order of fields, defaults and kinds of byte arrays do not matter', () => {
  const auth = new Authenticator(hmac, KEY)
  const signed = auth.sign('Report', { sender: { node: 2, incarnation: 3 }, messages: [Uint8Array.of(1, 2)], text: 'x' })
  auth.check('Report', {
    text: 'x',
    reason: '',
    upToDate: [],
    disk: 0,
    messages: [Buffer.from([1, 2])],
    sender: { nodeId: '', incarnation: 3, node: 2, clusterUuid: '' },
    auth: Buffer.from(signed['auth'] as Uint8Array),
  })
})

test('any change, another method, another key, no signature: refused', () => {
  const auth = new Authenticator(hmac, KEY)
  const signed = auth.sign('Renew', { sender: { node: 2 }, tableRevision: 5 })
  const refused = (fn: () => void) => assert.throws(fn, { status: 'PERMISSION_DENIED' })
  refused(() => auth.check('Renew', { ...signed, tableRevision: 6 }))
  refused(() => auth.check('Renew', { ...signed, sender: { node: 3 } }))
  refused(() => auth.check('Report', signed))
  refused(() => auth.check('Renew', { ...signed, auth: new Uint8Array(32) }))
  refused(() => auth.check('Renew', { sender: { node: 2 }, tableRevision: 5 }))
  refused(() => new Authenticator(hmac, new Uint8Array(32)).check('Renew', signed))
})

test('bytes cannot be moved from one byte array to its neighbour', () => {
  const auth = new Authenticator(hmac, KEY)
  const signed = auth.sign('RaftStep', { sender: { node: 2 }, messages: [Uint8Array.of(1, 2), Uint8Array.of(3)] })
  auth.check('RaftStep', signed)
  const moved = [
    [Uint8Array.of(1), Uint8Array.of(2, 3)],
    [Uint8Array.of(1, 2, 3)],
    [Uint8Array.of(3), Uint8Array.of(1, 2)],
    [Uint8Array.of(1, 2), Uint8Array.of(4)],
  ]
  for (const messages of moved) assert.throws(() => auth.check('RaftStep', { ...signed, messages }), { status: 'PERMISSION_DENIED' })
})

test('a join token goes round, and what is no token is refused with a reason', () => {
  const token = { clusterId: 'c', clusterUuid: 'u', addresses: ['a:1', 'b:2'], secret: 's' }
  const line = encodeToken(token)
  assert.deepEqual(decodeToken(` ${line}\n`), token)
  for (const bad of [
    '',
    'hello',
    'xsan1.',
    'xsan1.####',
    line.slice(0, -4),
    `xsan1.${Buffer.from('{"c":"c","u":"u","a":[],"s":"s"}').toString('base64url')}`,
    `xsan1.${'A'.repeat(9000)}`,
  ]) {
    assert.throws(() => decodeToken(bad), { status: 'INVALID_PARAM' })
  }
  assert.notEqual(hashSecret(hmac, 'u', 's'), hashSecret(hmac, 'u2', 's'))
})
