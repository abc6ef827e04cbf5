/** What strangers, broken clients and attackers send to a running node: refused, logged once, and everybody else is served as before. (How a node refuses to start: start.test.ts.) */
import assert from 'node:assert/strict'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import test, { after, afterEach, before } from 'node:test'
import { XsanError } from '../../src/base/errors.ts'
import { Prng } from '../../src/base/prng.ts'
import { run, sleep, until } from '../support/commands.ts'
import { DevCluster, isAlive } from '../support/dev-cluster.ts'
import { ConnectionLost, Errno, NbdClient, NbdError } from '../support/nbd-client.ts'

const VOLUME = 'db'
const MiB = 1024 * 1024
const TEST_MS = 90_000
const CONNECTIONS_MAX = 24
const HEARTBEAT_GROUP = '239.255.88.10'

let cluster: DevCluster
/** Stays connected through everything, and is served. */
let honest: NbdClient
const mark = Buffer.alloc(4096, 0xa5)

before(
  async () => {
    cluster = await DevCluster.up({ nodes: 3, replicas: 3, diskSize: '1G', set: [`network.max_connections=${CONNECTIONS_MAX}`] })
    await cluster.createVolume(VOLUME, '64M')
    honest = await cluster.nbd('node-1', VOLUME)
    await honest.write(0, mark)
  },
  { timeout: TEST_MS },
)
after(
  async () => {
    honest?.destroy()
    await cluster?.end()
  },
  { timeout: 60_000 },
)
afterEach(async () => {
  for (const { id, pid } of cluster.nodes) assert.ok(isAlive(pid), `${id} has died`)
  const page = Buffer.alloc(4096, Math.floor(performance.now()) % 256)
  await honest.write(4096, page)
  assert.ok((await honest.read(4096, 4096)).equals(page))
  assert.ok((await honest.read(0, 4096)).equals(mark))
  assert.equal((await cluster.healthy()).health, 'safe')
})

const port = (address: string) => Number(address.slice(address.lastIndexOf(':') + 1))

async function open(toPort: number): Promise<Socket> {
  const socket = connect({ host: '127.0.0.1', port: toPort })
  socket.on('error', () => {})
  await once(socket, 'connect')
  return socket
}

/** Sends, and waits until the other side has closed. */
async function sendUntilClosed(toPort: number, data: Buffer, timeoutMs = 20_000): Promise<void> {
  const socket = await open(toPort)
  const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()))
  socket.resume()
  socket.write(data)
  const timer = setTimeout(() => socket.destroy(new Error('still open')), timeoutMs)
  let late = false
  socket.on('error', (error) => {
    late ||= error.message === 'still open'
  })
  await closed
  clearTimeout(timer)
  assert.ok(!late, `port ${toPort} keeps a connection open that sent nonsense`)
}

function noise(seed: number, bytes: number): Buffer {
  const data = Buffer.alloc(bytes)
  new Prng(seed).fill(data)
  return data
}

test('garbage on the NBD, data, gRPC and admin ports ends those connections and nothing else', { timeout: TEST_MS }, async () => {
  const { grpc, data, nbd, admin } = cluster.node('node-1')
  const jobs: Promise<void>[] = []
  for (const address of [data, nbd, admin]) {
    for (let seed = 1; seed <= 4; seed++) jobs.push(sendUntilClosed(port(address), noise(seed, 1 << (4 * seed))))
  }
  // HTTP/2 may keep a connection that has not sent a whole preface; it must not keep more than its connection
  for (let seed = 1; seed <= 4; seed++) {
    const socket = await open(port(grpc))
    socket.write(noise(seed, 1 << (4 * seed)))
    jobs.push(sleep(1000).then(() => void socket.destroy()))
  }
  await Promise.all(jobs)
})

test('UDP garbage, short and oversized, on the heartbeat ports is ignored', { timeout: TEST_MS }, async () => {
  const socket = createSocket('udp4')
  try {
    for (let seed = 1; seed <= 50; seed++) {
      for (const { grpc } of cluster.nodes) socket.send(noise(seed, 1 + ((seed * 977) % 8000)), port(grpc), '127.0.0.1')
    }
    await sleep(1000)
  } finally {
    socket.close()
  }
})

