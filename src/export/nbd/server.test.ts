import assert from 'node:assert/strict'
import test from 'node:test'
import { MemoryBlockClient } from '../../../test/support/memory-block-client.ts'
import { Status } from '../../base/status.ts'
import { MiB, PAGE_BYTES } from '../../base/units.ts'
import type { PageNumber } from '../../env/arena.ts'
import { AsyncIo } from '../../env/async-io.ts'
import type { Log } from '../../env/control.ts'
import { SimHost } from '../../env/sim/host.ts'
import { SimIoQueue } from '../../env/sim/ioqueue.ts'
import { SimNetwork } from '../../env/sim/network.ts'
import { World } from '../../env/sim/world.ts'
import { VolumeLayer } from '../../volume/volume.ts'
import { CommandFlag, NbdErrno } from '../../wire/nbd.ts'
import { NbdServer } from './server.ts'

const PORT = 10809
const log: Log = { log: () => {}, child: () => log }

/** A server over a volume in memory, and clients of it on another host. */
function make(options: { operationsMax?: number; log?: Log; arenaBytes?: number; connectionsMax?: number } = {}) {
  const world = new World({ seed: 1 })
  const network = new SimNetwork(world)
  const host = new SimHost(network, { name: 'server', address: '10.0.0.1' })
  const queue = new SimIoQueue({ process: host.start('xsand'), name: 'q', arenaBytes: options.arenaBytes ?? 16 * MiB })
  const blocks = new MemoryBlockClient(queue)
  blocks.operationsMax = options.operationsMax ?? blocks.operationsMax
  blocks.add('v', 8 * MiB)
  const volumes = new VolumeLayer(blocks, queue.arena)
  const server = new NbdServer({ queue, asyncIo: new AsyncIo(queue), volumes, log: options.log ?? log, connectionsMax: options.connectionsMax ?? 8 })
  queue.runReactor(() => queue.turn(0))
  server.listenTcp('10.0.0.1', PORT)
  const clients = new SimHost(network, { name: 'clients', address: '10.0.0.2' })
  let opened = 0
  /** In the transmission phase of the volume; `send` resolves when the bytes are with the kernel. */
  const open = async (name = 'v') => {
    const process = clients.start(`client ${++opened}`)
    const own = new SimIoQueue({ process, name: `client ${opened}` })
    own.runReactor(() => own.turn(0))
    const io = new AsyncIo(own)
    const page = own.arena.alloc(2 * MiB)
    const send = async (bytes: Uint8Array) => {
      own.arena.bytes.set(bytes, page * PAGE_BYTES)
      assert.equal(await io.send(socket, page, 0, bytes.length), bytes.length)
    }
    const receive = (lengthBytes: number) => io.recv(socket, page + 256, 0, lengthBytes, true)
    const { handle: socket, result } = await io.connectTcp({ host: '10.0.0.1', port: PORT })
    assert.equal(result, 0)
    assert.equal(await receive(18), 18)
    await send(Buffer.concat([Buffer.from([0, 0, 0, 3]), Buffer.from('IHAVEOPT'), Buffer.from([0, 0, 0, 1, 0, 0, 0, name.length]), Buffer.from(name)]))
    assert.equal(await receive(10), 10)
    /** Of the simple reply whose beginning was received last. */
    const error = () => own.arena.view.getUint32((page + 256) * PAGE_BYTES + 4)
    return { process, send, receive, error }
  }
  return { world, queue, blocks, volumes, server, open, clients, network, host }
}

function request(type: number, offsetBytes: number, lengthBytes: number, flags = 0): Buffer {
  const bytes = Buffer.alloc(28)
  bytes.writeUInt32BE(0x25609513, 0)
  bytes.writeUInt16BE(flags, 4)
  bytes.writeUInt16BE(type, 6)
  bytes.writeBigUInt64BE(BigInt(offsetBytes), 16)
  bytes.writeUInt32BE(lengthBytes, 24)
  return bytes
}

const READ = 0
const WRITE = 1
const DISC = 2
const FLUSH = 3
const TRIM = 4

