/** What a leader makes of chains that an earlier one was moving. Whole plans: placement/moves.test.ts, plane.test.ts. */
import assert from 'node:assert/strict'
import test from 'node:test'
import type { DiskNumber, Incarnation, NodeNumber, SlotIndex } from '../base/ids.ts'
import { GiB } from '../base/units.ts'
import type { Clock, Log, TimerId } from '../env/control.ts'
import { ReplicaState } from '../placement/chain.ts'
import { CoordinatorView, View } from '../placement/view.ts'
import { type ArgsOf, encodeCommand, type OperationName } from './command.ts'
import { ControlStateMachine } from './machine.ts'
import type { SlotFacts } from './ops/chains-step.ts'
import { Rebalancer } from './rebalance.ts'
import { NO_OWN } from './settings.ts'

const NODES = [1, 2, 3, 4]
const disk = (n: number) => n as DiskNumber
const node = (n: number) => n as NodeNumber
const slot = 0 as SlotIndex
const addresses = { grpc: '', data: '', nbd: '', nbdSocket: '', admin: '' }
const silent: Log = { log: () => undefined, child: () => silent }
const clock: Clock = { nowMs: () => 0, wallMs: () => 0, setTimer: () => ({}) as TimerId, clearTimer: () => undefined }

/** Four nodes with a disk each, and one slot on the first three of them. */
function cluster() {
  const machine = new ControlStateMachine()
  let index = 0
  const run = <N extends OperationName>(op: N, args: ArgsOf<N>) => {
    const { result } = machine.apply({ index: ++index, term: 1, command: encodeCommand(op, args) })
    assert.equal((result as { error?: unknown }).error, undefined)
  }
  const settings = { 'storage.default_replica_count': 3 }
  run('cluster.init', { id: 'c', uuid: 'u', key: '00', slotCount: 1, wallMs: 0, settings, firstNode: { id: 'n1', key: '11', zone: '', rack: '' } })
  const about = { zone: '', rack: '', version: '', featureMax: 1, ...addresses }
  for (const n of NODES) {
    if (n > 1) {
      run('token.add', { hash: `t${n}`, nodeId: '', expiresAtMs: 9, wallMs: 0 })
      run('node.admit', { tokenHash: `t${n}`, joinId: 'j', nodeId: `n${n}`, key: '22', wallMs: 1, ...about })
    }
    const disks = [{ uuid: `d${n}`, path: '', type: 'ssd', role: 'capacity', capacityBytes: GiB }]
    run('node.register', { node: node(n), dataDir: '', bootId: '', disks, ...about })
  }
  run('chains.create', { slots: [[1, 2, 3].map(disk)] })
  const volume = { name: 'v', sizeBytes: GiB, replicas: 3, minCopies: 1, syncWhenWrite: true, readOnly: false, createdAtMs: 0 }
  run('volume.create', volume)
  const { state } = machine
  return {
    state,
    chain: () => state.chains[slot]!,
    step(facts: Omit<SlotFacts, 'slot'>) {
      const views = NODES.map((n) => ({ node: node(n), view: View.UP, incarnation: 1 as Incarnation }))
      run('chains.step', { views, heldDown: [], facts: [{ slot, ...facts }], factsOnly: true })
    },
    /** As at the beginning of a term: nobody has been heard yet. */
    newLeader() {
      const view = new CoordinatorView()
      view.newLeader(NODES.map((n) => [node(n), 1 as Incarnation] as const))
      return new Rebalancer({ state, clock, log: silent, own: NO_OWN, view, downSinceMs: () => undefined })
    },
  }
}

test('what an earlier leader was moving away leaves under the next one too, before that has a plan', () => {
  const { chain, step, newLeader } = cluster()
  step({ add: [disk(4), node(4)] })
  const syncing = chain().entries.find((entry) => entry.disk === 4)!
  assert.equal(syncing.state, ReplicaState.SYNCING)
  step({ upToDate: [disk(4), syncing.since, 1 as Incarnation] })
  step({ drain: disk(1), leave: true })
  assert.equal(chain().entries[0]!.state, ReplicaState.DRAINING)
  const leave = newLeader().leaves(slot, disk(1))
  step({ drained: [disk(1), chain().version, 1 as Incarnation], leave })
  assert.deepEqual(
    chain().entries.map((entry) => [entry.disk, entry.state]),
    [2, 3, 4].map((n) => [n, ReplicaState.SERVING]),
  )
})

test('a head that drains to become the tail comes back under the next leader', () => {
  const { chain, step, newLeader } = cluster()
  step({ drain: disk(1), leave: false })
  step({ drained: [disk(1), chain().version, 1 as Incarnation], leave: newLeader().leaves(slot, disk(1)) })
  assert.deepEqual(
    chain().entries.map((entry) => entry.disk),
    [2, 3, 1],
  )
})