test('a forged heartbeat is refused and a replayed one counts for nothing', { timeout: TEST_MS }, async () => {
  const first = port(cluster.nodes[0]!.grpc)
  const listener = createSocket({ type: 'udp4', reuseAddr: true })
  const sender = createSocket('udp4')
  const heard: Buffer[] = []
  try {
    listener.on('message', (message) => heard.push(message))
    await new Promise<void>((resolve) => listener.bind(first, HEARTBEAT_GROUP, resolve))
    listener.addMembership(HEARTBEAT_GROUP, '127.0.0.1')
    await until('heartbeats are heard', 10_000, () => heard.length >= 9)
    const captured = heard.slice(0, 9)
    // A dead node's heartbeats, replayed, must not make it look alive; forged ones must not either
    await cluster.kill('node-3')
    await until('node-3 is seen to be down', 20_000, async () => {
      for (const message of captured) {
        const forged = Buffer.from(message)
        forged[40] = forged[40]! ^ 1
        for (const { grpc } of cluster.others('node-3')) {
          sender.send(message, port(grpc), '127.0.0.1')
          sender.send(forged, port(grpc), '127.0.0.1')
        }
      }
      const status = await cluster.status(cluster.others('node-3'))
      return status.nodes.find(({ id }) => id === 'node-3')?.state === 'down'
    })
    assert.match(cluster.log('node-1') + cluster.log('node-2'), /a heartbeat was refused/)
  } finally {
    listener.close()
    sender.close()
    await cluster.start('node-3')
  }
})

test('lengths beyond every bound are refused by the NBD export: options, writes, reads', { timeout: TEST_MS }, async () => {
  const { nbd } = cluster.node('node-1')
  const option = Buffer.alloc(4 + 16)
  option.writeUInt32BE(3, 0)
  option.writeBigUInt64BE(0x49484156454f5054n, 4)
  option.writeUInt32BE(7, 12)
  option.writeUInt32BE(0xffffffff, 16)
  await sendUntilClosed(port(nbd), option)

  const reader = await cluster.nbd('node-1', VOLUME)
  await assert.rejects(
    reader.read(0, 0xfffffe00),
    (error) => (error instanceof NbdError && [Errno.EINVAL, Errno.EOVERFLOW, Errno.ENOMEM].includes(error.errno as never)) || error instanceof ConnectionLost,
  )
  await assert.rejects(reader.read(2 ** 52, 512), (error) => error instanceof NbdError && error.errno === Errno.EINVAL)
  await assert.rejects(reader.write(2 ** 52, Buffer.alloc(512)), (error) => error instanceof NbdError && error.errno === Errno.ENOSPC)
  await assert.rejects(reader.read(1, 512), (error) => error instanceof NbdError && error.errno === Errno.EINVAL)
  assert.equal((await reader.read(0, 512)).length, 512)
  reader.destroy()

  const writer = await open(port(nbd))
  writer.destroy()
})

test('a frame of the data port whose header asks for 4 GiB is refused before anything is allocated', { timeout: TEST_MS }, async () => {
  const { data } = cluster.node('node-1')
  const frame = Buffer.alloc(64, 0xff)
  frame.writeUInt16LE(0x5058, 4)
  await sendUntilClosed(port(data), frame)
  // said by nobody at all: a peer that never says who it is
  const silent = await open(port(data))
  silent.resume()
  const closed = once(silent, 'close')
  await Promise.race([closed, sleep(30_000).then(() => assert.fail('a silent peer keeps its connection'))])
})