test('a client that leaves is noticed while its connection waits for room: what it had under way is given up, what it had sent is not begun', async () => {
  const { world, blocks, server, open } = make()
  blocks.holding = true
  const write = Buffer.concat([request(WRITE, 4096, 512), Buffer.alloc(512)])
  let sent = false
  void open().then(async (client) => {
    await client.send(Buffer.concat(Array.from({ length: 300 }, () => write)))
    sent = true
    world.schedule(1000, 'leave', () => client.process.kill())
  })
  assert.ok(await world.run(() => sent, 10_000))
  assert.ok(await world.run(() => blocks.calls.filter((call) => call.startsWith('orphan')).length === 256, 3000))
  assert.equal(blocks.calls.filter((call) => call.startsWith('write')).length, 256)
  blocks.holding = false
  assert.ok(await world.run(() => server.connectionCount === 0 && server.requestCount === 0, 10_000))
  assert.equal(blocks.calls.filter((call) => call.startsWith('write')).length, 256)
})

for (const what of ['a request', 'a part of one']) {
  test(`a client that leaves while the server stops is noticed, also after ${what} that is not begun any more`, async () => {
    const { world, blocks, server, open } = make()
    blocks.holding = true
    const write = Buffer.concat([request(WRITE, 4096, 512), Buffer.alloc(512)])
    let step = 0
    void open().then(async (client) => {
      await client.send(what === 'a request' ? write : Buffer.concat([write, write.subarray(0, 100)]))
      step = 1
      world.schedule(500, 'more', () => {
        server.stop()
        void client.send(what === 'a request' ? write : write.subarray(100)).then(() => {
          step = 2
        })
        world.schedule(500, 'leave', () => client.process.kill())
      })
    })
    assert.ok(await world.run(() => step === 2, 10_000))
    assert.ok(await world.run(() => blocks.calls.some((call) => call.startsWith('orphan')), 2000))
    blocks.holding = false
    assert.ok(await world.run(() => server.connectionCount === 0 && server.requestCount === 0, 10_000))
    assert.equal(blocks.calls.filter((call) => call.startsWith('write')).length, 1)
  })
}

test('every client that was there when unflushed writes were lost is told by its next flush, whoever else was; one that came later is not', async () => {
  const { world, blocks, open } = make()
  const told: string[] = []
  const flush = async (name: string, client: Awaited<ReturnType<typeof open>>) => {
    await client.send(request(FLUSH, 0, 0))
    assert.equal(await client.receive(16), 16)
    told.push(`${name} ${client.error()}`)
  }
  let step = 0
  void Promise.all([open(), open()]).then(async ([one, two]) => {
    await flush('one', one!)
    blocks.losses++
    // the layers below tell the first that asks
    blocks.failing.set(-1, Status.WRITE_FAILED)
    await flush('one', one!)
    blocks.failing.clear()
    const late = await open()
    for (const [name, client] of Object.entries({ one: one!, two: two!, late })) await flush(name, client)
    await flush('two', two!)
    blocks.losses++
    blocks.holding = true
    await two!.send(Buffer.concat([request(FLUSH, 0, 0), request(FLUSH, 0, 0)]))
    world.schedule(100, 'go on', () => {
      blocks.holding = false
    })
    for (let i = 0; i < 2; i++) {
      assert.equal(await two!.receive(16), 16)
      told.push(`two ${two!.error()}`)
    }
    await flush('two', two!)
    step = 1
  })
  assert.ok(await world.run(() => step === 1, 20_000))
  assert.deepEqual(told, ['one 0', 'one 5', 'one 0', 'two 5', 'late 0', 'two 0', 'two 5', 'two 5', 'two 0'])
})

test('a client that connects soon after a loss is told of it by its next flush, though another was: it may have been there, and its connection lost', async () => {
  const { world, blocks, open } = make()
  blocks.losses = 3
  blocks.recentLosses = 1
  const told: number[] = []
  void open().then(async (client) => {
    for (let i = 0; i < 2; i++) {
      await client.send(request(FLUSH, 0, 0))
      assert.equal(await client.receive(16), 16)
      told.push(client.error())
    }
  })
  assert.ok(await world.run(() => told.length === 2, 10_000))
  assert.deepEqual(told, [5, 0])
})

test('after a goodbye a write goes on for a second, then it has the life of one whose client has gone', async () => {
  const { world, blocks, server, open } = make()
  blocks.holding = true
  let sent = false
  void open().then(async (client) => {
    await client.send(Buffer.concat([request(WRITE, 4096, 512), Buffer.alloc(512), request(DISC, 0, 0)]))
    sent = true
  })
  assert.ok(await world.run(() => sent && blocks.calls.length === 1, 10_000))
  await world.run(() => false, 900)
  assert.equal(blocks.calls.length, 1)
  assert.ok(await world.run(() => blocks.calls.length === 2, 300))
  assert.match(blocks.calls[1]!, /^orphan/)
  blocks.holding = false
  assert.ok(await world.run(() => server.connectionCount === 0, 1000))
})

