/** Resync with something in its way. */
import assert from 'node:assert/strict'
import test, { type TestContext } from 'node:test'
import { ChainCluster, type ChainNode, pattern, TestClient } from '../../test/support/chain-cluster.ts'
import { XsanError } from '../base/errors.ts'
import { Status } from '../base/status.ts'
import { MiB, PAGE_BYTES } from '../base/units.ts'
import { ReplicaState } from '../placement/chain.ts'
import type { ReactorToControl } from '../placement/messages.ts'
import { CallData, Forward, FRAME_BYTES, FrameHeader, PeerFrame } from '../wire/peer.ts'
import { Connection } from './lane.ts'

const BLOCKS = 6

class Cluster extends ChainCluster {
  readonly errors: string[] = []

  override heard(node: ChainNode, incarnation: number, message: ReactorToControl): void {
    super.heard(node, incarnation, message)
    if (message.type === 'log' && message.level === 'ERROR') this.errors.push(`node ${node.number}: ${message.message} ${JSON.stringify(message.fields)}`)
  }

  async fill(by: number, tag: number): Promise<void> {
    const client = new TestClient(this.node(by))
    for (let index = 0; index < BLOCKS; index++)
      assert.equal(await this.world.settle(client.write(index, 0, pattern(tag + index, 8192)), 10_000), Status.SUCCESS)
  }
}

test('a disk that is full is told once per slot, however often what comes to it is tried', async () => {
  const cluster = new Cluster({ nodes: 2, slots: 1, seed: 1, chainOf: () => [1, 2] })
  await cluster.start()
  await cluster.kill(2)
  await cluster.fill(1, 10)
  cluster.restart(2)
  const { store } = cluster.node(2)
  const install = store.install.bind(store)
  store.install = (given) => {
    if (given.pages.length > 0) throw new XsanError('INSUFFICIENT_SPACE', 'disk 2 has no extent', 'Add disks.')
    return install(given)
  }
  await cluster.world.runFor(3000)
  assert.equal(cluster.errors.length, 1, cluster.errors.join('\n'))
  store.install = install
  await cluster.until('both serve', () => cluster.allServing)
  cluster.assertEqual()
})

test('a disk that has no room for the beginning of a session begins it later, and what is written meanwhile comes again', async () => {
  const cluster = new Cluster({ nodes: 2, slots: 1, seed: 2, chainOf: () => [1, 2] })
  await cluster.start()
  await cluster.fill(1, 10)
  await cluster.kill(2)
  await cluster.fill(1, 20)
  cluster.restart(2)
  const { store } = cluster.node(2)
  const { startSession, onRoom } = { startSession: store.startSession.bind(store), onRoom: store.onRoom.bind(store) }
  const waiting: Array<() => void> = []
  store.startSession = () => {
    throw new XsanError('BUSY', 'full for the moment', 'Try again.')
  }
  store.onRoom = (fn) => void waiting.push(fn)
  await cluster.world.runFor(100)
  const client = new TestClient(cluster.node(1))
  const write = client.write(0, 0, pattern(30, 8192))
  await cluster.world.runFor(300)
  assert.deepEqual([client.pending, cluster.node(2).plane.replicas.sessions.size, store.isIncomplete(0)], [1, 0, false])
  Object.assign(store, { startSession, onRoom })
  cluster.node(2).process.schedule(0, 'room', () => {
    for (const fn of waiting.splice(0)) fn()
  })
  assert.equal(await cluster.world.settle(write, 10_000), Status.SUCCESS)
  await cluster.until('both serve', () => cluster.allServing)
  await cluster.until('quiet', () => cluster.quiet)
  cluster.assertEqual()
})

test('a forward that was refused comes again although an older one is acknowledged after the refusal', async () => {
  const cluster = new Cluster({ nodes: 2, slots: 1, seed: 3, chainOf: () => [1, 2] })
  await cluster.start()
  const client = new TestClient(cluster.node(1))
  const { store } = cluster.node(2)
  const admit = store.admit.bind(store)
  let isFull = false
  store.admit = (record, fromHead) => (isFull && record.firstPage === 1 ? Status.INSUFFICIENT_SPACE : admit(record, fromHead))
  isFull = true
  const writes = [0, 1].map((page) => client.write(0, page * 4096, pattern(page + 1)))
  assert.equal(await cluster.world.settle(writes[0]!, 5000), Status.SUCCESS)
  await cluster.world.runFor(300)
  assert.equal(client.pending, 1)
  isFull = false
  assert.equal(await cluster.world.settle(writes[1]!, 5000), Status.SUCCESS)
  await cluster.until('quiet', () => cluster.quiet)
  cluster.assertEqual()
})

