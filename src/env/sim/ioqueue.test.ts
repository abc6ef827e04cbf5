import assert from 'node:assert/strict'
import test from 'node:test'
import { PAGE_BYTES } from '../../base/units.ts'
import { AsyncIo } from '../async-io.ts'
import { Errno, type Handle, MORE } from '../ioqueue.ts'
import { SimHost } from './host.ts'
import { SimIoQueue } from './ioqueue.ts'
import { SimNetwork } from './network.ts'
import { World } from './world.ts'

function make(seed = 1) {
  const world = new World({ seed })
  const network = new SimNetwork(world)
  const hosts = [1, 2].map((n) => new SimHost(network, { name: `h${n}`, address: `10.0.0.${n}`, bootOffsetMs: n * 1000 }))
  const start = (n: number, name = 'xsand') => {
    const process = hosts[n]!.start(name)
    const queue = new SimIoQueue({ process, name: 'q' })
    queue.runReactor(() => queue.turn(0))
    return { process, queue, io: new AsyncIo(queue), host: hosts[n]! }
  }
  return { world, network, hosts, start }
}

const pattern = (bytes: Uint8Array, start: number, length: number, salt = 0) => {
  for (let i = 0; i < length; i++) bytes[start + i] = (i * 31 + salt) & 255
}
const matches = (bytes: Uint8Array, start: number, length: number, salt = 0) => {
  for (let i = 0; i < length; i++) if (bytes[start + i] !== ((i * 31 + salt) & 255)) return false
  return true
}

async function connected(m: ReturnType<typeof make>, a: ReturnType<ReturnType<typeof make>['start']>, b: ReturnType<ReturnType<typeof make>['start']>) {
  const { handle: listener, port } = b.queue.listenTcp({ host: b.host.address, port: 0 })
  const [client, server] = await m.world.settle(Promise.all([a.io.connectTcp({ host: b.host.address, port }), b.io.accept(listener)]), 5000)
  assert.equal(client.result, 0)
  assert.ok(server > 0)
  return { client: client.handle, server: server as Handle, listener, port }
}

test('bytes cross a connection in order, however they are cut', async () => {
  for (let seed = 1; seed <= 20; seed++) {
    const m = make(seed)
    const a = m.start(0)
    const b = m.start(1)
    const { client, server } = await connected(m, a, b)
    const length = 300_000
    const from = a.queue.arena.alloc(length)
    const to = b.queue.arena.alloc(length)
    pattern(a.queue.arena.bytes, from * PAGE_BYTES, length, seed)
    const receive = async () => {
      let got = 0
      while (got < length) {
        const n = await b.io.recv(server, to, got, length - got, false)
        assert.ok(n > 0)
        got += n
      }
    }
    await m.world.settle(Promise.all([a.io.send(client, from, 0, length), receive()]), 10_000)
    assert.ok(matches(b.queue.arena.bytes, to * PAGE_BYTES, length, seed))
    const [closed, end] = await m.world.settle(Promise.all([a.io.close(client), b.io.recv(server, to, 0, 10, false)]), 1000)
    assert.deepEqual([closed, end], [0, 0])
    assert.equal(a.queue.inFlight, 0)
  }
})

test('multishot receives keep the order of the bytes', async () => {
  for (let seed = 1; seed <= 20; seed++) {
    const m = make(seed)
    const a = m.start(0)
    const b = m.start(1)
    const { client, server } = await connected(m, a, b)
    const received: number[] = []
    const tag = b.queue.register('pieces', (_row, result, extra) => {
      if (result > 0) {
        const id = extra >> 1
        for (let i = 0; i < result; i++) received.push(b.queue.arena.bytes[b.queue.providedPage(id) * PAGE_BYTES + i]!)
        b.queue.releaseProvided(id)
      }
      if (!(extra & MORE)) b.queue.recvMultishot(server, tag, 0)
    })
    b.queue.recvMultishot(server, tag, 0)
    const from = a.queue.arena.alloc(PAGE_BYTES)
    const send = async () => {
      for (let i = 0; i < 50; i++) {
        for (let k = 0; k < 100; k++) a.queue.arena.bytes[from * PAGE_BYTES + k] = (i * 100 + k) % 251
        assert.equal(await a.io.send(client, from, 0, 100), 100)
      }
    }
    await m.world.settle(send(), 10_000)
    await m.world.run(() => received.length === 5000, 1000)
    assert.deepEqual(
      received,
      Array.from({ length: 5000 }, (_, i) => i % 251),
    )
  }
})

