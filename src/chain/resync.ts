/**
 * Resync (protocol 21 to 25): how a SYNCING replica becomes equal to its source, its predecessor in the chain.
 *
 *   returner                                    source
 *      |-- DIGESTS: slots ------------------------>|   of many slots at once; equal slots are done
 *      |-- LIST_BLOCKS: slot, after which block -->|   digests of the blocks; equal blocks are done, blocks the source lacks go
 *      |-- BLOCK: ids of the pages here ---------->|   pages whose id differs, with their content
 *      |   everything durable, stream position past every answer -> upToDate
 *
 * Every answer is one instant of the source: content, its `last` and committed id, the channel rows of its disk. An answer older than what was
 * acknowledged for a block without storing is not installed. Each step looks again whether its session is still the present one.
 *
 * A list of many blocks comes in parts, each with an instant of its own. The list counts as that of its first part's instant (what was acknowledged
 * since is in `skip`, what comes later is stored), the channel rows and the position are those of the last part, and the report waits for the
 * newest of all. A new version between two parts starts the list anew, for the source may be another one.
 *
 * Every question names the source's disk: a node may hold two replicas of a slot, and forwards and answers must come from one (rule 23).
 * Arguments, little-endian words of 32 bits:
 *
 *   DIGESTS      n x (slot, version, disk)
 *   LIST_BLOCKS  slot, version, disk, 1 = after the block that follows | volume f64, layer, index
 *   BLOCK, PAGE  slot, version, volume f64, layer, index, page, whether ids follow, disk (0: any), options | 1024 x (idHigh, idLow)
 *
 * The answers, in the caller's buffer:
 *
 *   DIGESTS      count, rowWords, 0, 0 | count x (slot, status, digestA, digestB, lastHigh, lastLow, committedHigh, committedLow) | rows
 *   LIST_BLOCKS  count, rowWords, lastHigh, lastLow, committedHigh, committedLow, 1 = more to come, 0 | count x (volume f64, layer, index, digestA, digestB) | rows
 *   BLOCK        exists, count, rowWords, dataPage, lastHigh, lastLow, committedHigh, committedLow
 *                | count x (page | flag << 16, idHigh, idLow, crc) | rows | to page `dataPage`: content of the DATA pages
 *   PAGE         content | idHigh, idLow, crc, flag if asked for
 *
 * A page that is bad at its source comes from any member of the chain, whatever its state, that holds the page with the same id and CRC: an id is
 * given once, by the one head of one version (a process that begins anew is another incarnation, and the version is raised before it orders), to
 * one content. So what follows the id in some replica is that content, also when the update was never committed there, or its client gave it up:
 * a Cancel is an update of its own and takes nothing back. Whether the *id* belongs into the block is the asker's knowledge alone, and he asks
 * for the id he has. (A page without an id, its leaf of the page table being lost, comes only from members that serve, and only when committed.)
 *
 * What no member can give is handed on as lost: id and CRC without content, flag DATA | PAGE_LOST. The copy is complete then but for that page,
 * whose reads fail until it is overwritten, trimmed, or found on a member that comes back: lost pages are looked for every HEAL_MS.
 */
import { XsanError } from '../base/errors.ts'
import { Status } from '../base/status.ts'
import { PAGE_BYTES, PAGES_PER_BLOCK } from '../base/units.ts'
import type { PageNumber } from '../env/arena.ts'
import type { AsyncIo } from '../env/async-io.ts'
import { ReplicaState } from '../placement/chain.ts'
import type { LostPage, ResyncStats } from '../placement/messages.ts'
import { ROW_WORDS, ROWS_MAX } from '../store/channel-rows.ts'
import { DigestSum } from '../store/digest.ts'
import { type BlockCapture, type BlockRow, isPageFlag, NO_BLOCK, PAGE_LOST, PageFlag, type ReplicaStore } from '../store/store.ts'
import { CallKind } from '../wire/peer.ts'
import { answerOf, type CallAnswer, type Calls } from './calls.ts'
import type { Counters } from './counters.ts'
import { flushStore } from './flush.ts'
import type { Peers } from './peers.ts'
import { NONE, svOf } from './records.ts'
import type { Replicas } from './replica.ts'
import { type BlockKey, blockKey, type SyncSession } from './session.ts'
import type { ChainTable } from './table.ts'

