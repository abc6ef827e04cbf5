/**
 * Hosts and the processes on them: what dies, freezes, loses power, and whose clock says what.
 *
 * A process' events run only while it runs: they are dropped when it is dead, kept back while it is frozen or away in the middle of
 * its code (`pause`). What its kernel does (sockets, disk requests under way) belongs to the host and goes on without it.
 */
import { assert } from '../../base/assert.ts'
import type { Prng } from '../../base/prng.ts'
import type { SimKvStore } from './control.ts'
import { SimDisk, type SimDiskOptions, type SimFile } from './disk.ts'
import type { SimNetwork } from './network.ts'
import { type EventOwner, runEvent, type SimEvent, type World } from './world.ts'

export interface SimHostOptions {
  readonly name: string
  readonly address: string
  /** The boot-time clock's reading at the start of the world. */
  readonly bootOffsetMs?: number
  /** How much faster than true time it runs; 0.001 = 0.1 %. */
  readonly drift?: number
}

export class SimHost {
  readonly world: World
  readonly network: SimNetwork
  readonly name: string
  readonly address: string
  readonly number: number
  /** Power is on. */
  up = true
  /** Counts power cycles: what was scheduled in an earlier one never happens. */
  boots = 1
  readonly processes = new Set<SimProcess>()
  readonly disks: SimDisk[] = []
  readonly files = new Map<string, SimFile>()
  /** Key-value stores by name; they outlive processes and power. */
  readonly kvStores = new Map<string, SimKvStore>()
  #power = new PowerCycle(this)
  #anchorTrueMs: number
  #anchorBootMs: number
  #rate: number

  constructor(network: SimNetwork, options: SimHostOptions) {
    this.network = network
    this.world = network.world
    this.name = options.name
    this.address = options.address
    this.number = network.addHost(this)
    this.#anchorTrueMs = this.world.nowMs
    this.#anchorBootMs = options.bootOffsetMs ?? 1000
    this.#rate = 1 + (options.drift ?? 0)
    this.addDisk({ name: 'root', mount: '/' })
  }

  addDisk(options: SimDiskOptions): SimDisk {
    const disk = new SimDisk(this, options)
    this.disks.push(disk)
    return disk
  }

  /** The disk on which a path lies: the one with the longest mount point that leads to it. */
  diskOf(path: string): SimDisk {
    let best: SimDisk | undefined
    for (const disk of this.disks) if (path.startsWith(disk.mount) && (!best || disk.mount.length > best.mount.length)) best = disk
    assert(best !== undefined, `no disk for ${path}`)
    return best
  }

  /** Boot-time clock at a moment of true time (now, unless given). */
  bootMs(trueMs: number = this.world.nowMs): number {
    return this.#anchorBootMs + (trueMs - this.#anchorTrueMs) * this.#rate
  }

  /** True time that passes while this host's clock counts `ms`. */
  trueSpanMs(ms: number): number {
    return ms / this.#rate
  }

  /** From now on the clock runs by that much too fast (negative: too slow). */
  setDrift(drift: number): void {
    this.#anchorBootMs = this.bootMs()
    this.#anchorTrueMs = this.world.nowMs
    this.#rate = 1 + drift
  }

  random(name: string): Prng {
    return this.world.random(`${this.name} ${name}`)
  }

  start(name: string): SimProcess {
    assert(this.up, `${this.name} has no power`)
    const process = new SimProcess(this, name)
    this.processes.add(process)
    this.world.note('process start', () => `${this.name} ${name}`)
    return process
  }

  /** Schedules something the host does (not a process): dropped when the power goes. */
  schedule(delayMs: number, label: string, fn: () => void, a = 0, b = 0): SimEvent {
    return this.world.schedule(delayMs, label, fn, a, b, this.#power)
  }

  /**
   * The power goes: every process ends, peers hear nothing, disks keep what was flushed and any part of what was not
   * (`keep`: all of it, as a drive with a protected cache does).
   */
  losePower(unflushed: 'random' | 'lose' | 'keep' = 'random'): void {
    if (!this.up) return
    this.world.note('power loss', () => `${this.name}, unflushed: ${unflushed}`)
    this.up = false
    for (const process of [...this.processes]) process.powerLost()
    this.network.hostDown(this)
    for (const disk of this.disks) disk.powerLoss(unflushed)
  }

  powerOn(): void {
    if (this.up) return
    this.world.note('power on', () => this.name)
    this.up = true
    this.boots++
    this.#power = new PowerCycle(this)
    this.network.linksChanged()
  }
}

/** From one power-on of a host to the next loss of power. */
class PowerCycle implements EventOwner {
  readonly #host: SimHost
  readonly #boots: number

