/**
 * Holds the calls of resync (digests, list, block) at two points, so that a schedule decides when the source answers and when the answer
 * arrives. Planted in `Calls` for the processes that are started while a gate is open; everything else is left alone.
 */
import { Status } from '../../../src/base/status.ts'
import { answerOf, type CallAnswer, type CallHandler, type CallResult, Calls } from '../../../src/chain/calls.ts'
import { CallKind } from '../../../src/wire/peer.ts'

/** One call between its question and the arrival of its answer. */
export interface HeldCall {
  readonly caller: object
  readonly kind: number
  readonly args: Uint8Array
  /** Index of the asked peer at the caller. */
  readonly peer: number
  stage: 'asked' | 'answering' | 'answered' | 'over'
  /** Lets the source answer, to the question as given here; null: it refuses, as one that knows another version does. */
  serve: ((args: Uint8Array | null) => void) | undefined
  /** Lets the answer arrive; false: it is lost with its connection. */
  arrive: ((arrives: boolean) => void) | undefined
}

const HELD_KINDS: ReadonlySet<number> = new Set([CallKind.DIGESTS, CallKind.LIST_BLOCKS, CallKind.BLOCK])

export class CallsGate {
  readonly held = new Set<HeldCall>()
  readonly #owners = new Map<Calls, object>()
  /** Whose peer with that index is `caller`, at `owner`: whether the call comes from him. */
  readonly isFrom: (owner: object, peerAtOwner: number, call: HeldCall) => boolean
  /** A promise was settled. */
  readonly settled: () => void
  #starting: object | undefined
  readonly #undo: () => void

  constructor(options: { isFrom: CallsGate['isFrom']; settled: () => void }) {
    this.isFrom = options.isFrom
    this.settled = options.settled
    const { serve, call } = Calls.prototype
    const gate = this
    Calls.prototype.serve = function (this: Calls, kind: number, handler: CallHandler): void {
      if (gate.#starting !== undefined) gate.#owners.set(this, gate.#starting)
      const owner = gate.#owners.get(this)
      const isHeld = owner !== undefined && HELD_KINDS.has(kind)
      serve.call(this, kind, isHeld ? (peer, args, capacity) => gate.#serve(owner, kind, peer, args, (given) => handler(peer, given, capacity)) : handler)
    }
    Calls.prototype.call = function (this: Calls, peer: number, kind: number, args: Uint8Array, page: number, capacityBytes: number): Promise<CallResult> {
      const owner = gate.#owners.get(this)
      const ask = () => call.call(this, peer, kind, args, page, capacityBytes)
      return owner !== undefined && HELD_KINDS.has(kind) ? gate.#call(owner, peer, kind, args, ask) : ask()
    }
    this.#undo = () => {
      Calls.prototype.serve = serve
      Calls.prototype.call = call
    }
  }

  close(): void {
    this.#undo()
  }

  /** The process has ended: nothing of it goes on. */
  forget(owner: object): void {
    for (const call of this.held) if (call.caller === owner) this.held.delete(call)
  }

  /** Calls of the process that `start` starts are held, in the name of `owner`. */
  during(owner: object, start: () => void): void {
    this.#starting = owner
    try {
      start()
    } finally {
      this.#starting = undefined
    }
  }

  async #call(caller: object, peer: number, kind: number, args: Uint8Array, ask: () => Promise<CallResult>): Promise<CallResult> {
    const held: HeldCall = { caller, kind, args: args.slice(), peer, stage: 'asked', serve: undefined, arrive: undefined }
    this.held.add(held)
    try {
      const result = await ask()
      if (result.status !== Status.SUCCESS) return result
      held.stage = 'answered'
      const arrives = await new Promise<boolean>((resolve) => {
        held.arrive = (value) => {
          this.settled()
          resolve(value)
        }
      })
      return arrives ? result : { status: Status.CONNECTION_LOST, lengthBytes: 0 }
    } finally {
      held.stage = 'over'
      this.held.delete(held)
    }
  }

  async #serve(
    owner: object,
    kind: number,
    peer: number,
    args: Uint8Array,
    answer: (args: Uint8Array) => Promise<CallAnswer> | CallAnswer,
  ): Promise<CallAnswer> {
    const isAsked = (call: HeldCall) => call.kind === kind && call.stage === 'asked' && call.serve === undefined && isSame(call.args, args)
    const held = [...this.held].find((call) => isAsked(call) && this.isFrom(owner, peer, call))
    if (held === undefined) return answerOf(Status.ROUTING_STALE)
    const given = await new Promise<Uint8Array | null>((resolve) => {
      held.serve = (value) => {
        held.stage = 'answering'
        this.settled()
        resolve(value)
      }
    })
    return given !== null ? answer(given) : answerOf(Status.ROUTING_STALE)
  }
}

function isSame(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i])
}
