/**
 * What the service manager is told (sd_notify(3), a unit of Type=notify): READY, STATUS, WATCHDOG, STOPPING. Without NOTIFY_SOCKET: nothing.
 *
 * READY is said when the node answers calls: a node that waits for others, or belongs to no cluster yet, has started all the same. Whether it
 * serves is in STATUS, and in /readyz. The watchdog is fed by the main thread, and only while the reactor turns, so that a process in which either is
 * stuck is ended and started again.
 */
import type { Log } from '../env/control.ts'

/** Fed so often within WATCHDOG_USEC (the manual's advice: half of it). */
const FEEDS_PER_TIMEOUT = 3
const STATUS_EVERY_MS = 1000

export interface ServiceManagerOptions {
  readonly env: Readonly<Record<string, string | undefined>>
  readonly pid: number
  readonly send: (socket: string, message: string) => void
  readonly log: Log
  /** Main thread and reactor are well. */
  readonly isAlive: () => boolean
  /** One line for `systemctl status`. */
  readonly status: () => string
}

export class ServiceManager {
  readonly #options: ServiceManagerOptions
  readonly #socket: string
  #timers: NodeJS.Timeout[] = []
  #status = ''
  #failed = false

  constructor(options: ServiceManagerOptions) {
    this.#options = options
    this.#socket = options.env['NOTIFY_SOCKET'] ?? ''
  }

  ready(): void {
    if (this.#socket === '') return
    const { env, pid, isAlive, status } = this.#options
    this.#status = status()
    this.#send(`READY=1\nSTATUS=${oneLine(this.#status)}\nMAINPID=${pid}`)
    this.#timers.push(setInterval(() => this.#sendStatus(), STATUS_EVERY_MS))
    const watchdogUs = Number(env['WATCHDOG_USEC'] ?? 0)
    const isOurs = env['WATCHDOG_PID'] === undefined || Number(env['WATCHDOG_PID']) === pid
    if (watchdogUs > 0 && isOurs)
      this.#timers.push(
        setInterval(
          () => {
            if (isAlive()) this.#send('WATCHDOG=1')
          },
          watchdogUs / 1000 / FEEDS_PER_TIMEOUT,
        ),
      )
    for (const timer of this.#timers) timer.unref()
  }

  /** The watchdog is fed on: stopping may take its time. */
  stopping(): void {
    if (this.#socket !== '') this.#send('STOPPING=1\nSTATUS=stopping')
  }

  end(): void {
    for (const timer of this.#timers.splice(0)) clearInterval(timer)
  }

  #sendStatus(): void {
    const status = this.#options.status()
    if (status === this.#status) return
    this.#status = status
    this.#send(`STATUS=${oneLine(status)}`)
  }

  /** Best effort, said once when it fails. */
  #send(message: string): void {
    try {
      this.#options.send(this.#socket, message)
    } catch (error) {
      if (this.#failed) return
      this.#failed = true
      this.#options.log.log('WARN', 'the service manager cannot be told', { error })
    }
  }
}

const oneLine = (text: string) => text.replace(/\n/g, ' ')
