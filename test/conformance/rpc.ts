/** What every Rpc must do. Uses the services of proto/ so that the real one can encode the messages. */
import assert from 'node:assert/strict'
import test from 'node:test'
import { XsanError } from '../../src/base/errors.ts'
import type { CallContext, Message, MethodHandler, Rpc } from '../../src/env/control.ts'
import type { Fixture, MakeFixture } from './fixture.ts'

const TIMEOUT_MS = 5000

export function rpcConformance(name: string, makeFixture: MakeFixture<Rpc>): void {
  const scenario = (title: string, body: (fixture: Fixture<Rpc>) => Promise<void>) =>
    test(`${name}: ${title}`, { timeout: 30_000 }, async () => {
      const fixture = await makeFixture()
      try {
        await body(fixture)
      } finally {
        await fixture.close()
      }
    })

  async function serving(
    fixture: Fixture<Rpc>,
    service: string,
    methods: Record<string, MethodHandler>,
  ): Promise<{ address: string; server: Rpc; port: number; host: string }> {
    const { subject: server, host } = await fixture.create()
    server.serve(service, methods)
    const { port } = await fixture.run(server.listen({ host, port: 0 }))
    return { address: `${host}:${port}`, server, port, host }
  }
  const client = async (fixture: Fixture<Rpc>) => (await fixture.create()).subject
  const rejection = async (promise: Promise<unknown>): Promise<XsanError> => {
    const error = await promise.then(
      () => assert.fail('the call succeeded'),
      (e: unknown) => e,
    )
    assert.ok(error instanceof XsanError, `rejects with XsanError, not ${String(error)}`)
    return error
  }

  scenario('a call carries its fields there and the answer back', async (fixture) => {
    const seen: Message[] = []
    const { address } = await serving(fixture, 'xsan.v1.Volume', {
      Create: async (request) => {
        seen.push(request)
        return { id: 7, name: request['name'], sizeBytes: request['sizeBytes'], uris: ['a', 'b'] }
      },
    })
    const answer = await fixture.run(
      (await client(fixture)).call(address, 'xsan.v1.Volume/Create', { name: 'db1', sizeBytes: 2 ** 53 - 1, syncWhenWrite: false }, { timeoutMs: TIMEOUT_MS }),
    )
    assert.equal(seen[0]?.['name'], 'db1')
    assert.equal(seen[0]?.['sizeBytes'], 2 ** 53 - 1, 'u64 as a number')
    assert.equal(seen[0]?.['syncWhenWrite'], false)
    assert.equal(answer['id'], 7)
    assert.deepEqual(answer['uris'], ['a', 'b'])
  })

  scenario('bytes arrive as they were sent', async (fixture) => {
    const bytes = Uint8Array.from({ length: 100_000 }, (_, i) => i)
    const { address } = await serving(fixture, 'xsan.v1.Peer', {
      RaftStep: async (request) => {
        const [first] = request['messages'] as Uint8Array[]
        assert.deepEqual(new Uint8Array(first!), bytes)
        return {}
      },
    })
    await fixture.run((await client(fixture)).call(address, 'xsan.v1.Peer/RaftStep', { to: 2, messages: [bytes] }, { timeoutMs: TIMEOUT_MS }))
  })

  scenario('a handler sees who asks, how long they wait, and what they sent along', async (fixture) => {
    let seen: CallContext | undefined
    const { address } = await serving(fixture, 'xsan.v1.Cluster', {
      Status: async (_, context) => {
        seen = context
        return {}
      },
    })
    await fixture.run((await client(fixture)).call(address, 'xsan.v1.Cluster/Status', {}, { timeoutMs: TIMEOUT_MS, metadata: { 'xsan-user': 'root' } }))
    assert.ok(seen)
    assert.ok(seen.peer.length > 0)
    assert.ok(seen.timeoutMs > 0 && seen.timeoutMs <= TIMEOUT_MS, `waits ${seen.timeoutMs} ms`)
    assert.equal(seen.metadata['xsan-user'], 'root')
  })

  scenario("a handler's error arrives with its status, message and next step", async (fixture) => {
    const { address } = await serving(fixture, 'xsan.v1.Volume', {
      Info: async () => {
        throw new XsanError('VOLUME_NOT_FOUND', 'no volume "größe"', 'xsan volume list')
      },
    })
    const error = await fixture.run(rejection((await client(fixture)).call(address, 'xsan.v1.Volume/Info', { volume: 'x' }, { timeoutMs: TIMEOUT_MS })))
    assert.deepEqual([error.status, error.code, error.message, error.nextStep], ['VOLUME_NOT_FOUND', 200, 'no volume "größe"', 'xsan volume list'])
  })

  scenario('whatever else a handler throws arrives as INTERNAL', async (fixture) => {
    const { address } = await serving(fixture, 'xsan.v1.Volume', {
      Info: async () => {
        throw new TypeError('x is undefined')
      },
    })
    const error = await fixture.run(rejection((await client(fixture)).call(address, 'xsan.v1.Volume/Info', { volume: 'x' }, { timeoutMs: TIMEOUT_MS })))
    assert.equal(error.status, 'INTERNAL')
  })

  scenario('a handler that takes too long costs the caller its timeout, not more', async (fixture) => {
    const { address } = await serving(fixture, 'xsan.v1.Cluster', { Status: () => new Promise<Message>(() => {}) })
    const error = await fixture.run(rejection((await client(fixture)).call(address, 'xsan.v1.Cluster/Status', {}, { timeoutMs: 100 })))
    assert.equal(error.status, 'NETWORK_TIMEOUT')
  })

  scenario('an address where nobody listens is NODE_UNREACHABLE, naming it', async (fixture) => {
    const { address, server } = await serving(fixture, 'xsan.v1.Cluster', { Status: async () => ({}) })
    await fixture.run(server.close())
    const error = await fixture.run(rejection((await client(fixture)).call(address, 'xsan.v1.Cluster/Status', {}, { timeoutMs: TIMEOUT_MS })))
    assert.equal(error.status, 'NODE_UNREACHABLE')
    assert.ok(error.message.includes(address), error.message)
  })

  scenario('a method that is not served is NOT_SUPPORTED', async (fixture) => {
    const { address } = await serving(fixture, 'xsan.v1.Cluster', { Status: async () => ({}) })
    const error = await fixture.run(rejection((await client(fixture)).call(address, 'xsan.v1.Cluster/Init', {}, { timeoutMs: TIMEOUT_MS })))
    assert.equal(error.status, 'NOT_SUPPORTED')
  })

  scenario('a caller finds a server again that was closed and came back', async (fixture) => {
    const first = await serving(fixture, 'xsan.v1.Cluster', { Status: async () => ({ leader: 'one' }) })
    const caller = await client(fixture)
    const status = () => caller.call(first.address, 'xsan.v1.Cluster/Status', {}, { timeoutMs: 1000 })
    assert.equal((await fixture.run(status()))['leader'], 'one')
    await fixture.run(first.server.close())
    const { subject: second } = await fixture.create()
    second.serve('xsan.v1.Cluster', { Status: async () => ({ leader: 'two' }) })
    await fixture.run(second.listen({ host: first.host, port: first.port }))
    let answer: Message | undefined
    for (let i = 0; i < 100 && answer === undefined; i++) answer = await fixture.run(status().catch(() => undefined))
    assert.equal(answer?.['leader'], 'two')
  })

  scenario('a taken port is BUSY, naming the port', async (fixture) => {
    const first = await serving(fixture, 'xsan.v1.Cluster', { Status: async () => ({}) })
    const { subject: second } = await fixture.create()
    const error = await fixture.run(rejection(second.listen({ host: first.host, port: first.port })))
    assert.equal(error.status, 'BUSY')
    assert.ok(error.message.includes(String(first.port)), error.message)
  })

  scenario('many calls at once are all answered, each with its own answer', async (fixture) => {
    const { address } = await serving(fixture, 'xsan.v1.Volume', { Info: async (request) => ({ name: request['volume'] }) })
    const caller = await client(fixture)
    const names = Array.from({ length: 500 }, (_, i) => `v${i}`)
    const answers = await fixture.run(Promise.all(names.map((volume) => caller.call(address, 'xsan.v1.Volume/Info', { volume }, { timeoutMs: 20_000 }))))
    assert.deepEqual(
      answers.map((answer) => answer['name']),
      names,
    )
  })

  scenario('one-way calls arrive and are not waited for', async (fixture) => {
    const seen: number[] = []
    const { address } = await serving(fixture, 'xsan.v1.Peer', {
      Nudge: (request) => {
        seen.push(Number(request['term']))
        return new Promise<Message>(() => {})
      },
      Query: async () => ({}),
    })
    const caller = await client(fixture)
    for (let term = 1; term <= 50; term++) {
      assert.deepEqual(await fixture.run(caller.call(address, 'xsan.v1.Peer/Nudge', { term }, { timeoutMs: TIMEOUT_MS, oneWay: true })), {})
    }
    for (let i = 0; i < 100 && seen.length < 50; i++) await fixture.run(caller.call(address, 'xsan.v1.Peer/Query', {}, { timeoutMs: TIMEOUT_MS }))
    assert.deepEqual(
      seen.toSorted((a, b) => a - b),
      Array.from({ length: 50 }, (_, i) => i + 1),
    )
  })

  scenario('one-way calls to where nobody listens are lost, or rejected; later ones arrive when somebody does', async (fixture) => {
    const first = await serving(fixture, 'xsan.v1.Peer', { Nudge: async () => ({}) })
    await fixture.run(first.server.close())
    const caller = await client(fixture)
    const nudge = () => caller.call(first.address, 'xsan.v1.Peer/Nudge', { term: 1 }, { timeoutMs: 1000, oneWay: true })
    const outcomes = new Set<string>()
    for (let i = 0; i < 5; i++) {
      outcomes.add(
        await fixture.run(
          nudge().then(
            () => 'lost',
            (error: XsanError) => error.status,
          ),
        ),
      )
    }
    assert.deepEqual(
      [...outcomes].filter((outcome) => outcome !== 'lost' && outcome !== 'NODE_UNREACHABLE'),
      [],
    )
    let arrived = false
    const { subject: second } = await fixture.create()
    second.serve('xsan.v1.Peer', {
      Nudge: async () => {
        arrived = true
        return {}
      },
      Query: async () => ({}),
    })
    await fixture.run(second.listen({ host: first.host, port: first.port }))
    // a refused connection is tried again after a while: attempts between are refused at once
    for (let i = 0; i < 5000 && !arrived; i++) {
      await fixture.run(nudge().catch(() => undefined))
      await fixture.run(caller.call(first.address, 'xsan.v1.Peer/Query', {}, { timeoutMs: 100 }).catch(() => undefined))
    }
    assert.ok(arrived)
  })

  scenario('closing twice is harmless', async (fixture) => {
    const { server } = await serving(fixture, 'xsan.v1.Cluster', { Status: async () => ({}) })
    await fixture.run(server.close())
    await fixture.run(server.close())
  })
}
