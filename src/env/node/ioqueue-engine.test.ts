/** What the native io queue promises beyond the conformance suite: memory safety, limits, threads, teardown, no leaks. */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statfsSync, statSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { after } from 'node:test'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { Worker } from 'node:worker_threads'
import { AssertionError } from '../../base/assert.ts'
import { crc32c } from '../../base/crc32c.ts'
import { Prng } from '../../base/prng.ts'
import { PAGE_BYTES } from '../../base/units.ts'
import { AsyncIo } from '../async-io.ts'
import { COMPLETIONS_PER_HANDLE, Errno, errnoName, type Handle, IoError, MORE } from '../ioqueue.ts'
import { loadAddon } from '../native/addon.ts'
import { NativeIoQueue, type NativeIoQueueOptions } from './ioqueue.ts'
import { REACTOR_COUNTERS_BYTES, ReactorCounter, runReactor } from './reactor-loop.ts'

const MEMORY = '/dev/shm'
const dir = mkdtempSync(join(tmpdir(), 'xsan-engine-'))
const memoryDir = mkdtempSync(join(MEMORY, 'xsan-engine-'))
after(() => {
  rmSync(dir, { recursive: true, force: true })
  rmSync(memoryDir, { recursive: true, force: true })
})
const TMPFS_MAGIC = 0x01021994
const diskIsReal = statfsSync(dir).type !== TMPFS_MAGIC
const ROOT = fileURLToPath(new URL('../../..', import.meta.url))

function withQueue(options: Partial<NativeIoQueueOptions>, body: (queue: NativeIoQueue) => void): void {
  const queue = new NativeIoQueue({ arenaBytes: 32 * 1024 * 1024, ...options })
  try {
    body(queue)
  } finally {
    queue.destroy()
  }
}

function until(queue: NativeIoQueue, condition: () => boolean, turnsMax = 2000): void {
  for (let i = 0; !condition(); i++) {
    assert.ok(i < turnsMax, 'not in time')
    queue.turn(10)
  }
}

const openFds = () => readdirSync('/proc/self/fd').length
const mappings = () => readFileSync('/proc/self/maps', 'utf8').split('\n').length
const hasCode = (code: string) => (error: unknown) => error instanceof IoError && error.code === code

// ---- limits ----------------------------------------------------------------------------------------------------------

test('at most 32 completions of one handle come in a turn, others are not kept waiting', () =>
  withQueue({}, (queue) => {
    const { handle } = queue.openFile({ path: join(memoryDir, 'fair'), createBytes: 1 << 20, lock: true })
    const rows: number[] = []
    const tag = queue.register('reads', (row) => void rows.push(row))
    let timeouts = 0
    const timeoutTag = queue.register('timeouts', () => void timeouts++)
    const page = queue.arena.alloc(PAGE_BYTES)
    for (let row = 0; row < 100; row++) queue.read(handle, 0, page, 0, PAGE_BYTES, -1, tag, row)
    queue.timeout(0, timeoutTag, 0)
    const counts: number[] = []
    while (rows.length < 100) {
      const before = rows.length
      queue.turn(10)
      counts.push(rows.length - before)
      assert.equal(timeouts, 1, 'the timeout comes with the first turn')
    }
    assert.deepEqual(counts, [COMPLETIONS_PER_HANDLE, COMPLETIONS_PER_HANDLE, COMPLETIONS_PER_HANDLE, 4])
    assert.deepEqual(
      rows,
      rows.map((_, i) => i),
    )
  }))

test('while memory files keep every turn busy, sockets and timeouts go on', () =>
  withQueue({}, (queue) => {
    const { handle: file } = queue.openFile({ path: join(memoryDir, 'busy'), createBytes: 1 << 20, lock: true })
    const page = queue.arena.alloc(PAGE_BYTES)
    let reads = 0
    const readTag = queue.register('reads', () => {
      reads++
      queue.read(file, 0, page, 0, PAGE_BYTES, -1, readTag, 0)
    })
    for (let i = 0; i < 16; i++) queue.read(file, 0, page, 0, PAGE_BYTES, -1, readTag, 0)
    const results = new Map<number, number>()
    const tag = queue.register('x', (row, result) => void results.set(row, result))
    const { handle: listener, port } = queue.listenTcp({ host: '127.0.0.1', port: 0 })
    queue.accept(listener, tag, 1)
    const client = queue.connectTcp({ host: '127.0.0.1', port }, tag, 2)
    until(queue, () => results.size === 2)
    const server = results.get(1) as Handle
    for (let i = 0; i < 50; i++) {
      queue.recv(server, page, 0, 10, true, tag, 10 + i)
      queue.send(client, page, 0, 10, tag, 100 + i)
      queue.timeout(1, tag, 1000 + i)
      until(queue, () => results.get(10 + i) === 10 && results.get(100 + i) === 10 && results.get(1000 + i) === 0, 200_000)
    }
    assert.ok(reads > 1000)
  }))

