/** What a node has to do at present, from the counters of its data plane: rates between two of its reports. */

export interface Load {
  /** Requests of clients that ended, per second. */
  readonly opsPerSecond: number
  /** Payload of reads and writes, bytes per second. */
  readonly bytesPerSecond: number
  /** Requests of clients under way. */
  readonly queueDepth: number
}

const NO_LOAD: Load = { opsPerSecond: 0, bytesPerSecond: 0, queueDepth: 0 }
const OPS = ['read_ops', 'write_ops', 'flush_ops', 'zero_ops', 'failed_ops']
const BYTES = ['read_bytes', 'write_bytes']

type CounterValues = Readonly<Record<string, number>>

export class LoadMeter {
  #last: CounterValues | undefined
  #load = NO_LOAD

  /** `counters`: the newest report; the same one again changes nothing. Its `reactor_clock_ms` is the time it was made. */
  load(counters: CounterValues | undefined): Load {
    const last = this.#last
    if (counters === undefined || counters === last) return this.#load
    this.#last = counters
    const seconds = ((counters['reactor_clock_ms'] ?? 0) - (last?.['reactor_clock_ms'] ?? 0)) / 1000
    if (last === undefined || seconds <= 0) return this.#load
    const perSecond = (names: readonly string[]) =>
      Math.max(0, Math.round(names.reduce((sum, name) => sum + (counters[name] ?? 0) - (last[name] ?? 0), 0) / seconds))
    this.#load = { opsPerSecond: perSecond(OPS), bytesPerSecond: perSecond(BYTES), queueDepth: counters['requests_in_flight'] ?? 0 }
    return this.#load
  }
}
