/**
 * How long things take, counted without allocation: per operation ({@link LatencyHistogram}), or summed over all that wait ({@link WaitTotals}).
 * Both become plain numbers by name, which is the form in which counters travel (perf-stats, metrics).
 */

/** Upper ends of the buckets, us; what is above the last counts only in `count`. */
export const LATENCY_BUCKETS_US: readonly number[] = [16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304]

/** Separates the name of a histogram from that of its parts: `.le_<us>us` (all up to it), `.count`, `.sum_us`. */
export const BUCKET_NAME = /^(.+)\.le_(\d+)us$/

export class LatencyHistogram {
  readonly #buckets = new Float64Array(LATENCY_BUCKETS_US.length + 1)
  #sumMs = 0

  record(latencyMs: number): void {
    let i = 0
    const us = latencyMs * 1000
    while (i < LATENCY_BUCKETS_US.length && us > LATENCY_BUCKETS_US[i]!) i++
    this.#buckets[i]!++
    this.#sumMs += latencyMs
  }

  addTo(counters: Record<string, number>, name: string): void {
    let upTo = 0
    LATENCY_BUCKETS_US.forEach((us, i) => {
      upTo += this.#buckets[i]!
      counters[`${name}.le_${us}us`] = upTo
    })
    counters[`${name}.count`] = upTo + this.#buckets[LATENCY_BUCKETS_US.length]!
    counters[`${name}.sum_us`] = Math.round(this.#sumMs * 1000)
  }
}

/**
 * The time that all waiters of one kind spent, exact without a timestamp per waiter: between two changes of their number, the sum grows by
 * that number times the time that went by.
 */
export class WaitTotals {
  /** Waiters that came so far. */
  count = 0
  waiting = 0
  #sumMs = 0
  #countedMs = 0

  enter(nowMs: number, count = 1): void {
    this.#advance(nowMs)
    this.count += count
    this.waiting += count
  }

  leave(nowMs: number, count = 1): void {
    this.#advance(nowMs)
    this.waiting -= count
  }

  /** `.count`, `.sum_us`, and who waits now. */
  addTo(counters: Record<string, number>, name: string, nowMs: number): void {
    this.#advance(nowMs)
    counters[`${name}.count`] = this.count
    counters[`${name}.sum_us`] = Math.round(this.#sumMs * 1000)
    counters[`${name}.in_flight`] = this.waiting
  }

  #advance(nowMs: number): void {
    if (this.waiting > 0) this.#sumMs += this.waiting * (nowMs - this.#countedMs)
    this.#countedMs = nowMs
  }
}

/** Where requests wait inside one reactor; each component counts into its own part (checklist 0.14, 0.15). */
export class RequestWaits {
  /** From receipt at a replica until it is asked of the store. */
  readonly readQueue = new LatencyHistogram()
  /** From receipt at the head until it is ordered. */
  readonly updateQueue = new LatencyHistogram()
  /** Everything else: messages of the control plane, from post to handling. */
  readonly otherQueue = new LatencyHistogram()
  /** Slots whose next forward has no credit at the successor, or no room in the lane. */
  readonly credit = new WaitTotals()
  /** Records that wait for their batch of the journal to be written. */
  readonly batch = new WaitTotals()
  /** Replies of exports, from the outcome until the socket has taken them. */
  readonly reply = new WaitTotals()
}
