import assert from 'node:assert/strict'
import test from 'node:test'
import { ChainCluster, type ChainNode, pattern, TestClient } from '../../test/support/chain-cluster.ts'
import { type Done, WriteFlag } from '../base/request.ts'
import { Status } from '../base/status.ts'
import { MiB } from '../base/units.ts'
import { ArenaAllocator } from '../env/arena-allocator.ts'
import { slotOf } from '../placement/ring.ts'
import { CHANNELS_PER_CLIENT } from '../store/channel-rows.ts'
import { CallKind } from '../wire/peer.ts'
import { CALLS_MAX } from './calls.ts'

/** Chains of nodes 1 and 2; node 3 has clients only. */
async function twoAndClient(options: Partial<ConstructorParameters<typeof ChainCluster>[0]> = {}) {
  const cluster = new ChainCluster({ nodes: 3, slots: 1, chainOf: () => [1, 2], ...options })
  await cluster.start()
  const client = new TestClient(cluster.node(3))
  assert.equal(await cluster.world.settle(client.write(0, 0, pattern(1)), 5000), Status.SUCCESS)
  await cluster.until('quiet', () => cluster.quiet)
  return { cluster, client }
}

/** What becomes of a call of the node's client; status -1 until it ends. */
function called(node: ChainNode, call: (done: Done) => void): { status: number } {
  const outcome = { status: -1 }
  node.process.schedule(0, 'a call', () => {
    call((_row, status) => {
      outcome.status = status
    })
    node.plane.settle()
  })
  return outcome
}

/** Node 3 knows a newer version of the chain than nodes 1 and 2, which hear nothing. */
function newerAt3(cluster: ChainCluster): void {
  for (const number of [1, 2]) cluster.cutOff.add(number)
  cluster.leaseMs = 3_600_000
  cluster.chains[0] = { ...cluster.chains[0]!, version: (cluster.chains[0]!.version + 1) as never }
  cluster.publish([0])
}

test('an update that waits for a newer table is given back when its life is over, a read after a while', { timeout: 60_000 }, async () => {
  const { cluster, client } = await twoAndClient({ plane: { settings: { writeLifeMs: 400 } } })
  for (const node of cluster.nodes) node.send({ type: 'lease', untilMs: node.host.bootMs() + 3_600_000, revision: 0 as never })
  newerAt3(cluster)
  await cluster.world.runFor(10)
  const write = client.write(0, 4096, pattern(2))
  const read = client.read(0, 0, 1)
  await cluster.world.runFor(300)
  const [head, tail] = [cluster.node(1).plane, cluster.node(2).plane]
  assert.equal(head.writes.updates.inUse, 1)
  assert.equal(head.reads.reads.inUse + tail.reads.reads.inUse, 1)
  await cluster.world.runFor(150)
  assert.equal(head.counters.updatesExpired, 1)
  await cluster.world.runFor(2000)
  assert.ok(head.counters.readsRefused + tail.counters.readsRefused >= 1)
  assert.equal(client.pending, 2, 'both are tried again')
  cluster.cutOff.clear()
  for (const number of [1, 2]) cluster.sendTable(cluster.node(number))
  assert.equal(await cluster.world.settle(write, 5000), Status.SUCCESS)
  assert.deepEqual((await cluster.world.settle(read, 5000)).bytes, pattern(1))
})

test('a read whose page is committed nowhere ends with its time', { timeout: 60_000 }, async () => {
  const { cluster } = await twoAndClient({ plane: { settings: { retryTotalMs: 3000 } } })
  for (const node of cluster.nodes) node.send({ type: 'lease', untilMs: node.host.bootMs() + 3_600_000, revision: 0 as never })
  cluster.node(2).process.freeze()
  const client = new TestClient(cluster.node(1))
  void client.write(0, 0, pattern(2))
  await cluster.world.runFor(10)
  const { status } = await cluster.world.settle(client.read(0, 0, 1), 10_000)
  assert.equal(status, Status.VOLUME_UNAVAILABLE)
})

test('a read whose page is never committed here is answered by another replica', { timeout: 60_000 }, async () => {
  const { cluster } = await twoAndClient({ plane: { settings: { retryTotalMs: 8000 } } })
  // its successor had no extent for a block that was under way when its disk became full: the slot stands still
  const { store } = cluster.node(2)
  Object.assign(store, { capacityBytes: store.usedBytes })
  Object.defineProperty(store, 'rejectCreate', { value: false })
  const client = new TestClient(cluster.node(1))
  void client.write(1, 0, pattern(2))
  await cluster.world.runFor(100)
  assert.equal(cluster.node(1).plane.replicas.records.inUse, 1)
  const { status, bytes } = await cluster.world.settle(client.read(1, 0, 1), 10_000)
  assert.deepEqual([status, bytes], [Status.SUCCESS, new Uint8Array(4096)])
})

test('a call that a peer does not answer ends with its session', { timeout: 60_000 }, async () => {
  const { cluster } = await twoAndClient()
  for (const node of cluster.nodes) node.send({ type: 'lease', untilMs: node.host.bootMs() + 3_600_000, revision: 0 as never })
  const { plane } = cluster.node(1)
  cluster.node(2).plane.calls.serve(CallKind.FLUSH, () => new Promise(() => {}))
  const peer = plane.peers.indexOf(2)
  const { session } = plane.peers.peers[peer]!
  let status = -1
  void plane.calls.call(peer, CallKind.FLUSH, new Uint8Array(16), 0, 0).then((result) => {
    status = result.status
  })
  await cluster.world.runFor(29_000)
  assert.equal(status, -1)
  assert.equal(plane.peers.peers[peer]!.session, session)
  await cluster.world.runFor(2000)
  assert.equal(status, Status.CONNECTION_LOST)
  await cluster.until('a new session', () => plane.peers.isUp(peer) && plane.peers.peers[peer]!.session > session)
})

