/** The failure table of the design, row by row, on whole simulated clusters. */
import assert from 'node:assert/strict'
import { statusName } from '../../src/base/status.ts'
import { BLOCK_BYTES, MiB, PAGE_BYTES } from '../../src/base/units.ts'
import { kvStore } from '../../src/env/sim/control.ts'
import type { SimDisk } from '../../src/env/sim/disk.ts'
import { ReplicaState } from '../../src/placement/chain.ts'
import { usedBytes } from './cluster.ts'
import type { NbdInitiator } from './nbd-client.ts'
import { NBD_WRITE_LIFE_MS, scenario } from './scenario.ts'

const LEASE_MS = 2000
/** Until the leader knows, and has told the others. */
const STALL_OF_A_LEASE_MS = LEASE_MS + 1000

scenario('a killed process costs the others a stall well under a second and no error; back again, it catches up', async (t, volume) => {
  t.load(volume, { on: [1, 2], ops: 200 })
  await t.seconds(1)
  t.node(3).crash({ losing: 'nothing' })
  await t.seconds(1.5)
  t.node(3).restart()
  await t.clientsDone()
  t.assertNoErrors()
  assert.ok(t.longestStallMs < 500, `the longest operation took ${t.longestStallMs} ms`)
  await t.allIsWell()
})

scenario('the leader is killed: another leads within an election, data goes on', async (t, volume) => {
  const leader = t.leader
  const others = [1, 2, 3].filter((number) => number !== leader)
  t.load(volume, { on: others, ops: 300 })
  await t.seconds(1)
  t.node(leader).crash({ losing: 'nothing' })
  await t.until('another leads', () => t.leader !== 0 && t.leader !== leader, 3000)
  await t.clientsDone()
  t.assertNoErrors()
  assert.ok(t.longestStallMs < 1000, `the longest operation took ${t.longestStallMs} ms`)
  t.node(leader).restart()
  await t.allIsWell()
})

scenario('a host without power costs one lease, and loses nothing that was acknowledged', async (t, volume) => {
  t.load(volume, { on: [1, 2], ops: 400 })
  await t.seconds(1)
  t.node(3).host.losePower('random')
  await t.seconds(6)
  t.node(3).restart()
  await t.clientsDone()
  t.assertNoErrors()
  assert.ok(t.longestStallMs < 5000, `the longest operation took ${t.longestStallMs} ms`)
  await t.allIsWell()
})

scenario(
  'a node that is cut off serves nothing stale: its volumes pause, then fail; the majority stalls for one lease, and fails nothing',
  async (t, volume) => {
    t.load(volume, { on: [1, 2], ops: 500 })
    t.load(volume, { on: [3], ops: 1500, readShare: 1 })
    const [one, two, apart] = t.clients
    await t.seconds(1)
    t.node(3).isolate()
    await t.seconds(LEASE_MS / 1000)
    const before = apart!.begun
    await t.seconds(2)
    assert.ok(!apart!.done && apart!.begun - before <= apart!.options.depth, 'it pauses')
    assert.deepEqual(t.failures, {}, 'and nobody has given up yet')
    const told = () => [...apart!.ends.keys()].find((end) => !end.endsWith(' SUCCESS'))
    await t.until('it is told', () => told() !== undefined, 8000)
    assert.equal(told(), 'read VOLUME_UNAVAILABLE')
    t.node(3).rejoin()
    await t.clientsDone()
    for (const client of [one!, two!]) {
      assert.ok(client.longestMs < STALL_OF_A_LEASE_MS, `the majority stalled for ${client.longestMs} ms`)
      assert.ok(
        [...client.ends.keys()].every((end) => end.endsWith(' SUCCESS')),
        [...client.ends.keys()].join(),
      )
    }
    await t.allIsWell()
  },
  { retryTotalMs: 5000 },
)

