/**
 * The source's side of a resync (protocol 23): every answer is one instant, content, `last` and committed id, and the channel rows of its disk.
 * Bytes: resync-calls.ts.
 *
 * A disk may need a second for each page that it cannot read. A block with dozens of them is answered after several questions: each looks for them, and
 * for their content elsewhere, for WORK_MS_MAX, and what it found out is remembered for the next.
 */
import { Status } from '../base/status.ts'
import { PAGE_BYTES, PAGES_PER_BLOCK } from '../base/units.ts'
import type { AsyncIo } from '../env/async-io.ts'
import type { ReactorLog } from '../placement/messages.ts'
import { type BlockCapture, NO_BLOCK, PAGE_LOST, PageFlag, type ReplicaStore } from '../store/store.ts'
import { CallKind } from '../wire/peer.ts'
import type { BadPages } from './bad-pages.ts'
import { answerOf, type CallAnswer, type Calls } from './calls.ts'
import type { Counters } from './counters.ts'
import type { Replicas } from './replica.ts'
import {
  BLOCK_HEADER_WORDS,
  BLOCKS_PER_LIST,
  blockDigest,
  DIGEST_ARGS_WORDS,
  DIGEST_WORDS,
  firstAfter,
  LIST_WORDS,
  PAGE_WORDS,
  parseBlockArgs,
  parseListArgs,
  SLOTS_PER_CALL,
  servingStore,
} from './resync-calls.ts'
import type { ChainTable } from './table.ts'

/** One DIGESTS answer ends with the slot that takes it past so many blocks. */
const BLOCKS_PER_DIGESTS = 256
/** A page that the source's disk cannot read counts as bad after so many tries. */
const READ_TRIES = 5
const RETRY_MS = 50
const PAGES_NAMED = 16
/** Its asker takes a source that says nothing for longer than CALL_MS_MAX (calls.ts) for stuck. */
const WORK_MS_MAX = 5000
/** What is known of pages that could not be read is believed for so long, of so many. */
const KNOWN_MS = 300_000
const KNOWN_MAX = 16_384

/** A page that could not be read here, as of that update. */
interface Unreadable {
  readonly idHigh: number
  readonly idLow: number
  readonly atMs: number
  /** Nor could anybody else give it. */
  readonly isLost: boolean
}

export class ResyncSource {
  readonly #io: AsyncIo
  readonly #table: ChainTable
  readonly #replicas: Replicas
  readonly #badPages: BadPages
  readonly #counters: Counters
  readonly #log: ReactorLog
  /** Chain version in which it was told last that a block of the slot cannot be read: it is asked for again and again. */
  readonly #told = new Map<number, number>()
  /** By disk, block and page; until the block has been answered. */
  readonly #unreadable = new Map<string, Unreadable>()

