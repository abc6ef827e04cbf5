/** Our own mistakes. On in production: a wrong byte on disk costs more than a stopped process (the process is the failure unit). */

export class AssertionError extends Error {
  override name = 'AssertionError'
}

export function assert(condition: boolean, message: string): asserts condition {
  if (!condition) throw new AssertionError(message)
}

/** For the `default` of a switch over a closed set. */
export function unreachable(value: never): never {
  throw new AssertionError(`unreachable: ${String(value)}`)
}