test('a slot is used again only after its close was dispatched', () =>
  withQueue({ handlesMax: 1 }, (queue) => {
    const path = join(memoryDir, 'slot')
    let closed = 0
    const tag = queue.register('x', () => void closed++)
    for (let i = 1; i <= 50; i++) {
      const { handle } = queue.openFile({ path, createBytes: PAGE_BYTES, lock: true })
      queue.read(
        handle,
        0,
        2000,
        0,
        PAGE_BYTES,
        -1,
        queue.register('r', () => {}),
        0,
      )
      queue.close(handle, tag, 0)
      assert.throws(() => queue.openFile({ path, lock: false }), hasCode('EMFILE'))
      until(queue, () => closed === i)
    }
  }))

test('more descriptors or segments than their arrays hold are taken early', () =>
  withQueue({}, (queue) => {
    for (const base of [dir, memoryDir]) {
      const { handle } = queue.openFile({ path: join(base, 'many'), createBytes: 64 << 20, lock: true })
      let done = 0
      const tag = queue.register('many', (_row, result) => {
        assert.ok(result > 0, errnoName(result))
        done++
      })
      const page = queue.arena.alloc(512 * PAGE_BYTES)
      for (let i = 0; i < 512; i++) queue.arena.bytes[(page + i) * PAGE_BYTES] = i
      for (let i = 0; i < 30; i++) {
        for (let s = 0; s < 512; s++) queue.segment(page + s, 0, PAGE_BYTES)
        queue.writeSegments(handle, i * 512 * PAGE_BYTES, i % 2 === 0, tag, i)
      }
      until(queue, () => done === 30)
      for (let i = 0; i < 5000; i++) queue.read(handle, (i % 512) * PAGE_BYTES, page + (i % 512), 0, PAGE_BYTES, -1, tag, i)
      until(queue, () => done === 5030)
      for (let i = 0; i < 512; i++) assert.equal(queue.arena.bytes[(page + i) * PAGE_BYTES], i & 255)
      queue.arena.free(page as never)
    }
  }))

test('operations beyond opsMax are refused in the call, and accepted again later', () =>
  withQueue({ opsMax: 64 }, (queue) => {
    const { handle } = queue.listenTcp({ host: '127.0.0.1', port: 0 })
    let done = 0
    const tag = queue.register('x', () => void done++)
    for (let i = 0; i < 63; i++) queue.accept(handle, tag, i)
    queue.timeout(1000, tag, 63)
    assert.throws(() => queue.accept(handle, tag, 64), AssertionError)
    queue.turn(0)
    queue.cancel(handle)
    until(queue, () => done === 63)
    queue.accept(handle, tag, 65)
    queue.turn(0)
  }))

test('with every handle in use opening fails with EMFILE, accepting with ENFILE, and a close makes room', () =>
  withQueue({ handlesMax: 3 }, (queue) => {
    const results = new Map<number, number>()
    const tag = queue.register('x', (row, result) => void results.set(row, result))
    const { handle: listener, port } = queue.listenTcp({ host: '127.0.0.1', port: 0 })
    const a = queue.connectTcp({ host: '127.0.0.1', port }, tag, 1)
    queue.connectTcp({ host: '127.0.0.1', port }, tag, 2)
    assert.throws(() => queue.connectTcp({ host: '127.0.0.1', port }, tag, 3), hasCode('EMFILE'))
    assert.throws(() => queue.openFile({ path: join(dir, 'none-left'), createBytes: 1, lock: false }), hasCode('EMFILE'))
    queue.accept(listener, tag, 4)
    until(queue, () => results.has(4) && results.has(1) && results.has(2))
    assert.equal(results.get(4), -Errno.ENFILE)
    queue.close(a, tag, 5)
    until(queue, () => results.has(5))
    queue.accept(listener, tag, 6)
    until(queue, () => results.has(6))
    assert.ok(results.get(6)! > 0)
  }))

