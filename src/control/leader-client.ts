/**
 * Calls to whoever leads: here when this node does, else over the network; again with the next leader when one goes away.
 * Every request is harmless when repeated (it carries an id, or states a fact).
 */
import { messageOf, XsanError } from '../base/errors.ts'
import type { NodeNumber } from '../base/ids.ts'
import type { Clock, Message } from '../env/control.ts'

/** The first try; a frozen leader must not cost the whole budget. Each that ends without an answer makes the next twice as long: the leader may wait for others. */
const TRY_MS = 1500
const RETRY_DELAY_MS = 50
/** What another try may cure. */
const RETRIED: ReadonlySet<string> = new Set(['NOT_LEADER', 'NODE_UNREACHABLE', 'NETWORK_TIMEOUT', 'CONSENSUS_FAILED', 'STOPPING'])

export interface LeaderClientOptions {
  readonly clock: Clock
  readonly self: NodeNumber
  /** 0 = none known. */
  readonly leader: () => NodeNumber
  readonly local: (method: string, request: Message, timeoutMs: number) => Promise<Message>
  /** To the Peer service of a node, signed. */
  readonly remote: (node: NodeNumber, method: string, request: Message, timeoutMs: number) => Promise<Message>
}

export class LeaderClient {
  readonly #options: LeaderClientOptions
  readonly #waiting = new Set<() => void>()
  #stopped = false

  constructor(options: LeaderClientOptions) {
    this.#options = options
  }

  /** Tries under way at an earlier leader are given up, waits end. */
  onLeaderChange(): void {
    for (const wake of [...this.#waiting]) wake()
  }

  stop(): void {
    this.#stopped = true
    this.onLeaderChange()
  }

  /** `once`: one try at the present leader. `what`: the call in the words of who asks. Rejects with the leader's own error (CONSENSUS_FAILED only when it was the last), or CLUSTER_NOT_READY when none answered in time. */
  async call(method: string, request: Message, options: { readonly timeoutMs: number; readonly once?: boolean; readonly what?: string }): Promise<Message> {
    const { clock, self } = this.#options
    const endMs = clock.nowMs() + options.timeoutMs
    let last: unknown
    /** A try ended without an answer. */
    let isUnknown = false
    let tryMs = TRY_MS
    for (;;) {
      if (this.#stopped) throw new XsanError('STOPPING', 'this node is stopping', 'Ask another node.')
      const leftMs = endMs - clock.nowMs()
      if (leftMs <= 0) {
        if (last instanceof XsanError && last.status === 'CONSENSUS_FAILED') throw last
        throw new XsanError(
          'CLUSTER_NOT_READY',
          `no leader answered ${options.what ?? method} within ${Math.round(options.timeoutMs)} ms${last === undefined ? '' : `: ${messageOf(last)}`}${isUnknown ? '; a change that was asked for may take effect yet' : ''}`,
          'A majority of the voting nodes must run and reach each other; see `xsan cluster status` on each.',
        )
      }
      const leader = this.#options.leader()
      if (leader !== 0) {
        try {
          if (leader === self) {
            const answer = this.#options.local(method, request, leftMs)
            return await (options.once ? answer : this.#within(answer, leftMs))
          }
          return await this.#orLeaderChange(this.#options.remote(leader, method, request, Math.min(leftMs, tryMs)), leader)
        } catch (error) {
          if (!(error instanceof XsanError) || !RETRIED.has(error.status)) throw error
          last = error
          if (error.status === 'NETWORK_TIMEOUT' || error.status === 'CONSENSUS_FAILED') isUnknown = true
          tryMs = error.status === 'NETWORK_TIMEOUT' && this.#options.leader() === leader ? 2 * tryMs : TRY_MS
        }
      }
      if (options.once) throw last ?? new XsanError('NOT_LEADER', 'no leader is known', 'Try again: one is being elected.')
      if (this.#options.leader() === leader) await this.#pause(Math.min(RETRY_DELAY_MS, leftMs))
    }
  }

  /** This node may take itself for the leader until it notices that nobody answers it: its own answer is waited for no longer than another's. */
  #within(answer: Promise<Message>, timeoutMs: number): Promise<Message> {
    return new Promise((resolve, reject) => {
      const timer = this.#options.clock.setTimer(timeoutMs, () => {
        reject(new XsanError('NETWORK_TIMEOUT', `no answer of the other voters within ${Math.round(timeoutMs)} ms`))
      })
      answer.finally(() => this.#options.clock.clearTimer(timer)).then(resolve, reject)
    })
  }

  /** Waits; less when the leader changes. */
  #pause(delayMs: number): Promise<void> {
    return new Promise((resolve) => {
      const wake = () => {
        this.#options.clock.clearTimer(timer)
        this.#waiting.delete(wake)
        resolve()
      }
      const timer = this.#options.clock.setTimer(delayMs, wake)
      this.#waiting.add(wake)
    })
  }

  #orLeaderChange(answer: Promise<Message>, leader: NodeNumber): Promise<Message> {
    return new Promise((resolve, reject) => {
      const wake = () => {
        if (!this.#stopped && this.#options.leader() === leader) return
        this.#waiting.delete(wake)
        reject(new XsanError('NOT_LEADER', 'the leader changed'))
      }
      this.#waiting.add(wake)
      const done = () => this.#waiting.delete(wake)
      answer.then(
        (value) => {
          done()
          resolve(value)
        },
        (error: unknown) => {
          done()
          reject(error)
        },
      )
    })
  }
}
