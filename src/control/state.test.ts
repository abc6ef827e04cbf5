/** The replicated state alone: same commands, same state, whether it lived, was stored and loaded, or came by snapshot. */
import assert from 'node:assert/strict'
import test from 'node:test'
import type { DiskNumber, Incarnation, NodeNumber, VolumeNumber } from '../base/ids.ts'
import { Prng } from '../base/prng.ts'
import { GiB } from '../base/units.ts'
import { HOPS } from '../chain/credits.ts'
import { invalidChain, REPLICAS_MAX, ReplicaState, unpackChains } from '../placement/chain.ts'
import { View } from '../placement/view.ts'
import type { Raft } from '../raft/driver.ts'
import { type ArgsOf, encodeCommand, type OperationName, resultValue } from './command.ts'
import { healthOf, lostPagesOf } from './health.ts'
import { ControlStateMachine } from './machine.ts'
import { nodeFacts } from './services/cluster.ts'
import { type CommandResult, FEATURE_LEVEL } from './state.ts'
import { tableSince } from './table.ts'

const SLOTS = 128
const node = (n: number) => n as NodeNumber
const disk = (n: number) => n as DiskNumber

class Replica {
  readonly machine = new ControlStateMachine()
  readonly kv = new Map<string, Uint8Array>()
  index = 0

  apply(command: Uint8Array): CommandResult {
    const { result, ops } = this.machine.apply({ index: ++this.index, term: 1, command })
    for (const op of ops) {
      if (op.type === 'put') this.kv.set(op.key, op.value)
      else this.kv.delete(op.key)
    }
    return result as CommandResult
  }

  run<N extends OperationName>(op: N, args: ArgsOf<N>, id?: string): CommandResult {
    return this.apply(encodeCommand(op, args, id))
  }

  /** As after a restart of the process. */
  reloaded(): Replica {
    const other = new Replica()
    other.machine.load([...this.kv].sort(([a], [b]) => (a < b ? -1 : 1)).map(([key, value]) => ({ key, value })))
    for (const [key, value] of this.kv) other.kv.set(key, value)
    other.index = this.index
    return other
  }
}

const initArgs: ArgsOf<'cluster.init'> = {
  id: 'c1',
  uuid: 'u1',
  key: 'aa',
  slotCount: SLOTS,
  wallMs: 5,
  settings: { 'storage.default_replica_count': 3 },
  firstNode: { id: 'node-1', key: 'bb', zone: '', rack: '' },
}
const addresses = (n: number) => ({ grpc: `h${n}:8080`, data: `h${n}:8000`, nbd: '', nbdSocket: '', admin: '' })

function admit(replica: Replica, n: number): CommandResult {
  replica.run('token.add', { hash: `t${n}`, nodeId: '', expiresAtMs: 100, wallMs: 10 })
  return replica.run('node.admit', {
    tokenHash: `t${n}`,
    joinId: `j${n}`,
    nodeId: `node-${n}`,
    zone: '',
    rack: '',
    key: `k${n}`,
    version: '1',
    featureMax: FEATURE_LEVEL,
    wallMs: 20,
    ...addresses(n),
  })
}

const register = (replica: Replica, n: number, id?: string) =>
  replica.run(
    'node.register',
    {
      node: node(n),
      zone: '',
      rack: '',
      version: '1',
      dataDir: '/d',
      bootId: 'b',
      featureMax: FEATURE_LEVEL,
      disks: [{ uuid: `d${n}`, path: '/x', type: 'ssd', role: 'capacity', capacityBytes: GiB }],
      ...addresses(n),
    },
    id,
  )

function threeNodes(level = FEATURE_LEVEL): Replica {
  const replica = new Replica()
  replica.run('cluster.init', initArgs)
  register(replica, 1)
  for (const n of [2, 3]) {
    admit(replica, n)
    register(replica, n)
  }
  if (level > 1) replica.run('feature.raise', { level })
  replica.run('chains.create', { slots: Array.from({ length: SLOTS }, (_, slot) => [0, 1, 2].map((i) => disk(((slot + i) % 3) + 1))) })
  return replica
}

