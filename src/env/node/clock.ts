/** Boot-time clock and timers. */
import type { Clock, TimerId } from '../control.ts'

/** Longest delay setTimeout takes; longer ones are waited for in pieces. */
const DELAY_MS_MAX = 0x7fffffff

interface Timer {
  handle: NodeJS.Timeout
}

export class NodeClock implements Clock {
  readonly #bootTimeMs: () => number

  /** `bootTimeMs`: CLOCK_BOOTTIME in ms, of the native addon (process.hrtime is CLOCK_MONOTONIC, which stands still while the host sleeps). */
  constructor(bootTimeMs: () => number) {
    this.#bootTimeMs = bootTimeMs
  }

  nowMs(): number {
    return this.#bootTimeMs()
  }

  wallMs(): number {
    return Date.now()
  }

  setTimer(delayMs: number, fn: () => void): TimerId {
    const dueMs = this.nowMs() + Math.max(0, delayMs)
    const timer: Timer = { handle: undefined as unknown as NodeJS.Timeout }
    const wait = () => {
      const leftMs = dueMs - this.nowMs()
      // Node rounds to whole ms and may be early by a part of one
      if (leftMs <= 0) fn()
      else timer.handle = setTimeout(wait, Math.min(Math.ceil(leftMs), DELAY_MS_MAX))
    }
    timer.handle = setTimeout(wait, Math.min(Math.ceil(Math.max(0, delayMs)), DELAY_MS_MAX))
    return timer as unknown as TimerId
  }

  clearTimer(id: TimerId): void {
    clearTimeout((id as unknown as Timer).handle)
  }
}
