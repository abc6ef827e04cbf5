/**
 * Messages of the Raft core as one-way calls of Peer/RaftStep, in order per node; what comes while there is no room goes with the next one.
 * Best effort: what cannot be delivered is dropped (the core sends again) and the driver is told.
 */
import { messageOf } from '../base/errors.ts'
import type { NodeNumber } from '../base/ids.ts'
import type { Message } from '../env/control.ts'
import type { RaftTransport } from '../raft/driver.ts'

/** Messages that wait for one node; beyond it the oldest go. */
const QUEUE_MAX = 1024
/** Bytes of one call. */
const BATCH_BYTES_MAX = 4 * 1024 * 1024
const STEP_TIMEOUT_MS = 2000

interface Lane {
  queue: Uint8Array[]
  sending: boolean
}

export interface RaftTransportOptions {
  readonly step: (to: NodeNumber, request: Message, timeoutMs: number) => Promise<unknown>
  /** Called with what failed; not for messages to nodes whose address is unknown. */
  readonly onUnreachable: (node: NodeNumber, reason: string) => void
}

export class RpcRaftTransport implements RaftTransport {
  readonly #options: RaftTransportOptions
  readonly #lanes = new Map<NodeNumber, Lane>()
  #stopped = false

  constructor(options: RaftTransportOptions) {
    this.#options = options
  }

  send(to: NodeNumber, messages: readonly Uint8Array[]): void {
    if (this.#stopped) return
    let lane = this.#lanes.get(to)
    if (lane === undefined) {
      lane = { queue: [], sending: false }
      this.#lanes.set(to, lane)
    }
    lane.queue.push(...messages)
    if (lane.queue.length > QUEUE_MAX) lane.queue.splice(0, lane.queue.length - QUEUE_MAX)
    if (!lane.sending) void this.#pump(to, lane)
  }

  stop(): void {
    this.#stopped = true
    this.#lanes.clear()
  }

  async #pump(to: NodeNumber, lane: Lane): Promise<void> {
    lane.sending = true
    // never call back into the driver from inside its own send
    await undefined
    while (lane.queue.length > 0 && !this.#stopped) {
      let count = 0
      let bytes = 0
      while (count < lane.queue.length && (count === 0 || bytes + lane.queue[count]!.length <= BATCH_BYTES_MAX)) bytes += lane.queue[count++]!.length
      const messages = lane.queue.splice(0, count)
      try {
        await this.#options.step(to, { to, messages }, STEP_TIMEOUT_MS)
      } catch (error) {
        lane.queue.length = 0
        if (!this.#stopped) this.#options.onUnreachable(to, messageOf(error))
      }
    }
    lane.sending = false
  }
}