const views = (replica: Replica, state: Readonly<Record<number, View>>) =>
  [...replica.machine.state.nodes.values()].map((of) => ({ node: of.node, view: state[of.node] ?? View.UP, incarnation: of.incarnation }))

test('the same commands make the same state: alive, stored and loaded, and by snapshot', () => {
  for (let seed = 1; seed <= 8; seed++) {
    const random = new Prng(seed)
    const alive = threeNodes()
    let stored = alive.reloaded()
    for (let step = 0; step < 60; step++) {
      const command = randomCommand(alive, random)
      const result = alive.apply(command)
      assert.deepEqual(stored.apply(command), result, `seed ${seed} step ${step}`)
      if (random.chance(0.3)) stored = stored.reloaded()
      if (random.chance(0.1)) {
        const fresh = new Replica()
        for (const op of fresh.machine.restore(alive.machine.snapshot(), alive.index)) if (op.type === 'put') fresh.kv.set(op.key, op.value)
        fresh.index = alive.index
        stored = fresh.reloaded()
      }
      assert.deepEqual(stored.machine.snapshot(), alive.machine.snapshot(), `seed ${seed} step ${step}`)
      for (const chain of alive.machine.state.chains) assert.equal(invalidChain(chain), null)
      for (const { machine } of [alive, stored]) {
        const { chains, distinctChains } = machine.state
        const objects = new Set(chains)
        assert.deepEqual(new Set(distinctChains), objects)
        assert.equal(new Set(chains.map((chain) => JSON.stringify(chain))).size, objects.size, 'equal chains are one object')
      }
    }
  }
})

function randomCommand(replica: Replica, random: Prng): Uint8Array {
  const { state } = replica.machine
  const n = random.between(1, 3)
  switch (random.below(9)) {
    case 0:
      return encodeCommand(
        'volume.create',
        {
          name: `v${random.below(6)}`,
          sizeBytes: 512 * random.between(1, 9),
          replicas: random.between(1, 4),
          minCopies: 1,
          syncWhenWrite: true,
          readOnly: false,
          createdAtMs: 1,
        },
        `id${random.below(40)}`,
      )
    case 1:
      return encodeCommand('volume.delete', { volume: random.between(1, 8) as VolumeNumber })
    case 2:
      return encodeCommand('settings.set', { key: `k${random.below(3)}`, value: random.chance(0.3) ? null : random.below(10) })
    case 3:
      return encodeCommand('node.register', {
        node: node(n),
        zone: '',
        rack: '',
        version: '1',
        dataDir: '',
        bootId: '',
        featureMax: FEATURE_LEVEL,
        disks: [{ uuid: `d${n}`, path: '/x', type: 'ssd', role: 'capacity', capacityBytes: GiB }],
        ...addresses(n),
      })
    case 4: {
      const facts = state.chains.flatMap((chain, slot) => {
        const entry = chain.entries.find((of) => of.state === ReplicaState.SYNCING)
        return entry === undefined || random.chance(0.5) ? [] : [{ slot: slot as never, upToDate: [entry.disk, entry.since, entry.incarnation] as const }]
      })
      return encodeCommand('chains.step', { views: views(replica, {}), heldDown: [], facts, factsOnly: random.chance(0.5) })
    }
    case 5: {
      const ids = [1, 2, 3].map((d) => [disk(d), state.incarnation(node(d)), 0 as never, 0, random.below(100), 0] as const)
      const facts = state.chains.map((chain, slot) => ({
        slot: slot as never,
        lastIds: ids.map(([d, inc, , hi, lo, power]) => [d, inc, chain.version, hi, lo, power] as const),
      }))
      return encodeCommand('chains.step', { views: views(replica, {}), heldDown: [], facts, factsOnly: false })
    }
    case 6: {
      const ms = () => random.pick([0, 5000, 70_000])
      return encodeCommand('nodes.away', { nodes: [[node(n), ms(), ms()] as const, [node(9), 1, 1] as const] })
    }
    default:
      return encodeCommand('chains.step', {
        views: views(replica, {
          [n]: View.DOWN,
          [(n % 3) + 1]: random.pick([View.DOWN, View.UP, View.MAYBE]),
          [((n + 1) % 3) + 1]: random.pick([View.UP, View.MAYBE]),
        }),
        heldDown: random.chance(0.2) ? [node(n)] : [],
        facts: [],
        factsOnly: false,
      })
  }
}

