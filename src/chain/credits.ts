/**
 * Flow between reactors: credits per (peer, hop number), granted by the receiver, in rows and bytes.
 *
 * Hop k is the receiver's position in the chain; hop 0 are clients' updates. A record of hop k holds its credit until it is committed here,
 * for which it waits at most for hop k + 1, the tail only for its disk: no ring of heads can wait for itself. Counts are cumulative within a
 * session of a peer, so that a lost or doubled grant cannot be; a new session grants what is not still held from earlier ones.
 */
import { assert } from '../base/assert.ts'
import { CHAIN_OP_BYTES_MAX } from '../base/units.ts'

/** Longest way of a record: positions in the write path of a chain. */
export const HOPS = 8
/** Positions that chains normally have: they get the full grant, later ones the smallest that works. */
const USUAL_HOPS = 4
const LATER_ROWS = 16

/** What the smallest grants to one peer add up to. */
export const SMALLEST_PEER_BYTES = HOPS * CHAIN_OP_BYTES_MAX

export interface CreditLimits {
  readonly rows: number
  /** At least CHAIN_OP_BYTES_MAX, so that any record fits. */
  readonly bytes: number
}

export class Credits {
  #limits: CreditLimits
  // as sender
  readonly #taken: Float64Array
  readonly #takenBytes: Float64Array
  readonly #granted: Float64Array
  readonly #grantedBytes: Float64Array
  // as receiver
  readonly #held: Float64Array
  readonly #heldBytes: Float64Array
  #heldRows = 0
  readonly #received: Float64Array
  readonly #receivedBytes: Float64Array
  readonly #grant: Float64Array
  readonly #grantBytes: Float64Array
  readonly #told: Float64Array
  readonly #toldBytes: Float64Array

  constructor(peersMax: number, limits: CreditLimits) {
    assert(limits.rows >= 1 && limits.bytes >= CHAIN_OP_BYTES_MAX, `credits of ${limits.rows} rows, ${limits.bytes} bytes`)
    this.#limits = limits
    const column = () => new Float64Array(peersMax * HOPS)
    this.#taken = column()
    this.#takenBytes = column()
    this.#granted = column()
    this.#grantedBytes = column()
    this.#held = column()
    this.#heldBytes = column()
    this.#received = column()
    this.#receivedBytes = column()
    this.#grant = column()
    this.#grantBytes = column()
    this.#told = column()
    this.#toldBytes = column()
  }