/** Slots of one DIGESTS call; the source answers for fewer when they hold more than BLOCKS_PER_DIGESTS blocks. */
const SLOTS_PER_CALL = 512
const BLOCKS_PER_DIGESTS = 256
/** Calls under way at one time: bounds the memory (BLOCK answers) and the load on clients' I/O. */
const BLOCK_WINDOW = 4
const LIST_WINDOW = 8
const ROWS_BYTES_MAX = ROWS_MAX * ROW_WORDS * 4
const DIGEST_ARGS_WORDS = 3
const DIGEST_WORDS = 8
const LIST_HEADER_WORDS = 8
const LIST_WORDS = 6
const BLOCK_HEADER_WORDS = 8
const PAGE_WORDS = 4
const LIST_ARGS_WORDS = 8
/** Of one answer: bounds the time of one turn of the source (a digest looks at all page ids of a block). */
const BLOCKS_PER_LIST = 512
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
/** A page that the source's disk cannot read counts as bad after so many tries. */
const READ_TRIES = 5
/** Lost pages are looked for so often, so many at a time; bad ones remembered; named in the stats. */
const HEAL_MS = 10_000
const HEAL_PAGES = 64
const LOST_MAX = 1024
const LOST_NAMED = 64
/** Options of PAGE: the answer carries the flag; any replica of the slot may answer, whatever its state. */
const WITH_FLAG = 1
const ANY_STATE = 2
const PAGE_ABOUT_BYTES = 16

type BlockIdentity = { readonly volume: number; readonly layer: number; readonly index: number }

interface PageId {
  readonly idHigh: number
  readonly idLow: number
  readonly crc: number
}

/** Of asking the other members for a page: NONE_HAS: all that can be asked have said no; UNSURE: one could not say. */
const Fetch = { GIVEN: 0, NONE_HAS: 1, UNSURE: 2 } as const
type Fetch = (typeof Fetch)[keyof typeof Fetch]

/** A page of this node that was read, is bad, and came from nowhere: lost until its id changes. */
interface BadPage extends BlockIdentity {
  readonly slot: number
  readonly page: number
  readonly idHigh: number
  readonly idLow: number
}

export class Resync {
  readonly #io: AsyncIo
  readonly #table: ChainTable
  readonly #replicas: Replicas
  readonly #peers: Peers
  readonly #calls: Calls
  readonly #counters: Counters
  readonly #report: (slot: number, since: number) => void
  readonly #log: (level: 'ERROR' | 'WARN' | 'INFO' | 'DEBUG', message: string, fields: Readonly<Record<string, unknown>>) => void
  #running = false
  #stopped = false
  #bytesMoved = 0
  #bytesNeeded = 0
  /** By place; those that the stores have marked are not here. */
  readonly #bad = new Map<string, BadPage>()
  #healing = false
  #healed = 0
  #round = 0

  constructor(options: {
    io: AsyncIo
    table: ChainTable
    replicas: Replicas
    peers: Peers
    calls: Calls
    counters: Counters
    report: (slot: number, since: number) => void
    log: (level: 'ERROR' | 'WARN' | 'INFO' | 'DEBUG', message: string, fields: Readonly<Record<string, unknown>>) => void
  }) {
    this.#io = options.io
    this.#table = options.table
    this.#replicas = options.replicas
    this.#peers = options.peers
    this.#calls = options.calls
    this.#counters = options.counters
    this.#report = options.report
    this.#log = options.log
    this.#calls.serve(CallKind.DIGESTS, (_peer, args, capacity) => this.#serveDigests(args, capacity))
    this.#calls.serve(CallKind.LIST_BLOCKS, (_peer, args, capacity) => this.#serveList(args, capacity))
    this.#calls.serve(CallKind.BLOCK, (_peer, args, capacity) => this.#serveBlock(args, capacity))
    this.#calls.serve(CallKind.PAGE, (_peer, args, capacity) => this.#servePage(args, capacity))
  }