scenario('a frozen process is replaced after one lease, and says nothing stale when it goes on', async (t, volume) => {
  t.load(volume, { on: [1, 2, 3], ops: 400, readShare: 0.7 })
  await t.seconds(1)
  t.node(2).freeze()
  await t.seconds(5)
  t.node(2).thaw()
  await t.clientsDone()
  t.assertNoErrors()
  for (const client of [t.clients[0]!, t.clients[2]!]) assert.ok(client.longestMs < STALL_OF_A_LEASE_MS, `the others stalled for ${client.longestMs} ms`)
  await t.allIsWell()
})

scenario('without a quorum reads go on until the lease ends, then service pauses, and goes on when one node returns', async (t, volume) => {
  t.load(volume, { on: [1], ops: 600 })
  const reader = await t.createVolume('reads', { sizeBytes: BLOCK_BYTES })
  t.load(reader, { on: [1], ops: 2000, readShare: 1, thinkMs: 5 })
  await t.seconds(1)
  t.node(2).crash({ losing: 'nothing' })
  t.node(3).crash({ losing: 'nothing' })
  const atOnce = t.history.okCount
  await t.seconds(1)
  assert.ok(t.history.okCount > atOnce + 100, 'reads go on')
  await t.seconds(4)
  const before = t.history.okCount
  await t.seconds(3)
  assert.equal(t.history.okCount, before, 'nothing is served without a lease')
  t.node(3).restart()
  await t.until('service again', () => t.history.okCount > before + 20, 10_000)
  t.node(2).restart()
  await t.clientsDone()
  await t.allIsWell()
})

scenario('all power is lost: everything acknowledged is there when it returns', async (t, volume) => {
  t.load(volume, { on: [1, 2, 3], ops: 500 })
  await t.seconds(2)
  t.history.allPowerLost(t.world.nowMs)
  for (const node of t.nodes) node.crash({ losing: 'unflushed' })
  await t.seconds(2)
  for (const node of t.nodes) node.restart()
  await t.clientsDone()
  await t.allIsWell()
})

scenario(
  'all power is lost with sync_when_write off: everything flushed is there',
  async (t, volume) => {
    t.load(volume, { on: [1, 2, 3], ops: 500 })
    await t.seconds(2)
    t.history.allPowerLost(t.world.nowMs)
    for (const node of t.nodes) node.crash({ losing: 'everything unflushed' })
    await t.seconds(2)
    for (const node of t.nodes) node.restart()
    await t.clientsDone()
    await t.allIsWell()
  },
  { syncWhenWrite: false },
)

scenario('each node is killed in turn while another comes back: no error, replicas equal', async (t, volume) => {
  t.load(volume, { on: [1, 2, 3], ops: 500 })
  for (const number of [1, 2, 3]) {
    t.node(number).crash({ losing: 'nothing' })
    await t.seconds(1)
    t.node(number).restart()
    await t.healthy()
  }
  await t.clientsDone()
  t.assertNoErrors()
  await t.allIsWell()
})

scenario('bits rot on one node: nobody notices; each page that is read is fetched from a peer, repaired and counted', async (t, volume) => {
  t.load(volume, { on: [1, 2, 3], ops: 800, thinkMs: 5 })
  for (let i = 0; i < 20; i++) {
    await t.seconds(0.2)
    t.node(2).rot(3)
  }
  await t.clientsDone()
  t.assertNoErrors()
  await t.readAll(volume)
  const { counters } = t.node(2).plane!
  assert.ok(counters.pagesRepaired > 0, 'pages were repaired')
  const repaired = counters.pagesRepaired
  await t.readAll(volume)
  assert.equal(counters.pagesRepaired, repaired, 'and are good from then on')
  await t.allIsWell()
})

