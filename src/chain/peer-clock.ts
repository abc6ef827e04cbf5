/**
 * What this node knows of another node's clock: how much it shows at least.
 *
 *   the other's clock     said s ---------- at least s + (t - h) * (1 - drift)
 *   this node's clock               heard h ---------- t
 *
 * However long a message was on its way, the other's clock had reached what it says when it came. Of all that came in a session the best bound counts, so one fast message
 * is enough. A moment of this clock, named so in the other's, is over there by the time it is over here: that holds without any guess about the way between the two.
 *
 * As with leases, no clock may drift by more than the bound, or stop (a guest whose clock stands still while it is paused). One that did shows less than is believed here;
 * then its node finds moments further ahead than anybody may name, and ends the session with what was believed in it.
 */
import { CLOCK_DRIFT_MAX } from '../base/units.ts'

/** The slower of two clocks goes at least so fast, in time of the faster one. */
const RATE_MIN = 1 - CLOCK_DRIFT_MAX

export class PeerClock {
  #saidMs = 0
  #heardMs = 0
  isKnown = false

  /** The session is another one: that of another process, perhaps after a restart of its host. */
  forget(): void {
    this.isKnown = false
  }

  /** The other's clock had reached `saidMs` when this node's clock showed `heardMs`. */
  learn(saidMs: number, heardMs: number): void {
    if (this.isKnown && saidMs <= this.atLeastMs(heardMs)) return
    this.#saidMs = saidMs
    this.#heardMs = heardMs
    this.isKnown = true
  }

  /** What the other's clock shows at least when this node's shows `ownMs`. */
  atLeastMs(ownMs: number): number {
    const sinceMs = ownMs - this.#heardMs
    return this.#saidMs + (sinceMs >= 0 ? sinceMs * RATE_MIN : sinceMs / RATE_MIN)
  }
}
