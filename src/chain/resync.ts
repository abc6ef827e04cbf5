/**
 * Resync (protocol 21 to 25): how a SYNCING replica becomes equal to its source, its predecessor in the chain. This is the returner's side;
 * resync-source.ts answers, resync-calls.ts has the bytes.
 *
 *   returner                                    source
 *      |-- DIGESTS: slots ------------------------>|   of many slots at once; equal slots are done
 *      |-- LIST_BLOCKS: slot, after which block -->|   digests of the blocks; equal blocks are done, blocks the source lacks go
 *      |-- BLOCK: ids of the pages here ---------->|   pages whose id differs, with their content
 *      |                                           |   (what has lost pages here is not equal, whatever its digest, and they are asked for)
 *      |   stream position past every answer -> the journal says that the slot is complete; durable -> upToDate
 *
 * Every answer is one instant of the source: content, its `last` and committed id, the channel rows of its disk. An answer older than what was
 * acknowledged for a block without storing is not installed. Each step looks again whether its session is still the present one.
 *
 * A list of many blocks comes in parts, each with an instant of its own. The list counts as that of its first part's instant (what was acknowledged
 * since is in `skip`, what comes later is stored), the channel rows and the position are those of the last part, and the report waits for the
 * newest of all. A new version between two parts starts the list anew, for the source may be another one.
 *
 * What the source and all other members have lost of a block is lost here, too, and the rest of it is complete (bad-pages.ts).
 */
import { XsanError } from '../base/errors.ts'
import { Status } from '../base/status.ts'
import { PAGE_BYTES, PAGES_PER_BLOCK } from '../base/units.ts'
import type { AsyncIo } from '../env/async-io.ts'
import type { ReactorLog, ResyncStats } from '../placement/messages.ts'
import { ROW_WORDS } from '../store/channel-rows.ts'
import { type BlockRow, isPageFlag, NO_BLOCK, PAGE_LOST, PageFlag, type ReplicaStore } from '../store/store.ts'
import { CallKind } from '../wire/peer.ts'
import type { BadPages } from './bad-pages.ts'
import type { Calls } from './calls.ts'
import type { Counters } from './counters.ts'
import { flushStore } from './flush.ts'
import type { Peers } from './peers.ts'
import { NONE, svOf } from './records.ts'
import type { Replicas } from './replica.ts'
import {
  BLOCK_HEADER_WORDS,
  BLOCKS_PER_LIST,
  type BlockIdentity,
  blockArgs,
  blockDigest,
  compareBlocks,
  DIGEST_ARGS_WORDS,
  DIGEST_WORDS,
  firstAfter,
  LIST_HEADER_WORDS,
  LIST_WORDS,
  type ListedBlock,
  listArgs,
  listedBlocks,
  PAGE_WORDS,
  ROWS_BYTES_MAX,
  SLOTS_PER_CALL,
} from './resync-calls.ts'
import { type BlockKey, blockKey, type SyncSession } from './session.ts'
import type { ChainTable } from './table.ts'

/** Calls under way at one time: bounds the memory (BLOCK answers) and the load on clients' I/O. */
const BLOCK_WINDOW = 4
const LIST_WINDOW = 8
const BLOCK_ANSWER_BYTES = (PAGES_PER_BLOCK + 1) * PAGE_BYTES + PAGES_PER_BLOCK * PAGE_WORDS * 4 + PAGE_BYTES
/** Everything before a block's content, and every other answer, fits. */
const HEADER_BYTES_MAX = 64 * 1024 + ROWS_BYTES_MAX
/** A block is asked for at most so often in a row; with that few pages left to copy (or at the last try) its slot's forwards are held back. */
const ROUNDS_MAX = 4
const HELD_PAGES_MAX = 64
const DONE = -1
const FAILED = -2
const IDLE_MS = 10
const RETRY_MS = 50
/** So long nothing is copied to a disk that had no space for a new block: each try moves a whole one. */
const FULL_MS = 1000
/** Lost pages that the stats name. */
const LOST_NAMED = 64

export class Resync {
  readonly #io: AsyncIo
  readonly #table: ChainTable
  readonly #replicas: Replicas
  readonly #badPages: BadPages
  readonly #peers: Peers
  readonly #calls: Calls
  readonly #counters: Counters
  readonly #report: (slot: number, since: number) => void
  readonly #log: ReactorLog
  #running = false
  #stopped = false
  #bytesMoved = 0
  #bytesNeeded = 0
  #round = 0
  /** Disks here that had no space for a new block: until when they are left alone. */
  readonly #fullUntilMs = new Map<ReplicaStore, number>()