for (const [title, fail] of [
  ['is gone', (disk) => void (disk.gone = true)],
  ['returns EIO', ({ faults }) => void (faults.readEio = faults.writeEio = faults.flushEio = 1)],
  ['hangs', (disk) => disk.hang()],
] satisfies ReadonlyArray<readonly [string, (disk: SimDisk) => void]>) {
  scenario(
    `a disk that ${title} leaves its chains, and what it held is rebuilt on another node; nobody notices`,
    async (t, volume) => {
      t.load(volume, { on: [1, 2, 3, 4], ops: 400 })
      await t.seconds(1)
      const { disk } = t.node(3)
      fail(disk)
      await t.clientsDone()
      t.assertNoErrors()
      assert.ok(t.longestStallMs < 5000, `the longest operation took ${t.longestStallMs} ms`)
      await t.healthy()
      // what it held stays in the chains until there are as many copies as wanted
      const { chains, nodes } = t.state!
      const hasLeft = () => chains.every(({ entries }) => entries.length === 3 && entries.every(({ node }) => nodes.get(node)!.id !== 'node-3'))
      await t.until('it has left', hasLeft, 5000)
      disk.resume()
      await t.allIsWell()
    },
    { nodes: 4 },
  )
}

for (const nbd of [false, true]) {
  scenario(
    `a disk that hangs leaves its chains after two seconds; reads that it was given are given up, and nobody's ${nbd ? 'client over NBD' : 'client'} waits for it`,
    async (t, volume) => {
      t.load(volume, { on: [1, 2, 3], ops: 1000, depth: 6, readShare: 0.8, nbd })
      await t.until('the disk reads', () => t.world.nowMs > 2000 && (t.node(3).plane?.reads.reads.inUse ?? 0) > 0)
      t.node(3).disk.hang()
      await t.clientsDone()
      t.assertNoErrors()
      assert.ok(t.longestStallMs < 5000, `the longest operation took ${t.longestStallMs} ms`)
      const { plane } = t.node(3)
      assert.ok(plane!.counters.readsGivenUp > 0, 'the premise: reads were under way')
      assert.equal(plane!.reads.reads.inUse, plane!.counters.readsGivenUp, 'their rows wait for the disk')
      t.node(3).disk.resume()
      await t.seconds(1)
      assert.equal(plane!.reads.reads.inUse, 0)
      assert.deepEqual(t.history.check().violations, [])
    },
    { nbd },
  )
}

scenario('what peers had sent to a disk that hung is memory again once the disk has read it (swarm seed 15000234)', async (t, volume) => {
  const used = () => usedBytes(t.node(3).queue!)
  const idleBytes = used()
  t.load(volume, { on: [1, 2], ops: 600, depth: 6, readShare: 0 })
  await t.seconds(1)
  t.node(3).disk.hang()
  await t.clientsDone()
  t.assertNoErrors()
  assert.ok(used() > idleBytes, 'the premise: the disk still reads what it was given')
  t.node(3).disk.resume()
  await t.seconds(1)
  assert.equal(used(), idleBytes)
})

// ---- the cluster changes while clients work ----------------------------------------------------------------------------
scenario('a node is added, another one is removed: no client notices, and the space moves along', async (t, volume) => {
  t.load(volume, { on: [1, 2], ops: 400 })
  await t.seconds(1)
  const added = t.addNode()
  t.operate('add', () => t.join(added))
  await t.until('it is a member with replicas', () => t.state?.chains.some(({ entries }) => entries.some(({ node }) => node === 4)) === true)
  t.operate('remove', () => t.insist('xsan.v1.Cluster/RemoveNode', { nodeId: 'node-3' }))
  await t.until('node-3 is gone', () => t.state?.nodeById('node-3') === undefined, 60_000)
  await t.until('its process has ended', () => !t.node(3).running)
  await t.clientsDone()
  t.assertNoErrors()
  await t.allIsWell()
})

scenario('a node is added: what moves to it gives its space back where it was', async (t, volume) => {
  t.load(volume, { on: [1, 2], ops: 200 })
  const used = () => t.nodes.reduce((sum, { stores }) => sum + stores.reduce((bytes, store) => bytes + store.usedBytes, 0), 0)
  const added = t.addNode()
  t.operate('add', () => t.join(added))
  await t.until('it has its share', () => added.stores[0] !== undefined && added.stores[0].usedBytes > 0 && t.unhealthy() === '', 60_000)
  await t.clientsDone()
  t.assertNoErrors()
  await t.until(
    'three copies take as much as before',
    () => used() === 3 * volume.sizeBytes,
    20_000,
    () => `${used()} bytes`,
  )
  await t.allIsWell()
})

