/**
 * A peer that knows the cluster's key and says what no peer may say, in frames whose checksums are right: whoever hears it says why it ends the
 * connection, believes nothing of it, and all goes on.
 */
import assert from 'node:assert/strict'
import test, { type TestContext } from 'node:test'
import { ChainCluster, type ChainNode, PageLoad, pattern, RELAXED_VOLUME, TestClient, VOLUME } from '../../test/support/chain-cluster.ts'
import { Prng } from '../base/prng.ts'
import { Status } from '../base/status.ts'
import { BLOCK_BYTES, PAGES_PER_BLOCK } from '../base/units.ts'
import {
  Ack,
  Alive,
  Call,
  CallData,
  CallKind,
  Credit,
  Forward,
  ForwardRefusal,
  FRAME_BYTES,
  FrameHeader,
  FullDisk,
  frameName,
  Hello,
  Lane,
  Mac,
  PeerFrame,
  putFrame,
  Read,
  ReadAnswer,
  Update,
  UpdateAnswer,
} from '../wire/peer.ts'
import { Connection, Owner } from './lane.ts'

const LIAR = 1
const RULES = 'that breaks the rules of the protocol'

/** `body`: where the fields of the frame's type begin. */
type Lie = (view: DataView, body: number) => void

/** Has frames that the node queues say something else, before their checksum is made. `at`: where the frame begins. */
function lieAlways(t: TestContext, liar: ChainNode, lie: (view: DataView, at: number, headBytes: number) => void): { readonly stop: () => void } {
  const { commit } = Connection.prototype
  const stop = () => {
    Connection.prototype.commit = commit
  }
  t.after(stop)
  Connection.prototype.commit = function (this: Connection, queue, at, headBytes, ...rest) {
    if (queue === liar.queue) lie(queue.arena.view, at, headBytes)
    commit.call(this, queue, at, headBytes, ...rest)
  }
  return { stop }
}

/** The same of the next frame of that type, and no other. */
function lieOnce(t: TestContext, liar: ChainNode, type: number, lie: Lie): { readonly told: boolean } {
  const seen = { told: false }
  lieAlways(t, liar, (view, at) => {
    if (seen.told || FrameHeader.get.type(view, at) !== type) return
    seen.told = true
    lie(view, at + FRAME_BYTES)
  })
  return seen
}

function saidTo(cluster: ChainCluster, reason: string): boolean {
  return cluster.nodes.some(({ told }) => told.some((message) => message.type === 'log' && JSON.stringify(message.fields).includes(reason)))
}

/** Every kind of frame between all nodes: writes, reads, flushes, and a member that comes back. */
async function load(cluster: ChainCluster): Promise<PageLoad> {
  const pages = new PageLoad(cluster, { pages: 24, thinkMs: 5 })
  pages.run(6)
  for (const node of cluster.nodes) {
    const client = new TestClient(node)
    void client.write(1, 0, pattern(node.number), { volume: RELAXED_VOLUME }).then(() => client.flush(RELAXED_VOLUME))
  }
  await cluster.world.runFor(20)
  return pages
}

async function goesOn(cluster: ChainCluster, pages: PageLoad): Promise<void> {
  await pages.stop()
  assert.equal(pages.failures, 0)
  await cluster.until('all sessions are there', () => cluster.nodes.every(({ plane }) => plane.peers.peers.every(({ up }) => up)), 20_000)
  await cluster.until('all serve', () => cluster.allServing, 20_000)
  await cluster.world.settle(pages.verify(), 20_000)
  await cluster.until('quiet', () => cluster.quiet)
  cluster.assertEqual()
}

