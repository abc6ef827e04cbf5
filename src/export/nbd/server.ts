/**
 * The NBD export of one reactor: listeners, connections, and the transmission phase.
 *
 * Reads top to bottom as a request lives: accept -> negotiate (negotiate.ts) -> receive -> parse -> start -> done -> reply.
 *
 * Memory of a connection: a stream buffer of STREAM_PAGES, into which one receive at a time is under way; requests are parsed in place.
 * A write's payload is copied from there to page-aligned pages of its own, or, as far as it has not arrived yet, received straight into them.
 * A read's pages have one more page in front, so that reply header and data are one contiguous range:
 *
 *   [ page: ..... header ][ page: data ][ page: data ] ...      (data begins at offsetBytes % 4096 of its first page, the header just before)
 *
 * Bounds: connectionsMax connections (one more is told so and closed), and no more than a share of the arena has buffers for, REQUESTS_PER_CONNECTION_MAX requests each, VolumeLayer.requestsMax in all, half of the
 * arena. A connection takes another row or buffer only while it holds less than would still be free: a client that reads no replies, or whose volume
 * stands still, gets half of what there is, the next one a quarter, and there is always something for others. A connection that finds no row or no buffer
 * stops receiving until there is one; a large request that small ones of others pass again and again has its turn (STARVED_MS).
 * A connection's requests outlive it: the row of the connection is free only when they have all ended.
 */
import { columns, f64, i32, u32 } from '../../base/columns.ts'
import { messageOf } from '../../base/errors.ts'
import { FlightEvent } from '../../base/flight.ts'
import type { VolumeNumber } from '../../base/ids.ts'
import { type Done, WriteFlag } from '../../base/request.ts'
import { Status } from '../../base/status.ts'
import { MiB, PAGE_BYTES, REQUEST_BYTES_MAX, SECTOR_BYTES } from '../../base/units.ts'
import type { AsyncIo } from '../../env/async-io.ts'
import type { Log } from '../../env/control.ts'
import type { Handle, IoQueue, Tag } from '../../env/ioqueue.ts'
import type { VolumeLayer } from '../../volume/volume.ts'
import {
  Command,
  CommandFlag,
  NbdErrno,
  NbdErrorChunk,
  NbdOffsetData,
  NbdRequest,
  NbdSimpleReply,
  NbdStructuredReply,
  REPLY_FLAG_DONE,
  REQUEST_MAGIC,
  ReplyChunk,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
} from '../../wire/nbd.ts'
import { nbdErrno } from './errors.ts'
import { NegotiationEnded, negotiate } from './negotiate.ts'

const STREAM_PAGES = 32
const STREAM_BYTES = STREAM_PAGES * PAGE_BYTES
/** Where replies without data are put together, per connection. */
const REPLY_PAGES = 1
const REPLY_BYTES = REPLY_PAGES * PAGE_BYTES
/** Of the arena, for the buffers of connections: idle clients, however many may come, leave room for the node's own work (a resync, say). */
const CONNECTIONS_SHARE = 9 / 16
const REQUESTS_PER_CONNECTION_MAX = 256
/** Replies that go into one gathered send. */
const REPLIES_PER_SEND_MAX = 128
const SEND_BYTES_MAX = 1024 * MiB
/** Connections that wait for memory look again after so long, even if no request of this export has ended meanwhile. */
const BLOCKED_AGAIN_MS = 10
/**
 * A connection that has waited for so long and has nothing under way, because others take what becomes free before there is enough for it, is favoured for a
 * moment: nobody else gets a buffer. Not for longer, and then not for as long again: what the others hold may stand still.
 */
const STARVED_MS = 1000
const FAVOUR_MS = 200
/** After an accept that failed (no descriptor left): the connection still waits, and would fail at once again. */
const ACCEPT_AGAIN_MS = 100
/** Clients that negotiate at one time: each has an operation of {@link AsyncIo} under way. */
const NEGOTIATIONS_MAX = 1024
/** Connections beyond the limit that are told so at one time; more are closed at once. */
const REFUSALS_MAX = 8
/** A client that has not finished negotiating by then is dropped. */
const NEGOTIATION_MS_MAX = 10_000
/** More for a client that asks about each volume: libnbd 1.14 holds one of its options for 200 ms each time (MSG_MORE on the last piece). */
const NEGOTIATION_MS_PER_VOLUME = 500
const DEADLINE_AGAIN_MS = 100
/** After its goodbye a client's requests go on as before for so long; what is left then has the rest of the write life, and no more of it is begun. */
const GOODBYE_MS = 1000
/**
 * A client whose host has been silent for SILENT_MS_MAX while a write of it has waited for STUCK_MS, or its connection for room, is taken to have gone: cut
 * off from this node, its end of the connection cannot be heard, and it may go on by another node. The kernels talk every second; less than the write life
 * has gone by.
 */
const SILENT_MS_MAX = 3000
const STUCK_MS = 1000
const SILENCE_EVERY_MS = 250
/** Of those for which nothing is done: their kernels may still hold, and send when they are heard again, what their clients have given up long ago. */
const IDLE_SILENCE_EVERY_MS = 500
/** Whose host has been silent for so long is cut off: kernels talk every second. */
const CUT_OFF_MS = 1500
/** One whose host has been silent for so long while replies are on their way to it has gone: the kernel, which ends idle connections then, would send for a quarter of an hour. */
const GONE_MS = 120_000
/** Lines about connections closed for a reason, in so long; the next one says how many others there were. */
const REASONS_LOGGED_MAX = 10
const REASONS_EVERY_MS = 10_000
/**
 * A reactor that stood still for this long (SIGSTOP, a paused guest) finds requests of unknown age in its sockets. Their clients may have gone on by
 * another node meanwhile, so that an old write would land over a newer one (protocol 16): all connections are closed instead.
 */
const STANDSTILL_MS_MAX = 2000
/**
 * What has happened is told within so many turns, though others wait to be told and the kernel is not asked in each: by then whatever had happened before the
 * first of them is. Of the turn before alone that cannot be said: its clock may have been looked at after a standstill in its middle.
 */
const TOLD_IN_TURNS = 8

const State = { NEGOTIATING: 0, RUNNING: 1, CLOSING: 2 } as const
/** Of a connection that had to wait for room: does anybody look whether its client is still there? */
const Hangup = { UNWATCHED: 0, WATCHED: 1, SEEN: 2 } as const
const NONE = -1

export interface NbdServerOptions {
  readonly queue: IoQueue
  readonly asyncIo: AsyncIo
  readonly volumes: VolumeLayer
  readonly log: Log
  readonly connectionsMax: number
  /** The limit may be raised to this many later. Default: connectionsMax. */
  readonly connectionRowsMax?: number
}