  /**
   * The limits under which all grants to that many peers together fit into `rows` and `bytes` (as long as these are enough for the
   * smallest grants). What was granted before is not taken back; it is not granted anew.
   */
  share(peers: number, most: CreditLimits, rows: number, bytes: number): void {
    const later = HOPS - USUAL_HOPS
    const each = Math.max(1, peers)
    this.#limits = {
      rows: Math.max(1, Math.min(most.rows, Math.floor((rows / each - later * LATER_ROWS) / USUAL_HOPS))),
      bytes: Math.max(CHAIN_OP_BYTES_MAX, Math.min(most.bytes, Math.floor((bytes / each - later * CHAIN_OP_BYTES_MAX) / USUAL_HOPS))),
    }
  }

  // ---- sender --------------------------------------------------------------------------------------------------------

  take(peer: number, hop: number, bytes: number): boolean {
    const i = peer * HOPS + hop
    if (this.#taken[i]! >= this.#granted[i]! || this.#takenBytes[i]! + bytes > this.#grantedBytes[i]!) return false
    this.#taken[i]!++
    this.#takenBytes[i]! += bytes
    return true
  }

  /** Whether that much has been granted and not been taken. */
  hasLeft(peer: number, hop: number, rows: number, bytes: number): boolean {
    const i = peer * HOPS + hop
    return this.#granted[i]! - this.#taken[i]! >= rows && this.#grantedBytes[i]! - this.#takenBytes[i]! >= bytes
  }

  /** Nothing was sent after all. */
  giveBack(peer: number, hop: number, bytes: number): void {
    const i = peer * HOPS + hop
    this.#taken[i]!--
    this.#takenBytes[i]! -= bytes
  }

  /** A grant from the peer. */
  granted(peer: number, hop: number, rows: number, bytes: number): void {
    const i = peer * HOPS + hop
    if (rows > this.#granted[i]!) this.#granted[i] = rows
    if (bytes > this.#grantedBytes[i]!) this.#grantedBytes[i] = bytes
  }

  // ---- receiver ------------------------------------------------------------------------------------------------------

  /** A message that needs credit has arrived; false: the peer had none. */
  receive(peer: number, hop: number, bytes: number): boolean {
    const i = peer * HOPS + hop
    if (this.#received[i]! >= this.#told[i]! || this.#receivedBytes[i]! + bytes > this.#toldBytes[i]!) return false
    this.#received[i]!++
    this.#receivedBytes[i]! += bytes
    this.#held[i]!++
    this.#heldRows++
    this.#heldBytes[i]! += bytes
    return true
  }

  /** The row of a message that came from the peer (in any session) is free again. Returns whether the peer should be told now. */
  release(peer: number, hop: number, bytes: number): boolean {
    const i = peer * HOPS + hop
    this.#held[i]!--
    this.#heldRows--
    this.#heldBytes[i]! -= bytes
    this.#grant[i] = Math.max(this.#grant[i]!, this.#received[i]! + rowsOf(this.#limits, hop) - this.#held[i]!)
    this.#grantBytes[i] = Math.max(this.#grantBytes[i]!, this.#receivedBytes[i]! + bytesOf(this.#limits, hop) - this.#heldBytes[i]!)
    return this.isDue(peer, hop)
  }

  /** Whether the peer has less than half left, and there is more to tell. */
  isDue(peer: number, hop: number): boolean {
    const i = peer * HOPS + hop
    if (this.#grant[i] === this.#told[i] && this.#grantBytes[i] === this.#toldBytes[i]) return false
    const rowsLeft = this.#told[i]! - this.#received[i]!
    const bytesLeft = this.#toldBytes[i]! - this.#receivedBytes[i]!
    return rowsLeft * 2 <= rowsOf(this.#limits, hop) || bytesLeft < Math.max(CHAIN_OP_BYTES_MAX, bytesOf(this.#limits, hop) / 2)
  }

  /** A new session with the peer: nothing sent, nothing received, everything granted that is not held from before. */
  start(peer: number): void {
    for (let hop = 0; hop < HOPS; hop++) {
      const i = peer * HOPS + hop
      this.#taken[i] = this.#takenBytes[i] = this.#granted[i] = this.#grantedBytes[i] = 0
      this.#received[i] = this.#receivedBytes[i] = this.#told[i] = this.#toldBytes[i] = 0
      this.#grant[i] = Math.max(0, rowsOf(this.#limits, hop) - this.#held[i]!)
      this.#grantBytes[i] = Math.max(0, bytesOf(this.#limits, hop) - this.#heldBytes[i]!)
    }
  }

  grantRows(peer: number, hop: number): number {
    return this.#grant[peer * HOPS + hop]!
  }

  grantBytes(peer: number, hop: number): number {
    return this.#grantBytes[peer * HOPS + hop]!
  }

  /** The grant of (peer, hop) as it is now is on its way to the peer. */
  tell(peer: number, hop: number): void {
    const i = peer * HOPS + hop
    this.#told[i] = this.#grant[i]!
    this.#toldBytes[i] = this.#grantBytes[i]!
  }

  /** Rows held here on behalf of all peers. */
  get heldRows(): number {
    return this.#heldRows
  }
}

function rowsOf(limits: CreditLimits, hop: number): number {
  return hop < USUAL_HOPS ? limits.rows : Math.min(limits.rows, LATER_ROWS)
}
function bytesOf(limits: CreditLimits, hop: number): number {
  return hop < USUAL_HOPS ? limits.bytes : CHAIN_OP_BYTES_MAX
}
