/**
 * Several data planes in one isolate over the simulated network, memory stores, and a coordinator that is deliberately dumb: it knows at once
 * what is so, makes every step that `settle` finds, and hands out tables and leases when told. For the tests of the chain layer.
 */
import assert from 'node:assert/strict'
import { createHmac } from 'node:crypto'
import type { DiskNumber, Incarnation, NodeNumber, SlotIndex, TableRevision, VolumeNumber } from '../../src/base/ids.ts'
import { Prng } from '../../src/base/prng.ts'
import { PAGE_BYTES } from '../../src/base/units.ts'
import type { BlockClient } from '../../src/chain/block-client.ts'
import { DataPlane, type DataPlaneOptions } from '../../src/chain/data-plane.ts'
import { StoreRelay } from '../../src/chain/store-relay.ts'
import { AsyncIo } from '../../src/env/async-io.ts'
import { SimHost, type SimProcess } from '../../src/env/sim/host.ts'
import { SimIoQueue, type SimIoQueueOptions } from '../../src/env/sim/ioqueue.ts'
import { type NetworkOptions, SimNetwork } from '../../src/env/sim/network.ts'
import { World } from '../../src/env/sim/world.ts'
import { type Chain, type ChainEvent, DiskUse, firstChain, LastIdFlag, mayHaveLostUnflushed, packChains, settle } from '../../src/placement/chain.ts'
import type { ControlToReactor, ReactorToControl, TableNode, TableVolume } from '../../src/placement/messages.ts'
import { View } from '../../src/placement/view.ts'
import { type MemoryImage, MemoryStore, type MemoryStoreOptions } from '../../src/store/memory-store.ts'

export const DATA_PORT = 8000
/** How far the coordinator's word takes to a reactor, ms. */
const CONTROL_DELAY_MS = 0.5

export interface ChainClusterOptions {
  readonly seed?: number
  readonly nodes: number
  readonly slots: number
  /** Members of each chain at the start, node numbers in order; default: all, rotated by slot. */
  readonly chainOf?: (slot: number) => number[]
  readonly volumes?: readonly TableVolume[]
  readonly network?: Partial<NetworkOptions>
  readonly queue?: Partial<SimIoQueueOptions>
  readonly store?: Partial<MemoryStoreOptions>
  readonly plane?: Partial<Pick<DataPlaneOptions, 'limits' | 'settings'>>
  readonly trace?: (line: string) => void
  /** The cluster's key as a node has it. */
  readonly keyOf?: (node: number) => string
}

export const VOLUME = 1 as VolumeNumber
export const RELAXED_VOLUME = 2 as VolumeNumber
const VOLUMES: readonly TableVolume[] = [
  { volume: VOLUME, name: 'db', sizeBytes: 2 ** 40, replicas: 3, syncWhenWrite: true, readOnly: false },
  { volume: RELAXED_VOLUME, name: 'scratch', sizeBytes: 2 ** 40, replicas: 3, syncWhenWrite: false, readOnly: false },
]

export class ChainNode {
  readonly cluster: ChainCluster
  readonly number: NodeNumber
  readonly host: SimHost
  incarnation = 0 as Incarnation
  process!: SimProcess
  queue!: SimIoQueue
  store!: MemoryStore
  /** Times may be changed while the store runs. */
  storeOptions!: { -readonly [K in keyof MemoryStoreOptions]: MemoryStoreOptions[K] }
  plane!: DataPlane
  up = false
  /** What the reactor told the control plane, oldest first. */
  readonly told: ReactorToControl[] = []
  #image: MemoryImage | undefined
  #lastAtMs = 0
  #toReactor: ((message: ControlToReactor) => void) | undefined

  constructor(cluster: ChainCluster, number: number) {
    this.cluster = cluster
    this.number = number as NodeNumber
    this.host = new SimHost(cluster.network, { name: `n${number}`, address: `10.0.0.${number}` })
  }

  get client(): BlockClient {
    return this.plane.client
  }

  get disk(): DiskNumber {
    return this.number as number as DiskNumber
  }