test('an arena beyond 2 GiB is addressed by page', () =>
  withQueue({ arenaBytes: 3 * 1024 * 1024 * 1024, hugePages: false }, (queue) => {
    assert.equal(queue.arena.bytes.length, 3 * 1024 * 1024 * 1024)
    const page = queue.arena.totalPages - 2
    const { handle } = queue.openFile({ path: join(dir, 'far'), createBytes: 8 * 1024 * 1024 * 1024, lock: true })
    let result = 0
    const tag = queue.register('x', (_row, r) => {
      result = r
    })
    queue.arena.bytes.fill(0x5a, page * PAGE_BYTES, (page + 2) * PAGE_BYTES)
    const offset = 7 * 1024 * 1024 * 1024
    queue.write(handle, offset, page, 0, 2 * PAGE_BYTES, tag, 1)
    until(queue, () => result !== 0)
    assert.equal(result, 2 * PAGE_BYTES)
    assert.equal(readFileSync(`/proc/self/statm`, 'utf8').length > 0, true)
    queue.read(handle, offset, 2048, 0, 2 * PAGE_BYTES, -1, tag, 2)
    result = 0
    until(queue, () => result !== 0)
    assert.equal(queue.arena.bytes[2048 * PAGE_BYTES + 5000], 0x5a)
    assert.equal(queue.arena.crc32c(page, 0, 8192), queue.arena.crc32c(2048, 0, 8192))
  }))

test('options that make no sense are refused', () => {
  assert.throws(() => new NativeIoQueue({ arenaBytes: 4096 }), /cannot hold/)
  assert.throws(() => new NativeIoQueue({ arenaBytes: 1 << 24, providedCount: 100 }), /power of two/)
  assert.throws(() => new NativeIoQueue({ arenaBytes: 1 << 24, handlesMax: 70_000 }), /65536/)
})

test('without provided buffers everything but recvMultishot works', () =>
  withQueue({ providedCount: 0 }, (queue) => {
    const tag = queue.register('x', () => {})
    const { port } = queue.listenTcp({ host: '127.0.0.1', port: 0 })
    const client = queue.connectTcp({ host: '127.0.0.1', port }, tag, 1)
    assert.throws(() => queue.recvMultishot(client, tag, 1), /no provided buffers/)
    assert.equal(queue.arena.alloc(1), 0)
  }))

// ---- the engine checks for itself -----------------------------------------------------------------------------------------

test('no descriptor, however wrong, does more than throw', () => {
  const addon = loadAddon()
  const { NativeQueue } = addon
  const native = new NativeQueue({ arenaPages: 256, providedCount: 16, providedPages: 1, handlesMax: 64, opsMax: 512, crcsMax: 64, hugePages: false })
  const id = native.id()
  const control = native.control()
  const arena = new Uint8Array(native.arena())
  const at = native.offsets()
  const descriptors = new Int32Array(control, at.descriptors, 1024 * 16)
  const segments = new Int32Array(control, at.segments, 8192 * 3)
  const random = new Prng(3)
  const handles = [
    0,
    -1,
    native.openFile(join(memoryDir, 'fuzz'), 1 << 20, true, false).handle,
    native.openFile(join(dir, 'fuzz'), 1 << 20, true, false).handle,
  ]
  const { handle: listener, port } = native.listenTcp('127.0.0.1', 0, 10)
  handles.push(listener, native.socketTcp('127.0.0.1', port), native.socketTcp('127.0.0.1', port))
  const edges = [0, 1, -1, 255, 256, 4095, 4096, 4097, 2 ** 31 - 1, -(2 ** 31), 0xffff, 0x10000, 63, 64, 1 << 20]
  const word = () => (random.chance(0.6) ? random.pick(edges) : random.chance(0.5) ? random.below(300) : random.u32() | 0)
  let faults = 0
  let completions = 0
  for (let round = 0; round < 4000; round++) {
    const count = random.between(1, 8)
    for (let i = 0; i < count; i++) {
      const d = i * 16
      for (let w = 0; w < 16; w++) descriptors[d + w] = word()
      descriptors[d] = random.chance(0.95) ? random.between(1, 17) : word()
      // Closing everything at once would leave nothing to try
      if (descriptors[d] === 14 && random.chance(0.97)) descriptors[d] = 7
      descriptors[d + 1] = random.chance(0.8) ? random.pick(handles) : word()
      if (random.chance(0.5)) {
        descriptors[d + 4] = random.below(256)
        descriptors[d + 5] = random.chance(0.5) ? 0 : random.below(4096)
        descriptors[d + 6] = random.chance(0.5) ? 4096 : random.below(8192)
        descriptors[d + 7] = random.below(100) * 4096
        descriptors[d + 8] = 0
      }
      descriptors[d + 11] = random.chance(0.7) ? random.below(20) : word()
      descriptors[d + 12] = random.chance(0.7) ? random.below(20) : word()
    }
    for (let i = 0; i < 60; i++) {
      segments[i * 3] = random.chance(0.9) ? random.below(256) : word()
      segments[i * 3 + 1] = random.chance(0.9) ? 0 : word()
      segments[i * 3 + 2] = random.chance(0.9) ? 4096 : word()
    }
    try {
      completions += addon.queueTurn(id, count, 0)
    } catch (error) {
      assert.ok(error instanceof Error)
      faults++
    }
    if (round % 500 === 0) handles.push(native.socketTcp('127.0.0.1', port))
  }
  assert.throws(() => addon.queueTurn(id, 1025, 0), /descriptors/)
  assert.throws(() => addon.queueFlush(id, 2 ** 31))
  for (const [page, delta, length] of [
    [255, 1, 4096],
    [-1, 0, 1],
    [0, 0, -1],
    [2 ** 31 - 1, 2 ** 31 - 1, 2 ** 31 - 1],
  ] as const) {
    assert.throws(() => addon.queueCrc32c(id, page, delta, length), /outside the arena/)
  }
  assert.ok(faults > 1000 && completions > 100, `${faults} faults, ${completions} completions`)
  native.destroy()
  assert.throws(() => addon.queueTurn(id, 0, 0), /destroyed/)
  assert.throws(() => addon.queueTurn(4_000_000_000, 0, 0), /destroyed/)
  arena.fill(1)
})