test('an update that its head had no memory for, for long, is not ordered any more: its client has gone, and another has written since', {
  timeout: 60_000,
}, async () => {
  const cluster = new ChainCluster({ nodes: 3, slots: 1, chainOf: () => [1] })
  await cluster.start()
  const [gone, other] = [new TestClient(cluster.node(2)), new TestClient(cluster.node(3))]
  assert.equal(await cluster.world.settle(gone.write(0, 0, pattern(1)), 5000), Status.SUCCESS)
  const { orphan } = gone.orphanable(0, 0, pattern(2, MiB))
  const { alloc } = ArenaAllocator.prototype
  ArenaAllocator.prototype.alloc = function (bytes) {
    return bytes < MiB ? alloc.call(this, bytes) : -1
  }
  try {
    await cluster.world.runFor(20)
    orphan()
    await cluster.world.runFor(1000)
    assert.equal(gone.pending, 1)
    assert.equal(await cluster.world.settle(other.write(0, 0, pattern(3)), 5000), Status.SUCCESS)
    await cluster.world.runFor(9000)
  } finally {
    ArenaAllocator.prototype.alloc = alloc
  }
  await cluster.world.runFor(5000)
  assert.deepEqual((await cluster.world.settle(other.read(0, 0, 1), 5000)).bytes, pattern(3))
  assert.equal(gone.pending, 0)
})

test('an update behind much else on a slow link is not ordered after its life: its client has gone, and another has written since', {
  timeout: 60_000,
}, async () => {
  const network = { delayMinMs: 12, delayMaxMs: 12, slow: 0, fragment: 0, windowMinBytes: 16 * 1024, windowMaxBytes: 16 * 1024 }
  const cluster = new ChainCluster({ nodes: 3, slots: 1, chainOf: () => [1], network, queue: { arenaBytes: 256 * MiB } })
  await cluster.start()
  const [gone, other] = [new TestClient(cluster.node(2)), new TestClient(cluster.node(3))]
  assert.equal(await cluster.world.settle(gone.write(0, 0, pattern(1)), 5000), Status.SUCCESS)
  const before = [1, 2, 3, 4, 5, 6].map((index) => gone.write(index, 0, pattern(index, MiB)))
  await cluster.world.runFor(10)
  const { status, orphan } = gone.orphanable(0, 0, pattern(2))
  await cluster.world.runFor(10)
  const goneMs = cluster.world.nowMs
  orphan()
  await cluster.world.runFor(500)
  assert.equal(await cluster.world.settle(other.write(0, 0, pattern(3)), 1000), Status.SUCCESS)
  const isOld = async () => Buffer.compare((await cluster.world.settle(other.read(0, 0, 1), 5000)).bytes, pattern(3)) !== 0
  const seen: number[] = []
  while (cluster.world.nowMs < goneMs + 12_000) {
    await cluster.world.runFor(50)
    if (await isOld()) seen.push(cluster.world.nowMs - goneMs)
  }
  assert.deepEqual(seen, [])
  assert.notEqual(await cluster.world.settle(status, 5000), Status.SUCCESS)
  for (const write of before) assert.equal(await cluster.world.settle(write, 60_000), Status.SUCCESS)
})

test('nor where the way is so slow that the head hears late of the end of the session', { timeout: 60_000 }, async () => {
  const network = { delayMinMs: 1, delayMaxMs: 1, slow: 0, fragment: 0, windowMinBytes: MiB, windowMaxBytes: MiB }
  const cluster = new ChainCluster({ nodes: 3, slots: 1, chainOf: () => [1], network, queue: { arenaBytes: 256 * MiB } })
  await cluster.start()
  const [gone, other] = [new TestClient(cluster.node(2)), new TestClient(cluster.node(3))]
  assert.equal(await cluster.world.settle(gone.write(0, 0, pattern(1)), 5000), Status.SUCCESS)
  for (const [from, to] of [
    [1, 2],
    [2, 1],
  ] as const) {
    cluster.network.link(cluster.node(from).host, cluster.node(to).host).extraDelayMs = 900
  }
  const before = [1, 2, 3, 4].map((index) => gone.write(index, 0, pattern(index, MiB)))
  await cluster.world.runFor(10)
  const { orphan } = gone.orphanable(0, 0, pattern(2))
  await cluster.world.runFor(10)
  orphan()
  await cluster.world.runFor(500)
  assert.equal(await cluster.world.settle(other.write(0, 0, pattern(3)), 1000), Status.SUCCESS)
  await cluster.world.runFor(5000)
  cluster.network.healAll()
  await cluster.world.runFor(5000)
  assert.deepEqual((await cluster.world.settle(other.read(0, 0, 1), 5000)).bytes, pattern(3))
  for (const write of before) assert.equal(await cluster.world.settle(write, 60_000), Status.SUCCESS)
})

