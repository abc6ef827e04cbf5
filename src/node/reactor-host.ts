/**
 * The main thread's side of a reactor: starts the worker, carries messages, watches that it turns.
 *
 * Invariant: the process is the failure unit. When the worker dies, `onFatal` is called once and nothing is repaired.
 */
import { Worker } from 'node:worker_threads'
import { XsanError } from '../base/errors.ts'
import { FlightEvent } from '../base/flight.ts'
import { loadAddon } from '../env/native/addon.ts'
import { REACTOR_COUNTERS_BYTES, ReactorCounter } from '../env/node/reactor-loop.ts'
import type { ControlPort, ControlToReactor, ReactorToControl } from '../placement/messages.ts'
import type { FlightRecorders } from './flight-file.ts'
import { MESSAGE_TYPES, type Posted, type ReactorConfig, type ReactorMessage, type ReactorStart } from './reactor-messages.ts'

/** A reactor that has not turned for this long is stuck (a turn waits 100 ms at most): no lease for this node. */
const STUCK_MS = 700

export interface ReactorHost {
  readonly port: ControlPort
  /** Turned lately? */
  turning(): boolean
  /** Ends the worker, after it has said `stopped`. */
  end(): Promise<void>
}

export interface ReactorHostOptions {
  readonly config: ReactorConfig
  readonly flight: FlightRecorders
  /** Boot-time clock. */
  readonly nowMs: () => number
  /** Every message of the reactor, before the control plane sees it. */
  readonly onMessage?: (message: ReactorToControl) => void
  readonly onFatal: (error: unknown) => void
}

/** Resolves once the worker runs its io queue; `ready` comes through the port when everything is mounted. */
export async function startReactor(options: ReactorHostOptions): Promise<ReactorHost> {
  const { nowMs, flight } = options
  const shared = new SharedArrayBuffer(REACTOR_COUNTERS_BYTES)
  const counters = new Int32Array(shared)
  const recorder = flight.addThread('reactor-0')
  const workerData: ReactorStart = { config: options.config, counters: shared, flight: recorder.memory }
  const worker = new Worker(new URL('./reactor.ts', import.meta.url), { workerData, name: 'reactor-0' })
  const started = Promise.withResolvers<number>()
  let handler: ((message: ReactorToControl) => void) | undefined
  const early: ReactorToControl[] = []
  let ending = false
  let failed = false

  const fail = (error: unknown): void => {
    started.reject(error)
    if (failed) return
    failed = true
    options.onFatal(error)
  }
  const deliver = (message: Exclude<ReactorMessage, { type: 'running' | 'tags' }>): void => {
    if (message.type === 'failed') fail(new XsanError('status' in message ? (message.status ?? 'INTERNAL') : 'INTERNAL', message.message, message.nextStep))
    options.onMessage?.(message)
    if (handler) handler(message)
    else early.push(message)
  }
  worker.on('message', (message: ReactorMessage) => {
    flight.record(FlightEvent.MESSAGE_IN, MESSAGE_TYPES.indexOf(message.type))
    if (message.type === 'running') started.resolve(message.wakeId)
    else if (message.type === 'tags') recorder.setTags(message.tags)
    else deliver(message)
  })
  worker.on('error', (error) => fail(error))
  worker.on('exit', (code) => {
    if (!ending) fail(new XsanError('INTERNAL', `the reactor ended with code ${code}`, 'Look at the lines before this one.'))
  })

  const wakeId = await started.promise
  const addon = loadAddon()
  let seenTurns = Atomics.load(counters, ReactorCounter.TURNS)
  let seenMs = nowMs()
  return {
    port: {
      send(message: ControlToReactor) {
        flight.record(FlightEvent.MESSAGE_OUT, MESSAGE_TYPES.indexOf(message.type))
        worker.postMessage({ atMs: nowMs(), message } satisfies Posted)
        addon.wakeQueue(wakeId)
      },
      onMessage(next) {
        handler = next
        for (const message of early.splice(0)) next(message)
      },
    },
    turning() {
      const turns = Atomics.load(counters, ReactorCounter.TURNS)
      const now = nowMs()
      if (turns !== seenTurns) {
        seenTurns = turns
        seenMs = now
      }
      return now - seenMs < STUCK_MS
    },
    async end() {
      ending = true
      await worker.terminate()
    },
  }
}