test('checksums agree with the table of RFC 3720 and with JavaScript', () =>
  withQueue({}, (queue) => {
    const native = loadAddon().crc32c
    assert.equal(native(new Uint8Array(32)), 0x8a9136aa)
    assert.equal(native(new Uint8Array(32).fill(0xff)), 0x62a8ab43)
    const random = new Prng(1)
    for (const length of [1, 7, 8, 100, 4096, 70_001]) {
      const page = queue.arena.alloc(length + 9)
      const bytes = queue.arena.bytes.subarray(page * PAGE_BYTES + 3, page * PAGE_BYTES + 3 + length)
      random.fill(bytes)
      assert.equal(queue.arena.crc32c(page, 3, length), crc32c(bytes, 0, length))
      assert.equal(native(bytes), crc32c(bytes, 0, length))
    }
  }))

// ---- files and sockets of the real world ----------------------------------------------------------------------------------

test('a real file system gets O_DIRECT, a memory file system is volatile', { skip: !diskIsReal && 'the temporary directory is a memory file system' }, () =>
  withQueue({}, (queue) => {
    const disk = queue.openFile({ path: join(dir, 'direct'), createBytes: 1 << 20, lock: true })
    assert.equal(disk.volatile, false)
    assert.equal(disk.direct, true)
    assert.ok(disk.alignmentBytes >= 512)
    const memory = queue.openFile({ path: join(memoryDir, 'volatile'), createBytes: 1 << 20, lock: true })
    assert.deepEqual([memory.volatile, memory.direct, memory.alignmentBytes], [true, false, 1])
  }),
)

test('what cannot be a disk is refused by name', () =>
  withQueue({}, (queue) => {
    assert.throws(() => queue.openFile({ path: dir, lock: true }), hasCode('EISDIR'))
    assert.throws(
      () => queue.openFile({ path: '/dev/null', lock: true }),
      (error: Error) => /neither a regular file nor a block device/.test(error.message),
    )
    assert.throws(() => queue.openFile({ path: join(dir, 'no', 'such'), createBytes: 1, lock: true }), hasCode('ENOENT'))
    assert.throws(() => queue.openFile({ path: join(dir, 'zero\0byte'), createBytes: 1, lock: true }))
  }))

test('a read-only file can be read, and a write to it fails', () =>
  withQueue({}, (queue) => {
    const path = join(memoryDir, 'read-only')
    writeFileSync(path, Buffer.alloc(PAGE_BYTES, 7))
    const { handle, sizeBytes } = queue.openFile({ path, lock: false, readOnly: true })
    assert.equal(sizeBytes, PAGE_BYTES)
    const results = new Map<number, number>()
    const tag = queue.register('x', (row, result) => void results.set(row, result))
    const page = queue.arena.alloc(PAGE_BYTES)
    queue.read(handle, 0, page, 0, PAGE_BYTES, -1, tag, 1)
    queue.write(handle, 0, page, 0, PAGE_BYTES, tag, 2)
    until(queue, () => results.size === 2)
    assert.equal(results.get(1), PAGE_BYTES)
    assert.ok(results.get(2)! < 0)
    assert.equal(queue.arena.bytes[page * PAGE_BYTES + 9], 7)
  }))

