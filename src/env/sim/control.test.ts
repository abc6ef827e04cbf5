import assert from 'node:assert/strict'
import test from 'node:test'
import { copyOf, portPair, SimControlNetwork } from './control.ts'
import { SimHost } from './host.ts'
import { SimIoQueue } from './ioqueue.ts'
import { SimNetwork } from './network.ts'
import { World } from './world.ts'

function make(seed = 1) {
  const world = new World({ seed })
  const network = new SimNetwork(world)
  const shared = new SimControlNetwork(network)
  const hosts = [1, 2].map((n) => new SimHost(network, { name: `h${n}`, address: `10.0.0.${n}` }))
  return { world, network, shared, hosts }
}
const bytes = (text: string) => new TextEncoder().encode(text)

test('a message between threads is copied as structured clones are', () => {
  const shared = new Uint8Array(new SharedArrayBuffer(4))
  const message = {
    text: 'a',
    none: undefined,
    nothing: null,
    big: 1n,
    list: [1, [{ deep: bytes('abc') }]],
    words: new Uint32Array([1, 2]),
    map: new Map([[1, { a: 1 }]]),
    shared,
  }
  const copy = copyOf(message)
  assert.deepEqual(copy, structuredClone(message))
  assert.notEqual((copy.list[1] as [{ deep: Uint8Array }])[0].deep, (message.list[1] as [{ deep: Uint8Array }])[0].deep)
  assert.notEqual(copy.words.buffer, message.words.buffer)
  shared[0] = 7
  assert.equal(copy.shared[0], 7, 'shared memory stays shared')
  assert.throws(() => copyOf({ answer: () => undefined }), /cannot carry a function/)
})

test('a call to a process killed while it serves ends with NODE_UNREACHABLE; to a silent host with the timeout', async () => {
  const { world, shared, hosts, network } = make()
  const server = hosts[1]!.start('s')
  const env = shared.env(server)
  env.rpc.serve('x', { Wait: () => new Promise(() => {}), Now: async () => ({ ok: true }) })
  await world.settle(env.rpc.listen({ host: '10.0.0.2', port: 50 }), 10)
  const client = shared.env(hosts[0]!.start('c')).rpc
  const call = (method: string, timeoutMs: number) => client.call('10.0.0.2:50', `x/${method}`, {}, { timeoutMs })
  network.cut(hosts[0]!, hosts[1]!)
  await assert.rejects(world.settle(call('Now', 500), 1000), { status: 'NETWORK_TIMEOUT' })
  const late = call('Now', 5000)
  await world.runFor(100)
  network.healAll()
  assert.deepEqual(await world.settle(late, 1000), { ok: true })
  const waiting = call('Wait', 60_000)
  world.schedule(100, 'kill', () => server.kill())
  await assert.rejects(world.settle(waiting, 200), { status: 'NODE_UNREACHABLE' })
  assert.equal(client.callsOut, 0)
})

test('a batch acknowledged survives; of those on their way any beginning does', async () => {
  const survivors = new Set<number>()
  for (let seed = 1; seed <= 30; seed++) {
    const { world, shared, hosts } = make(seed)
    const process = hosts[0]!.start('p')
    const { kv } = shared.env(process)
    await world.settle(kv.batch([{ type: 'put', key: 'a', value: bytes('1') }]), 100)
    for (const key of ['b', 'c', 'd']) void kv.batch([{ type: 'put', key, value: bytes('2') }])
    hosts[0]!.losePower()
    hosts[0]!.powerOn()
    const again = shared.env(hosts[0]!.start('p')).kv
    const keys = (await world.settle(again.scan(''), 100)).map((entry) => entry.key).join('')
    assert.ok('abcd'.startsWith(keys) && keys.length >= 1, keys)
    survivors.add(keys.length)
  }
  assert.deepEqual([...survivors].sort(), [1, 2, 3, 4])
})

test('datagrams are lost, doubled and late when told so', async () => {
  const { world, shared, hosts } = make()
  shared.datagramFaults.loss = 0.3
  shared.datagramFaults.duplicate = 0.3
  shared.datagramFaults.late = 0.3
  const a = shared.env(hosts[0]!.start('a')).datagram
  const b = shared.env(hosts[1]!.start('b')).datagram
  const got: number[] = []
  await world.settle(
    b.bind({ host: '10.0.0.2', port: 9 }, (message) => got.push(message[0]!)),
    10,
  )
  await world.settle(
    a.bind({ host: '10.0.0.1', port: 9 }, () => {}),
    10,
  )
  for (let i = 0; i < 100; i++) {
    a.send(Uint8Array.of(i), '10.0.0.2:9')
    await world.runFor(1)
  }
  await world.runFor(100)
  assert.ok(new Set(got).size < 100, 'some are lost')
  assert.ok(new Set(got).size < got.length, 'some come twice')
  assert.ok(
    got.some((n, i) => i > 0 && n < got[i - 1]!),
    'some overtake',
  )
})

test('a clock that drifts counts by its rate, and its timers with it', async () => {
  const { world, shared, hosts } = make()
  hosts[0]!.setDrift(0.1)
  const { clock } = shared.env(hosts[0]!.start('p'))
  const before = clock.nowMs()
  await world.runFor(1000)
  assert.ok(Math.abs(clock.nowMs() - before - 1100) < 1)
  const began = clock.nowMs()
  let fired = 0
  clock.setTimer(1100, () => {
    fired = clock.nowMs() - began
  })
  await world.runFor(1005)
  assert.ok(fired >= 1100 && fired < 1105)
})

test('messages between the main thread and a reactor keep their order and are copies', async () => {
  const { world, hosts } = make()
  const process = hosts[0]!.start('p')
  const queue = new SimIoQueue({ process, name: 'q' })
  queue.runReactor(() => queue.turn(0))
  const { control, reactor } = portPair<{ n: number[] }, { n: number }>(process, queue)
  const down: number[] = []
  const up: number[] = []
  reactor.onMessage((message) => {
    down.push(message.n[0]!)
    reactor.send({ n: message.n[0]! })
  })
  control.onMessage((message) => up.push(message.n))
  for (let i = 0; i < 50; i++) {
    const message = { n: [i] }
    control.send(message)
    message.n[0] = -1
  }
  await world.runFor(100)
  const expected = Array.from({ length: 50 }, (_, i) => i)
  assert.deepEqual(down, expected)
  assert.deepEqual(up, expected)
})