  constructor(host: SimHost) {
    this.#host = host
    this.#boots = host.boots
  }

  get place(): string {
    return this.#host.name
  }

  deliver(event: SimEvent): void {
    if (this.#host.up && this.#host.boots === this.#boots) runEvent(event)
  }
}

export class SimProcess implements EventOwner {
  readonly host: SimHost
  readonly world: World
  readonly name: string
  state: 'running' | 'frozen' | 'dead' = 'running'
  /** Not before then does the process get on: it was away in the middle of its code. */
  #busyUntilMs = 0
  readonly #keptBack: SimEvent[] = []
  readonly #onEnd: Array<(how: 'killed' | 'power') => void> = []
  readonly #onThaw: Array<() => void> = []

  constructor(host: SimHost, name: string) {
    this.host = host
    this.world = host.world
    this.name = name
  }

  get alive(): boolean {
    return this.state !== 'dead'
  }

  random(name: string): Prng {
    return this.host.random(`${this.name} ${name}`)
  }

  /** True time as far as this process has got (later than the world's, if it was away since its event began). */
  get localNowMs(): number {
    return Math.max(this.world.nowMs, this.#busyUntilMs)
  }

  /** Boot-time clock as this process reads it. */
  bootMs(): number {
    return this.host.bootMs(this.localNowMs)
  }

  /** Schedules what the process itself does: never once it is dead, later while it is frozen or away. */
  schedule(delayMs: number, label: string, fn: () => void, a = 0, b = 0): SimEvent {
    return this.world.scheduleAt(this.localNowMs + delayMs, label, fn, a, b, this)
  }

  get place(): string {
    return this.host.name
  }

  deliver(event: SimEvent): void {
    if (this.state === 'dead') return
    if (this.state === 'frozen') this.#keptBack.push(event)
    else if (this.world.nowMs < this.#busyUntilMs) this.world.scheduleAt(this.#busyUntilMs, 'process back', () => runEvent(event), 0, 0, this)
    else runEvent(event)
  }

  onEnd(fn: (how: 'killed' | 'power') => void): void {
    this.#onEnd.push(fn)
  }

  onThaw(fn: () => void): void {
    this.#onThaw.push(fn)
  }

  /** The scheduler takes the processor away, in the middle of the present event. */
  pause(durationMs: number): void {
    this.world.note('pause', () => `${this.host.name} ${this.name} for ${durationMs} ms`)
    this.#busyUntilMs = this.localNowMs + durationMs
  }

  /** SIGSTOP. */
  freeze(): void {
    if (this.state !== 'running') return
    this.world.note('freeze', () => `${this.host.name} ${this.name}`)
    this.state = 'frozen'
  }

  /** SIGCONT. */
  thaw(): void {
    if (this.state !== 'frozen') return
    this.world.note('thaw', () => `${this.host.name} ${this.name}`)
    this.state = 'running'
    for (const event of this.#keptBack.splice(0)) this.world.schedule(0, 'thawed', () => runEvent(event), 0, 0, this)
    for (const fn of this.#onThaw) fn()
  }

  /** SIGKILL: its sockets are closed by its kernel soon, what it had written into the kernel stays, requests under way may finish. */
  kill(): void {
    if (this.state === 'dead') return
    this.world.note('kill', () => `${this.host.name} ${this.name}`)
    this.#end('killed')
  }

  powerLost(): void {
    if (this.state !== 'dead') this.#end('power')
  }

  #end(how: 'killed' | 'power'): void {
    this.state = 'dead'
    this.host.processes.delete(this)
    this.#keptBack.length = 0
    for (const fn of this.#onEnd) fn(how)
  }
}