test(`connection ${CONNECTIONS_MAX + 1} of ${CONNECTIONS_MAX} is refused with the reason, and the next is taken once one is free`, {
  timeout: TEST_MS,
}, async () => {
  const clients: NbdClient[] = []
  try {
    for (let i = 1; i < CONNECTIONS_MAX; i++) clients.push(await cluster.nbd('node-1', VOLUME))
    await assert.rejects(
      NbdClient.connect(cluster.endpoint('node-1'), VOLUME),
      (error: Error) => error.message.includes('network.max_connections') && error.message.includes(String(CONNECTIONS_MAX)),
    )
    for (const client of clients) assert.equal((await client.read(0, 512)).length, 512)
    await clients.pop()!.close()
    clients.push(await cluster.nbd('node-1', VOLUME))
    assert.equal(cluster.log('node-1').split('the limit network.max_connections is reached').length, 2, 'logged once')
  } finally {
    for (const client of clients) client.destroy()
    // rows are free once the node has seen the connections go
    await until('connections are taken again', 10_000, () =>
      NbdClient.connect(cluster.endpoint('node-1'), VOLUME).then(
        (client) => client.close().then(() => true),
        () => false,
      ),
    )
  }
})

test('slow and half-open clients hold up nobody', { timeout: TEST_MS }, async () => {
  const sockets = await Promise.all(Array.from({ length: 6 }, () => open(port(cluster.node('node-1').nbd))))
  try {
    // one that never reads what it asks for
    const deaf = await cluster.nbd('node-1', VOLUME)
    for (let i = 0; i < 64; i++) deaf.read(0, MiB).catch(() => {})
    const startMs = performance.now()
    for (let i = 0; i < 20; i++) await honest.read(i * 4096, 4096)
    assert.ok(performance.now() - startMs < 10_000)
    deaf.destroy()
  } finally {
    for (const socket of sockets) socket.destroy()
  }
})

test('a full disk: ENOSPC for new blocks, overwrites, reads and trim go on, delete gives the space back', { timeout: 240_000 }, async () => {
  const full = await DevCluster.up({ nodes: 1, replicas: 1, diskSize: '512M' })
  try {
    await full.createVolume('big', '2G')
    const client = await full.nbd('node-1', 'big')
    const block = Buffer.alloc(MiB)
    const pattern = (index: number) => block.fill((index % 255) + 1)
    let written = 0
    let error: unknown
    while (error === undefined && written < 2048) {
      try {
        await client.write(written * MiB, pattern(written))
        written++
      } catch (caught) {
        error = caught
      }
    }
    assert.ok(error instanceof NbdError && error.errno === Errno.ENOSPC, `after ${written} MiB: ${String(error)}`)
    assert.ok(written > 100, `${written} MiB fit on a disk of 512 MiB`)
    for (const index of [0, 7, 50, written - 5]) await client.write(index * MiB, pattern(index + 100))
    await client.flush()
    for (let index = 0; index < written; index++) {
      if ([0, 7, 50, written - 5].includes(index)) continue
      assert.ok((await client.read(index * MiB, MiB)).equals(pattern(index)), `MiB ${index}`)
    }
    await client.trim(0, 64 * MiB)
    assert.ok((await client.read(8 * MiB, MiB)).every((byte) => byte === 0))
    await client.close()
    const { code } = await run(`${import.meta.dirname}/../../packaging/bin/xsan`, ['--server', full.node('node-1').grpc, 'volume', 'delete', 'big', '--yes'])
    assert.equal(code, 0)
    await full.createVolume('next', '128M')
    const next = await full.nbd('node-1', 'next')
    await until('the deleted volume gave its space back', 60_000, async () => {
      try {
        for (let index = 0; index < 100; index++) await next.write(index * MiB, pattern(index))
        return true
      } catch {
        return false
      }
    })
    await next.close()
  } finally {
    await full.end()
  }
})

test('clients that say half a word and wait are dropped in time, on every port; others are served meanwhile', { timeout: TEST_MS }, async () => {
  const { data, nbd, admin } = cluster.node('node-1')
  const half: ReadonlyArray<readonly [string, number, Buffer]> = [
    ['NBD, before the client flags', port(nbd), Buffer.alloc(0)],
    ['NBD, in the middle of an option', port(nbd), Buffer.from('00000003494841', 'hex')],
    ['data, in the middle of a hello', port(data), Buffer.from([1, 2, 3, 4, 0x58, 0x50])],
    ['admin, in the middle of a head', port(admin), Buffer.from('GET /metrics HTTP/1.1\r\nX-Slow: ')],
  ]
  const startMs = performance.now()
  const closed = half.map(([what, to, bytes]) => sendUntilClosed(to, bytes, 45_000).catch((error: unknown) => assert.fail(`${what}: ${String(error)}`)))
  for (let i = 0; i < 20; i++) {
    await honest.read(i * 4096, 4096)
    assert.equal((await fetch(`${admin}/healthz`)).status, 200)
  }
  await Promise.all(closed)
  assert.ok(performance.now() - startMs < 45_000)
})