test('a lock is seen by another process and ends with the process that held it', () =>
  withQueue({}, (queue) => {
    const path = join(dir, 'locked-by-us')
    queue.openFile({ path, createBytes: PAGE_BYTES, lock: true })
    const flock = spawnSync('flock', ['-n', path, 'true'])
    if (flock.error) return
    assert.equal(flock.status, 1)
  }))

test('a block device is opened direct and exclusive', { skip: process.getuid?.() !== 0 && 'needs root for a loop device' }, (t) => {
  const image = join(dir, 'image')
  execFileSync('truncate', ['-s', '16M', image])
  const made = spawnSync('losetup', ['-f', '--show', image], { encoding: 'utf8' })
  if (made.status !== 0) return t.skip('no loop devices here')
  const device = made.stdout.trim()
  try {
    withQueue({}, (queue) => {
      const opened = queue.openFile({ path: device, lock: true })
      assert.deepEqual([opened.isBlockDevice, opened.direct, opened.volatile, opened.sizeBytes], [true, true, false, 16 << 20])
      assert.throws(() => queue.openFile({ path: device, lock: true }), hasCode('EWOULDBLOCK'))
      assert.throws(() => queue.openFile({ path: device, lock: false, createBytes: 1 << 30 }), hasCode('ENOSPC'))
      const results: number[] = []
      const tag = queue.register('x', (_row, result) => void results.push(result))
      const page = queue.arena.alloc(PAGE_BYTES)
      queue.write(opened.handle, 0, page, 0, PAGE_BYTES, tag, 1)
      until(queue, () => results.length === 1)
      queue.fdatasync(opened.handle, tag, 2)
      until(queue, () => results.length === 2)
      assert.deepEqual(results, [PAGE_BYTES, 0])
    })
  } finally {
    execFileSync('losetup', ['-d', device])
  }
})

test('a stale socket file is replaced, another file is not, and closing removes the socket file', () => {
  const path = join(dir, 'stale.sock')
  // A listener killed at once leaves its file behind
  spawnSync(process.execPath, ['-e', `require('net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`])
  assert.ok(existsSync(path))
  withQueue({}, (queue) => {
    const listener = queue.listenUnix({ path, mode: 0o660 })
    assert.equal(statSync(path).mode & 0o777, 0o660)
    let done = false
    const tag = queue.register('x', () => {
      done = true
    })
    queue.close(listener, tag, 1)
    until(queue, () => done)
    assert.ok(!existsSync(path))
    writeFileSync(path, 'precious')
    assert.throws(() => queue.listenUnix({ path }), hasCode('EADDRINUSE'))
    assert.equal(readFileSync(path, 'utf8'), 'precious')
    assert.throws(() => queue.listenUnix({ path: `/${'x'.repeat(200)}` }), hasCode('ENAMETOOLONG'))
    assert.throws(() => queue.listenTcp({ host: 'no.such.name', port: 0 }), /not an IP address/)
    assert.throws(() => queue.listenTcp({ host: '192.0.2.1', port: 0 }), hasCode('EADDRNOTAVAIL'))
  })
})

test('a peer of another program that resets, sends slowly or says nothing is only its own connection', async () => {
  const queue = new NativeIoQueue({ arenaBytes: 16 << 20 })
  const io = new AsyncIo(queue)
  const loop = runReactor(queue)
  try {
    const { handle: listener, port } = queue.listenTcp({ host: '::1', port: 0 })
    const accepted = io.accept(listener)
    const client = net.connect(port, '::1')
    client.on('error', () => {})
    const server = (await accepted) as Handle
    const page = queue.arena.alloc(8192)
    assert.ok(page >= 0)
    const whole = io.recv(server, page, 0, 3000, true)
    for (let i = 0; i < 30; i++) {
      client.write(Buffer.alloc(100, i))
      await io.sleep(1)
    }
    assert.equal(await whole, 3000)
    assert.equal(queue.arena.bytes[page * PAGE_BYTES + 2999], 29)
    const next = io.recv(server, page, 0, 100)
    client.resetAndDestroy()
    assert.equal(await next, -Errno.ECONNRESET)
    assert.equal(await io.close(server), 0)
    assert.equal(await io.close(listener), 0)
  } finally {
    await loop.stop()
    assert.equal(queue.inFlight, 0)
    queue.destroy()
  }
})

