/**
 * The simulated world: one virtual clock, one queue of events, named random streams, a hash of everything that happened.
 *
 * Invariants:
 * - Events run in the order of (time, sequence); nothing else moves the clock.
 * - One event = deliver, let every promise run that can, then nothing may be pending outside the world.
 * - Same seed and same code = same events = same `hash`, on any machine and under any load.
 *
 * Times are in ms, rounded to 1/1024 ms, so that sums of them are exact and no platform rounds them differently.
 */
import { AssertionError, assert } from '../../base/assert.ts'
import { Prng } from '../../base/prng.ts'
import { microtasksDrained, realPending, realTurn } from './macrotask.ts'
import { PageMemory } from './memory.ts'

export interface SimEvent {
  atMs: number
  readonly sequence: number
  readonly label: string
  fn: (() => void) | undefined
  readonly a: number
  readonly b: number
  readonly owner: EventOwner | undefined
}

/** Whoever an event happens to: decides, when its time has come, what becomes of it. */
export interface EventOwner {
  /** Where that is, for the trace. */
  readonly place: string
  /** Runs the event (`runEvent`), now or later, or never. */
  deliver(event: SimEvent): void
}

/** Unless it has run, or was cancelled, perhaps while its owner kept it back. */
export function runEvent(event: SimEvent): void {
  const { fn } = event
  event.fn = undefined
  fn?.()
}

/** Any 64-bit number; above 2^53 as decimal text. */
export type Seed = number | string

export interface WorldOptions {
  readonly seed: Seed
  /** Called with each line of the trace in words; without it none is built. */
  readonly trace?: ((line: string) => void) | undefined
  /** Of a world that is over; without it fresh memory. */
  readonly memory?: PageMemory | undefined
}

/** A generator that depends on all bits of the seed. */
export function seededPrng(seed: Seed): Prng {
  const bits = BigInt.asUintN(64, BigInt(seed))
  return new Prng(Number(bits & 0xffff_ffffn)).fork(`high ${Number(bits >> 32n)}`)
}

/** A real turn of the event loop every so many events, so that a simulation does not lock up its process. */
const EVENTS_PER_REAL_TURN = 20_000

export class World {
  readonly seed: Seed
  /** What disks are made of. */
  readonly memory: PageMemory
  /** True time, ms since the start of the world. Hosts see it through their own clocks. */
  nowMs = 0
  /** Set by whoever settles a promise: promises run before the next event. */
  asyncPending = false
  /** An event is being delivered. */
  delivering = false
  eventCount = 0
  /** Thrown by an event or by a promise chain the world started: the simulation has ended. */
  failure: unknown
  readonly #heap: SimEvent[] = []
  #sequence = 0
  readonly #root: Prng
  readonly #streams = new Map<string, Prng>()
  readonly #labels = new Map<string, number>()
  #hashA = 0x243f6a88
  #hashB = 0x85a308d3
  readonly #trace: ((line: string) => void) | undefined
  readonly #baseline = realPending()
  readonly #float = new Float64Array(1)
  readonly #words = new Uint32Array(this.#float.buffer)

  constructor(options: WorldOptions) {
    this.seed = options.seed
    this.memory = options.memory ?? new PageMemory()
    this.#root = seededPrng(options.seed)
    this.#trace = options.trace
  }

  /** The random stream of that name: draws from one never disturb another. */
  random(name: string): Prng {
    let stream = this.#streams.get(name)
    if (!stream) {
      stream = this.#root.fork(name)
      this.#streams.set(name, stream)
    }
    return stream
  }

  get tracing(): boolean {
    return this.#trace !== undefined
  }

  /** 16 hexadecimal digits over every event so far. */
  get hash(): string {
    return this.#hashA.toString(16).padStart(8, '0') + this.#hashB.toString(16).padStart(8, '0')
  }

  /** Mixes a fact that is not an event of its own into the hash. */
  fold(label: string, a = 0, b = 0): void {
    let h = this.#labels.get(label)
    if (h === undefined) {
      h = 0x811c9dc5
      for (let i = 0; i < label.length; i++) h = Math.imul(h ^ label.charCodeAt(i), 0x01000193)
      this.#labels.set(label, h)
    }
    this.#float[0] = this.nowMs
    this.#mix(h, (this.#words[0]! ^ Math.imul(this.#words[1]!, 0x9e3779b1)) | 0)
    this.#mix(a | 0, b | 0)
  }

  /** For the trace in words; `text` is only called when there is one. Also folded, by its label. */
  note(label: string, text: () => string): void {
    this.fold(label)
    this.#trace?.(`${this.#timeText()} ${label} ${text()}`)
  }

  /** For the trace alone. */
  say(text: string): void {
    this.#trace?.(`${this.#timeText()} ${text}`)
  }

  /** Runs `fn` after `delayMs`, or gives it to its owner then. `a` and `b` go into the hash with the label. */
  schedule(delayMs: number, label: string, fn: () => void, a = 0, b = 0, owner?: EventOwner): SimEvent {
    return this.scheduleAt(this.nowMs + delayMs, label, fn, a, b, owner)
  }