const LIES: ReadonlyArray<readonly [type: number, what: string, lie: Lie, reason: string]> = [
  [PeerFrame.HELLO, 'a protocol of the future', (view, body) => Hello.set.protocolMin(view, body, 200), 'protocol 200 to'],
  [PeerFrame.HELLO, 'another cluster', (view, body) => view.setUint8(body + Hello.offsets.clusterId, 0x41), 'a node of another cluster'],
  [PeerFrame.HELLO, 'other slots', (view, body) => Hello.set.slotCount(view, body, 7), '7 slots, this node has'],
  [PeerFrame.HELLO, 'other blocks', (view, body) => Hello.set.blockBytes(view, body, 512), 'blocks of 512 bytes'],
  [PeerFrame.HELLO, 'a lane that does not exist', (view, body) => Hello.set.lane(view, body, 3), 'lane 3'],
  [PeerFrame.HELLO, 'a node nobody knows', (view, body) => Hello.set.node(view, body, 77), 'node 77 is not a peer'],
  [PeerFrame.HELLO, 'the node it speaks to', (view, body) => Hello.set.node(view, body, 2), 'node 2 is not a peer'],
  [PeerFrame.HELLO, 'a fenced incarnation', (view, body) => Hello.set.incarnation(view, body, 0), 'incarnation 0 of node 1 is fenced'],
  [PeerFrame.HELLO, 'a nonce that was changed on the way', (view, body) => view.setUint8(body + Hello.offsets.nonce, 0), 'does not know the key'],
  [PeerFrame.PROOF, 'a proof that is none', (view, body) => view.setUint8(body + Mac.offsets.mac, view.getUint8(body) ^ 1), 'does not know the key'],
  [PeerFrame.ALIVE, 'a clock beyond 2^53', (view, body) => view.setUint32(body + Alive.offsets.clockMs + 4, 0xffff_ffff, true), 'clockMs'],
  [PeerFrame.ACKS, 'a slot that does not exist', (view, body) => Ack.set.slot(view, body, 0xffff_ffff), 'an acknowledgement of slot 4294967295'],
  [PeerFrame.ACKS, 'an id beyond 2^53', (view, body) => view.setUint32(body + Ack.offsets.sv + 4, 0xffff_ffff, true), 'an acknowledgement of slot'],
  [PeerFrame.CREDITS, 'a hop that does not exist', (view, body) => Credit.set.hop(view, body, 99), 'credit for hop 99'],
  [PeerFrame.CREDITS, 'rows beyond 2^53', (view, body) => view.setUint32(body + Credit.offsets.rows + 4, 0xffff_ffff, true), 'rows'],
  [PeerFrame.CALL, 'a kind that does not exist', (view, body) => Call.set.kind(view, body, 1234), 'call of kind 1234'],
  [PeerFrame.CALL_DATA, 'a row nobody waits in', (view, body) => CallData.set.requestRow(view, body, 0xffff_ffff), 'an answer nobody waits for'],
  [PeerFrame.CALL_DATA, 'a place behind the room there is', (view, body) => CallData.set.offsetBytes(view, body, 0xffff_f000), 'CALL_DATA'],
  [PeerFrame.CALL_DATA, 'a length of all there is', (view, body) => CallData.set.lengthBytes(view, body, 0xffff_ffff), 'an answer longer than asked for'],
  [PeerFrame.UPDATE, 'a slot that does not exist', (view, body) => Update.set.slot(view, body, 0x8000_0000), `UPDATE ${RULES}`],
  [PeerFrame.UPDATE, 'a kind that does not exist', (view, body) => Update.set.kind(view, body, 200), `UPDATE ${RULES}`],
  [PeerFrame.UPDATE, 'channel 0', (view, body) => Update.set.channel(view, body, 0), `UPDATE ${RULES}`],
  [PeerFrame.UPDATE, 'a channel that does not exist', (view, body) => Update.set.channel(view, body, 0xffff_ffff), `UPDATE ${RULES}`],
  [PeerFrame.UPDATE, 'no sequence number', (view, body) => Update.set.seq(view, body, 0), `UPDATE ${RULES}`],
  [PeerFrame.UPDATE, 'a place behind its block', (view, body) => Update.set.offsetBytes(view, body, BLOCK_BYTES), `UPDATE ${RULES}`],
  [PeerFrame.UPDATE, 'part of a sector', (view, body) => Update.set.offsetBytes(view, body, 1), `UPDATE ${RULES}`],
  [PeerFrame.UPDATE, 'another length than its payload', (view, body) => Update.set.lengthBytes(view, body, 512), `UPDATE ${RULES}`],
  [PeerFrame.UPDATE, 'a volume beyond 2^53', (view, body) => view.setUint32(body + Update.offsets.volume + 4, 0xffff_ffff, true), `UPDATE ${RULES}`],
  [PeerFrame.UPDATE, 'a life of a day', (view, body) => Update.set.untilMs(view, body, 86_400_000), 'further ahead than a write lives'],
  [PeerFrame.UPDATE, 'another checksum of its page', (view, body) => view.setUint32(body + Update.size, 1, true), 'a page with a wrong checksum'],
  [PeerFrame.READ, 'a slot that does not exist', (view, body) => Read.set.slot(view, body, 0xffff_ffff), 'a bad range'],
  [PeerFrame.READ, 'no page', (view, body) => Read.set.pageCount(view, body, 0), 'a bad range'],
  [PeerFrame.READ, 'more pages than there are', (view, body) => Read.set.pageCount(view, body, 0xffff_ffff), 'a bad range'],
  [PeerFrame.READ, 'a page behind the block', (view, body) => Read.set.firstPage(view, body, PAGES_PER_BLOCK), 'a bad range'],
  [PeerFrame.READ, 'a volume beyond 2^53', (view, body) => view.setUint32(body + Read.offsets.volume + 4, 0xffff_ffff, true), 'volume'],
  [PeerFrame.READ_ANSWER, 'a row nobody waits in', (view, body) => ReadAnswer.set.requestRow(view, body, 0xffff_ffff), `READ_ANSWER ${RULES}`],
  [PeerFrame.READ_ANSWER, 'another checksum', (view, body) => ReadAnswer.set.payloadCrc(view, body, 1), 'a payload with a wrong checksum'],
  [PeerFrame.FORWARD, 'a slot that does not exist', (view, body) => Forward.set.slot(view, body, 0x8000_0000), `FORWARD ${RULES}`],
  [PeerFrame.FORWARD, 'hop 0', (view, body) => Forward.set.hop(view, body, 0), `FORWARD ${RULES}`],
  [PeerFrame.FORWARD, 'a hop that does not exist', (view, body) => Forward.set.hop(view, body, 255), `FORWARD ${RULES}`],
  [PeerFrame.FORWARD, 'a kind that does not exist', (view, body) => Forward.set.kind(view, body, 99), `FORWARD ${RULES}`],
  [PeerFrame.FORWARD, 'a channel that does not exist', (view, body) => Forward.set.channel(view, body, 0xffff_ffff), `FORWARD ${RULES}`],
  [PeerFrame.FORWARD, 'no id', (view, body) => view.setBigUint64(body + Forward.offsets.id, 0n), `FORWARD ${RULES}`],
  [PeerFrame.FORWARD, 'a page behind its block', (view, body) => Forward.set.firstPage(view, body, 0xffff), `FORWARD ${RULES}`],
  [PeerFrame.FORWARD, 'more pages than it brings', (view, body) => Forward.set.pageCount(view, body, 200), `FORWARD ${RULES}`],
  [PeerFrame.FORWARD, 'another checksum of its page', (view, body) => view.setUint32(body + Forward.size, 1, true), 'wrong checksum'],
]

