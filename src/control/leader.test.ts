/** The coordinator alone, on a Raft that is played. What it does in a cluster: plane.test.ts. */
import assert from 'node:assert/strict'
import test from 'node:test'
import { XsanError } from '../base/errors.ts'
import type { ChainVersion, DiskNumber, Incarnation, NodeNumber, SlotIndex } from '../base/ids.ts'
import { GiB } from '../base/units.ts'
import type { Clock, Log, TimerId } from '../env/control.ts'
import { CHAIN_ENTRIES_MAX, CHAIN_VERSION_MAX, ReplicaState } from '../placement/chain.ts'
import { View } from '../placement/view.ts'
import { COMMAND_BYTES_MAX, type Raft } from '../raft/driver.ts'
import { type ArgsOf, encodeCommand, type OperationName } from './command.ts'
import { Coordinator, FACTS_MAX } from './leader.ts'
import { ControlStateMachine } from './machine.ts'
import { NODES_MAX } from './ops/node-admit.ts'
import { LEADER_PEER_METHODS } from './services/peer.ts'
import type { ServiceContext } from './services/service.ts'
import { NO_OWN } from './settings.ts'
import { ClusterState, FEATURE_LEVEL } from './state.ts'

const silent: Log = { log: () => undefined, child: () => silent }

test('while Raft refuses at once, a leader that begins leaves others their turn between its tries, and ends when it is stopped', async () => {
  let tries = 0
  const timers: Array<() => void> = []
  const clock: Clock = {
    nowMs: () => 0,
    wallMs: () => 0,
    setTimer: (_delayMs, fn) => timers.push(fn) as unknown as TimerId,
    clearTimer: () => undefined,
  }
  const raft = {
    id: 1 as NodeNumber,
    term: 2,
    readIndex: () => {
      // as a node that spins would never come back to this test
      if (++tries > 100) return Promise.reject(new XsanError('NOT_LEADER', 'enough'))
      return Promise.reject(new XsanError('CONSENSUS_FAILED', 'Raft failed on this node'))
    },
  }
  const coordinator = new Coordinator({
    raft: raft as unknown as Raft,
    state: new ClusterState(),
    clock,
    log: silent,
    own: NO_OWN,
    leaseMs: 2000,
    nudge: () => undefined,
  })
  await new Promise((resolve) => setImmediate(resolve))
  assert.equal(tries, 1)
  timers.shift()!()
  await new Promise((resolve) => setImmediate(resolve))
  assert.equal(tries, 2)
  coordinator.stop()
  timers.shift()!()
  await assert.rejects(coordinator.started, { status: 'NOT_LEADER' })
  assert.equal(tries, 2)
})

const LEASE_MS = 2000

async function turns(): Promise<void> {
  for (let i = 0; i < 8; i++) await new Promise((resolve) => setImmediate(resolve))
}