test('a write whose client has gone is not tried again when the rest of its life is less than its way may take', { timeout: 60_000 }, async () => {
  const cluster = new ChainCluster({ nodes: 3, slots: 1, chainOf: () => [1] })
  await cluster.start()
  const [gone, other] = [new TestClient(cluster.node(2)), new TestClient(cluster.node(3))]
  assert.equal(await cluster.world.settle(gone.write(0, 0, pattern(1)), 5000), Status.SUCCESS)
  cluster.leaseMs = 0
  await cluster.world.runFor(2500)
  const { status, orphan } = gone.orphanable(0, 0, pattern(2))
  await cluster.world.runFor(100)
  orphan()
  await cluster.world.runFor(2700)
  cluster.network.link(cluster.node(2).host, cluster.node(1).host).extraDelayMs = 1500
  cluster.leaseMs = 2000
  for (const node of cluster.nodes) cluster.grant(node)
  await cluster.world.runFor(300)
  assert.equal(await cluster.world.settle(other.write(0, 0, pattern(3)), 1000), Status.SUCCESS)
  await cluster.world.runFor(5000)
  assert.deepEqual((await cluster.world.settle(other.read(0, 0, 1), 5000)).bytes, pattern(3))
  assert.notEqual(await cluster.world.settle(status, 5000), Status.SUCCESS)
})

for (const exporter of ['lives', 'stands still']) {
  test(`a write is not ordered after its life where the way has become slow bit by bit (the exporter ${exporter}): its client has gone, and another has written since`, {
    timeout: 60_000,
  }, async () => {
    const network = { delayMinMs: 1, delayMaxMs: 1, slow: 0, fragment: 0 }
    const cluster = new ChainCluster({ nodes: 3, slots: 1, chainOf: () => [1], network })
    await cluster.start()
    const [gone, other] = [new TestClient(cluster.node(2)), new TestClient(cluster.node(3))]
    assert.equal(await cluster.world.settle(gone.write(0, 0, pattern(1)), 5000), Status.SUCCESS)
    // nobody tells the head that the exporter's lease is over
    cluster.leaseMs = 60_000
    for (const node of cluster.nodes) cluster.grant(node)
    const link = cluster.network.link(cluster.node(2).host, cluster.node(1).host)
    // the head never hears nothing for 2 s
    for (; link.extraDelayMs < 6000; link.extraDelayMs += 300) await cluster.world.runFor(250)
    const { orphan } = gone.orphanable(0, 0, pattern(2))
    await cluster.world.runFor(10)
    orphan()
    await cluster.world.runFor(10)
    if (exporter === 'stands still') cluster.node(2).process.freeze()
    await cluster.world.runFor(4500)
    assert.equal(await cluster.world.settle(other.write(0, 0, pattern(3)), 1000), Status.SUCCESS)
    await cluster.world.runFor(5000)
    cluster.network.healAll()
    cluster.node(2).process.thaw()
    await cluster.world.runFor(10_000)
    assert.deepEqual((await cluster.world.settle(other.read(0, 0, 1), 5000)).bytes, pattern(3))
    assert.equal(gone.pending, 0)
  })
}

test('no update goes to a peer whose clock is not known; it does as soon as that has been told', { timeout: 60_000 }, async () => {
  const { cluster, client } = await twoAndClient()
  const { peers, counters } = cluster.node(3).plane
  const asked = counters.remoteUpdates
  peers.clockOf(peers.indexOf(1)).forget()
  const write = client.write(0, 0, pattern(2))
  await cluster.world.runFor(1)
  assert.equal(counters.remoteUpdates, asked)
  assert.equal(await cluster.world.settle(write, 600), Status.SUCCESS)
})

test('an update that may be ordered for longer than a write lives, as when the clock of its head has stopped, ends the session, and what was believed of that clock', {
  timeout: 60_000,
}, async () => {
  const { cluster, client } = await twoAndClient()
  const head = cluster.node(1)
  const { peers } = cluster.node(3).plane
  const index = peers.indexOf(1)
  const { session } = peers.peers[index]!
  peers.clockOf(index).learn(head.host.bootMs() + 60_000, cluster.node(3).host.bootMs())
  assert.equal(await cluster.world.settle(client.write(0, 0, pattern(2)), 5000), Status.SUCCESS)
  assert.ok(head.told.some((message) => message.type === 'log' && JSON.stringify(message).includes('further ahead than a write lives')))
  assert.ok(peers.peers[index]!.session > session)
})

for (const where of ['here', 'elsewhere']) {
  test(`a write that waits at its head (${where}) is not ordered after its life when it is noticed late that its client has gone`, {
    timeout: 60_000,
  }, async () => {
    const cluster = new ChainCluster({ nodes: 2, slots: 1, chainOf: () => [1] })
    await cluster.start()
    const client = new TestClient(cluster.node(where === 'here' ? 1 : 2))
    assert.equal(await cluster.world.settle(client.write(0, 0, pattern(1)), 5000), Status.SUCCESS)
    await cluster.until('quiet', () => cluster.quiet)
    // of a part of a page: it has to be read first
    cluster.node(1).storeOptions.readMs = 1500
    const { status, orphan } = client.orphanable(0, 512, pattern(2, 512))
    await cluster.world.runFor(100)
    assert.equal(await cluster.world.settle(client.write(0, 4096, pattern(3)), 1000), Status.SUCCESS)
    orphan(cluster.world.nowMs - 3000)
    await cluster.world.runFor(3000)
    cluster.node(1).storeOptions.readMs = 0
    assert.notEqual(await cluster.world.settle(status, 5000), Status.SUCCESS)
    assert.deepEqual((await cluster.world.settle(client.read(0, 0, 1), 5000)).bytes, pattern(1))
  })
}