  start(): void {
    const { options } = this.cluster
    this.incarnation = ((this.incarnation as number) + 1) as Incarnation
    this.process = this.host.start(`xsand ${this.incarnation}`)
    this.queue = new SimIoQueue({ arenaBytes: 64 * 1024 * 1024, ...options.queue, process: this.process, name: `n${this.number}.${this.incarnation}` })
    const relay = new StoreRelay()
    this.storeOptions = {
      ...options.store,
      queue: this.queue,
      disk: this.disk,
      slotCount: options.slots,
      events: relay,
      ...(this.#image ? { image: this.#image } : {}),
    }
    this.store = new MemoryStore(this.storeOptions)
    const nonces = new Prng(this.cluster.world.random(`nonce ${this.number} ${this.incarnation}`).u32())
    this.plane = new DataPlane({
      ...options.plane,
      queue: this.queue,
      asyncIo: new AsyncIo(this.queue),
      stores: [{ store: this.store, relay }],
      identity: { clusterId: 'test', node: this.number, incarnation: this.incarnation, reactor: 0 },
      listen: { host: this.host.address, port: DATA_PORT },
      authenticate: {
        hmac: (bytes) =>
          createHmac('sha256', options.keyOf?.(this.number) ?? 'cluster key')
            .update(bytes)
            .digest(),
        nonce: () => {
          const bytes = new Uint8Array(16)
          nonces.fill(bytes)
          return bytes
        },
      },
      port: {
        send: (message) => {
          this.told.push(message)
          const { incarnation } = this
          this.cluster.world.schedule(CONTROL_DELAY_MS, 'reactor to control', () => this.cluster.heard(this, incarnation, message))
        },
        onMessage: (handler) => {
          this.#toReactor = handler
        },
      },
    })
    this.up = true
    const { plane, queue } = this
    queue.runReactor(() => queue.turn(0))
    this.#listen(plane)
  }

  /** The kernel may hold the port of the process before for a moment. */
  #listen(plane: DataPlane): void {
    void plane.start().catch((error: { code?: string }) => {
      if (error.code !== 'EADDRINUSE') this.cluster.world.fail(error)
      else this.process.schedule(1, 'listen again', () => this.#listen(plane))
    })
  }

  /** From the coordinator: arrives after a moment (in order), unless this process is gone by then. */
  send(message: ControlToReactor): void {
    const { incarnation, cluster } = this
    const { nowMs } = cluster.world
    const lagMs = cluster.lagMs > 0 ? cluster.world.random('lag').unit() * cluster.lagMs : 0
    this.#lastAtMs = Math.max(this.#lastAtMs, nowMs + CONTROL_DELAY_MS + lagMs)
    this.process.schedule(this.#lastAtMs - nowMs, 'control to reactor', () => {
      if (incarnation === this.incarnation && this.up) this.#toReactor!(message)
    })
  }

  /** SIGKILL. */
  kill(options: { keep?: number } = {}): void {
    assert.ok(this.up)
    this.up = false
    this.#image = this.store.kill(options.keep ?? 0)
    this.process.kill()
  }

  /** The host loses power; what was not durable is lost. */
  losePower(options: { keep?: number } = {}): void {
    assert.ok(this.up)
    this.up = false
    this.#image = this.store.powerLoss(options.keep ?? 0)
    this.host.losePower('lose')
    this.host.powerOn()
  }
}

export class ChainCluster {
  readonly options: ChainClusterOptions
  readonly world: World
  readonly network: SimNetwork
  readonly nodes: ChainNode[] = []
  readonly chains: Chain[] = []
  readonly registered: number[] = []
  readonly views: View[] = []
  revision = 1 as TableRevision
  /** Leases are granted for this long; 0: none are. */
  leaseMs = 2000
  /** What tables say of it. 0: every node knows of a larger volume at once, so that volumes acknowledge from memory from their first write on. */
  leaseMsMax = 0
  /** The coordinator's word takes up to this much longer, each time another time: nodes know different tables. */
  lagMs = 0
  /** Nodes that get neither leases nor tables. */
  readonly cutOff = new Set<number>()
  readonly failedDisks = new Set<number>()
  /** Per volume that acknowledges from memory: times that unflushed writes may have been lost. */
  losses = 0
  volumes: readonly TableVolume[]
  /** Up-to-date reports are believed. */
  acceptReports = true
  readonly #lastIds = new Map<
    number,
    Map<number, { hi: number; lo: number; version: number; incarnation: number; powerLost: boolean; incomplete: boolean; damaged: boolean }>
  >()