  stats(): ResyncStats {
    let slotsLeft = 0
    let blocksLeft = 0
    for (const session of this.#replicas.sessions.values()) {
      if (!session.reported) slotsLeft++
      blocksLeft += session.todo.size
    }
    // what a copy that serves nobody lacks is no loss
    const lost = this.lostPages().filter(({ slot }) => this.#table.isOwnMember(slot))
    return { slotsLeft, blocksLeft, bytesMoved: this.#bytesMoved, bytesNeeded: this.#bytesNeeded, lostPages: lost.length, lost: lost.slice(0, LOST_NAMED) }
  }

  /** Pages whose content is gone here and came from nowhere, at most LOST_MAX. */
  lostPages(): LostPage[] {
    const lost: LostPage[] = []
    for (const store of new Set(this.#replicas.stores)) {
      if (store.failed) continue
      for (const { block, page } of store.lostPages(LOST_MAX - lost.length)) {
        const { slot, volume, layer, index } = store.blockIdentity(block)
        if (this.#replicas.storeOf(slot) === store) lost.push({ slot, volume, layer, index, page })
      }
    }
    for (const [key, bad] of this.#bad) {
      if (!this.#isStillBad(bad)) this.#bad.delete(key)
      else if (lost.length < LOST_MAX) lost.push({ slot: bad.slot, volume: bad.volume, layer: bad.layer, index: bad.index, page: bad.page })
    }
    return lost
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
        const answered = await this.#compareBatch(peer, waiting.slice(0, SLOTS_PER_CALL))
        if (answered === 0) return
        hasWorked = true
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
        if (own[0] !== digestA || own[1] !== digestB) continue
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
    const seq = this.#install(store, { ...NO_PAGES, slot: session.slot, volume: 0, layer: 0, index: 0, rows, lastHigh: committedHigh, lastLow: committedLow })
    if (seq < 0) return false
    this.#raise(session, store, committedSv, seq)
    return true
  }

  /** The answer's committed id is the slot's position, once it is in the journal. */
  #raise(session: SyncSession, store: ReplicaStore, committedSv: number, journalSeq: number): void {
    const { slot } = session
    session.journaledSv = Math.max(session.journaledSv, committedSv)
    this.#replicas.raiseEligible(slot, committedSv)
    void this.#replicas.whenDurable(store, journalSeq).then(() => {
      if (this.#isPresent(session)) this.#replicas.raiseReady(slot, committedSv)
    })
  }

  /** Returns the journal position, or -1 when the store has no room now. */
  #install(store: ReplicaStore, given: Parameters<ReplicaStore['install']>[0]): number {
    try {
      return store.install(given)
    } catch (error) {
      if (!(error instanceof XsanError)) throw error
      if (error.status !== 'BUSY')
        this.#log('ERROR', 'a block cannot be installed', { slot: given.slot, volume: given.volume, index: given.index, error: error.message })
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

  /** 3. Pages whose id differs. */
  async #copyBlocks(sessions: readonly SyncSession[]): Promise<boolean> {
    const jobs: Array<{ session: SyncSession; block: BlockIdentity }> = []
    for (const session of sessions) {
      if (session.listedSv < 0 || !this.#isPresent(session)) continue
      for (const block of session.todo.values()) jobs.push({ session, block })
    }
    // another one first each time: where memory is short, one that cannot be had now does not take it from the others for ever
    if (jobs.length > 1) jobs.push(...jobs.splice(0, this.#round++ % jobs.length))
    return inParallel(BLOCK_WINDOW, jobs, ({ session, block }) => this.#copyBlock(session, block))
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
      const journalSeq = this.#install(store, {
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
        this.heal()
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
    const done: Array<{ session: SyncSession; store: ReplicaStore; journalSeq: number }> = []
    for (const session of sessions) {
      if (session.reported || !session.allInstalled || !this.#isPresent(session)) continue
      const { slot } = session
      const lastSv = this.#replicas.lastSv(slot)
      if (lastSv < session.high) continue
      const store = this.#replicas.storeOf(slot)!
      let journalSeq = 0
      // the position in the stream may be known in memory alone: from now on it is the slot's last id
      if (lastSv > session.journaledSv) {
        journalSeq = this.#install(store, {
          ...NO_PAGES,
          slot,
          volume: 0,
          layer: 0,
          index: 0,
          rows: new Uint32Array(0),
          lastHigh: store.lastHigh[slot]!,
          lastLow: store.lastLow[slot]!,
        })
        if (journalSeq < 0) continue
        session.journaledSv = lastSv
      }
      done.push({ session, store, journalSeq })
    }
    if (done.length === 0) return false
    for (const store of new Set(done.map((each) => each.store))) await flushStore(this.#io, store)
    for (const { session, store } of done) {
      if (!this.#isPresent(session) || !session.allInstalled || store.failed) continue
      session.reported = true
      this.#counters.resyncSlotsDone++
      this.#report(session.slot, session.since)
    }
    return true
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

  // ---- the source ------------------------------------------------------------------------------------------------------------

  /** The store of the slot's replica on that disk (0: on any of this node), if it may answer for it in that version. */
  #sourceStore(slot: number, version: number, disk: number): ReplicaStore | null {
    const table = this.#table
    if (slot >= table.slotCount || table.version[slot] !== version || table.ownState[slot]! > ReplicaState.DRAINING) return null
    const store = this.#replicas.storeOf(slot)
    return store === undefined || (disk !== 0 && store.disk !== disk) ? null : store
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
      const store = this.#sourceStore(slot, asked.getUint32(i * bytesEach + 4, true), asked.getUint32(i * bytesEach + 8, true))
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
    const store = this.#sourceStore(slot, asked.version, asked.disk)
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
    const store = this.#sourceStore(slot, asked.version, asked.disk)
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
      let status = await this.#readCaptured(store, capture, dataPages, buffer + dataPage, bad)
      store.release(capture)
      if (status === Status.SUCCESS && bad.length > 0) {
        const places = bad.map((page) => buffer + dataPage + dataPages.indexOf(page))
        status = await this.#recover(slot, { volume, layer, index }, capture, bad, places, lost)
      }
      if (status !== Status.SUCCESS) {
        arena.free(buffer)
        this.#log('WARN', 'a resync source cannot read a block', { slot, volume, index, status, badPages: bad })
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

  /** Content of captured DATA pages to places that follow each other; those that cannot be read go to `bad`. Not SUCCESS: the disk as a whole. */
  async #readCaptured(store: ReplicaStore, capture: BlockCapture, pages: readonly number[], bufferPage: number, bad: number[]): Promise<number> {
    const isLost = (page: number) => (capture.flags[page]! & PAGE_LOST) !== 0
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
        if (one !== Status.SUCCESS) bad.push(first + j)
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

  // ---- bad pages ---------------------------------------------------------------------------------------------------------------

  /**
   * Content of bad pages of a released capture from other members, to `places`, and into the store here. Those that nobody has go to `lost`.
   * Not SUCCESS: it cannot be said now, or is another instant's answer.
   */
  async #recover(
    slot: number,
    block: BlockIdentity,
    capture: BlockCapture,
    bad: readonly number[],
    places: readonly number[],
    lost: Set<number>,
  ): Promise<number> {
    for (const [i, page] of bad.entries()) {
      const wanted = { idHigh: capture.idHigh[page]!, idLow: capture.idLow[page]!, crc: capture.crc[page]! }
      if (isUnknown(wanted)) {
        const found = await this.#repairPage(slot, block, page)
        if (found !== Fetch.NONE_HAS) return Status.BLOCK_CORRUPTED
        lost.add(page)
        continue
      }
      const found = await this.#fetch(slot, block, page, wanted, places[i]!)
      if (found === Fetch.UNSURE) return Status.BLOCK_CORRUPTED
      if (found === Fetch.NONE_HAS) {
        lost.add(page)
        this.#noteBad(slot, block, page, wanted)
        continue
      }
      const store = this.#replicas.storeOf(slot)
      const row = store?.findBlock(block.volume, block.layer, block.index) ?? NO_BLOCK
      if (store === undefined || row === NO_BLOCK) continue
      if (await store.repairPage(row, page, wanted.idHigh, wanted.idLow, places[i]!, wanted.crc)) this.#counters.pagesRepaired++
      else if (store.failed) await store.ioEnded()
    }
    return Status.SUCCESS
  }

  /** Gets the page's content from another replica that holds the same id, and puts it in place. */
  async repair(slot: number, block: BlockIdentity, page: number): Promise<boolean> {
    return (await this.#repairPage(slot, block, page)) === Fetch.GIVEN
  }

  async #repairPage(slot: number, block: BlockIdentity, page: number): Promise<Fetch> {
    const { arena } = this.#io.queue
    const store = this.#replicas.storeOf(slot)
    const row = store?.findBlock(block.volume, block.layer, block.index) ?? NO_BLOCK
    if (store === undefined || row === NO_BLOCK) return Fetch.UNSURE
    const id = new Uint32Array(2)
    store.newestId(row, page, 1, id)
    const wanted = { idHigh: id[0]!, idLow: id[1]!, crc: store.pageCrc(row, page) }
    const buffer = arena.alloc(PAGE_BYTES)
    if (buffer === -1) return Fetch.UNSURE
    try {
      const given: { -readonly [K in keyof PageId]: number } & { flag: number } = { ...wanted, flag: PageFlag.DATA }
      const found = await this.#fetch(slot, block, page, wanted, buffer, given)
      if (found === Fetch.NONE_HAS && !isUnknown(wanted)) this.#noteBad(slot, block, page, wanted)
      if (found !== Fetch.GIVEN) return found
      // the block may have gone, and its row be another's
      if (this.#replicas.storeOf(slot) !== store || store.findBlock(block.volume, block.layer, block.index) !== row) return Fetch.UNSURE
      if (!(await store.repairPage(row, page, given.idHigh, given.idLow, buffer, given.crc, given.flag))) return Fetch.UNSURE
      this.#counters.pagesRepaired++
      this.#bad.delete(placeOf(block, page))
      return Fetch.GIVEN
    } finally {
      if (store.failed) void store.ioEnded().then(() => arena.free(buffer))
      else arena.free(buffer)
    }
  }

  /** Asks the other members for the page with that id and CRC, or for the page as they serve it when the id is unknown; `given` says what came. */
  async #fetch(
    slot: number,
    block: BlockIdentity,
    page: number,
    wanted: PageId,
    into: number,
    given?: { -readonly [K in keyof PageId]: number } & { flag: number },
  ): Promise<Fetch> {
    const table = this.#table
    const { arena } = this.#io.queue
    const any = isUnknown(wanted)
    const buffer = arena.alloc(2 * PAGE_BYTES)
    if (buffer === -1) return Fetch.UNSURE
    let found: Fetch = Fetch.NONE_HAS
    try {
      for (const peer of this.#peers.peers) {
        if (!peer.up || !(any ? table.hasMember(slot, peer.node) : table.hasEntry(slot, peer.node))) continue
        const args = pageArgs(slot, table.version[slot]!, block, page, any ? WITH_FLAG : WITH_FLAG | ANY_STATE)
        const answer = await this.#calls.call(peer.index, CallKind.PAGE, new Uint8Array(args.buffer), buffer, PAGE_BYTES + PAGE_ABOUT_BYTES)
        if (answer.status !== Status.SUCCESS) {
          if (!CANNOT_GIVE.has(answer.status)) found = Fetch.UNSURE
          continue
        }
        if (answer.lengthBytes !== PAGE_BYTES + PAGE_ABOUT_BYTES) continue
        const about = (buffer + 1) * PAGE_BYTES
        const [idHigh, idLow, crc, flag] = [0, 4, 8, 12].map((at) => arena.view.getUint32(about + at, true)) as [number, number, number, number]
        if (flag > PageFlag.ZERO || (flag === PageFlag.DATA && arena.crc32c(buffer, 0, PAGE_BYTES) !== crc)) continue
        if (!any) {
          if (flag !== PageFlag.DATA || idHigh !== wanted.idHigh || idLow !== wanted.idLow) continue
          if (crc !== wanted.crc) {
            this.#log('ERROR', 'two replicas hold different contents of one page id', { slot, ...block, page, idHigh, idLow, node: peer.node })
            continue
          }
        }
        arena.bytes.copyWithin(into * PAGE_BYTES, buffer * PAGE_BYTES, (buffer + 1) * PAGE_BYTES)
        if (given !== undefined) Object.assign(given, { idHigh, idLow, crc, flag })
        this.#log('WARN', 'a bad page was repaired from another replica', { slot, volume: block.volume, index: block.index, page, from: peer.node })
        return Fetch.GIVEN
      }
      return found
    } finally {
      arena.free(buffer)
    }
  }

  // ---- lost pages --------------------------------------------------------------------------------------------------------------

  #noteBad(slot: number, block: BlockIdentity, page: number, { idHigh, idLow }: PageId): void {
    const { volume, layer, index } = block
    const key = placeOf(block, page)
    const old = this.#bad.get(key)
    if ((old === undefined && this.#bad.size >= LOST_MAX) || (old?.idHigh === idHigh && old.idLow === idLow)) return
    const bad = { slot, volume, layer, index, page, idHigh, idLow }
    if (!this.#isStillBad(bad)) return
    this.#bad.set(key, bad)
    this.#log('ERROR', 'a bad page is found on no other replica: reads of it fail until it is written anew', { slot, volume, index, page })
    this.heal()
  }

  /** The page here still is the one that was found bad, and the store has not marked it itself. */
  #isStillBad({ slot, volume, layer, index, page, idHigh, idLow }: BadPage): boolean {
    const store = this.#replicas.storeOf(slot)
    const row = store?.findBlock(volume, layer, index) ?? NO_BLOCK
    if (store === undefined || row === NO_BLOCK) return false
    const id = new Uint32Array(2)
    store.newestId(row, page, 1, id)
    return id[0] === idHigh && id[1] === idLow && !store.isLost(row, page)
  }

  /** Looks for the content of lost pages from now on, until there are none. */
  heal(): void {
    if (this.#healing || this.#stopped) return
    this.#healing = true
    void this.#heal()
  }

  async #heal(): Promise<void> {
    for (;;) {
      await this.#io.sleep(HEAL_MS)
      const lost = this.lostPages()
      if (this.#stopped || lost.length === 0) break
      for (let i = 0; i < Math.min(HEAL_PAGES, lost.length) && !this.#stopped; i++) {
        const { slot, page, ...block } = lost[this.#healed++ % lost.length]!
        if (await this.#isReadable(slot, block, page)) this.#bad.delete(placeOf(block, page))
        else await this.repair(slot, block, page)
      }
    }
    this.#healing = false
  }

  /** A disk that could not read the page may read it another time. */
  async #isReadable(slot: number, block: BlockIdentity, page: number): Promise<boolean> {
    const store = this.#replicas.storeOf(slot)
    const row = store?.findBlock(block.volume, block.layer, block.index) ?? NO_BLOCK
    if (store === undefined || row === NO_BLOCK || store.isLost(row, page)) return false
    const { arena } = this.#io.queue
    const buffer = arena.alloc(PAGE_BYTES)
    if (buffer === -1) return false
    const capture = store.capture(row)
    const status = await store.readCaptured(capture, page, 1, buffer)
    store.release(capture)
    arena.free(buffer)
    return status === Status.SUCCESS
  }

  // ---- one page, for another replica -------------------------------------------------------------------------------------------

  async #servePage(args: Uint8Array, capacityBytes: number): Promise<CallAnswer> {
    const asked = parseBlockArgs(args)
    const aboutBytes = asked !== null && asked.options & WITH_FLAG ? PAGE_ABOUT_BYTES : PAGE_ABOUT_BYTES - 4
    if (asked === null || capacityBytes < PAGE_BYTES + aboutBytes) return answerOf(Status.PROTOCOL_ERROR)
    const { slot, page } = asked
    const anyState = (asked.options & ANY_STATE) !== 0
    const store = anyState && slot < this.#table.slotCount ? this.#replicas.storeOf(slot) : this.#sourceStore(slot, asked.version, asked.disk)
    if (store === undefined || store === null) return answerOf(Status.ROUTING_STALE)
    const block = store.findBlock(asked.volume, asked.layer, asked.index)
    if (block === NO_BLOCK) return answerOf(Status.NOT_FOUND)
    const { arena } = this.#io.queue
    const buffer = arena.alloc(2 * PAGE_BYTES)
    if (buffer === -1) return answerOf(Status.NO_BUFFER)
    const capture = store.capture(block)
    const flag = capture.flags[page]!
    const isCommitted = svOf(capture.idHigh[page]!, capture.idLow[page]!) <= this.#replicas.committed[slot]!
    let status: number = Status.NOT_FOUND
    if (!anyState && !isCommitted) status = Status.BUSY
    else if (flag & PageFlag.DATA) status = await store.readCaptured(capture, page, 1, buffer)
    else if (!anyState && asked.options & WITH_FLAG) {
      arena.bytes.fill(0, buffer * PAGE_BYTES, (buffer + 1) * PAGE_BYTES)
      status = Status.SUCCESS
    }
    const about = (buffer + 1) * PAGE_BYTES
    arena.view.setUint32(about, capture.idHigh[page]!, true)
    arena.view.setUint32(about + 4, capture.idLow[page]!, true)
    arena.view.setUint32(about + 8, capture.crc[page]!, true)
    arena.view.setUint32(about + 12, flag, true)
    store.release(capture)
    if (status !== Status.SUCCESS) {
      arena.free(buffer)
      return answerOf(status)
    }
    return { status, page: buffer, lengthBytes: PAGE_BYTES + aboutBytes, free: () => arena.free(buffer as PageNumber) }
  }
}

/** Answers to PAGE by which a member says that it does not have the content; after any other it may have it all the same. */
const CANNOT_GIVE: ReadonlySet<number> = new Set([Status.BLOCK_CORRUPTED, Status.READ_FAILED, Status.NOT_FOUND, Status.ROUTING_STALE, Status.PROTOCOL_ERROR])

const placeOf = ({ volume, layer, index }: BlockIdentity, page: number): string => `${volume}/${layer}/${index}/${page}`

/** Its leaf of the page table was lost, and the id with it. */
const isUnknown = ({ idHigh, idLow }: PageId): boolean => idHigh === 0 && idLow === 0

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

function blockDigest(store: ReplicaStore, block: BlockRow): [number, number] {
  const { volume, layer, index } = store.blockIdentity(block)
  const capture = store.capture(block)
  const sum = new DigestSum()
  sum.block(volume, layer, index)
  for (let page = 0; page < PAGES_PER_BLOCK; page++) {
    const flag = capture.flags[page]! & ~PAGE_LOST
    if (flag !== PageFlag.NEVER) sum.page(page, capture.idHigh[page]!, capture.idLow[page]!, capture.crc[page]!, flag)
  }
  store.release(capture)
  return sum.value()
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

/** Payload bytes among the answer's that the asker did not hold already. */
function neededBytes(store: ReplicaStore, own: BlockRow, pages: Uint16Array, crc: Uint32Array, flags: Uint8Array): number {
  let needed = 0
  for (let i = 0; i < pages.length; i++) {
    if (flags[i] === PageFlag.DATA && (own === NO_BLOCK || store.pageCrc(own, pages[i]!) !== crc[i])) needed += PAGE_BYTES
  }
  return needed
}

const BLOCK_ARGS_WORDS = 10
/** Both halves of an id that no update has. */
const NO_ID = 0xffff_ffff

function pageArgs(slot: number, version: number, block: BlockIdentity, page: number, options: number, words = new Uint32Array(BLOCK_ARGS_WORDS)): Uint32Array {
  words[0] = slot
  words[1] = version
  new DataView(words.buffer).setFloat64(8, block.volume, true)
  words[4] = block.layer
  words[5] = block.index
  words[6] = page
  words[9] = options
  return words
}

function blockArgs(slot: number, version: number, block: BlockIdentity, store: ReplicaStore, own: BlockRow, disk: number): Uint32Array {
  const hasIds = own !== NO_BLOCK
  const words = pageArgs(slot, version, block, 0, 0, new Uint32Array(BLOCK_ARGS_WORDS + (hasIds ? PAGES_PER_BLOCK * 2 : 0)))
  words[7] = hasIds ? 1 : 0
  words[8] = disk
  if (hasIds) {
    const capture = store.capture(own)
    for (let i = 0; i < PAGES_PER_BLOCK; i++) {
      const isNothing = (capture.flags[i]! & PAGE_LOST) !== 0 && capture.idHigh[i] === 0 && capture.idLow[i] === 0
      words[BLOCK_ARGS_WORDS + i * 2] = isNothing ? NO_ID : capture.idHigh[i]!
      words[BLOCK_ARGS_WORDS + i * 2 + 1] = isNothing ? NO_ID : capture.idLow[i]!
    }
    store.release(capture)
  }
  return words
}

function parseBlockArgs(args: Uint8Array) {
  if (args.length < BLOCK_ARGS_WORDS * 4) return null
  const view = new DataView(args.buffer, args.byteOffset, args.length)
  const word = (i: number) => view.getUint32(i * 4, true)
  const hasIds = word(7) === 1
  const volume = view.getFloat64(8, true)
  if (args.length !== (BLOCK_ARGS_WORDS + (hasIds ? PAGES_PER_BLOCK * 2 : 0)) * 4 || !Number.isSafeInteger(volume) || word(6) >= PAGES_PER_BLOCK) return null
  const idHigh = new Uint32Array(PAGES_PER_BLOCK)
  const idLow = new Uint32Array(PAGES_PER_BLOCK)
  if (hasIds) {
    for (let i = 0; i < PAGES_PER_BLOCK; i++) {
      idHigh[i] = word(BLOCK_ARGS_WORDS + i * 2)
      idLow[i] = word(BLOCK_ARGS_WORDS + i * 2 + 1)
    }
  }
  return { slot: word(0), version: word(1), volume, layer: word(4), index: word(5), page: word(6), disk: word(8), options: word(9), idHigh, idLow }
}

function listArgs(slot: number, version: number, disk: number, after: BlockIdentity | undefined): Uint32Array {
  const words = Uint32Array.of(slot, version, disk, after === undefined ? 0 : 1, 0, 0, after?.layer ?? 0, after?.index ?? 0)
  if (after !== undefined) new DataView(words.buffer).setFloat64(16, after.volume, true)
  return words
}

function parseListArgs(args: Uint8Array) {
  if (args.length !== LIST_ARGS_WORDS * 4) return null
  const view = new DataView(args.buffer, args.byteOffset, args.length)
  const word = (i: number) => view.getUint32(i * 4, true)
  const volume = view.getFloat64(16, true)
  if (!Number.isSafeInteger(volume)) return null
  const after: BlockIdentity | undefined = word(3) === 0 ? undefined : { volume, layer: word(6), index: word(7) }
  return { slot: word(0), version: word(1), disk: word(2), after }
}

function compareBlocks(a: BlockIdentity, b: BlockIdentity): number {
  return a.volume - b.volume || a.layer - b.layer || a.index - b.index
}

/** Index of the first of the blocks, which are in order, that comes after that one. */
function firstAfter(store: ReplicaStore, blocks: readonly BlockRow[], after: BlockIdentity): number {
  let low = 0
  let high = blocks.length
  while (low < high) {
    const middle = (low + high) >> 1
    if (compareBlocks(store.blockIdentity(blocks[middle]!), after) <= 0) low = middle + 1
    else high = middle
  }
  return low
}

interface ListedBlock extends BlockIdentity {
  readonly digestA: number
  readonly digestB: number
}

function listedBlocks(view: DataView, count: number): ListedBlock[] {
  return Array.from({ length: count }, (_, i) => {
    const at = (LIST_HEADER_WORDS + i * LIST_WORDS) * 4
    return {
      volume: view.getFloat64(at, true),
      layer: view.getUint32(at + 8, true),
      index: view.getUint32(at + 12, true),
      digestA: view.getUint32(at + 16, true),
      digestB: view.getUint32(at + 20, true),
    }
  })
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
    const [a, b] = here === undefined ? [-1, -1] : blockDigest(store, here)
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
