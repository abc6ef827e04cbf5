import assert from 'node:assert/strict'
import test from 'node:test'
import { ChainCluster, DATA_PORT, PageLoad, pattern, RELAXED_VOLUME, TestClient, VOLUME } from '../../test/support/chain-cluster.ts'
import type { Incarnation, NodeNumber, TableRevision } from '../base/ids.ts'
import { Status } from '../base/status.ts'
import { AsyncIo } from '../env/async-io.ts'
import { SimHost } from '../env/sim/host.ts'
import { SimIoQueue } from '../env/sim/ioqueue.ts'
import { slotOf } from '../placement/ring.ts'
import { View } from '../placement/view.ts'
import { FrameHeader, HEAD_BYTES_MAX, PeerFrame, putFrame, UpdateAnswer } from '../wire/peer.ts'

async function cluster3(options: Partial<ConstructorParameters<typeof ChainCluster>[0]> = {}) {
  const cluster = new ChainCluster({ nodes: 3, slots: 8, ...options })
  await cluster.start()
  return { cluster, clients: cluster.nodes.map((node) => new TestClient(node)) }
}

test('three nodes, each head of a third, with the smallest credits: saturated, and nothing blocks for ever', { timeout: 120_000 }, async () => {
  const { cluster, clients } = await cluster3({ slots: 16, plane: { limits: { creditRows: 1, creditBytes: 1024 * 1024, recordsMax: 64 } } })
  await cluster.world.settle(
    (async () => {
      const calls: Promise<number>[] = []
      for (let i = 0; i < 300; i++) calls.push(clients[i % 3]!.write(i % 27, (i % 40) * 4096, pattern(i, i % 7 === 0 ? 65536 : 4096)))
      for (const status of await Promise.all(calls)) assert.equal(status, Status.SUCCESS)
    })(),
    60_000,
  )
  assert.ok(cluster.nodes.some((node) => node.plane.counters.forwardsWaitedForCredit > 0))
  await cluster.until('quiet', () => cluster.quiet)
  cluster.assertEqual()
})

test('a write is applied exactly once, however often its connection breaks', { timeout: 120_000 }, async () => {
  const { cluster } = await cluster3({ seed: 4 })
  const load = new PageLoad(cluster, { thinkMs: 5 })
  load.run(20)
  for (let i = 0; i < 40; i++) {
    await cluster.world.runFor(7)
    const node = cluster.node((i % 3) + 1)
    for (const other of cluster.nodes) if (other !== node) other.plane.peers.peerDown(node.number, node.incarnation)
  }
  await cluster.world.runFor(300)
  await load.stop()
  assert.equal(load.failures, 0)
  await cluster.world.settle(load.verify(), 10_000)
  await cluster.until('quiet', () => cluster.quiet)
  cluster.assertEqual()
  const cached = cluster.nodes.reduce((sum, node) => sum + node.plane.counters.updatesCached, 0)
  assert.ok(cached > 0, 'retries met the rows of their first tries')
})

test('reads never go back in time: what was seen on one node is seen on all from then on', { timeout: 60_000 }, async () => {
  const { cluster } = await cluster3({ seed: 6, network: { delayMinMs: 0.5, delayMaxMs: 4 } })
  const load = new PageLoad(cluster, { pages: 4, thinkMs: 1 })
  load.run(24)
  await cluster.world.runFor(1500)
  await load.stop()
  assert.equal(load.failures, 0)
  assert.ok(cluster.nodes.some((node) => node.plane.counters.readsWaited > 0))
})

test('a read begun before its replica was dropped is not answered after it has come back', { timeout: 60_000 }, async () => {
  const { cluster, clients } = await cluster3()
  assert.equal(await cluster.world.settle(clients[0]!.write(1, 0, pattern(1)), 5000), Status.SUCCESS)
  await cluster.until('quiet', () => cluster.quiet)
  const node = cluster.node(3)
  node.storeOptions.readMs = 4000
  const read = clients[2]!.read(1, 0, 1)
  await cluster.world.runFor(5)
  node.storeOptions.readMs = 0.1
  cluster.cutOff.add(3)
  for (const other of cluster.nodes.slice(0, 2)) {
    cluster.network.cut(node.host, other.host)
    cluster.network.cut(other.host, node.host)
  }
  await cluster.world.runFor(cluster.leaseMs + 50)
  cluster.fence(node)
  assert.equal(await cluster.world.settle(clients[0]!.write(1, 0, pattern(2)), 5000), Status.SUCCESS)
  cluster.network.healAll()
  cluster.cutOff.delete(3)
  cluster.views[2] = View.UP
  cluster.sendTable(node)
  cluster.step()
  cluster.grant(node)
  await cluster.until('resynced', () => cluster.allServing, 1500)
  assert.equal(clients[2]!.pending, 1)
  assert.deepEqual((await cluster.world.settle(read, 10_000)).bytes, pattern(2))
})

