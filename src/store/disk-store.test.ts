import assert from 'node:assert/strict'
import test from 'node:test'
import { Bench, DISK_BYTES, IDENTITY, PATH, Recorder, SLOTS } from '../../test/support/store-bench.ts'
import { XsanError } from '../base/errors.ts'
import type { DiskNumber } from '../base/ids.ts'
import { Status } from '../base/status.ts'
import { BLOCK_BYTES, MiB, PAGE_BYTES } from '../base/units.ts'
import { AsyncIo } from '../env/async-io.ts'
import { Errno } from '../env/ioqueue.ts'
import { SimIoQueue } from '../env/sim/ioqueue.ts'
import { CLIENTS_MAX } from './channel-rows.ts'
import type { DiskStore } from './disk-store.ts'
import { BATCH_MAGIC, BatchHeader, LEAVES_PER_BLOCK, planGeometry, Superblock } from './layout.ts'
import { mountStore, probeStore } from './mount.ts'
import { NO_BLOCK, PAGE_LOST, PageFlag, RecordKind, StageRecord } from './store.ts'

const MOUNT = { path: PATH, identity: IDENTITY, slotCount: SLOTS, events: new Recorder(), bootId: 'boot-1', wallMs: () => 0 }
const record = new StageRecord()

function write(bench: Bench, store: DiskStore, o: { index: number; firstPage: number; pageCount: number; id: number; slot?: number; durable?: boolean }) {
  const { page, crcs } = bench.payload(o.pageCount)
  record.kind = RecordKind.WRITE
  record.slot = o.slot ?? 1
  record.idHigh = 1
  record.idLow = o.id
  record.volume = 5
  record.layer = 0
  record.index = o.index
  record.firstPage = o.firstPage
  record.pageCount = o.pageCount
  record.payloadPage = page
  record.crcs = crcs
  record.crcFirst = 0
  record.durable = o.durable ?? true
  record.clientHigh = 256
  record.clientLow = 1
  record.channel = 3
  record.seq = o.id
  assert.equal(store.admit(record, true), Status.SUCCESS)
  return { page, crcs, seq: store.stage(record) }
}

/** As {@link write}; its payload is given back when it is durable. */
async function writeDurable(bench: Bench, store: DiskStore, o: Parameters<typeof write>[2]): Promise<void> {
  const { page, seq } = write(bench, store, o)
  await bench.until(() => bench.events.durable >= seq)
  bench.free(page)
}

/** A disk with what one write has brought; that is durable, if the write is. */
async function withWrite(seed: number, o: Parameters<typeof write>[2]) {
  const bench = new Bench(seed)
  await bench.format()
  const store = await bench.mount()
  const w = write(bench, store, o)
  await bench.until(() => bench.events[o.durable === false ? 'staged' : 'durable'] >= w.seq)
  return { bench, store, w }
}

/** The tag of the background work's requests, once a store has been mounted on this queue. */
function bulkTag(queue: Bench['queue']): () => number {
  const register = queue.register.bind(queue)
  let bulk = -1
  queue.register = (name, handler) => {
    const tag = register(name, handler)
    if (name === 'store bulk') bulk = tag as number
    return tag
  }
  return () => bulk
}

/** Extents are allocated ahead of blocks, but not in no time. */
async function roomFor(bench: Bench, store: DiskStore) {
  let hasRoom = true
  while (store.admit(record, true) === Status.BUSY) {
    hasRoom = false
    store.onRoom(() => {
      hasRoom = true
    })
    await bench.until(() => hasRoom)
  }
}

/** Who waits for room is told after `makes` has made it, and not before. */
async function isToldOfRoom(bench: Bench, store: DiskStore, makes: () => void) {
  let hasRoom = false
  store.onRoom(() => {
    hasRoom = true
  })
  await bench.world.runFor(100)
  assert.equal(hasRoom, false)
  makes()
  await bench.until(() => hasRoom, 1000)
}

async function contentIs(bench: Bench, store: DiskStore, index: number, firstPage: number, pageCount: number, payload: number | null) {
  const buffer = bench.alloc(pageCount)
  const { status } = await bench.read(store, store.findBlock(5, 0, index), firstPage, pageCount, buffer)
  assert.equal(status, Status.SUCCESS)
  const { bytes } = bench.queue.arena
  const got = bytes.subarray(buffer * PAGE_BYTES, (buffer + pageCount) * PAGE_BYTES)
  if (payload === null) assert.ok(got.every((byte) => byte === 0))
  else assert.deepEqual(Buffer.compare(got, bytes.subarray(payload * PAGE_BYTES, (payload + pageCount) * PAGE_BYTES)), 0)
  bench.free(buffer)
}

test('what is staged can be read at once, and after it is durable, and after a kill, and after a clean stop', async () => {
  const bench = new Bench(1)
  await bench.format()
  let store = await bench.mount()
  await contentIs(bench, store, 0, 0, 1, null)
  const w = write(bench, store, { index: 0, firstPage: 10, pageCount: 3, id: 1 })
  await contentIs(bench, store, 0, 10, 3, w.page)
  await contentIs(bench, store, 0, 0, 4, null)
  await bench.until(() => bench.events.durable >= w.seq)
  assert.equal(bench.events.staged, w.seq)
  await contentIs(bench, store, 0, 10, 3, w.page)
  const copy = bench.queue.arena.bytes.slice(w.page * PAGE_BYTES, (w.page + 3) * PAGE_BYTES)
  for (const how of ['kill', 'power', 'close'] as const) {
    if (how === 'close') {
      await bench.settle(store.close())
      assert.equal(bench.queue.inFlight, 0)
    }
    if (how === 'power') bench.powerLoss()
    else bench.kill()
    store = await bench.mount()
    assert.equal(store.lostPower, how === 'power')
    await bench.settle(store.forgetPowerLoss())
    const page = bench.alloc(3)
    bench.queue.arena.bytes.set(copy, page * PAGE_BYTES)
    await contentIs(bench, store, 0, 10, 3, page)
    const row = store.rows.lookup(256, 1, 3)
    assert.deepEqual([store.rows.seq[row], store.rows.held[row], store.lastHigh[1], store.lastLow[1]], [1, 1, 1, 1])
  }
  assert.equal(store.findBlock(5, 0, 1), NO_BLOCK)
})

test('a single page costs one write of two pages', async () => {
  const bench = new Bench(2)
  await bench.format()
  const store = await bench.mount()
  const before = store.journalUsedBytes
  const w = write(bench, store, { index: 0, firstPage: 0, pageCount: 1, id: 1 })
  await bench.until(() => bench.events.durable >= w.seq)
  assert.equal(store.journalUsedBytes - before, 2 * PAGE_BYTES)
})

async function refused(promise: Promise<unknown>, status: string, text: RegExp) {
  await assert.rejects(promise, (error: unknown) => {
    assert.ok(error instanceof XsanError, String(error))
    assert.equal(error.status, status)
    assert.match(error.message, text)
    assert.notEqual(error.nextStep, '')
    return true
  })
}