  constructor(options: {
    io: AsyncIo
    table: ChainTable
    replicas: Replicas
    badPages: BadPages
    calls: Calls
    counters: Counters
    log: ReactorLog
  }) {
    this.#io = options.io
    this.#table = options.table
    this.#replicas = options.replicas
    this.#badPages = options.badPages
    this.#counters = options.counters
    this.#log = options.log
    options.calls.serve(CallKind.DIGESTS, (_peer, args, capacity) => this.#serveDigests(args, capacity))
    options.calls.serve(CallKind.LIST_BLOCKS, (_peer, args, capacity) => this.#serveList(args, capacity))
    options.calls.serve(CallKind.BLOCK, (_peer, args, capacity) => this.#serveBlock(args, capacity))
  }

  #serveDigests(args: Uint8Array, capacityBytes: number): CallAnswer {
    const bytesEach = DIGEST_ARGS_WORDS * 4
    if (args.length === 0 || args.length % bytesEach !== 0 || args.length / bytesEach > SLOTS_PER_CALL) return answerOf(Status.PROTOCOL_ERROR)
    const asked = new DataView(args.buffer, args.byteOffset, args.length)
    const entries: number[] = []
    let blocks = 0
    let rowStore: ReplicaStore | undefined
    for (let i = 0; i < args.length / bytesEach && blocks <= BLOCKS_PER_DIGESTS; i++) {
      const slot = asked.getUint32(i * bytesEach, true)
      const store = servingStore(this.#table, this.#replicas, slot, asked.getUint32(i * bytesEach + 4, true), asked.getUint32(i * bytesEach + 8, true))
      if (store === null) {
        entries.push(slot, Status.ROUTING_STALE, 0, 0, 0, 0, 0, 0)
        continue
      }
      // one disk's rows per answer
      if (rowStore !== undefined && rowStore !== store) break
      rowStore = store
      blocks += store.blocksOf(slot).length
      const [a, b] = store.slotDigest(slot)
      const [committedHigh, committedLow] = this.#replicas.committedId(slot)
      entries.push(slot, Status.SUCCESS, a, b, store.lastHigh[slot]!, store.lastLow[slot]!, committedHigh, committedLow)
    }
    const rows = rowStore?.rows.pack() ?? new Uint32Array(0)
    return this.#answerWords([entries.length / DIGEST_WORDS, rows.length, 0, 0], entries, rows, capacityBytes)
  }

  #serveList(args: Uint8Array, capacityBytes: number): CallAnswer {
    const asked = parseListArgs(args)
    if (asked === null) return answerOf(Status.PROTOCOL_ERROR)
    const { slot, after } = asked
    const store = servingStore(this.#table, this.#replicas, slot, asked.version, asked.disk)
    if (store === null) return answerOf(Status.ROUTING_STALE)
    const all = store.blocksOf(slot)
    const from = after === undefined ? 0 : firstAfter(store, all, after)
    const blocks = all.slice(from, from + BLOCKS_PER_LIST)
    const more = from + blocks.length < all.length
    const words = new Uint32Array(blocks.length * LIST_WORDS)
    const view = new DataView(words.buffer)
    blocks.forEach((block, i) => {
      const { volume, layer, index } = store.blockIdentity(block)
      const [a, b] = blockDigest(store, block)
      view.setFloat64(i * LIST_WORDS * 4, volume, true)
      words.set([layer, index, a, b], i * LIST_WORDS + 2)
    })
    const rows = more ? new Uint32Array(0) : store.rows.pack()
    const [committedHigh, committedLow] = this.#replicas.committedId(slot)
    const header = [blocks.length, rows.length, store.lastHigh[slot]!, store.lastLow[slot]!, committedHigh, committedLow, more ? 1 : 0, 0]
    return this.#answerWords(header, words, rows, capacityBytes)
  }

  #answerWords(header: readonly number[], entries: ArrayLike<number>, rows: Uint32Array, capacityBytes: number): CallAnswer {
    const lengthBytes = (header.length + entries.length + rows.length) * 4
    if (lengthBytes > capacityBytes) return answerOf(Status.REQUEST_TOO_LARGE)
    const { arena } = this.#io.queue
    const page = arena.alloc(lengthBytes)
    if (page === -1) return answerOf(Status.NO_BUFFER)
    const words = Uint32Array.from({ length: lengthBytes / 4 }, (_, i) =>
      i < header.length ? header[i]! : i < header.length + entries.length ? entries[i - header.length]! : rows[i - header.length - entries.length]!,
    )
    arena.bytes.set(new Uint8Array(words.buffer), page * PAGE_BYTES)
    return { status: Status.SUCCESS, page, lengthBytes, free: () => arena.free(page) }
  }

  async #serveBlock(args: Uint8Array, capacityBytes: number): Promise<CallAnswer> {
    const asked = parseBlockArgs(args)
    if (asked === null) return answerOf(Status.PROTOCOL_ERROR)
    const { slot, volume, layer, index } = asked
    const store = servingStore(this.#table, this.#replicas, slot, asked.version, asked.disk)
    if (store === null) return answerOf(Status.ROUTING_STALE)
    // one instant: no await before everything is taken
    const block = store.findBlock(volume, layer, index)
    const [committedHigh, committedLow] = this.#replicas.committedId(slot)
    const rows = store.rows.pack()
    const lastHigh = store.lastHigh[slot]!
    const lastLow = store.lastLow[slot]!
    const capture = block === NO_BLOCK ? null : store.capture(block)
    const differing = capture === null ? [] : differingPages(capture, asked.idHigh, asked.idLow)
    const dataPages = capture === null ? [] : differing.filter((page) => capture.flags[page]! & PageFlag.DATA)
    const dataPage = Math.ceil(((BLOCK_HEADER_WORDS + differing.length * PAGE_WORDS + rows.length) * 4) / PAGE_BYTES)
    const lengthBytes = (dataPage + dataPages.length) * PAGE_BYTES
    const { arena } = this.#io.queue
    const buffer = lengthBytes <= capacityBytes ? arena.alloc(lengthBytes) : -1
    if (buffer === -1) {
      if (capture !== null) store.release(capture)
      return answerOf(lengthBytes <= capacityBytes ? Status.NO_BUFFER : Status.REQUEST_TOO_LARGE)
    }
    const lost = new Set<number>()
    if (capture !== null) {
      const bad: number[] = []
      const mended = new Set<number>()
      const keyOf = (page: number) => `${store.disk}/${volume}/${layer}/${index}/${page}`
      let status = await this.#readCaptured(store, capture, dataPages, buffer + dataPage, bad, keyOf)
      store.release(capture)
      if (status === Status.SUCCESS && bad.length > 0) {
        for (const page of bad) if (this.#known(capture, page, keyOf(page))?.isLost) lost.add(page)
        const wanted = bad.filter((page) => !lost.has(page))
        const places = wanted.map((page) => buffer + dataPage + dataPages.indexOf(page))
        const found = { lost, mended, untilMs: this.#io.queue.nowMs + WORK_MS_MAX }
        status = await this.#badPages.recover(slot, store, { volume, layer, index }, capture, wanted, places, found)
        for (const page of lost) this.#note(capture, page, keyOf(page), true)
      }
      for (const page of status === Status.SUCCESS ? bad : mended) this.#unreadable.delete(keyOf(page))
      if (status !== Status.SUCCESS) {
        if (store.failed) void store.ioEnded().then(() => arena.free(buffer))
        else arena.free(buffer)
        if (this.#told.get(slot) !== asked.version) {
          this.#told.set(slot, asked.version)
          this.#log('WARN', 'a resync source cannot read a block', {
            slot,
            volume,
            index,
            status,
            badPages: bad.slice(0, PAGES_NAMED),
            badPagesCount: bad.length,
          })
        }
        return answerOf(status)
      }
    }
    // the content of lost pages is no part of the answer: what follows them moves up
    let given = 0
    for (const [i, page] of dataPages.entries()) {
      if (lost.has(page)) continue
      const from = (buffer + dataPage + i) * PAGE_BYTES
      if (given < i) arena.bytes.copyWithin((buffer + dataPage + given) * PAGE_BYTES, from, from + PAGE_BYTES)
      given++
    }
    const words = new Uint32Array((dataPage * PAGE_BYTES) / 4)
    words.set([block === NO_BLOCK ? 0 : 1, differing.length, rows.length, dataPage, lastHigh, lastLow, committedHigh, committedLow])
    differing.forEach((page, i) => {
      const flag = lost.has(page) ? PageFlag.DATA | PAGE_LOST : capture!.flags[page]! & ~PAGE_LOST
      words.set([page | (flag << 16), capture!.idHigh[page]!, capture!.idLow[page]!, capture!.crc[page]!], BLOCK_HEADER_WORDS + i * PAGE_WORDS)
    })
    words.set(rows, BLOCK_HEADER_WORDS + differing.length * PAGE_WORDS)
    arena.bytes.set(new Uint8Array(words.buffer), buffer * PAGE_BYTES)
    this.#counters.syncingReads++
    this.#counters.syncingReadBytes += given * PAGE_BYTES
    return { status: Status.SUCCESS, page: buffer, lengthBytes: (dataPage + given) * PAGE_BYTES, free: () => arena.free(buffer) }
  }

  #known({ idHigh, idLow }: BlockCapture, page: number, key: string): Unreadable | undefined {
    const known = this.#unreadable.get(key)
    if (known === undefined || known.idHigh !== idHigh[page] || known.idLow !== idLow[page]) return undefined
    return this.#io.queue.nowMs - known.atMs < KNOWN_MS ? known : undefined
  }

  #note({ idHigh, idLow }: BlockCapture, page: number, key: string, isLost: boolean): void {
    if (this.#unreadable.size >= KNOWN_MAX) this.#unreadable.clear()
    this.#unreadable.set(key, { idHigh: idHigh[page]!, idLow: idLow[page]!, atMs: this.#io.queue.nowMs, isLost })
  }

  /**
   * Content of captured DATA pages to places that follow each other; those that cannot be read go to `bad`. Not SUCCESS: the disk as a whole, or
   * BUSY: it takes too long.
   */
  async #readCaptured(
    store: ReplicaStore,
    capture: BlockCapture,
    pages: readonly number[],
    bufferPage: number,
    bad: number[],
    keyOf: (page: number) => string,
  ): Promise<number> {
    const untilMs = this.#io.queue.nowMs + WORK_MS_MAX
    const isLost = (page: number) => (capture.flags[page]! & PAGE_LOST) !== 0 || this.#known(capture, page, keyOf(page)) !== undefined
    for (let i = 0; i < pages.length; ) {
      const first = pages[i]!
      let run = 1
      while (i + run < pages.length && pages[i + run] === first + run && !isLost(first + run)) run++
      if (isLost(first)) {
        bad.push(first)
        i++
        continue
      }
      const status = await store.readCaptured(capture, first, run, bufferPage + i)
      for (let j = 0; j < run && status !== Status.SUCCESS; j++) {
        const one = await this.#readOne(store, capture, first + j, bufferPage + i + j)
        if (store.failed) return Status.READ_FAILED
        if (one !== Status.SUCCESS) {
          bad.push(first + j)
          this.#note(capture, first + j, keyOf(first + j), false)
        }
        if (this.#io.queue.nowMs >= untilMs) return Status.BUSY
      }
      i += run
    }
    return Status.SUCCESS
  }

  async #readOne(store: ReplicaStore, capture: BlockCapture, page: number, bufferPage: number): Promise<number> {
    for (let tries = 1; ; tries++) {
      const status = await store.readCaptured(capture, page, 1, bufferPage)
      if (status !== Status.READ_FAILED || tries === READ_TRIES || store.failed) return status
      await this.#io.sleep(RETRY_MS)
    }
  }
}

/** Pages of the source whose id is not the asker's; equal id means equal content (protocol 1). A lost page without an id is equal to nothing. */
function differingPages(capture: BlockCapture, idHigh: Uint32Array, idLow: Uint32Array): number[] {
  const differing: number[] = []
  for (let page = 0; page < PAGES_PER_BLOCK; page++) {
    if (capture.idHigh[page] !== (idHigh[page] ?? 0) || capture.idLow[page] !== (idLow[page] ?? 0)) differing.push(page)
    else if (capture.flags[page]! & PAGE_LOST && capture.idHigh[page] === 0 && capture.idLow[page] === 0) differing.push(page)
  }
  return differing
}