test('a live host without listener refuses; a dead or partitioned one is silent until the kernel gives up', async () => {
  const m = make()
  const a = m.start(0)
  m.start(1)
  assert.equal((await m.world.settle(a.io.connectTcp({ host: '10.0.0.2', port: 7 }), 100)).result, -Errno.ECONNREFUSED)
  m.network.cut(m.hosts[1]!, m.hosts[0]!)
  const before = m.world.nowMs
  assert.equal((await m.world.settle(a.io.connectTcp({ host: '10.0.0.2', port: 7 }), 60_000)).result, -Errno.ETIMEDOUT)
  assert.ok(m.world.nowMs - before >= 19_000)
  assert.equal((await m.world.settle(a.io.connectTcp({ host: '10.9.9.9', port: 7 }), 100)).result, -Errno.EHOSTUNREACH)
})

test('a killed process is seen at once by its peers, a host without power only by silence, and by a reset when it is back', async () => {
  const m = make()
  const a = m.start(0)
  const b = m.start(1)
  const { client, port } = await connected(m, a, b)
  const page = a.queue.arena.alloc(PAGE_BYTES)
  const recv = a.io.recv(client, page, 0, 10, false)
  b.process.kill()
  const ended = await m.world.settle(recv, 100)
  assert.ok(ended === 0 || ended === -Errno.ECONNRESET)
  await m.world.runFor(30)
  assert.equal((await m.world.settle(a.io.connectTcp({ host: '10.0.0.2', port }), 100)).result, -Errno.ECONNREFUSED)

  const c = m.start(1)
  const second = await connected(m, a, c)
  m.hosts[1]!.losePower()
  const waiting = a.io.recv(second.client, page, 0, 10, false)
  const pageOut = a.queue.arena.alloc(PAGE_BYTES)
  assert.equal(await m.world.settle(a.io.send(second.client, pageOut, 0, 100), 100), 100, 'the kernel takes what nobody will acknowledge')
  await assert.rejects(m.world.settle(waiting, 5000), /not settled/)
  m.hosts[1]!.powerOn()
  assert.equal(await m.world.settle(waiting, 5000), -Errno.ECONNRESET)
})

test('a cut link loses nothing: bytes arrive when it has healed', async () => {
  const m = make()
  const a = m.start(0)
  const b = m.start(1)
  const { client, server } = await connected(m, a, b)
  m.network.cut(m.hosts[0]!, m.hosts[1]!)
  const from = a.queue.arena.alloc(PAGE_BYTES)
  const to = b.queue.arena.alloc(PAGE_BYTES)
  pattern(a.queue.arena.bytes, from * PAGE_BYTES, 1000)
  await m.world.settle(a.io.send(client, from, 0, 1000), 1000)
  const received = b.io.recv(server, to, 0, 1000, true)
  await assert.rejects(m.world.settle(received, 3000), /not settled/)
  m.network.healAll()
  assert.equal(await m.world.settle(received, 5000), 1000)
  assert.ok(matches(b.queue.arena.bytes, to * PAGE_BYTES, 1000))
})

test('a sender is held back by a peer that does not read', async () => {
  const m = make()
  const a = m.start(0)
  const b = m.start(1)
  const { client, server } = await connected(m, a, b)
  const length = 6 * 1024 * 1024
  const from = a.queue.arena.alloc(length)
  const to = b.queue.arena.alloc(length)
  const sent = a.io.send(client, from, 0, length)
  await assert.rejects(m.world.settle(sent, 10_000), /not settled/)
  assert.deepEqual(await m.world.settle(Promise.all([sent, b.io.recv(server, to, 0, length, true)]), 10_000), [length, length])
})

test('a frozen process does nothing until it goes on; its kernel still takes connections', async () => {
  const m = make()
  const a = m.start(0)
  const b = m.start(1)
  const { client, server, port } = await connected(m, a, b)
  b.process.freeze()
  assert.equal((await m.world.settle(a.io.connectTcp({ host: '10.0.0.2', port }), 100)).result, 0)
  const page = b.queue.arena.alloc(PAGE_BYTES)
  const out = a.queue.arena.alloc(PAGE_BYTES)
  const received = b.io.recv(server, page, 0, 5, true)
  await m.world.settle(a.io.send(client, out, 0, 5), 100)
  await assert.rejects(m.world.settle(received, 5000), /not settled/)
  b.process.thaw()
  assert.equal(await m.world.settle(received, 100), 5)
})

