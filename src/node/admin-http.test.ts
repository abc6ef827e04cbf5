import assert from 'node:assert/strict'
import { connect } from 'node:net'
import test from 'node:test'
import { serveAdminHttp } from './admin-http.ts'

test('a probe gets through although somebody holds hundreds of connections and never ends a request', async (t) => {
  const http = await serveAdminHttp({ host: '127.0.0.1', port: 0, notReady: () => undefined, metrics: async () => 'x 1\n' })
  t.after(() => http.close())
  const held = Array.from({ length: 300 }, () => connect(http.port, '127.0.0.1').on('error', () => undefined))
  t.after(() => {
    for (const socket of held) socket.destroy()
  })
  await Promise.all(held.map((socket) => new Promise<void>((resolve) => socket.write('GET /metrics HTTP/1.1\r\nX: ', () => resolve()))))
  for (const path of ['healthz', 'readyz', 'metrics']) assert.equal((await fetch(`http://127.0.0.1:${http.port}/${path}`)).status, 200, path)
})
