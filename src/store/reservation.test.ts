/** A disk that is a file, on a file system that fills up: new blocks are refused, nothing else happens. */
import assert from 'node:assert/strict'
import test from 'node:test'
import { Bench, DISK_BYTES } from '../../test/support/store-bench.ts'
import { XsanError } from '../base/errors.ts'
import { Status } from '../base/status.ts'
import { BLOCK_BYTES, MiB, PAGE_BYTES } from '../base/units.ts'
import type { DiskStore } from './disk-store.ts'
import { planGeometry } from './layout.ts'
import { RecordKind, StageRecord } from './store.ts'

const VOLUME = 5
const SLOT = 1
const EXTENT_BYTES = BLOCK_BYTES + 8 * PAGE_BYTES
/** Journal and what lies before it. */
const FIXED_BYTES = 18 * MiB

/** A client with one write at a time, and what it knows to be written. */
class Writer {
  readonly bench: Bench
  store: DiskStore
  readonly written = new Map<number, number>()
  #id = 1

  constructor(bench: Bench, store: DiskStore) {
    this.bench = bench
    this.store = store
  }

  /** A page of each of the 16 that a batch of this test takes; SUCCESS when durable. */
  async write(index: number, fromHead = true): Promise<number> {
    const { bench, store } = this
    const { page, crcs } = bench.payload(16)
    const record = new StageRecord()
    Object.assign(record, { kind: RecordKind.WRITE, slot: SLOT, idHigh: 1, idLow: this.#id, volume: VOLUME, layer: 0, index })
    Object.assign(record, { firstPage: (this.#id * 16) % 1024, pageCount: 16, payloadPage: page, crcs, crcFirst: 0, durable: true })
    for (;;) {
      const status = store.admit(record, fromHead)
      if (status === Status.SUCCESS) break
      if (status !== Status.BUSY) {
        bench.free(page)
        return status
      }
      let hasRoom = false
      store.onRoom(() => {
        hasRoom = true
      })
      await bench.until(() => hasRoom || store.failed)
    }
    this.written.set(index * 1024 + record.firstPage, crcs[0]!)
    this.#id++
    const seq = store.stage(record)
    await bench.until(() => bench.events.durable >= seq || store.failed)
    if (store.failed) return Status.WRITE_FAILED
    bench.free(page)
    return Status.SUCCESS
  }

  /** New blocks until one is refused; returns how many there are, and with what the next was refused. */
  async fill(limit = 1000): Promise<{ blocks: number; status: number }> {
    for (let index = this.store.listBlocks(VOLUME, 0, limit).length; index < limit; index++) {
      const status = await this.write(index)
      if (status !== Status.SUCCESS) return { blocks: index, status }
    }
    return { blocks: limit, status: Status.SUCCESS }
  }

  async verify(): Promise<void> {
    const { bench, store } = this
    const buffer = bench.alloc(1)
    for (const [key, crc] of this.written) {
      const block = store.findBlock(VOLUME, 0, Math.floor(key / 1024))
      const { status } = await bench.read(store, block, key % 1024, 1, buffer)
      assert.equal(status, Status.SUCCESS)
      assert.equal(bench.queue.arena.crc32c(buffer, 0, PAGE_BYTES), crc, `block ${Math.floor(key / 1024)}, page ${key % 1024}`)
    }
    bench.free(buffer)
  }
}

test('on a full file system new blocks are refused, overwrites and reads go on for as long as they like, and so after every restart', async () => {
  const extents = 12
  const bench = new Bench(101, { capacityBytes: FIXED_BYTES + extents * EXTENT_BYTES })
  await bench.format()
  let store = await bench.mount()
  const writer = new Writer(bench, store)
  const { blocks, status } = await writer.fill()
  assert.equal(status, Status.INSUFFICIENT_SPACE)
  assert.ok(blocks > extents / 2 && blocks < extents, `${blocks} blocks`)
  assert.equal(store.rejectCreate, true)
  assert.match(store.rejectReason, /the file system of \/disk\/.* is full/)
  assert.ok(
    bench.notes.some((note) => note.startsWith('the file system under a disk is full')),
    bench.notes.join('\n'),
  )
  for (const how of ['kill', 'power', 'close', 'power'] as const) {
    // several times round the journal, so that everything goes to its extent
    for (let n = 0; n < 800; n++) assert.equal(await writer.write(n % blocks), Status.SUCCESS)
    assert.equal(store.failed, false)
    assert.ok(store.counters.destagedSegments > 4)
    assert.equal(await writer.write(blocks), Status.INSUFFICIENT_SPACE)
    if (how === 'close') await bench.settle(store.close())
    if (how === 'power') bench.powerLoss('lose')
    else bench.kill()
    store = writer.store = await bench.mount()
    await writer.verify()
    assert.equal(await writer.write(blocks), Status.INSUFFICIENT_SPACE, how)
  }
})

test('what other nodes send finds space when clients no longer do; then it is refused too', async () => {
  const bench = new Bench(102, { capacityBytes: FIXED_BYTES + 12 * EXTENT_BYTES })
  await bench.format()
  const store = await bench.mount()
  const writer = new Writer(bench, store)
  const { blocks } = await writer.fill()
  const none = new Uint8Array(1)
  const install = { slot: SLOT, volume: VOLUME, layer: 0, remove: false, rows: new Uint32Array(0), lastHigh: 0, lastLow: 0, payloadPage: 0 }
  const page = { pages: Uint16Array.of(1), idHigh: Uint32Array.of(1), idLow: Uint32Array.of(1), crc: Uint32Array.of(0), flags: none.fill(2) }
  // a resync takes its share, and leaves the rest to what heads have ordered
  let installed = 0
  const more = () => store.install({ ...install, ...page, index: 900 + installed })
  assert.throws(
    () => {
      for (;;) installed += more() > 0 ? 1 : 0
    },
    (error: unknown) => error instanceof XsanError && error.status === 'INSUFFICIENT_SPACE',
  )
  assert.ok(installed >= 1, `${installed} installed`)
  let forwarded = 0
  while ((await writer.write(blocks + forwarded, false)) === Status.SUCCESS) forwarded++
  assert.ok(forwarded >= 2, `${forwarded} forwards`)
  assert.equal(await writer.write(blocks + forwarded, false), Status.INSUFFICIENT_SPACE)
  assert.throws(more)
  assert.equal(store.failed, false)
})

test('a removed block gives its extent to a new one; space that others give back is noticed by itself', async () => {
  const bench = new Bench(103)
  await bench.format()
  const store = await bench.mount()
  const writer = new Writer(bench, store)
  assert.equal((await writer.fill(3)).status, Status.SUCCESS)
  bench.disk.full = true
  const { blocks, status } = await writer.fill()
  assert.equal(status, Status.INSUFFICIENT_SPACE)
  await bench.settle(store.sweep(() => true))
  writer.written.clear()
  assert.equal((await writer.fill(blocks)).status, Status.SUCCESS)
  assert.equal(await writer.write(blocks), Status.INSUFFICIENT_SPACE)
  bench.disk.full = false
  await bench.until(() => !store.rejectCreate, 10_000)
  assert.equal(store.rejectReason, '')
  assert.equal((await writer.fill(blocks + 5)).status, Status.SUCCESS)
  await writer.verify()
  await bench.settle(store.close())
  assert.equal(bench.queue.inFlight, 0)
})

test('what the owner keeps for others is left', async () => {
  const bench = new Bench(104)
  await bench.format()
  let limitBytes = FIXED_BYTES + 12 * EXTENT_BYTES
  const usedBytes = () => bench.disk.usedPages * PAGE_BYTES
  const store = await bench.mount({ space: () => ({ spareBytes: limitBytes - usedBytes(), allocatedBytes: 0 }) })
  const writer = new Writer(bench, store)
  const { blocks, status } = await writer.fill()
  assert.equal(status, Status.INSUFFICIENT_SPACE)
  assert.ok(blocks < 12 && usedBytes() <= limitBytes)
  limitBytes = DISK_BYTES
  await bench.until(() => !store.rejectCreate, 10_000)
  assert.equal((await writer.fill(blocks + 2)).status, Status.SUCCESS)
  bench.kill()
  // nothing to spare, but what the file has already it may use
  const allocatedBytes = usedBytes()
  writer.store = await bench.mount({ space: () => ({ spareBytes: 0, allocatedBytes }) })
  assert.equal((await writer.fill(blocks + 3)).status, Status.SUCCESS)
  assert.equal(usedBytes(), allocatedBytes)
  await writer.verify()
})

test('a file system that cannot allocate ahead is said to be one: there the disk fails when it is full', async () => {
  const bench = new Bench(105, { reserves: false })
  await bench.format()
  const store = await bench.mount()
  assert.ok(bench.notes.some((note) => note.startsWith('this file system cannot allocate space ahead')))
  const writer = new Writer(bench, store)
  assert.equal((await writer.fill(3)).status, Status.SUCCESS)
  bench.disk.full = true
  let status: number = Status.SUCCESS
  for (let n = 0; n < 2000 && status === Status.SUCCESS; n++) status = await writer.write(n % 10)
  assert.equal(status, Status.WRITE_FAILED)
  assert.match(bench.events.failed ?? '', /ENOSPC/)
})

test('a block device is taken as it is', async () => {
  const bench = new Bench(106, { isBlockDevice: true })
  bench.queue.openFile({ path: '/disk/disk', createBytes: DISK_BYTES, lock: false })
  await bench.format()
  const store = await bench.mount()
  assert.equal(bench.notes.length, 1, bench.notes.join('\n'))
  assert.equal((await new Writer(bench, store).fill(10)).status, Status.SUCCESS)
})

test('a disk whose path leads nowhere any more takes new blocks as long as its file system has space', async () => {
  const bench = new Bench(108)
  await bench.format()
  const store = await bench.mount({
    space: (path) => {
      throw new Error(`ENOENT: no such file or directory, statfs '${path}'`)
    },
  })
  const { extentCount } = planGeometry(DISK_BYTES, { journalBytes: 16 * MiB, segmentBytes: 4 * MiB })
  const { blocks, status } = await new Writer(bench, store).fill()
  assert.equal(status, Status.INSUFFICIENT_SPACE)
  assert.ok(blocks >= extentCount - 3, `${blocks} of ${extentCount}`)
  assert.equal(bench.notes.filter((note) => note.includes('does not tell its space')).length, 1)
})

test('no space for the journal: the disk is not formatted, and the reason given', async () => {
  const bench = new Bench(107, { capacityBytes: 10 * MiB })
  await assert.rejects(bench.format(), (error: unknown) => {
    assert.ok(error instanceof XsanError)
    assert.equal(error.status, 'INSUFFICIENT_SPACE')
    assert.match(error.message, /the file system of \/disk\/.* has no space for a disk with a journal of 16MiB/)
    return true
  })
})

test('whatever the space, whoever takes it, and whenever the power goes: nothing acknowledged is lost and no disk fails', async () => {
  for (let seed = 200; seed < 212; seed++) {
    const bench = new Bench(seed)
    const random = bench.random
    await bench.format()
    let store = await bench.mount()
    const writer = new Writer(bench, store)
    for (let n = 0; n < 150; n++) {
      if (random.chance(0.05)) bench.disk.full = !bench.disk.full
      if (random.chance(0.02)) {
        if (random.chance(0.5)) bench.powerLoss()
        else bench.kill()
        store = writer.store = await bench.mount()
        await writer.verify()
      }
      const status = await writer.write(random.below(30), random.chance(0.7))
      assert.ok(status === Status.SUCCESS || status === Status.INSUFFICIENT_SPACE, `seed ${seed}: ${status}`)
      assert.equal(store.failed, false)
    }
    await writer.verify()
  }
})