test('who takes a snapshot has not heard whose processes are gone meanwhile: the connections of all others are closed once', () => {
  const alive = threeNodes()
  const away = alive.reloaded()
  alive.run('chains.step', { views: views(alive, { 2: View.DOWN }), heldDown: [], facts: [], factsOnly: false, gone: [node(2)] })
  assert.deepEqual(alive.machine.state.takeDropped(), [{ node: 2, incarnation: 1 }])
  away.machine.restore(alive.machine.snapshot(), alive.index)
  const dropped = away.machine.state.takeDropped()
  assert.ok(
    dropped.some((of) => of.node === 2 && of.incarnation === 1),
    JSON.stringify(dropped),
  )
  assert.deepEqual(away.machine.state.takeDropped(), [])
})

test('numbers are never used again, and a repeated request is applied once', () => {
  const replica = threeNodes()
  const volume = { name: 'a', sizeBytes: 512, replicas: 1, minCopies: 1, syncWhenWrite: true, readOnly: false, createdAtMs: 1 }
  const first = replica.run('volume.create', volume, 'r1')
  assert.deepEqual(replica.run('volume.create', volume, 'r1'), first)
  assert.equal(replica.run('volume.create', volume, 'r2').error?.status, 'VOLUME_EXISTS')
  replica.run('volume.delete', { volume: 1 as VolumeNumber })
  assert.equal((resultValue('volume.create', replica.run('volume.create', volume, 'r3')) as { volume: number }).volume, 2)
  assert.deepEqual(resultValue('node.register', register(replica, 2, 'r4')), { incarnation: 2, disks: [2] })
  assert.deepEqual(resultValue('node.register', register(replica, 2, 'r4')), { incarnation: 2, disks: [2] })
})

test('no volume asks for more copies than a chain has places for in its write path, with one that comes and one that goes', () => {
  assert.ok(REPLICAS_MAX + 2 <= HOPS)
  const replica = new Replica()
  replica.run('cluster.init', initArgs)
  register(replica, 1)
  for (let n = 2; n <= REPLICAS_MAX + 1; n++) {
    admit(replica, n)
    register(replica, n)
  }
  const volume = (replicas: number) => ({ name: `v${replicas}`, sizeBytes: 512, replicas, minCopies: 1, syncWhenWrite: true, readOnly: false, createdAtMs: 1 })
  const { error } = replica.run('volume.create', volume(REPLICAS_MAX + 1))
  assert.deepEqual([error?.status, error?.nextStep], ['INVALID_PARAM', `Take 1 up to ${REPLICAS_MAX}.`])
  assert.equal(replica.run('volume.create', volume(REPLICAS_MAX)).error, undefined)
})

test('an operation the program does not know halts, one of a higher level is refused', () => {
  const replica = threeNodes()
  const encode = (envelope: object) => new TextEncoder().encode(JSON.stringify(envelope))
  assert.throws(() => replica.apply(encode({ v: 1, op: 'volume.teleport', feature: 1, args: {} })), { status: 'NOT_SUPPORTED' })
  assert.throws(() => replica.apply(encode({ v: 1, op: 'volume.delete', feature: 2, args: { volume: 1 } })), { status: 'NOT_SUPPORTED' })
  assert.throws(() => replica.apply(encode({ v: 2, op: 'volume.delete', feature: 1, args: { volume: 1 } })), { status: 'NOT_SUPPORTED' })
})

