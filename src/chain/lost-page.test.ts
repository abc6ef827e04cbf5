import assert from 'node:assert/strict'
import test from 'node:test'
import { ChainCluster, pattern, TestClient } from '../../test/support/chain-cluster.ts'
import { Status } from '../base/status.ts'
import { MiB, PAGE_BYTES } from '../base/units.ts'
import { AsyncIo } from '../env/async-io.ts'
import { ReplicaState } from '../placement/chain.ts'
import { View } from '../placement/view.ts'

const BLOCK = 0
const ROTTEN = 2

/** Three nodes, one slot with one block; pages 0 to 3 are on all of them. */
async function cluster3() {
  const cluster = new ChainCluster({ nodes: 3, slots: 1, chainOf: () => [1, 2, 3] })
  await cluster.start()
  const client = () => new TestClient(cluster.node(1))
  assert.equal(await cluster.world.settle(client().write(BLOCK, 0, pattern(1, 4 * PAGE_BYTES)), 5000), Status.SUCCESS)
  await cluster.until('quiet', () => cluster.quiet)
  return { cluster, client }
}

async function write(cluster: ChainCluster, page: number, of: number, node = 1): Promise<number> {
  return cluster.world.settle(new TestClient(cluster.node(node)).write(BLOCK, page * PAGE_BYTES, pattern(of)), 20_000)
}

async function read(cluster: ChainCluster, node: number, page: number) {
  return cluster.world.settle(new TestClient(cluster.node(node)).read(BLOCK, page, 1), 20_000)
}

function rot(cluster: ChainCluster, node: number, page = ROTTEN): void {
  const { store } = cluster.node(node)
  store.rot(store.findBlock(1, 0, BLOCK), page)
}

const lostOn = (cluster: ChainCluster, node: number) =>
  cluster
    .node(node)
    .plane.lostPages()
    .map(({ index, page }) => [index, page])

/** Page ROTTEN has rotted on node 1, the only one that serves, and nodes 2 and 3 lack its id. */
async function lost() {
  const { cluster } = await cluster3()
  await cluster.kill(3)
  await cluster.kill(2)
  assert.equal(await write(cluster, ROTTEN, 7), Status.SUCCESS)
  rot(cluster, 1)
  cluster.restart(2)
  cluster.restart(3)
  await cluster.until('resynced', () => cluster.allServing, 20_000)
  return cluster
}

test('a bad page of the only serving copy comes from a member that only waits, if that one has it', { timeout: 60_000 }, async () => {
  const { cluster } = await cluster3()
  await cluster.kill(3)
  assert.equal(await write(cluster, ROTTEN, 7), Status.SUCCESS)
  await cluster.kill(2)
  rot(cluster, 1)
  // node 3 lacks the page and is the first to sync; node 2 has it and waits behind it
  cluster.network.cut(cluster.node(3).host, cluster.node(1).host)
  cluster.network.cut(cluster.node(1).host, cluster.node(3).host)
  cluster.restart(3)
  cluster.restart(2)
  await cluster.world.runFor(500)
  const stateOf = (node: number) => cluster.chains[0]!.entries.find((entry) => entry.node === node)!.state
  assert.equal(stateOf(3), ReplicaState.SYNCING)
  assert.equal(stateOf(2), ReplicaState.WAITING)
  cluster.network.healAll()
  await cluster.until('repaired', () => cluster.node(1).plane.counters.pagesRepaired > 0)
  assert.equal(stateOf(2), ReplicaState.WAITING)
  await cluster.until('resynced', () => cluster.allServing, 20_000)
  for (const node of [1, 2, 3]) {
    assert.deepEqual(await read(cluster, node, ROTTEN), { status: Status.SUCCESS, bytes: pattern(7) })
    assert.deepEqual(lostOn(cluster, node), [])
    assert.equal(cluster.node(node).plane.counters.pagesLost, 0)
  }
})

test('a page that no replica can give does not hold up the resync: it alone is an error, named on every node', { timeout: 60_000 }, async () => {
  const cluster = await lost()
  cluster.assertEqual()
  for (const node of [1, 2, 3]) {
    assert.equal((await read(cluster, node, ROTTEN)).status, Status.BLOCK_CORRUPTED, `node ${node}`)
    for (const page of [0, 1, 3])
      assert.deepEqual((await read(cluster, node, page)).bytes, pattern(1, 4 * PAGE_BYTES).slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES))
    assert.deepEqual(lostOn(cluster, node), [[BLOCK, ROTTEN]])
  }
})