test('a disk of another cluster, of another node, or another disk than expected is refused with reason and next step', async () => {
  const bench = new Bench(3)
  await bench.format()
  await refused(bench.mount({ identity: { clusterId: 'cluster-b', nodeId: 'node-1' } }), 'DISK_FOREIGN', /belongs to cluster cluster-a/)
  await refused(bench.mount({ identity: { clusterId: 'cluster-a', nodeId: 'node-2' } }), 'DISK_FOREIGN', /belongs to node node-1/)
  await refused(bench.mount({ disk: 8 as DiskNumber }), 'DISK_FOREIGN', /is disk 7, expected was disk 8/)
  await refused(bench.mount({ slotCount: 32 }), 'DISK_INCOMPATIBLE', /16 slots/)
  await refused(bench.mount({ path: '/disk/none' }), 'DISK_NOT_FOUND', /does not exist/)
  const { clusterId, nodeId, disk } = (await bench.settle(probeStore(bench.io, PATH)))!
  assert.deepEqual({ clusterId, nodeId, disk }, { clusterId: 'cluster-a', nodeId: 'node-1', disk: 7 })
  // None of these attempts has written anything
  const store = await bench.mount({ disk: 7 as DiskNumber })
  await bench.settle(store.close())
})

test('a disk that is in use is waited for, then refused', async () => {
  const bench = new Bench(4)
  await bench.format()
  const store = await bench.mount()
  const other = bench.host.start('another')
  const queue = new SimIoQueue({ process: other, name: 'q' })
  queue.runReactor(() => queue.turn(0))
  await refused(bench.mount({ io: new AsyncIo(queue), lockWaitMs: 300 }), 'BUSY', /in use by another process/)
  const waiting = mountStore({ ...MOUNT, io: new AsyncIo(queue), lockWaitMs: 5000 })
  await bench.world.runFor(200)
  bench.process.kill()
  await bench.settle(waiting)
  assert.equal(store.failed, false)
})

test('only a blank disk is formatted, unless forced, and a file that is no disk is not mounted', async () => {
  const bench = new Bench(5)
  await bench.format()
  await refused(bench.format(), 'DISK_FOREIGN', /is not blank: it holds a disk of XSAN cluster cluster-a, node node-1/)
  const store = await bench.mount()
  const w = write(bench, store, { index: 0, firstPage: 0, pageCount: 1, id: 1 })
  await bench.until(() => bench.events.durable >= w.seq)
  await bench.settle(store.close())
  await bench.format({ force: true, diskUuid: 'a'.repeat(32), journalUuid: 'b'.repeat(32) })
  const again = await bench.mount()
  assert.equal(again.findBlock(5, 0, 0), NO_BLOCK)
  assert.equal(again.lastLow[1], 0)
  await bench.settle(again.close())
  // Something else in the place of the superblocks
  const { page } = bench.payload(1)
  for (const offset of [0, DISK_BYTES - PAGE_BYTES]) bench.file.writeFrom(offset, bench.queue.arena.bytes, page * PAGE_BYTES, PAGE_BYTES)
  await refused(bench.mount(), 'DISK_FOREIGN', /something else than an XSAN disk/)
  await refused(bench.format(), 'DISK_FOREIGN', /other data/)
  await refused(bench.format({ path: '/disk/tiny', createBytes: 4 * MiB }), 'INVALID_PARAM', /no room for data/)
})

test('one damaged superblock is no harm, two are said', async () => {
  const bench = new Bench(6)
  await bench.format()
  await bench.settle((await bench.mount()).close())
  for (const page of [0, DISK_BYTES / PAGE_BYTES - 1]) {
    bench.file.flipBit(page, 77 * 8)
    if (page === 0) await bench.settle((await bench.mount()).close())
  }
  bench.file.flipBit(0, 77 * 8)
  await refused(bench.mount(), 'DISK_CORRUPTED', /both superblocks are damaged/)
})

test('a disk written by a newer version is refused', async () => {
  const bench = new Bench(7)
  await bench.format()
  for (const [field, value, what] of [
    ['incompat', 4, /features 0x4 that this version lacks/],
    ['formatVersion', 9, /format 9 \(this is 3\)/],
    ['formatVersion', 1, /format 1 \(this is 3\)/],
  ] as const) {
    for (const offset of [0, DISK_BYTES - PAGE_BYTES]) {
      const page = bench.alloc(1)
      const at = page * PAGE_BYTES
      const { arena } = bench.queue
      bench.file.readInto(offset, arena.bytes, at, PAGE_BYTES)
      Superblock.set[field](arena.view, at, value)
      Superblock.set.crc(arena.view, at, 0)
      Superblock.set.crc(arena.view, at, arena.crc32c(page, 0, PAGE_BYTES))
      bench.file.writeFrom(offset, arena.bytes, at, PAGE_BYTES)
      bench.free(page)
    }
    await refused(bench.mount(), 'DISK_INCOMPATIBLE', what)
  }
})

test('a full disk refuses new blocks of clients and takes overwrites, forwards and removals', async () => {
  const bench = new Bench(8)
  await bench.format()
  const store = await bench.mount()
  const extents = store.capacityBytes / BLOCK_BYTES
  let id = 1
  let index = 0
  for (; ; index++) {
    Object.assign(record, { kind: RecordKind.WRITE, slot: 1, volume: 5, layer: 0, index, pageCount: 1, clientHigh: 0 })
    await roomFor(bench, store)
    if (store.admit(record, true) !== Status.SUCCESS) break
    write(bench, store, { index, firstPage: 0, pageCount: 1, id: id++ })
  }
  assert.equal(store.admit(record, true), Status.INSUFFICIENT_SPACE)
  assert.equal(store.rejectReason, '', 'of blocks, that is')
  assert.equal(store.rejectCreate, true)
  assert.equal(index, extents - 2)
  assert.equal(store.admit(record, false), Status.SUCCESS)
  record.index = 0
  assert.equal(store.admit(record, true), Status.SUCCESS)
  const remove = (n: number) => {
    Object.assign(record, { kind: RecordKind.REMOVE, index: n, idLow: id++, pageCount: 0, firstPage: 0, clientHigh: 0 })
    assert.equal(store.admit(record, true), Status.SUCCESS)
    store.stage(record)
  }
  remove(0)
  assert.equal(store.rejectCreate, true, 'with hysteresis')
  remove(1)
  remove(2)
  assert.equal(store.rejectCreate, false)
  write(bench, store, { index: 0, firstPage: 0, pageCount: 1, id: id++ })
  await bench.settle(store.close())
})

