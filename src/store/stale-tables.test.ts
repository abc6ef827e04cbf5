/** Parts of a disk that are whole, and older than they should be: writes that the disk lost, or put elsewhere, or that rotted afterwards. */
import assert from 'node:assert/strict'
import test from 'node:test'
import { Bench, DISK_BYTES, SLOTS } from '../../test/support/store-bench.ts'
import { XsanError } from '../base/errors.ts'
import { Status } from '../base/status.ts'
import { MiB, PAGE_BYTES } from '../base/units.ts'
import { Errno } from '../env/ioqueue.ts'
import type { DiskStore } from './disk-store.ts'
import { ExtentTableHeader, leafOffset, planGeometry, tablePageOffset } from './layout.ts'
import { RecordKind, StageRecord } from './store.ts'

const GEOMETRY = planGeometry(DISK_BYTES, { journalBytes: 16 * MiB, segmentBytes: 4 * MiB })
const SUPERBLOCKS = [0, DISK_BYTES - PAGE_BYTES] as const
const record = new StageRecord()
let nextId = 1

/** Returns when it is durable, or the disk has failed, or the process has ended. */
async function write(bench: Bench, store: DiskStore, index: number, firstPage: number, pageCount: number): Promise<Uint8Array> {
  const { page, crcs } = bench.payload(pageCount)
  Object.assign(record, { kind: RecordKind.WRITE, slot: 1, idHigh: 1, idLow: nextId++, volume: 5, layer: 0, index, firstPage, pageCount })
  Object.assign(record, { payloadPage: page, crcs, crcFirst: 0, durable: true, clientHigh: 0 })
  const { events, process } = bench
  const isOver = () => events.failed !== undefined || !process.alive
  await bench.until(() => isOver() || store.admit(record, false) === Status.SUCCESS)
  if (!isOver()) {
    const seq = store.stage(record)
    await bench.until(() => isOver() || events.durable >= seq)
  }
  const content = bench.queue.arena.bytes.slice(page * PAGE_BYTES, (page + pageCount) * PAGE_BYTES)
  // a disk that has failed may still read it
  if (!isOver()) bench.free(page)
  return content
}

/** Another block is written until everything before is in its extents and tables, and nothing of it in the journal. */
async function destaged(bench: Bench, store: DiskStore, index: number): Promise<void> {
  const until = store.journal.headSegment + 1
  while (store.journal.tailSegment < until) await write(bench, store, index, 0, 256)
}

async function read(bench: Bench, store: DiskStore, index: number, page: number): Promise<{ status: number; content: Uint8Array }> {
  const buffer = bench.alloc(1)
  const { status } = await bench.read(store, store.findBlock(5, 0, index), page, 1, buffer)
  const content = bench.queue.arena.bytes.slice(buffer * PAGE_BYTES, (buffer + 1) * PAGE_BYTES)
  bench.free(buffer)
  return { status, content }
}

function copyOf(bench: Bench, offset: number): Uint8Array {
  const bytes = new Uint8Array(PAGE_BYTES)
  bench.file.readInto(offset, bytes, 0, PAGE_BYTES)
  return bytes
}
const put = (bench: Bench, offset: number, bytes: Uint8Array) => bench.file.writeFrom(offset, bytes, 0, PAGE_BYTES)

const roundOf = (tablePage: Uint8Array) => ExtentTableHeader.get.generationRound(new DataView(tablePage.buffer), 0)

/** What a write to either copy of a page has changed since. */
function changedSince(bench: Bench, offsets: readonly [number, number], before: readonly [Uint8Array, Uint8Array]): number {
  const changed = offsets.filter((offset, i) => Buffer.compare(copyOf(bench, offset), before[i]!) !== 0)
  assert.equal(changed.length, 1, 'one copy of the two was written')
  return changed[0]!
}

async function corrupted(promise: Promise<unknown>, what: RegExp): Promise<void> {
  await assert.rejects(promise, (error: unknown) => {
    assert.ok(error instanceof XsanError && error.status === 'DISK_CORRUPTED', String(error))
    assert.match(error.message, what)
    return true
  })
}