scenario('a node is not removed while the others could not keep all copies', async (t) => {
  await assert.rejects(t.settle(t.insist('xsan.v1.Cluster/RemoveNode', { nodeId: 'node-3' })), /BUSY|for 3 copies/)
  await t.allIsWell()
})

scenario('all nodes are upgraded one after the other: no error, short stalls', async (t, volume) => {
  t.load(volume, { on: [1, 2, 3], ops: 500 })
  for (const number of [1, 2, 3]) {
    const { process } = t.node(number)
    t.node(number).version = 2
    t.node(number).stop()
    await t.until('it has ended', () => process?.alive === false)
    t.node(number).restart()
    await t.healthy()
  }
  await t.clientsDone()
  t.assertNoErrors({ but: ['STOPPING'] })
  assert.ok(t.longestStallMs < 1000, `the longest operation took ${t.longestStallMs} ms`)
  assert.ok([...t.state!.nodes.values()].every((node) => node.version === '0.0.2-sim'))
  await t.allIsWell()
})

scenario('a disk is gone and an empty one comes in its place: it is filled anew, nobody notices', async (t, volume) => {
  t.load(volume, { on: [1, 2], ops: 500 })
  await t.seconds(1)
  t.node(3).disk.gone = true
  await t.seconds(2)
  t.node(3).replaceDisk()
  t.node(3).restart()
  await t.clientsDone()
  t.assertNoErrors()
  await t.allIsWell()
})

scenario('what was deleted while a node was away gives its space back there, too', async (t, volume) => {
  const gone = await t.createVolume('gone', { sizeBytes: 2 * BLOCK_BYTES })
  t.load(gone, { on: [1], ops: 60, readShare: 0 })
  await t.clientsDone()
  t.node(3).crash({ losing: 'nothing' })
  await t.seconds(1)
  await t.settle(t.insist('xsan.v1.Volume/Delete', { volume: 'gone' }))
  t.load(volume, { on: [1], ops: 60 })
  t.node(3).restart()
  await t.clientsDone()
  await t.seconds(12)
  t.history.forget(gone.volume)
  await t.allIsWell()
})

scenario('volumes come, grow and go while a node is killed', async (t, volume) => {
  t.load(volume, { on: [1, 2], ops: 300 })
  for (let i = 0; i < 4; i++) {
    if (i === 1) t.node(3).crash({ losing: 'nothing' })
    if (i === 3) t.node(3).restart()
    const guest = await t.createVolume(`guest-${i}`, { sizeBytes: BLOCK_BYTES })
    t.load(guest, { on: [2], ops: 20, thinkMs: 2 })
    await t.settle(t.insist('xsan.v1.Volume/Resize', { volume: guest.name, sizeBytes: 2 * BLOCK_BYTES }))
    await t.until('the guest is done', () => t.clients.at(-1)!.done)
    await t.settle(t.insist('xsan.v1.Volume/Delete', { volume: guest.name }))
    t.history.forget(guest.volume)
  }
  await t.clientsDone()
  t.assertNoErrors()
  await t.seconds(12)
  await t.allIsWell()
})

scenario('settings change at run time: reads only for a while, other waits, no trust in refusals', async (t, volume) => {
  const set = (key: string, valueJson: string) => t.settle(t.insist('xsan.v1.Config/Set', { key, valueJson }))
  t.load(volume, { on: [1, 2, 3], ops: 300 })
  await t.seconds(1)
  await set('storage.read_only', 'true')
  await t.seconds(0.3)
  const refused = t.failures['write READ_ONLY'] ?? 0
  assert.ok(refused > 0, 'writes are refused')
  await set('storage.read_only', 'false')
  await set('forward.retry_max_wait', '20')
  await set('failover.trust_refused', 'false')
  t.node(3).crash({ losing: 'nothing' })
  await t.seconds(1)
  assert.equal(t.longestStallMs < 1000, true, 'nobody waits yet')
  await t.seconds(3)
  t.node(3).restart()
  await t.clientsDone()
  t.assertNoErrors({ but: ['READ_ONLY'] })
  await t.allIsWell()
})