test('bit rot is told as the page, repaired from elsewhere, and stays repaired', async () => {
  const { bench, w, ...written } = await withWrite(9, { index: 0, firstPage: 20, pageCount: 4, id: 1 })
  let { store } = written
  const { bytes } = bench.queue.arena
  const good = bytes.slice((w.page + 2) * PAGE_BYTES, (w.page + 3) * PAGE_BYTES)
  const where = [...bench.file.pages].filter(([, content]) => Buffer.compare(content, good) === 0).map(([page]) => page)
  assert.equal(where.length, 1)
  bench.file.flipBit(where[0]!, 5)
  const buffer = bench.alloc(4)
  const block = store.findBlock(5, 0, 0)
  assert.deepEqual(await bench.read(store, block, 20, 4, buffer), { status: Status.BLOCK_CORRUPTED, extra: 22 })
  assert.deepEqual(await bench.read(store, block, 20, 2, buffer), { status: Status.SUCCESS, extra: 0 })
  assert.equal(await bench.settle(store.repairPage(block, 22, 1, 99, w.page + 2, w.crcs[2]!)), false)
  assert.equal(await bench.settle(store.repairPage(block, 22, 1, 1, w.page + 2, w.crcs[2]!)), true)
  await contentIs(bench, store, 0, 20, 4, w.page)
  bench.kill()
  store = await bench.mount()
  const again = bench.alloc(1)
  assert.equal((await bench.read(store, store.findBlock(5, 0, 0), 22, 1, again)).status, Status.SUCCESS)
  assert.equal(Buffer.compare(bench.queue.arena.bytes.subarray(again * PAGE_BYTES, (again + 1) * PAGE_BYTES), good), 0)
})

test('a host that goes down after its disk was sealed has lost nothing; nothing is staged from then on', async () => {
  for (const how of ['sealed', 'not sealed', 'hangs'] as const) {
    const { bench, w, ...written } = await withWrite(19, { index: 0, firstPage: 0, pageCount: 1, id: 1, durable: false })
    let { store } = written
    const content = bench.queue.arena.bytes.slice(w.page * PAGE_BYTES, (w.page + 1) * PAGE_BYTES)
    if (how === 'hangs') bench.disk.hang()
    const sealing = how === 'not sealed' ? undefined : store.seal()
    if (how === 'sealed') await bench.settle(sealing!)
    else await bench.world.runFor(500)
    if (how !== 'not sealed') {
      assert.equal(store.admit(record, false), Status.BUSY)
      assert.throws(() => store.startSession(2), { status: 'BUSY' })
      assert.equal(await bench.settle(store.repairPage(store.findBlock(5, 0, 0), 0, 1, 1, w.page, w.crcs[0]!)), false)
      assert.equal(await bench.settle(store.sweep(() => true)), 0)
    }
    bench.powerLoss('lose')
    store = await bench.mount()
    assert.equal(store.lostPower, how !== 'sealed', how)
    if (how !== 'sealed') continue
    const page = bench.alloc(1)
    bench.queue.arena.bytes.set(content, page * PAGE_BYTES)
    await contentIs(bench, store, 0, 0, 1, page)
    bench.powerLoss('lose')
    assert.equal((await bench.mount()).lostPower, true, 'it was mounted again')
  }
})

test('a disk whose flush has failed, and is mounted again, may lack what was not durable; one that only hung does not', async () => {
  for (const fault of ['flush', 'flush of a mount', 'hang'] as const) {
    const { bench, ...written } = await withWrite(20, { index: 0, firstPage: 0, pageCount: 1, id: 1, durable: false })
    let { store } = written
    if (fault === 'hang') bench.disk.hang()
    else if (fault === 'flush') bench.disk.faults.flushEio = 1
    if (fault !== 'flush of a mount') {
      store.flush(() => undefined, 0)
      await bench.until(() => store.failed)
      await bench.world.runFor(100)
    }
    bench.kill()
    bench.disk.resume()
    if (fault === 'flush of a mount') {
      bench.disk.faults.flushEio = 1
      await assert.rejects(bench.mount(), { status: 'WRITE_FAILED' })
    }
    bench.disk.faults.flushEio = 0
    store = await bench.mount()
    assert.equal(store.lostPower, fault !== 'hang', fault)
    assert.equal(store.failed, false)
  }
})

test('a disk that fails as its superblock is written keeps the other one, whatever is still noted on it', async () => {
  for (const first of [false, true]) {
    const bench = new Bench(23)
    await bench.format()
    let store = await bench.mount()
    if (first) {
      bench.kill()
      store = await bench.mount()
    }
    const { io } = bench
    const write = io.write.bind(io)
    io.write = async (_file, offsetBytes) => {
      bench.file.badPages.add(offsetBytes / PAGE_BYTES)
      return -Errno.EIO
    }
    await bench.settle(store.seal())
    await bench.world.runFor(1000)
    assert.equal(store.failed, true)
    io.write = write
    bench.kill()
    assert.equal((await bench.mount()).failed, false)
  }
})

test('a disk that was away from its host may lack what was not durable, unless it was closed before', async () => {
  for (const closed of [false, true]) {
    const { bench, store } = await withWrite(22, { index: 0, firstPage: 0, pageCount: 1, id: 1, durable: false })
    if (closed) await bench.settle(store.close())
    bench.kill()
    assert.equal((await bench.mount({ wasAway: true })).lostPower, !closed)
    bench.kill()
    assert.equal((await bench.mount()).lostPower, !closed)
  }
})

test('slots that have been served since the host lost its power are known to the next process, until it is lost again', async () => {
  const bench = new Bench(21)
  await bench.format()
  const lost = (store: DiskStore) => [0, 9, SLOTS - 1].map((slot) => store.hasLostPower(slot))
  assert.deepEqual(lost(await bench.mount()), [false, false, false])
  bench.powerLoss()
  let store = await bench.mount()
  assert.deepEqual(lost(store), [true, true, true])
  await bench.settle(store.forgetPowerLossOf([9]))
  for (let mounts = 0; mounts < 3; mounts++) {
    assert.deepEqual(lost(store), [true, false, true])
    assert.equal(store.lostPower, true)
    bench.kill()
    store = await bench.mount()
  }
  bench.powerLoss()
  store = await bench.mount()
  assert.deepEqual(lost(store), [true, true, true])
  await bench.settle(store.forgetPowerLossOf([0]))
  await bench.settle(store.forgetPowerLoss())
  bench.kill()
  assert.deepEqual(lost(await bench.mount()), [false, false, false])
})

test('a repair keeps its payload until it is in the journal, however many wait for that', async () => {
  const { bench, store, w } = await withWrite(18, { index: 0, firstPage: 0, pageCount: 1, id: 1 })
  bench.disk.hang()
  write(bench, store, { index: 0, firstPage: 1, pageCount: 1, id: 2 })
  let flushed = 0
  for (let i = 0; i < 4096; i++) store.flush(() => flushed++, 0)
  let isRepaired: boolean | undefined
  void store.repairPage(store.findBlock(5, 0, 0), 0, 1, 1, w.page, w.crcs[0]!).then((done) => {
    isRepaired = done
  })
  await bench.world.runFor(100)
  assert.deepEqual([isRepaired, flushed], [undefined, 0])
  bench.disk.resume()
  await bench.until(() => isRepaired !== undefined, 1000)
  assert.deepEqual([isRepaired, flushed, store.durableSeq], [true, 4096, 3])
})

