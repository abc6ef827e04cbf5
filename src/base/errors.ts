/** The one error type of the control plane and the commands: code, name, cause and the next step. */
import { Status, type StatusCode, type StatusName } from './status.ts'

export class XsanError extends Error {
  override name = 'XsanError'
  readonly status: StatusName
  readonly code: StatusCode
  /** What the person who reads this can do; empty only where nothing can be said. */
  readonly nextStep: string

  constructor(status: StatusName, message: string, nextStep = '', options?: ErrorOptions) {
    super(message, options)
    this.status = status
    this.code = Status[status]
    this.nextStep = nextStep
  }
}

/** What a terminal would obey, and what is no character. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const UNPRINTABLE = /[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffd]/g

/** `error XSAN-202 INSUFFICIENT_SPACE: disk full. Try: ...` */
export function formatError(error: XsanError): string {
  const nextStep = error.nextStep ? ` Try: ${error.nextStep}` : ''
  const text = `error XSAN-${String(error.code).padStart(3, '0')} ${error.status}: ${error.message}${/[.!?]$/.test(error.message) ? '' : '.'}${nextStep}`
  return text.replace(UNPRINTABLE, '?')
}

/** Text of anything that was thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
