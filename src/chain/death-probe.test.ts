import assert from 'node:assert/strict'
import test from 'node:test'
import type { NodeNumber } from '../base/ids.ts'
import { Errno, type IoQueue } from '../env/ioqueue.ts'
import { DeathProbes } from './death-probe.ts'
import { Peer } from './lane.ts'

/** Connects that end when the test says so. */
function make() {
  const handlers: Array<(row: number, result: number) => void> = []
  const connects: string[] = []
  const queue = {
    nowMs: 0,
    register: (_name: string, handler: (row: number, result: number) => void) => handlers.push(handler) - 1,
    connectTcp: ({ host, port }: { host: string; port: number }) => connects.push(`${host}:${port}`),
    close: () => closes++,
  }
  let closes = 0
  const peer = new Peer(0, 2 as NodeNumber, 0)
  peer.address = '10.0.0.2:8000'
  peer.addressOf = 1
  const proven: number[] = []
  const probes = new DeathProbes({ queue: queue as unknown as IoQueue, peers: [peer], proven: (_peer, incarnation) => proven.push(incarnation) })
  const end = (result: number) => {
    handlers[0]!(0, result)
    handlers[1]!(0, 0)
  }
  const turn = () => {
    queue.nowMs += 50
    probes.tick()
  }
  return { peer, probes, proven, connects, end, turn, closes: () => closes }
}

test('a refused connect proves that the process is dead that was suspected when it began, and no later one', () => {
  const { peer, probes, proven, connects, end, turn, closes } = make()
  probes.suspect(peer, 1)
  assert.deepEqual(connects, ['10.0.0.2:8000'])
  // the next process has come, and its session has ended, before the answer to the connect is looked at
  peer.up = true
  probes.clear(peer)
  peer.up = false
  peer.addressOf = 2
  probes.suspect(peer, 2)
  assert.equal(connects.length, 1)
  end(-Errno.ECONNREFUSED)
  assert.deepEqual(proven, [])
  turn()
  assert.equal(connects.length, 2)
  end(-Errno.ECONNREFUSED)
  assert.deepEqual([proven, closes()], [[2], 2])
})

test('a refused connect says nothing of a process that listens elsewhere', () => {
  const { peer, probes, proven, end, turn } = make()
  // it has come in, and the table with its address has not
  probes.suspect(peer, 2)
  end(-Errno.ECONNREFUSED)
  assert.deepEqual(proven, [])
  peer.address = '10.0.0.2:8001'
  peer.addressOf = 2
  turn()
  end(-Errno.ECONNREFUSED)
  assert.deepEqual(proven, [2])
})