test('a client cut off while its writes wait counts as gone within the write life; one that is there waits on, as does one without writes', async () => {
  const { world, blocks, server, open, network, host, clients } = make()
  blocks.holding = true
  const orphans = () => blocks.calls.filter((call) => call.startsWith('orphan')).length
  let sent = 0
  const start = (bytes: Buffer) =>
    void open().then(async (client) => {
      await client.send(bytes)
      sent++
    })
  start(Buffer.concat([request(WRITE, 4096, 512), Buffer.alloc(512)]))
  start(request(READ, 0, 512))
  assert.ok(await world.run(() => sent === 2 && blocks.calls.length === 2, 10_000))
  await world.run(() => false, 20_000)
  assert.deepEqual([orphans(), server.connectionCount], [0, 2])
  network.cut(host, clients)
  await world.run(() => false, 2000)
  assert.equal(orphans(), 0)
  network.healAll()
  await world.run(() => false, 5000)
  assert.equal(orphans(), 0)
  network.cut(clients, host)
  assert.ok(await world.run(() => orphans() === 1, 3900))
  blocks.holding = false
  assert.ok(await world.run(() => server.connectionCount === 1, 1000))
})

test('what a client had sent that was cut off while its connection waited for memory is not begun when there is some', async () => {
  const { world, queue, blocks, server, open, network, host, clients } = make()
  const all: number[] = []
  let sent = false
  void open().then(async (client) => {
    for (let page = queue.arena.alloc(PAGE_BYTES); page >= 0; page = queue.arena.alloc(PAGE_BYTES)) all.push(page)
    await client.send(Buffer.concat([request(WRITE, 4096, 512), Buffer.alloc(512)]))
    sent = true
  })
  assert.ok(await world.run(() => sent, 10_000))
  await world.run(() => false, 1000)
  assert.equal(server.connectionCount, 1)
  network.cut(clients, host)
  await world.run(() => false, 3900)
  for (const page of all) queue.arena.free(page as PageNumber)
  await world.run(() => false, 5000)
  assert.deepEqual([blocks.calls, server.connectionCount], [[], 0])
})

test('what an idle client had sent while it was cut off, and gave up, is not begun when its kernel gets through; one that sends nothing stays', async () => {
  const { world, blocks, server, open, network, host, clients } = make()
  let sent = 0
  void Promise.all([open(), open()]).then(([client]) => {
    sent = 1
    world.schedule(500, 'write', () => {
      network.cut(clients, host)
      void client!.send(Buffer.concat([request(WRITE, 4096, 512), Buffer.alloc(512)])).then(() => {
        sent = 2
        // the rest is its kernel's
        world.schedule(5000, 'leave', () => client!.process.kill())
      })
    })
  })
  assert.ok(await world.run(() => sent === 2, 10_000))
  await world.run(() => false, 7000)
  assert.equal(server.connectionCount, 2)
  network.healAll()
  await world.run(() => false, 20_000)
  assert.deepEqual([blocks.calls, server.connectionCount], [[], 1])
})

/** Nothing ends; when clients are said to have gone, per request. */
function noteLost({ blocks, queue }: Pick<ReturnType<typeof make>, 'blocks' | 'queue'>): number[] {
  const lost: number[] = []
  blocks.holding = true
  blocks.orphan = (_done: unknown, _row: number, lostMs?: number) => {
    lost.push(lostMs ?? queue.nowMs)
  }
  return lost
}

test('a client that was cut off for a moment, and left then, counts as gone from the moment it was last heard', async () => {
  const { world, blocks, queue, open, network, host, clients } = make()
  const lost = noteLost({ blocks, queue })
  let cutMs = 0
  void open().then((client) => {
    world.schedule(1500, 'write', () => {
      cutMs = queue.nowMs
      network.cut(clients, host)
      void client.send(Buffer.concat([request(WRITE, 4096, 512), Buffer.alloc(512)])).then(() => client.process.kill())
    })
  })
  assert.ok(await world.run(() => cutMs > 0, 10_000))
  await world.run(() => false, 2400)
  network.healAll()
  assert.ok(await world.run(() => lost.length === 1, 5000))
  assert.ok(lost[0]! <= cutMs + 500, `${lost[0]! - cutMs} ms after that`)
})