for (const [how, spoil] of [
  ['has rotted', (_old: Uint8Array, now: Uint8Array) => now.map((byte, i) => (i === 100 ? byte ^ 1 : byte))],
  ['was overwritten by a write that went astray', (_old: Uint8Array, now: Uint8Array) => new Uint8Array(now.length).fill(0x5a)],
  ['never came to the disk', (old: Uint8Array) => old],
] as const) {
  test(`the newer copy of a leaf ${how}: its pages are lost as pages, the older copy is not taken for it`, async () => {
    const bench = new Bench(1)
    await bench.format()
    let store = await bench.mount()
    await write(bench, store, 0, 0, 8)
    const other = await write(bench, store, 0, 300, 1)
    await destaged(bench, store, 1)
    const { extent } = store.describe(store.findBlock(5, 0, 0))
    const offsets = [leafOffset(GEOMETRY, extent, 0, 0), leafOffset(GEOMETRY, extent, 0, 1)] as const
    const before = offsets.map((offset) => copyOf(bench, offset)) as [Uint8Array, Uint8Array]
    await write(bench, store, 0, 4, 1)
    await write(bench, store, 0, 20, 1)
    await destaged(bench, store, 1)
    await bench.settle(store.close())
    bench.kill()
    const at = changedSince(bench, offsets, before)
    put(bench, at, spoil(before[offsets.indexOf(at)]!, copyOf(bench, at)))
    store = await bench.mount()
    for (const page of [0, 4, 20]) assert.equal((await read(bench, store, 0, page)).status, Status.BLOCK_CORRUPTED, `page ${page}`)
    assert.deepEqual(await read(bench, store, 0, 300), { status: Status.SUCCESS, content: other }, 'of another leaf')
  })

  test(`the newer copy of a page of the extent table ${how}: the disk is refused, the older copy is not taken for it`, async () => {
    const bench = new Bench(2)
    await bench.format()
    const store = await bench.mount()
    await write(bench, store, 0, 0, 8)
    const offsets = [tablePageOffset(GEOMETRY, 0, 0), tablePageOffset(GEOMETRY, 0, 1)] as const
    const seen: [Uint8Array[], Uint8Array[]] = [[], []]
    for (let done = 0; done < 4 || store.journal.tailSegment < store.journal.headSegment - 1; done = store.destage.segments) {
      await write(bench, store, 1, 0, 256)
      offsets.forEach((offset, i) => {
        const now = copyOf(bench, offset)
        const last = seen[i]!.at(-1)
        if (last === undefined || Buffer.compare(last, now) !== 0) seen[i]!.push(now)
      })
    }
    await bench.settle(store.close())
    bench.kill()
    const newest = roundOf(copyOf(bench, offsets[0])) > roundOf(copyOf(bench, offsets[1])) ? 0 : 1
    put(bench, offsets[newest], spoil(seen[newest].at(-2)!, copyOf(bench, offsets[newest])))
    await corrupted(bench.mount(), /extent table/)
  })
}

test('superblocks that went back to an earlier mount do not give its generation again, nor its clean end, nor its power', async () => {
  const bench = new Bench(3)
  await bench.format()
  let store = await bench.mount()
  const first = await write(bench, store, 0, 0, 8)
  await bench.settle(store.close())
  const old = SUPERBLOCKS.map((offset) => copyOf(bench, offset))
  bench.kill()
  const rollBack = () =>
    SUPERBLOCKS.forEach((offset, i) => {
      put(bench, offset, old[i]!)
    })
  store = await bench.mount()
  const second = await write(bench, store, 0, 8, 8)
  bench.kill()
  rollBack()
  store = await bench.mount()
  assert.equal(store.lostPower, true, 'nobody knows')
  const third = await write(bench, store, 0, 16, 8)
  bench.kill()
  rollBack()
  store = await bench.mount()
  for (const [page, content] of [
    [0, first],
    [8, second],
    [16, third],
  ] as const)
    assert.deepEqual(await read(bench, store, 0, page), { status: Status.SUCCESS, content: content.slice(0, PAGE_BYTES) })
  assert.equal(store.generation, 4, 'the fourth mount')
  // where the journal has gone on too far the disk is refused
  await destaged(bench, store, 1)
  await destaged(bench, store, 1)
  bench.kill()
  rollBack()
  await corrupted(bench.mount(), /oldest segment|extent table/)
})