test('a write on a slow link is not ordered any more when its client has been told that nobody knows what became of it', { timeout: 60_000 }, async () => {
  const network = { delayMinMs: 12, delayMaxMs: 12, slow: 0, fragment: 0, windowMinBytes: 16 * 1024, windowMaxBytes: 16 * 1024 }
  const plane = { settings: { retryTotalMs: 1000 } }
  const cluster = new ChainCluster({ nodes: 3, slots: 1, chainOf: () => [1], network, plane, queue: { arenaBytes: 256 * MiB } })
  await cluster.start()
  const [slow, other] = [new TestClient(cluster.node(2)), new TestClient(cluster.node(3))]
  const before = [1, 2, 3, 4, 5, 6].map((index) => slow.write(index, 0, pattern(index, MiB)))
  await cluster.world.runFor(10)
  assert.notEqual(await cluster.world.settle(slow.write(0, 0, pattern(2)), 10_000), Status.SUCCESS)
  assert.equal(await cluster.world.settle(other.write(0, 0, pattern(3)), 1000), Status.SUCCESS)
  await cluster.world.runFor(15_000)
  assert.deepEqual((await cluster.world.settle(other.read(0, 0, 1), 5000)).bytes, pattern(3))
  await cluster.world.settle(Promise.all(before), 60_000)
})

test('the session with a head that holds a write of a client that has gone stays when what was asked later has been answered', {
  timeout: 60_000,
}, async () => {
  const cluster = new ChainCluster({ nodes: 3, slots: 2, chainOf: (slot) => (slot === 0 ? [1, 2] : [1]) })
  await cluster.start()
  const indexOf = (slot: number) => [0, 1, 2, 3, 4, 5, 6, 7].find((index) => slotOf(1, index, 2) === slot)!
  const client = new TestClient(cluster.node(3))
  cluster.leaseMs = 60_000
  for (const node of cluster.nodes) cluster.grant(node)
  await cluster.world.runFor(5)
  const { peers } = cluster.node(3).plane
  const { session } = peers.peers[peers.indexOf(1)]!
  cluster.node(2).process.freeze()
  const { orphan } = client.orphanable(indexOf(0), 0, pattern(1))
  await cluster.world.runFor(20)
  orphan()
  const later = client.write(indexOf(1), 0, pattern(2))
  assert.equal(await cluster.world.settle(later, 1000), Status.SUCCESS)
  await cluster.world.runFor(5000)
  assert.equal(client.pending, 1)
  assert.deepEqual([peers.isUp(peers.indexOf(1)), peers.peers[peers.indexOf(1)]!.session], [true, session])
})

test('answers that take long over a slow link are waited for as long as more of them comes', { timeout: 60_000 }, async () => {
  const network = { delayMinMs: 100, delayMaxMs: 100, slow: 0, windowMinBytes: 32 * 1024, windowMaxBytes: 32 * 1024 }
  const cluster = new ChainCluster({ nodes: 2, slots: 1, chainOf: () => [1, 2], network })
  await cluster.start()
  await cluster.kill(2)
  const client = new TestClient(cluster.node(1))
  for (let i = 0; i < 12; i++) assert.equal(await cluster.world.settle(client.write(i >> 2, (i & 3) * MiB, pattern(i, MiB)), 5000), Status.SUCCESS)
  cluster.restart(2)
  await cluster.until('resynced', () => cluster.allServing, 120_000)
  assert.equal(cluster.node(2).plane.counters.sessionsLost, 0)
})

test('one peer cannot take all rows of reads', { timeout: 60_000 }, async () => {
  const { cluster } = await twoAndClient({ plane: { limits: { readsMax: 64 } } })
  const { plane, storeOptions } = cluster.node(1)
  const local = new TestClient(cluster.node(1))
  storeOptions.readMs = 200
  cluster.node(2).storeOptions.readMs = 200
  const greedy = new TestClient(cluster.node(3))
  const reads = Array.from({ length: 300 }, () => greedy.read(0, 0, 1))
  await cluster.world.runFor(20)
  assert.equal(cluster.node(2).plane.reads.reads.inUse, 32, 'half of what there is')
  assert.ok(cluster.node(2).plane.counters.readsRefused > 0)
  await cluster.world.runFor(150)
  assert.equal(plane.reads.reads.inUse, 32)
  assert.equal((await cluster.world.settle(local.read(0, 0, 1), 250)).status, Status.SUCCESS)
  for (const { status } of await cluster.world.settle(Promise.all(reads), 60_000)) assert.equal(status, Status.SUCCESS)
})

test('a peer whose reads are refused faster than it can be told so keeps its session', { timeout: 60_000 }, async () => {
  const network = { windowMinBytes: 64 * 1024, windowMaxBytes: 64 * 1024, delayMinMs: 1, delayMaxMs: 1 }
  const cluster = new ChainCluster({ nodes: 2, slots: 1, chainOf: () => [1], plane: { limits: { readsMax: 512 } }, network })
  await cluster.start()
  const { plane } = cluster.node(1)
  const greedy = new TestClient(cluster.node(2))
  assert.equal(await cluster.world.settle(greedy.write(0, 0, pattern(1)), 5000), Status.SUCCESS)
  // the lane has enough to do, and the rows are taken
  cluster.node(1).storeOptions.readMs = 20
  const reads = Array.from({ length: 16 }, () => greedy.read(0, 0, 256))
  await cluster.world.runFor(25)
  cluster.node(1).storeOptions.readMs = 500
  reads.push(...Array.from({ length: 3000 }, () => greedy.read(0, 0, 1)))
  await cluster.world.runFor(400)
  assert.ok(plane.counters.readsRefused > 1500, 'more than the lane takes')
  cluster.node(1).storeOptions.readMs = 0
  for (const { status } of await cluster.world.settle(Promise.all(reads), 60_000)) assert.equal(status, Status.SUCCESS)
  assert.equal(plane.counters.sessionsLost, 0)
})

