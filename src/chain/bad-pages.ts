/**
 * Pages whose content is bad here: they come from other members, and what no member has is lost, as that page, until it is found or written anew.
 *
 * A page that is bad at its place comes from any member of the chain, whatever its state, that holds the page with the same id and CRC: an id is
 * given once, by the one head of one version (a process that begins anew is another incarnation, and the version is raised before it orders), to
 * one content. So what follows the id in some replica is that content, also when the update was never committed there, or its client gave it up:
 * a Cancel is an update of its own and takes nothing back. Whether the *id* belongs into the block is the asker's knowledge alone, and he asks
 * for the id he has. (A page without an id, its leaf of the page table being lost, comes only from members that serve, and only when committed.)
 *
 * What no member can give is handed on by a resync source as lost: id and CRC without content, flag DATA | PAGE_LOST. The copy is complete then
 * but for that page, whose reads fail until it is overwritten, trimmed, or found on a member that comes back: lost pages are looked for every HEAL_MS.
 */
import { Status } from '../base/status.ts'
import { PAGE_BYTES } from '../base/units.ts'
import type { PageNumber } from '../env/arena.ts'
import type { AsyncIo } from '../env/async-io.ts'
import type { LostPage, ReactorLog } from '../placement/messages.ts'
import { type BlockCapture, type BlockRow, NO_BLOCK, PageFlag, type ReplicaStore } from '../store/store.ts'
import { CallKind } from '../wire/peer.ts'
import { answerOf, type CallAnswer, type Calls } from './calls.ts'
import type { Counters } from './counters.ts'
import type { Peers } from './peers.ts'
import { svOf } from './records.ts'
import type { Replicas } from './replica.ts'
import { ANY_STATE, type BlockIdentity, PAGE_ABOUT_BYTES, pageArgs, parseBlockArgs, servingStore, WITH_FLAG } from './resync-calls.ts'
import type { ChainTable } from './table.ts'

/** Lost pages are looked for so often, so many at a time; bad ones remembered. */
const HEAL_MS = 10_000
const HEAL_PAGES = 64
const LOST_MAX = 1024

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

/** Answers to PAGE by which a member says that it does not have the content; after any other it may have it all the same. */
const CANNOT_GIVE: ReadonlySet<number> = new Set([Status.BLOCK_CORRUPTED, Status.READ_FAILED, Status.NOT_FOUND, Status.ROUTING_STALE, Status.PROTOCOL_ERROR])

const placeOf = ({ volume, layer, index }: BlockIdentity, page: number): string => `${volume}/${layer}/${index}/${page}`

/** Its leaf of the page table was lost, and the id with it. */
const isUnknown = ({ idHigh, idLow }: PageId): boolean => idHigh === 0 && idLow === 0

export interface BadPagesOptions {
  readonly io: AsyncIo
  readonly table: ChainTable
  readonly replicas: Replicas
  readonly peers: Peers
  readonly calls: Calls
  readonly counters: Counters
  readonly log: ReactorLog
}

export class BadPages {
  readonly #io: AsyncIo
  readonly #table: ChainTable
  readonly #replicas: Replicas
  readonly #peers: Peers
  readonly #calls: Calls
  readonly #counters: Counters
  readonly #log: ReactorLog
  /** By place; those that the stores have marked are not here. */
  readonly #bad = new Map<string, BadPage>()
  #healing = false
  #healed = 0
  #stopped = false

  constructor(options: BadPagesOptions) {
    this.#io = options.io
    this.#table = options.table
    this.#replicas = options.replicas
    this.#peers = options.peers
    this.#calls = options.calls
    this.#counters = options.counters
    this.#log = options.log
    this.#calls.serve(CallKind.PAGE, (_peer, args, capacity) => this.#servePage(args, capacity))
  }

  stop(): void {
    this.#stopped = true
  }

