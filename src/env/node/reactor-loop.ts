/**
 * The loop of a reactor: turn after turn inside one macrotask, so that the event loop of Node costs nothing per turn, and back
 * to the event loop (through setImmediate, about 1 us) when something there may wait:
 * - `queue.asyncPending`: a completion handler settled a promise, or the wake handler asks for messages to be read;
 * - a turn without completions: nothing is lost by looking;
 * - 20 ms of work without a look, so that timers and messages of this thread are late by at most that under load
 *   (and by at most one idle turn, 100 ms, at rest: wake the queue to be quicker).
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
  /** Written by the reactor's thread; another thread that sees TURNS stand still for longer than a few TURN_WAIT_MS sees a stuck reactor. */
  readonly counters: Int32Array
  /** Resolves after the last turn. */
  stop(): Promise<void>
}

/** Starts from the next macrotask. `counters`: shared memory made by the thread that watches, REACTOR_COUNTERS_BYTES long. */
export function runReactor(queue: IoQueue, options: { counters?: SharedArrayBuffer } = {}): ReactorLoop {
  const counters = new Int32Array(options.counters ?? new SharedArrayBuffer(REACTOR_COUNTERS_BYTES))
  const stopped = Promise.withResolvers<void>()
  let stopping = false

  const run = (): void => {
    const lookAtMs = queue.sampleClockMs() + LOOK_EVERY_MS
    do {
      if (stopping) {
        stopped.resolve()
        return
      }
      const count = queue.turn(TURN_WAIT_MS)
      Atomics.add(counters, ReactorCounter.TURNS, 1)
      if (count === 0) break
      Atomics.add(counters, ReactorCounter.COMPLETIONS, count)
    } while (!queue.asyncPending && queue.nowMs < lookAtMs)
    queue.asyncPending = false
    Atomics.add(counters, ReactorCounter.EVENT_LOOP_RETURNS, 1)
    setImmediate(run)
  }
  setImmediate(run)

  return {
    counters,
    stop() {
      stopping = true
      return stopped.promise
    },
  }
}