// ---- the reactor loop --------------------------------------------------------------------------------------------------------

test('under the reactor loop promises, timers and immediates of Node run, idle and under load', async () => {
  const queue = new NativeIoQueue({ arenaBytes: 16 << 20 })
  const io = new AsyncIo(queue)
  let load = true
  let spins = 0
  const tag = queue.register('load', () => {
    spins++
    if (load) queue.timeout(0, tag, 0)
  })
  const loop = runReactor(queue)
  await new Promise((resolve) => setTimeout(resolve, 5))
  await io.sleep(1)
  queue.timeout(0, tag, 0)
  const beganMs = performance.now()
  await new Promise((resolve) => setTimeout(resolve, 30))
  await Promise.all([io.sleep(3), io.sleep(1), new Promise(setImmediate)])
  assert.ok(performance.now() - beganMs < 2000)
  load = false
  await io.sleep(1)
  assert.ok(spins > 10)
  const turns = loop.counters[ReactorCounter.TURNS]!
  assert.ok(turns > 10)
  await loop.stop()
  const after = loop.counters[ReactorCounter.TURNS]!
  await new Promise((resolve) => setTimeout(resolve, 150))
  assert.equal(loop.counters[ReactorCounter.TURNS], after)
  queue.destroy()
})

// ---- threads -----------------------------------------------------------------------------------------------------------------

interface TestWorker {
  worker: Worker
  shared: Int32Array
  turns: Int32Array
  wakeId: number
  exited: Promise<number>
  failed: Promise<Error>
}

async function startWorker(mode: string): Promise<TestWorker> {
  const shared = new Int32Array(new SharedArrayBuffer(16))
  const counters = new SharedArrayBuffer(REACTOR_COUNTERS_BYTES)
  const worker = new Worker(new URL('../../../test/support/ioqueue-worker.ts', import.meta.url), { workerData: { mode, shared, counters, dir } })
  const exited = new Promise<number>((resolve) => worker.once('exit', resolve))
  const failed = new Promise<Error>((resolve) => worker.once('error', resolve))
  const { wakeId } = await new Promise<{ wakeId: number }>((resolve, reject) => {
    worker.once('message', resolve)
    worker.once('error', reject)
  })
  return { worker, shared, turns: new Int32Array(counters), wakeId, exited, failed }
}

test('another thread wakes the queue: no wake is lost, and none costs a whole wait', { timeout: 30_000 }, async () => {
  const { wakeQueue } = loadAddon()
  const t = await startWorker('echo')
  const beganMs = performance.now()
  const rounds = 2000
  for (let n = 1; n <= rounds; n++) {
    Atomics.store(t.shared, 0, n)
    assert.ok(wakeQueue(t.wakeId))
    for (let seen = Atomics.load(t.shared, 1); seen !== n; seen = Atomics.load(t.shared, 1)) Atomics.wait(t.shared, 1, seen, 1000)
  }
  const tookMs = performance.now() - beganMs
  assert.ok(tookMs < (rounds * 100) / 10, `${rounds} round trips took ${tookMs} ms`)
  t.worker.postMessage({ stop: true })
  wakeQueue(t.wakeId)
  assert.equal(await t.exited, 0)
  assert.equal(wakeQueue(t.wakeId), false, 'a wake of a queue that is gone does nothing')
})

test('a worker answers messages with promises and timers while its loop runs, and its turns can be watched', { timeout: 30_000 }, async () => {
  const { wakeQueue } = loadAddon()
  const t = await startWorker('messages')
  for (let n = 0; n < 20; n++) {
    const answer = new Promise<{ n: number }>((resolve) => t.worker.once('message', resolve))
    t.worker.postMessage({ n })
    wakeQueue(t.wakeId)
    assert.deepEqual(await answer, { n: 2 * n })
  }
  const before = Atomics.load(t.turns, ReactorCounter.TURNS)
  await new Promise((resolve) => setTimeout(resolve, 350))
  const beats = Atomics.load(t.turns, ReactorCounter.TURNS) - before
  assert.ok(beats >= 2 && beats <= 20, `${beats} idle turns in 350 ms`)
  await t.worker.terminate()
})

