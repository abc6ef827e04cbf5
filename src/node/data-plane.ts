/**
 * The main thread's side of a reactor: starts its thread, carries the control messages, watches that it turns.
 *
 * Invariant: a thread that ends, for whatever reason, ends the process (`onDeath`); nothing is restarted inside a process.
 */
import { MessageChannel, Worker } from 'node:worker_threads'
import { loadAddon } from '../env/native/addon.ts'
import { REACTOR_COUNTERS_BYTES, ReactorCounter } from '../env/node/reactor-loop.ts'
import type { ControlPort, ControlToReactor, ReactorToControl } from '../placement/messages.ts'
import type { ReactorStart, ReactorUp } from './reactor-start.ts'

/** A reactor that has not turned for this long is stuck: it turns at least every 100 ms when healthy. */
const STUCK_MS = 700

export interface DataPlaneThreadOptions {
  readonly start: Omit<ReactorStart, 'counters' | 'port'>
  /** Boot-time clock, ms. */
  readonly nowMs: () => number
  readonly onDeath: (error: Error) => void
}

export class DataPlaneThread {
  readonly port: ControlPort
  readonly #worker: Worker
  readonly #counters: Int32Array
  readonly #nowMs: () => number
  readonly #waiting: ControlToReactor[] = []
  readonly #handlers: Array<(message: ReactorToControl) => void> = []
  readonly #early: ReactorToControl[] = []
  #wakeId = -1
  #ended = false
  #lastTurns = -1
  #lastTurnMs: number

  constructor(options: DataPlaneThreadOptions) {
    const { port1, port2 } = new MessageChannel()
    const shared = new SharedArrayBuffer(REACTOR_COUNTERS_BYTES)
    this.#counters = new Int32Array(shared)
    this.#nowMs = options.nowMs
    this.#lastTurnMs = options.nowMs()
    this.#worker = new Worker(new URL('./reactor.ts', import.meta.url), {
      workerData: { ...options.start, counters: shared, port: port2 } satisfies ReactorStart,
      transferList: [port2],
      execArgv: ['--disable-warning=ExperimentalWarning', '--expose-gc'],
    })
    this.#worker.on('error', (error) => options.onDeath(error instanceof Error ? error : new Error(String(error))))
    this.#worker.on('exit', (code) => {
      if (!this.#ended) options.onDeath(new Error(`the reactor's thread ended with code ${code}`))
    })
    port1.on('message', (message: ReactorUp | ReactorToControl) => {
      if ('wakeId' in message) {
        this.#wakeId = message.wakeId
        for (const early of this.#waiting.splice(0)) port1.postMessage(early)
        loadAddon().wakeQueue(this.#wakeId)
      } else if (this.#handlers.length === 0) this.#early.push(message)
      else for (const handler of this.#handlers) handler(message)
    })
    this.port = {
      send: (message) => {
        if (this.#wakeId < 0) {
          this.#waiting.push(message)
          return
        }
        port1.postMessage(message)
        loadAddon().wakeQueue(this.#wakeId)
      },
      onMessage: (handler) => {
        this.#handlers.push(handler)
        for (const message of this.#early.splice(0)) handler(message)
      },
    }
  }

  /** Has it turned lately? Call it at least every few hundred ms. */
  get isTurning(): boolean {
    const turns = Atomics.load(this.#counters, ReactorCounter.TURNS)
    if (turns !== this.#lastTurns) {
      this.#lastTurns = turns
      this.#lastTurnMs = this.#nowMs()
    }
    return this.#nowMs() - this.#lastTurnMs < STUCK_MS
  }

  /** Ends the thread, after the reactor has said `stopped`. */
  async end(): Promise<void> {
    this.#ended = true
    await this.#worker.terminate()
  }
}