test('resync moves what differs and nothing else', { timeout: 60_000 }, async () => {
  const { cluster, clients } = await cluster3({ seed: 2 })
  await cluster.world.settle(Promise.all(Array.from({ length: 64 }, (_, i) => clients[0]!.write(i % 16, i * 16384, pattern(i, 16384)))), 20_000)
  await cluster.until('quiet', () => cluster.quiet)
  await cluster.kill(3)
  await cluster.world.settle(Promise.all(Array.from({ length: 5 }, (_, i) => clients[0]!.write(i, 0, pattern(900 + i)))), 20_000)
  cluster.restart(3)
  await cluster.until('resynced', () => cluster.allServing)
  const { counters } = cluster.node(3).plane
  // page 0 of block 0 was there before; the four others are new
  assert.equal(counters.resyncBytesNeeded, 5 * 4096)
  assert.equal(counters.resyncBytesMoved, 5 * 4096)
  await cluster.until('quiet', () => cluster.quiet)
  cluster.assertEqual()
})

test('4096 empty slots are up to date in well under two seconds', { timeout: 60_000 }, async () => {
  const { cluster } = await cluster3({ slots: 4096 })
  await cluster.kill(2)
  const atMs = cluster.world.nowMs
  cluster.restart(2)
  await cluster.until('resynced', () => cluster.allServing)
  assert.ok(cluster.world.nowMs - atMs < 1000, `${cluster.world.nowMs - atMs} ms`)
})

test('all killed and restarted: the LASTSRV set serves again, with everything acknowledged', { timeout: 60_000 }, async () => {
  for (const power of [false, true]) {
    const { cluster, clients } = await cluster3({ seed: 9 })
    const bytes = Array.from({ length: 30 }, (_, i) => pattern(i))
    await cluster.world.settle(Promise.all(bytes.map((page, i) => clients[i % 3]!.write(i % 10, i * 4096, page))), 20_000)
    for (const number of [1, 2, 3]) {
      if (power) cluster.node(number).losePower()
      else cluster.node(number).kill()
    }
    for (const node of cluster.nodes) cluster.views[node.number - 1] = 0
    cluster.step()
    assert.ok(cluster.chains.every((chain) => chain.entries.every((entry) => entry.state === 3)))
    for (const number of [1, 2, 3]) cluster.restart(number)
    await cluster.until('serving', () => cluster.allServing, 20_000)
    await cluster.world.settle(
      (async () => {
        for (const [i, page] of bytes.entries()) assert.deepEqual((await clients[(i + 1) % 3]!.read(i % 10, i, 1)).bytes, page)
      })(),
      20_000,
    )
  }
})

test('two of three killed: service goes on with one; it stops with the third and returns with it', { timeout: 60_000 }, async () => {
  const { cluster, clients } = await cluster3()
  assert.equal(await cluster.world.settle(clients[0]!.write(1, 0, pattern(1)), 5000), Status.SUCCESS)
  await cluster.kill(2)
  await cluster.kill(3)
  assert.equal(await cluster.world.settle(clients[0]!.write(1, 4096, pattern(2)), 5000), Status.SUCCESS)
  await cluster.kill(1)
  cluster.restart(2)
  cluster.restart(3)
  const pending = clients[1]!.read(1, 0, 2)
  await cluster.world.runFor(3000)
  assert.equal(clients[1]!.pending, 1, 'the last complete copy is away: nobody serves an older one')
  cluster.restart(1)
  const { bytes } = await cluster.world.settle(pending, 10_000)
  assert.deepEqual(bytes.subarray(0, 4096), pattern(1))
  assert.deepEqual(bytes.subarray(4096), pattern(2))
})