  constructor(options: ChainClusterOptions) {
    this.options = options
    this.volumes = options.volumes ?? VOLUMES
    this.world = new World({ seed: options.seed ?? 1, trace: options.trace })
    this.network = new SimNetwork(this.world, options.network ?? {})
    for (let n = 1; n <= options.nodes; n++) {
      this.nodes.push(new ChainNode(this, n))
      this.registered.push(1)
      this.views.push(View.UP)
    }
    for (let slot = 0; slot < options.slots; slot++) {
      const members = options.chainOf?.(slot) ?? this.nodes.map((_, i) => ((i + slot) % options.nodes) + 1)
      this.chains.push(firstChain(members.map((n) => ({ disk: n as DiskNumber, node: n as NodeNumber, incarnation: 1 as Incarnation }))))
    }
  }

  node(number: number): ChainNode {
    return this.nodes[number - 1]!
  }

  /** All nodes started, with their first table and lease. */
  async start(): Promise<void> {
    for (const node of this.nodes) {
      node.start()
      this.sendTable(node)
    }
    this.#renew()
    await this.world.runFor(50)
  }

  #renew(): void {
    for (const node of this.nodes) this.grant(node)
    this.world.schedule(250, 'renewal', () => this.#renew())
  }

  grant(node: ChainNode): void {
    if (!node.up || this.leaseMs === 0 || this.cutOff.has(node.number) || node.incarnation !== this.registered[node.number - 1]) return
    if (node.process.state !== 'running') return
    node.send({ type: 'lease', untilMs: node.host.bootMs() + this.leaseMs, revision: this.revision })
  }

  sendTable(node: ChainNode, slots?: readonly number[]): void {
    if (!node.up || this.cutOff.has(node.number)) return
    const picked = slots ?? this.chains.keys()
    node.send({
      type: 'table',
      revision: this.revision,
      slotCount: this.options.slots,
      chains: packChains([...picked].map((slot) => ({ slot: slot as SlotIndex, chain: this.chains[slot]! }))),
      nodes: this.nodes.map(
        (each): TableNode => ({
          node: each.number,
          id: `node-${each.number}`,
          incarnation: this.registered[each.number - 1]! as Incarnation,
          dataAddress: `10.0.0.${each.number}:${DATA_PORT}`,
        }),
      ),
      disks: this.nodes.map((each) => ({ disk: each.disk, node: each.number })),
      volumes: this.volumes.map((volume) => (volume.syncWhenWrite ? volume : { ...volume, losses: this.losses })),
      leaseMsMax: this.leaseMsMax,
    })
  }

  event(more: Partial<ChainEvent> = {}): ChainEvent {
    return {
      views: {
        view: (node) => this.views[node - 1] ?? View.DOWN,
        incarnation: (node) => (this.registered[node - 1] ?? 0) as Incarnation,
      },
      diskUse: (disk) => (this.failedDisks.has(disk) ? DiskUse.FAILED : DiskUse.NORMAL),
      ...more,
    }
  }

