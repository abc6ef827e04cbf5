import assert from 'node:assert/strict'
import { createHmac } from 'node:crypto'
import test from 'node:test'
import type { Incarnation, NodeNumber } from '../base/ids.ts'
import type { Clock, Datagram, Log, TimerId } from '../env/control.ts'
import { HeartbeatHead } from '../wire/heartbeat.ts'
import { encodeCommand } from './command.ts'
import { Heartbeats } from './heartbeat.ts'
import { ControlStateMachine } from './machine.ts'
import type { Hmac } from './options.ts'
import type { ClusterState } from './state.ts'

const hmac: Hmac = (key, bytes) => createHmac('sha256', key).update(bytes).digest()
const node = (n: number) => n as NodeNumber

function twoNodes(uuid: string): ClusterState {
  const machine = new ControlStateMachine()
  let index = 0
  const run = (command: Uint8Array) => machine.apply({ index: ++index, term: 1, command })
  run(
    encodeCommand('cluster.init', {
      id: 'c',
      uuid,
      key: '00',
      slotCount: 1,
      wallMs: 0,
      settings: {},
      firstNode: { id: 'a', key: '11'.repeat(32), zone: '', rack: '' },
    }),
  )
  run(encodeCommand('token.add', { hash: 't', nodeId: '', expiresAtMs: 9, wallMs: 0 }))
  const none = { grpc: '', data: '', nbd: '', nbdSocket: '', admin: '' }
  run(
    encodeCommand('node.admit', {
      tokenHash: 't',
      joinId: 'j',
      nodeId: 'b',
      zone: '',
      rack: '',
      key: '22'.repeat(32),
      version: '',
      featureMax: 1,
      wallMs: 1,
      ...none,
    }),
  )
  for (const n of [1, 2])
    run(encodeCommand('node.register', { node: node(n), zone: '', rack: '', version: '', dataDir: '', bootId: '', featureMax: 1, disks: [], ...none }))
  return machine.state
}

/** One end: what it sent, what it logged. */
function make(state: ClusterState, n: number, options: { multicast?: boolean; incarnation?: number; taken?: number } = {}) {
  const sent: Array<{ bytes: Uint8Array; to: string }> = []
  const logged: string[] = []
  const told: string[] = []
  let receive: (bytes: Uint8Array, from: string) => void = () => undefined
  let nowMs = 100
  let taken = options.taken ?? 0
  let beat: () => void = () => undefined
  const datagram: Datagram = {
    async bind(_options, onMessage) {
      if (taken-- > 0) throw new Error('taken')
      receive = onMessage
      return { port: 1, multicast: options.multicast ?? true }
    },
    send: (bytes, to) => sent.push({ bytes, to }),
    async close() {},
  }
  const clock: Clock = {
    nowMs: () => nowMs,
    wallMs: () => 0,
    setTimer: (_delayMs, fn) => {
      beat = fn
      return {} as TimerId
    },
    clearTimer: () => undefined,
  }
  const log: Log = { log: (_level, _message, fields) => logged.push(String(fields?.['reason'])), child: () => log }
  const beats = new Heartbeats({
    datagram,
    clock,
    log,
    hmac,
    state,
    node: node(n),
    incarnation: () => (options.incarnation ?? 1) as Incarnation,
    grpc: `10.0.0.${n}:8080`,
    host: 'h',
    port: 1,
    multicastGroup: '239.0.0.1',
    multicastPort: 5,
    intervalMs: 1000,
    onAddress: (of, grpc) => told.push(`${of} at ${grpc}`),
    unicastAddress: (other) => `10.0.0.${other}:1`,
    report: () => ({
      ready: true,
      tableRevision: 7,
      opsPerSecond: 5,
      bytesPerSecond: 4096,
      queueDepth: 6,
      syncingSlots: 1,
      behindBlocks: 2,
      term: 3,
      disks: [{ disk: 4, state: 1, usedPercent: 96, journalPercent: 12 }],
    }),
  })
  return {
    beats,
    sent,
    logged,
    told,
    receive: (bytes: Uint8Array, from = '10.0.0.9:1') => receive(bytes, from),
    advance(ms: number) {
      nowMs += ms
      beat()
    },
  }
}