test('channel rows of a removed node go, on every disk; those of a node that is yet to come do not', { timeout: 60_000 }, async () => {
  const cluster = new ChainCluster({ nodes: 4, slots: 1, chainOf: () => [1, 2] })
  await cluster.start()
  const last = new TestClient(cluster.node(4))
  for (const client of [new TestClient(cluster.node(3)), last]) assert.equal(await cluster.world.settle(client.write(0, 0, pattern(1)), 5000), Status.SUCCESS)
  const rows = (number: number, node: number) => cluster.node(number).store.rows.lookup((node << 8) >>> 0, 1, 1) >= 0
  const seen = () => [1, 2].flatMap((number) => [3, 4, 5].map((node) => rows(number, node)))
  // a record of node 5 has come from a head that knows it already
  for (const number of [1, 2]) cluster.node(number).store.rows.set((5 << 8) >>> 0, 1, 1, 1, 0, 1, 1)
  assert.deepEqual(seen(), [true, true, true, true, true, true])
  await cluster.kill(3)
  cluster.nodes.splice(2, 1)
  cluster.publish([0])
  await cluster.world.runFor(50)
  assert.deepEqual(seen(), [false, true, true, false, true, true])
})

test('a row that is used again in the turn in which its earlier user went is not given up', { timeout: 60_000 }, async () => {
  const { cluster } = await twoAndClient({ plane: { settings: { writeLifeMs: 400 } } })
  const node = cluster.node(1)
  const ends: Array<[number, number]> = []
  const done = (row: number, status: number) => {
    ends.push([row, status])
  }
  const page = node.queue.arena.alloc(2 * 4096)
  const { client } = node
  cluster.node(2).process.freeze()
  node.process.schedule(0, 'calls', () => {
    client.write(1 as never, 0, 0, 4096, page, 0, done, 7)
    client.orphan(done, 7)
    client.write(1 as never, 0, 4096, 4096, page + 1, 0, done, 7)
    node.plane.settle()
  })
  await cluster.world.runFor(600)
  const { counters } = node.plane
  assert.equal(counters.cancels, 0, 'ordered writes are not given up while they are under way')
  cluster.node(2).process.thaw()
  await cluster.until('both end', () => ends.length === 2)
  assert.deepEqual(
    ends.map(([, status]) => status),
    [Status.SUCCESS, Status.SUCCESS],
  )
})

test('the first turn after a standstill of more than a life orders nothing of what waited before it, under a new lease either', {
  timeout: 60_000,
}, async () => {
  const { cluster } = await twoAndClient({ plane: { settings: { retryFirstMs: 5000, retryMaxMs: 5000 } } })
  const node = cluster.node(1)
  cluster.leaseMs = 0
  await cluster.world.runFor(2500)
  const client = new TestClient(node)
  const write = client.orphanable(0, 0, pattern(9))
  await cluster.world.runFor(100)
  const tries = node.plane.counters.updatesRefused
  assert.ok(tries > 0, 'its lease is over: it waits')
  node.process.freeze()
  const frozenMs = node.queue.nowMs
  // a lease is there before the first turn; as an export does, the test drops its connections at the end of that
  node.send({ type: 'lease', untilMs: node.host.bootMs() + 60_000, revision: 0 as never })
  await cluster.world.runFor(4100)
  cluster.leaseMs = 60_000
  for (const each of cluster.nodes) cluster.grant(each)
  let isFirst = true
  node.queue.onTurnEnd(() => {
    if (isFirst) write.orphan(frozenMs)
    isFirst = false
  })
  node.process.thaw()
  assert.notEqual(await cluster.world.settle(write.status, 20_000), Status.SUCCESS)
  assert.deepEqual((await cluster.world.settle(new TestClient(cluster.node(3)).read(0, 0, 1), 5000)).bytes, pattern(1))
})

test('when nobody is left who could say what became of a write, its client is told so in bounded time, and the cancel goes on', {
  timeout: 60_000,
}, async () => {
  const { cluster } = await twoAndClient({ plane: { settings: { retryTotalMs: 1000, writeLifeMs: 300 } } })
  const node = cluster.node(3)
  const client = new TestClient(node)
  assert.equal(await cluster.world.settle(client.write(0, 0, pattern(1)), 5000), Status.SUCCESS)
  // ordered, and then nobody
  const calledMs = cluster.world.nowMs
  cluster.node(2).process.freeze()
  const write = client.write(0, 0, pattern(2))
  await cluster.world.runFor(50)
  cluster.leaseMs = 0
  await cluster.kill(1)
  assert.equal(await cluster.world.settle(write, 5000), Status.NETWORK_TIMEOUT)
  const tookMs = cluster.world.nowMs - calledMs
  assert.ok(tookMs >= 1300 && tookMs < 2500, `${tookMs} ms`)
  assert.equal(node.plane.counters.updatesUnknown, 1)
  assert.equal(node.plane.resources['clientOperations'], 1, 'its cancel')
  // what came after it never reached anybody, and that is known. Node 2 has been silent for so long that it is not asked
  await cluster.world.runFor(1000)
  assert.equal(await cluster.world.settle(client.write(0, 0, pattern(3)), 5000), Status.VOLUME_UNAVAILABLE)
})