/** The leader of three nodes, each with a disk, all heard; what it asks of Raft is held back on demand. */
async function leaderOfThree() {
  const machine = new ControlStateMachine()
  let index = 0
  const apply = (command: Uint8Array) => machine.apply({ index: ++index, term: 1, command }).result
  const run = <N extends OperationName>(op: N, args: ArgsOf<N>) => void apply(encodeCommand(op, args))
  const addresses = (n: number) => ({ grpc: `h${n}:8080`, data: `h${n}:8000`, nbd: '', nbdSocket: '', admin: '' })
  const isNew = { zone: '', rack: '', version: '1', featureMax: FEATURE_LEVEL }
  run('cluster.init', {
    id: 'c',
    uuid: 'u',
    key: 'aa',
    slotCount: 4,
    wallMs: 1,
    settings: { 'storage.default_replica_count': 3 },
    firstNode: { id: 'node-1', key: 'k1', zone: '', rack: '' },
  })
  for (const n of [1, 2, 3]) {
    if (n > 1) {
      run('token.add', { hash: `t${n}`, nodeId: '', expiresAtMs: 100, wallMs: 1 })
      run('node.admit', { tokenHash: `t${n}`, joinId: `j${n}`, nodeId: `node-${n}`, key: `k${n}`, wallMs: 1, ...isNew, ...addresses(n) })
    }
    const disks = [{ uuid: `d${n}`, path: '/x', type: 'ssd', role: 'capacity', capacityBytes: GiB }] as const
    run('node.register', { node: n as NodeNumber, dataDir: '/d', bootId: 'b', disks: [...disks], ...isNew, ...addresses(n) })
  }
  run('feature.raise', { level: FEATURE_LEVEL })
  run('chains.create', { slots: Array.from({ length: 4 }, () => [1, 2, 3].map((n) => n as DiskNumber)) })
  /** What is proposed waits here while there is a list. */
  let held: Array<() => void> | undefined
  let round: () => Promise<number> = () => Promise.resolve(index)
  const raft = {
    id: 1 as NodeNumber,
    term: 2,
    isLeader: true,
    members: { voters: [1, 2, 3], learners: [], votersOutgoing: [] },
    status: () => ({ progress: [], lastIndex: index, term: 2 }),
    readIndex: () => round(),
    propose: async (command: Uint8Array) => {
      if (held) await new Promise<void>((resolve) => held!.push(resolve))
      return apply(command)
    },
  }
  const clock: Clock = {
    nowMs: () => 1_000_000,
    wallMs: () => 0,
    // time stands still; renewals that are gathered wait for a few milliseconds, and they are over
    setTimer: (delayMs, fn) => (delayMs < 10 ? setImmediate(fn) : 0) as unknown as TimerId,
    clearTimer: () => undefined,
  }
  const { state } = machine
  const coordinator = new Coordinator({ raft: raft as unknown as Raft, state, clock, log: silent, own: NO_OWN, leaseMs: LEASE_MS, nudge: () => undefined })
  await coordinator.started
  const incarnationOf = (node: NodeNumber): Incarnation => state.nodes.get(node)!.incarnation
  let doubt = 0
  /** As a node does that has heard of the newest doubt. */
  const renew = async (n: number) => {
    const node = n as NodeNumber
    const ask = () => coordinator.renew(node, incarnationOf(node), { tableRevision: state.revision, doubt, unreachable: [] })
    doubt = (await ask()).doubt
    return ask()
  }
  for (const n of [1, 2, 3]) assert.equal((await renew(n)).granted, true)
  return {
    coordinator,
    state,
    renew,
    incarnationOf,
    hold: () => {
      held = []
    },
    heldCount: () => held?.length ?? 0,
    release: () => {
      const waiting = held ?? []
      held = undefined
      for (const go of waiting) go()
    },
    rounds: (next: () => Promise<number>) => {
      round = next
    },
  }
}

test('from the proposal of a drop until it is applied, who is dropped is granted nothing, though it is heard (protocol 28)', async (t) => {
  const leader = await leaderOfThree()
  t.after(() => leader.coordinator.stop())
  const third = 3 as NodeNumber
  leader.hold()
  leader.coordinator.refused([{ node: third, incarnation: leader.incarnationOf(third) }])
  for (const n of [1, 2]) assert.equal((await leader.renew(n)).granted, true)
  await turns()
  assert.equal(leader.heldCount(), 1, 'the drop is proposed')
  const { granted, reason } = await leader.renew(3)
  assert.deepEqual({ granted, reason }, { granted: false, reason: 'a change of the chains without this node is under way' })
  leader.release()
  await turns()
  const states = leader.state.chains.map(({ entries }) => entries.find(({ node }) => node === third)?.state)
  assert.ok(
    states.every((state) => state === ReplicaState.OFFLINE),
    String(states),
  )
  assert.equal((await leader.renew(3)).granted, true)
})

test('a lease is granted when a round of Raft that began after it was asked for says that this node leads still (protocol 29)', async (t) => {
  const leader = await leaderOfThree()
  t.after(() => leader.coordinator.stop())
  const begun: Array<{ resolve: (index: number) => void; reject: (error: unknown) => void }> = []
  leader.rounds(() => new Promise((resolve, reject) => begun.push({ resolve, reject })))
  const ask = () => {
    const asked = { ended: false }
    const node = 2 as NodeNumber
    const grant = leader.coordinator.renew(node, leader.incarnationOf(node), { tableRevision: leader.state.revision, doubt: 0, unreachable: [] })
    grant.then(
      () => (asked.ended = true),
      () => (asked.ended = true),
    )
    return { asked, grant }
  }
  leader.coordinator.refused([{ node: 3 as NodeNumber, incarnation: leader.incarnationOf(3 as NodeNumber) }])
  const first = ask()
  await turns()
  assert.deepEqual([begun.length, first.asked.ended], [1, false])
  const second = ask()
  await turns()
  begun[0]!.resolve(1)
  assert.equal((await first.grant).granted, true)
  await turns()
  assert.deepEqual([begun.length, second.asked.ended], [2, false], 'the round of the first had begun before')
  begun[1]!.reject(new XsanError('NOT_LEADER', 'another one leads'))
  await assert.rejects(second.grant, { status: 'NOT_LEADER' })
})

