/**
 * Work that many ask for: one run at a time. Whoever asks while it runs gets one more run after it, shared by all that have asked meanwhile; so a run
 * always begins after it was asked for, and however often it is asked for, at most one waits.
 */
export class OneAtATime {
  readonly #run: () => Promise<void>
  #isRunning = false
  #isAsked = false
  #isStopped = false

  /** `run` rejects for nothing but our own bugs: nobody waits for it. */
  constructor(run: () => Promise<void>) {
    this.#run = run
  }

  ask(): void {
    this.#isAsked = true
    if (this.#isRunning || this.#isStopped) return
    this.#isRunning = true
    void this.#runWhileAsked()
  }

  /** No run begins any more; one under way ends by itself. */
  stop(): void {
    this.#isStopped = true
  }

  async #runWhileAsked(): Promise<void> {
    // all that asks in one turn is one run
    await undefined
    while (this.#isAsked && !this.#isStopped) {
      this.#isAsked = false
      await this.#run()
    }
    this.#isRunning = false
  }
}