scenario('a binary refuses a disk of a newer format by name; the newer binary goes on with it', async (t, volume) => {
  t.load(volume, { on: [1, 2], ops: 300 })
  await t.seconds(1)
  t.node(3).crash({ losing: 'nothing' })
  const undo = t.node(3).bays[0]!.formatOfTheFuture()
  t.node(3).restart()
  await t.until('it has refused', () => /another version of XSAN.*features/.test(t.node(3).fatal?.message ?? ''))
  assert.ok(undo(), 'and left the disk as it was')
  t.node(3).restart()
  await t.clientsDone()
  t.assertNoErrors()
  await t.allIsWell()
})

scenario(
  'full disks refuse what is new, take what is there, and go on when something is deleted',
  async (t, volume) => {
    const big = await t.createVolume('big', { sizeBytes: 8 * BLOCK_BYTES })
    t.load(volume, { on: [1], ops: 60, readShare: 0 })
    await t.clientsDone()
    t.assertNoErrors()
    t.load(big, { on: [2], ops: 120, readShare: 0, thinkMs: 2 })
    await t.clientsDone()
    assert.ok((t.failures['write INSUFFICIENT_SPACE'] ?? 0) > 0, `the disks are full: ${JSON.stringify(t.failures)}`)
    // Overwrites and reads of what is there
    const before = t.failures
    t.load(volume, { on: [1, 3], ops: 60 })
    await t.clientsDone()
    assert.deepEqual(t.failures, before, 'nothing else fails')
    await t.settle(t.insist('xsan.v1.Volume/Delete', { volume: 'big' }))
    t.history.forget(big.volume)
    await t.seconds(12)
    const next = await t.createVolume('next', { sizeBytes: 2 * BLOCK_BYTES })
    t.load(next, { on: [2], ops: 40, readShare: 0 })
    await t.clientsDone()
    assert.deepEqual(t.failures, before, 'there is room again')
    await t.allIsWell()
  },
  { diskBytes: 52 * MiB },
)

scenario('a clock that runs too fast by more than the bound costs leases, and loses nothing that was acknowledged', async (t, volume) => {
  t.load(volume, { on: [1, 2, 3], ops: 400 })
  const leader = t.node(t.leader)
  leader.host.setDrift(0.2)
  leader.untrustedUntilMs = t.world.nowMs + 10_000
  await t.seconds(4)
  for (const node of t.nodes) node.host.setDrift(0)
  await t.clientsDone()
  await t.allIsWell()
})

scenario('a clock that is too slow by more than the bound makes only its own node stale', async (t, volume) => {
  t.load(volume, { on: [1, 2], ops: 400 })
  await t.seconds(1)
  t.node(3).host.setDrift(-0.4)
  t.node(3).untrustedUntilMs = t.world.nowMs + 10_000
  t.node(3).isolate()
  await t.seconds(5)
  t.node(3).rejoin()
  t.node(3).host.setDrift(0)
  await t.clientsDone()
  t.assertNoErrors()
  await t.allIsWell()
})

scenario('timers half a second late cost time, and nothing else', async (t, volume) => {
  t.load(volume, { on: [1, 2, 3], ops: 300 })
  for (const node of t.nodes) node.env!.clock.lateMs = 500
  await t.seconds(4)
  for (const node of t.nodes) node.env!.clock.lateMs = 1
  await t.clientsDone()
  await t.allIsWell()
})

// ---- clients that speak NBD --------------------------------------------------------------------------------------------
scenario(
  'NBD clients with deep queues go on by another node when theirs is killed, and nothing is lost or torn',
  async (t, volume) => {
    t.load(volume, { on: [1, 2, 3], ops: 400, nbd: true, depth: 16, thinkMs: 100 })
    await t.seconds(1)
    t.node(2).crash({ losing: 'nothing' })
    await t.seconds(2)
    t.node(2).restart()
    await t.clientsDone()
    t.assertNoErrors()
    assert.ok(
      t.initiators.some((initiator) => initiator.connections > 1),
      'one of them has connected again',
    )
    await t.allIsWell()
  },
  { nbd: true },
)