test('a page installed as lost is an error for itself alone, over crashes and the destage, until it is overwritten, trimmed or repaired', async () => {
  const bench = new Bench(12)
  await bench.format({ journalBytes: 16 * MiB })
  let store = await bench.mount()
  const w = write(bench, store, { index: 0, firstPage: 0, pageCount: 8, id: 1 })
  await bench.until(() => bench.events.durable >= w.seq)
  const pages = Uint16Array.of(1, 2, 3, 4, 6)
  const lost = PageFlag.DATA | PAGE_LOST
  const ids = { idHigh: new Uint32Array(5).fill(1), idLow: new Uint32Array(5).fill(1) }
  const content = bench.queue.arena.bytes.slice(w.page * PAGE_BYTES, (w.page + 8) * PAGE_BYTES)
  const contentOf = (page: number): number => {
    const at = bench.alloc(1)
    bench.queue.arena.bytes.set(content.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES), at * PAGE_BYTES)
    return at
  }
  const given = {
    slot: 1,
    volume: 5,
    layer: 0,
    index: 0,
    pages,
    ...ids,
    crc: Uint32Array.from(pages, (page) => w.crcs[page]!),
    flags: new Uint8Array(5).fill(lost),
  }
  const digest = store.slotDigest(1)
  const { checksum, sizeBytes } = store.describe(store.findBlock(5, 0, 0))
  store.startSession(1)
  store.install({ ...given, payloadPage: 0, remove: false, rows: new Uint32Array(0), lastHigh: 1, lastLow: 1 })
  store.endSession(1)
  const statuses = async (): Promise<number[]> => {
    const buffer = bench.alloc(1)
    const row = store.findBlock(5, 0, 0)
    const all: number[] = []
    for (let page = 0; page < 8; page++) all.push((await bench.read(store, row, page, 1, buffer)).status === Status.BLOCK_CORRUPTED ? page : -1)
    bench.free(buffer)
    return all.filter((page) => page >= 0)
  }
  assert.deepEqual(await statuses(), [1, 2, 3, 4, 6])
  assert.deepEqual(store.slotDigest(1), digest, 'a lost page is the same page')
  assert.equal(store.describe(store.findBlock(5, 0, 0)).checksum, checksum)
  assert.deepEqual(await bench.read(store, store.findBlock(5, 0, 0), 0, 8, bench.alloc(8)), { status: Status.BLOCK_CORRUPTED, extra: 1 })
  await bench.until(() => bench.events.durable >= store.stagedSeq && store.stagedSeq > w.seq)
  bench.kill()
  store = await bench.mount()
  assert.deepEqual(await statuses(), [1, 2, 3, 4, 6], 'replayed')
  write(bench, store, { index: 0, firstPage: 2, pageCount: 1, id: 2 })
  Object.assign(record, { kind: RecordKind.ZERO, slot: 1, volume: 5, index: 0, firstPage: 3, pageCount: 1, idHigh: 1, idLow: 3, clientHigh: 0 })
  store.stage(record)
  assert.deepEqual(await statuses(), [1, 4, 6])
  let row = store.findBlock(5, 0, 0)
  assert.equal(await bench.settle(store.repairPage(row, 4, 1, 1, contentOf(4), 1)), false, 'another content')
  assert.equal(await bench.settle(store.repairPage(row, 4, 1, 1, contentOf(4), w.crcs[4]!)), true)
  assert.deepEqual(await statuses(), [1, 6])
  // through the destage into the tables: the segments of these records are reused
  for (let id = 10; store.counters.destagedSegments < 8; id++) {
    const more = write(bench, store, { index: 1, firstPage: (id * 64) % 1024, pageCount: 64, id })
    await bench.until(() => bench.events.staged >= more.seq)
    bench.free(more.page)
    // there is room for the next
    await bench.until(() => store.admit(record, true) === Status.SUCCESS)
  }
  assert.deepEqual(await statuses(), [1, 6])
  bench.kill()
  store = await bench.mount()
  assert.deepEqual(await statuses(), [1, 6], 'from the page tables')
  row = store.findBlock(5, 0, 0)
  assert.deepEqual(
    store.lostPages(10),
    [1, 6].map((page) => ({ block: row, page })),
  )
  assert.equal(store.lostPages(1).length, 1)
  assert.deepEqual(
    [row, store.findBlock(5, 0, 1)].map((each) => store.hasLostPages(each)),
    [true, false],
  )
  assert.equal(store.describe(row).sizeBytes, sizeBytes)
  assert.equal(await bench.settle(store.repairPage(row, 1, 1, 1, contentOf(1), w.crcs[1]!)), true)
  assert.equal(await bench.settle(store.repairPage(row, 6, 1, 1, contentOf(6), w.crcs[6]!)), true)
  assert.deepEqual(store.lostPages(10), [])
  assert.equal(store.hasLostPages(row), false)
})

test('a disk that hangs, or cannot write, fails once, and everything that waits is told', async () => {
  for (const fault of ['hang', 'eio'] as const) {
    const bench = new Bench(10)
    await bench.format()
    const store = await bench.mount()
    if (fault === 'hang') bench.disk.hang()
    else bench.disk.gone = true
    write(bench, store, { index: 0, firstPage: 0, pageCount: 1, id: 1 })
    let flushed = -1
    store.flush((_row, status) => {
      flushed = status
    }, 0)
    let looksAgain = false
    store.onRoom(() => {
      looksAgain = true
    })
    const startMs = bench.world.nowMs
    await bench.until(() => flushed >= 0, 10_000)
    if (fault === 'hang') assert.ok(bench.world.nowMs - startMs < 3500 && bench.world.nowMs - startMs > 1900)
    assert.equal(flushed, Status.WRITE_FAILED)
    assert.match(bench.events.failed!, fault === 'hang' ? /has not answered/ : /EIO/)
    assert.equal(store.admit(record, true), Status.WRITE_FAILED)
    await bench.until(() => looksAgain, 100)
    const buffer = bench.alloc(1)
    assert.equal((await bench.read(store, store.findBlock(5, 0, 0), 0, 1, buffer)).status, Status.READ_FAILED)
    assert.equal(bench.events.durable, 0)
  }
})

test('a disk that hangs ends the reads of captures; their pages are free when it has given them back', async () => {
  const bench = new Bench(12)
  await bench.format()
  const store = await bench.mount()
  const w = write(bench, store, { index: 0, firstPage: 0, pageCount: 4, id: 1 })
  await bench.until(() => bench.events.durable >= w.seq)
  const capture = store.capture(store.findBlock(5, 0, 0))
  const buffer = bench.alloc(4)
  bench.disk.hang()
  let status = -1
  void store.readCaptured(capture, 0, 4, buffer).then((result) => {
    status = result
  })
  await bench.until(() => status >= 0, 5000)
  assert.equal(status, Status.READ_FAILED)
  assert.match(bench.events.failed!, /has not answered/)
  store.release(capture)
  let hasEnded = false
  void store.ioEnded().then(() => {
    hasEnded = true
  })
  await bench.world.runFor(1000)
  assert.equal(hasEnded, false)
  bench.disk.resume()
  await bench.until(() => hasEnded)
  bench.queue.arena.free(buffer as never)
})

