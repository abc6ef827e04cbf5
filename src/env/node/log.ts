/**
 * One JSON line per event on stderr:
 *   {"ts":"2026-01-31T12:00:00.000Z","level":"WARN","code":"XSAN-204","node":"node-1",...,"file":"src/x.ts:12","func":"f","msg":"..."}
 * `file` and `func` cost a stack trace, so they are taken at WARN and worse, and at every level once DEBUG is switched on.
 */
import { writeSync } from 'node:fs'
import { relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import pino from 'pino'
import { XsanError } from '../../base/errors.ts'
import { type Log, LogLevel, type LogLevelName } from '../control.ts'

const ROOT = fileURLToPath(new URL('../../..', import.meta.url))
const METHODS = { FATAL: 'fatal', ERROR: 'error', WARN: 'warn', INFO: 'info', DEBUG: 'debug', TRACE: 'trace' } as const

type Fields = Readonly<Record<string, unknown>>

export interface NodeLogOptions {
  readonly level: LogLevelName
  /** Fields of every line. */
  readonly fields?: Fields
  /** Gets each line with its newline; default: stderr, written at once so that nothing is lost when the process ends. */
  readonly write?: (line: string) => void
}

export class NodeLog implements Log {
  readonly #pino: pino.Logger
  readonly #shared: { level: LogLevelName }
  /** Fields that every line of this logger carries. */
  readonly #taken: ReadonlySet<string>

  constructor(options: NodeLogOptions, derived?: { pino: pino.Logger; shared: { level: LogLevelName }; taken: ReadonlySet<string> }) {
    this.#taken = derived?.taken ?? new Set(Object.keys(options.fields ?? {}))
    this.#shared = derived?.shared ?? { level: options.level }
    this.#pino =
      derived?.pino ??
      pino(
        {
          level: 'trace',
          base: options.fields ?? {},
          timestamp: () => `,"ts":"${new Date().toISOString()}"`,
          formatters: { level: (label) => ({ level: label.toUpperCase() }) },
        },
        { write: options.write ?? new LineWriter(2).write },
      )
  }

  get level(): LogLevelName {
    return this.#shared.level
  }

  /** Also of every logger made from this one. */
  set level(level: LogLevelName) {
    this.#shared.level = level
  }

  log(level: LogLevelName, message: string, fields: Fields = {}): void {
    const chosen = LogLevel[this.#shared.level]
    if (LogLevel[level] > chosen) return
    const place = LogLevel[level] <= LogLevel.WARN || chosen >= LogLevel.DEBUG ? placeOfCaller() : {}
    this.#pino[METHODS[level]]({ ...place, ...plain(fields, this.#taken) }, message)
  }

  child(fields: Fields): NodeLog {
    const own = plain(fields, this.#taken)
    return new NodeLog(
      { level: this.#shared.level },
      { pino: this.#pino.child(own), shared: this.#shared, taken: new Set([...this.#taken, ...Object.keys(own)]) },
    )
  }
}

/** Waits for the reader of a full pipe; then the line is lost, and others are, without a wait, until it reads again: the thread has leases to renew. */
const FULL_MS_MAX = 100

/**
 * Writes lines to a file descriptor at once. A log that cannot be written (a full disk, a reader that went away) must not end a storage node: such
 * lines are lost and counted, and the first one that gets through says how many.
 */
export class LineWriter {
  readonly #fd: number
  readonly #pause = new Int32Array(new SharedArrayBuffer(4))
  #lost = 0

  constructor(fd: number) {
    this.#fd = fd
  }

  readonly write = (line: string): void => {
    const lost = this.#lost
    const notice = lost > 0 ? `${JSON.stringify({ level: 'WARN', ts: new Date().toISOString(), msg: 'lines of the log were lost', lost })}\n` : ''
    if (this.#tryWrite(Buffer.from(notice + line))) this.#lost = 0
    else this.#lost = lost + 1
  }

  #tryWrite(bytes: Uint8Array): boolean {
    let at = 0
    for (let waitedMs = this.#lost > 0 ? FULL_MS_MAX : 0; at < bytes.length; ) {
      try {
        at += writeSync(this.#fd, bytes, at)
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EAGAIN' || waitedMs++ >= FULL_MS_MAX) return false
        Atomics.wait(this.#pause, 0, 0, 1)
      }
    }
    return true
  }
}

/**
 * Errors become text (with `code` for one of ours, with the stack for a bug); bytes become hex, at most 64 of them.
 * A name that the logger's lines carry already (`node`: who logs) becomes `about_...`.
 */
function plain(fields: Fields, taken: ReadonlySet<string>): Record<string, unknown> {
  const out: Record<string, unknown> = {}
  for (const [name, value] of Object.entries(fields)) {
    const key = taken.has(name) ? `about_${name}` : name
    if (value instanceof XsanError) {
      out['code'] ??= `XSAN-${String(value.code).padStart(3, '0')}`
      out[key] = `${value.status}: ${value.message}`
      if (value.nextStep) out['next_step'] = value.nextStep
      if (value.cause instanceof Error) out['cause'] = value.cause.message
    } else if (value instanceof Error) {
      out[key] = value.message
      out['stack'] = value.stack
    } else if (value instanceof Uint8Array) {
      out[key] = Buffer.from(value.subarray(0, 64)).toString('hex')
    } else {
      out[key] = value
    }
  }
  return out
}

/** Of the first frame outside this file. */
function placeOfCaller(): { file?: string; func?: string } {
  const holder: { stack?: string } = {}
  const limit = Error.stackTraceLimit
  Error.stackTraceLimit = 6
  Error.captureStackTrace(holder, placeOfCaller)
  Error.stackTraceLimit = limit
  for (const line of (holder.stack ?? '').split('\n').slice(1)) {
    const match = /^\s+at (?:(?:async )?(.+?) \()?(?:file:\/\/)?(.+?):(\d+):\d+\)?$/.exec(line)
    if (match?.[2] === undefined || match[2].endsWith('/env/node/log.ts')) continue
    const func = match[1]?.replace(/^Object\./, '')
    return { file: `${relative(ROOT, match[2])}:${match[3]}`, ...(func ? { func } : {}) }
  }
  return {}
}