for (const [type, what, lie, reason] of LIES) {
  test(`${frameName(type)} with ${what}: the connection ends, and all goes on`, { timeout: 60_000 }, async (t) => {
    const cluster = new ChainCluster({ nodes: 3, slots: 8, seed: type, chainOf: (slot) => [(slot % 3) + 1, ((slot + 1) % 3) + 1] })
    await cluster.start()
    const pages = await load(cluster)
    const liar = cluster.node(LIAR)
    const said = lieOnce(t, liar, type, lie)
    if (type < PeerFrame.FORWARD) liar.plane.peers.peerDown(cluster.node(2).number, cluster.node(2).incarnation)
    if (type === PeerFrame.CALL || type === PeerFrame.CALL_DATA) {
      const client = new TestClient(cluster.node(type === PeerFrame.CALL ? LIAR : 2))
      void cluster.world.runFor(0)
      void client.write(1, 4096, pattern(9), { volume: RELAXED_VOLUME }).then(() => client.flush(RELAXED_VOLUME))
    }
    await cluster.until('it has lied', () => said.told, 5000)
    await cluster.until(`somebody says: ${reason}`, () => saidTo(cluster, reason), 5000)
    await goesOn(cluster, pages)
  })
}

/** Queues a frame that the node itself would not send now. */
function say(from: ChainNode, to: ChainNode, lane: Lane, type: PeerFrame, bodyBytes: number, fill: Lie): void {
  const { peers } = from.plane
  const { index } = peers.peers.find((peer) => peer.node === to.number)!
  const headBytes = FRAME_BYTES + bodyBytes
  const at = peers.reserve(index, lane, headBytes)
  assert.ok(at >= 0)
  const { view, bytes } = from.queue.arena
  bytes.fill(0, at, at + headBytes)
  putFrame(view, at, type, headBytes, 0)
  fill(view, at + FRAME_BYTES)
  peers.send(index, lane, at, headBytes, 0, 0, 0, Owner.NONE, -1)
}