test('a heartbeat carries load, disks and lag, and counts only once', async () => {
  const state = twoNodes('0123-45')
  const a = make(state, 1)
  const b = make(state, 2)
  await a.beats.start()
  await b.beats.start()
  const { bytes } = a.sent[0]!
  b.receive(bytes)
  assert.deepEqual(b.beats.heard.get(node(1)), {
    incarnation: 1,
    atMs: 100,
    from: '10.0.0.9:1',
    ready: true,
    tableRevision: 7,
    opsPerSecond: 5,
    bytesPerSecond: 4096,
    queueDepth: 6,
    syncingSlots: 1,
    behindBlocks: 2,
    term: 3,
    disks: [{ disk: 4, state: 1, usedPercent: 96, journalPercent: 12 }],
  })
  b.receive(bytes)
  assert.equal(b.beats.received, 1)
  assert.equal(b.beats.refusals.duplicate, 1)
  a.advance(1000)
  b.receive(a.sent.at(-1)!.bytes)
  b.receive(bytes)
  assert.equal(b.beats.refusals.replayed, 1)
  assert.deepEqual(b.logged, ['replayed'])
})

test('forged, foreign, fenced and malformed ones are counted and logged once', async () => {
  const state = twoNodes('0123-45')
  const b = make(state, 2)
  await b.beats.start()
  const a = make(state, 1)
  await a.beats.start()
  const good = a.sent[0]!.bytes
  const changed = good.slice()
  changed[HeartbeatHead.offsets.opsPerSecond]! ^= 1
  for (let i = 0; i < 5; i++) b.receive(changed)
  assert.equal(b.beats.refusals.forged, 5)
  const foreign = make(twoNodes('9999'), 1)
  await foreign.beats.start()
  b.receive(foreign.sent[0]!.bytes)
  assert.equal(b.beats.refusals.otherCluster, 1)
  const newer = make(state, 1, { incarnation: 2 })
  await newer.beats.start()
  const c = make(state, 2)
  await c.beats.start()
  c.receive(newer.sent[0]!.bytes)
  c.receive(good)
  assert.equal(c.beats.refusals.fenced, 1)
  for (let length = 0; length < good.length; length++) b.receive(good.slice(0, length))
  b.receive(new Uint8Array(2000).fill(0x58))
  assert.equal(b.beats.refusals.malformed, good.length + 1)
  assert.deepEqual([b.logged, c.logged], [['forged', 'otherCluster', 'malformed'], ['fenced']])
  assert.equal(b.beats.heard.size, 0)
  b.receive(good)
  assert.equal(b.beats.heard.size, 1, 'the rest still counts')
})

test('one that is not registered yet says where it is, and no more; who is fenced, replayed or forged says nothing', async () => {
  const state = twoNodes('0123-45')
  const b = make(state, 2)
  await b.beats.start()
  const starting = make(state, 1, { incarnation: 0 })
  await starting.beats.start()
  b.receive(starting.sent[0]!.bytes)
  assert.deepEqual([b.told, b.beats.heard.size, b.beats.received], [['1 at 10.0.0.1:8080'], 0, 0])
  const changed = starting.sent[0]!.bytes.slice()
  changed[changed.length - 1]! ^= 1
  b.receive(changed)
  const a = make(state, 1)
  await a.beats.start()
  b.receive(a.sent[0]!.bytes)
  b.receive(a.sent[0]!.bytes)
  assert.deepEqual([b.told.length, b.beats.heard.size], [2, 1])
  assert.deepEqual(b.logged, ['forged'])
})

test('unicast goes to those who are not heard, always where there is no multicast', async () => {
  const state = twoNodes('0123-45')
  const a = make(state, 1)
  const b = make(state, 2)
  await a.beats.start()
  await b.beats.start()
  assert.deepEqual(
    a.sent.map(({ to }) => to),
    ['239.0.0.1:5', '10.0.0.2:1'],
  )
  a.receive(b.sent[0]!.bytes)
  a.advance(1000)
  assert.deepEqual(
    a.sent.slice(2).map(({ to }) => to),
    ['239.0.0.1:5'],
  )
  a.advance(5000)
  assert.deepEqual(
    a.sent.slice(3).map(({ to }) => to),
    ['239.0.0.1:5', '10.0.0.2:1'],
  )
  const alone = make(state, 1, { multicast: false })
  await alone.beats.start()
  assert.deepEqual(
    alone.sent.map(({ to }) => to),
    ['10.0.0.2:1'],
  )
})

test('a port that something else holds is told once, and had as soon as it is free', async () => {
  const a = make(twoNodes('c'), 1, { taken: 3 })
  await a.beats.start()
  assert.deepEqual([a.sent.length, a.logged.length], [0, 1])
  for (let i = 0; i < 3; i++) {
    a.advance(5000)
    await new Promise(setImmediate)
  }
  assert.deepEqual([a.sent.length > 0, a.logged.length], [true, 2])
})