test('what was flushed survives the loss of power, what was not may be lost or torn, and a kill loses nothing', async () => {
  const outcomes = new Set<string>()
  for (let seed = 1; seed <= 60; seed++) {
    const m = make(seed)
    const a = m.start(0)
    const { handle } = a.queue.openFile({ path: '/data/disk', createBytes: 1 << 20, lock: true })
    const page = a.queue.arena.alloc(PAGE_BYTES)
    const put = async (index: number, value: number) => {
      a.queue.arena.bytes.fill(value, page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
      for (let done = 0; done < PAGE_BYTES; ) {
        const n = await a.io.write(handle, index * PAGE_BYTES + done, page, done, PAGE_BYTES - done)
        assert.ok(n > 0)
        done += n
      }
    }
    const work = async () => {
      await put(0, 1)
      await put(1, 1)
      assert.equal(await a.io.fdatasync(handle), 0)
      await put(1, 2)
      await put(2, 2)
      // A synced write makes itself durable, and nothing else
      for (let written = 0; written < PAGE_BYTES; ) {
        a.queue.segment(page, 0, PAGE_BYTES)
        written = await a.io.writeSegments(handle, 3 * PAGE_BYTES, true)
      }
    }
    await m.world.settle(work(), 5000)
    const power = seed % 3 !== 0
    if (power) m.hosts[0]!.losePower()
    else a.process.kill()
    if (power) m.hosts[0]!.powerOn()
    const file = m.hosts[0]!.files.get('/data/disk')!
    const sectors = (index: number) => [...Array(8).keys()].map((s) => file.pages.get(index)?.[s * 512] ?? 0).join('')
    assert.equal(sectors(0), '11111111')
    assert.equal(sectors(3), '22222222')
    if (!power) assert.deepEqual([sectors(1), sectors(2)], ['22222222', '22222222'])
    else {
      assert.match(sectors(1), /^[12]{8}$/)
      assert.match(sectors(2), /^[02]{8}$/)
      outcomes.add(sectors(1) === '11111111' ? 'lost' : sectors(1) === '22222222' ? 'kept' : 'torn')
    }
  }
  assert.deepEqual([...outcomes].sort(), ['kept', 'lost', 'torn'])
})

test('on a full disk what was allocated before is written, all else is ENOSPC; a power loss takes content, not space', async () => {
  const m = make(7)
  const a = m.start(0, 'first')
  const { handle } = a.queue.openFile({ path: '/data/disk', createBytes: 1 << 20, lock: true })
  const disk = m.hosts[0]!.disks[0]!
  const page = a.queue.arena.alloc(PAGE_BYTES)
  const put = async (index: number) => {
    for (;;) {
      const n = await a.io.write(handle, index * PAGE_BYTES, page, 0, PAGE_BYTES)
      if (n < 0 || n === PAGE_BYTES) return n
    }
  }
  const fill = async () => {
    assert.equal(await put(0), PAGE_BYTES)
    assert.equal(await a.io.allocate(handle, 0, 4 * PAGE_BYTES), 0)
    assert.equal(disk.usedPages, 4)
    disk.full = true
    assert.equal(await put(3), PAGE_BYTES)
    assert.equal(await put(0), PAGE_BYTES)
    assert.equal(await put(4), -Errno.ENOSPC)
    assert.equal(await a.io.allocate(handle, 0, 4 * PAGE_BYTES), 0, 'it has its space')
    assert.equal(await a.io.allocate(handle, 3 * PAGE_BYTES, 2 * PAGE_BYTES), -Errno.ENOSPC)
    assert.equal(disk.usedPages, 4)
  }
  await m.world.settle(fill(), 5000)
  m.hosts[0]!.losePower()
  m.hosts[0]!.powerOn()
  assert.equal(disk.usedPages, 4)
  const again = m.start(0, 'second')
  const opened = again.queue.openFile({ path: '/data/disk', lock: true })
  const buffer = again.queue.arena.alloc(PAGE_BYTES)
  const write = async () => assert.ok((await again.io.write(opened.handle, 3 * PAGE_BYTES, buffer, 0, PAGE_BYTES)) > 0)
  await m.world.settle(write(), 5000)
})

test('a locked file is refused to others until its process has ended', async () => {
  const m = make()
  const a = m.start(0, 'first')
  const b = m.start(0, 'second')
  a.queue.openFile({ path: '/data/disk', createBytes: 4096, lock: true })
  assert.throws(() => b.queue.openFile({ path: '/data/disk', lock: true }), { code: 'EWOULDBLOCK' })
  assert.throws(() => b.queue.openFile({ path: '/data/none', lock: true }), { code: 'ENOENT' })
  a.process.kill()
  await m.world.runFor(30)
  b.queue.openFile({ path: '/data/disk', lock: true })
})

test('a read gives the checksum of each page, EIO and hangs are injected, rot is silent', async () => {
  const m = make()
  const a = m.start(0)
  const disk = m.hosts[0]!.addDisk({ name: 'd', mount: '/d/' })
  disk.faults.short = 0
  const { handle } = a.queue.openFile({ path: '/d/x', createBytes: 1 << 20, lock: true })
  const page = a.queue.arena.alloc(8192)
  const crcs = a.queue.reserveCrcs(2)
  pattern(a.queue.arena.bytes, page * PAGE_BYTES, 8192)
  const expected = a.queue.arena.crc32c(page, 4096, 4096)
  await m.world.settle(a.io.write(handle, 0, page, 0, 8192), 1000)
  assert.equal(await m.world.settle(a.io.read(handle, 0, page, 0, 8192, crcs), 1000), 8192)
  assert.ok(matches(a.queue.arena.bytes, page * PAGE_BYTES, 8192))
  assert.equal(a.queue.crcs[crcs + 1], expected)
  disk.hang()
  const hung = a.io.read(handle, 0, page, 0, 4096)
  await assert.rejects(m.world.settle(hung, 10_000), /not settled/)
  disk.resume()
  assert.equal(await m.world.settle(hung, 100), 4096)
  disk.rot(1)
  await m.world.settle(a.io.read(handle, 0, page, 0, 8192), 1000)
  assert.ok(!matches(a.queue.arena.bytes, page * PAGE_BYTES, 8192))
  disk.faults.readEio = 1
  assert.equal(await m.world.settle(a.io.read(handle, 0, page, 0, 4096), 1000), -Errno.EIO)
})

test('a page of zeros that rots, or is torn by a loss of power, is that page alone', async () => {
  const m = make()
  const a = m.start(0)
  const disk = m.hosts[0]!.addDisk({ name: 'd', mount: '/d/' })
  disk.faults.short = 0
  const { handle } = a.queue.openFile({ path: '/d/x', createBytes: 1 << 20, lock: true })
  const page = a.queue.arena.alloc(8192)
  a.queue.arena.bytes.fill(0, page * PAGE_BYTES, page * PAGE_BYTES + 8192)
  await m.world.settle(a.io.write(handle, 0, page, 0, 8192), 1000)
  disk.rot(1)
  const rotten = disk.files.flatMap((file) => [...file.pages.values()].filter((content) => content.some((byte) => byte !== 0)))
  assert.equal(rotten.length, 1)
})

test('mistakes in the use of ranges, handles and sends are assertions', async () => {
  const m = make()
  const a = m.start(0)
  const b = m.start(1)
  const { client } = await connected(m, a, b)
  const page = a.queue.arena.alloc(PAGE_BYTES)
  void a.io.send(client, page, 0, 10)
  assert.throws(() => a.io.queue.send(client, page, 0, 10, 0 as never, 0), /two sends/)
  assert.throws(() => a.queue.arena.free(page as never), /freed while an operation owns it/)
  await m.world.runFor(10)
  await m.world.settle(a.io.close(client), 100)
  assert.throws(() => a.queue.send(client, page, 0, 10, 0 as never, 0), /not open/)
  a.queue.arena.free(page as never)
  assert.throws(() => a.queue.read(client, 0, page, 0, 10, -1, 0 as never, 0), /not open/)
})

test('outside of the world, a waiting turn runs it', () => {
  const m = make()
  const process = m.hosts[0]!.start('sync')
  const queue = new SimIoQueue({ process, name: 'q' })
  let fired = -1
  const tag = queue.register('timer', (row) => {
    fired = row
  })
  queue.timeout(50, tag, 9)
  const before = queue.sampleClockMs()
  while (fired < 0) queue.turn(100)
  assert.equal(fired, 9)
  assert.ok(queue.nowMs - before >= 50)
  queue.timeout(1000, tag, 10)
  queue.cancelTimeout(tag, 10)
  queue.turn(100)
  assert.equal(queue.inFlight, 0)
})

test('a timeout that was due while its process was frozen may be cancelled before it is told', async () => {
  const m = make()
  const process = m.hosts[0]!.start('frozen')
  const queue = new SimIoQueue({ process, name: 'q' })
  const results: number[] = []
  const tag = queue.register('timer', (_row, result) => results.push(result))
  queue.runReactor(() => queue.turn(0))
  process.schedule(10, 'cancel', () => queue.cancelTimeout(tag, 1))
  queue.timeout(11, tag, 1)
  process.freeze()
  await m.world.runFor(50)
  process.thaw()
  await m.world.runFor(50)
  assert.deepEqual(results, [-Errno.ECANCELED])
})

test('the same seed gives the same trace', async () => {
  const run = async (seed: number) => {
    const m = make(seed)
    const a = m.start(0)
    const b = m.start(1)
    const { client, server } = await connected(m, a, b)
    const from = a.queue.arena.alloc(100_000)
    const to = b.queue.arena.alloc(100_000)
    await m.world.settle(Promise.all([a.io.send(client, from, 0, 100_000), b.io.recv(server, to, 0, 100_000, true)]), 1000)
    return m.world.hash
  }
  assert.equal(await run(3), await run(3))
  assert.notEqual(await run(3), await run(4))
})