test('a flush of a relaxed volume covers what other nodes wrote: it survives a power loss of everything', { timeout: 60_000 }, async () => {
  const { cluster, clients } = await cluster3({ store: { durableMs: 0.3 } })
  const bytes = Array.from({ length: 12 }, (_, i) => pattern(i))
  await cluster.world.settle(
    (async () => {
      for (const [i, page] of bytes.entries()) assert.equal(await clients[i % 2]!.write(i, 0, page, { volume: RELAXED_VOLUME }), Status.SUCCESS)
      assert.equal(await clients[2]!.flush(RELAXED_VOLUME), Status.SUCCESS)
    })(),
    20_000,
  )
  for (const number of [1, 2, 3]) cluster.node(number).losePower()
  for (const node of cluster.nodes) cluster.views[node.number - 1] = 0
  cluster.step()
  for (const number of [1, 2, 3]) cluster.restart(number)
  await cluster.until('serving', () => cluster.allServing, 20_000)
  await cluster.world.settle(
    (async () => {
      for (const [i, page] of bytes.entries()) assert.deepEqual((await clients[i % 3]!.read(i, 0, 1, RELAXED_VOLUME)).bytes, page)
    })(),
    20_000,
  )
})

test('a write whose client has gone is cancelled through the log: it has failed, and takes effect never', { timeout: 60_000 }, async () => {
  const { cluster, clients } = await cluster3({ plane: { settings: { writeLifeMs: 400 } } })
  // a block whose head is another node than the client's, and whose successor hangs: the write is ordered and stays uncommitted
  let index = 0
  while (cluster.chains[slotOf(1, index, 8)]!.entries[0]!.node !== 1) index++
  const successor = cluster.node(cluster.chains[slotOf(1, index, 8)]!.entries[1]!.node)
  successor.process.freeze()
  cluster.leaseMs = 60_000
  for (const node of cluster.nodes) cluster.grant(node)
  const write = clients[0]!.orphanable(index, 0, pattern(5))
  await cluster.world.runFor(50)
  write.orphan()
  await cluster.world.runFor(1000)
  assert.equal(clients[0]!.pending, 1, 'nobody knows yet')
  cluster.fence(successor)
  const status = await cluster.world.settle(write.status, 10_000)
  // ordered before the client went: it may have taken effect, or be known dead, but is decided
  const first = await cluster.world.settle(clients[2]!.read(index, 0, 1), 5000)
  await cluster.world.runFor(500)
  const second = await cluster.world.settle(clients[2]!.read(index, 0, 1), 5000)
  assert.deepEqual(first.bytes, second.bytes)
  if (status === Status.SUCCESS) assert.deepEqual(first.bytes, pattern(5))
})

test('a bad page is read from a peer and repaired in place', { timeout: 60_000 }, async () => {
  const { cluster, clients } = await cluster3()
  assert.equal(await cluster.world.settle(clients[0]!.write(1, 0, pattern(1, 8192)), 5000), Status.SUCCESS)
  await cluster.until('quiet', () => cluster.quiet)
  const { store } = cluster.node(1)
  store.rot(store.findBlock(1, 0, 1), 1)
  const { status, bytes } = await cluster.world.settle(clients[0]!.read(1, 0, 2), 5000)
  assert.equal(status, Status.SUCCESS)
  assert.deepEqual(bytes, pattern(1, 8192))
  assert.equal(cluster.node(1).plane.counters.readsRepaired, 1)
  assert.equal((await cluster.world.settle(clients[0]!.read(1, 0, 2), 5000)).status, Status.SUCCESS)
  assert.equal(cluster.node(1).plane.counters.readsRepaired, 1)
  // and under a sub-page write
  store.rot(store.findBlock(1, 0, 1), 0)
  assert.equal(await cluster.world.settle(clients[1]!.write(1, 512, pattern(7, 512)), 5000), Status.SUCCESS)
})

test('a stopping node refuses updates of others, drains, and nobody sees an error', { timeout: 60_000 }, async () => {
  const { cluster } = await cluster3({ seed: 8 })
  const load = new PageLoad(cluster)
  load.run(16)
  await cluster.world.runFor(100)
  const node = cluster.node(2)
  node.send({ type: 'stop' })
  await cluster.until('stopped', () => node.told.some((message) => message.type === 'stopped'), 20_000)
  await cluster.kill(2)
  await cluster.world.runFor(500)
  await load.stop()
  // its own clients were told STOPPING; the others' writes went on
  cluster.restart(2)
  await cluster.until('resynced', () => cluster.allServing)
  await cluster.world.settle(load.verify(), 10_000)
})