for (const nth of [1, 2, 3, 4, 5]) {
  test(`a disk that fails while flush ${nth} of its background work is under way, and drops what it had not flushed, is mounted again with all it had promised`, async () => {
    const bench = new Bench(6)
    await bench.format()
    let store = await bench.mount()
    const first = await write(bench, store, 0, 0, 8)
    await destaged(bench, store, 1)
    const { io } = bench
    const sync = io.fdatasync.bind(io)
    let syncs = 0
    io.fdatasync = (file) => {
      if (++syncs === nth) {
        // one request fails, and the flush that had begun when that was told succeeds
        bench.file.powerLoss('lose')
        store.fail('a write has failed')
      }
      return sync(file)
    }
    while (bench.events.failed === undefined) await write(bench, store, 1, 0, 256)
    await bench.until(() => bench.disk.underWay === 0)
    bench.kill()
    store = await bench.mount()
    assert.equal(store.lostPower, true)
    assert.deepEqual(await read(bench, store, 0, 0), { status: Status.SUCCESS, content: first.slice(0, PAGE_BYTES) })
  })
}

/** What happens to each superblock that is written: it is given what writes it, and what fails so that its place cannot be read any more. */
function onSuperblock({ file }: Bench, happens: (write: () => number, fail: () => number, offset: number) => number): void {
  const writeFrom = file.writeFrom.bind(file)
  file.writeFrom = (offset, ...rest) => {
    const write = () => writeFrom(offset, ...rest)
    const fail = () => {
      file.badPages.add(offset / PAGE_BYTES)
      return -Errno.EIO
    }
    return SUPERBLOCKS.includes(offset as 0) ? happens(write, fail, offset) : write()
  }
}

test('a superblock that was being flushed when the disk failed is not taken for durable: the next one, which fails, does not cost the other copy', async () => {
  const bench = new Bench(7)
  await bench.format()
  let store = await bench.mount()
  const first = await write(bench, store, 0, 0, 8)
  await destaged(bench, store, 1)
  let superblocks = 0
  onSuperblock(bench, (write, fail) => (++superblocks === 2 ? fail() : write()))
  const { io } = bench
  const sync = io.fdatasync.bind(io)
  io.fdatasync = (file) => {
    if (superblocks === 1 && !store.failed) {
      // one request fails, and the flush that had begun when that was told succeeds
      bench.file.powerLoss('lose')
      store.fail('a write has failed')
    }
    return sync(file)
  }
  while (!store.failed) await write(bench, store, 1, 0, 256)
  await bench.until(() => superblocks === 2 && bench.disk.underWay === 0)
  bench.kill()
  store = await bench.mount({ wasAway: true })
  assert.deepEqual(await read(bench, store, 0, 0), { status: Status.SUCCESS, content: first.slice(0, PAGE_BYTES) })
})

test('a superblock of a process that was killed before it was flushed is durable before the other copy is written over', async () => {
  const bench = new Bench(8)
  await bench.format()
  let store = await bench.mount()
  const first = await write(bench, store, 0, 0, 8)
  await destaged(bench, store, 1)
  let superblocks = 0
  onSuperblock(bench, (write, fail) => {
    if (++superblocks === 1) bench.process.kill()
    // that of the mount, and what it would note when it fails
    if (superblocks !== 2 && superblocks !== 3) return write()
    bench.file.powerLoss('lose')
    return fail()
  })
  while (superblocks === 0) await write(bench, store, 1, 0, 256)
  bench.start()
  await assert.rejects(bench.mount(), { status: 'WRITE_FAILED' })
  bench.kill()
  store = await bench.mount()
  assert.deepEqual(await read(bench, store, 0, 0), { status: Status.SUCCESS, content: first.slice(0, PAGE_BYTES) })
})