  constructor(options: {
    io: AsyncIo
    table: ChainTable
    replicas: Replicas
    badPages: BadPages
    peers: Peers
    calls: Calls
    counters: Counters
    report: (slot: number, since: number) => void
    log: ReactorLog
  }) {
    this.#io = options.io
    this.#table = options.table
    this.#replicas = options.replicas
    this.#badPages = options.badPages
    this.#peers = options.peers
    this.#calls = options.calls
    this.#counters = options.counters
    this.#report = options.report
    this.#log = options.log
  }

  stats(): ResyncStats {
    let slotsLeft = 0
    let blocksLeft = 0
    for (const session of this.#replicas.sessions.values()) {
      if (!session.reported) slotsLeft++
      blocksLeft += session.todo.size
    }
    // what a copy that serves nobody lacks is no loss
    const lost = this.#badPages.lostPages().filter(({ slot }) => this.#table.isOwnMember(slot))
    return { slotsLeft, blocksLeft, bytesMoved: this.#bytesMoved, bytesNeeded: this.#bytesNeeded, lostPages: lost.length, lost: lost.slice(0, LOST_NAMED) }
  }

  stop(): void {
    this.#stopped = true
  }

  sessionStarted(): void {
    if (this.#running || this.#stopped) return
    this.#running = true
    this.#bytesMoved = this.#bytesNeeded = 0
    void this.#run()
  }

  // ---- the returner --------------------------------------------------------------------------------------------------------

  async #run(): Promise<void> {
    // a moment, so that all sessions of one table begin together
    await this.#io.sleep(0)
    while (!this.#stopped && [...this.#replicas.sessions.values()].some((session) => !session.reported)) {
      const sessions = [...this.#replicas.sessions.values()].filter((session) => !session.reported)
      const hasWorked = [await this.#compareSlots(sessions), await this.#listSlots(sessions), await this.#copyBlocks(sessions), await this.#finish(sessions)]
      if (!hasWorked.includes(true)) await this.#io.sleep(IDLE_MS)
    }
    this.#running = false
  }

  #isPresent(session: SyncSession): boolean {
    return this.#replicas.sessions.get(session.slot) === session && this.#replicas.storeOf(session.slot) !== undefined
  }

  /** The source's peer, when it can be asked. */
  #sourceOf(slot: number): number {
    return this.#peers.indexOf(this.#table.predecessorNode[slot]!)
  }

  /** 1. Digests of whole slots. */
  async #compareSlots(sessions: readonly SyncSession[]): Promise<boolean> {
    const byPeer = new Map<number, SyncSession[]>()
    for (const session of sessions) {
      if (session.compared || !this.#isPresent(session)) continue
      const peer = this.#sourceOf(session.slot)
      if (peer === NONE) continue
      const of = byPeer.get(peer)
      if (of === undefined) byPeer.set(peer, [session])
      else of.push(session)
    }
    let hasWorked = false
    const perPeer = [...byPeer].map(async ([peer, waiting]) => {
      while (waiting.length > 0) {
        const batch = waiting.slice(0, SLOTS_PER_CALL)
        const answered = await this.#compareBatch(peer, batch)
        if (answered === 0) return
        // not so where the source does not know this version yet, or the journal here is full
        if (batch.some(({ compared }) => compared)) hasWorked = true
        waiting.splice(0, answered)
      }
    })
    await Promise.all(perPeer)
    return hasWorked
  }

  /** How many of the sessions, from the first on, were answered for. */
  async #compareBatch(peer: number, batch: readonly SyncSession[]): Promise<number> {
    const args = new Uint32Array(batch.length * DIGEST_ARGS_WORDS)
    batch.forEach(({ slot }, i) => {
      args.set([slot, this.#table.version[slot]!, this.#table.predecessorDisk[slot]!], i * DIGEST_ARGS_WORDS)
    })
    const capacity = (4 + batch.length * DIGEST_WORDS) * 4 + ROWS_BYTES_MAX
    const answer = await this.#ask(peer, CallKind.DIGESTS, args, capacity)
    if (answer === null) return 0
    try {
      const { words } = answer
      const [count = 0, rowWords = 0] = words
      const rowsAt = 4 + count * DIGEST_WORDS
      if (count === 0 || count > batch.length || rowsAt + rowWords > words.length) return 0
      const rows = words.slice(rowsAt, rowsAt + rowWords)
      // all rows once per disk here, whichever of its slots is the first; then each slot's own, which count as held for it alone
      const given = new Set<ReplicaStore>()
      for (let i = 0; i < count; i++) {
        const [slot, status, digestA, digestB, lastHigh, lastLow, committedHigh, committedLow] = words.subarray(4 + i * DIGEST_WORDS)
        const session = batch[i]!
        if (slot !== session.slot || status !== Status.SUCCESS || !this.#isPresent(session) || session.listedSv >= 0) continue
        const store = this.#replicas.storeOf(session.slot)!
        session.compared = true
        const own = store.slotDigest(session.slot)
        if (own[0] !== digestA || own[1] !== digestB || store.blocksOf(slot).some((block) => store.hasLostPages(block))) continue
        const rowsHere = given.has(store) ? rowsOfSlot(rows, session.slot) : rows
        const installed = this.#installRows(session, store, rowsHere, committedHigh!, committedLow!)
        if (!installed) {
          session.compared = false
          continue
        }
        given.add(store)
        session.listed(svOf(lastHigh!, lastLow!), [])
      }
      return count
    } finally {
      answer.free()
    }
  }

  /** Channel rows and stream position of an answer, without a block. False: no room now. */
  #installRows(session: SyncSession, store: ReplicaStore, rows: Uint32Array, committedHigh: number, committedLow: number): boolean {
    const committedSv = svOf(committedHigh, committedLow)
    if (rows.length === 0 && committedSv === 0) return true
    const seq = this.#install(session, store, {
      ...NO_PAGES,
      slot: session.slot,
      volume: 0,
      layer: 0,
      index: 0,
      rows,
      lastHigh: committedHigh,
      lastLow: committedLow,
    })
    if (seq < 0) return false
    this.#raise(session, store, committedSv, seq)
    return true
  }

