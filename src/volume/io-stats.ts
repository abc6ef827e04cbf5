/** Counters of one reactor's exports (checklist 4.19 and 0.16). Sums since the start; latencies in microseconds, summed over operations. */
export class IoStats {
  #readOps = 0
  #writeOps = 0
  #readBytes = 0
  #writeBytes = 0
  #readLatencyUs = 0
  #writeLatencyUs = 0
  #flushOps = 0
  #zeroOps = 0
  #errors = 0

  finishRead(lengthBytes: number, latencyMs: number): void {
    this.#readOps++
    this.#readBytes += lengthBytes
    this.#readLatencyUs += latencyMs * 1000
  }

  finishWrite(lengthBytes: number, latencyMs: number): void {
    this.#writeOps++
    this.#writeBytes += lengthBytes
    this.#writeLatencyUs += latencyMs * 1000
  }

  finishFlush(): void {
    this.#flushOps++
  }

  /** Trims and write-zeroes. */
  finishZero(): void {
    this.#zeroOps++
  }

  /** A request that ended with anything but success. */
  fail(): void {
    this.#errors++
  }

  /** By the documents' names. */
  snapshot(): Record<string, number> {
    return {
      read_ops: this.#readOps,
      write_ops: this.#writeOps,
      read_bytes: this.#readBytes,
      write_bytes: this.#writeBytes,
      read_latency_us: Math.round(this.#readLatencyUs),
      write_latency_us: Math.round(this.#writeLatencyUs),
      flush_ops: this.#flushOps,
      zero_ops: this.#zeroOps,
      failed_ops: this.#errors,
    }
  }
}