scenario(
  'NBD clients of a frozen node go elsewhere; what it held for them does not land late',
  async (t, volume) => {
    t.load(volume, { on: [1, 2, 3], ops: 500, nbd: true, depth: 4, readShare: 0.3 })
    for (let i = 0; i < 2; i++) {
      await t.seconds(1)
      t.node(2).freeze()
      await t.seconds(i === 0 ? 1.5 : 14)
      t.node(2).thaw()
    }
    await t.clientsDone()
    await t.allIsWell()
  },
  { nbd: true, syncWhenWrite: false },
)

scenario(
  'an NBD client that asks for nonsense gets the error the protocol names, and goes on',
  async (t, volume) => {
    const ask = async (what: 'read' | 'write' | 'zero', offsetBytes: number, lengthBytes: number, flags = 0) => {
      const seat = t.initiatorOn(volume, 2).seat
      await t.until('connected', () => seat() !== undefined)
      const { volumes, process, queue } = seat()!
      const page = queue.arena.alloc(Math.max(lengthBytes, 1) + 4096)
      let status = -1
      const done = (_row: number, result: number) => {
        status = result
      }
      process.schedule(0, 'nonsense', () => {
        if (what === 'zero') volumes.zero(volume.volume, offsetBytes, lengthBytes, -1, flags, done, 0)
        else if (what === 'read') volumes.read(volume.volume, offsetBytes, lengthBytes, page, done, 0)
        else volumes.write(volume.volume, offsetBytes, lengthBytes, page, flags, done, 0)
      })
      await t.until('an answer', () => status >= 0)
      return statusName(status)
    }
    assert.equal(await ask('read', 1, 512), 'INVALID_PARAM')
    assert.equal(await ask('write', 0, 0), 'INVALID_PARAM')
    assert.equal(await ask('read', volume.sizeBytes, 512), 'INVALID_PARAM')
    assert.equal(await ask('write', volume.sizeBytes, 512), 'INSUFFICIENT_SPACE')
    assert.equal(await ask('zero', 512, volume.sizeBytes), 'INSUFFICIENT_SPACE')
    assert.equal(await ask('read', 0, 4096), 'SUCCESS')
    const { seat } = t.initiatorOn(volume, 2)
    await t.until('connected', () => seat() !== undefined)
    await t.settle(t.insist('xsan.v1.Volume/Delete', { volume: volume.name }))
    t.history.forget(volume.volume)
    await t.until('its node knows', () => t.node(2).volumes!.open(volume.name) === undefined)
    let status = -1
    const { volumes, process } = seat()!
    process.schedule(0, 'too late', () => {
      volumes.zero(
        volume.volume,
        0,
        4096,
        -1,
        0,
        (_row, result) => {
          status = result
        },
        0,
      )
    })
    await t.until('an answer', () => status >= 0)
    assert.equal(statusName(status), 'STOPPING', 'the volume is gone')
    await t.allIsWell()
  },
  { nbd: true },
)

scenario('metadata that cannot be written ends its process; the others go on, and it is back once it can be written', async (t, volume) => {
  const { leader } = t
  const node = t.node(leader)
  const store = kvStore(node.host, 'kv')
  t.load(volume, { on: [1, 2, 3].filter((number) => number !== leader), ops: 300 })
  store.failing = true
  const isSet = t.insist('xsan.v1.Config/Set', { key: 'storage.read_only', valueJson: 'false' })
  await t.until('its process has ended', () => /input\/output error/.test(node.fatal?.message ?? ''))
  await t.settle(isSet)
  await t.seconds(3)
  assert.equal(node.control?.isReady, false, 'nor does it start')
  store.failing = false
  await t.clientsDone()
  t.assertNoErrors()
  await t.healthy()
  await t.allIsWell()
})