test('a disk that keeps one request of the background work for ever fails, before the journal is full for good', async () => {
  const bench = new Bench(13)
  await bench.format()
  const { queue } = bench
  const bulk = bulkTag(queue)
  const store = await bench.mount()
  const { write: writeOne } = queue
  let kept = 0
  queue.write = (file, offsetBytes, page, deltaBytes, lengthBytes, tag, row) => {
    if ((tag as number) === bulk() && kept++ === 0) return
    writeOne.call(queue, file, offsetBytes, page, deltaBytes, lengthBytes, tag, row)
  }
  for (let id = 1; kept === 0; id++) await writeDurable(bench, store, { index: 0, firstPage: (id * 64) % 1024, pageCount: 64, id })
  const startMs = bench.world.nowMs
  await bench.until(() => store.failed, 60_000)
  assert.match(bench.events.failed!, /background work/)
  assert.ok(bench.world.nowMs - startMs > 19_000)
})

test('a disk that keeps the write of a superblock for ever fails, before the journal is full for good', async () => {
  const bench = new Bench(14)
  await bench.format()
  const store = await bench.mount()
  const { queue } = bench
  const { write: writeOne } = queue
  let kept = 0
  queue.write = (file, offsetBytes, page, deltaBytes, lengthBytes, tag, row) => {
    if ((offsetBytes === 0 || offsetBytes === DISK_BYTES - PAGE_BYTES) && kept++ === 0) return
    writeOne.call(queue, file, offsetBytes, page, deltaBytes, lengthBytes, tag, row)
  }
  for (let id = 1; kept === 0; id++) await writeDurable(bench, store, { index: 0, firstPage: (id * 64) % 1024, pageCount: 64, id })
  await bench.until(() => store.failed, 60_000)
  assert.match(bench.events.failed!, /background work/)
})

test('a process that was stopped for a while does not take its disk for hung', async () => {
  const bench = new Bench(11)
  await bench.format()
  const store = await bench.mount()
  for (let id = 1; id <= 5; id++) {
    const w = write(bench, store, { index: 0, firstPage: 0, pageCount: 1, id })
    bench.process.freeze()
    await bench.world.runFor(10_000)
    bench.process.thaw()
    await bench.until(() => bench.events.durable >= w.seq)
  }
  assert.equal(store.failed, false)
})

test('an EIO of a read fails that read and not the disk', async () => {
  const bench = new Bench(12)
  await bench.format()
  const store = await bench.mount()
  const w = write(bench, store, { index: 0, firstPage: 0, pageCount: 1, id: 1 })
  await bench.until(() => bench.events.durable >= w.seq)
  bench.disk.faults.readEio = 1
  const buffer = bench.alloc(1)
  assert.equal((await bench.read(store, store.findBlock(5, 0, 0), 0, 1, buffer)).status, Status.READ_FAILED)
  bench.disk.faults.readEio = 0
  await contentIs(bench, store, 0, 0, 1, w.page)
  assert.equal(store.failed, false)
})

/** Journal pages by the batch header they begin with. */
function batches(bench: Bench): Array<{ page: number; batch: number; pages: number }> {
  const found: Array<{ page: number; batch: number; pages: number }> = []
  for (const [page, content] of bench.file.pages) {
    const view = new DataView(content.buffer, content.byteOffset)
    if (BatchHeader.get.magic(view, 0) !== BATCH_MAGIC) continue
    const pages = BatchHeader.get.descriptorPages(view, 0) + BatchHeader.get.payloadPages(view, 0)
    found.push({ page, batch: BatchHeader.get.batch(view, 0), pages })
  }
  return found.sort((a, b) => a.batch - b.batch)
}

/** Five writes, each durable before the next; returns payloads copied out. */
async function fiveWrites(bench: Bench, store: DiskStore) {
  for (let id = 1; id <= 5; id++) {
    const w = write(bench, store, { index: 0, firstPage: 0, pageCount: 1, id, durable: false })
    await bench.until(() => bench.events.staged >= w.seq)
  }
}

test('a torn batch ends the journal, and a valid one behind it is not replayed, in later mounts neither', async () => {
  const bench = new Bench(13)
  await bench.format()
  await fiveWrites(bench, await bench.mount())
  bench.kill()
  const fourth = batches(bench)[4]!
  const saved = bench.file.pages.get(fourth.page)!.slice()
  bench.file.pages.delete(fourth.page)
  let store = await bench.mount()
  assert.equal(store.lastLow[1], 3)
  const outId = new Uint32Array(2)
  store.newestId(store.findBlock(5, 0, 0), 0, 1, outId)
  assert.deepEqual([...outId], [1, 3])
  // The torn batch turns up after all: the generation that went on without it has said where its predecessor ended
  bench.kill()
  bench.file.pages.set(fourth.page, saved)
  for (let i = 0; i < 3; i++) {
    store = await bench.mount()
    assert.equal(store.lastLow[1], 3)
    bench.kill()
  }
})

test('a batch whose payload is torn ends the journal', async () => {
  const bench = new Bench(14)
  await bench.format()
  await fiveWrites(bench, await bench.mount())
  bench.kill()
  bench.file.flipBit(batches(bench)[4]!.page + 1, 9)
  assert.equal((await bench.mount()).lastLow[1], 3)
})

test('damage within what was durable is said, not taken for a torn end', async () => {
  const bench = new Bench(15)
  await bench.format()
  const store = await bench.mount()
  for (let id = 1; id <= 5; id++) {
    const w = write(bench, store, { index: 0, firstPage: 0, pageCount: 1, id })
    await bench.until(() => bench.events.durable >= w.seq)
  }
  bench.kill()
  bench.file.flipBit(batches(bench)[3]!.page, 300)
  await refused(bench.mount(), 'DISK_CORRUPTED', /journal batch 4 in segment 1 is damaged/)
})

test('replay of the same journal gives the same, however often', async () => {
  const bench = new Bench(16)
  await bench.format()
  let store = await bench.mount()
  for (let id = 1; id <= 40; id++) {
    write(bench, store, { index: id % 5, firstPage: id % 7, pageCount: 1 + (id % 3), id, slot: 1 })
    if (id === 3) await bench.world.runFor(5)
  }
  await bench.settle(store.journal.settle())
  const digest = store.slotDigest(1)
  const rows = store.rows.pack()
  for (let i = 0; i < 30; i++) {
    if (i % 3 === 0) await bench.settle(store.close())
    if (i % 3 === 1) bench.powerLoss()
    else bench.kill()
    store = await bench.mount()
    assert.deepEqual(store.slotDigest(1), digest)
    assert.deepEqual(store.rows.pack(), rows)
    assert.equal(store.lastLow[1], 40)
  }
})