test('a write that nobody can decide and nobody waits for gives back its row and its buffer, and the cancel goes on', { timeout: 60_000 }, async () => {
  const cluster = new ChainCluster({ nodes: 1, slots: 1, plane: { settings: { retryTotalMs: 5000 } } })
  await cluster.start()
  const node = cluster.node(1)
  const client = new TestClient(node)
  assert.equal(await cluster.world.settle(client.write(0, 0, pattern(1)), 5000), Status.SUCCESS)
  // the only copy's disk fails under it
  node.storeOptions.stageMs = 1e9
  const { status, orphan } = client.orphanable(0, 0, pattern(2))
  await cluster.world.runFor(10)
  orphan()
  node.store.fail('it hangs')
  await cluster.world.runFor(8000)
  assert.equal(client.pending, 1)
  assert.equal(await cluster.world.settle(status, 5000), Status.NETWORK_TIMEOUT)
  assert.equal(node.plane.resources['clientOperations'], 1, 'its cancel')
})

test('the head is here and cut off with its record: the client is told that nobody knows, its buffer is its own again, and the record keeps what was written', {
  timeout: 60_000,
}, async () => {
  const { cluster } = await twoAndClient({ plane: { settings: { retryTotalMs: 1000, writeLifeMs: 300 } } })
  const node = cluster.node(1)
  const page = node.queue.arena.alloc(4096)
  const { arena } = node.queue
  arena.bytes.set(pattern(2), page * 4096)
  cluster.cutOff.add(1)
  for (const other of [2, 3]) {
    cluster.network.cut(node.host, cluster.node(other).host)
    cluster.network.cut(cluster.node(other).host, node.host)
  }
  const write = called(node, (done) => node.client.write(1 as never, 0, 0, 4096, page, 0, done, 7))
  await cluster.until('an answer', () => write.status >= 0, 5000)
  assert.equal(write.status, Status.NETWORK_TIMEOUT)
  arena.bytes.fill(0xee, page * 4096, (page + 1) * 4096)
  assert.equal(node.plane.replicas.records.inUse, 1, 'still to be forwarded')
  cluster.network.healAll()
  cluster.cutOff.clear()
  await cluster.until('quiet', () => cluster.quiet, 10_000)
  assert.deepEqual((await cluster.world.settle(new TestClient(cluster.node(2)).read(0, 0, 1), 5000)).bytes, pattern(2))
  assert.equal(node.plane.resources['clientOperations'], 0)
})

for (const what of ['before its disk has the write', 'when it has']) {
  test(`the head is here, cut off, and its disk fails ${what}: the client is told that nobody knows, and its buffer is free when the disk lets go`, {
    timeout: 60_000,
  }, async () => {
    const { cluster } = await twoAndClient({ plane: { settings: { retryTotalMs: 1000, writeLifeMs: 300 } } })
    const node = cluster.node(1)
    const page = node.queue.arena.alloc(4096)
    cluster.cutOff.add(1)
    for (const other of [2, 3]) {
      cluster.network.cut(node.host, cluster.node(other).host)
      cluster.network.cut(cluster.node(other).host, node.host)
    }
    if (what !== 'when it has') node.storeOptions.stageMs = 1e9
    const write = called(node, (done) => node.client.write(1 as never, 0, 0, 4096, page, 0, done, 7))
    await cluster.world.runFor(100)
    assert.equal(node.plane.replicas.records.inUse, 1)
    let letGo = () => {}
    const ended = new Promise<void>((resolve) => {
      letGo = resolve
    })
    node.store.ioEnded = () => ended
    node.store.fail('it hangs')
    await cluster.until('an answer', () => write.status >= 0, 5000)
    assert.equal(write.status, Status.NETWORK_TIMEOUT)
    assert.equal(node.client.isHeld(page, 1), what !== 'when it has')
    letGo()
    await cluster.world.runFor(10)
    assert.equal(node.client.isHeld(page, 1), false)
    cluster.network.healAll()
    cluster.cutOff.clear()
    cluster.failedDisks.add(node.disk)
    cluster.step()
    await cluster.until('quiet', () => cluster.quiet, 10_000)
  })
}

test('a block that is being removed is read as removed only when that is committed, and gives its space back', { timeout: 60_000 }, async () => {
  const { cluster } = await twoAndClient()
  for (const node of cluster.nodes) node.send({ type: 'lease', untilMs: node.host.bootMs() + 3_600_000, revision: 0 as never })
  const [head, tail] = [cluster.node(1), cluster.node(2)]
  const remove = (flags: number) => called(head, (done) => head.client.zero(1 as never, 0, 0, 1024, flags, done, 7))
  tail.process.freeze()
  const removal = remove(WriteFlag.NONE)
  await cluster.world.runFor(10)
  const read = new TestClient(head).read(0, 0, 1)
  await cluster.world.runFor(100)
  assert.equal(head.plane.reads.reads.inUse, 1, 'it waits')
  assert.equal(removal.status, -1)
  tail.process.thaw()
  assert.deepEqual((await cluster.world.settle(read, 5000)).bytes, new Uint8Array(4096))
  assert.equal(removal.status, Status.SUCCESS)
  await cluster.until('quiet', () => cluster.quiet)
  assert.deepEqual([head.store.usedBytes, tail.store.usedBytes], [0, 0])
  // written anew, and zeroed without giving back its space
  assert.equal(await cluster.world.settle(new TestClient(head).write(0, 4096, pattern(5)), 5000), Status.SUCCESS)
  const zeroed = remove(WriteFlag.NO_HOLE)
  await cluster.until('zeroed', () => zeroed.status === Status.SUCCESS)
  assert.ok(head.store.usedBytes > 0 && tail.store.usedBytes > 0)
  assert.deepEqual((await cluster.world.settle(new TestClient(tail).read(0, 0, 2), 5000)).bytes, new Uint8Array(8192))
  cluster.assertEqual()
})