const UNASKED: ReadonlyArray<readonly [type: PeerFrame, lane: Lane, bodyBytes: number, what: string, fill: Lie, reason: string]> = [
  [
    PeerFrame.FORWARD_REFUSALS,
    Lane.ACK,
    ForwardRefusal.size,
    'a slot that does not exist',
    (view, body) => ForwardRefusal.set.slot(view, body, 8),
    'a refusal for slot 8',
  ],
  [PeerFrame.WELCOME, Lane.ACK, 0, 'nothing, after the handshake', () => {}, 'WELCOME'],
  [PeerFrame.UPDATE_ANSWERS, Lane.BULK, UpdateAnswer.size, 'a row nobody waits in', (view, body) => UpdateAnswer.set.requestRow(view, body, 0xffff_ffff), ''],
  [PeerFrame.FULL_DISKS, Lane.ACK, FullDisk.size, 'a disk that does not exist', (view, body) => FullDisk.set.disk(view, body, 0xffff_ffff), ''],
]

for (const [type, lane, bodyBytes, what, fill, reason] of UNASKED) {
  test(`${frameName(type)} with ${what}, unasked: ${reason === '' ? 'it means nothing' : 'the connection ends'}, and all goes on`, {
    timeout: 60_000,
  }, async () => {
    const cluster = new ChainCluster({ nodes: 3, slots: 8, seed: type })
    await cluster.start()
    const pages = await load(cluster)
    const liar = cluster.node(LIAR)
    liar.process.schedule(0, 'a lie', () => {
      say(liar, cluster.node(2), lane, type, bodyBytes, fill)
      liar.plane.settle()
    })
    await cluster.until(`somebody says: ${reason}`, () => saidTo(cluster, reason) || reason === '', 5000)
    await cluster.world.runFor(100)
    await goesOn(cluster, pages)
  })
}

