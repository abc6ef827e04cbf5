import assert from 'node:assert/strict'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import test from 'node:test'
import { NodeDatagram } from './datagram.ts'

test('a UDP port that something else holds is named, with the process that holds it and the key to change', async (t) => {
  const other = createSocket('udp4')
  t.after(() => other.close())
  other.bind({ address: '127.0.0.1', port: 0 })
  await once(other, 'listening')
  const { port } = other.address()
  const datagram = new NodeDatagram({ log: { log() {}, child: () => assert.fail() } })
  await assert.rejects(
    datagram.bind({ host: '127.0.0.1', port }, () => {}),
    {
      status: 'BUSY',
      message: new RegExp(`^UDP port ${port} on 127\\.0\\.0\\.1 is taken by PID ${process.pid} \\(`),
      nextStep: /cluster\.bind_port/,
    },
  )
})
