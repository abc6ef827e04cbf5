/** What a conformance suite needs of an implementation. The real one waits; the simulated one makes its virtual clock run. */
export interface Fixture<T> {
  /** Another participant of the same network, with an address of its own. Closed by `close`. */
  create(): Promise<{ readonly subject: T; readonly host: string }>
  /** Lets the world go on until the promise has settled. */
  run<R>(promise: Promise<R>): Promise<R>
  close(): Promise<void>
}

export type MakeFixture<T> = () => Promise<Fixture<T>>
