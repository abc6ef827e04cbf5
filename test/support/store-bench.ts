/** A simulated host with one disk for the tests of the store: crash it, take its power, mount it again. */

import type { DiskNumber } from '../../src/base/ids.ts'
import type { Prng } from '../../src/base/prng.ts'
import { MiB, PAGE_BYTES } from '../../src/base/units.ts'
import { AsyncIo } from '../../src/env/async-io.ts'
import type { SimDisk, SimDiskOptions, SimFile } from '../../src/env/sim/disk.ts'
import { SimHost, type SimProcess } from '../../src/env/sim/host.ts'
import { SimIoQueue, type SimIoQueueOptions } from '../../src/env/sim/ioqueue.ts'
import type { PageMemory } from '../../src/env/sim/memory.ts'
import { SimNetwork } from '../../src/env/sim/network.ts'
import { World } from '../../src/env/sim/world.ts'
import type { DiskStore } from '../../src/store/disk-store.ts'
import { formatStore, mountStore } from '../../src/store/mount.ts'
import type { FormatOptions, MountOptions } from '../../src/store/mount-options.ts'
import type { StoreEvents } from '../../src/store/store.ts'

export const PATH = '/disk/one'
export const IDENTITY = { clusterId: 'cluster-a', nodeId: 'node-1' }
export const SLOTS = 16
export const DISK_BYTES = 100 * MiB

export class Recorder implements StoreEvents {
  staged = 0
  durable = 0
  failed: string | undefined
  onStaged(upTo: number): void {
    this.staged = upTo
  }
  onDurable(upTo: number): void {
    this.durable = upTo
  }
  onFailed(reason: string): void {
    this.failed = reason
  }
}

/** Without it fresh memory, and enough of it. */
export interface BenchMemory extends Pick<SimIoQueueOptions, 'arenaBytes' | 'arenaMemory'> {
  readonly pages?: PageMemory
}

export class Bench {
  readonly world: World
  readonly host: SimHost
  readonly disk: SimDisk
  process!: SimProcess
  queue!: SimIoQueue
  io!: AsyncIo
  events = new Recorder()
  readonly notes: string[] = []
  readonly #memory: BenchMemory
  #boots = 1

  constructor(seed: number, disk: Partial<SimDiskOptions> = {}, memory: BenchMemory = {}) {
    this.#memory = memory
    this.world = new World({ seed, memory: memory.pages })
    this.host = new SimHost(new SimNetwork(this.world), { name: 'h1', address: '10.0.0.1' })
    this.disk = this.host.addDisk({ name: 'd1', mount: '/disk', direct: true, alignmentBytes: 512, ...disk })
    this.start()
  }

  get random(): Prng {
    return this.world.random('store test')
  }

  get file(): SimFile {
    return this.host.files.get(PATH)!
  }

  start(): void {
    this.process = this.host.start('xsand')
    const { arenaBytes = 48 * MiB, arenaMemory } = this.#memory
    const options = { process: this.process, name: 'q', arenaBytes }
    this.queue = new SimIoQueue(arenaMemory === undefined ? options : { ...options, arenaMemory })
    this.queue.runReactor(() => this.queue.turn(0))
    this.io = new AsyncIo(this.queue)
  }

  format(options: Partial<FormatOptions> = {}): Promise<void> {
    return this.settle(
      formatStore(this.io, {
        path: PATH,
        createBytes: DISK_BYTES,
        identity: IDENTITY,
        diskUuid: '00112233-4455-6677-8899-aabbccddeeff',
        journalUuid: 'ffeeddcc-bbaa-9988-7766-554433221100',
        disk: 7 as DiskNumber,
        slotCount: SLOTS,
        journalBytes: 16 * MiB,
        segmentBytes: 4 * MiB,
        ...options,
      }),
    )
  }

  mount(options: Partial<MountOptions> = {}): Promise<DiskStore> {
    this.events = new Recorder()
    return this.settle(
      mountStore({
        io: this.io,
        path: PATH,
        identity: IDENTITY,
        slotCount: SLOTS,
        events: this.events,
        bootId: `boot-${this.#boots}`,
        wallMs: () => 1_700_000_000_000,
        onNote: (message, fields) => this.notes.push(`${message} ${JSON.stringify(fields ?? {})}`),
        ...options,
      }),
    )
  }

  /** SIGKILL, and a new process on the same host. */
  kill(): void {
    this.process.kill()
    this.start()
  }

  powerLoss(unflushed: 'random' | 'lose' | 'keep' = 'random'): void {
    this.host.losePower(unflushed)
    this.host.powerOn()
    this.#boots++
    this.start()
  }

  settle<T>(promise: Promise<T>, limitMs = 600_000): Promise<T> {
    return this.world.settle(promise, limitMs)
  }

  async until(condition: () => boolean, limitMs = 600_000): Promise<void> {
    if (!(await this.world.run(condition, limitMs))) throw new Error('it did not happen')
  }

  alloc(pages: number): number {
    const page = this.queue.arena.alloc(pages * PAGE_BYTES)
    if (page < 0) throw new Error('the arena is full')
    return page
  }

  free(page: number): void {
    this.queue.arena.free(page as never)
  }

  /** Random content for `pages` pages and their CRCs. */
  payload(pages: number): { page: number; crcs: Uint32Array } {
    const page = this.alloc(pages)
    const words = new Uint32Array(this.queue.arena.bytes.buffer, this.queue.arena.bytes.byteOffset + page * PAGE_BYTES, (pages * PAGE_BYTES) / 4)
    let x = this.random.u32() | 1
    for (let i = 0; i < words.length; i++) {
      x ^= x << 13
      x ^= x >>> 17
      x ^= x << 5
      words[i] = x
    }
    return { page, crcs: Uint32Array.from({ length: pages }, (_, i) => this.queue.arena.crc32c(page + i, 0, PAGE_BYTES)) }
  }

  read(store: DiskStore, block: number, firstPage: number, pageCount: number, bufferPage: number): Promise<{ status: number; extra: number }> {
    return this.settle(
      new Promise((resolve) => {
        store.read(
          block as never,
          firstPage,
          pageCount,
          bufferPage,
          (_row, status, extra) => {
            this.queue.asyncPending = true
            resolve({ status, extra })
          },
          0,
        )
      }),
    )
  }
}