test('proof of death: a killed process is reported with its incarnation, a broken connection is not', { timeout: 60_000 }, async () => {
  const { cluster } = await cluster3()
  cluster.node(1).plane.peers.peerDown(2, 1)
  await cluster.world.runFor(1000)
  const proofs = () => cluster.node(1).told.filter((message) => message.type === 'peerRefused')
  assert.equal(proofs().length, 0)
  cluster.node(2).kill()
  await cluster.until('proof', () => proofs().length > 0, 300)
  assert.deepEqual(proofs()[0], { type: 'peerRefused', node: 2, incarnation: 1 })
})

test('garbage, a wrong length and half a handshake on the data port are closed, logged once, and harm nobody', { timeout: 60_000 }, async () => {
  const { cluster, clients } = await cluster3()
  const host = new SimHost(cluster.network, { name: 'stranger', address: '10.0.0.99' })
  const queue = new SimIoQueue({ process: host.start('stranger'), name: 'stranger' })
  queue.runReactor(() => queue.turn(0))
  const io = new AsyncIo(queue)
  const page = queue.arena.alloc(65536) as number
  const attack = async (fill: (view: DataView, at: number) => number): Promise<number> => {
    const { handle, result } = await io.connectTcp({ host: '10.0.0.1', port: DATA_PORT })
    assert.equal(result, 0)
    const length = fill(queue.arena.view, page * 4096)
    await io.send(handle, page, 0, length)
    const answer = await io.recv(handle, page, 0, 4096)
    await io.close(handle)
    return answer
  }
  await cluster.world.settle(
    (async () => {
      for (let i = 0; i < 3; i++) {
        const answer = await attack((view, at) => {
          for (let j = 0; j < 400; j++) view.setUint8(at + j, (j * 7 + 1) & 0xff)
          return 400
        })
        assert.ok(answer <= 0)
      }
      const oversized = await attack((view, at) => {
        putFrame(view, at, PeerFrame.HELLO, HEAD_BYTES_MAX - 1, 0xffff_ffff)
        return 16
      })
      assert.ok(oversized <= 0)
      assert.equal(await clients[0]!.write(1, 0, pattern(1)), Status.SUCCESS)
    })(),
    20_000,
  )
  const logs = cluster.node(1).told.filter((message) => message.type === 'log' && message.level === 'WARN')
  assert.ok(logs.length >= 1 && logs.length <= 2, `${logs.length} lines`)
  // half a handshake ends by itself
  const { handle } = await cluster.world.settle(io.connectTcp({ host: '10.0.0.1', port: DATA_PORT }), 1000)
  assert.ok((await cluster.world.settle(io.recv(handle, page, 0, 100), 10_000)) <= 0)
})

test('an answer whose length is damaged on the way, with nothing after it on its lane: the session ends, and the write is answered by the next', async () => {
  const { cluster, clients } = await cluster3()
  const index = 1
  const head = cluster.node(cluster.chains[slotOf(VOLUME, index, cluster.chains.length)]!.entries[0]!.node)
  const { peers } = head.plane
  const { view } = head.queue.arena
  const send = peers.send
  let damaged = 0
  peers.send = (...args) => {
    send.apply(peers, args)
    const at = args[2]
    if (FrameHeader.get.type(view, at) !== PeerFrame.UPDATE_ANSWERS || damaged++ > 0) return
    FrameHeader.set.headBytes(view, at, FrameHeader.get.headBytes(view, at) + 16 * UpdateAnswer.size)
  }
  const client = clients[cluster.nodes.findIndex((node) => node !== head)]!
  assert.equal(await cluster.world.settle(client.write(index, 0, pattern(1)), 5000), Status.SUCCESS)
  assert.ok(damaged > 0)
})

test('a disk that fails under load: its replicas leave, nobody sees an error, its node serves through the others', { timeout: 60_000 }, async () => {
  const { cluster, clients } = await cluster3({ seed: 3 })
  const load = new PageLoad(cluster)
  load.run(16)
  await cluster.world.runFor(100)
  cluster.node(1).store.fail('input/output error')
  await cluster.until('out of the chains', () => cluster.chains.every((chain) => chain.entries.every((entry) => entry.node !== 1 || entry.state === 5)))
  await cluster.world.runFor(300)
  await load.stop()
  assert.equal(load.failures, 0)
  await cluster.world.settle(load.verify(), 10_000)
  assert.equal(cluster.node(1).plane.replicas.records.inUse, 0, 'nothing is kept for the disk')
  assert.equal(await cluster.world.settle(clients[0]!.write(1, 0, pattern(3)), 5000), Status.SUCCESS)
})