test('a write of a part of a lost page is an error, one of the whole page heals it', { timeout: 60_000 }, async () => {
  const cluster = await lost()
  const client = new TestClient(cluster.node(2))
  assert.equal(await cluster.world.settle(client.write(BLOCK, ROTTEN * PAGE_BYTES + 512, pattern(9, 512)), 20_000), Status.BLOCK_CORRUPTED)
  assert.equal(await write(cluster, ROTTEN, 8, 3), Status.SUCCESS)
  await cluster.until('quiet', () => cluster.quiet)
  for (const node of [1, 2, 3]) {
    assert.deepEqual(await read(cluster, node, ROTTEN), { status: Status.SUCCESS, bytes: pattern(8) })
    assert.deepEqual(lostOn(cluster, node), [])
  }
  assert.equal(await cluster.world.settle(client.write(BLOCK, ROTTEN * PAGE_BYTES + 512, pattern(9, 512)), 5000), Status.SUCCESS)
})

test('a lost page stays lost over restarts, also when its last bad copy is gone, and is found again by those who begin anew', { timeout: 60_000 }, async () => {
  const cluster = await lost()
  await cluster.kill(1)
  for (const number of [2, 3]) {
    await cluster.kill(number, { power: true })
    cluster.restart(number)
    await cluster.until('one serves', () => cluster.chains[0]!.entries[0]!.state === ReplicaState.SERVING, 20_000)
    await cluster.until('both serve', () => cluster.chains[0]!.entries.filter((entry) => entry.state === ReplicaState.SERVING).length === 2, 20_000)
  }
  for (const node of [2, 3]) {
    assert.equal((await read(cluster, node, ROTTEN)).status, Status.BLOCK_CORRUPTED)
    assert.deepEqual(lostOn(cluster, node), [[BLOCK, ROTTEN]])
  }
})

test('a lost page is repaired by itself when a copy with its id comes back', { timeout: 60_000 }, async () => {
  const { cluster } = await cluster3()
  await cluster.kill(3)
  assert.equal(await write(cluster, ROTTEN, 7), Status.SUCCESS)
  await cluster.kill(2)
  rot(cluster, 1)
  cluster.restart(3)
  await cluster.until('two serve', () => cluster.chains[0]!.entries[1]!.state === ReplicaState.SERVING, 20_000)
  assert.equal((await read(cluster, 3, ROTTEN)).status, Status.BLOCK_CORRUPTED)
  cluster.restart(2)
  await cluster.until('healed', () => [1, 3].every((node) => lostOn(cluster, node).length === 0), 60_000)
  for (const node of [1, 2, 3]) assert.deepEqual((await read(cluster, node, ROTTEN)).bytes, pattern(7))
})

test('who comes back without a page that it had found lost gets it before it counts as a copy', { timeout: 60_000 }, async () => {
  const { cluster } = await cluster3()
  const serves = (node: number) => () => cluster.chains[0]!.entries.some((entry) => entry.node === node && entry.state === ReplicaState.SERVING)
  await cluster.kill(3)
  assert.equal(await write(cluster, ROTTEN, 7), Status.SUCCESS)
  await cluster.kill(2)
  rot(cluster, 1)
  cluster.restart(3)
  await cluster.until('the third one serves', serves(3), 5000)
  assert.deepEqual(lostOn(cluster, 3), [[BLOCK, ROTTEN]])
  await cluster.kill(3)
  cluster.restart(2)
  await cluster.until('the second one serves, with the page', serves(2), 5000)
  cluster.restart(3)
  await cluster.until('the third one serves again', serves(3), 5000)
  assert.deepEqual(lostOn(cluster, 3), [])
  await cluster.kill(2)
  await cluster.kill(1)
  assert.deepEqual(await read(cluster, 3, ROTTEN), { status: Status.SUCCESS, bytes: pattern(7) })
})