test('the journal never runs out under load: the background work makes room, and clients wait for it', async () => {
  const bench = new Bench(17)
  await bench.format()
  let store = await bench.mount()
  const { page, crcs } = bench.payload(256)
  let id = 0
  let busy = 0
  for (let n = 0; n < 400; n++) {
    Object.assign(record, {
      kind: RecordKind.WRITE,
      slot: 1,
      idHigh: 1,
      idLow: id + 1,
      volume: 5,
      layer: 0,
      index: n % 8,
      firstPage: (n * 64) % 768,
      pageCount: 256,
    })
    Object.assign(record, { payloadPage: page, crcs, crcFirst: 0, clientHigh: 0, durable: true })
    const status = store.admit(record, true)
    if (status === Status.BUSY) {
      busy++
      let room = false
      store.onRoom(() => {
        room = true
      })
      await bench.until(() => room, 60_000)
      n--
      continue
    }
    assert.equal(status, Status.SUCCESS)
    id++
    store.stage(record)
  }
  assert.ok(busy > 0)
  assert.ok(store.counters.destagedSegments > 50)
  await bench.settle(store.journal.settle())
  const digest = store.slotDigest(1)
  bench.powerLoss()
  store = await bench.mount()
  assert.deepEqual(store.slotDigest(1), digest)
  const buffer = bench.alloc(256)
  for (let index = 0; index < 8; index++) {
    for (let first = 0; first < 1024; first += 256) {
      assert.equal((await bench.read(store, store.findBlock(5, 0, index), first, 256, buffer)).status, Status.SUCCESS)
    }
  }
})

test('a burst that fits is not destaged while it lasts, what it overwrites never; the journal is emptied when it is calm, and before it is full', async () => {
  const bench = new Bench(21)
  await bench.format({ journalBytes: 64 * MiB })
  const store = await bench.mount()
  let id = 0
  const burst = async (segments: number) => {
    const until = store.journal.headSegment + segments
    while (store.journal.headSegment < until) {
      const w = write(bench, store, { index: 0, firstPage: (++id * 64) % 256, pageCount: 64, id })
      await bench.until(() => bench.events.staged >= w.seq)
      bench.free(w.page)
    }
  }
  await burst(7)
  assert.deepEqual([store.counters.destagedSegments, store.counters.destagedPages], [0, 0], 'half full')
  await bench.until(() => store.counters.destagedSegments > 0, 2000)
  await bench.until(() => store.journal.headSegment - store.journal.tailSegment + 1 <= 0.3 * 16, 2000)
  assert.ok(store.counters.destagedPages <= 256, `${store.counters.destagedPages} pages of 256 that were written over and over`)
  const before = store.counters.destagedSegments
  await burst(16)
  assert.ok(store.counters.destagedSegments > before, 'the journal had no room for all of it')
  await bench.settle(store.close())
  assert.equal(bench.queue.inFlight, 0)
})

test('a store that is closed while its journal waits for calm leaves nothing under way', async () => {
  const bench = new Bench(22)
  await bench.format({ journalBytes: 64 * MiB })
  const store = await bench.mount()
  for (let id = 1; store.journal.headSegment - store.journal.tailSegment < 6; id++) {
    const w = write(bench, store, { index: 0, firstPage: 0, pageCount: 64, id })
    await bench.until(() => bench.events.staged >= w.seq)
    bench.free(w.page)
  }
  await bench.settle(store.close(), 500)
  assert.equal(bench.queue.inFlight, 0)
})

test('a capture keeps its content while the block is overwritten, destaged and removed', async () => {
  const bench = new Bench(18)
  await bench.format()
  const store = await bench.mount()
  const first = write(bench, store, { index: 0, firstPage: 0, pageCount: 8, id: 1 })
  const capture = store.capture(store.findBlock(5, 0, 0))
  let id = 2
  const { page, crcs } = bench.payload(256)
  for (let n = 0; n < 30; n++) {
    Object.assign(record, { kind: RecordKind.WRITE, slot: 1, idHigh: 1, idLow: id, volume: 5, index: n % 3, firstPage: 0, pageCount: 256 })
    Object.assign(record, { payloadPage: page, crcs, crcFirst: 0, clientHigh: 0 })
    if (store.admit(record, false) !== Status.SUCCESS) break
    store.stage(record)
    id++
    await bench.world.runFor(2)
  }
  Object.assign(record, { kind: RecordKind.REMOVE, index: 0, idLow: id, pageCount: 0 })
  store.stage(record)
  await bench.world.runFor(100)
  const buffer = bench.alloc(8)
  assert.equal(await bench.settle(store.readCaptured(capture, 0, 8, buffer)), Status.SUCCESS)
  const { bytes } = bench.queue.arena
  const slice = (p: number) => bytes.subarray(p * PAGE_BYTES, (p + 8) * PAGE_BYTES)
  assert.equal(Buffer.compare(slice(buffer), slice(first.page)), 0)
  store.release(capture)
  await bench.settle(store.close())
})

test('who waits for an extent is told when the capture that held the last one is released, though nothing else goes on', async () => {
  const bench = new Bench(21)
  await bench.format()
  const store = await bench.mount()
  const extents = store.capacityBytes / BLOCK_BYTES
  let id = 1
  for (let index = 0; index < extents; index++) {
    Object.assign(record, { kind: RecordKind.WRITE, slot: 1, idHigh: 1, volume: 5, layer: 0, index, firstPage: 0, pageCount: 1, clientHigh: 0 })
    const { page, crcs } = bench.payload(1)
    Object.assign(record, { idLow: id++, payloadPage: page, crcs, crcFirst: 0 })
    await bench.until(() => store.admit(record, false) === Status.SUCCESS)
    store.stage(record)
  }
  const capture = store.capture(store.findBlock(5, 0, 0))
  Object.assign(record, { kind: RecordKind.REMOVE, index: 0, idLow: id++, pageCount: 0 })
  store.stage(record)
  await bench.world.runFor(100)
  Object.assign(record, { kind: RecordKind.WRITE, index: extents, idLow: id++, pageCount: 1 })
  assert.notEqual(store.admit(record, false), Status.SUCCESS)
  await isToldOfRoom(bench, store, () => store.release(capture))
  assert.equal(store.admit(record, false), Status.SUCCESS)
})

test('who waits for rows of client channels is told when those of fenced clients have gone, though nothing else goes on', async () => {
  const bench = new Bench(22)
  await bench.format()
  const store = await bench.mount()
  await bench.world.runFor(100)
  for (let client = 0; client < CLIENTS_MAX; client++) store.rows.set(256, client + 1, 0, 1, 1, 1, 1)
  Object.assign(record, { kind: RecordKind.EMPTY, slot: 1, idHigh: 1, idLow: 1, volume: 0, index: 0, firstPage: 0, pageCount: 0 })
  Object.assign(record, { clientHigh: 512, clientLow: 1, channel: 0, seq: 1 })
  assert.equal(store.admit(record, true), Status.BUSY)
  await isToldOfRoom(bench, store, () => store.rows.expire(256, CLIENTS_MAX))
  assert.equal(store.admit(record, true), Status.SUCCESS)
})