  /** Every step that follows, for all slots (or one); tables go out. */
  step(more: Partial<ChainEvent> = {}, slots: Iterable<number> = this.chains.keys()): void {
    const changed: number[] = []
    for (const slot of slots) {
      const next = settle(this.chains[slot]!, this.event({ lastIds: this.#idsOf(slot), ...more }))
      if (next === this.chains[slot]) continue
      if (mayHaveLostUnflushed(this.chains[slot]!, next, this.#idsOf(slot))) this.losses++
      this.chains[slot] = next
      changed.push(slot)
    }
    this.publish(changed)
  }

  publish(slots: readonly number[]): void {
    if (slots.length === 0) return
    this.revision = ((this.revision as number) + 1) as TableRevision
    for (const node of this.nodes) this.sendTable(node, slots)
  }

  #idsOf(slot: number) {
    return [...this.#lastIds].flatMap(([disk, ids]) => {
      const id = ids.get(slot)
      if (id === undefined) return []
      const { hi, lo, powerLost, incomplete, damaged } = id
      return [{ disk: disk as DiskNumber, incarnation: id.incarnation as Incarnation, version: id.version as never, hi, lo, powerLost, incomplete, damaged }]
    })
  }

  heard(node: ChainNode, incarnation: number, message: ReactorToControl): void {
    if (message.type === 'needTable') {
      if (node.incarnation === incarnation && !this.cutOff.has(node.number)) this.sendTable(node)
    } else if (message.type === 'lastIds') {
      const ids = this.#lastIds.get(message.disk) ?? new Map()
      this.#lastIds.set(message.disk, ids)
      for (let i = 0; i < message.ids.length; i += 5) {
        const [slot, version, hi, lo, flags] = message.ids.subarray(i, i + 5)
        const has = (flag: number) => (flags! & flag) !== 0
        const about = { powerLost: has(LastIdFlag.LOST_POWER), incomplete: has(LastIdFlag.INCOMPLETE), damaged: has(LastIdFlag.DAMAGED) }
        ids.set(slot!, { version: version!, hi: hi! >>> 0, lo: lo! >>> 0, incarnation, ...about })
      }
      this.step()
    } else if (message.type === 'upToDate' && this.acceptReports) {
      for (let i = 0; i < message.reports.length; i += 3) {
        const [slot, since, by] = message.reports.subarray(i, i + 3)
        this.step({ upToDate: { disk: node.disk, since: since! as never, incarnation: (by! >>> 0) as Incarnation } }, [slot!])
      }
    } else if (message.type === 'diskFailed') {
      this.failedDisks.add(message.disk)
      this.step()
      this.world.schedule(5, 'confirm', () => this.#confirmDrained(message.disk))
    }
  }

  /** The DRAINING replicas of the disk have heard of it. */
  #confirmDrained(disk: DiskNumber): void {
    for (const [slot, chain] of this.chains.entries()) {
      const entry = chain.entries.find((each) => each.disk === disk)
      if (entry?.state === 1) this.step({ drained: { disk, version: chain.version, incarnation: entry.incarnation } }, [slot])
    }
  }

  /** Everything of the node's present process is over, and known to be: evidence as of protocol 26, and at once renewals of the others. */
  fence(node: ChainNode): void {
    this.views[node.number - 1] = View.DOWN
    for (const other of this.nodes) {
      if (other !== node) other.send({ type: 'peerDown', node: node.number, incarnation: node.incarnation })
    }
    this.step()
  }

  /** Killed, and proven dead after a moment. */
  async kill(number: number, options: { keep?: number; power?: boolean; proofMs?: number } = {}): Promise<void> {
    const node = this.node(number)
    if (options.power) node.losePower(options)
    else node.kill(options)
    await this.world.runFor(options.proofMs ?? 20)
    this.fence(node)
  }

  /** Starts the node's next process, registers it; it joins by the table. */
  restart(number: number): void {
    const node = this.node(number)
    node.start()
    this.registered[number - 1] = node.incarnation
    this.views[number - 1] = View.DOWN
    this.step()
    this.views[number - 1] = View.UP
    this.revision = ((this.revision as number) + 1) as TableRevision
    for (const each of this.nodes) this.sendTable(each, [])
    this.sendTable(node)
    this.step()
    this.grant(node)
  }

  async until(what: string, holds: () => boolean, limitMs = 10_000): Promise<void> {
    const held = await this.world.run(holds, limitMs)
    assert.ok(held, `not within ${limitMs} ms: ${what}`)
  }

  /** All chains are made of SERVING replicas only, of live processes. */
  get allServing(): boolean {
    return this.chains.every((chain) => chain.entries.every((entry) => entry.state === 0 && entry.incarnation === this.registered[entry.node - 1]))
  }

  /** Nothing under way anywhere. */
  get quiet(): boolean {
    return this.nodes.every((node) => !node.up || node.plane.replicas.records.inUse === 0)
  }

  /** Replicas of every slot are byte-equal by digest, ids and rows included (invariant 5). */
  assertEqual(): void {
    for (const [slot, chain] of this.chains.entries()) {
      const members = chain.entries.filter((entry) => entry.state <= 1 && this.node(entry.node).up).map((entry) => this.node(entry.node).store)
      const of = (store: MemoryStore) => `${store.slotDigest(slot)} last ${store.lastHigh[slot]}:${store.lastLow[slot]}`
      for (const store of members) assert.equal(of(store), of(members[0]!), `slot ${slot}: disk ${store.disk} differs from ${members[0]!.disk}`)
    }
  }
}

/** Calls of a node's client as promises; buffers are taken from and given back to its arena. */
export class TestClient {
  readonly node: ChainNode
  readonly #waiting = new Map<number, (status: number) => void>()
  #row = 0
  readonly #done = (row: number, status: number): void => {
    const resolve = this.#waiting.get(row)
    assert.ok(resolve, 'done twice')
    this.#waiting.delete(row)
    this.node.queue.asyncPending = true
    this.node.cluster.world.asyncPending = true
    resolve(status)
  }

  constructor(node: ChainNode) {
    this.node = node
  }

  get pending(): number {
    return this.#waiting.size
  }

  #call(start: (row: number) => void): Promise<number> {
    const row = this.#row++
    return new Promise((resolve) => {
      this.#waiting.set(row, resolve)
      // inside an event, as a reactor's turn would be
      this.node.process.schedule(0, 'client call', () => {
        start(row)
        this.node.plane.settle()
      })
    })
  }

  /** Writes `bytes` at an offset of a block; both multiples of 512. */
  async write(index: number, offsetBytes: number, bytes: Uint8Array, options: { volume?: VolumeNumber; flags?: number } = {}): Promise<number> {
    const { queue, client } = this.node
    const delta = offsetBytes % PAGE_BYTES
    const page = queue.arena.alloc(delta + bytes.length)
    assert.ok(page !== -1, 'arena full')
    queue.arena.bytes.set(bytes, page * PAGE_BYTES + delta)
    const status = await this.#call((row) =>
      client.write(options.volume ?? VOLUME, index, offsetBytes, bytes.length, page, options.flags ?? 0, this.#done, row),
    )
    queue.arena.free(page)
    return status
  }

  async read(index: number, firstPage: number, pageCount: number, volume = VOLUME): Promise<{ status: number; bytes: Uint8Array }> {
    const { queue, client } = this.node
    const page = queue.arena.alloc(pageCount * PAGE_BYTES)
    assert.ok(page !== -1, 'arena full')
    const status = await this.#call((row) => client.read(volume, index, firstPage, pageCount, page, this.#done, row))
    const bytes = queue.arena.bytes.slice(page * PAGE_BYTES, (page + pageCount) * PAGE_BYTES)
    queue.arena.free(page)
    return { status, bytes }
  }

  zero(index: number, firstPage: number, pageCount: number, volume = VOLUME): Promise<number> {
    return this.#call((row) => this.node.client.zero(volume, index, firstPage, pageCount, 0, this.#done, row))
  }

  flush(volume: VolumeNumber): Promise<number> {
    return this.#call((row) => this.node.client.flush(volume, this.#done, row))
  }

  /** A flush whose client may go before it has ended. */
  orphanableFlush(volume: VolumeNumber): { status: Promise<number>; orphan: () => void } {
    const row = this.#row
    return { status: this.flush(volume), orphan: () => this.node.client.orphan(this.#done, row) }
  }

  /** A write and the row by which it can be orphaned. */
  orphanable(index: number, offsetBytes: number, bytes: Uint8Array): { status: Promise<number>; orphan: (lostMs?: number) => void } {
    const row = this.#row
    const status = this.write(index, offsetBytes, bytes)
    return { status, orphan: (lostMs) => this.node.client.orphan(this.#done, row, lostMs) }
  }
}

/** `count` bytes that tell where they come from. */
export function pattern(tag: number, count = PAGE_BYTES): Uint8Array {
  const bytes = new Uint8Array(count)
  new Prng(tag).fill(bytes)
  return bytes
}

/**
 * Writers and readers of single pages through all nodes. Every page has one writer at a time, whose writes carry a rising number; a read must
 * return a number between the newest acknowledged (or read) before it began and the newest begun before it ended: per-page linearizability.
 */
export class PageLoad {
  readonly cluster: ChainCluster
  readonly #pages: number
  readonly #random: Prng
  /** Per page: newest number begun, newest acknowledged or seen by a reader. */
  readonly #begun: number[]
  readonly #floor: number[]
  readonly #busy: boolean[]
  readonly #clients: TestClient[]
  writes = 0
  reads = 0
  failures = 0
  /** Longest time from the begin to the end of an operation, ms. */
  longestMs = 0
  stopped = false
  #running = 0
  readonly #thinkMs: number

  constructor(cluster: ChainCluster, options: { pages?: number; salt?: string; thinkMs?: number } = {}) {
    this.#thinkMs = options.thinkMs ?? 20
    this.cluster = cluster
    this.#pages = options.pages ?? 64
    this.#random = cluster.world.random(`load ${options.salt ?? ''}`)
    this.#begun = new Array(this.#pages).fill(0)
    this.#floor = new Array(this.#pages).fill(0)
    this.#busy = new Array(this.#pages).fill(false)
    this.#clients = cluster.nodes.map((node) => new TestClient(node))
  }

  /** `count` workers, each on a node that lives; a worker whose node dies goes on elsewhere. */
  run(count: number): void {
    for (let i = 0; i < count; i++) void this.#worker(i).catch((error) => this.cluster.world.fail(error))
  }

  async stop(): Promise<void> {
    this.stopped = true
    await this.cluster.until('the load has ended', () => this.#running === 0, 120_000)
  }

  async #worker(id: number): Promise<void> {
    while (!this.stopped) {
      const node = this.#random.pick(this.cluster.nodes)
      if (!node.up || node.process.state !== 'running') {
        await this.#pause()
        continue
      }
      const page = this.#random.below(this.#pages)
      this.#running++
      if (this.#random.chance(0.5)) await this.#read(node, page)
      else if (!this.#busy[page]) await this.#write(node, page, id)
      this.#running--
      await this.#pause(this.#random.unit() * this.#thinkMs)
    }
  }

  #pause(forMs = 1): Promise<void> {
    return new Promise((resolve) => {
      this.cluster.world.schedule(forMs, 'load pause', () => {
        this.cluster.world.asyncPending = true
        resolve()
      })
    })
  }

  /** Undefined when the node's process ended first: nobody will ever know. */
  #ifAlive<T>(node: ChainNode, call: Promise<T>): Promise<T | undefined> {
    const { incarnation } = node
    return new Promise((resolve) => {
      const look = () => {
        if (node.up && node.incarnation === incarnation) this.cluster.world.schedule(10, 'load look', look)
        else {
          this.cluster.world.asyncPending = true
          resolve(undefined)
        }
      }
      look()
      void call.then(resolve)
    })
  }

  async #write(node: ChainNode, page: number, id: number): Promise<void> {
    this.#busy[page] = true
    const number = ++this.#begun[page]!
    const bytes = pattern(page * 1000 + id)
    new DataView(bytes.buffer).setUint32(0, number)
    new DataView(bytes.buffer).setUint32(4092, number)
    const startMs = this.cluster.world.nowMs
    const client = this.#clients[node.number - 1]!
    const status = await this.#ifAlive(node, client.write(page % 16, (page >> 4) * 4096, bytes))
    if (status === 0) this.#floor[page] = Math.max(this.#floor[page]!, number)
    else if (status !== undefined) this.failures++
    // a client that has died with its node leaves the page alone until nothing of it can come any more
    if (status === undefined) await this.#pause()
    this.#ended(startMs)
    this.writes++
    this.#busy[page] = false
  }

  async #read(node: ChainNode, page: number): Promise<void> {
    const floor = this.#floor[page]!
    const startMs = this.cluster.world.nowMs
    const result = await this.#ifAlive(node, this.#clients[node.number - 1]!.read(page % 16, page >> 4, 1))
    if (result === undefined) return
    if (result.status !== 0) {
      this.failures++
      return
    }
    const view = new DataView(result.bytes.buffer)
    const number = view.getUint32(0)
    assert.equal(view.getUint32(4092), number, `page ${page} is torn`)
    assert.ok(number >= floor, `node ${node.number} reads ${number} of page ${page}, ${floor} was known before`)
    assert.ok(number <= this.#begun[page]!, `node ${node.number} reads ${number} of page ${page}, which nobody wrote`)
    this.#floor[page] = Math.max(this.#floor[page]!, number)
    this.#ended(startMs)
    this.reads++
  }

  #ended(startMs: number): void {
    this.longestMs = Math.max(this.longestMs, this.cluster.world.nowMs - startMs)
  }

  /** Every page, through every node: nothing acknowledged is missing. */
  async verify(): Promise<void> {
    for (const node of this.cluster.nodes) if (node.up) for (let page = 0; page < this.#pages; page++) await this.#read(node, page)
  }
}
