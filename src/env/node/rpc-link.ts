/**
 * Many small calls between two nodes over one long-lived gRPC stream (xsan.v1.Link): a gRPC call of its own costs both sides a new HTTP/2 stream
 * with its headers and objects, ten times the work of a message on an open one.
 *
 *   caller   { id, method, timeoutMs, body } ... gathered, one message per turn of the event loop ─────> handler
 *   caller <───── one message per turn, gathered { id, body | status, message, nextStep } ...           handler
 *
 * A call with the id 0 is one-way: it is not answered.
 *
 * Invariants:
 * - An id is answered at most once; an answer that comes after its call's deadline is dropped.
 * - When the stream ends, every call on it that waits is rejected; the next call opens a new stream.
 * - Bounded: calls under way per stream, on both sides; who does not read its answers is not read from.
 */
import {
  type Client,
  type ClientDuplexStream,
  status as GrpcStatus,
  Metadata,
  type MethodDefinition,
  type ServerDuplexStream,
  type ServiceError,
} from '@grpc/grpc-js'
import { assert } from '../../base/assert.ts'
import { XsanError } from '../../base/errors.ts'
import { Status, type StatusName } from '../../base/status.ts'
import { fromServiceError, knownError } from './grpc-errors.ts'

/** Calls that wait for their answer on one stream. */
export const LINK_CALLS_MAX = 1024
/** Larger requests go as calls of their own: nobody's lease shall wait behind a snapshot. */
export const LINK_BODY_BYTES_MAX = 64 * 1024

export interface LinkCall {
  readonly id: number
  readonly method: string
  readonly timeoutMs: number
  readonly body: Buffer
}
export interface LinkAnswer {
  readonly id: number
  readonly body: Buffer
  /** Of the error; '' = none. */
  readonly status: string
  readonly message: string
  readonly nextStep: string
}
export interface LinkCalls {
  readonly calls: readonly LinkCall[]
}
export interface LinkAnswers {
  readonly answers: readonly LinkAnswer[]
}
export type LinkDefinition = MethodDefinition<LinkCalls, LinkAnswers>

const EMPTY = Buffer.alloc(0)

interface Waiting {
  readonly method: string
  readonly timeoutMs: number
  readonly deadlineMs: number
  readonly resolve: (body: Buffer) => void
  readonly reject: (error: XsanError) => void
}

/** The caller's side: one stream to one address. Over once it has an `error`; then make another. */
export class LinkClient {
  readonly #address: string
  readonly #stream: ClientDuplexStream<LinkCalls, LinkAnswers>
  readonly #waiting = new Map<number, Waiting>()
  #gathered: LinkCall[] = []
  #nextId = 1
  #timer: NodeJS.Timeout | undefined
  #timerDueMs = 0
  /** One-way calls that wait for room in the stream. */
  #stalled: Array<() => void> = []
  #isFull = false
  #error: ServiceError | undefined