test('what a client had sent while this process stood still at the end of the negotiation is not begun', async () => {
  const { world, blocks, server, queue, open } = make()
  const { send } = queue
  let sends = 0
  queue.send = (...args) => {
    send.apply(queue, args)
    if (++sends === 2) world.schedule(0.006, 'freeze', () => queue.process.freeze())
  }
  let isSent = false
  void open().then(async (client) => {
    await client.send(Buffer.concat([request(WRITE, 4096, 512), Buffer.alloc(512)]))
    isSent = true
    client.process.kill()
  })
  assert.ok(await world.run(() => isSent, 10_000))
  await world.run(() => false, 5000)
  queue.process.thaw()
  await world.run(() => false, 5000)
  assert.deepEqual([blocks.calls, server.connectionCount], [[], 0])
})

test('a client that went while this process stood still, though not for long, counts as gone from the last turn before', async () => {
  const { world, blocks, queue, open } = make()
  const lost = noteLost({ blocks, queue })
  let leave = () => {}
  void open().then(async (client) => {
    leave = () => client.process.kill()
    await client.send(Buffer.concat([request(WRITE, 4096, 512), Buffer.alloc(512)]))
  })
  assert.ok(await world.run(() => blocks.calls.length === 1, 10_000))
  await world.run(() => false, 3000)
  queue.process.freeze()
  const frozenMs = queue.nowMs
  await world.run(() => false, 100)
  leave()
  await world.run(() => false, 1700)
  queue.process.thaw()
  assert.ok(await world.run(() => lost.length === 1, 1000))
  assert.ok(lost[0]! <= frozenMs, `${lost[0]! - frozenMs} ms after the last turn`)
})

test('so does one whose last write is begun after that: it had left before', async () => {
  const { world, blocks, queue, open } = make()
  const lost = noteLost({ blocks, queue })
  let leave = () => {}
  void open().then((client) => {
    leave = () => {
      void client.send(Buffer.concat([request(TRIM, 0, 4096), request(TRIM, 4096, 4096)])).then(() => client.process.kill())
    }
  })
  await world.run(() => false, 3000)
  queue.process.freeze()
  const frozenMs = queue.nowMs
  leave()
  await world.run(() => false, 1700)
  queue.process.thaw()
  assert.ok(await world.run(() => lost.length === 2, 1000))
  for (const lostMs of lost) assert.ok(lostMs <= frozenMs, `${lostMs - frozenMs} ms after the last turn`)
})

test('so does one that left while this process stood still in the middle of a turn, and looked at the clock then', async () => {
  const { world, blocks, queue, open } = make()
  const lost = noteLost({ blocks, queue })
  let pausedMs = 0
  void Promise.all([open(), open()]).then(async ([leaving, other]) => {
    await leaving!.send(Buffer.concat([request(WRITE, 4096, 512), Buffer.alloc(512)]))
    blocks.read = () => {
      pausedMs = queue.nowMs
      queue.process.pause(1700)
      queue.sampleClockMs()
      world.schedule(100, 'leave', () => leaving!.process.kill())
    }
    world.schedule(3000, 'read', () => void other!.send(request(READ, 0, 512)))
  })
  assert.ok(await world.run(() => lost.length === 1, 10_000))
  assert.ok(lost[0]! <= pausedMs, `${lost[0]! - pausedMs} ms after the turn's beginning`)
})

test('a client whose host has gone while replies are on their way to it gives back what it holds after two minutes; one that only does not read keeps it', async () => {
  const { world, server, queue, open, network, host, clients } = make({ arenaBytes: 64 * MiB })
  let sent = false
  const before = queue.arena.stats().freeBytes
  void open().then(async (client) => {
    await client.send(Buffer.concat(Array.from({ length: 8 }, () => request(READ, 0, MiB))))
    sent = true
  })
  assert.ok(await world.run(() => sent, 10_000))
  await world.run(() => false, 300_000)
  assert.ok(server.requestCount > 0, 'its client does not read')
  network.cut(host, clients)
  network.cut(clients, host)
  await world.run(() => false, 100_000)
  assert.equal(server.connectionCount, 1)
  assert.ok(await world.run(() => server.connectionCount === 0 && server.requestCount === 0, 30_000))
  assert.equal(queue.arena.stats().freeBytes, before)
})