export class NbdServer {
  readonly #queue: IoQueue
  readonly #io: AsyncIo
  readonly #volumes: VolumeLayer
  readonly #log: Log
  #connectionsMax: number
  readonly #listeners: Handle[] = []
  readonly #acceptTag: Tag
  readonly #recvTag: Tag
  readonly #bulkTag: Tag
  readonly #sendTag: Tag
  readonly #closeTag: Tag
  readonly #deadlineTag: Tag
  readonly #acceptAgainTag: Tag
  readonly #hangupTag: Tag
  readonly #goodbyeTag: Tag
  readonly #done: Done
  #stopping = false
  #refusing = 0
  #negotiations = 0
  #refusedLogged = false
  #acceptFailureLogged = false
  #silenceAtMs = 0
  #reasonsSinceMs = Number.NEGATIVE_INFINITY
  #reasonsLogged = 0
  #reasonsNotLogged = 0
  /** Largest payload of a request: a smaller arena has no room for the largest of the protocol. */
  readonly #requestBytesMax: number
  /** Pages in the buffers of all requests. */
  #bufferPages = 0
  /** A row or buffer has become free since those who wait looked. */
  #hasFreed = false
  /** Buffers that a hanging disk has not given back. */
  readonly #lost: Array<{ readonly page: number; readonly pages: number }> = []
  #blockedAgainMs = 0
  /** The connection that alone gets a buffer until then, or NONE. */
  #favoured = NONE
  #favouredUntilMs = 0
  #idleSilenceAtMs = 0
  /** Of the last turn's clock: how long nothing ran is seen by the next. */
  #turnMs: number
  /** Of the turns before, as they ended. */
  readonly #turnEndsMs = new Float64Array(TOLD_IN_TURNS)
  #turns = 0
  /** Clients were there then: whoever had gone before has been seen to. */
  #seenMs: number

  readonly #connections
  readonly #requests
  /** Connections that wait for a row or a buffer, in order. */
  readonly #blocked: number[] = []
  /** Reads that wait for another buffer, theirs being left to a disk that hangs. */
  readonly #bufferless: number[] = []
  /** Connections with replies to send at the end of this turn. */
  readonly #dirty: number[] = []