test('of those that served last one whose page tables are whole serves again, and gives the others what they have lost', { timeout: 60_000 }, async () => {
  const { cluster } = await cluster3()
  // it would be the first of equals
  cluster.node(1).store.loseLeaf(1, 0, BLOCK, 0)
  for (const number of [1, 2, 3]) {
    cluster.node(number).losePower()
    cluster.views[number - 1] = View.DOWN
  }
  cluster.step()
  assert.deepEqual(
    cluster.chains[0]!.entries.map(({ node, state }) => [node, state]),
    [1, 2, 3].map((node) => [node, ReplicaState.LASTSRV]),
  )
  for (const number of [1, 2, 3]) cluster.restart(number)
  await cluster.until('resynced', () => cluster.allServing, 20_000)
  for (const node of [1, 2, 3]) {
    assert.deepEqual((await cluster.world.settle(new TestClient(cluster.node(node)).read(BLOCK, 0, 4), 5000)).bytes, pattern(1, 4 * PAGE_BYTES), `node ${node}`)
    assert.deepEqual(lostOn(cluster, node), [])
  }
})

test('a member that has not heard of the newest version yet may hold what is lost: it is asked again', { timeout: 60_000 }, async () => {
  const { cluster } = await cluster3()
  await cluster.kill(3)
  cluster.node(2).store.loseLeaf(1, 0, BLOCK, 0)
  cluster.cutOff.add(1)
  cluster.restart(3)
  await cluster.world.runFor(1000)
  assert.equal(cluster.chains[0]!.entries.find(({ node }) => node === 3)!.state, ReplicaState.SYNCING)
  assert.equal(cluster.node(3).plane.counters.pagesLost, 0)
  cluster.cutOff.delete(1)
  cluster.sendTable(cluster.node(1))
  await cluster.until('resynced', () => cluster.allServing, 20_000)
  for (const node of [2, 3])
    assert.deepEqual((await read(cluster, node, ROTTEN)).bytes, pattern(1, 4 * PAGE_BYTES).slice(ROTTEN * PAGE_BYTES, (ROTTEN + 1) * PAGE_BYTES))
})

test('a source whose disk hangs while it puts a page in order says so: its peer asks another one, and nobody waits for that disk', {
  timeout: 60_000,
}, async () => {
  const { cluster } = await cluster3()
  await cluster.kill(3)
  assert.equal(await write(cluster, ROTTEN, 7), Status.SUCCESS)
  rot(cluster, 2)
  const { store } = cluster.node(2)
  let asked = 0
  store.repairPage = async () => {
    asked++
    store.fail('the disk has not answered for 2000 ms')
    return false
  }
  store.ioEnded = () => new Promise(() => {})
  cluster.restart(3)
  const stateOf = (node: number) => cluster.chains[0]!.entries.find((entry) => entry.node === node)!.state
  await cluster.until('resynced from node 1', () => stateOf(3) === ReplicaState.SERVING, 5000)
  assert.equal(asked, 1)
  assert.deepEqual(await read(cluster, 3, ROTTEN), { status: Status.SUCCESS, bytes: pattern(7) })
})

test('a source whose disk takes a second to say that it cannot read a page, of dozens in one block, is done with them in the end, and its peer does not take it for stuck', {
  timeout: 60_000,
}, async () => {
  const { cluster } = await cluster3()
  await cluster.kill(3)
  await cluster.kill(2)
  assert.equal(await cluster.world.settle(new TestClient(cluster.node(1)).write(BLOCK, 0, pattern(7, 64 * PAGE_BYTES)), 20_000), Status.SUCCESS)
  const { store } = cluster.node(1)
  const [firstBad, endOfBad] = [16, 40]
  const readable = store.readCaptured.bind(store)
  const io = new AsyncIo(cluster.node(1).queue)
  store.readCaptured = async (capture, firstPage, pageCount, bufferPage) => {
    if (firstPage + pageCount <= firstBad || firstPage >= endOfBad) return readable(capture, firstPage, pageCount, bufferPage)
    await io.sleep(1000)
    return Status.READ_FAILED
  }
  cluster.restart(2)
  await cluster.until('resynced', () => cluster.chains[0]!.entries.some(({ node, state }) => node === 2 && state === ReplicaState.SERVING), 300_000)
  assert.equal(cluster.node(2).plane.counters.sessionsLost, 0)
  assert.equal(lostOn(cluster, 2).length, endOfBad - firstBad)
  assert.deepEqual(await read(cluster, 2, firstBad - 1), {
    status: Status.SUCCESS,
    bytes: pattern(7, 64 * PAGE_BYTES).slice((firstBad - 1) * PAGE_BYTES, firstBad * PAGE_BYTES),
  })
})

