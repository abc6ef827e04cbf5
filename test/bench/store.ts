/**
 * How fast the store stages pages, on the native queue: `npm run bench -- store [DIR]` (default /dev/shm). Prints one line per case:
 * random 4 KiB writes at several depths (each waits until it is durable), 1 MiB sequential writes, 4 KiB random reads.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { DiskNumber } from '../../src/base/ids.ts'
import { Prng } from '../../src/base/prng.ts'
import { Status } from '../../src/base/status.ts'
import { GiB, MiB, PAGE_BYTES, PAGES_PER_BLOCK } from '../../src/base/units.ts'
import { AsyncIo } from '../../src/env/async-io.ts'
import { NativeIoQueue } from '../../src/env/node/ioqueue.ts'
import { runReactor } from '../../src/env/node/reactor-loop.ts'
import type { DiskStore } from '../../src/store/disk-store.ts'
import { formatStore, mountStore } from '../../src/store/mount.ts'
import { NO_BLOCK, RecordKind, StageRecord } from '../../src/store/store.ts'

const IDENTITY = { clusterId: 'bench', nodeId: 'bench' }
const BLOCKS = 128
const SECONDS = 2

export async function main(args: readonly string[]): Promise<void> {
  const dir = mkdtempSync(join(args[0] ?? '/dev/shm', 'xsan-bench-store-'))
  const path = join(dir, 'disk')
  const queue = new NativeIoQueue({ arenaBytes: 256 * MiB })
  const io = new AsyncIo(queue)
  const loop = runReactor(queue)
  const prng = new Prng(1)

  /** Records in flight, oldest first: those staged up to `durable` are done. */
  const state = { durable: 0, onDurable: () => {} }
  await formatStore(io, {
    path,
    createBytes: 1 * GiB,
    identity: IDENTITY,
    diskUuid: '00112233445566778899aabbccddeeff',
    journalUuid: '10112233445566778899aabbccddeeff',
    disk: 1 as DiskNumber,
    slotCount: 4096,
  })
  const store = await mountStore({
    io,
    path,
    identity: IDENTITY,
    slotCount: 4096,
    bootId: 'bench',
    wallMs: () => Date.now(),
    events: {
      onStaged() {},
      onDurable(upTo) {
        state.durable = upTo
        state.onDurable()
      },
      onFailed(reason) {
        throw new Error(reason)
      },
    },
  })

  const record = new StageRecord()
  let id = 1
  const payload = queue.arena.alloc(256 * PAGE_BYTES)
  const crcs = Uint32Array.from({ length: 256 }, (_, i) => queue.arena.crc32c(payload + i, 0, PAGE_BYTES))

  /** Keeps `depth` writes under way for a while; resolves to how many were done. */
  function writes(depth: number, pages: number, place: (n: number) => number): Promise<{ done: number; seconds: number }> {
    return new Promise((resolve) => {
      const from = store.durableSeq
      let staged = from
      const startMs = queue.sampleClockMs()
      let waiting = false
      const go = (): void => {
        waiting = false
        while (staged - store.durableSeq < depth && queue.nowMs - startMs < SECONDS * 1000) {
          const at = place(staged)
          record.kind = RecordKind.WRITE
          record.volume = 1
          record.index = Math.floor(at / PAGES_PER_BLOCK)
          record.slot = record.index
          record.idHigh = 1
          record.idLow = id++
          record.firstPage = at % PAGES_PER_BLOCK
          record.pageCount = pages
          record.payloadPage = payload
          record.crcs = crcs
          record.clientHigh = 256
          record.clientLow = 1
          record.channel = staged % depth
          record.seq = id
          const status = store.admit(record, true)
          if (status === Status.BUSY) {
            if (!waiting) store.onRoom(go)
            waiting = true
            return
          }
          if (status !== Status.SUCCESS) throw new Error(`admit: ${status}`)
          staged = store.stage(record)
        }
        if (staged === store.durableSeq && queue.nowMs - startMs >= SECONDS * 1000) {
          state.onDurable = () => {}
          queue.asyncPending = true
          resolve({ done: staged - from, seconds: (queue.nowMs - startMs) / 1000 })
        }
      }
      state.onDurable = go
      go()
    })
  }

  function reads(depth: number): Promise<{ done: number; seconds: number }> {
    return new Promise((resolve) => {
      const buffers = queue.arena.alloc(depth * PAGE_BYTES)
      const startMs = queue.sampleClockMs()
      let done = 0
      let under = 0
      const one = (row: number): void => {
        const at = prng.below(BLOCKS * PAGES_PER_BLOCK)
        under++
        store.read(store.findBlock(1, 0, Math.floor(at / PAGES_PER_BLOCK)), at % PAGES_PER_BLOCK, 1, buffers + row, finished, row)
      }
      const finished = (row: number, status: number): void => {
        if (status !== Status.SUCCESS) throw new Error(`read: ${status}`)
        done++
        under--
        if (queue.nowMs - startMs < SECONDS * 1000) one(row)
        else if (under === 0) {
          queue.asyncPending = true
          resolve({ done, seconds: (queue.nowMs - startMs) / 1000 })
        }
      }
      for (let row = 0; row < depth; row++) one(row)
    })
  }

  function show(name: string, result: { done: number; seconds: number }, pages: number, cpu: NodeJS.CpuUsage): void {
    const { user, system } = process.cpuUsage(cpu)
    const perSecond = result.done / result.seconds
    const mib = (perSecond * pages * PAGE_BYTES) / MiB
    console.log(
      `${name.padEnd(34)} ${perSecond.toFixed(0).padStart(8)}/s ${mib.toFixed(0).padStart(6)} MiB/s ${((user + system) / result.done).toFixed(1).padStart(7)} us CPU each`,
    )
  }

  console.log(`store on ${dir} (${tmpdir() === dir ? '' : 'direct or buffered as the file system allows'})`)
  const random = () => prng.below(BLOCKS * PAGES_PER_BLOCK)
  for (let n = 0; n < BLOCKS * 4; n++) {
    // Every block exists before anything is measured
    if (store.findBlock(1, 0, n >> 2) === NO_BLOCK || n % 4 > 0) await fill(store, n)
  }
  for (const depth of [1, 32, 128]) {
    const cpu = process.cpuUsage()
    show(`4 KiB random write, depth ${depth}`, await writes(depth, 1, random), 1, cpu)
  }
  {
    const cpu = process.cpuUsage()
    show('1 MiB sequential write, depth 8', await writes(8, 256, (n) => (n * 256) % (BLOCKS * PAGES_PER_BLOCK)), 256, cpu)
  }
  for (const depth of [1, 32]) {
    const cpu = process.cpuUsage()
    show(`4 KiB random read, depth ${depth}`, await reads(depth), 1, cpu)
  }
  console.log(JSON.stringify({ ...store.counters, journalUsedBytes: store.journalUsedBytes }))
  await store.close()
  await loop.stop()
  queue.destroy()
  rmSync(dir, { recursive: true, force: true })

  async function fill(to: DiskStore, n: number): Promise<void> {
    record.kind = RecordKind.WRITE
    record.volume = 1
    record.index = n >> 2
    record.slot = record.index
    record.idHigh = 1
    record.idLow = id++
    record.firstPage = (n % 4) * 256
    record.pageCount = 256
    record.payloadPage = payload
    record.crcs = crcs
    while (to.admit(record, true) === Status.BUSY) await io.sleep(1)
    to.stage(record)
  }
}