test('sweeping drops the blocks of volumes that are gone', async () => {
  const bench = new Bench(19)
  await bench.format()
  let store = await bench.mount()
  for (let id = 1; id <= 6; id++) {
    write(bench, store, { index: id, firstPage: 0, pageCount: 1, id })
    await bench.world.runFor(5)
  }
  assert.deepEqual(store.listBlocks(5, 2, 3), [2, 3, 4])
  assert.equal(await bench.settle(store.sweep((volume, slot) => volume !== 5 || slot !== 1)), 0)
  assert.equal(await bench.settle(store.sweep((volume, slot) => volume === 5 && slot === 1)), 6)
  await bench.settle(store.close())
  bench.kill()
  store = await bench.mount()
  assert.equal(store.usedBytes, 0)
  assert.equal(store.lastLow[1], 6)
})

test('a session takes ids as they come until it ends', async () => {
  const bench = new Bench(20)
  await bench.format()
  const store = await bench.mount()
  write(bench, store, { index: 0, firstPage: 0, pageCount: 1, id: 9 })
  assert.throws(() => write(bench, store, { index: 0, firstPage: 0, pageCount: 1, id: 9 }), /staged after 1:9/)
  store.startSession(1)
  assert.deepEqual([store.lastHigh[1], store.lastLow[1]], [0, 0])
  assert.equal(store.rows.held[store.rows.lookup(256, 1, 3)], 0)
  store.setLast(1, 1, 20)
  write(bench, store, { index: 0, firstPage: 0, pageCount: 1, id: 15 })
  assert.equal(store.lastLow[1], 20)
  store.endSession(1)
  assert.throws(() => write(bench, store, { index: 0, firstPage: 0, pageCount: 1, id: 16 }), /staged after 1:20/)
})

test('a slot whose resync began is incomplete until that has ended, whatever happens to the process, the power and the journal meanwhile', async () => {
  const bench = new Bench(31)
  await bench.format()
  let store = await bench.mount()
  const seen = () => Array.from({ length: SLOTS }, (_, slot) => (store.isIncomplete(slot) ? slot : -1)).filter((slot) => slot >= 0)
  const tells = { layer: 0, index: 0, pages: new Uint16Array(0), idHigh: new Uint32Array(0), idLow: new Uint32Array(0), crc: new Uint32Array(0) }
  const source = { ...tells, flags: new Uint8Array(0), payloadPage: 0, remove: false, rows: new Uint32Array(0), volume: 0, lastHigh: 9, lastLow: 77 }
  for (const slot of [0, 3, 15]) {
    store.startSession(slot)
    store.install({ ...source, slot })
  }
  store.completeSession(3)
  assert.deepEqual(seen(), [0, 15])
  await bench.settle(store.journal.durable())
  for (const how of ['kill', 'power', 'close'] as const) {
    if (how === 'close') await bench.settle(store.close())
    if (how === 'power') bench.powerLoss('lose')
    else bench.kill()
    store = await bench.mount()
    assert.deepEqual(seen(), [0, 15], how)
    // the number it would be chosen by
    assert.deepEqual([store.lastHigh[15], store.lastLow[15]], [9, 77])
  }
  // the segments with the sessions' records are long gone
  for (let i = 1; store.destage.segments < 6; i++) {
    await roomFor(bench, store)
    const w = write(bench, store, { index: 0, firstPage: 0, pageCount: 256, id: i })
    await bench.until(() => bench.events.staged >= w.seq)
    bench.free(w.page)
  }
  bench.kill()
  store = await bench.mount()
  assert.deepEqual(seen(), [0, 15], 'told by a checkpoint')
  store.startSession(0)
  store.setLast(0, 12, 5)
  store.completeSession(0)
  await bench.settle(store.journal.durable())
  bench.powerLoss('lose')
  store = await bench.mount()
  assert.deepEqual(seen(), [15])
  assert.deepEqual([store.lastHigh[0], store.lastLow[0]], [12, 5], 'the position in the stream is the last id')
})

test('the end of a resync that did not become durable did not happen', async () => {
  const bench = new Bench(32)
  await bench.format()
  let store = await bench.mount()
  store.startSession(2)
  await bench.settle(store.journal.durable())
  store.completeSession(2)
  assert.equal(store.isIncomplete(2), false)
  bench.powerLoss('lose')
  store = await bench.mount()
  assert.equal(store.isIncomplete(2), true)
})

test('an arena without any room: records wait until batches are written, and their memory goes back', async () => {
  const bench = new Bench(31)
  await bench.format()
  const store = await bench.mount()
  const { arena } = bench.queue
  const usedBytes = () => arena.stats().usedBytes.reduce((a, b) => a + b, 0)
  const idleBytes = usedBytes()
  bench.disk.hang()
  const others: number[] = []
  let staged = 0
  let status: number = Status.SUCCESS
  for (let id = 1; id <= 20_000 && status === Status.SUCCESS; id++) {
    Object.assign(record, { kind: RecordKind.EMPTY, slot: 1, idHigh: 1, idLow: id, volume: 0, layer: 0, index: 0, firstPage: 0, pageCount: 0 })
    Object.assign(record, { durable: true, clientHigh: 256, clientLow: 1, channel: 3, seq: id })
    status = store.admit(record, true)
    if (status === Status.SUCCESS) staged = store.stage(record)
    // eight batches wait; from here on there is no memory
    if (id === 2000)
      for (let bytes = 4 * MiB; bytes >= PAGE_BYTES; bytes /= 2) for (let at = arena.alloc(bytes); at !== -1; at = arena.alloc(bytes)) others.push(at)
  }
  assert.equal(status, Status.BUSY)
  assert.ok(staged > 2000 && others.length > 0)
  for (const at of others) arena.free(at as never)
  bench.disk.resume()
  await bench.until(() => bench.events.durable >= staged)
  await bench.world.runFor(100)
  assert.equal(usedBytes(), idleBytes)
})