scenario('connections are reset while all nodes live: nobody counts as dead for that, and no client sees an error', async (t, volume) => {
  t.load(volume, { on: [1, 2, 3], ops: 500, depth: 4, thinkMs: 4, readShare: 0.2 })
  const lives = () => t.nodes.map(({ control }) => control!.member!.incarnation)
  const [before, { version }] = [lives(), t.state!.chains[0]!]
  let count = 0
  for (let i = 0; i < 12; i++) {
    await t.seconds(0.15)
    count += t.network.resetConnections(t.node((i % 3) + 1).host, i % 4 === 3 ? 1 : 0.5)
  }
  assert.ok(count > 12)
  await t.clientsDone()
  t.assertNoErrors()
  assert.deepEqual(lives(), before)
  assert.equal(t.state!.chains[0]!.version, version, 'no chain has changed')
  await t.allIsWell()
})

// ---- flow ---------------------------------------------------------------------------------------------------------------
scenario(
  'a ring of heads under the smallest credits never comes to a standstill',
  async (t, volume) => {
    // Every node heads a third of the slots, and every node is saturated: each waits for the next
    t.load(volume, { on: [1, 2, 3], ops: 600, depth: 24, thinkMs: 0.1, readShare: 0 })
    await t.clientsDone(120_000)
    t.assertNoErrors()
    const heads = new Set(t.state!.chains.map((chain) => chain.entries[0]!.node))
    assert.equal(heads.size, 3, 'each node heads some slots')
    await t.allIsWell()
  },
  { limits: { creditRows: 8, creditBytes: 2 * MiB, recordsMax: 256, updatesMax: 32, readsMax: 32 } },
)

scenario(
  'two exporters, one stuck and one that retries: a newer write is never covered by the older one',
  async (t, volume) => {
    // One initiator with two paths: what gets no answer by the first goes by the second, and is followed by a newer one
    const first = t.initiatorOn(volume, 1)
    const second = t.initiatorOn(volume, 2)
    const seatOn = async (path: NbdInitiator) => {
      await t.until('connected', () => path.seat() !== undefined, 20_000)
      return path.seat()!
    }
    for (let round = 0; round < 8; round++) {
      const offsetBytes = (round % 3) * BLOCK_BYTES + 8192
      const write = async (path: NbdInitiator) => t.writeOnce(volume, await seatOn(path), offsetBytes, PAGE_BYTES)
      const stuck = await write(first)
      // it lies in a socket, or is on its way to a head
      if (round % 4 >= 2) await t.seconds(0.0005)
      if (round % 2 === 0) t.node(1).freeze()
      else t.node(1).isolate()
      await t.seconds(0.05 + 0.45 * (round % 4))
      first.close()
      // The same bytes by the other path, then newer ones, once the stuck one's life is over
      const again = await write(second)
      await t.until('the other path answers', () => again.ended, 20_000)
      await t.seconds(NBD_WRITE_LIFE_MS / 1000)
      const newer = await write(second)
      await t.until('the other path answers', () => newer.ended, 20_000)
      const written = await t.readOnce(volume, 2, offsetBytes)
      if (round % 2 === 0) t.node(1).thaw()
      else t.node(1).rejoin()
      assert.ok(stuck.ended)
      // Who goes and comes is held off for longer and longer
      await t.healthy(150_000)
      await t.seconds(5)
      assert.deepEqual(await t.readOnce(volume, 2, offsetBytes), written, `round ${round}: the newer write has stayed`)
    }
    await t.readAll(volume)
    await t.allIsWell()
  },
  { nbd: true },
)