test('workers with operations in flight die by terminate, by an uncaught error and by exit, and leave nothing behind', { timeout: 60_000 }, async () => {
  const { wakeQueue } = loadAddon()
  const round = async () => {
    const workers = await Promise.all([startWorker('busy'), startWorker('busy'), startWorker('throw'), startWorker('busy')])
    const [a, b, c, d] = workers as [TestWorker, TestWorker, TestWorker, TestWorker]
    await Promise.all([
      a.worker.terminate(),
      b.worker.terminate(),
      (async () => {
        wakeQueue(c.wakeId)
        assert.match((await c.failed).message, /a handler fails/)
        assert.equal(await c.exited, 1)
      })(),
      (async () => {
        d.worker.postMessage({ stop: true })
        wakeQueue(d.wakeId)
        assert.equal(await d.exited, 0)
      })(),
    ])
    for (const w of workers) assert.equal(wakeQueue(w.wakeId), false)
  }
  await round()
  await new Promise((resolve) => setTimeout(resolve, 100))
  const [fds, maps] = [openFds(), mappings()]
  for (let i = 0; i < 3; i++) await round()
  await new Promise((resolve) => setTimeout(resolve, 100))
  assert.ok(openFds() <= fds + 1, `${fds} descriptors before, ${openFds()} after`)
  assert.ok(mappings() <= maps + 40, `${maps} mappings before, ${mappings()} after`)
})

function runScript(source: string, ...flags: string[]) {
  const script = `
    import { readdirSync } from 'node:fs'
    import { NativeIoQueue } from ${JSON.stringify(join(ROOT, 'src/env/node/ioqueue.ts'))}
    import { runReactor } from ${JSON.stringify(join(ROOT, 'src/env/node/reactor-loop.ts'))}
    const fds = () => readdirSync('/proc/self/fd').length
    const make = () => {
      const queue = new NativeIoQueue({ arenaBytes: 16 << 20 })
      const tag = queue.register('x', () => {})
      const { handle, port } = queue.listenTcp({ host: '127.0.0.1', port: 0 })
      queue.accept(handle, tag, 1)
      queue.recvMultishot(queue.connectTcp({ host: '127.0.0.1', port }, tag, 2), tag, 3)
      queue.timeout(1e6, tag, 4)
      queue.turn(0)
      return { queue, tag }
    }
    ${source}`
  const path = join(dir, `script-${Math.abs(crc32c(Buffer.from(script), 0, script.length))}.ts`)
  writeFileSync(path, script)
  return spawnSync(process.execPath, ['--disable-warning=ExperimentalWarning', ...flags, path], { encoding: 'utf8', timeout: 20_000 })
}

test('a process ends cleanly with operations in flight: by returning, process.exit and an uncaught error', () => {
  const returns = runScript('make()')
  assert.deepEqual([returns.status, returns.signal, returns.stderr], [0, null, ''])
  const exits = runScript('const { queue } = make(); runReactor(queue); setTimeout(() => process.exit(3), 20)')
  assert.deepEqual([exits.status, exits.signal, exits.stderr], [3, null, ''])
  const throws = runScript(`const { queue } = make(); queue.timeout(1, queue.register('y', () => { throw new Error('on purpose') }), 1); runReactor(queue)`)
  assert.deepEqual([throws.status, throws.signal], [1, null])
  assert.match(throws.stderr, /on purpose/)
})

test('a queue that is dropped without destroy is collected with its descriptors', () => {
  const run = runScript(
    `let list = []
     for (let i = 0; i < 5; i++) make()
     for (let i = 0; i < 5; i++) { globalThis.gc(); await new Promise((resolve) => setTimeout(resolve, 10)) }
     const before = fds()
     for (let i = 0; i < 20; i++) make()
     for (let i = 0; i < 5; i++) { globalThis.gc(); await new Promise((resolve) => setTimeout(resolve, 10)) }
     process.stdout.write(String(fds() - before))`,
    '--expose-gc',
  )
  assert.equal(run.stderr, '')
  assert.ok(Number(run.stdout) <= 5, `${run.stdout} descriptors more`)
})

test('the arena can be touched after destroy', () => {
  const queue = new NativeIoQueue({ arenaBytes: 16 << 20 })
  queue.destroy()
  queue.arena.bytes.fill(3)
  assert.equal(queue.arena.bytes.at(-1), 3)
  assert.throws(() => queue.turn(0), /destroyed/)
})