test('a session that follows another at once, for which the disk has no room yet, does not go on as the one before', async () => {
  const cluster = new Cluster({ nodes: 2, slots: 1, seed: 3, chainOf: () => [1, 2] })
  await cluster.start()
  await cluster.fill(1, 10)
  await cluster.kill(2)
  await cluster.fill(1, 20)
  cluster.acceptReports = false
  cluster.restart(2)
  const returned = cluster.node(2)
  const { sessions } = returned.plane.replicas
  await cluster.until('its resync is at its end', () => sessions.get(0)?.reported === true)
  const { since } = sessions.get(0)!
  // it hears nothing while it is dropped, misses writes, and is taken back
  cluster.cutOff.add(2)
  cluster.views[1] = 0
  cluster.step()
  await cluster.fill(1, 30)
  cluster.views[1] = 2
  cluster.step()
  cluster.acceptReports = true
  const { store } = returned
  const { startSession, onRoom } = { startSession: store.startSession.bind(store), onRoom: store.onRoom.bind(store) }
  const waiting: Array<() => void> = []
  store.startSession = () => {
    throw new XsanError('BUSY', 'full for the moment', 'Try again.')
  }
  store.onRoom = (fn) => void waiting.push(fn)
  cluster.cutOff.delete(2)
  cluster.sendTable(returned)
  cluster.grant(returned)
  await cluster.world.runFor(50)
  assert.equal(waiting.length, 1, 'the premise: a session waits for room')
  assert.notEqual(sessions.get(0)?.since, since)
  Object.assign(store, { startSession, onRoom })
  for (const fn of waiting) fn()
  await cluster.until('both serve', () => cluster.allServing)
  await cluster.fill(1, 40)
  await cluster.until('quiet', () => cluster.quiet)
  cluster.assertEqual()
})

test('a source that does not know the version yet is asked again now and then, not without a pause', { timeout: 60_000 }, async () => {
  const cluster = new ChainCluster({ nodes: 2, slots: 1, chainOf: () => [1, 2] })
  await cluster.start()
  const client = new TestClient(cluster.node(1))
  assert.equal(await cluster.world.settle(client.write(0, 0, pattern(1)), 5000), Status.SUCCESS)
  await cluster.kill(2)
  await cluster.world.runFor(50)
  cluster.cutOff.add(1)
  cluster.restart(2)
  const { calls } = cluster.node(2).plane
  const call = calls.call.bind(calls)
  let asked = 0
  calls.call = (...args) => {
    asked++
    return call(...args)
  }
  await cluster.world.runFor(500)
  assert.ok(asked > 5 && asked < 60, `asked ${asked} times in 500 ms`)
  cluster.cutOff.clear()
  cluster.sendTable(cluster.node(1))
  await cluster.until('resynced', () => cluster.allServing)
})

/** Node 2 is about to resync from node 1: all its blocks differ. */
async function returning(seed: number) {
  const cluster = new Cluster({ nodes: 2, slots: 1, seed, chainOf: () => [1, 2] })
  await cluster.start()
  await cluster.fill(1, 10)
  await cluster.kill(2)
  await cluster.fill(1, 20)
  return cluster
}

/** What node 2 is answered from now on. */
function answersOf(cluster: Cluster): number[] {
  const { calls } = cluster.node(2).plane
  const call = calls.call.bind(calls)
  const answers: number[] = []
  calls.call = async (...args) => {
    const result = await call(...args)
    answers.push(result.status)
    return result
  }
  return answers
}

async function assertResynced(cluster: Cluster): Promise<void> {
  await cluster.until('both serve', () => cluster.allServing)
  await cluster.until('nothing is under way', () => cluster.nodes.every(({ plane }) => Object.values(plane.resources).every((inUse) => inUse === 0)))
  cluster.assertEqual()
  assert.deepEqual(cluster.errors, [])
}

