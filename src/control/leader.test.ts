/** The coordinator alone, on a Raft that is played. What it does in a cluster: plane.test.ts. */
import assert from 'node:assert/strict'
import test from 'node:test'
import { XsanError } from '../base/errors.ts'
import type { NodeNumber } from '../base/ids.ts'
import type { Clock, Log, TimerId } from '../env/control.ts'
import type { Raft } from '../raft/driver.ts'
import { Coordinator } from './leader.ts'
import { NO_OWN } from './settings.ts'
import { ClusterState } from './state.ts'

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