test('a missing or foreign addon is an error that says what to run', async () => {
  const place = join(dir, 'elsewhere/src/env/native')
  mkdirSync(place, { recursive: true })
  copyFileSync(join(ROOT, 'src/env/native/addon.ts'), join(place, 'addon.ts'))
  writeFileSync(join(dir, 'elsewhere/package.json'), '{"type":"module"}')
  const { loadAddon: load } = (await import(pathToFileURL(join(place, 'addon.ts')).href)) as typeof import('../native/addon.ts')
  assert.throws(() => load(), /Build it: tools\/bootstrap/)
})

// ---- leaks -------------------------------------------------------------------------------------------------------------------

test('a million operations leave no memory, handle or operation behind', { timeout: 60_000 }, () => {
  const queue = new NativeIoQueue({ arenaBytes: 32 << 20, hugePages: false })
  const results = new Int32Array(16)
  let done = 0
  const tag = queue.register('ops', (row, result) => {
    results[row] = result
    done++
  })
  const providedTag = queue.register('provided', (_row, result, extra) => {
    if (result > 0) queue.releaseProvided(extra >> 1)
    done++
    if (!(extra & MORE) && result !== -Errno.ECANCELED && result !== 0) queue.recvMultishot(server, providedTag, 0)
  })
  const { handle: listener, port } = queue.listenTcp({ host: '127.0.0.1', port: 0 })
  queue.accept(listener, tag, 0)
  const client = queue.connectTcp({ host: '127.0.0.1', port }, tag, 1)
  until(queue, () => done === 2)
  const server = results[0] as Handle
  const { handle: file } = queue.openFile({ path: join(memoryDir, 'leak'), createBytes: 1 << 20, lock: true })
  const page = queue.arena.alloc(64 * PAGE_BYTES)
  const crc = queue.reserveCrcs(16)
  queue.recvMultishot(server, providedTag, 0)
  queue.turn(0)

  const cycle = () => {
    // 21 operations, and the piece that the multishot receive brings
    for (let i = 0; i < 12; i++) queue.read(file, i * PAGE_BYTES, page + i, 0, PAGE_BYTES, i & 1 ? crc + i : -1, tag, 2)
    for (let i = 0; i < 3; i++) queue.segment(page + 20 + i, 0, PAGE_BYTES)
    queue.writeSegments(file, 0, false, tag, 3)
    queue.fdatasync(file, tag, 4)
    queue.timeout(0, tag, 5)
    queue.timeout(1e6, tag, 6)
    queue.cancelTimeout(tag, 6)
    queue.send(client, page, 0, 100, tag, 7)
    queue.recv(client, page + 40, 0, 100, false, tag, 8)
    const more = queue.connectTcp({ host: '127.0.0.1', port }, tag, 9)
    queue.accept(listener, tag, 10)
    const goal = done + 20
    until(queue, () => done >= goal && results[10] !== 0 && results[9] === 0 && results[7] === 100)
    queue.cancel(client)
    queue.close(more, tag, 11)
    queue.close(results[10] as Handle, tag, 12)
    results[10] = 0
    results[7] = 0
    until(queue, () => queue.inFlight === 1)
  }
  const plain = (count: number) => {
    let left = count
    const goal = done + count
    while (done < goal) {
      for (let i = 0; i < 64 && left > 0; i++, left--) {
        if (left & 1) queue.read(file, (left & 127) * PAGE_BYTES, page, 0, PAGE_BYTES, -1, tag, 2)
        else queue.timeout(0, tag, 5)
      }
      queue.turn(10)
    }
  }
  const rssKiB = () => Number(/VmRSS:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))![1])
  for (let i = 0; i < 500; i++) cycle()
  plain(50_000)
  assert.deepEqual(queue.nativeInUse(), { handles: 4, operations: 1 })
  const before = { fds: openFds(), maps: mappings(), rssKiB: rssKiB() }
  const firstDone = done
  for (let i = 0; i < 4000; i++) cycle()
  while (done - firstDone < 1_000_000) plain(50_000)
  assert.deepEqual(queue.nativeInUse(), { handles: 4, operations: 1 })
  assert.equal(openFds(), before.fds)
  const grownKiB = rssKiB() - before.rssKiB
  assert.ok(grownKiB < 40 * 1024, `resident memory grew by ${grownKiB} KiB`)
  for (const handle of [client, server, listener, file]) queue.close(handle, tag, 0)
  until(queue, () => queue.inFlight === 0)
  assert.deepEqual(queue.nativeInUse(), { handles: 0, operations: 0 })
  queue.destroy()
  assert.ok(openFds() < before.fds)
})