for (const step of ['list', 'blocks']) {
  test(`a source that knows a newer version than its peer gives no ${step} for the older one, and is asked again now and then`, {
    timeout: 60_000,
  }, async () => {
    const cluster = await returning(4)
    cluster.network.link(cluster.node(2).host, cluster.node(1).host).extraDelayMs = 5
    cluster.restart(2)
    const { sessions } = cluster.node(2).plane.replicas
    await cluster.until('it has asked for them', () => (step === 'list' ? sessions.get(0)?.compared : sessions.get(0)?.todo.size === BLOCKS) === true)
    cluster.cutOff.add(2)
    cluster.chains[0] = { ...cluster.chains[0]!, version: (cluster.chains[0]!.version + 1) as never }
    cluster.publish([0])
    const answers = answersOf(cluster)
    await cluster.world.runFor(500)
    assert.deepEqual(new Set(answers), new Set([Status.ROUTING_STALE]))
    assert.ok(answers.length > 5 && answers.length < 60 * BLOCKS, `asked ${answers.length} times in 500 ms`)
    assert.deepEqual([sessions.get(0)!.listedSv >= 0, sessions.get(0)!.todo.size], step === 'list' ? [false, 0] : [true, BLOCKS])
    cluster.cutOff.clear()
    cluster.sendTable(cluster.node(2))
    await assertResynced(cluster)
  })
}

test('a source without memory for an answer is asked again, and keeps nothing back for it', { timeout: 60_000 }, async () => {
  const cluster = await returning(5)
  const { arena } = cluster.node(1).queue
  cluster.restart(2)
  await cluster.until('they are connected', () => cluster.node(2).plane.peers.indexOf(1) >= 0)
  const { freeBytes } = arena.stats()
  const taken: number[] = []
  for (let bytes = 32 * MiB; bytes >= PAGE_BYTES; bytes /= 2) for (let page = arena.alloc(bytes); page !== -1; page = arena.alloc(bytes)) taken.push(page)
  const answers = answersOf(cluster)
  await cluster.world.runFor(500)
  assert.deepEqual(new Set(answers), new Set([Status.NO_BUFFER]))
  assert.ok(answers.length > 5 && answers.length < 60, `asked ${answers.length} times in 500 ms`)
  for (const page of taken) arena.free(page as never)
  await assertResynced(cluster)
  assert.equal(arena.stats().freeBytes, freeBytes)
})

test('a source whose disk fails in the middle of a block says so at once: its peer goes on with another one, and the disk keeps the buffer until it lets go', {
  timeout: 60_000,
}, async () => {
  const cluster = new Cluster({ nodes: 3, slots: 1, seed: 6, chainOf: () => [1, 2, 3] })
  await cluster.start()
  await cluster.fill(1, 10)
  await cluster.kill(3)
  await cluster.fill(1, 20)
  const { store, queue } = cluster.node(2)
  const { readCaptured } = store
  let letGo = () => {}
  const ended = new Promise<void>((resolve) => {
    letGo = resolve
  })
  store.ioEnded = () => ended
  store.readCaptured = async (...args) => {
    await readCaptured.call(store, ...args)
    store.fail('it hangs')
    return Status.READ_FAILED
  }
  const { freeBytes } = queue.arena.stats()
  cluster.restart(3)
  const stateOf = (node: number) => cluster.chains[0]!.entries.find((entry) => entry.node === node)!.state
  await cluster.until('resynced from node 1', () => stateOf(3) === ReplicaState.SERVING, 2000)
  assert.ok(queue.arena.stats().freeBytes < freeBytes, 'it may still be written to')
  letGo()
  await cluster.world.runFor(100)
  assert.equal(queue.arena.stats().freeBytes, freeBytes)
  assert.equal(cluster.node(3).plane.counters.sessionsLost, 0)
  for (let index = 0; index < BLOCKS; index++)
    assert.deepEqual((await cluster.world.settle(new TestClient(cluster.node(3)).read(index, 0, 2), 5000)).bytes, pattern(20 + index, 8192))
  cluster.assertEqual()
})

/** The next frame of that type and with such a payload that node 1 sends says something else. */
function changeNext(t: TestContext, cluster: Cluster, type: number, payloadBytesMin: number, change: (view: DataView, body: number) => void): void {
  const { commit } = Connection.prototype
  const undo = () => {
    Connection.prototype.commit = commit
  }
  t.after(undo)
  Connection.prototype.commit = function (this: Connection, queue, at, ...rest) {
    const { view } = queue.arena
    const isIt = queue === cluster.node(1).queue && FrameHeader.get.type(view, at) === type && FrameHeader.get.payloadBytes(view, at) >= payloadBytesMin
    if (isIt) {
      change(view, at + FRAME_BYTES)
      undo()
    }
    commit.call(this, queue, at, ...rest)
  }
}