test('an arena without any room: an install that takes two segments waits, too', async () => {
  const bench = new Bench(33)
  await bench.format()
  const store = await bench.mount()
  const { arena } = bench.queue
  const payloadPage = bench.alloc(1024)
  store.startSession(1)
  await bench.settle(store.journal.durable())
  await bench.world.runFor(10)
  bench.disk.hang()
  const others: number[] = []
  const install = (index: number, count: number) =>
    store.install({
      slot: 1,
      volume: 5,
      layer: 0,
      index,
      pages: Uint16Array.from({ length: count }, (_, page) => page),
      idHigh: new Uint32Array(count).fill(1),
      idLow: new Uint32Array(count).fill(index + 1),
      crc: new Uint32Array(count),
      flags: new Uint8Array(count).fill(PageFlag.DATA),
      payloadPage,
      remove: false,
      rows: new Uint32Array(0),
      lastHigh: 0,
      lastLow: 0,
    })
  // into the second segment, and nearly to its end
  install(0, 1024)
  for (let id = 1; id <= 3; id++) write(bench, store, { index: 9, firstPage: 0, pageCount: 200, id })
  assert.equal(store.journal.headSegment - store.journal.tailSegment, 1)
  for (let bytes = 4 * MiB; bytes >= PAGE_BYTES; bytes /= 2) for (let at = arena.alloc(bytes); at !== -1; at = arena.alloc(bytes)) others.push(at)
  assert.throws(() => install(2, 1024), { status: 'BUSY' })
  for (const at of others) arena.free(at as never)
  bench.disk.resume()
  await bench.settle(store.journal.durable())
  install(2, 1024)
  await bench.settle(store.journal.durable())
})

test('a mount of a disk that hangs, wherever it has come to, ends, so that the node goes on with its other disks; should the disk answer after all, it is let go', async () => {
  for (let nth = 0; ; nth++) {
    const bench = new Bench(15)
    await bench.format()
    const first = await bench.mount()
    const w = write(bench, first, { index: 0, firstPage: 0, pageCount: 1, id: 1 })
    await bench.until(() => bench.events.durable >= w.seq)
    const content = bench.queue.arena.bytes.slice(w.page * PAGE_BYTES, (w.page + 1) * PAGE_BYTES)
    bench.kill()
    const { queue } = bench
    const { read: readOne, write: writeOne, fdatasync: syncOne } = queue
    const kept: Array<() => void> = []
    let count = 0
    const orKeep = (go: () => void) => (count++ === nth ? void kept.push(go) : go())
    queue.read = (...args) => orKeep(() => readOne.apply(queue, args))
    queue.write = (...args) => orKeep(() => writeOne.apply(queue, args))
    queue.fdatasync = (...args) => orKeep(() => syncOne.apply(queue, args))
    const startMs = bench.world.nowMs
    let failure: unknown
    const mounted = await bench.mount().catch((error: unknown) => {
      failure = error
      return null
    })
    if (mounted !== null) {
      assert.ok(nth > 8, `${nth} requests`)
      return
    }
    assert.ok(failure instanceof XsanError && failure.status === 'READ_FAILED' && /not answered its mount/.test(failure.message), String(failure))
    assert.ok(bench.world.nowMs - startMs > 19_000)
    kept[0]!()
    await bench.until(() => queue.inFlight === 0, 10_000)
    const again = await bench.mount()
    const page = bench.alloc(1)
    queue.arena.bytes.set(content, page * PAGE_BYTES)
    await contentIs(bench, again, 0, 0, 1, page)
    await bench.settle(again.close())
  }
})

test('a disk that hangs while it is formatted, wherever that has come to, is given up, so that the node goes on with its other disks', async () => {
  for (let nth = 0; ; nth = nth < 8 ? nth + 1 : nth * 3) {
    const bench = new Bench(17)
    const { queue } = bench
    const { read: readOne, write: writeOne, fdatasync: syncOne, allocate: allocateOne } = queue
    const kept: Array<() => void> = []
    let count = 0
    const orKeep = (go: () => void) => (count++ === nth ? void kept.push(go) : go())
    queue.read = (...args) => orKeep(() => readOne.apply(queue, args))
    queue.write = (...args) => orKeep(() => writeOne.apply(queue, args))
    queue.fdatasync = (...args) => orKeep(() => syncOne.apply(queue, args))
    queue.allocate = (...args) => orKeep(() => allocateOne.apply(queue, args))
    const failure = await bench.format().catch((error: unknown) => error)
    if (failure === undefined) {
      assert.ok(nth > 60, `${nth} requests`)
      return
    }
    assert.ok(failure instanceof XsanError && failure.status === 'READ_FAILED' && /not answered being formatted/.test(failure.message), String(failure))
    kept[0]!()
    await bench.until(() => queue.inFlight === 0, 10_000)
    await bench.settle((await bench.mount()).close())
  }
})

test('a mount of a disk that hangs while the journal is emptied for it ends', async () => {
  const bench = new Bench(16)
  await bench.format()
  const first = await bench.mount()
  let id = 1
  write(bench, first, { index: 0, firstPage: 0, pageCount: 1, id: id++ })
  first.capture(first.findBlock(5, 0, 0))
  for (; first.journalUsedBytes < 9 * MiB; id++) await writeDurable(bench, first, { index: id % 3, firstPage: (id % 5) * 200, pageCount: 200, id })
  bench.kill()
  const { queue } = bench
  const bulk = bulkTag(queue)
  const { read: readOne } = queue
  const kept: Array<() => void> = []
  queue.read = (...args) => {
    const go = () => readOne.apply(queue, args)
    if ((args[6] as number) === bulk()) kept.push(go)
    else go()
  }
  await assert.rejects(bench.mount(), /not answered its mount/)
  queue.read = readOne
  for (const go of kept) go()
  await bench.until(() => queue.inFlight === 0, 10_000)
  await bench.settle((await bench.mount()).close())
})

test('a mount of a disk that fails while its page tables are read gives back its memory when the last read has ended', async () => {
  const bench = new Bench(14)
  await bench.format()
  const store = await bench.mount()
  for (let index = 0; index < 14; index++) {
    await roomFor(bench, store)
    await writeDurable(bench, store, { index, firstPage: 0, pageCount: 256, id: index + 1 })
  }
  for (let id = 15; store.destage.segments < 6; id++) {
    await roomFor(bench, store)
    await writeDurable(bench, store, { index: 0, firstPage: 0, pageCount: 256, id })
  }
  await bench.settle(store.close())
  bench.kill()
  const { pageTableOffset, extentsOffset } = planGeometry(DISK_BYTES, { journalBytes: 16 * MiB, segmentBytes: 4 * MiB })
  const blocks: number[] = []
  for (let failing = -1; failing < Math.max(1, blocks.length); failing++) {
    const { io, queue } = bench
    const before = queue.arena.stats()
    const read = io.read.bind(io)
    io.read = (file, offset, ...rest) => {
      if (offset < pageTableOffset || offset >= extentsOffset) return read(file, offset, ...rest)
      if (failing === -1) blocks.push(offset)
      return failing >= 0 && offset >= blocks[failing]! && offset < blocks[failing]! + LEAVES_PER_BLOCK * 2 * PAGE_BYTES
        ? Promise.resolve(-Errno.EIO)
        : read(file, offset, ...rest)
    }
    if (failing === -1) await bench.mount()
    else {
      await assert.rejects(bench.mount(), { status: 'READ_FAILED' })
      await bench.world.runFor(1000)
      assert.deepEqual(queue.arena.stats(), before)
    }
    bench.kill()
  }
  assert.ok(blocks.length > 8, `${blocks.length} are not read at one time`)
})