test('more calls at one time than a node serves are answered BUSY, and no call of others waits for them', { timeout: 60_000 }, async () => {
  const cluster = new ChainCluster({ nodes: 3, slots: 8 })
  await cluster.start()
  const pages = await load(cluster)
  const liar = cluster.node(LIAR)
  const answers: number[] = []
  liar.process.schedule(0, 'many calls', () => {
    const { index } = liar.plane.peers.peers.find((peer) => peer.node === 2)!
    const args = new Uint8Array(16)
    for (let i = 0; i < 120; i++) {
      void liar.plane.calls.call(index, CallKind.FLUSH, args, 0, 0).then(({ status }) => {
        answers.push(status)
        cluster.world.asyncPending = true
      })
    }
    liar.queue.asyncPending = true
    liar.plane.settle()
  })
  await cluster.until('all are answered', () => answers.length === 120, 10_000)
  assert.ok(answers.includes(Status.BUSY) && answers.some((status) => status !== Status.BUSY), [...new Set(answers)].join(' '))
  await goesOn(cluster, pages)
})

test('a node without a table is no peer yet, and one at the address of another is none', { timeout: 60_000 }, async () => {
  const cluster = new ChainCluster({ nodes: 3, slots: 8 })
  const [one, two, three] = cluster.nodes
  for (const node of cluster.nodes) node.start()
  for (const node of [one!, two!]) cluster.sendTable(node)
  await cluster.until('it says so', () => saidTo(cluster, 'this node has no table yet'), 5000)
  cluster.sendTable(three!)
  await cluster.until(
    'all sessions are there',
    () => cluster.nodes.every(({ plane }) => plane.peers.peers.length === 2 && plane.peers.peers.every(({ up }) => up)),
    5000,
  )
  one!.plane.peers.peerDown(two!.number, two!.incarnation)
  one!.plane.peers.peers.find((peer) => peer.node === two!.number)!.address = three!.plane.peers.peers[0]!.address.replace(/\.\d+:/, '.3:')
  await cluster.until('it says so', () => saidTo(cluster, 'node 3 answers at the address of node 2'), 5000)
})

test('whatever one word of a frame says, it ends no process', { timeout: 120_000 }, async (t) => {
  let lies = 0
  for (let seed = 1; seed <= 5; seed++) {
    const random = new Prng(seed)
    const members = 2 + (seed % 2)
    const cluster = new ChainCluster({ nodes: 3, slots: 8, seed, chainOf: (slot) => Array.from({ length: members }, (_, i) => ((slot + i) % 3) + 1) })
    await cluster.start()
    const liar = cluster.node(LIAR)
    const { stop } = lieAlways(t, liar, (view, at, headBytes) => {
      if (headBytes === FRAME_BYTES || !random.chance(0.02)) return
      const word = at + FRAME_BYTES + 4 * random.below((headBytes - FRAME_BYTES) >> 2)
      const value = view.getUint32(word, true)
      view.setUint32(word, random.pick([0, 1, 0xffff_ffff, 0x7fff_ffff, 0x8000_0000, value + 1, value - 1, random.u32()]) >>> 0, true)
      lies++
    })
    for (const node of cluster.nodes) void work(new TestClient(node), random)
    await cluster.world.runFor(200)
    await cluster.kill(3)
    await cluster.world.runFor(50)
    cluster.restart(3)
    await cluster.world.runFor(250)
    stop()
  }
  assert.ok(lies > 60, `${lies}`)
})

/** What it reads and is told may be lies: nothing is asked of that. It ends with its world. */
async function work(client: TestClient, random: Prng): Promise<void> {
  for (;;) {
    const index = random.below(6)
    const volume = random.pick([VOLUME, RELAXED_VOLUME])
    const what = random.below(5)
    if (what === 0) await client.read(index, random.below(20), 1 + random.below(4), volume)
    else if (what === 1) await client.zero(index, 0, random.pick([3, PAGES_PER_BLOCK]), volume)
    else if (what === 2) await client.flush(RELAXED_VOLUME)
    else await client.write(index, random.below(30) * 512, pattern(index, 512 * (1 + random.below(20))), { volume })
  }
}