test('a part of an answer that is damaged on its way ends the session, and is asked for again in the next one', { timeout: 60_000 }, async (t) => {
  const cluster = await returning(8)
  cluster.restart(2)
  changeNext(t, cluster, PeerFrame.CALL_DATA, 2 * PAGE_BYTES, (view, body) => {
    CallData.set.payloadCrc(view, body, CallData.get.payloadCrc(view, body) ^ 1)
  })
  await assertResynced(cluster)
  assert.equal(cluster.node(2).plane.counters.sessionsLost, 1)
})

test('a session that has listed the blocks of its source takes no first record that leaves out others', { timeout: 60_000 }, async (t) => {
  const cluster = new Cluster({ nodes: 2, slots: 1, seed: 7, chainOf: () => [1, 2] })
  await cluster.start()
  await cluster.kill(2)
  cluster.acceptReports = false
  cluster.restart(2)
  await cluster.until('its resync is at its end', () => cluster.node(2).plane.replicas.sessions.get(0)?.reported === true)
  // the first record of the slot is told to be its second one
  changeNext(t, cluster, PeerFrame.FORWARD, PAGE_BYTES, (view, body) => {
    Forward.set.prevHi(view, body, Forward.get.idHi(view, body))
    Forward.set.prevLo(view, body, Forward.get.idLo(view, body))
    Forward.set.idLo(view, body, Forward.get.idLo(view, body) + 1)
  })
  const client = new TestClient(cluster.node(1))
  assert.equal(await cluster.world.settle(client.write(0, 0, pattern(1)), 1000), Status.SUCCESS)
  assert.match(cluster.errors.join(), /^node 2: a forward does not follow the last record of its slot .*"sv":2,/)
  assert.equal(cluster.errors.length, 1)
  cluster.acceptReports = true
  const { told, incarnation } = cluster.node(2)
  for (const message of told.filter(({ type }) => type === 'upToDate')) cluster.heard(cluster.node(2), incarnation, message)
  await cluster.until('both serve', () => cluster.allServing)
  await cluster.until('quiet', () => cluster.quiet)
  cluster.assertEqual()
})

test('while the source of a session is away, none of the many blocks it waits for is looked at again and again', async () => {
  const cluster = new Cluster({ nodes: 2, slots: 1, seed: 31, chainOf: () => [1, 2] })
  await cluster.start()
  await cluster.kill(2)
  await cluster.fill(1, 10)
  cluster.restart(2)
  const { store, plane } = cluster.node(2)
  const install = store.install.bind(store)
  store.install = (given) => {
    if (given.pages.length > 0) throw new XsanError('BUSY', 'full for the moment', 'Try again.')
    return install(given)
  }
  await cluster.until('all are listed', () => plane.replicas.sessions.get(0)?.todo.size === BLOCKS)
  for (const [from, to] of [
    [1, 2],
    [2, 1],
  ] as const)
    cluster.network.cut(cluster.node(from).host, cluster.node(to).host)
  plane.peers.abort(0, 'of the test')
  const rounds = { count: 0 }
  const indexOf = plane.peers.indexOf.bind(plane.peers)
  plane.peers.indexOf = (node) => {
    rounds.count++
    return indexOf(node)
  }
  await cluster.world.runFor(100)
  rounds.count = 0
  await cluster.world.runFor(500)
  assert.ok(rounds.count <= 100, `its source was looked for ${rounds.count} times in half a second`)
  cluster.network.healAll()
  store.install = install
  await cluster.until('both serve', () => cluster.allServing, 20_000)
  cluster.assertEqual()
})

test('to compare a slot takes a look at its blocks, not at all the lost pages of the disk: of both there may be thousands', async () => {
  const cluster = new Cluster({ nodes: 2, slots: 64, seed: 32, chainOf: () => [1, 2] })
  await cluster.start()
  await cluster.fill(1, 10)
  await cluster.until('quiet', () => cluster.quiet)
  await cluster.kill(2)
  cluster.restart(2)
  const { store } = cluster.node(2)
  const lostPages = store.lostPages.bind(store)
  let looks = 0
  store.lostPages = (limit) => {
    looks++
    return lostPages(limit)
  }
  await cluster.until('both serve', () => cluster.allServing)
  assert.ok(looks < 16, `${looks} looks`)
})