test('connections whose requests stand still leave rows for others', async () => {
  const { world, blocks, open } = make({ operationsMax: 64 })
  blocks.holding = true
  const trims = Buffer.concat(Array.from({ length: 100 }, () => request(TRIM, 0, 4096)))
  let sent = 0
  const stand = async () => {
    const client = await open()
    await client.send(trims)
    sent++
  }
  for (let i = 1; i <= 3; i++) {
    void stand()
    assert.ok(await world.run(() => sent === i, 10_000))
  }
  let answered = false
  void open().then(async (client) => {
    await client.send(request(READ, 0, 4096))
    await client.receive(16 + 4096)
    answered = true
  })
  assert.ok(await world.run(() => blocks.calls.includes('read 0:0+1'), 10_000))
  blocks.holding = false
  assert.ok(await world.run(() => answered, 10_000))
})

test('a connection that waits for memory goes on when peers or disks free some, though no request has ended', async () => {
  const { world, queue, open } = make()
  const all: number[] = []
  let state = ''
  void open().then(async (client) => {
    for (let page = queue.arena.alloc(PAGE_BYTES); page >= 0; page = queue.arena.alloc(PAGE_BYTES)) all.push(page)
    await client.send(request(READ, 0, 4096))
    state = 'waits'
    await client.receive(16 + 4096)
    state = 'answered'
  })
  assert.ok(await world.run(() => state === 'waits', 10_000))
  assert.ok(!(await world.run(() => state === 'answered', 500)))
  for (const page of all) queue.arena.free(page as PageNumber)
  assert.ok(await world.run(() => state === 'answered', 1000))
})

test('a large request has its turn beside clients whose smaller ones take all that becomes free', async () => {
  const { world, queue, blocks, open } = make()
  // one read ends after the other, every now and then
  const reads: Array<() => void> = []
  blocks.read = (_volume, _index, _firstPage, _pageCount, _bufferPage, done, row) => {
    reads.push(() => done(row, Status.SUCCESS))
  }
  const next = queue.register('next read', () => {
    reads.shift()?.()
    queue.timeout(5, next, 0)
  })
  queue.timeout(5, next, 0)
  let running = 0
  const busy = async () => {
    const client = await open()
    await client.send(Buffer.concat(Array.from({ length: 16 }, () => request(READ, 0, MiB / 4))))
    for (running++; ; ) {
      await client.receive(16 + MiB / 4)
      await client.send(request(READ, 0, MiB / 4))
    }
  }
  for (let i = 0; i < 4; i++) void busy()
  assert.ok(await world.run(() => running === 4 && reads.length > 15, 10_000))
  let answered = false
  void open().then(async (client) => {
    await client.send(Buffer.concat([request(WRITE, 0, 2 * MiB), Buffer.alloc(MiB)]))
    await client.send(Buffer.alloc(MiB))
    assert.equal(await client.receive(16), 16)
    answered = true
  })
  assert.ok(await world.run(() => answered, 3000))
})

test('requests of all exports together have so many places: a connection waits for one, and gives back its own', async () => {
  const { world, volumes, server, open } = make({ operationsMax: 8 })
  assert.equal(volumes.requestsMax, 2)
  assert.ok(volumes.enter() && volumes.enter() && !volumes.enter())
  let state = ''
  void open().then(async (client) => {
    await client.send(request(READ, 0, 4096))
    state = 'waits'
    await client.receive(16 + 4096)
    state = 'answered'
  })
  assert.ok(await world.run(() => state === 'waits', 10_000))
  assert.ok(!(await world.run(() => state === 'answered', 500)))
  volumes.leave()
  assert.ok(await world.run(() => state === 'answered', 1000))
  assert.ok(await world.run(() => server.requestCount === 0, 1000))
  assert.ok(volumes.enter() && !volumes.enter())
})