  /** The block here, if there is one. */
  #own(slot: number, { volume, layer, index }: BlockIdentity): { store: ReplicaStore; row: BlockRow } | undefined {
    const store = this.#replicas.storeOf(slot)
    const row = store?.findBlock(volume, layer, index) ?? NO_BLOCK
    return store === undefined || row === NO_BLOCK ? undefined : { store, row }
  }

  // ---- repair ------------------------------------------------------------------------------------------------------------------

  /** Gets the page's content from another replica that holds the same id, and puts it in place. */
  async repair(slot: number, block: BlockIdentity, page: number): Promise<boolean> {
    return (await this.#repairPage(slot, block, page)) === Fetch.GIVEN
  }

  async #repairPage(slot: number, block: BlockIdentity, page: number): Promise<Fetch> {
    const { arena } = this.#io.queue
    const own = this.#own(slot, block)
    if (own === undefined) return Fetch.UNSURE
    const { store, row } = own
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
      const now = this.#own(slot, block)
      if (now?.store !== store || now.row !== row) return Fetch.UNSURE
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
          // whoever serves the slot and does not know this version will know it soon
          const isBehind = any && answer.status === Status.ROUTING_STALE
          if (isBehind || !CANNOT_GIVE.has(answer.status)) found = Fetch.UNSURE
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

  /**
   * Content of bad pages of a released capture of `store` from other members, to `places`, and into the store, where they are `mended` then. Those
   * that nobody has go to `lost`.
   * Not SUCCESS: it cannot be said now (BUSY: nor until `untilMs`), or is another instant's answer; or the store has failed, and may still read `places`.
   */
  async recover(
    slot: number,
    store: ReplicaStore,
    block: BlockIdentity,
    capture: BlockCapture,
    bad: readonly number[],
    places: readonly number[],
    { lost, mended, untilMs }: { readonly lost: Set<number>; readonly mended: Set<number>; readonly untilMs: number },
  ): Promise<number> {
    // a whole leaf is mended at one go
    let isOtherNow = false
    for (const [i, page] of bad.entries()) {
      if (this.#io.queue.nowMs >= untilMs) return Status.BUSY
      const wanted = { idHigh: capture.idHigh[page]!, idLow: capture.idLow[page]!, crc: capture.crc[page]! }
      if (isUnknown(wanted)) {
        const found = await this.#repairPage(slot, block, page)
        if (found === Fetch.UNSURE) return Status.BLOCK_CORRUPTED
        if (found === Fetch.NONE_HAS) lost.add(page)
        else isOtherNow = true
        continue
      }
      const found = await this.#fetch(slot, block, page, wanted, places[i]!)
      if (found === Fetch.UNSURE) return Status.BLOCK_CORRUPTED
      if (found === Fetch.NONE_HAS) {
        lost.add(page)
        this.#noteBad(slot, block, page, wanted)
        continue
      }
      const own = this.#own(slot, block)
      if (own?.store !== store) continue
      if (await store.repairPage(own.row, page, wanted.idHigh, wanted.idLow, places[i]!, wanted.crc)) {
        this.#counters.pagesRepaired++
        mended.add(page)
      } else if (store.failed) return Status.READ_FAILED
    }
    return isOtherNow ? Status.BLOCK_CORRUPTED : Status.SUCCESS
  }

  // ---- lost pages --------------------------------------------------------------------------------------------------------------

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
  #isStillBad({ slot, page, idHigh, idLow, ...block }: BadPage): boolean {
    const own = this.#own(slot, block)
    if (own === undefined) return false
    const { store, row } = own
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
    const own = this.#own(slot, block)
    if (own === undefined) return false
    const { store, row } = own
    if (store.isLost(row, page)) return false
    const { arena } = this.#io.queue
    const buffer = arena.alloc(PAGE_BYTES)
    if (buffer === -1) return false
    const capture = store.capture(row)
    const status = await store.readCaptured(capture, page, 1, buffer)
    store.release(capture)
    if (store.failed) void store.ioEnded().then(() => arena.free(buffer))
    else arena.free(buffer)
    return status === Status.SUCCESS
  }

  // ---- one page, for another replica -------------------------------------------------------------------------------------------

  async #servePage(args: Uint8Array, capacityBytes: number): Promise<CallAnswer> {
    const asked = parseBlockArgs(args)
    const aboutBytes = asked !== null && asked.options & WITH_FLAG ? PAGE_ABOUT_BYTES : PAGE_ABOUT_BYTES - 4
    if (asked === null || capacityBytes < PAGE_BYTES + aboutBytes) return answerOf(Status.PROTOCOL_ERROR)
    const { slot, page } = asked
    const anyState = (asked.options & ANY_STATE) !== 0
    const store =
      anyState && slot < this.#table.slotCount ? this.#replicas.storeOf(slot) : servingStore(this.#table, this.#replicas, slot, asked.version, asked.disk)
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
      if (store.failed) void store.ioEnded().then(() => arena.free(buffer))
      else arena.free(buffer)
      return answerOf(status)
    }
    return { status, page: buffer, lengthBytes: PAGE_BYTES + aboutBytes, free: () => arena.free(buffer as PageNumber) }
  }
}
