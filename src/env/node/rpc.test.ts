import assert from 'node:assert/strict'
import { connect } from 'node:net'
import test from 'node:test'
import { Client, credentials } from '@grpc/grpc-js'
import { GRPC_CODES } from './grpc-errors.ts'
import { NodeLog } from './log.ts'
import { GrpcRpc } from './rpc.ts'

const quiet = new NodeLog({ level: 'FATAL' })

function sendRaw(port: number, bytes: Uint8Array): Promise<void> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1', () => socket.write(bytes))
    socket.on('error', () => {})
    socket.on('close', () => resolve())
    setTimeout(() => socket.destroy(), 500)
  })
}

test('garbage on the gRPC port closes that connection and disturbs nobody else', { timeout: 20_000 }, async (t) => {
  const rpc = new GrpcRpc({ log: quiet })
  t.after(() => rpc.close())
  rpc.serve('xsan.v1.Cluster', { Status: async () => ({ leader: 'node-1' }) })
  const { port } = await rpc.listen({ host: '127.0.0.1', port: 0 })
  const random = Uint8Array.from({ length: 70_000 }, (_, i) => (i * 7919) >> 3)
  const preface = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')
  const hugeFrame = Buffer.concat([preface, Buffer.from([0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]), random])
  for (const bytes of [random, Buffer.from('GET / HTTP/1.1\r\n\r\n'), hugeFrame, Buffer.concat([preface, random])]) {
    await sendRaw(port, bytes)
    const answer = await rpc.call(`127.0.0.1:${port}`, 'xsan.v1.Cluster/Status', {}, { timeoutMs: 2000 })
    assert.equal(answer['leader'], 'node-1')
  }
})

test('a message beyond the largest size is refused as REQUEST_TOO_LARGE and the server goes on', { timeout: 20_000 }, async (t) => {
  const rpc = new GrpcRpc({ log: quiet })
  t.after(() => rpc.close())
  rpc.serve('xsan.v1.Peer', { RaftStep: async () => ({}) })
  const { port } = await rpc.listen({ host: '127.0.0.1', port: 0 })
  const send = (bytes: number) => rpc.call(`127.0.0.1:${port}`, 'xsan.v1.Peer/RaftStep', { messages: [new Uint8Array(bytes)] }, { timeoutMs: 5000 })
  await assert.rejects(send(65 * 1024 * 1024), { status: 'REQUEST_TOO_LARGE' })
  await send(1024 * 1024)
})

test('a message of very many fields, or a long one where short ones are expected, is refused before it becomes objects', { timeout: 20_000 }, async (t) => {
  const rpc = new GrpcRpc({ log: quiet })
  t.after(() => rpc.close())
  let taken = 0
  const take = async () => {
    taken++
    return {}
  }
  rpc.serve('xsan.v1.Peer', { Register: take, RaftStep: take, Report: take })
  const { port } = await rpc.listen({ host: '127.0.0.1', port: 0 })
  const client = new Client(`127.0.0.1:${port}`, credentials.createInsecure())
  t.after(() => client.close())
  const send = (method: string, bytes: Buffer) =>
    new Promise<void>((resolve, reject) => {
      const raw = (value: Buffer) => value
      client.makeUnaryRequest(method, raw, raw, bytes, { deadline: Date.now() + 5000 }, (error) => (error === null ? resolve() : reject(error)))
    })
  // empty disks of a registration, empty messages of Raft: two bytes each
  for (const [method, tag] of [
    ['Register', 0x3a],
    ['RaftStep', 0x1a],
  ] as const) {
    await assert.rejects(send(`/xsan.v1.Peer/${method}`, Buffer.alloc(2 * 1_000_000, Buffer.from([tag, 0]))), method)
    await send(`/xsan.v1.Peer/${method}`, Buffer.alloc(2 * 1000, Buffer.from([tag, 0])))
  }
  // calls of a link: the stream ends
  const stream = client.makeBidiStreamRequest(
    '/xsan.v1.Link/Calls',
    (value: Buffer) => value,
    (value: Buffer) => value,
  )
  const over = new Promise<Error>((resolve) => stream.on('error', resolve))
  stream.on('data', () => assert.fail('it was answered'))
  stream.write(Buffer.alloc(2 * 1_000_000, Buffer.from([0x0a, 0])))
  assert.match(String(await over), /deserializing/)
  // 8 MiB of packed numbers
  const length = Buffer.from([0x12, 0x80, 0x80, 0x80, 0x04])
  await assert.rejects(send('/xsan.v1.Peer/Report', Buffer.concat([length, Buffer.alloc(8 * 1024 * 1024)])))
  assert.equal(taken, 2)
})

test('a field that the message type does not have is a bug that is told, not dropped', { timeout: 20_000 }, async (t) => {
  const rpc = new GrpcRpc({ log: quiet })
  t.after(() => rpc.close())
  rpc.serve('xsan.v1.Cluster', { Status: async () => ({ laeder: 'node-1' }) })
  const { port } = await rpc.listen({ host: '127.0.0.1', port: 0 })
  await assert.rejects(rpc.call(`127.0.0.1:${port}`, 'xsan.v1.Cluster/Status', {}, { timeoutMs: 2000 }), { status: 'INTERNAL', message: /no field laeder/ })
  await assert.rejects(rpc.call(`127.0.0.1:${port}`, 'xsan.v1.Cluster/Status', { vebrose: true }, { timeoutMs: 2000 }), /no field vebrose/)
})

test('a taken port says which process holds it', { timeout: 20_000 }, async (t) => {
  const rpc = new GrpcRpc({ log: quiet })
  const other = new GrpcRpc({ log: quiet })
  t.after(() => Promise.all([rpc.close(), other.close()]))
  const { port } = await rpc.listen({ host: '127.0.0.1', port: 0 })
  await assert.rejects(other.listen({ host: '127.0.0.1', port }), { status: 'BUSY', message: new RegExp(`port ${port} .* taken by PID ${process.pid}`) })
})

test('every failure but SUCCESS has a gRPC code that is not OK', () => {
  for (const [name, code] of Object.entries(GRPC_CODES)) assert.equal(code === 0, name === 'SUCCESS', name)
})

test('a call without a deadline, or with one far away, is worked on for a time all the same', { timeout: 20_000 }, async (t) => {
  const rpc = new GrpcRpc({ log: quiet })
  t.after(() => rpc.close())
  const times: number[] = []
  rpc.serve('xsan.v1.Cluster', {
    Status: async (_, { timeoutMs }) => {
      times.push(timeoutMs)
      return {}
    },
  })
  const { port } = await rpc.listen({ host: '127.0.0.1', port: 0 })
  const client = new Client(`127.0.0.1:${port}`, credentials.createInsecure())
  t.after(() => client.close())
  const raw = (value: Buffer) => value
  for (const options of [{}, { deadline: Date.now() + 1e9 }]) {
    await new Promise<void>((resolve, reject) => {
      client.makeUnaryRequest('/xsan.v1.Cluster/Status', raw, raw, Buffer.alloc(0), options, (error) => (error === null ? resolve() : reject(error)))
    })
  }
  assert.deepEqual(times, [60_000, 600_000])
})
