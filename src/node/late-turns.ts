/** What to say of turns that took too long: the first at once, then one line a minute at most, unless it gets much worse. A busy host would fill the log. */

const QUIET_MS = 60_000
/** So many times the worst that was told is news. */
const MUCH_WORSE = 4

export interface LateTurnsLine {
  /** The longest since the line before. */
  readonly ms: number
  /** Looks that found one too long, since the line before. */
  readonly times: number
}

export class LateTurns {
  readonly #limitMs: number
  #toldAtMs = Number.NEGATIVE_INFINITY
  #toldMs = 0
  #worstMs = 0
  #times = 0

  constructor(limitMs: number) {
    this.#limitMs = limitMs
  }

  /** `longestMs`: of the turns since the last look. Returns what has to be said now. */
  look(nowMs: number, longestMs: number): LateTurnsLine | undefined {
    if (longestMs > this.#limitMs) {
      this.#times++
      this.#worstMs = Math.max(this.#worstMs, longestMs)
    }
    const isNews = nowMs - this.#toldAtMs >= QUIET_MS || this.#worstMs >= this.#toldMs * MUCH_WORSE
    if (this.#times === 0 || !isNews) return undefined
    const line = { ms: Math.round(this.#worstMs), times: this.#times }
    this.#toldAtMs = nowMs
    this.#toldMs = this.#worstMs
    this.#worstMs = 0
    this.#times = 0
    return line
  }
}