test('a token lets one node in, once, in time', () => {
  const replica = new Replica()
  assert.equal(replica.run('token.add', { hash: 't', nodeId: '', expiresAtMs: 9, wallMs: 1 }).error?.status, 'CLUSTER_NOT_READY')
  replica.run('cluster.init', initArgs)
  assert.deepEqual(admit(replica, 2).value, { node: 2 })
  const again = {
    tokenHash: 't2',
    joinId: 'j2',
    nodeId: 'node-2',
    zone: '',
    rack: '',
    key: 'other',
    version: '1',
    featureMax: FEATURE_LEVEL,
    wallMs: 20,
    ...addresses(2),
  }
  assert.deepEqual(replica.run('node.admit', again).value, { node: 2 }, 'its answer was lost')
  assert.equal(replica.run('node.admit', { ...again, nodeId: 'node-3' }).error?.status, 'PERMISSION_DENIED')
  assert.equal(replica.run('node.admit', { ...again, joinId: 'j9' }).error?.status, 'PERMISSION_DENIED', 'another directory of that name')
  register(replica, 2)
  assert.equal(replica.run('node.admit', again).error?.status, 'PERMISSION_DENIED')
  replica.run('token.add', { hash: 'late', nodeId: '', expiresAtMs: 15, wallMs: 10 })
  assert.match(replica.run('node.admit', { ...again, tokenHash: 'late', nodeId: 'node-3' }).error?.message ?? '', /expired/)
  replica.run('token.add', { hash: 'own', nodeId: 'node-4', expiresAtMs: 99, wallMs: 10 })
  assert.match(replica.run('node.admit', { ...again, tokenHash: 'own', nodeId: 'node-3' }).error?.message ?? '', /for node-4/)
  replica.run('token.add', { hash: 'old', nodeId: '', expiresAtMs: 99, wallMs: 10 })
  assert.equal(replica.run('node.admit', { ...again, tokenHash: 'old', nodeId: 'node-5', featureMax: 0 }).error?.status, 'NOT_SUPPORTED')
})

test("another node's disk is refused by name", () => {
  const replica = threeNodes()
  const stolen = replica.run('node.register', {
    node: node(3),
    zone: '',
    rack: '',
    version: '',
    dataDir: '',
    bootId: '',
    featureMax: FEATURE_LEVEL,
    disks: [{ uuid: 'd1', path: '/dev/x', type: 'ssd', role: 'capacity', capacityBytes: GiB }],
    ...addresses(3),
  })
  assert.equal(stolen.error?.status, 'DISK_FOREIGN')
  assert.match(stolen.error?.message ?? '', /\/dev\/x.*node-1/)
  assert.equal(replica.machine.state.incarnation(node(3)), 1, 'nothing has changed')
})

test('views taken before a registration change nothing', () => {
  const replica = threeNodes()
  const old = views(replica, { 1: View.DOWN })
  register(replica, 2)
  const before = replica.machine.state.chains
  assert.equal(replica.run('chains.step', { views: old, heldDown: [], facts: [], factsOnly: false }).error?.status, 'BUSY')
  assert.deepEqual(replica.machine.state.chains, before)
  const result = replica.run('chains.step', { views: views(replica, { 1: View.DOWN, 2: View.DOWN }), heldDown: [], facts: [], factsOnly: false })
  assert.deepEqual(result.value, { changed: SLOTS })
  assert.deepEqual(
    replica.machine.state.takeDropped().map((of) => of.node),
    [1, 2],
  )
})

test('chains may be made anew only while no volume was ever created', () => {
  const replica = threeNodes()
  const slots = Array.from({ length: SLOTS }, () => [disk(3), disk(1)])
  assert.deepEqual(replica.run('chains.create', { slots }).value, { changed: SLOTS })
  assert.deepEqual(
    replica.machine.state.chains[5]?.entries.map((entry) => [entry.disk, entry.state, entry.since]),
    [
      [3, ReplicaState.SERVING, 2],
      [1, ReplicaState.SERVING, 2],
    ],
  )
  replica.run('volume.create', { name: 'a', sizeBytes: 512, replicas: 1, minCopies: 1, syncWhenWrite: true, readOnly: false, createdAtMs: 1 })
  replica.run('volume.delete', { volume: 1 as VolumeNumber })
  assert.deepEqual(replica.run('chains.create', { slots }).value, { changed: 0 })
})