test('a read whose buffer a hanging disk has kept waits for memory for another one; its client is told of no error, and may leave meanwhile', async () => {
  for (const leaves of [false, true]) {
    const { world, queue, blocks, server, open } = make()
    blocks.isHeld = () => isHeld
    blocks.holding = true
    let isHeld = true
    let answer = -1
    void open().then(async (client) => {
      if (leaves) world.schedule(500, 'leave', () => client.process.kill())
      await client.send(request(READ, 0, 4096))
      await client.receive(8)
      answer = client.error()
    })
    assert.ok(await world.run(() => blocks.calls.length === 1, 10_000))
    const all: number[] = []
    for (let page = queue.arena.alloc(PAGE_BYTES); page >= 0; page = queue.arena.alloc(PAGE_BYTES)) all.push(page)
    blocks.failing.set(0, Status.BUFFER_LOST)
    blocks.holding = false
    await world.run(() => false, 200)
    blocks.failing.clear()
    await world.run(() => false, 1000)
    assert.equal(answer, -1)
    if (leaves) assert.deepEqual([server.requestCount, blocks.calls.length], [0, 1])
    for (const page of all) queue.arena.free(page as PageNumber)
    if (!leaves) assert.ok(await world.run(() => answer === 0, 1000))
    isHeld = false
    await world.run(() => false, 500)
    assert.equal(server.requestCount, 0)
  }
})

test('peers that send nonsense do not fill the log: ten lines in ten seconds, then how many there were', async () => {
  const lines: string[] = []
  const { world, server, open } = make({ log: { log: (_level, message, fields) => lines.push(`${message} ${JSON.stringify(fields)}`), child: () => log } })
  const nonsense = async () => {
    let sent = false
    void open().then(async (client) => {
      await client.send(Buffer.alloc(28))
      sent = true
    })
    assert.ok(await world.run(() => sent && server.connectionCount === 0, 10_000))
  }
  for (let i = 0; i < 30; i++) await nonsense()
  assert.equal(lines.length, 10)
  await world.run(() => false, 11_000)
  await nonsense()
  assert.equal(lines.length, 11)
  assert.match(lines[10]!, /"others":20/)
})

test('idle clients leave memory for others, however many the limit of connections allows', async () => {
  const lines: string[] = []
  const { world, queue, server, open } = make({
    arenaBytes: 8 * MiB,
    connectionsMax: 400,
    log: { log: (_level, _message, fields) => lines.push(String(fields?.['reason'])), child: () => log },
  })
  let opened = 0
  while (lines.length === 0) {
    const before = opened
    void open().then(
      () => opened++,
      () => {},
    )
    await world.run(() => opened > before || lines.length > 0, 1000)
  }
  assert.ok(opened > 25 && opened < 40, `${opened}`)
  assert.equal(server.connectionCount, opened)
  assert.match(lines[0]!, /no buffer memory left \(reactor\.arena_size\)/)
  const { freeBytes } = queue.arena.stats()
  assert.ok(freeBytes > 2 * MiB, `${freeBytes}`)
})

test('clients that connect and say nothing are bounded, whatever the limit of connections, and others come in when they have been dropped', async () => {
  const { world, server, clients, open } = make({ arenaBytes: 256 * MiB, connectionsMax: 2000 })
  const own = new SimIoQueue({ process: clients.start('silent'), name: 'silent' })
  own.runReactor(() => own.turn(0))
  let connected = 0
  let ended = 0
  const tag = own.register('silent', (row, result) => {
    if (row === 0) {
      assert.equal(result, 0)
      connected++
    } else ended++
  })
  while (connected < 1100) {
    const goal = connected + 50
    for (let i = 0; i < 50; i++) own.hangup(own.connectTcp({ host: '10.0.0.1', port: PORT }, tag, 0), tag, 1)
    assert.ok(await world.run(() => connected === goal, 2000), `${connected} of ${goal}, ${ended} ended, ${server.connectionCount}`)
  }
  assert.ok(await world.run(() => ended === 76, 1000))
  assert.equal(server.connectionCount, 1024)
  assert.ok(await world.run(() => ended === 1100, 15_000))
  let isOpen = false
  void open().then(() => {
    isOpen = true
  })
  assert.ok(await world.run(() => isOpen, 1000))
})