test('a read that has waited long for its chain still asks the other replica when the disk here cannot read', { timeout: 60_000 }, async () => {
  const { cluster } = await twoAndClient()
  const { store } = cluster.node(1)
  const read = store.read.bind(store)
  store.read = (block, firstPage, pageCount, bufferPage, done, row) =>
    read(block, firstPage, pageCount, bufferPage, (caller, status, extra) => done(caller, status === Status.SUCCESS ? Status.READ_FAILED : status, extra), row)
  cluster.leaseMs = 0
  await cluster.world.runFor(2500)
  const waiting = new TestClient(cluster.node(1)).read(0, 0, 1)
  await cluster.world.runFor(8000)
  cluster.leaseMs = 2000
  const { status, bytes } = await cluster.world.settle(waiting, 5000)
  assert.equal(status, Status.SUCCESS)
  assert.deepEqual(bytes, pattern(1))
})

test('a read for which a replica finds no memory is answered by another one', { timeout: 60_000 }, async () => {
  const { cluster, client } = await twoAndClient()
  for (const number of [1, 2]) {
    const { arena } = cluster.node(number).queue
    const taken: number[] = []
    for (let bytes = 32 * 1024 * 1024; bytes >= 4096; bytes /= 2) for (let page = arena.alloc(bytes); page !== -1; page = arena.alloc(bytes)) taken.push(page)
    const { status, bytes } = await cluster.world.settle(client.read(0, 0, 1), 5000)
    assert.deepEqual([status, Buffer.compare(bytes, pattern(1))], [Status.SUCCESS, 0], `node ${number} has no memory`)
    for (const page of taken) arena.free(page as never)
  }
  await cluster.world.runFor(100)
  for (const number of [1, 2]) assert.equal(cluster.node(number).plane.reads.reads.inUse, 0)
})

test('a write that waits for a channel in vain is an error when its time is over, and never takes effect', { timeout: 60_000 }, async () => {
  const { cluster, client } = await twoAndClient({ plane: { limits: { creditRows: 1024 }, settings: { retryTotalMs: 1000 } } })
  const { plane } = cluster.node(3)
  cluster.leaseMs = 60_000
  for (const node of cluster.nodes) cluster.grant(node)
  await cluster.world.runFor(5)
  // what the head has ordered stays undecided
  cluster.node(2).process.freeze()
  const asked = Array.from({ length: CHANNELS_PER_CLIENT - 1 }, (_, i) => client.write(0, i * 4096, pattern(2)))
  const late = Array.from({ length: 5 }, (_, i) => client.write(1, i * 4096, pattern(3)))
  const calledMs = cluster.world.nowMs
  for (const write of late) assert.equal(await cluster.world.settle(write, 5000), Status.VOLUME_UNAVAILABLE)
  assert.ok(cluster.world.nowMs - calledMs < 1100)
  assert.equal(plane.counters.updatesWaitedForChannel, late.length)
  cluster.fence(cluster.node(2))
  for (const write of asked) assert.equal(await cluster.world.settle(write, 5000), Status.SUCCESS)
  assert.deepEqual((await cluster.world.settle(client.read(1, 0, late.length), 5000)).bytes, new Uint8Array(late.length * 4096))
  assert.equal(plane.resources['clientOperations'], 0)
})

test('calls that wait for their turn at a peer end with its session, and whoever called goes on with another peer', { timeout: 60_000 }, async () => {
  const cluster = new ChainCluster({ nodes: 3, slots: 1, chainOf: () => [1, 2, 3] })
  await cluster.start()
  const node = cluster.node(1)
  const client = new TestClient(node)
  const pages = CALLS_MAX - 1
  const content = pattern(1, pages * 4096)
  assert.equal(await cluster.world.settle(client.write(0, 0, content), 5000), Status.SUCCESS)
  await cluster.until('quiet', () => cluster.quiet)
  for (let page = 0; page < pages; page++) node.store.rot(node.store.findBlock(1, 0, 0), page)
  cluster.leaseMs = 60_000
  for (const each of cluster.nodes) cluster.grant(each)
  await cluster.world.runFor(5)
  // the first that is asked for the pages
  cluster.node(2).process.freeze()
  const reads = Array.from({ length: pages }, (_, page) => client.read(0, page, 1))
  await cluster.world.runFor(1000)
  assert.equal(node.plane.resources['calls'], CALLS_MAX / 2, 'its share')
  const answers = await cluster.world.settle(Promise.all(reads), 2000)
  for (const [page, { status, bytes }] of answers.entries()) {
    assert.equal(status, Status.SUCCESS)
    assert.deepEqual(bytes, content.slice(page * 4096, (page + 1) * 4096))
  }
  assert.equal(node.plane.resources['calls'], 0)
})

test('a peer whose read the disk here keeps is told so, asks another replica, and row and buffer are free when the disk lets go', {
  timeout: 60_000,
}, async () => {
  const { cluster, client } = await twoAndClient()
  const [head, tail] = [cluster.node(1), cluster.node(2)]
  for (const { storeOptions } of [head, tail]) storeOptions.readMs = 3000
  const free = () => [head, tail].map(({ queue }) => queue.arena.stats().freeBytes)
  const before = free()
  const read = client.read(0, 0, 1)
  await cluster.world.runFor(20)
  const asked = head.plane.reads.reads.inUse > 0 ? head : tail
  assert.equal(asked.plane.reads.reads.inUse, 1)
  ;(asked === head ? tail : head).storeOptions.readMs = 0.1
  const failedMs = cluster.world.nowMs
  asked.store.fail('it hangs')
  const { status, bytes } = await cluster.world.settle(read, 5000)
  assert.deepEqual([status, Buffer.compare(bytes, pattern(1))], [Status.SUCCESS, 0])
  assert.ok(cluster.world.nowMs - failedMs < 700, `${cluster.world.nowMs - failedMs} ms`)
  assert.equal(asked.plane.counters.readsGivenUp, 1)
  assert.equal(asked.plane.reads.reads.inUse, 1)
  await cluster.world.runFor(3000)
  assert.equal(asked.plane.reads.reads.inUse, 0)
  assert.deepEqual(free(), before)
})