test('dozens of bad pages of a source whose content comes slowly from elsewhere are put in order over several questions, each page once', {
  timeout: 60_000,
}, async () => {
  const { cluster } = await cluster3()
  await cluster.kill(3)
  const content = pattern(7, 64 * PAGE_BYTES)
  assert.equal(await cluster.world.settle(new TestClient(cluster.node(1)).write(BLOCK, 0, content), 20_000), Status.SUCCESS)
  const [slow, source] = [cluster.node(1), cluster.node(2)]
  const [firstBad, endOfBad] = [16, 56]
  for (let page = firstBad; page < endOfBad; page++) rot(cluster, 2, page)
  const readable = slow.store.readCaptured.bind(slow.store)
  const io = new AsyncIo(slow.queue)
  let asked = 0
  slow.store.readCaptured = async (...args) => {
    asked++
    await io.sleep(1000)
    return readable(...args)
  }
  cluster.restart(3)
  const stateOf = (node: number) => cluster.chains[0]!.entries.find((entry) => entry.node === node)!.state
  await cluster.until('resynced', () => stateOf(3) === ReplicaState.SERVING, 60_000)
  assert.equal(asked, endOfBad - firstBad)
  assert.equal(source.plane.counters.pagesRepaired, endOfBad - firstBad)
  assert.equal(cluster.node(3).plane.counters.sessionsLost, 0)
  assert.deepEqual((await cluster.world.settle(new TestClient(cluster.node(3)).read(BLOCK, 0, 64), 20_000)).bytes, content)
  for (const node of [2, 3]) assert.deepEqual(lostOn(cluster, node), [])
  cluster.assertEqual()
})

test('a bad page of a source is not lost while a member that may hold it has no memory to answer', { timeout: 60_000 }, async () => {
  const { cluster } = await cluster3()
  await cluster.kill(3)
  assert.equal(await write(cluster, ROTTEN, 7), Status.SUCCESS)
  rot(cluster, 2)
  const { arena } = cluster.node(1).queue
  const taken: number[] = []
  for (let bytes = 32 * MiB; bytes >= PAGE_BYTES; bytes /= 2) for (let page = arena.alloc(bytes); page !== -1; page = arena.alloc(bytes)) taken.push(page)
  cluster.restart(3)
  await cluster.world.runFor(1000)
  const stateOf = (node: number) => cluster.chains[0]!.entries.find((entry) => entry.node === node)!.state
  assert.equal(stateOf(3), ReplicaState.SYNCING)
  for (const node of [2, 3]) assert.deepEqual(lostOn(cluster, node), [])
  for (const page of taken) arena.free(page as never)
  await cluster.until('resynced', () => stateOf(3) === ReplicaState.SERVING)
  assert.equal(cluster.node(2).plane.counters.pagesRepaired, 1)
  for (const node of [2, 3]) assert.deepEqual(await read(cluster, node, ROTTEN), { status: Status.SUCCESS, bytes: pattern(7) })
})

test('who has lost the ids of its pages is given nothing that is not committed: the head that ordered it may die with it', { timeout: 60_000 }, async () => {
  const { cluster } = await cluster3()
  const { store } = cluster.node(2)
  store.loseLeaf(1, 0, BLOCK, 0)
  // its journal is full for a while: what comes from the head waits
  const { admit, onRoom } = store
  Object.assign(store, { admit: () => Status.BUSY, onRoom: () => undefined })
  void new TestClient(cluster.node(1)).write(BLOCK, ROTTEN * PAGE_BYTES, pattern(7))
  await cluster.world.runFor(20)
  const before = pattern(1, 4 * PAGE_BYTES).slice(ROTTEN * PAGE_BYTES, (ROTTEN + 1) * PAGE_BYTES)
  assert.deepEqual(await read(cluster, 2, ROTTEN), { status: Status.SUCCESS, bytes: before })
  assert.equal(cluster.node(2).plane.counters.pagesRepaired, 1)
  Object.assign(store, { admit, onRoom })
  await cluster.kill(1)
  // the next record has the number of the one that nobody has any more
  assert.equal(await write(cluster, 0, 8, 2), Status.SUCCESS)
  await cluster.until('quiet', () => cluster.quiet)
  for (const node of [2, 3]) assert.deepEqual(await read(cluster, node, ROTTEN), { status: Status.SUCCESS, bytes: before })
})
