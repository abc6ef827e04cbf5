/** Boot-time clock and timers. */
import type { Clock, TimerId } from '../control.ts'

/** Longest delay setTimeout takes; longer ones are waited for in pieces. */
const DELAY_MS_MAX = 0x7fffffff

/**
 * Node's timers count in whole ms from a time that is rounded down, so they may be early by a part of one; a longer delay gets that much more at
 * once, as each wake-up of an idle process costs more than what it does. Short ones (a campaign's rank) are waited for exactly.
 */
const EXACT_MS_MAX = 40

interface Timer {
  handle: NodeJS.Timeout
}

export class NodeClock implements Clock {
  readonly #bootTimeMs: () => number
  #latestMs = 0

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
      if (-leftMs > this.#latestMs) this.#latestMs = -leftMs
      if (leftMs <= 0) fn()
      else timer.handle = setTimeout(wait, Math.min(Math.ceil(leftMs), DELAY_MS_MAX))
    }
    const firstMs = Math.ceil(Math.max(0, delayMs)) + (delayMs > EXACT_MS_MAX ? 1 : 0)
    timer.handle = setTimeout(wait, Math.min(firstMs, DELAY_MS_MAX))
    return timer as unknown as TimerId
  }

  /** How late a timer fired at most since the last call, ms: what held the thread. */
  takeLatestMs(): number {
    const latestMs = this.#latestMs
    this.#latestMs = 0
    return latestMs
  }

  clearTimer(id: TimerId): void {
    clearTimeout((id as unknown as Timer).handle)
  }
}
