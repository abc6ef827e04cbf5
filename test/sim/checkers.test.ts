/** Each checker of checkers.ts finds what it is there to find. */
import assert from 'node:assert/strict'
import test from 'node:test'
import type { VolumeNumber } from '../../src/base/ids.ts'
import type { Done } from '../../src/base/request.ts'
import { Status } from '../../src/base/status.ts'
import { BLOCK_BYTES, PAGE_BYTES } from '../../src/base/units.ts'
import { DEFAULT_LIMITS } from '../../src/chain/data-plane.ts'
import { ChainTable } from '../../src/chain/table.ts'
import { kvStore } from '../../src/env/sim/control.ts'
import { ChannelRows } from '../../src/store/channel-rows.ts'
import { PAGE_LOST, PageFlag, type ReplicaStore } from '../../src/store/store.ts'
import { VolumeLayer } from '../../src/volume/volume.ts'
import { canaryOf, method } from './canaries.ts'
import { contentOf, differenceOf, differingBytes, leftovers, queueBounds, RESYNC_OVERHEAD, Watch, watchInstalls, watchQueues, watchRows } from './checkers.ts'
import { type NewerForm, OlderBinary } from './older-binary.ts'
import { runSchedule, scheduleOf } from './run.ts'
import { Scenario, scenario } from './scenario.ts'

async function healthy(): Promise<Scenario> {
  const t = new Scenario({ seed: 2, nodes: 3 })
  await t.form()
  await t.healthy()
  return t
}

test('a row that is never freed is found', async () => {
  const t = await healthy()
  assert.deepEqual(leftovers(t), [])
  t.node(2).plane!.replicas.records.alloc()
  assert.deepEqual(leftovers(t), ['node-2: records 1 in use'])
})

test('a node that goes on after its lease is found, an honest one is not', async () => {
  for (const cheats of [false, true]) {
    const t = await healthy()
    await t.createVolume('db', { sizeBytes: BLOCK_BYTES })
    const watch = new Watch(t)
    watch.start()
    t.node(3).isolate()
    const { leaseValid } = ChainTable.prototype
    if (cheats) ChainTable.prototype.leaseValid = () => true
    try {
      await t.seconds(6)
    } finally {
      ChainTable.prototype.leaseValid = leaseValid
    }
    assert.deepEqual(
      watch.violations.map(({ promise }) => promise),
      cheats ? ['nobody serves without a lease'] : [],
    )
    assert.ok(watch.samples > 50)
  }
})

test('a node that serves above the feature level it knows is found', async () => {
  const t = await healthy()
  const { state } = t.node(2).control!.member!
  await t.until('the level is raised', () => state.featureLevel === state.featureMax)
  const watch = new Watch(t)
  watch.sample()
  assert.deepEqual(watch.violations, [])
  Object.defineProperty(state, 'featureMax', { value: 1 })
  watch.sample()
  assert.deepEqual(
    watch.violations.map(({ promise }) => promise),
    ['nobody serves who does not know all commands'],
  )
})

test('an older version that writes to what it does not know, or mounts it, is found', async () => {
  const t = await healthy()
  const node = t.node(3)
  node.crash({ losing: 'nothing' })
  await t.seconds(0.5)
  const [bay] = node.bays
  const kv = kvStore(node.host, 'kv')
  const wrongs: ReadonlyArray<readonly [NewerForm, string, () => void]> = [
    ['disks', 'written to the disk', () => node.host.files.get(bay!.path)!.writeFrom(0, new Uint8Array(PAGE_BYTES).fill(1), 0, PAGE_BYTES)],
    ['disks', 'mounted the disk', () => (bay!.mounted = { ...bay!.mounted! })],
    ['identity', 'written to the metadata', () => kv.entries.set('state/other', new Uint8Array(1))],
    ['state', 'written to the metadata', () => kv.entries.delete('state/other')],
  ]
  for (const [form, what, act] of wrongs) {
    assert.deepEqual(OlderBinary.install(node, form)!.end(), [])
    const older = OlderBinary.install(node, form)!
    act()
    assert.match(older.end().join(), new RegExp(`node-3 .* its ${form}: it has ${what}$`))
  }
})

test('connections of a node that was dropped are found, when its peers keep them', async () => {
  for (const keeps of [false, true]) {
    const t = await healthy()
    const watch = new Watch(t)
    watch.start()
    const undo = keeps ? canaryOf('connections-of-the-dropped-kept')!.plant() : () => undefined
    try {
      // Only its way to the leader is cut: the third node hears it all the time
      const { leader } = t
      const [other = 0] = [1, 2, 3].filter((number) => number !== leader)
      t.network.cut(t.node(other).host, t.node(leader).host)
      await t.seconds(6)
    } finally {
      undo()
    }
    assert.deepEqual(
      watch.violations.map(({ promise }) => promise),
      keeps ? ['nobody keeps connections of a node that is DOWN'] : [],
    )
  }
})

