/** Counters of one reactor's exports (checklist 4.19 and 0.16). Sums since the start; latencies in microseconds, summed over operations. */
export class IoStats {
  readOps = 0
  writeOps = 0
  readBytes = 0
  writeBytes = 0
  readLatencyUs = 0
  writeLatencyUs = 0
  flushOps = 0
  trimOps = 0
  errors = 0

  finishRead(lengthBytes: number, latencyMs: number): void {
    this.readOps++
    this.readBytes += lengthBytes
    this.readLatencyUs += latencyMs * 1000
  }

  finishWrite(lengthBytes: number, latencyMs: number): void {
    this.writeOps++
    this.writeBytes += lengthBytes
    this.writeLatencyUs += latencyMs * 1000
  }
}