test('a process that stands still after it has looked at the content, and longer than its lease, does not answer with it', { timeout: 60_000 }, async () => {
  const { cluster } = await twoAndClient()
  const node = cluster.node(2)
  const read = node.store.read.bind(node.store)
  const sample = node.queue.sampleClockMs.bind(node.queue)
  let hasRead = false
  node.store.read = (block, firstPage, pageCount, bufferPage, done, row) =>
    read(
      block,
      firstPage,
      pageCount,
      bufferPage,
      (caller, status, extra) => {
        hasRead = true
        done(caller, status, extra)
      },
      row,
    )
  node.queue.sampleClockMs = () => {
    if (hasRead) node.process.pause(3000)
    hasRead = false
    return sample()
  }
  const outcome = new TestClient(node).read(0, 0, 1)
  await cluster.world.runFor(2500)
  cluster.fence(node)
  assert.equal(await cluster.world.settle(new TestClient(cluster.node(1)).write(0, 0, pattern(2)), 400), Status.SUCCESS)
  assert.deepEqual((await cluster.world.settle(outcome, 5000)).bytes, pattern(2))
  assert.ok(node.plane.counters.readsRefused > 0)
})

test('updates for which the lane of forwards has no room go as soon as there is some', { timeout: 60_000 }, async () => {
  const network = { windowMinBytes: 4096, windowMaxBytes: 4096 }
  const plane = { limits: { creditRows: 1024 } }
  const chains = [[1, 2], [3, 1, 2], [2], [2]]
  const cluster = new ChainCluster({ nodes: 5, slots: chains.length, chainOf: (slot) => chains[slot]!, network, plane })
  await cluster.start()
  const [one, two] = [cluster.node(1), cluster.node(2)]
  const inSlot = (slot: number) => Array.from({ length: 64 }, (_, index) => index).find((index) => slotOf(1, index, chains.length) === slot)!
  const peer = one.plane.peers.indexOf(2)
  const { session } = one.plane.peers.peers[peer]!
  cluster.network.cut(one.host, two.host)
  const zeroed = [1, 3, 4, 5].flatMap((number) => {
    const client = new TestClient(cluster.node(number))
    const zero = (slot: number, count: number) => Array.from({ length: count }, (_, page) => client.zero(inSlot(slot), page, 1))
    return number === 1 ? zero(0, 120) : [...zero(0, 120), ...zero(1, 60)]
  })
  await cluster.world.runFor(50)
  const creditLeft = () => {
    let rows = 0
    while (one.plane.credits.hasLeft(peer, 0, rows + 1, 0)) rows++
    return rows
  }
  const before = creditLeft()
  const client = new TestClient(one)
  const updates = Array.from({ length: 60 }, (_, page) => client.write(inSlot(2), page * 4096, pattern(page)))
  await cluster.world.runFor(50)
  const { remoteUpdates } = one.plane.counters
  assert.ok(remoteUpdates < updates.length, `${remoteUpdates} updates found room`)
  assert.ok(before > updates.length)
  assert.equal(creditLeft(), before - remoteUpdates, 'those without room keep none')
  cluster.network.heal(one.host, two.host)
  for (const each of [...updates, ...zeroed]) assert.equal(await cluster.world.settle(each, 500), Status.SUCCESS)
  assert.equal(one.plane.peers.peers[peer]!.session, session)
  await cluster.until('quiet', () => cluster.quiet)
  for (const { plane } of cluster.nodes) assert.deepEqual([plane.resources['clientOperations'], plane.resources['updates']], [0, 0])
  cluster.assertEqual()
  for (let page = 0; page < updates.length; page++) {
    assert.deepEqual((await cluster.world.settle(client.read(inSlot(2), page, 1), 500)).bytes, pattern(page))
  }
})

test('a write that is committed when the lease of its head is over is answered under the next one, and not applied again', { timeout: 60_000 }, async () => {
  const { cluster } = await twoAndClient()
  const node = cluster.node(1)
  const client = new TestClient(node)
  cluster.leaseMs = 0
  const leaseMsLeft = () => node.plane.table.leaseUntilMs - node.host.bootMs()
  await cluster.until('its lease is almost over', () => leaseMsLeft() < 100)
  cluster.node(2).process.freeze()
  const write = client.write(0, 0, pattern(2))
  await cluster.until('its lease is over', () => leaseMsLeft() < 0)
  assert.equal(node.plane.replicas.records.inUse, 1, 'ordered before')
  cluster.node(2).process.thaw()
  await cluster.until('committed', () => cluster.quiet)
  await cluster.world.runFor(300)
  assert.equal(client.pending, 1)
  const { updates } = node.plane.counters
  cluster.leaseMs = 2000
  for (const each of cluster.nodes) cluster.grant(each)
  assert.equal(await cluster.world.settle(write, 1000), Status.SUCCESS)
  assert.deepEqual([node.plane.counters.updates, node.plane.counters.updatesCached], [updates, 1])
  cluster.assertEqual()
})