test('a disk whose failure is on its way into the log when the operator gives up another one is not given up with it', async (t) => {
  const leader = await leaderOfThree()
  t.after(() => leader.coordinator.stop())
  const { coordinator, state } = leader
  const refused = (...nodes: number[]) => coordinator.refused(nodes.map((n) => ({ node: n as NodeNumber, incarnation: leader.incarnationOf(n as NodeNumber) })))
  const statesOf = (disk: number) => new Set(state.chains.map(({ entries }) => entries.find((entry) => entry.disk === disk)!.state))
  // once there is one, chains are not made anew
  const volume = { name: 'v', sizeBytes: GiB, replicas: 3, minCopies: 1, syncWhenWrite: true, readOnly: false, createdAtMs: 0 }
  await coordinator.propose('volume.create', volume)
  // the third one is behind; of those that served last the second one is there again
  refused(3)
  for (const n of [1, 2]) await leader.renew(n)
  await turns()
  await leader.renew(3)
  await turns()
  refused(1, 2)
  await leader.renew(3)
  await turns()
  for (const n of [2, 3]) {
    await leader.renew(n)
    const ids = state.chains.map(({ version }, slot) => ({ slot: slot as SlotIndex, version: version as ChainVersion, hi: 1, lo: n === 2 ? 9 : 5, flags: 0 }))
    coordinator.lastIds(n as NodeNumber, leader.incarnationOf(n as NodeNumber), n as DiskNumber, ids)
  }
  await turns()
  assert.deepEqual([1, 2, 3].map(statesOf), [new Set([ReplicaState.LASTSRV]), new Set([ReplicaState.LASTSRV]), new Set([ReplicaState.WAITING])])
  leader.hold()
  const context = {
    state,
    env: { clock: { nowMs: () => 0 }, log: silent },
    stats: new Map(),
    coordinator: async () => coordinator,
  } as unknown as ServiceContext
  const sender = { node: 2 as NodeNumber, incarnation: leader.incarnationOf(2 as NodeNumber) }
  void LEADER_PEER_METHODS['Report']!(context, { disk: 2, diskFailedReason: 'EIO' }, { sender, timeoutMs: 1000 })
  await turns()
  coordinator.recover({ loss: true })
  await turns()
  leader.release()
  await turns()
  assert.equal(state.disks.get(2 as DiskNumber)!.state, 'failed')
  assert.deepEqual(statesOf(3), new Set([ReplicaState.WAITING]), 'what the second disk holds may be had yet')
  // once he knows of it
  coordinator.recover({ loss: true })
  await turns()
  assert.deepEqual(statesOf(3), new Set([ReplicaState.SERVING]))
})

test('the largest change of the chains is no larger than a command may be', () => {
  const id = [99_999 as DiskNumber, 99_999 as Incarnation, CHAIN_VERSION_MAX as ChainVersion, 0xffff_ffff, 0xffff_ffff, 7] as const
  const command = encodeCommand('chains.step', {
    views: Array.from({ length: NODES_MAX }, () => ({ node: 99_999 as NodeNumber, view: View.MAYBE, incarnation: 99_999 as Incarnation })),
    heldDown: Array.from({ length: NODES_MAX }, () => 99_999 as NodeNumber),
    facts: Array.from({ length: FACTS_MAX }, () => ({
      slot: 65_535 as SlotIndex,
      add: [99_999 as DiskNumber, 99_999 as NodeNumber] as const,
      lastIds: Array.from({ length: CHAIN_ENTRIES_MAX }, () => id),
    })),
    factsOnly: false,
    recoverWithoutAll: true,
    acceptDataLoss: true,
  })
  assert.ok(command.length <= COMMAND_BYTES_MAX, `${command.length} bytes`)
})