  constructor(options: NbdServerOptions) {
    this.#queue = options.queue
    this.#io = options.asyncIo
    this.#volumes = options.volumes
    this.#log = options.log
    this.#connectionsMax = options.connectionsMax
    this.#requestBytesMax = Math.min(REQUEST_BYTES_MAX, 2 ** Math.floor(Math.log2((options.queue.arena.totalPages * PAGE_BYTES) / 4)))
    this.#connections = columns('nbd connection', (options.connectionRowsMax ?? options.connectionsMax) + REFUSALS_MAX, {
      socket: f64,
      state: i32,
      volume: f64,
      structured: i32,
      readOnly: i32,
      /** The allocation: STREAM_PAGES for receiving, then REPLY_PAGES. */
      page: i32,
      start: i32,
      end: i32,
      /** Payload bytes of a refused write that are still to be thrown away. */
      discardBytes: u32,
      /** That write, or -1. It is answered when all of it has come: clients take an answer to what they are still sending for nonsense. */
      discarding: i32,
      receiving: i32,
      sending: i32,
      /** When the send under way began. */
      sendMs: f64,
      negotiating: i32,
      blocked: i32,
      /** Since when it has waited to begin its next request, or was favoured in vain; 0: it does not. */
      waitsSinceMs: f64,
      hangup: i32,
      /** Since when its client, which was seen to have left, may have been gone, perhaps behind what it had sent before; Infinity: it has not left. */
      leftMs: f64,
      /** Its host was not heard for too long since then, or this process stood still as it negotiated; 0: neither. What comes from it now may be from then. */
      staleSinceMs: f64,
      /** When its host was heard last, as far as was looked: its client may have left right after, behind what it had sent. */
      heardMs: f64,
      /** Its host was cut off for a while: until then may come what was sent meanwhile. */
      unsureUntilMs: f64,
      dirty: i32,
      /** The write whose payload is being received straight into its pages, or -1. */
      bulk: i32,
      requests: i32,
      /** Pages in the buffers of its requests. */
      bufferPages: i32,
      /** Losses of unflushed writes that it has been told of, or that were before it came. */
      losses: f64,
      /** The client has said goodbye: what is under way is still answered. Since when. */
      ending: i32,
      goodbyeMs: f64,
      replyFirst: i32,
      replyLast: i32,
      /** Replies in the send under way: a list through `next`. Those of a lazy one are counted as taken at once. */
      sentFirst: i32,
      sentLazily: i32,
    })
    this.#requests = columns('nbd request', options.volumes.requestsMax, {
      connection: i32,
      cookieHi: u32,
      cookieLo: u32,
      type: i32,
      flags: i32,
      offsetBytes: f64,
      lengthBytes: u32,
      /** First page of the allocation (a read's front page), or -1; and how many. */
      basePage: i32,
      pages: i32,
      /** Payload bytes received so far (WRITE). */
      gotBytes: u32,
      status: i32,
      /** FLUSH: as those of its connection, when it was asked for. */
      losses: f64,
      next: i32,
      startedMs: f64,
    })
    const queue = this.#queue
    this.#acceptTag = queue.register('nbd accept', (listener, result) => this.#onAccept(listener, result))
    this.#recvTag = queue.register('nbd recv', (c, result) => this.#onReceive(c, result))
    this.#bulkTag = queue.register('nbd payload', (c, result) => this.#onPayload(c, result))
    this.#sendTag = queue.register('nbd send', (c, result) => this.#onSent(c, result))
    this.#closeTag = queue.register('nbd close', (c) => this.#onClosed(c))
    this.#deadlineTag = queue.register('nbd deadline', (c, result) => {
      if (result !== 0 || !this.#connections.isUsed(c) || this.#connections.negotiating[c] !== 1) return
      // again and again: a receive that has some of its bytes ends with them, not with an error, and the next one is begun
      this.#queue.cancel(this.#socket(c))
      this.#queue.timeout(DEADLINE_AGAIN_MS, this.#deadlineTag, c)
    })
    this.#hangupTag = queue.register('nbd hangup', (c, result) => this.#onHangup(c, result))
    this.#goodbyeTag = queue.register('nbd goodbye', (c, result) => {
      const t = this.#connections
      if (result === 0 && t.isUsed(c) && t.state[c] === State.RUNNING && t.ending[c] === 1) this.#orphanWrites(c, t.goodbyeMs[c]!)
    })
    this.#acceptAgainTag = queue.register('nbd accept again', (listener) => {
      if (!this.#stopping) this.#queue.accept(this.#listeners[listener]!, this.#acceptTag, listener)
    })
    this.#done = (row, status) => this.#onDone(row, status)
    this.#turnMs = this.#seenMs = queue.nowMs
    this.#turnEndsMs.fill(queue.nowMs)
    queue.onTurnEnd(() => this.#endTurn())
  }

  /** Throws IoError (EADDRINUSE ...). Returns the port. */
  listenTcp(host: string, port: number): number {
    const listener = this.#queue.listenTcp({ host, port, backlog: 128 })
    this.#addListener(listener.handle)
    return listener.port
  }

  listenUnix(path: string): void {
    this.#addListener(this.#queue.listenUnix({ path, mode: 0o660 }))
  }

  /** Connections above the new limit stay; no others come in until there is room. */
  set connectionsMax(limit: number) {
    this.#connectionsMax = Math.min(limit, this.#connections.rowsMax - REFUSALS_MAX)
    this.#refusedLogged = false
  }

  get connectionCount(): number {
    return this.#connections.inUse
  }

  /** `nbd_connections{volume=NUMBER}` of each volume that has any. */
  connectionsByVolume(): Record<string, number> {
    const t = this.#connections
    const counts: Record<string, number> = {}
    for (let c = 0; c < t.rowsMax; c++) {
      if (!t.isUsed(c) || t.state[c] !== State.RUNNING) continue
      const key = `nbd_connections{volume=${t.volume[c]}}`
      counts[key] = (counts[key] ?? 0) + 1
    }
    return counts
  }

  get requestCount(): number {
    return this.#requests.inUse
  }

  /**
   * No new connections from now on, and nothing more is begun: what is under way is answered, then the connection is closed. A client that connects again
   * asks the rest of another node; an error (ESHUTDOWN) would go up to whoever wrote, so it is left to what the layers below refuse.
   */
  stop(): void {
    if (this.#stopping) return
    this.#stopping = true
    for (const listener of this.#listeners) this.#queue.close(listener, this.#closeTag, NONE)
    for (let c = 0; c < this.#connections.rowsMax; c++) {
      if (!this.#connections.isUsed(c)) continue
      if (this.#connections.negotiating[c] === 1) this.#queue.cancel(this.#socket(c))
      else if (this.#isIdle(c)) this.#drop(c, '')
    }
  }

  /** Nothing of it is under way in the layers below, nor waits to be sent. */
  #isIdle(c: number): boolean {
    const t = this.#connections
    return t.requests[c] === Number(t.bulk[c] !== NONE) + Number(t.discarding[c] !== NONE)
  }

  // ---- accept ----------------------------------------------------------------------------------------------------------
  #addListener(handle: Handle): void {
    this.#listeners.push(handle)
    this.#queue.accept(handle, this.#acceptTag, this.#listeners.length - 1)
  }

  #onAccept(listener: number, result: number): void {
    if (this.#stopping) {
      if (result >= 0) this.#queue.close(result as Handle, this.#closeTag, NONE)
      return
    }
    if (result < 0) {
      if (!this.#acceptFailureLogged) this.#log.log('WARN', 'NBD accept failed: are there file descriptors left (ulimit -n)?', { errno: -result })
      this.#acceptFailureLogged = true
      this.#queue.timeout(ACCEPT_AGAIN_MS, this.#acceptAgainTag, listener)
      return
    }
    this.#acceptFailureLogged = false
    this.#welcome(result as Handle)
    this.#queue.accept(this.#listeners[listener]!, this.#acceptTag, listener)
  }

  #welcome(socket: Handle): void {
    const t = this.#connections
    const tooMany = t.inUse - this.#refusing >= this.#connectionsMax
    const tooFast = (tooMany && this.#refusing >= REFUSALS_MAX) || this.#negotiations >= NEGOTIATIONS_MAX
    const { arena } = this.#queue
    const isRoom = (t.inUse + 1) * (STREAM_PAGES + REPLY_PAGES) <= arena.totalPages * CONNECTIONS_SHARE
    const page = tooFast || !isRoom ? NONE : arena.alloc((STREAM_PAGES + REPLY_PAGES) * PAGE_BYTES)
    if (tooMany) this.#queue.flight.record(FlightEvent.NBD_REFUSED, t.inUse)
    if (tooMany && !this.#refusedLogged) {
      this.#refusedLogged = true
      this.#log.log('WARN', 'NBD connection refused: the limit network.max_connections is reached', { limit: this.#connectionsMax })
    }
    const c = page === NONE ? NONE : t.alloc()
    if (c === NONE) {
      if (page !== NONE) this.#queue.arena.free(page as never)
      else if (!tooMany) this.#say(tooFast ? `${NEGOTIATIONS_MAX} others are negotiating` : 'no buffer memory left (reactor.arena_size)')
      this.#queue.close(socket, this.#closeTag, NONE)
      return
    }
    t.socket[c] = socket
    t.page[c] = page
    t.state[c] = State.NEGOTIATING
    t.start[c] = t.end[c] = t.discardBytes[c] = t.receiving[c] = t.sending[c] = t.blocked[c] = t.dirty[c] = 0
    t.staleSinceMs[c] = t.unsureUntilMs[c] = t.hangup[c] = t.requests[c] = t.bufferPages[c] = t.ending[c] = t.waitsSinceMs[c] = 0
    t.leftMs[c] = Number.POSITIVE_INFINITY
    t.bulk[c] = t.discarding[c] = t.replyFirst[c] = t.replyLast[c] = t.sentFirst[c] = NONE
    t.negotiating[c] = 1
    if (tooMany) this.#refusing++
    this.#negotiations++
    this.#queue.timeout(NEGOTIATION_MS_MAX, this.#deadlineTag, c)
    void this.#negotiate(c, tooMany)
  }

  async #negotiate(c: number, refuse: boolean): Promise<void> {
    const t = this.#connections
    const reason = refuse
      ? `all ${this.#connectionsMax} connections of this node are in use (network.max_connections); close one or use another node`
      : undefined
    let why = ''
    try {
      const agreed = await negotiate(
        {
          io: this.#io,
          socket: this.#socket(c),
          page: t.page[c]!,
          refuse: reason,
          requestBytesMax: this.#requestBytesMax,
          listed: (volumes) => {
            this.#queue.cancelTimeout(this.#deadlineTag, c)
            this.#queue.timeout(NEGOTIATION_MS_MAX + NEGOTIATION_MS_PER_VOLUME * volumes, this.#deadlineTag, c)
          },
        },
        this.#volumes,
      )
      t.volume[c] = agreed.volume.volume
      t.losses[c] = this.#volumes.pastLossCount(agreed.volume.volume)
      t.readOnly[c] = agreed.volume.readOnly ? 1 : 0
      t.structured[c] = agreed.structuredReplies ? 1 : 0
      t.heardMs[c] = this.#seenMs
      t.state[c] = State.RUNNING
      this.#queue.flight.record(FlightEvent.NBD_OPENED, c, agreed.volume.volume)
    } catch (error) {
      if (!(error instanceof NegotiationEnded)) throw error
      t.state[c] = State.CLOSING
      why = refuse ? '' : messageOf(error)
    }
    t.negotiating[c] = 0
    this.#queue.cancelTimeout(this.#deadlineTag, c)
    if (refuse) this.#refusing--
    this.#negotiations--
    if (t.state[c] === State.RUNNING && !this.#stopping && this.#watch(c)) this.#receive(c)
    else this.#drop(c, why)
  }

  // ---- receive and parse -----------------------------------------------------------------------------------------------
  #receive(c: number): void {
    const t = this.#connections
    if (t.receiving[c] === 1 || t.blocked[c] === 1 || t.bulk[c] !== NONE || t.state[c] !== State.RUNNING || t.ending[c] === 1 || this.#stopping) return
    const at = t.page[c]! * PAGE_BYTES
    if (t.start[c] === t.end[c]) t.start[c] = t.end[c] = 0
    else if (t.start[c]! > 0) {
      this.#queue.arena.bytes.copyWithin(at, at + t.start[c]!, at + t.end[c]!)
      t.end[c]! -= t.start[c]!
      t.start[c] = 0
    }
    t.receiving[c] = 1
    this.#queue.recv(this.#socket(c), t.page[c]!, t.end[c]!, STREAM_BYTES - t.end[c]!, false, this.#recvTag, c)
  }

  #onReceive(c: number, result: number): void {
    const t = this.#connections
    t.receiving[c] = 0
    if (this.#queue.nowMs - this.#turnMs > STANDSTILL_MS_MAX) this.#dropAll()
    if (result <= 0 || t.state[c] !== State.RUNNING) {
      this.#drop(c, '')
      return
    }
    if (this.#isStale(c)) return
    t.end[c]! += result
    this.#parse(c)
  }

  /** Starts every request that is complete in the stream; then receives on, unless the connection is blocked or receives a payload. */
  #parse(c: number): void {
    const t = this.#connections
    const { view } = this.#queue.arena
    const base = t.page[c]! * PAGE_BYTES
    while (t.state[c] === State.RUNNING && t.ending[c] === 0 && !this.#stopping) {
      const available = t.end[c]! - t.start[c]!
      if (t.discardBytes[c]! > 0) {
        const n = Math.min(available, t.discardBytes[c]!)
        if (n === 0) break
        t.start[c]! += n
        t.discardBytes[c]! -= n
        if (t.discardBytes[c] === 0) {
          this.#reply(t.discarding[c]!)
          t.discarding[c] = NONE
        }
        continue
      }
      if (available < NbdRequest.size) break
      const at = base + t.start[c]!
      if (NbdRequest.get.magic(view, at) !== REQUEST_MAGIC) {
        this.#drop(c, 'a request without the magic number')
        return
      }
      if (!this.#start(c, at)) {
        this.#block(c)
        return
      }
      if (t.bulk[c] !== NONE) return
    }
    if (this.#stopping) this.#watch(c)
    else this.#receive(c)
  }

  /** The connection waits, and receives nothing meanwhile. If its client leaves, what it had sent and nobody has begun is not begun. */
  #block(c: number): void {
    const t = this.#connections
    if (!this.#watch(c)) return
    t.blocked[c] = 1
    if (t.waitsSinceMs[c] === 0) t.waitsSinceMs[c] = this.#queue.nowMs
    this.#blocked.push(c)
  }

  /**
   * If its client leaves, that must be seen at once, also when nothing is received for now, or a request comes first: its writes have only a short life
   * from then on (protocol 16). False: it has left.
   */
  #watch(c: number): boolean {
    const t = this.#connections
    if (t.hangup[c] === Hangup.SEEN) this.#drop(c, '')
    if (t.state[c] !== State.RUNNING) return false
    if (t.hangup[c] === Hangup.UNWATCHED) {
      t.hangup[c] = Hangup.WATCHED
      this.#queue.hangup(this.#socket(c), this.#hangupTag, c)
    }
    return true
  }

  /** A connection that receives comes to the end by itself, after what was sent before. */
  #onHangup(c: number, result: number): void {
    const t = this.#connections
    t.hangup[c] = result < 0 ? Hangup.UNWATCHED : Hangup.SEEN
    if (result < 0) return
    t.leftMs[c] = Math.min(this.#seenMs, t.heardMs[c]!)
    if (t.state[c] === State.RUNNING && (t.blocked[c] === 1 || this.#stopping)) this.#drop(c, '')
  }

  /** Starts the request whose header is at `at`; false when there is no row or no buffer for it now. */
  #start(c: number, at: number): boolean {
    const t = this.#connections
    const q = this.#requests
    const { view } = this.#queue.arena
    const type = NbdRequest.get.type(view, at)
    const flags = NbdRequest.get.flags(view, at)
    const offsetBytes = NbdRequest.get.offset(view, at)
    const lengthBytes = NbdRequest.get.length(view, at)
    if (type === Command.DISC) {
      t.start[c]! += NbdRequest.size
      this.#goodbye(c)
      return true
    }
    if (type === Command.WRITE && lengthBytes > REQUEST_BYTES_MAX) {
      this.#drop(c, `a write of ${lengthBytes} bytes (at most ${REQUEST_BYTES_MAX})`)
      return true
    }
    if (t.requests[c]! >= Math.min(REQUESTS_PER_CONNECTION_MAX, q.rowsMax - q.inUse)) return false
    if (!this.#volumes.enter()) return false
    const error = this.#refusal(c, type, flags, offsetBytes, lengthBytes)
    const pages = error !== Status.SUCCESS ? 0 : this.#pagesFor(type, offsetBytes, lengthBytes)
    let basePage = NONE
    if (pages > 0) {
      if (this.#mayHold(c, pages)) basePage = this.#queue.arena.alloc(pages * PAGE_BYTES)
      if (basePage === NONE) {
        this.#volumes.leave()
        return false
      }
      this.#bufferPages += pages
      t.bufferPages[c]! += pages
    }
    const r = q.alloc()
    q.connection[r] = c
    q.cookieHi[r] = NbdRequest.get.cookieHi(view, at)
    q.cookieLo[r] = NbdRequest.get.cookieLo(view, at)
    q.type[r] = type
    q.flags[r] = flags
    q.offsetBytes[r] = offsetBytes
    q.lengthBytes[r] = lengthBytes
    q.basePage[r] = basePage
    q.pages[r] = pages
    q.status[r] = error
    q.startedMs[r] = this.#queue.nowMs
    this.#queue.flight.record(FlightEvent.NBD_REQUEST, r, type, lengthBytes >>> 9)
    t.requests[c]!++
    t.waitsSinceMs[c] = 0
    if (this.#favoured === c) this.#favoured = NONE
    t.start[c]! += NbdRequest.size
    if (error !== Status.SUCCESS) {
      if (type === Command.WRITE && lengthBytes > 0) {
        t.discardBytes[c] = lengthBytes
        t.discarding[c] = r
      } else this.#reply(r)
      return true
    }
    const volume = t.volume[c] as VolumeNumber
    const writeFlags = flags & CommandFlag.FUA ? WriteFlag.FUA : WriteFlag.NONE
    switch (type) {
      case Command.READ:
        this.#volumes.read(volume, offsetBytes, lengthBytes, basePage + 1, this.#done, r)
        break
      case Command.WRITE:
        this.#takePayload(c, r)
        break
      case Command.FLUSH:
        q.losses[r] = t.losses[c]!
        this.#volumes.flush(volume, this.#done, r)
        break
      case Command.TRIM:
        if (!this.#volumes.trim(volume, offsetBytes, lengthBytes, writeFlags, this.#done, r)) this.#reply(r)
        break
      default:
        this.#volumes.zero(volume, offsetBytes, lengthBytes, basePage, writeFlags | (flags & CommandFlag.NO_HOLE ? WriteFlag.NO_HOLE : 0), this.#done, r)
    }
    return true
  }

  /** Why a request is refused without looking at any data, or SUCCESS (proto "Request types"; a write beyond the end is ENOSPC). */
  #refusal(c: number, type: number, flags: number, offsetBytes: number, lengthBytes: number): number {
    const isWrite = type === Command.WRITE || type === Command.TRIM || type === Command.WRITE_ZEROES
    if (type === Command.FLUSH) return Status.SUCCESS
    if (!isWrite && type !== Command.READ) return Status.INVALID_PARAM
    const known = CommandFlag.FUA | (type === Command.READ ? CommandFlag.DF : 0) | (type === Command.WRITE_ZEROES ? CommandFlag.NO_HOLE : 0)
    if ((flags & ~known) !== 0) return Status.INVALID_PARAM
    if (isWrite && this.#connections.readOnly[c] === 1) return Status.READ_ONLY
    if (lengthBytes === 0 || lengthBytes % SECTOR_BYTES !== 0 || offsetBytes % SECTOR_BYTES !== 0) return Status.INVALID_PARAM
    if ((type === Command.READ || type === Command.WRITE) && lengthBytes > this.#requestBytesMax) return Status.REQUEST_TOO_LARGE
    const sizeBytes = this.#volumes.sizeBytes(this.#connections.volume[c] as VolumeNumber)
    if (sizeBytes < 0) return Status.VOLUME_NOT_FOUND
    if (offsetBytes + lengthBytes > sizeBytes) return type === Command.READ ? Status.INVALID_PARAM : Status.INSUFFICIENT_SPACE
    return Status.SUCCESS
  }

  /** Whether the connection may hold so many more pages: all it has then is no more than what would be left for others. One request alone may have any size. */
  #mayHold(c: number, pages: number): boolean {
    const { totalPages } = this.#queue.arena
    const t = this.#connections
    if (this.#favoured !== NONE && this.#favoured !== c) return false
    const budget = Math.max(totalPages / 2 - t.inUse * (STREAM_PAGES + REPLY_PAGES), totalPages / 8)
    return this.#bufferPages === 0 || t.bufferPages[c]! + 2 * pages <= budget - this.#bufferPages
  }

  #pagesFor(type: number, offsetBytes: number, lengthBytes: number): number {
    const touched = Math.ceil(((offsetBytes % PAGE_BYTES) + lengthBytes) / PAGE_BYTES)
    if (type === Command.READ) return 1 + touched
    if (type === Command.WRITE) return touched
    return type === Command.WRITE_ZEROES ? this.#volumes.zeroScratchPages(offsetBytes, lengthBytes) : 0
  }

  /** Moves what has arrived of a write's payload to its pages, and receives the rest there. */
  #takePayload(c: number, r: number): void {
    const t = this.#connections
    const q = this.#requests
    const from = t.page[c]! * PAGE_BYTES + t.start[c]!
    const have = Math.min(t.end[c]! - t.start[c]!, q.lengthBytes[r]!)
    const to = q.basePage[r]! * PAGE_BYTES + (q.offsetBytes[r]! % PAGE_BYTES)
    this.#queue.arena.bytes.copyWithin(to, from, from + have)
    t.start[c]! += have
    q.gotBytes[r] = have
    if (have === q.lengthBytes[r]!) this.#startWrite(c, r)
    else {
      t.bulk[c] = r
      this.#receivePayload(c, r)
    }
  }

  #receivePayload(c: number, r: number): void {
    const q = this.#requests
    const delta = (q.offsetBytes[r]! % PAGE_BYTES) + q.gotBytes[r]!
    this.#connections.receiving[c] = 1
    this.#queue.recv(this.#socket(c), q.basePage[r]!, delta, q.lengthBytes[r]! - q.gotBytes[r]!, true, this.#bulkTag, c)
  }

  #onPayload(c: number, result: number): void {
    const t = this.#connections
    const q = this.#requests
    const r = t.bulk[c]!
    t.receiving[c] = 0
    if (this.#queue.nowMs - this.#turnMs > STANDSTILL_MS_MAX) this.#dropAll()
    if (result <= 0 || t.state[c] !== State.RUNNING) {
      t.bulk[c] = NONE
      this.#freeRequest(r)
      this.#drop(c, '')
      return
    }
    if (this.#stopping) {
      t.bulk[c] = NONE
      this.#freeRequest(r)
      this.#watch(c)
      return
    }
    q.gotBytes[r]! += result
    if (q.gotBytes[r]! < q.lengthBytes[r]!) {
      this.#receivePayload(c, r)
      return
    }
    t.bulk[c] = NONE
    this.#startWrite(c, r)
    this.#parse(c)
  }

  #startWrite(c: number, r: number): void {
    const q = this.#requests
    const flags = q.flags[r]! & CommandFlag.FUA ? WriteFlag.FUA : WriteFlag.NONE
    this.#volumes.write(this.#connections.volume[c] as VolumeNumber, q.offsetBytes[r]!, q.lengthBytes[r]!, q.basePage[r]!, flags, this.#done, r)
  }

  // ---- done and reply --------------------------------------------------------------------------------------------------
  #onDone(r: number, status: number): void {
    const q = this.#requests
    if (status === Status.BUFFER_LOST && this.#readAgain(r)) return
    const type = q.type[r]!
    if (type === Command.FLUSH) status = this.#withLosses(r, status)
    q.status[r] = status
    if (status !== Status.SUCCESS) this.#volumes.stats.fail()
    else if (type === Command.READ) this.#volumes.stats.finishRead(q.lengthBytes[r]!, this.#queue.nowMs - q.startedMs[r]!)
    else if (type === Command.WRITE) this.#volumes.stats.finishWrite(q.lengthBytes[r]!, this.#queue.nowMs - q.startedMs[r]!)
    else if (type === Command.FLUSH) this.#volumes.stats.finishFlush()
    else this.#volumes.stats.finishZero()
    this.#reply(r)
  }

  /**
   * The layers below tell one flush of a lost write: of whichever client. Each connection that was there, or came soon after, is told, by every flush that
   * it had asked for until then: the writes may have been its own, or those of a connection that its client had before.
   */
  #withLosses(r: number, status: number): number {
    const t = this.#connections
    const c = this.#requests.connection[r]!
    if (status !== Status.SUCCESS && status !== Status.WRITE_FAILED) return status
    const losses = this.#volumes.lossCount(t.volume[c] as VolumeNumber)
    t.losses[c] = losses
    return losses > this.#requests.losses[r]! ? Status.WRITE_FAILED : status
  }

  /** The request's buffer is left to the disk that hangs; it is read again as soon as there is another one. False: nobody waits for it. */
  #readAgain(r: number): boolean {
    const q = this.#requests
    if (q.basePage[r] !== NONE) this.#freeBuffer(q.basePage[r]!, q.pages[r]!)
    q.basePage[r] = NONE
    const c = q.connection[r]!
    if (this.#connections.state[c] !== State.RUNNING) return false
    const page = this.#queue.arena.alloc(q.pages[r]! * PAGE_BYTES)
    if (page === -1) {
      this.#bufferless.push(r)
      return true
    }
    q.basePage[r] = page
    this.#volumes.read(this.#connections.volume[c] as VolumeNumber, q.offsetBytes[r]!, q.lengthBytes[r]!, page + 1, this.#done, r)
    return true
  }

  #freeBuffer(page: number, pages: number): void {
    if (this.#volumes.isHeld(page, pages)) this.#lost.push({ page, pages })
    else this.#queue.arena.free(page as never)
  }

  /** Queues the reply; it leaves at the end of the turn, with the others of its connection. */
  #reply(r: number): void {
    const t = this.#connections
    const q = this.#requests
    const c = q.connection[r]!
    this.#queue.flight.record(FlightEvent.NBD_REPLY, r, q.status[r])
    if (t.state[c] !== State.RUNNING) {
      this.#freeRequest(r)
      this.#drop(c, '')
      return
    }
    this.#queue.waits.reply.enter(this.#queue.nowMs)
    q.next[r] = NONE
    if (t.replyFirst[c] === NONE) t.replyFirst[c] = r
    else q.next[t.replyLast[c]!] = r
    t.replyLast[c] = r
    if (t.dirty[c] === 0) {
      t.dirty[c] = 1
      this.#dirty.push(c)
    }
  }

  #endTurn(): void {
    const { nowMs } = this.#queue
    if (nowMs - this.#turnMs > STANDSTILL_MS_MAX) this.#dropAll()
    this.#turnMs = nowMs
    const oldest = this.#turns++ % TOLD_IN_TURNS
    this.#seenMs = this.#turnEndsMs[oldest]!
    this.#turnEndsMs[oldest] = nowMs
    if (this.#blocked.length > 0 || this.#bufferless.length > 0) this.#resumeBlocked()
    if (nowMs >= this.#silenceAtMs) this.#dropSilent()
    this.#sendReplies()
  }

  #sendReplies(): void {
    for (let i = 0; i < this.#dirty.length; i++) {
      const c = this.#dirty[i]!
      this.#connections.dirty[c] = 0
      if (this.#connections.isUsed(c) && this.#connections.sending[c] === 0) this.#sendOf(c)
    }
    this.#dirty.length = 0
  }

  /** One gathered send of the replies that wait, in their order. Headers without data are put side by side in the connection's reply page. */
  #sendOf(c: number): void {
    const t = this.#connections
    const q = this.#requests
    if (t.state[c] !== State.RUNNING || t.replyFirst[c] === NONE) return
    const queue = this.#queue
    const replyPage = t.page[c]! + STREAM_PAGES
    let used = 0
    /** Start of the run of headers in the reply page that is not a segment yet. */
    let runStart = 0
    let r = t.replyFirst[c]!
    let last = NONE
    let bytes = 0
    let n = 0
    for (; r !== NONE && n < REPLIES_PER_SEND_MAX && used + NbdErrorChunk.size <= REPLY_BYTES && bytes < SEND_BYTES_MAX; n++) {
      if (q.type[r] === Command.READ && q.status[r] === Status.SUCCESS) {
        if (used > runStart) queue.segment(replyPage, runStart, used - runStart)
        runStart = used
        const delta = PAGE_BYTES + (q.offsetBytes[r]! % PAGE_BYTES)
        const headerBytes = this.#writeReadHeader(c, r, q.basePage[r]! * PAGE_BYTES + delta)
        queue.segment(q.basePage[r]!, delta - headerBytes, headerBytes + q.lengthBytes[r]!)
        bytes += q.lengthBytes[r]!
      } else used += this.#writePlainHeader(c, r, replyPage * PAGE_BYTES + used)
      last = r
      r = q.next[r]!
    }
    if (used > runStart) queue.segment(replyPage, runStart, used - runStart)
    t.sentFirst[c] = t.replyFirst[c]!
    q.next[last] = NONE
    t.replyFirst[c] = r
    if (r === NONE) t.replyLast[c] = NONE
    t.sending[c] = 1
    t.sendMs[c] = queue.nowMs
    // with nothing left to send, its end only frees rows and buffers: it may come with the next request, unless somebody waits for those
    const lazy = r === NONE && !this.#stopping && t.ending[c] === 0 && this.#blocked.length === 0
    t.sentLazily[c] = lazy ? 1 : 0
    if (lazy) queue.waits.reply.leave(queue.nowMs, n)
    queue.sendSegments(this.#socket(c), this.#sendTag, c, lazy)
  }

  /** Writes the header of a read's reply so that it ends at `dataAt`; returns its length. */
  #writeReadHeader(c: number, r: number, dataAt: number): number {
    const q = this.#requests
    const { view } = this.#queue.arena
    if (this.#connections.structured[c] === 0) {
      this.#writeSimple(r, dataAt - NbdSimpleReply.size, NbdErrno.OK)
      return NbdSimpleReply.size
    }
    const at = dataAt - NbdOffsetData.size
    const set = NbdOffsetData.set
    set.magic(view, at, STRUCTURED_REPLY_MAGIC)
    set.flags(view, at, REPLY_FLAG_DONE)
    set.type(view, at, ReplyChunk.OFFSET_DATA)
    set.cookieHi(view, at, q.cookieHi[r]!)
    set.cookieLo(view, at, q.cookieLo[r]!)
    set.length(view, at, 8 + q.lengthBytes[r]!)
    set.offset(view, at, q.offsetBytes[r]!)
    return NbdOffsetData.size
  }

  /** A reply without data: success of anything but a read, or an error; returns its length. (A read's error must be structured when agreed.) */
  #writePlainHeader(c: number, r: number, at: number): number {
    const q = this.#requests
    const { view } = this.#queue.arena
    const error = nbdErrno(q.status[r]!)
    if (this.#connections.structured[c] === 0 || q.type[r] !== Command.READ) {
      this.#writeSimple(r, at, error)
      return NbdSimpleReply.size
    }
    const set = NbdErrorChunk.set
    set.magic(view, at, STRUCTURED_REPLY_MAGIC)
    set.flags(view, at, REPLY_FLAG_DONE)
    set.type(view, at, ReplyChunk.ERROR)
    set.cookieHi(view, at, q.cookieHi[r]!)
    set.cookieLo(view, at, q.cookieLo[r]!)
    set.length(view, at, NbdErrorChunk.size - NbdStructuredReply.size)
    set.error(view, at, error)
    set.messageLength(view, at, 0)
    return NbdErrorChunk.size
  }

  #writeSimple(r: number, at: number, error: number): void {
    const { view } = this.#queue.arena
    const set = NbdSimpleReply.set
    set.magic(view, at, SIMPLE_REPLY_MAGIC)
    set.error(view, at, error)
    set.cookieHi(view, at, this.#requests.cookieHi[r]!)
    set.cookieLo(view, at, this.#requests.cookieLo[r]!)
  }

  #onSent(c: number, result: number): void {
    const t = this.#connections
    t.sending[c] = 0
    this.#freeList(t.sentFirst[c]!, t.sentLazily[c] === 0)
    t.sentFirst[c] = NONE
    if (result < 0 || t.state[c] !== State.RUNNING) {
      this.#drop(c, '')
      return
    }
    this.#sendOf(c)
    if (this.#stopping ? this.#isIdle(c) : t.ending[c] === 1 && t.requests[c] === 0) this.#drop(c, '')
  }

  // ---- end -------------------------------------------------------------------------------------------------------------
  #freeList(first: number, waited: boolean): void {
    for (let r = first; r !== NONE; ) {
      const next = this.#requests.next[r]!
      if (waited) this.#queue.waits.reply.leave(this.#queue.nowMs)
      this.#freeRequest(r)
      r = next
    }
  }

  #freeRequest(r: number): void {
    const t = this.#connections
    const q = this.#requests
    const c = q.connection[r]!
    if (q.basePage[r] !== NONE) this.#freeBuffer(q.basePage[r]!, q.pages[r]!)
    this.#bufferPages -= q.pages[r]!
    t.bufferPages[c]! -= q.pages[r]!
    t.requests[c]!--
    q.free(r)
    this.#volumes.leave()
    this.#hasFreed = true
  }

  /** At the end of a turn, each that waits looks once: when a request has ended, and now and then, because peers and disks free memory too. */
  #resumeBlocked(): void {
    const t = this.#connections
    const { nowMs } = this.#queue
    if (!this.#hasFreed && nowMs < this.#blockedAgainMs) return
    this.#hasFreed = false
    this.#blockedAgainMs = nowMs + BLOCKED_AGAIN_MS
    this.#favour()
    for (const r of this.#bufferless.splice(0)) this.#onDone(r, Status.BUFFER_LOST)
    for (const c of this.#blocked.splice(0)) {
      if (!t.isUsed(c) || t.blocked[c] !== 1) continue
      t.blocked[c] = 0
      this.#parse(c)
    }
  }

  /** Whom others have passed for too long. */
  #favour(): void {
    const t = this.#connections
    const { nowMs } = this.#queue
    const favoured = this.#favoured
    if (favoured !== NONE) {
      const waits = t.isUsed(favoured) && t.blocked[favoured] === 1
      if (waits && nowMs < this.#favouredUntilMs) return
      if (waits) t.waitsSinceMs[favoured] = nowMs
      this.#favoured = NONE
    }
    for (const c of this.#blocked) {
      if (!t.isUsed(c) || t.blocked[c] !== 1 || t.requests[c]! > 0 || nowMs - t.waitsSinceMs[c]! < STARVED_MS) continue
      if (this.#favoured === NONE || t.waitsSinceMs[c]! < t.waitsSinceMs[this.#favoured]!) this.#favoured = c
    }
    this.#favouredUntilMs = nowMs + FAVOUR_MS
  }

  /** The client will send nothing more (NBD_CMD_DISC). What is under way is answered, but not for longer than the write life: it may go on by another node. */
  #goodbye(c: number): void {
    const t = this.#connections
    if (t.requests[c] === 0) {
      this.#drop(c, '')
      return
    }
    t.ending[c] = 1
    t.goodbyeMs[c] = Math.min(this.#seenMs, t.heardMs[c]!)
    this.#queue.timeout(GOODBYE_MS, this.#goodbyeTag, c)
  }

  #orphanWrites(c: number, lostMs: number): void {
    const q = this.#requests
    for (let r = 0; r < q.rowsMax; r++)
      if (q.isUsed(r) && q.connection[r] === c && q.type[r] !== Command.READ && this.#connections.bulk[c] !== r) this.#volumes.orphan(this.#done, r, lostMs)
  }

  /**
   * The connection goes: no more is received or answered, writes under way are given up soon. Called again whenever something of it has ended,
   * until nothing is left; then the socket is closed and the row is free. Its client may have gone right after it was last known to be there: this process may have
   * stood still since.
   */
  #drop(c: number, reason: string, lostMs = this.#seenMs): void {
    const t = this.#connections
    if (t.ending[c] === 1 && t.state[c] === State.RUNNING) {
      this.#queue.cancelTimeout(this.#goodbyeTag, c)
      lostMs = Math.min(lostMs, t.goodbyeMs[c]!)
    }
    if (reason !== '') this.#say(reason)
    if (t.state[c] !== State.CLOSING) {
      const wasRunning = t.state[c] === State.RUNNING
      t.state[c] = State.CLOSING
      this.#queue.flight.record(FlightEvent.NBD_CLOSED, c, t.requests[c])
      t.blocked[c] = 0
      const waiting = t.replyFirst[c]!
      t.replyFirst[c] = t.replyLast[c] = NONE
      this.#freeList(waiting, true)
      if (wasRunning && t.discarding[c] !== NONE) this.#freeRequest(t.discarding[c]!)
      if (wasRunning) {
        this.#orphanWrites(c, Math.min(lostMs, t.leftMs[c]!, t.heardMs[c]!))
        if (t.receiving[c] === 1 || t.sending[c] === 1) this.#queue.cancel(this.#socket(c))
      }
    }
    if (t.negotiating[c] === 1 || t.receiving[c] === 1 || t.sending[c] === 1 || t.requests[c]! > 0 || t.socket[c] === NONE) return
    const socket = this.#socket(c)
    t.socket[c] = NONE
    this.#queue.close(socket, this.#closeTag, c)
  }

  #dropSilent(): void {
    const t = this.#connections
    const q = this.#requests
    const { nowMs } = this.#queue
    this.#silenceAtMs = nowMs + SILENCE_EVERY_MS
    if (this.#lost.length > 0) for (const { page, pages } of this.#lost.splice(0)) this.#freeBuffer(page, pages)
    // what it has sent is not begun when there is room, perhaps much later
    for (const c of [...this.#blocked]) {
      if (!t.isUsed(c) || t.state[c] !== State.RUNNING || t.blocked[c] !== 1) continue
      const silentMs = this.#queue.silentMs(this.#socket(c))
      if (silentMs > SILENT_MS_MAX) this.#drop(c, `its client's host is silent, and what it asked for waits for room`, nowMs - silentMs)
    }
    if (nowMs >= this.#idleSilenceAtMs) this.#noteSilent()
    if (q.inUse === 0) return
    for (let c = 0; c < t.rowsMax; c++) {
      if (!t.isUsed(c) || t.state[c] !== State.RUNNING || t.sending[c] === 0 || nowMs - t.sendMs[c]! < STUCK_MS) continue
      const silentMs = this.#queue.silentMs(this.#socket(c))
      if (silentMs > GONE_MS) this.#drop(c, `its client's host is silent, and does not take its replies`, nowMs - silentMs)
    }
    let looked = NONE
    for (let r = 0; r < q.rowsMax; r++) {
      if (!q.isUsed(r) || q.type[r] === Command.READ || nowMs - q.startedMs[r]! < STUCK_MS) continue
      const c = q.connection[r]!
      if (c === looked || t.state[c] !== State.RUNNING) continue
      looked = c
      const silentMs = this.#queue.silentMs(this.#socket(c))
      if (silentMs > SILENT_MS_MAX) this.#drop(c, `its client's host is silent, and its writes wait`, nowMs - silentMs)
    }
  }

  /** The silence of idle connections is no harm; that it was has to be known when something comes after it. */
  #noteSilent(): void {
    const t = this.#connections
    const { nowMs } = this.#queue
    this.#idleSilenceAtMs = nowMs + IDLE_SILENCE_EVERY_MS
    for (let c = 0; c < t.rowsMax; c++) {
      if (!t.isUsed(c) || t.state[c] !== State.RUNNING || t.staleSinceMs[c] !== 0) continue
      const silentMs = this.#queue.silentMs(this.#socket(c))
      if (silentMs > SILENT_MS_MAX) t.staleSinceMs[c] = nowMs - silentMs
      // its kernel tries again after as much time as it has tried for in vain; it may have been heard since the last look
      if (silentMs > CUT_OFF_MS) t.unsureUntilMs[c] = nowMs + silentMs + 2 * IDLE_SILENCE_EVERY_MS
      else if (nowMs >= t.unsureUntilMs[c]!) t.heardMs[c] = nowMs - silentMs
    }
  }

  /** What has come may be what its client had sent before it went elsewhere: nothing of it is begun. */
  #isStale(c: number): boolean {
    const sinceMs = this.#connections.staleSinceMs[c]!
    if (sinceMs === 0) return false
    this.#drop(c, `its client's host was silent, or this process stood still, and what it sent may be from before that`, sinceMs)
    return true
  }

  /** Whoever sends nonsense as fast as it can does not fill the log. */
  #say(reason: string): void {
    const { nowMs } = this.#queue
    if (nowMs - this.#reasonsSinceMs > REASONS_EVERY_MS) {
      this.#reasonsSinceMs = nowMs
      this.#reasonsLogged = 0
    }
    if (this.#reasonsLogged === REASONS_LOGGED_MAX) {
      this.#reasonsNotLogged++
      return
    }
    this.#reasonsLogged++
    this.#log.log('WARN', 'NBD connection closed', { reason, ...(this.#reasonsNotLogged > 0 ? { others: this.#reasonsNotLogged } : {}) })
    this.#reasonsNotLogged = 0
  }

  /** After a standstill. What already runs below goes on for the rest of its life, which counts from before that. */
  #dropAll(): void {
    const t = this.#connections
    const lostMs = this.#seenMs
    const standstillMs = Math.round(this.#queue.nowMs - this.#turnMs)
    this.#turnMs = this.#queue.nowMs
    let dropped = 0
    for (let c = 0; c < t.rowsMax; c++) {
      if (!t.isUsed(c)) continue
      if (t.state[c] === State.NEGOTIATING) t.staleSinceMs[c] = lostMs
      if (t.state[c] !== State.RUNNING) continue
      dropped++
      this.#drop(c, '', lostMs)
    }
    if (dropped > 0) this.#queue.flight.record(FlightEvent.NBD_STANDSTILL, standstillMs, dropped)
    if (dropped > 0)
      this.#log.log('WARN', 'NBD connections closed: this process stood still, and what they hold may be out of date', { standstillMs, connections: dropped })
  }

  #onClosed(c: number): void {
    if (c === NONE) return
    this.#queue.arena.free(this.#connections.page[c] as never)
    this.#connections.free(c)
  }

  #socket(c: number): Handle {
    return this.#connections.socket[c] as Handle
  }
}
