import assert from 'node:assert/strict'
import test, { type TestContext } from 'node:test'
import { Client, credentials, status as GrpcStatus, Metadata } from '@grpc/grpc-js'
import { XsanError } from '../../base/errors.ts'
import type { MethodHandler } from '../control.ts'
import { NodeLog } from './log.ts'
import { GrpcRpc } from './rpc.ts'
import { LINK_CALLS_MAX } from './rpc-link.ts'

const quiet = new NodeLog({ level: 'FATAL' })
const QUERY = 'xsan.v1.Peer/Query'
const BOUND = { timeout: 30_000 }

async function pair(t: TestContext, Query: MethodHandler) {
  const [server, caller] = [new GrpcRpc({ log: quiet }), new GrpcRpc({ log: quiet })]
  t.after(() => Promise.all([server.close(), caller.close()]))
  server.serve('xsan.v1.Peer', { Query })
  const { port } = await server.listen({ host: '127.0.0.1', port: 0 })
  const address = `127.0.0.1:${port}`
  return { server, caller, address, port, ask: (queryJson: string, timeoutMs = 10_000) => caller.call(address, QUERY, { queryJson }, { timeoutMs }) }
}

const echo: MethodHandler = async (request) => ({ answerJson: request['queryJson'] })

test('calls on one link are each answered with their own answer, whatever the order of the answers', BOUND, async (t) => {
  const waiting: Array<() => void> = []
  const { ask } = await pair(t, async (request) => {
    await new Promise<void>((resolve) => {
      waiting.push(resolve)
      if (waiting.length === 100) for (const answer of waiting.reverse()) answer()
    })
    return { answerJson: request['queryJson'] }
  })
  const names = Array.from({ length: 100 }, (_, i) => `q${i}`)
  const answers = await Promise.all(names.map((name) => ask(name)))
  assert.deepEqual(
    answers.map((answer) => answer['answerJson']),
    names,
  )
})

test("a handler's error arrives with status, message and next step; any other as INTERNAL; the link goes on", BOUND, async (t) => {
  const { ask, caller, address } = await pair(t, async (request, context) => {
    assert.ok(context.peer.length > 0 && context.timeoutMs > 0 && context.timeoutMs <= 10_000)
    if (request['queryJson'] === 'ours') throw new XsanError('NOT_LEADER', 'größe', 'Ask node 2.')
    if (request['queryJson'] === 'bug') throw new TypeError('x is undefined')
    return {}
  })
  await assert.rejects(ask('ours'), { status: 'NOT_LEADER', message: 'größe', nextStep: 'Ask node 2.' })
  await assert.rejects(ask('bug'), { status: 'INTERNAL' })
  await assert.rejects(caller.call(address, 'xsan.v1.Peer/Nudge', {}, { timeoutMs: 5000 }), { status: 'NOT_SUPPORTED' })
  await ask('fine')
})

test('a handler that takes too long costs its caller the timeout, and calls beside it nothing', BOUND, async (t) => {
  const { ask } = await pair(t, (request, context) => (request['queryJson'] === 'never' ? new Promise(() => undefined) : echo(request, context)))
  const late = assert.rejects(ask('never', 100), { status: 'NETWORK_TIMEOUT', message: /within 100 ms/ })
  assert.equal((await ask('x'))['answerJson'], 'x')
  await late
})

test('when the other side goes away, what waits is NODE_UNREACHABLE; when it is back, the next calls find it', BOUND, async (t) => {
  const { ask, server, port } = await pair(t, (request, context) => (request['queryJson'] === 'never' ? new Promise(() => undefined) : echo(request, context)))
  await ask('x')
  const cut = assert.rejects(ask('never'), (error: XsanError) => ['NODE_UNREACHABLE', 'STOPPING'].includes(error.status))
  await server.close()
  await cut
  await assert.rejects(ask('x'), { status: 'NODE_UNREACHABLE' })
  const next = new GrpcRpc({ log: quiet })
  t.after(() => next.close())
  next.serve('xsan.v1.Peer', { Query: echo })
  await next.listen({ host: '127.0.0.1', port })
  let answer: unknown
  for (let i = 0; i < 200 && answer === undefined; i++) answer = await ask('back', 1000).catch(() => new Promise((resolve) => setTimeout(resolve, 20)))
  assert.deepEqual(answer, { answerJson: 'back' })
})

