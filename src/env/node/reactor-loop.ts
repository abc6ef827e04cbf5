/**
 * The loop of a reactor: turn after turn inside one macrotask, so that the event loop of Node costs nothing per turn, and back
 * to the event loop (through setImmediate, about 1 us) when something there may wait:
 * - `queue.asyncPending`: a completion handler settled a promise, or the wake handler asks for messages to be read;
 * - a turn without completions: nothing is lost by looking;
 * - 20 ms of work without a look.
 * So timers of Node are late by at most 20 ms under load. At rest the waits after asyncPending begin at 1 ms and double to 100 ms,
 * so that a timer that async code has just set is late by no more than its own length, and a message of another thread by at most
 * 100 ms (wake the queue after posting it, and it comes at once).
 *
 * An error thrown by a handler leaves the loop as an uncaught exception: on a worker the worker dies and the main thread sees
 * 'error'; the process is the failure unit.
 */

import type { IoQueue } from '../ioqueue.ts'

/** Longest wait of one turn: the beat that the main thread watches. */
export const TURN_WAIT_MS = 100
const LOOK_EVERY_MS = 20

/** Index of each counter (int32, wraps) in {@link ReactorLoop.counters}. */
export const ReactorCounter = { TURNS: 0, COMPLETIONS: 1, EVENT_LOOP_RETURNS: 2 } as const
export const REACTOR_COUNTERS_BYTES = 64

export interface ReactorLoop {
  /** Written by the reactor's thread alone (so that plain additions do: the atomic ones are calls); another thread that sees TURNS stand still for longer than a few TURN_WAIT_MS sees a stuck reactor. */
  readonly counters: Int32Array
  /** How long a turn that found nothing polls before it sleeps, us. */
  spinUs: number
  /** Resolves after the last turn. */
  stop(): Promise<void>
}

/** Starts from the next macrotask. `counters`: shared memory made by the thread that watches, REACTOR_COUNTERS_BYTES long. */
export function runReactor(queue: IoQueue, options: { counters?: SharedArrayBuffer; spinUs?: number } = {}): ReactorLoop {
  const counters = new Int32Array(options.counters ?? new SharedArrayBuffer(REACTOR_COUNTERS_BYTES))
  const stopped = Promise.withResolvers<void>()
  let stopping = false
  let waitMs = TURN_WAIT_MS

  const run = (): void => {
    const lookAtMs = queue.sampleClockMs() + LOOK_EVERY_MS
    do {
      if (stopping) {
        stopped.resolve()
        return
      }
      const count = loop.spinUs > 0 ? spinTurn(queue, loop.spinUs, waitMs) : queue.turn(waitMs)
      counters[ReactorCounter.TURNS]!++
      if (count === 0) {
        waitMs = Math.min(2 * waitMs, TURN_WAIT_MS)
        break
      }
      counters[ReactorCounter.COMPLETIONS]! += count
    } while (!queue.asyncPending && queue.nowMs < lookAtMs)
    if (queue.asyncPending) waitMs = 1
    queue.asyncPending = false
    counters[ReactorCounter.EVENT_LOOP_RETURNS]!++
    setImmediate(run)
  }
  const loop: ReactorLoop = {
    counters,
    spinUs: options.spinUs ?? 0,
    stop() {
      stopping = true
      return stopped.promise
    },
  }
  setImmediate(run)
  return loop
}

/** Polls for so long, then waits as usual. */
function spinTurn(queue: IoQueue, spinUs: number, waitMs: number): number {
  const untilMs = queue.sampleClockMs() + spinUs / 1000
  do {
    const count = queue.turn(0)
    if (count !== 0 || queue.asyncPending) return count
  } while (queue.sampleClockMs() < untilMs)
  return queue.turn(waitMs)
}