test('a server that stops answers what is under way, begins nothing more and closes its connections, without an error to anybody', async () => {
  const { world, blocks, server, open, clients } = make()
  blocks.holding = true
  const write = Buffer.concat([request(WRITE, 4096, 512), Buffer.alloc(512)])
  const half = request(WRITE, 8192, 4096)
  const ended: Record<string, unknown> = {}
  const talk = (name: string, sent: Uint8Array, replies: number) =>
    open().then(async ({ send, receive, error }) => {
      if (sent.length > 0) await send(sent)
      for (let i = 0; i < replies; i++) {
        assert.equal(await receive(16), 16)
        assert.equal(error(), 0, name)
      }
      ended[name] = false
      ended[name] = await receive(16)
    })
  void talk('idle', new Uint8Array(0), 0)
  void talk('in the middle of a write', half, 0)
  void talk('waits for an answer', write, 1)
  void talk('waits, and is in the middle of another write', Buffer.concat([write, half]), 1)
  let more: (() => Promise<void>) | undefined
  void open().then(async ({ send, receive }) => {
    await send(write)
    more = () => send(write)
    assert.equal(await receive(16), 16)
    ended['goes on'] = await receive(16)
  })
  assert.ok(await world.run(() => blocks.calls.length === 3 && more !== undefined && server.requestCount === 5, 5000))
  server.stop()
  void more!()
  await world.run(() => false, 500)
  assert.equal(server.connectionCount, 3)
  assert.deepEqual(Object.keys(ended).sort(), ['idle', 'in the middle of a write'])
  blocks.holding = false
  assert.ok(await world.run(() => server.connectionCount === 0 && Object.keys(ended).length === 5, 1000), JSON.stringify(ended))
  assert.ok(
    Object.values(ended).every((result) => result === 0 || result === -104),
    JSON.stringify(ended),
  )
  assert.equal(blocks.calls.filter((call) => call.startsWith('write')).length, 3)
  assert.equal(server.requestCount, 0)
  const late = new SimIoQueue({ process: clients.start('late'), name: 'late' })
  late.runReactor(() => late.turn(0))
  let refused: number | undefined
  void new AsyncIo(late).connectTcp({ host: '10.0.0.1', port: PORT }).then(({ result }) => {
    refused = result
  })
  assert.ok(await world.run(() => refused !== undefined, 1000))
  assert.equal(refused, -111)
})

test('what must not be asked for is refused by an error of its own, and the connection goes on', async () => {
  const { world, blocks, server, open } = make()
  const endBytes = 8 * MiB
  blocks.add('read-only', endBytes, true)
  const written = Buffer.alloc(512)
  const refused: ReadonlyArray<readonly [what: string, bytes: Buffer, error: number]> = [
    ['a command that does not exist', request(99, 0, 512), NbdErrno.EINVAL],
    ['a flag that does not exist', request(READ, 0, 512, 1 << 15), NbdErrno.EINVAL],
    ['a flag of another command', request(READ, 0, 512, CommandFlag.NO_HOLE), NbdErrno.EINVAL],
    ['nothing', request(READ, 0, 0), NbdErrno.EINVAL],
    ['part of a sector', request(READ, 0, 100), NbdErrno.EINVAL],
    ['a place within a sector', request(TRIM, 100, 512), NbdErrno.EINVAL],
    ['more than a request may have', request(READ, 0, 0xffff_fe00), NbdErrno.EINVAL],
    ['what is behind the end', request(READ, endBytes, 512), NbdErrno.EINVAL],
    ['to write behind the end', Buffer.concat([request(WRITE, endBytes, 512), written]), NbdErrno.ENOSPC],
    ['to trim behind the end', request(TRIM, endBytes, 512), NbdErrno.ENOSPC],
  ]
  const forbidden: typeof refused = [
    ['to write', Buffer.concat([request(WRITE, 0, 512), written]), NbdErrno.EPERM],
    ['to trim', request(TRIM, 0, 512), NbdErrno.EPERM],
  ]
  let isDone = false
  void Promise.all([open(), open('read-only')]).then(async ([client, reader]) => {
    for (const [at, cases] of [
      [client!, refused],
      [reader!, forbidden],
    ] as const) {
      for (const [what, bytes, error] of cases) {
        await at.send(bytes)
        assert.equal(await at.receive(16), 16, what)
        assert.equal(at.error(), error, what)
      }
      await at.send(request(READ, 0, 512))
      assert.equal(await at.receive(16 + 512), 16 + 512)
      assert.equal(at.error(), 0)
    }
    await client!.send(request(WRITE, 0, 0xffff_fe00))
    assert.ok((await client!.receive(16)) <= 0, 'nobody waits for so much')
    isDone = true
  })
  assert.ok(await world.run(() => isDone, 20_000))
  assert.ok(await world.run(() => server.connectionCount === 1 && server.requestCount === 0, 1000))
  assert.deepEqual([...new Set(blocks.calls)], ['read 0:0+1'])
})