/** A disk of which the older superblock is of no use: what it names as the oldest part of the journal has been written over. */
async function withNewest(bench: Bench, mounts: number): Promise<{ first: Uint8Array; newest: number }> {
  await bench.format()
  let store = await bench.mount()
  for (let i = 1; i < mounts; i++) {
    bench.kill()
    store = await bench.mount()
  }
  const first = await write(bench, store, 0, 0, 8)
  let newest = -1
  onSuperblock(bench, (write, _fail, offset) => {
    newest = offset
    return write()
  })
  await destaged(bench, store, 1)
  await bench.settle(store.destage.stop())
  while (store.journal.headSegment - store.journal.tailSegment < GEOMETRY.segmentCount - 1) await write(bench, store, 1, 0, 256)
  bench.kill()
  return { first, newest }
}

for (const mounts of [1, 2]) {
  for (const times of [1, Number.POSITIVE_INFINITY]) {
    test(`the newer superblock cannot be read ${times === 1 ? 'once: it is read again' : 'any more: the disk has failed, it is not damaged'} (mount ${mounts})`, async () => {
      const bench = new Bench(9)
      const { first, newest } = await withNewest(bench, mounts)
      const { file } = bench
      const readInto = file.readInto.bind(file)
      let failures = 0
      file.readInto = (offset, ...rest) => (offset === newest && failures++ < times ? -Errno.EIO : readInto(offset, ...rest))
      if (times > 1) {
        await assert.rejects(bench.mount(), { status: 'READ_FAILED' })
        file.readInto = readInto
      }
      const store = await bench.mount()
      assert.deepEqual(await read(bench, store, 0, 0), { status: Status.SUCCESS, content: first.slice(0, PAGE_BYTES) })
    })
  }

  test(`a disk that has grown since it was formatted has its second superblock where its end was (mount ${mounts})`, async () => {
    const bench = new Bench(10)
    const { first } = await withNewest(bench, mounts)
    bench.file.sizeBytes += 32 * MiB
    const store = await bench.mount()
    assert.deepEqual(await read(bench, store, 0, 0), { status: Status.SUCCESS, content: first.slice(0, PAGE_BYTES) })
  })
}

test('a loss of power is known until it is said to be of no matter any more, whatever ends the processes meanwhile', async () => {
  const bench = new Bench(4)
  await bench.format()
  let store = await bench.mount()
  await write(bench, store, 0, 0, 8)
  bench.powerLoss('keep')
  // a process that ends in the middle of its mount, when the superblock tells of this boot
  const { io } = bench
  const sync = io.fdatasync.bind(io)
  let syncs = 0
  io.fdatasync = (file) => (++syncs === 2 ? Promise.resolve(-5) : sync(file))
  await assert.rejects(bench.mount(), /fdatasync/)
  bench.kill()
  for (const how of ['kill', 'close'] as const) {
    store = await bench.mount()
    assert.equal(store.lostPower, true, how)
    if (how === 'close') await bench.settle(store.close())
    bench.kill()
  }
  store = await bench.mount()
  assert.equal(store.lostPower, true)
  await bench.settle(store.forgetPowerLoss())
  assert.equal(store.lostPower, false)
  bench.kill()
  store = await bench.mount()
  assert.equal(store.lostPower, false)
  assert.equal(store.slotCount, SLOTS)
})

test('the end of the journal is gone from a disk that was closed: it is refused, as what it had promised is missing', async () => {
  const bench = new Bench(5)
  await bench.format()
  const store = await bench.mount()
  await write(bench, store, 0, 0, 8)
  const before = new Map([...bench.file.pages].map(([page, content]) => [page, content.slice()]))
  await write(bench, store, 0, 0, 1)
  const [journal, end] = [GEOMETRY.journalOffset / PAGE_BYTES, GEOMETRY.extentTableOffset / PAGE_BYTES]
  const changed = [...bench.file.pages].filter(
    ([page, content]) => page >= journal && page < end && Buffer.compare(content, before.get(page) ?? new Uint8Array(PAGE_BYTES)) !== 0,
  )
  assert.equal(changed.length, 2)
  await bench.settle(store.close())
  bench.kill()
  for (const [page] of changed) put(bench, page * PAGE_BYTES, new Uint8Array(PAGE_BYTES))
  await corrupted(bench.mount(), /journal/)
})
