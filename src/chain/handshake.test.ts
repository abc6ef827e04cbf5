/** A peer that knows the cluster's key, and does not keep to the rules. */
import assert from 'node:assert/strict'
import { createHmac } from 'node:crypto'
import test from 'node:test'
import { ChainCluster, type ChainNode, DATA_PORT, pattern, TestClient } from '../../test/support/chain-cluster.ts'
import type { NodeNumber } from '../base/ids.ts'
import { Status } from '../base/status.ts'
import { PAGE_BYTES } from '../base/units.ts'
import { SimIoQueue } from '../env/sim/ioqueue.ts'
import { FRAME_BYTES, FrameHeader, type Lane } from '../wire/peer.ts'
import { Handshake } from './handshake.ts'
import { Connection, IN_BYTES, OUT_BYTES, Peer } from './lane.ts'

/** Connects to the node as the process of `as` would: one connection per lane named. Returns how many have heard that their peer knows the key, too. */
function dial(as: ChainNode, to: ChainNode, lanes: readonly number[]): { proven: number } {
  const queue = new SimIoQueue({ process: as.host.start('a second dialer'), name: 'dialer', arenaBytes: 4 * 1024 * 1024 })
  const { arena } = queue
  const seen = { proven: 0 }
  const handshake = new Handshake({
    arena,
    table: as.plane.table,
    authenticate: { hmac: (bytes) => createHmac('sha256', 'cluster key').update(bytes).digest(), nonce: () => new Uint8Array(16) },
    hooks: {
      send: (c, at, headBytes) => {
        c.commit(queue, at, headBytes, 0, 0, 0, 0, -1)
        c.sendGathered(queue, send)
      },
      refused: () => {},
      entered: () => {},
      welcomed: () => {},
    },
  })
  const connections: Connection[] = []
  const receive = (c: Connection) => queue.recv(c.handle, c.inPage, c.end, IN_BYTES - c.end, false, recv, c.id)
  const send = queue.register('send', (id) => connections[id]!.endSend(() => {}))
  const recv = queue.register('recv', (id, result) => {
    const c = connections[id]!
    if (result <= 0) return
    c.end += result
    const at = c.inPage * PAGE_BYTES + c.start
    const headBytes = c.end - c.start < FRAME_BYTES ? FRAME_BYTES : FrameHeader.get.headBytes(arena.view, at)
    if (c.end - c.start >= headBytes) {
      c.start += headBytes
      if (handshake.onFrame(c, FrameHeader.get.type(arena.view, at), at) === null) seen.proven++
    }
    receive(c)
  })
  const connected = queue.register('connect', (id, result) => {
    assert.equal(result, 0)
    handshake.begin(connections[id]!)
    receive(connections[id]!)
  })
  for (const [id, lane] of lanes.entries()) {
    const c = new Connection(id, arena.alloc(IN_BYTES), arena.alloc(OUT_BYTES))
    c.reset(0)
    Object.assign(c, { isDialer: true, lane: lane as Lane, session: 77, peer: new Peer(0, to.number as NodeNumber, 0) })
    connections.push(c)
    c.handle = queue.connectTcp({ host: to.host.address, port: DATA_PORT }, connected, id)
  }
  queue.runReactor(() => queue.turn(0))
  return seen
}

test('a peer that opens one lane twice loses that connection, and ends nobody', { timeout: 60_000 }, async () => {
  // both of them wait for the present session to end in a few of these
  for (let seed = 40; seed <= 60; seed++) {
    const cluster = new ChainCluster({ nodes: 2, slots: 1, seed, chainOf: () => [2, 1] })
    await cluster.start()
    const seen = dial(cluster.node(1), cluster.node(2), [0, 0, 1])
    await cluster.world.runFor(200)
    assert.ok(seen.proven >= 3, 'the premise: it has proven that it knows the key')
    await cluster.until('the session is there again', () => cluster.nodes.every(({ plane }) => plane.peers.peers.every(({ up }) => up)), 20_000)
    assert.equal(await cluster.world.settle(new TestClient(cluster.node(1)).write(0, 0, pattern(1)), 10_000), Status.SUCCESS)
  }
})