test('a side that closes answers what is under way, and does not wait for the stream to end by itself', BOUND, async (t) => {
  const arrived = Promise.withResolvers<void>()
  const released = Promise.withResolvers<{ answerJson: string }>()
  const { ask, server } = await pair(t, () => {
    arrived.resolve()
    return released.promise
  })
  const answer = ask('slow')
  await arrived.promise
  const closing = server.close()
  released.resolve({ answerJson: 'late' })
  assert.equal((await answer)['answerJson'], 'late')
  await closing
})

test('the caller that closes gives up what waits as STOPPING', BOUND, async (t) => {
  const { ask, caller } = await pair(t, () => new Promise(() => undefined))
  const waiting = assert.rejects(ask('x'), { status: 'STOPPING' })
  await caller.close()
  await waiting
})

test('one-way calls arrive in order; a reader that does not read holds them back instead of filling memory', BOUND, async (t) => {
  const seen: number[] = []
  const { caller, address } = await pair(t, async (request) => {
    seen.push(String(request['queryJson']).length)
    return {}
  })
  const tell = (bytes: number) => caller.call(address, QUERY, { queryJson: 'x'.repeat(bytes) }, { timeoutMs: 10_000, oneWay: true })
  for (let i = 1; i <= 200; i++) await tell(i)
  while (seen.length < 200) await new Promise((resolve) => setTimeout(resolve, 5))
  assert.deepEqual(
    seen,
    Array.from({ length: 200 }, (_, i) => i + 1),
  )
  // 30 MB through a stream of some KiB
  for (let i = 0; i < 500; i++) await tell(60_000)
  while (seen.length < 700) await new Promise((resolve) => setTimeout(resolve, 5))
  assert.ok(seen.slice(200).every((bytes) => bytes === 60_000))
})

test('more calls than a link takes are refused as BUSY', BOUND, async (t) => {
  const { ask, caller } = await pair(t, () => new Promise(() => undefined))
  const calls = Array.from({ length: LINK_CALLS_MAX + 1 }, () => ask('x').catch((error: XsanError) => error.status))
  assert.equal(await calls.at(-1), 'BUSY')
  await caller.close()
  assert.deepEqual([...new Set(await Promise.all(calls))], ['STOPPING', 'BUSY'])
})

test('garbage on a link is refused; other callers notice nothing', BOUND, async (t) => {
  const { ask, address } = await pair(t, echo)
  const stranger = new Client(address, credentials.createInsecure())
  t.after(() => stranger.close())
  const identity = (bytes: Buffer): Buffer => bytes
  const answersTo = (bytes: Buffer) =>
    new Promise<{ bytes: Buffer; code: number }>((resolve) => {
      const stream = stranger.makeBidiStreamRequest<Buffer, Buffer>('/xsan.v1.Link/Calls', identity, identity, new Metadata())
      let all = Buffer.alloc(0)
      stream.on('data', (answer: Buffer) => {
        all = Buffer.concat([all, answer])
        stream.end()
      })
      stream.on('error', () => undefined)
      stream.on('status', ({ code }) => resolve({ bytes: all, code }))
      stream.write(bytes)
    })
  // no LinkCalls at all
  assert.notEqual((await answersTo(Buffer.alloc(300, 0xff))).code, GrpcStatus.OK)
  // a call whose body is no QueryRequest
  const body = Buffer.alloc(8, 0xff)
  const call = Buffer.concat([Buffer.from([0x08, 1, 0x12, QUERY.length]), Buffer.from(QUERY), Buffer.from([0x18, 100, 0x22, body.length]), body])
  const refused = await answersTo(Buffer.concat([Buffer.from([0x0a, call.length]), call]))
  assert.match(refused.bytes.toString('latin1'), /PROTOCOL_ERROR/)
  assert.equal((await ask('x'))['answerJson'], 'x')
})

test('a caller hears at once that its stream is there: until then gRPC keeps all that it sends', BOUND, async (t) => {
  const { address } = await pair(t, echo)
  const stranger = new Client(address, credentials.createInsecure())
  t.after(() => stranger.close())
  const identity = (bytes: Buffer) => bytes
  const stream = stranger.makeBidiStreamRequest<Buffer, Buffer>('/xsan.v1.Link/Calls', identity, identity, new Metadata())
  stream.on('error', () => undefined)
  const heard = await new Promise<boolean>((resolve) => {
    stream.on('metadata', () => resolve(true))
    setTimeout(() => resolve(false), 10_000)
  })
  stream.cancel()
  assert.ok(heard)
})