test('an admin port full of idle connections still closes them, and answers afterwards', { timeout: TEST_MS }, async () => {
  const { admin } = cluster.node('node-1')
  const sockets = await Promise.all(Array.from({ length: 80 }, () => open(port(admin))))
  for (const socket of sockets) socket.destroy()
  await until('the admin port answers', 20_000, () =>
    fetch(`${admin}/readyz`).then(
      ({ status }) => status === 200,
      () => false,
    ),
  )
  assert.equal((await fetch(`${admin}/../../etc/passwd`)).status, 404)
  assert.equal((await fetch(`${admin}/metrics`, { method: 'POST', body: 'x' })).status, 405)
})

test('gRPC calls with nonsense in every field are refused with a reason, and nothing changes', { timeout: TEST_MS }, async () => {
  const before = JSON.stringify((await cluster.call<{ volumes: unknown[] }>('Volume/List')).volumes.length)
  const nasty = ['', ' ', '../x', 'a'.repeat(100_000), '\u0000', '__proto__', 'db\n', '💥', '-1', '1e99']
  for (const text of nasty) {
    for (const [method, request] of [
      ['Volume/Create', { name: `bad ${text}`, sizeBytes: 4096 }],
      ['Volume/Info', { volume: text }],
      ['Volume/Delete', { volume: text }],
      ['Volume/Resize', { volume: text, sizeBytes: 2 ** 53 }],
      ['Cluster/RemoveNode', { nodeId: text || 'x', force: true }],
      ['Config/Set', { key: text, valueJson: text }],
      ['Debug/BlockLocation', { block: text }],
      ['Debug/FlightRecorder', { nodeId: text || 'x' }],
      ['Cluster/Join', { token: text }],
    ] as const)
      await assert.rejects(
        cluster.call(method, request),
        (error) => error instanceof XsanError && error.status !== 'INTERNAL',
        `${method} ${text.slice(0, 20)}`,
      )
  }
  for (const sizeBytes of [0, 1, 513, 2 ** 53])
    await assert.rejects(cluster.call('Volume/Create', { name: 'huge', sizeBytes }), (error) => error instanceof XsanError && error.status === 'INVALID_PARAM')
  await assert.rejects(cluster.call('Cluster/AddNode', { nodeId: 'a/b' }), /cannot be a node_id/)
  await assert.rejects(cluster.call('Volume/List', { pageToken: 'x' }), /no page token/)
  assert.equal(JSON.stringify((await cluster.call<{ volumes: unknown[] }>('Volume/List')).volumes.length), before)
})

test('`dev down` while clients write: they see their connection close, what was acknowledged is there after `dev up`', { timeout: 180_000 }, async () => {
  const own = await DevCluster.up({ nodes: 1, replicas: 1, diskSize: '512M' })
  try {
    await own.createVolume('busy', '64M')
    const client = await own.nbd('node-1', 'busy')
    let acknowledged = 0
    let ended: unknown
    const writing = (async () => {
      while (ended === undefined) {
        try {
          await client.write((acknowledged % 16_000) * 4096, Buffer.alloc(4096, (acknowledged % 250) + 1))
          acknowledged++
        } catch (error) {
          ended = error
        }
      }
    })()
    await until('some are acknowledged', 10_000, () => acknowledged > 50)
    await own.down()
    await writing
    assert.ok(ended instanceof ConnectionLost || (ended instanceof NbdError && ended.errno === Errno.ESHUTDOWN), String(ended))
    await own.resume()
    const again = await own.nbd('node-1', 'busy')
    for (let i = Math.max(0, acknowledged - 200); i < acknowledged; i++)
      assert.equal((await again.read((i % 16_000) * 4096, 4096))[0], (i % 250) + 1, `write ${i} of ${acknowledged}`)
    await again.close()
  } finally {
    await own.end()
  }
})