test('a node that does not know the key of the cluster, or is of another one, is no peer', { timeout: 60_000 }, async () => {
  const { cluster } = await cluster3({ keyOf: (node) => (node === 3 ? 'another key' : 'the key') })
  await cluster.world.runFor(2000)
  const isUp = (node: number, other: number) => cluster.node(node).plane.peers.peers.some((peer) => peer.node === other && peer.up)
  assert.ok(isUp(1, 2) && isUp(2, 1))
  assert.ok(!isUp(1, 3) && !isUp(3, 1) && !isUp(2, 3))
  const lines = cluster.node(1).told.filter((message) => message.type === 'log' && message.level === 'WARN')
  assert.equal(lines.length, 1, 'said once')
})

test('nodes full of their own buffers still take what peers send: no deadlock with a small arena', { timeout: 120_000 }, async () => {
  const { cluster, clients } = await cluster3({ queue: { arenaBytes: 24 * 1024 * 1024 }, seed: 12 })
  const held = cluster.nodes.map((node) => {
    const pages: number[] = []
    // all but what the clients below need
    for (;;) {
      const page = node.queue.arena.alloc(256 * 1024)
      if (page === -1) break
      pages.push(page)
    }
    for (const page of pages.splice(0, 20)) node.queue.arena.free(page as never)
    return pages
  })
  await cluster.world.settle(
    (async () => {
      const calls: Promise<number>[] = []
      for (let i = 0; i < 60; i++) calls.push(clients[i % 3]!.write(i % 12, 0, pattern(i, 256 * 1024)))
      for (const status of await Promise.all(calls)) assert.equal(status, Status.SUCCESS)
    })(),
    60_000,
  )
  assert.ok(held.every((pages) => pages.length > 0))
  await cluster.until('quiet', () => cluster.quiet)
  cluster.assertEqual()
})

test('resync ends under a steady load on the very blocks that are copied', { timeout: 60_000 }, async () => {
  const { cluster } = await cluster3({ seed: 21, store: { readMs: 5 } })
  // one block per slot or so, written to all the time: no answer of the source is ever new enough by chance
  const load = new PageLoad(cluster, { pages: 32, thinkMs: 0.2 })
  load.run(32)
  await cluster.world.runFor(150)
  await cluster.kill(2)
  await cluster.world.runFor(100)
  cluster.restart(2)
  await cluster.until('resynced', () => cluster.allServing, 3000)
  await load.stop()
  assert.equal(load.failures, 0)
  await cluster.world.settle(load.verify(), 10_000)
  await cluster.until('quiet', () => cluster.quiet)
  cluster.assertEqual()
})

test('nodes that come in the place of removed ones are known, however many there have been', { timeout: 60_000 }, async () => {
  const cluster = new ChainCluster({ nodes: 2, slots: 1, chainOf: () => [1, 2] })
  await cluster.start()
  const node = cluster.node(1)
  const real = cluster.nodes.map(({ number }) => ({
    node: number,
    id: `node-${number}`,
    incarnation: 1 as Incarnation,
    dataAddress: `10.0.0.${number}:${DATA_PORT}`,
  }))
  const table = (others: readonly number[]) => {
    const more = others.map((each) => ({
      node: each as NodeNumber,
      id: `node-${each}`,
      incarnation: 1 as Incarnation,
      dataAddress: `10.9.0.${each}:${DATA_PORT}`,
    }))
    node.send({ type: 'table', revision: 2 as TableRevision, slotCount: 1, chains: new Int32Array(0), nodes: [...real, ...more] })
  }
  const known = () => node.plane.peers.peers.map((peer) => peer.node as number)
  for (let round = 0; round < 8; round++) {
    const others = Array.from({ length: 20 }, (_, i) => 10 + round * 20 + i)
    table(others)
    await cluster.world.runFor(20)
    assert.deepEqual(
      others.filter((each) => !known().includes(each)),
      [],
      `round ${round}`,
    )
    table([])
    await cluster.world.runFor(2000)
  }
  assert.ok(known().length <= 64 && known()[0] === 2)
  assert.equal(await cluster.world.settle(new TestClient(node).write(0, 0, pattern(1)), 5000), Status.SUCCESS)
})