// ---- what only people can decide ------------------------------------------------------------------------------------------
scenario('the disk with the last complete copy is gone for good: unavailable, until an operator accepts the loss', async (t, volume) => {
  t.load(volume, { on: [1, 2, 3], ops: 60, readShare: 0 })
  await t.clientsDone()
  t.node(2).crash({ losing: 'nothing' })
  t.node(3).crash({ losing: 'nothing' })
  await t.seconds(0.2)
  t.node(3).restart()
  await t.healthyWithout(2)
  // Node 1 and 3 go on; then 3 goes, and 1 alone takes what is lost later
  t.node(2).restart()
  await t.healthy()
  t.node(2).crash({ losing: 'nothing' })
  await t.healthyWithout(2)
  t.load(volume, { on: [1], ops: 20, readShare: 0 })
  await t.clientsDone()
  t.node(1).crash({ losing: 'nothing' })
  t.node(3).crash({ losing: 'nothing' })
  t.node(1).replaceDisk()
  t.node(3).replaceDisk()
  for (const number of [1, 2, 3]) t.node(number).restart()
  await t.until('all run', () => t.unhealthyNodes() === '')
  await t.seconds(5)
  assert.ok(
    t.state!.chains.every(({ entries }) => entries.every(({ state }) => state !== ReplicaState.SERVING)),
    'nobody serves what may be too old',
  )
  const before = await t.settle(t.insist('xsan.v1.Cluster/Recover', { dryRun: true }))
  assert.equal(before['slots'], t.state!.chains.length, 'it says how much is unavailable')
  await t.settle(t.insist('xsan.v1.Cluster/Recover', { acceptDataLoss: true }))
  t.history.forget(volume.volume)
  await t.healthy()
  t.load(volume, { on: [2], ops: 40, readShare: 0 })
  await t.clientsDone()
  await t.healthy()
})

scenario(
  'a node that is to leave serves again when the one that took over dies before it is drained',
  async (t, volume) => {
    t.load(volume, { on: [1], ops: 100, thinkMs: 20 })
    await t.seconds(0.5)
    const leaving = t.state!.nodeById('node-3')!.node
    t.operate('remove', () => t.insist('xsan.v1.Cluster/RemoveNode', { nodeId: 'node-3' }))
    const draining = () =>
      t.state!.chains.find(({ entries }) => entries.length === 2 && entries.some(({ node, state }) => node === leaving && state === ReplicaState.DRAINING))
    await t.until('a slot of it is being drained', () => draining() !== undefined)
    const heir = draining()!.entries.find(({ node }) => node !== leaving)!
    const number = t.nodes.findIndex((node) => node.control?.member?.node === heir.node) + 1
    t.node(number).crash({ losing: 'nothing' })
    await t.until('node-3 goes on or is done', () => draining() === undefined)
    t.node(number).restart()
    await t.until('node-3 is gone', () => t.state?.nodeById('node-3') === undefined, 120_000)
    await t.clientsDone()
    await t.allIsWell()
  },
  { replicas: 1 },
)

scenario('a node is removed while its replicas still catch up', async (t, volume) => {
  t.load(volume, { on: [1, 2], ops: 300, readShare: 0 })
  await t.seconds(1)
  const added = t.addNode()
  t.operate('add', () => t.join(added))
  const catchesUp = () => t.state?.chains.some(({ entries }) => entries.some(({ node, state }) => node === 4 && state === ReplicaState.SYNCING)) === true
  await t.until('it catches up', catchesUp)
  t.operate('remove', () => t.insist('xsan.v1.Cluster/RemoveNode', { nodeId: 'node-4' }))
  await t.until('node-4 is gone', () => t.state?.nodeById('node-4') === undefined, 60_000)
  await t.clientsDone()
  t.assertNoErrors()
  await t.allIsWell()
})

scenario(
  'without a quorum for longer than a client is ready to wait, it is told that the volume is unavailable',
  async (t, volume) => {
    t.load(volume, { on: [1], ops: 60, thinkMs: 50 })
    await t.seconds(1)
    t.node(2).crash({ losing: 'nothing' })
    t.node(3).crash({ losing: 'nothing' })
    await t.until('it is told', () => Object.keys(t.failures).some((name) => name.endsWith('UNAVAILABLE')), 30_000)
    t.node(2).restart()
    t.node(3).restart()
    await t.clientsDone()
    await t.allIsWell()
  },
  { retryTotalMs: 2000 },
)