  /** The answer's committed id is the slot's position, once it is in the journal. */
  #raise(session: SyncSession, store: ReplicaStore, committedSv: number, journalSeq: number): void {
    const { slot } = session
    this.#replicas.raiseEligible(slot, committedSv)
    void this.#replicas.whenDurable(store, journalSeq).then(() => {
      if (this.#isPresent(session)) this.#replicas.raiseReady(slot, committedSv)
    })
  }

  /** Returns the journal position, or -1 when the store has no room now. */
  #install(session: SyncSession, store: ReplicaStore, given: Parameters<ReplicaStore['install']>[0]): number {
    const { volume, index } = given
    return this.#journaled(session, store, 'a block cannot be installed', { volume, index }, () => store.install(given))
  }

  #journaled(session: SyncSession, store: ReplicaStore, failure: string, about: Readonly<Record<string, unknown>>, write: () => number): number {
    try {
      return write()
    } catch (error) {
      if (!(error instanceof XsanError)) throw error
      if (error.status === 'INSUFFICIENT_SPACE') this.#fullUntilMs.set(store, this.#io.queue.nowMs + FULL_MS)
      // it is tried again and again: a disk stays full for long
      if (error.status !== 'BUSY' && session.refusal !== error.message) {
        session.refusal = error.message
        this.#log('ERROR', failure, { slot: session.slot, ...about, error: error.message })
      }
      return -1
    }
  }

  /** 2. Digests of the blocks of slots that differ. */
  async #listSlots(sessions: readonly SyncSession[]): Promise<boolean> {
    const differing = sessions.filter((session) => session.compared && session.listedSv < 0 && this.#isPresent(session))
    return inParallel(LIST_WINDOW, differing, (session) => this.#listSlot(session))
  }

  async #listSlot(session: SyncSession): Promise<boolean> {
    const { slot } = session
    const version = this.#table.version[slot]!
    const differing: BlockIdentity[] = []
    let firstSv = -1
    let high = 0
    let after: BlockIdentity | undefined
    for (;;) {
      const peer = this.#sourceOf(slot)
      if (peer === NONE) return false
      const args = listArgs(slot, version, this.#table.predecessorDisk[slot]!, after)
      const answer = await this.#ask(peer, CallKind.LIST_BLOCKS, args, (LIST_HEADER_WORDS + BLOCKS_PER_LIST * LIST_WORDS) * 4 + ROWS_BYTES_MAX)
      if (answer === null) return false
      try {
        const { words } = answer
        const [count = 0, rowWords = 0, lastHigh = 0, lastLow = 0, committedHigh = 0, committedLow = 0, more = 0] = words
        const rowsAt = LIST_HEADER_WORDS + count * LIST_WORDS
        if (rowsAt + rowWords > words.length || !this.#isPresent(session) || session.listedSv >= 0) return false
        if (after !== undefined && this.#table.version[slot] !== version) return false
        const store = this.#replicas.storeOf(slot)!
        const listed = listedBlocks(answer.view, count)
        const last = listed.at(-1)
        if (more === 1 && (last === undefined || (after !== undefined && compareBlocks(last, after) <= 0))) {
          this.#malformed(session)
          return false
        }
        compareList(store, slot, listed, after, more === 1 ? last : undefined, differing)
        const lastSv = svOf(lastHigh, lastLow)
        if (firstSv < 0) firstSv = lastSv
        high = Math.max(high, lastSv)
        if (more === 1) {
          after = last
          continue
        }
        if (!this.#installRows(session, store, words.slice(rowsAt, rowsAt + rowWords), committedHigh, committedLow)) return false
        session.listed(firstSv, differing, high)
        return true
      } finally {
        answer.free()
      }
    }
  }

  #isFull(store: ReplicaStore): boolean {
    return this.#io.queue.nowMs < (this.#fullUntilMs.get(store) ?? 0)
  }

  /** 3. Pages whose id differs. */
  async #copyBlocks(sessions: readonly SyncSession[]): Promise<boolean> {
    const jobs: Array<{ session: SyncSession; block: BlockIdentity }> = []
    for (const session of sessions) {
      if (session.listedSv < 0 || !this.#isPresent(session) || this.#isFull(this.#replicas.storeOf(session.slot)!)) continue
      // there may be hundreds of thousands of blocks: they are not tried one after the other to hear each time that their source is away
      if (this.#sourceOf(session.slot) === NONE) continue
      for (const block of session.todo.values()) jobs.push({ session, block })
    }
    // another one first each time: where memory is short, one that cannot be had now does not take it from the others for ever
    const first = jobs.length > 1 ? this.#round++ % jobs.length : 0
    return inParallel(BLOCK_WINDOW, [...jobs.slice(first), ...jobs.slice(0, first)], ({ session, block }) => this.#copyBlock(session, block))
  }

  /**
   * Under a steady load the first answer is mostly too old when it arrives. Its pages are kept as own data that is not trusted, so that
   * the next answer is small; and for that one the slot's forwards are held back here, so that nothing can be acknowledged unstored
   * meanwhile: it is new enough (forwards may take their time; their senders wait a few ms longer).
   */
  async #copyBlock(session: SyncSession, block: BlockIdentity): Promise<boolean> {
    for (let round = 1, differed = Number.POSITIVE_INFINITY; ; round++) {
      const holds = differed <= HELD_PAGES_MAX || round === ROUNDS_MAX
      if (holds) this.#replicas.holdForwards(session)
      let isHeld = holds
      const pages = await this.#copyOnce(session, block, () => {
        if (isHeld) this.#replicas.releaseForwards(session)
        isHeld = false
      })
      if (pages === DONE) return true
      if (pages === FAILED || round === ROUNDS_MAX) return false
      differed = pages
    }
  }

  /** DONE: installed. FAILED: try again later. Else: the answer was too old, and so many pages of it were kept. `settled`: the answer is dealt with. */
  async #copyOnce(session: SyncSession, block: BlockIdentity, settled: () => void): Promise<number> {
    try {
      return await this.#copyAnswer(session, block, settled)
    } finally {
      settled()
    }
  }

  async #copyAnswer(session: SyncSession, { volume, layer, index }: BlockIdentity, settled: () => void): Promise<number> {
    const { slot } = session
    const peer = this.#sourceOf(slot)
    const store = this.#replicas.storeOf(slot)
    if (peer === NONE || store === undefined || !this.#isPresent(session)) return FAILED
    const own = store.findBlock(volume, layer, index)
    if (own === NO_BLOCK && this.#isFull(store)) return FAILED
    const answer = await this.#ask(
      peer,
      CallKind.BLOCK,
      blockArgs(slot, this.#table.version[slot]!, { volume, layer, index }, store, own, this.#table.predecessorDisk[slot]!),
      BLOCK_ANSWER_BYTES + ROWS_BYTES_MAX,
    )
    if (answer === null) return FAILED
    try {
      const { words, page } = answer
      const [exists = 0, count = 0, rowWords = 0, dataPage = 0, lastHigh = 0, lastLow = 0, committedHigh = 0, committedLow = 0] = words
      const rowsAt = BLOCK_HEADER_WORDS + count * PAGE_WORDS
      if (count > PAGES_PER_BLOCK || rowsAt + rowWords > words.length || !this.#isPresent(session)) return FAILED
      const lastSv = svOf(lastHigh, lastLow)
      // older than what was acknowledged without storing: not an installation, its rows and ids count for nothing (rule 23)
      const isTooOld = lastSv < session.skipOf(volume, layer, index)
      if (isTooOld && exists === 0) return 0
      const pages = new Uint16Array(count)
      const idHigh = new Uint32Array(count)
      const idLow = new Uint32Array(count)
      const crc = new Uint32Array(count)
      const flags = new Uint8Array(count)
      let dataPages = 0
      let lostPages = 0
      for (let i = 0; i < count; i++) {
        const at = BLOCK_HEADER_WORDS + i * PAGE_WORDS
        pages[i] = words[at]! & 0xffff
        flags[i] = words[at]! >>> 16
        idHigh[i] = words[at + 1]!
        idLow[i] = words[at + 2]!
        crc[i] = words[at + 3]!
        if (pages[i]! >= PAGES_PER_BLOCK || (i > 0 && pages[i]! <= pages[i - 1]!) || !isPageFlag(flags[i]!)) return this.#malformed(session)
        if (flags[i]! & PAGE_LOST) lostPages++
        if (flags[i] !== PageFlag.DATA) continue
        if ((dataPage + dataPages + 1) * PAGE_BYTES > answer.lengthBytes) return this.#malformed(session)
        if (this.#io.queue.arena.crc32c(page + dataPage + dataPages, 0, PAGE_BYTES) !== crc[i]) return this.#malformed(session)
        dataPages++
      }
      const needed = neededBytes(store, own, pages, crc, flags)
      const journalSeq = this.#install(session, store, {
        slot,
        volume,
        layer,
        index,
        pages,
        idHigh,
        idLow,
        crc,
        flags,
        payloadPage: page + dataPage,
        remove: exists === 0,
        rows: isTooOld ? new Uint32Array(0) : words.slice(rowsAt, rowsAt + rowWords),
        lastHigh: isTooOld ? 0 : committedHigh,
        lastLow: isTooOld ? 0 : committedLow,
      })
      if (journalSeq < 0) {
        settled()
        await this.#io.sleep(RETRY_MS)
        return FAILED
      }
      if (!isTooOld) {
        session.installed(volume, layer, index, lastSv)
        this.#raise(session, store, svOf(committedHigh, committedLow), journalSeq)
      }
      settled()
      if (lostPages > 0) {
        const lost = [...pages].filter((_page, i) => flags[i]! & PAGE_LOST)
        this.#counters.pagesLost += lostPages
        this.#log('ERROR', 'pages that no replica can give are lost: reads of them fail until they are written anew', {
          slot,
          volume,
          layer,
          index,
          pages: lost,
        })
        this.#badPages.heal()
      }
      this.#bytesMoved += dataPages * PAGE_BYTES
      this.#bytesNeeded += needed
      this.#counters.resyncBytesMoved += dataPages * PAGE_BYTES
      this.#counters.resyncBytesNeeded += needed
      await this.#replicas.whenDurable(store, journalSeq)
      return isTooOld ? count : DONE
    } finally {
      if (store.failed) void store.ioEnded().then(answer.free)
      else answer.free()
    }
  }

  #malformed(session: SyncSession): typeof FAILED {
    this.#log('ERROR', 'an answer of a resync source is malformed', { slot: session.slot, node: this.#table.predecessorNode[session.slot] })
    return FAILED
  }

  /** 4. Everything installed, the stream past every answer, the journal durable: report (rule 24). */
  async #finish(sessions: readonly SyncSession[]): Promise<boolean> {
    const done: Array<{ session: SyncSession; store: ReplicaStore }> = []
    for (const session of sessions) {
      if (session.reported || !session.allInstalled || !this.#isPresent(session)) continue
      const { slot } = session
      if (this.#replicas.lastSv(slot) < session.high) continue
      const store = this.#replicas.storeOf(slot)!
      // the position in the stream may be known in memory alone: from now on it is the slot's last id
      if (store.isIncomplete(slot) && this.#journaled(session, store, 'a resync cannot be ended', {}, () => store.completeSession(slot)) < 0) continue
      done.push({ session, store })
    }
    if (done.length === 0) return false
    const durable = new Set<ReplicaStore>()
    for (const store of new Set(done.map((each) => each.store))) if ((await flushStore(this.#io, store)) === Status.SUCCESS) durable.add(store)
    for (const { session, store } of done) {
      if (!this.#isPresent(session) || !session.allInstalled || !durable.has(store)) continue
      session.reported = true
      this.#counters.resyncSlotsDone++
      this.#report(session.slot, session.since)
    }
    return durable.size > 0
  }

  /** One call with its memory. Null: no memory, no answer, or not SUCCESS. */
  async #ask(peer: number, kind: number, args: Uint32Array, capacityBytes: number) {
    const { arena } = this.#io.queue
    const page = arena.alloc(capacityBytes)
    if (page === -1) {
      await this.#io.sleep(RETRY_MS)
      return null
    }
    const result = await this.#calls.call(peer, kind, new Uint8Array(args.buffer, args.byteOffset, args.byteLength), page, capacityBytes)
    const start = page * PAGE_BYTES
    if (result.status !== Status.SUCCESS || result.lengthBytes % 4 !== 0) {
      arena.free(page)
      await this.#io.sleep(IDLE_MS)
      return null
    }
    // a copy of the words, not of the content of a block's pages
    const copy = arena.bytes.slice(start, start + Math.min(result.lengthBytes, HEADER_BYTES_MAX))
    return {
      page,
      lengthBytes: result.lengthBytes,
      words: new Uint32Array(copy.buffer, 0, copy.byteLength >> 2),
      view: new DataView(copy.buffer),
      free: () => arena.free(page),
    }
  }
}

const NO_PAGES = {
  pages: new Uint16Array(0),
  idHigh: new Uint32Array(0),
  idLow: new Uint32Array(0),
  crc: new Uint32Array(0),
  flags: new Uint8Array(0),
  payloadPage: 0,
  remove: false,
} as const

/** Rows held for one slot. */
function rowsOfSlot(rows: Uint32Array, slot: number): Uint32Array {
  const picked: number[] = []
  for (let w = 0; w < rows.length; w += ROW_WORDS) if ((rows[w + 5]! & 0x7fff_ffff) === slot) picked.push(...rows.subarray(w, w + ROW_WORDS))
  return Uint32Array.from(picked)
}

/** Payload bytes among the answer's that the asker did not hold already. */
function neededBytes(store: ReplicaStore, own: BlockRow, pages: Uint16Array, crc: Uint32Array, flags: Uint8Array): number {
  let needed = 0
  for (let i = 0; i < pages.length; i++) {
    if (flags[i] === PageFlag.DATA && (own === NO_BLOCK || store.pageCrc(own, pages[i]!) !== crc[i] || store.isLost(own, pages[i]!))) needed += PAGE_BYTES
  }
  return needed
}

/** Adds the blocks after `after`, up to `last` (all, when undefined), that are not alike here and in the source's list. */
function compareList(
  store: ReplicaStore,
  slot: number,
  listed: readonly ListedBlock[],
  after: BlockIdentity | undefined,
  last: BlockIdentity | undefined,
  differing: BlockIdentity[],
): void {
  const all = store.blocksOf(slot)
  const from = after === undefined ? 0 : firstAfter(store, all, after)
  const to = last === undefined ? all.length : firstAfter(store, all, last)
  const own = new Map<BlockKey, BlockRow>()
  for (const block of all.slice(from, to)) {
    const { volume, layer, index } = store.blockIdentity(block)
    own.set(blockKey(volume, layer, index), block)
  }
  for (const { volume, layer, index, digestA, digestB } of listed) {
    const key = blockKey(volume, layer, index)
    const here = own.get(key)
    own.delete(key)
    const [a, b] = here === undefined || store.hasLostPages(here) ? [-1, -1] : blockDigest(store, here)
    if (a !== digestA || b !== digestB) differing.push({ volume, layer, index })
  }
  // what the source lacks is asked for too: its absence is an answer like any other
  for (const block of own.values()) differing.push(store.blockIdentity(block))
}

/** Runs `work` on each item, `width` at a time. Whether any of it got on. */
async function inParallel<T>(width: number, items: readonly T[], work: (item: T) => Promise<boolean>): Promise<boolean> {
  let next = 0
  let hasWorked = false
  const worker = async () => {
    while (next < items.length) {
      const item = items[next++]!
      if (await work(item)) hasWorked = true
    }
  }
  await Promise.all(Array.from({ length: Math.min(width, items.length) }, worker))
  return hasWorked
}