test('a channel row that comes as held with the resync of another slot is found', () => {
  const slots = 2
  const store = { disk: 1, rows: new ChannelRows(), lastHigh: new Uint32Array(slots), lastLow: new Uint32Array(slots) }
  const found: string[] = []
  watchRows(store as unknown as ReplicaStore, (detail) => found.push(detail))
  const source = new ChannelRows()
  source.set(1, 1, 5, 7, 1, 256, 9)
  store.rows.merge(0, source.pack())
  assert.deepEqual(found, [], 'it came as not held')
  store.rows.held.fill(1)
  store.rows.merge(0, source.pack())
  assert.deepEqual(found, [], 'it was held before')
  store.rows.clear()
  const undo = canaryOf('rows-of-other-slots-held')!.plant()
  try {
    store.rows.merge(0, source.pack())
  } finally {
    undo()
  }
  assert.deepEqual(found, ['with slot 0 came a row as held for record 9 of slot 1, of which disk 1 has 0'])
})

test('a resync that sends what is held already is found, one that sends what was written over meanwhile is not', () => {
  const held = new Map<number, number>()
  const store = {
    disk: 1,
    startSession: () => 0,
    findBlock: () => 0,
    isLost: () => false,
    newestId: (_block: number, page: number, _count: number, id: Uint32Array) => {
      id[0] = 1
      id[1] = held.get(page) ?? 0
    },
    install: ({ pages, idLow }: { pages: Uint16Array; idLow: Uint32Array }) => {
      for (const [i, page] of pages.entries()) held.set(page, idLow[i]!)
      return 1
    },
  }
  const found: string[] = []
  watchInstalls(store as unknown as ReplicaStore, (detail) => found.push(detail))
  const install = (pages: number[], sv: number) =>
    (store.install as unknown as ReplicaStore['install'])({
      slot: 0,
      volume: 1,
      layer: 0,
      index: 0,
      pages: Uint16Array.from(pages),
      idHigh: new Uint32Array(pages.length).fill(1),
      idLow: new Uint32Array(pages.length).fill(sv),
      crc: new Uint32Array(pages.length),
      flags: new Uint8Array(pages.length).fill(PageFlag.DATA),
      payloadPage: 0,
      remove: false,
      rows: new Uint32Array(0),
      lastHigh: 0,
      lastLow: 0,
    })
  store.startSession()
  install([1, 2, 3, 4], 7)
  install([1, 2], 8)
  assert.deepEqual(found, [])
  install([1], 8)
  assert.deepEqual(found, ['slot 0 of disk 1 lacked 6 pages and was sent 7'])
})

test('copies that differ in an end, a block, an id, a checksum or a kind of page are told apart, lost pages are not', () => {
  const copy = (disk: number, change: { last?: number; index?: number; id?: number; crc?: number; flag?: number } = {}) => {
    const { last = 9, index = 0, id = 7, crc = 5, flag = PageFlag.DATA } = change
    const capture = { idHigh: [0, 1], idLow: [0, id], crc: [0, crc], flags: [PageFlag.NEVER, flag] }
    return {
      disk,
      lastHigh: [1],
      lastLow: [last],
      blocksOf: () => [0],
      blockIdentity: () => ({ volume: 1, layer: 0, index }),
      findBlock: () => 0,
      capture: () => capture,
      release: () => undefined,
    } as unknown as ReplicaStore
  }
  const differs = (change: Parameters<typeof copy>[1]) => differenceOf(0, copy(1), copy(2, change))
  assert.equal(differs({}), '')
  assert.equal(differs({ flag: PageFlag.DATA | PAGE_LOST }), '')
  assert.match(differs({ last: 8 }), /disk 1 ends with 1:9, disk 2 with 1:8/)
  assert.match(differs({ index: 3 }), /disk 1 has block 1:0:0, disk 2 has not/)
  assert.match(differs({ id: 6 }), /page 1 of block 1:0 is data of 1:7 .* on disk 1, data of 1:6 .* on disk 2/)
  assert.match(differs({ crc: 6 }), /checksum 5 on disk 1.*checksum 6 on disk 2/)
  assert.match(differs({ flag: PageFlag.ZERO }), /is data .*, zeros /)
  assert.match(differs({ flag: PageFlag.NEVER }), /never written on disk 2/)
})