test('a table delta holds exactly what changed', () => {
  const replica = threeNodes()
  const { state } = replica.machine
  const whole = tableSince(state, 0)!
  assert.equal(unpackChains(whole.chains).length, SLOTS)
  assert.equal(whole.nodes?.length, 3)
  assert.equal(tableSince(state, whole.revision), undefined)
  replica.run('settings.set', { key: 'a', value: 1 })
  assert.equal(tableSince(state, whole.revision), undefined, 'settings are no part of it')
  replica.run('chains.step', {
    views: views(replica, {}),
    heldDown: [],
    facts: [{ slot: 7 as never, drain: state.chains[7]!.entries[0]!.disk }],
    factsOnly: true,
  })
  const delta = tableSince(state, whole.revision)!
  assert.deepEqual(
    unpackChains(delta.chains).map(({ slot }) => slot),
    [7],
  )
  assert.equal(delta.nodes, undefined)
  assert.ok(delta.revision > whole.revision)
})

test('health is computed, with a sentence for each reason', () => {
  const replica = threeNodes()
  const { state } = replica.machine
  const of = (down: readonly number[]) => healthOf({ state, view: (n) => (down.includes(n) ? View.DOWN : View.UP), planned: new Set() })
  assert.deepEqual(of([]), { health: 'safe', reasons: [], chains: { total: SLOTS, full: SLOTS, degraded: 0, unavailable: 0 } })
  assert.equal(of([2]).health, 'at-risk')
  assert.ok(of([2]).reasons.includes('Node node-2 is down.'))
  assert.equal(of([1, 2, 3]).health, 'unavailable')
  assert.equal(new ControlStateMachine().state.chains.length, 0)
  replica.run('disk.failed', { disk: disk(3), reason: 'EIO' })
  assert.ok(of([]).reasons.some((reason) => reason.includes('/x of node-3 failed: EIO')))
})

test('a page that is lost is named by volume and offset, once for all its copies', () => {
  const replica = threeNodes()
  replica.run('volume.create', { name: 'db', sizeBytes: 2 ** 30, replicas: 3, minCopies: 1, syncWhenWrite: true, readOnly: false, createdAtMs: 1 })
  const { state } = replica.machine
  const volume = [...state.volumes.keys()][0]!
  const of = (lostPages: ReturnType<typeof lostPagesOf>) => healthOf({ state, view: () => View.UP, planned: new Set(), lostPages })
  const page = { slot: 1, volume: volume as number, layer: 0, index: 2, page: 3 }
  const node = (lost: ReadonlyArray<typeof page>, lostPages = lost.length) => ({ stats: { resync: { lost, lostPages } } })
  assert.deepEqual(of(lostPagesOf([node([]), { stats: { resync: {} } }], state)).reasons, [])
  const one = of(lostPagesOf([node([page]), node([page])], state))
  assert.equal(one.health, 'at-risk')
  assert.deepEqual(one.reasons, ['1 page of 4 KiB is lost, no copy holds it: volume db at 8400896. Reads fail there until it is written anew.'])
  const many = of(lostPagesOf([node([page], 500), node([{ ...page, page: 0 }])], state))
  assert.match(many.reasons[0]!, /^500 pages of 4 KiB are lost, no copy holds them: volume db at 8388608, db at 8400896, and more/)
  assert.deepEqual(of(lostPagesOf([node([{ ...page, volume: 99 }])], state)).reasons, [], 'its volume is deleted')
  assert.equal(lostPagesOf([node([page], 500)], state, volume + 1).count, 0)
})

test('stored values may be parts of larger buffers, at any offset', () => {
  const replica = threeNodes()
  const loaded = new ControlStateMachine()
  const odd = [...replica.kv]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([key, value]) => ({ key, value: Buffer.concat([Buffer.from('xyz'), value, value]).subarray(3, 3 + value.length) }))
  loaded.load(odd)
  assert.deepEqual(loaded.snapshot(), replica.machine.snapshot())
})