  constructor(client: Client, definition: LinkDefinition, address: string) {
    this.#address = address
    this.#stream = client.makeBidiStreamRequest(definition.path, definition.requestSerialize, definition.responseDeserialize, new Metadata())
    this.#stream.on('data', ({ answers }: LinkAnswers) => {
      for (const answer of answers) this.#take(answer)
    })
    this.#stream.on('error', (error: ServiceError) => this.#end(error))
    this.#stream.on('end', () => this.#end(closed('the other side closed the connection')))
    this.#stream.on('drain', () => {
      this.#isFull = false
      for (const resume of this.#stalled.splice(0)) resume()
    })
  }

  /** Why it is over. */
  get error(): ServiceError | undefined {
    return this.#error
  }

  /** Resolves with the encoded answer. Rejects with the handler's XsanError, NODE_UNREACHABLE, NETWORK_TIMEOUT, BUSY. */
  call(method: string, body: Buffer, timeoutMs: number): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      if (this.#waiting.size >= LINK_CALLS_MAX)
        throw new XsanError('BUSY', `${LINK_CALLS_MAX} calls to ${this.#address} wait for their answers`, 'See whether that node is overloaded.')
      const id = this.#nextId
      this.#nextId = id === 0xffff_ffff ? 1 : id + 1
      assert(!this.#waiting.has(id), 'four thousand million calls were made while one waited')
      const deadlineMs = performance.now() + timeoutMs
      this.#waiting.set(id, { method, timeoutMs, deadlineMs, resolve, reject })
      this.#watch(deadlineMs)
      this.#gather({ id, method, timeoutMs: Math.max(1, Math.ceil(timeoutMs)), body })
    })
  }

  /** One-way. Resolves when it is on its way; a stream that is full is waited for, at most `timeoutMs` (then, or when the stream ends: rejects). */
  async tell(method: string, body: Buffer, timeoutMs: number): Promise<void> {
    if (this.#isFull) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, timeoutMs)
        this.#stalled.push(() => {
          clearTimeout(timer)
          resolve()
        })
      })
      const late: ServiceError | undefined = this.#isFull ? { ...closed('too late'), code: GrpcStatus.DEADLINE_EXCEEDED } : undefined
      const error = this.#error ?? late
      if (error !== undefined) throw fromServiceError(error, { address: this.#address, method, timeoutMs })
    }
    this.#gather({ id: 0, method, timeoutMs: Math.max(1, Math.ceil(timeoutMs)), body })
  }

  /** Rejects what waits with STOPPING. */
  cancel(): void {
    this.#end({ ...closed('this process is stopping'), code: GrpcStatus.CANCELLED })
    this.#stream.cancel()
  }

  #gather(call: LinkCall): void {
    if (this.#gathered.length === 0) setImmediate(() => this.#flush())
    this.#gathered.push(call)
  }

  #flush(): void {
    const calls = this.#gathered
    this.#gathered = []
    if (this.#error === undefined && calls.length > 0) this.#isFull = !this.#stream.write({ calls })
  }

  #take({ id, body, status, message, nextStep }: LinkAnswer): void {
    const waiting = this.#waiting.get(id)
    if (waiting === undefined) return
    this.#waiting.delete(id)
    if (status === '') waiting.resolve(body)
    else if (status !== 'SUCCESS' && Object.hasOwn(Status, status)) waiting.reject(new XsanError(status as StatusName, message, nextStep))
    else waiting.reject(new XsanError('INTERNAL', `${waiting.method} at ${this.#address}: ${status}: ${message}`, nextStep))
  }

  /** One timer for all calls: as a rule it finds nothing, some seconds later. */
  #watch(deadlineMs: number): void {
    if (this.#timer !== undefined && this.#timerDueMs <= deadlineMs) return
    clearTimeout(this.#timer)
    this.#timerDueMs = deadlineMs
    this.#timer = setTimeout(() => this.#expire(), Math.max(1, Math.ceil(deadlineMs - performance.now())))
    this.#timer.unref()
  }

  #expire(): void {
    this.#timer = undefined
    const nowMs = performance.now()
    let next = Number.POSITIVE_INFINITY
    for (const [id, { method, timeoutMs, deadlineMs, reject }] of this.#waiting) {
      if (deadlineMs > nowMs) next = Math.min(next, deadlineMs)
      else {
        this.#waiting.delete(id)
        reject(fromServiceError({ ...closed('too late'), code: GrpcStatus.DEADLINE_EXCEEDED }, { address: this.#address, method, timeoutMs }))
      }
    }
    if (next < Number.POSITIVE_INFINITY) this.#watch(next)
  }

  #end(error: ServiceError): void {
    if (this.#error !== undefined) return
    this.#error = error
    clearTimeout(this.#timer)
    for (const resume of this.#stalled.splice(0)) resume()
    for (const { method, timeoutMs, reject } of this.#waiting.values()) reject(fromServiceError(error, { address: this.#address, method, timeoutMs }))
    this.#waiting.clear()
  }
}

function closed(why: string): ServiceError {
  return { name: 'Error', message: why, code: GrpcStatus.UNAVAILABLE, details: why, metadata: new Metadata() }
}

/** Answers a call: the encoded answer, or a rejection. */
export type LinkHandler = (method: string, body: Buffer, context: { readonly peer: string; readonly timeoutMs: number }) => Promise<Buffer>

/** The other side: one stream of one caller. */
export class LinkServer {
  readonly #stream: ServerDuplexStream<LinkCalls, LinkAnswers>
  readonly #handler: LinkHandler
  readonly #peer: string
  #underWay = 0
  #gathered: LinkAnswer[] = []
  #closing = false
  #isOver = false

  constructor(stream: ServerDuplexStream<LinkCalls, LinkAnswers>, handler: LinkHandler, onOver: () => void) {
    this.#stream = stream
    this.#handler = handler
    this.#peer = stream.getPeer()
    const over = (): void => {
      if (this.#isOver) return
      this.#isOver = true
      onOver()
    }
    // Until the caller's gRPC has heard something, it keeps what it has sent, to send it again; one-way calls (Raft's) have no answer to hear
    stream.sendMetadata(new Metadata())
    stream.on('data', ({ calls }: LinkCalls) => {
      for (const call of calls) void this.#answer(call)
    })
    stream.on('error', over)
    stream.on('cancelled', over)
    stream.on('close', over)
    stream.on('end', () => {
      over()
      stream.end()
    })
    stream.on('drain', () => stream.resume())
  }

  /** Calls under way are answered, later ones are not read; then the stream ends. */
  close(): void {
    this.#closing = true
    this.#stream.pause()
    this.#endWhenDone()
  }

  async #answer({ id, method, timeoutMs, body }: LinkCall): Promise<void> {
    if (this.#underWay >= LINK_CALLS_MAX) {
      this.#send({ id, body: EMPTY, status: 'BUSY', message: `${LINK_CALLS_MAX} calls of one node are under way`, nextStep: '' })
      return
    }
    this.#underWay++
    try {
      this.#send({ id, body: await this.#handler(method, body, { peer: this.#peer, timeoutMs }), status: '', message: '', nextStep: '' })
    } catch (error) {
      const { status, message, nextStep } = knownError(error)
      this.#send({ id, body: EMPTY, status, message, nextStep })
    } finally {
      this.#underWay--
      this.#endWhenDone()
    }
  }

  #send(answer: LinkAnswer): void {
    if (answer.id === 0) return
    if (this.#gathered.length === 0) setImmediate(() => this.#flush())
    this.#gathered.push(answer)
  }

  #flush(): void {
    const answers = this.#gathered
    this.#gathered = []
    if (!this.#isOver && answers.length > 0 && !this.#stream.write({ answers })) this.#stream.pause()
    this.#endWhenDone()
  }

  #endWhenDone(): void {
    if (this.#closing && !this.#isOver && this.#underWay === 0 && this.#gathered.length === 0) {
      this.#isOver = true
      this.#stream.end()
    }
  }
}