  scheduleAt(atMs: number, label: string, fn: () => void, a = 0, b = 0, owner?: EventOwner): SimEvent {
    if (!Number.isFinite(atMs)) throw new AssertionError(`event ${label} at no time`)
    const at = Math.max(this.nowMs, Math.ceil(atMs * 1024) / 1024)
    const event: SimEvent = { atMs: at, sequence: this.#sequence++, label, fn, a, b, owner }
    this.#push(event)
    return event
  }

  /** An event that has run or was cancelled is left alone. */
  cancel(event: SimEvent): void {
    event.fn = undefined
  }

  /** Events not yet run (cancelled ones that are not yet dropped included). */
  get pending(): number {
    return this.#heap.length
  }

  /** Runs events until `until()` holds (looked at after each event), or virtual time reaches `timeLimitMs` from now. Returns whether `until` held. */
  async run(until: () => boolean, timeLimitMs: number): Promise<boolean> {
    assert(!this.delivering, 'the world runs already')
    const endMs = this.nowMs + timeLimitMs
    // What was started before this call may have promises to run
    await microtasksDrained()
    this.asyncPending = false
    let sinceTurn = 0
    while (!until()) {
      if (!this.#deliverNext(endMs)) {
        this.nowMs = Math.max(this.nowMs, endMs)
        return until()
      }
      if (this.asyncPending) {
        this.asyncPending = false
        await microtasksDrained()
      }
      if (this.failure !== undefined) throw this.failure
      if (++sinceTurn >= EVENTS_PER_REAL_TURN) {
        sinceTurn = 0
        await realTurn()
        this.assertNothingReal()
      }
    }
    return true
  }

  /** Runs for that long. */
  async runFor(durationMs: number): Promise<void> {
    await this.run(() => false, durationMs)
  }

  /** Like `run`, without promises: for plain synchronous tests and a queue's waiting turn outside the world's own loop. */
  runSync(until: () => boolean, timeLimitMs: number): boolean {
    const endMs = this.nowMs + timeLimitMs
    while (!until()) {
      if (!this.#deliverNext(endMs)) {
        this.nowMs = Math.max(this.nowMs, endMs)
        return until()
      }
      if (this.failure !== undefined) throw this.failure
    }
    return true
  }

  /** Drives the world until `promise` settles; rejects when it has not within `timeLimitMs` of virtual time. */
  async settle<T>(promise: Promise<T>, timeLimitMs: number): Promise<T> {
    let done = false
    const watched = promise.then(
      (value) => {
        done = true
        return { value }
      },
      (error: unknown) => {
        done = true
        return { error }
      },
    )
    const held = await this.run(() => done, timeLimitMs)
    if (!held) throw new Error(`not settled within ${timeLimitMs} ms of virtual time`)
    const outcome = await watched
    if ('error' in outcome) throw outcome.error
    return outcome.value
  }

  /** Ends the simulation with `error` at the next look. */
  fail(error: unknown): void {
    this.failure ??= error
  }

  /** Throws if real timers, sockets or file requests were started since the world began: the result would depend on the machine. */
  assertNothingReal(): void {
    for (const [kind, count] of realPending()) {
      const before = this.#baseline.get(kind) ?? 0
      if (count > before + (kind === 'Timeout' ? 1 : 0)) throw new Error(`something real is pending in the simulation: ${kind}`)
    }
  }

  #deliverNext(endMs: number): boolean {
    const heap = this.#heap
    let event: SimEvent
    for (;;) {
      const top = heap[0]
      if (top === undefined || (top.atMs > endMs && top.fn !== undefined)) return false
      event = this.#pop()
      if (event.fn !== undefined) break
    }
    assert(event.atMs >= this.nowMs, 'time goes back')
    this.nowMs = event.atMs
    this.eventCount++
    this.fold(event.label, event.a, event.b)
    if (this.#trace) this.#trace(this.#eventText(event))
    this.delivering = true
    try {
      if (event.owner === undefined) runEvent(event)
      else event.owner.deliver(event)
    } finally {
      this.delivering = false
    }
    return true
  }

  #timeText(): string {
    return this.nowMs.toFixed(3).padStart(12)
  }

  #eventText({ label, a, b, owner }: SimEvent): string {
    const facts = a === 0 && b === 0 ? '' : ` ${a} ${b}`
    return `${this.#timeText()} ${label}${facts}${owner === undefined ? '' : `, ${owner.place}`}`
  }

  #mix(x: number, y: number): void {
    let a = this.#hashA ^ Math.imul(x, 0x85ebca6b)
    let b = this.#hashB ^ Math.imul(y, 0xc2b2ae35)
    a = Math.imul((a << 13) | (a >>> 19), 5) + b
    b = Math.imul((b << 15) | (b >>> 17), 9) ^ a
    this.#hashA = (a ^ (b >>> 16)) >>> 0
    this.#hashB = (b + Math.imul(a, 0x27d4eb2f)) >>> 0
  }

  #push(event: SimEvent): void {
    const heap = this.#heap
    let i = heap.length
    heap.push(event)
    while (i > 0) {
      const parent = (i - 1) >> 1
      const p = heap[parent]!
      if (p.atMs < event.atMs || (p.atMs === event.atMs && p.sequence < event.sequence)) break
      heap[i] = p
      i = parent
    }
    heap[i] = event
  }

  #pop(): SimEvent {
    const heap = this.#heap
    const top = heap[0]!
    const last = heap.pop()!
    const n = heap.length
    if (n === 0) return top
    let i = 0
    for (;;) {
      let child = 2 * i + 1
      if (child >= n) break
      const right = child + 1
      let c = heap[child]!
      if (right < n) {
        const r = heap[right]!
        if (r.atMs < c.atMs || (r.atMs === c.atMs && r.sequence < c.sequence)) {
          child = right
          c = r
        }
      }
      if (last.atMs < c.atMs || (last.atMs === c.atMs && last.sequence < c.sequence)) break
      heap[i] = c
      i = child
    }
    heap[i] = last
    return top
  }
}