test('a step for all slots is not slow', () => {
  const replica = threeNodes()
  register(replica, 2)
  const incarnation = replica.machine.state.incarnation(node(2))
  assert.equal(incarnation, 2 as Incarnation)
  const result = replica.run('chains.step', { views: views(replica, {}), heldDown: [], facts: [], factsOnly: false })
  assert.deepEqual(result.value, { changed: SLOTS })
  for (const chain of replica.machine.state.chains) assert.equal(chain.entries.at(-1)?.state, ReplicaState.SYNCING)
})

test('a disk that its node starts without counts as failed, gives no capacity, and is used again when it is back', () => {
  const replica = threeNodes()
  const { state } = replica.machine
  const withDisk = (uuid: string) =>
    replica.run('node.register', {
      node: node(2),
      zone: '',
      rack: '',
      version: '1',
      dataDir: '/d',
      bootId: 'b',
      featureMax: FEATURE_LEVEL,
      disks: [{ uuid, path: '/x', type: 'ssd', role: 'capacity', capacityBytes: GiB }],
      ...addresses(2),
    })
  // swapped for a blank one: another uuid at the same path
  withDisk('blank')
  assert.equal(state.disks.get(disk(2))?.state, 'failed')
  assert.equal(state.disks.get(disk(4))?.uuid, 'blank')
  const raft = { members: { voters: [], learners: [] }, leader: 0 } as unknown as Raft
  const shown = () => {
    const { disks, capacityBytes } = nodeFacts({ state, raft }, state.nodes.get(node(2))!)
    return [disks, capacityBytes]
  }
  assert.deepEqual(shown(), [1, GiB])
  withDisk('d2')
  assert.deepEqual(shown(), [1, GiB])
  assert.equal(state.disks.get(disk(2))?.state, 'ok')
  assert.equal(state.disks.get(disk(4))?.state, 'failed')
  // one that failed by itself stays so
  replica.run('disk.failed', { disk: disk(2), reason: 'EIO' })
  withDisk('d2')
  assert.deepEqual([state.disks.get(disk(2))?.state, state.disks.get(disk(2))?.reason], ['failed', 'EIO'])
  assert.deepEqual(shown(), [1, 0], 'it is there and of no use')
})

test('a disk that has failed is tried again by a new process while nobody serves what it has a copy of: what it holds, though older, may be all there is', () => {
  const replica = threeNodes()
  const { state } = replica.machine
  const step = (down: Readonly<Record<number, View>>) => replica.run('chains.step', { views: views(replica, down), heldDown: [], facts: [], factsOnly: false })
  const fail = (n: number) => replica.run('disk.failed', { disk: disk(n), reason: 'EIO' })
  const afterRestart = (n: number) => {
    register(replica, n)
    return state.disks.get(disk(n))!.state
  }
  const stateOf = (n: number) => new Set(state.chains.map(({ entries }) => entries.find((entry) => entry.node === node(n))!.state))
  step({ 2: View.DOWN })
  fail(2)
  assert.equal(afterRestart(2), 'failed', 'others serve')
  step({ 1: View.DOWN, 3: View.DOWN })
  assert.deepEqual([stateOf(1), stateOf(2)], [new Set([ReplicaState.LASTSRV]), new Set([ReplicaState.OFFLINE])])
  assert.equal(afterRestart(2), 'ok')

  // all of them fail, and their processes begin anew before the chains have changed
  const other = threeNodes()
  for (const n of [1, 2, 3]) other.run('disk.failed', { disk: disk(n), reason: 'EIO' })
  register(other, 1)
  register(other, 2)
  assert.deepEqual(
    [1, 2].map((n) => other.machine.state.disks.get(disk(n))!.state),
    ['ok', 'ok'],
  )

  // as older versions did
  const old = threeNodes(3)
  for (const n of [1, 2, 3]) old.run('disk.failed', { disk: disk(n), reason: 'EIO' })
  for (const n of [1, 2]) register(old, n)
  assert.deepEqual(
    [1, 2].map((n) => old.machine.state.disks.get(disk(n))!.state),
    ['failed', 'failed'],
  )
})