test('a queue that is longer than its bound is found, and every queue has one', async () => {
  const t = await healthy()
  const found: string[] = []
  const { plane } = t.node(1)
  const limits = { ...DEFAULT_LIMITS, clientOpsMax: -256 }
  watchQueues(plane!, limits, (detail) => found.push(detail))
  plane!.settle()
  assert.deepEqual(found, [])
  const { volume } = await t.createVolume('db', { sizeBytes: BLOCK_BYTES })
  plane!.client.zero(volume, 0, 0, 1, 0, () => undefined, 0)
  plane!.settle()
  assert.deepEqual(found.slice(0, 1), ['clientOperations: 1, at most 0'])
  assert.deepEqual(Object.keys(queueBounds(plane!, limits)), Object.keys(plane!.resources))
})

test('what fails once all is well is found', async () => {
  // they have enough to do for that while
  const schedule = { ...scheduleOf(1, 'calm'), clients: 2, opsPerClient: 5000, durationMs: 100, faults: [] }
  const fails = (original: VolumeLayer['flush']) =>
    function (this: VolumeLayer, volume: VolumeNumber, done: Done, row: number): void {
      original.call(this, volume, (at) => done(at, Status.BUSY), row)
    }
  const undo = method(VolumeLayer.prototype, 'flush', fails)
  try {
    const { violations } = await runSchedule(schedule)
    assert.deepEqual([...new Set(violations.map(({ promise }) => promise))], ['what is asked for once all is well succeeds'])
    assert.match(violations[0]!.detail, /flush BUSY at /)
  } finally {
    undo()
  }
})

test('a replica of the replicated state that differs is found', async () => {
  const t = await healthy()
  const watch = new Watch(t)
  await t.world.run(() => new Set(t.nodes.map((node) => node.control!.member!.raft!.applied)).size === 1, 5000)
  watch.sample()
  assert.deepEqual(watch.violations, [])
  const again = new Watch(t)
  const { state } = t.node(2).control!.member!
  const changes = [
    () => state.remember('a request', { value: 1 }),
    () => state.takeVolumeNumber(),
    () => state.noteLease(9999),
    () => state.setSetting('storage.read_only', true),
  ]
  for (const change of changes) {
    const before = contentOf(state)
    change()
    assert.notEqual(contentOf(state), before, String(change))
  }
  again.sample()
  assert.deepEqual(
    again.violations.map(({ promise }) => promise),
    ['all replicas of the replicated state are equal'],
  )
})

test('what piles up in a control plane is found', async () => {
  const piles: ReadonlyArray<readonly [string, (t: Scenario) => void]> = [
    [
      'indexReads',
      (t) =>
        Array.from({ length: 300 }, () =>
          t
            .node(2)
            .control!.member!.raft!.readIndex()
            .catch(() => undefined),
        ),
    ],
    [
      'proposals',
      (t) =>
        Array.from({ length: 80 }, () =>
          t
            .node(2)
            .control!.member!.raft!.propose(new Uint8Array(1))
            .catch(() => undefined),
        ),
    ],
    [
      'callsOut',
      (t) =>
        Array.from({ length: 60 }, () =>
          t
            .node(2)
            .env!.rpc.call(t.node(1).grpc, 'xsan.v1.Cluster/Status', {}, { timeoutMs: 1000 })
            .catch(() => undefined),
        ),
    ],
    ['kvBatches', (t) => Array.from({ length: 9 }, () => t.node(2).env!.kv.batch([]))],
  ]
  for (const [what, pile] of piles) {
    const t = await healthy()
    const watch = new Watch(t)
    watch.sample()
    const details = () => watch.violations.map(({ detail }) => detail)
    assert.deepEqual(details(), [])
    pile(t)
    watch.sample()
    assert.equal(details().length, 1, what)
    assert.match(details()[0]!, new RegExp(`^node-2: ${what} of the control plane: \\d+, at most \\d+`))
  }
})

scenario('a returning node is sent what differs, and at most a tenth more', async (t, volume) => {
  t.load(volume, { on: [1, 2], ops: 300, readShare: 0 })
  await t.clientsDone()
  t.node(3).crash({ losing: 'nothing' })
  await t.seconds(1)
  t.load(volume, { on: [1, 2], ops: 60, readShare: 0 })
  await t.clientsDone()
  await t.seconds(1)
  const source = t.node(1).stores[0]!
  t.node(3).restart()
  await t.until('its disk is mounted', () => t.node(3).stores.length > 0)
  const returner = t.node(3).stores[0]!
  let differs = 0
  for (let slot = 0; slot < t.state!.chains.length; slot++) differs += differingBytes(slot, source, returner, PAGE_BYTES)
  await t.healthy()
  await t.seconds(2)
  const moved = t.node(3).control!.member!.agent!.stats!.resync.bytesMoved
  assert.ok(differs > 0 && moved > 0, `${differs} bytes differ, ${moved} moved`)
  assert.ok(moved <= differs * RESYNC_OVERHEAD, `${moved} bytes moved, ${differs} differ`)
  assert.ok(moved >= differs, 'what differs was moved')
  await t.allIsWell()
})
