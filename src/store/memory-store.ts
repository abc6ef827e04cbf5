/**
 * The reference store: the results of `disk-store.ts` from the simplest means, plain objects in memory. Oracle of the property tests, and a disk
 * for the tests of the layers above, which may `kill` it or take its power.
 *
 * Two states are kept: `live` (everything staged in memory) and `durable` (what a power loss leaves), and between them the records that are not
 * durable yet, in order. A crash is `durable` plus the records that survived. Pages are immutable objects, shared by both states.
 *
 * Stricter than the disk store where callers could lean on luck: payloads are copied when `stage` is called and compared again when
 * they count as staged, so that a buffer changed too early is an assertion.
 */
import { assert } from '../base/assert.ts'
import { XsanError } from '../base/errors.ts'
import type { DiskNumber } from '../base/ids.ts'
import { Status } from '../base/status.ts'
import { BLOCK_BYTES, PAGE_BYTES, PAGES_PER_BLOCK } from '../base/units.ts'
import type { IoQueue, Tag } from '../env/ioqueue.ts'
import { ChannelRows, checkPackedRows } from './channel-rows.ts'
import { blockChecksum, compareIds, DigestSum } from './digest.ts'
import {
  type BlockCapture,
  type BlockInstall,
  type BlockRow,
  NO_BLOCK,
  PAGE_LOST,
  PageFlag,
  RecordKind,
  type ReplicaStore,
  type StageRecord,
  type StoreEvents,
} from './store.ts'

type Call = (row: number, status: number, extra: number) => void

interface Page {
  readonly idHigh: number
  readonly idLow: number
  readonly crc: number
  readonly flag: number
  /** DATA pages only. */
  readonly bytes: Uint8Array | null
}

class Block {
  readonly volume: number
  readonly layer: number
  readonly index: number
  readonly slot: number
  readonly pages: Array<Page | undefined> = new Array(PAGES_PER_BLOCK)
  updateHigh = 0
  updateLow = 0
  updateSeq = 0
  timestampMs = 0

  constructor(volume: number, layer: number, index: number, slot: number) {
    this.volume = volume
    this.layer = layer
    this.index = index
    this.slot = slot
  }
}

/** One staged change, complete in itself. */
interface Entry {
  readonly seq: number
  readonly durable: boolean
  readonly apply: (state: State) => void
  /** Asserts that the caller left the payload alone. */
  readonly check: () => void
}

/** What one moment of the disk holds. */
class State {
  readonly blocks = new Map<string, Block>()
  readonly lastHigh: Uint32Array
  readonly lastLow: Uint32Array
  readonly incomplete = new Set<number>()
  readonly rows = new ChannelRows()
  seq = 0

  constructor(slotCount: number) {
    this.lastHigh = new Uint32Array(slotCount)
    this.lastLow = new Uint32Array(slotCount)
  }

  clone(): State {
    const copy = new State(this.lastHigh.length)
    for (const [key, block] of this.blocks) {
      const other = new Block(block.volume, block.layer, block.index, block.slot)
      block.pages.forEach((page, i) => {
        other.pages[i] = page
      })
      other.updateHigh = block.updateHigh
      other.updateLow = block.updateLow
      other.timestampMs = block.timestampMs
      copy.blocks.set(key, other)
    }
    copy.lastHigh.set(this.lastHigh)
    copy.lastLow.set(this.lastLow)
    for (const slot of this.incomplete) copy.incomplete.add(slot)
    copy.rows.merge(-1, this.rows.pack())
    copy.seq = this.seq
    return copy
  }

  raiseLast(slot: number, idHigh: number, idLow: number): void {
    if (compareIds(idHigh, idLow, this.lastHigh[slot]!, this.lastLow[slot]!) <= 0) return
    this.lastHigh[slot] = idHigh
    this.lastLow[slot] = idLow
  }
}

/** A disk at rest; opaque. */
export interface MemoryImage {
  readonly state: State
  readonly lostPower: boolean
  readonly servedSince: ReadonlySet<number>
}

export interface MemoryStoreOptions {
  readonly queue: IoQueue
  readonly disk: DiskNumber
  readonly slotCount: number
  readonly events: StoreEvents
  /** What an earlier store on this disk left. */
  readonly image?: MemoryImage
  readonly capacityBlocks?: number
  /** Of these: kept from clients' new blocks for what other nodes send, half of them for forwards alone. */
  readonly keptBlocks?: number
  /** From `stage` to staged, from staged to durable, and of a read. */
  readonly stageMs?: number
  readonly durableMs?: number
  readonly readMs?: number
  /** No medium: staged is durable (tmpfs). */
  readonly volatile?: boolean
  readonly wallMs?: () => number
  /** Given, a sync of this disk ends soon after `end` was called, and not after `durableMs`. */
  readonly onSync?: (disk: DiskNumber, end: () => void) => void
}

const keyOf = (volume: number, layer: number, index: number): string => `${volume}/${layer}/${index}`
/** Records in memory and not yet staged. */
const RECORDS_MAX = 4096

export class MemoryStore implements ReplicaStore {
  readonly disk: DiskNumber
  readonly slotCount: number
  readonly capacityBytes: number
  readonly journalBytes = 0
  readonly journalUsedBytes = 0
  lostPower: boolean
  readonly #servedSince: Set<number>
  sealed = false
  failed = false
  stagedSeq: number
  durableSeq: number

  readonly #queue: IoQueue
  readonly #events: StoreEvents
  readonly #options: MemoryStoreOptions
  readonly #tag: Tag
  readonly #live: State
  readonly #durable: State
  /** Above durableSeq, in order. */
  #entries: Entry[] = []
  readonly #calls = new Map<number, () => void>()
  #nextCall = 1
  #staging = false
  #syncing = false
  #dead = false
  readonly #session: Uint8Array
  #flushes: Array<{ seq: number; done: Call; row: number }> = []
  #room: Array<() => void> = []
  readonly #rowBlocks: Array<Block | undefined> = []
  readonly #rowOf = new Map<Block, number>()
  #freeRows: number[] = []
  #captures = 0
  #injected = false

  constructor(options: MemoryStoreOptions) {
    this.#options = options
    this.#queue = options.queue
    this.#events = options.events
    this.disk = options.disk
    this.slotCount = options.slotCount
    this.capacityBytes = (options.capacityBlocks ?? 1024) * BLOCK_BYTES
    this.#live = options.image?.state.clone() ?? new State(options.slotCount)
    this.#durable = this.#live.clone()
    this.lostPower = options.image?.lostPower ?? false
    this.#servedSince = new Set(options.image?.servedSince)
    this.stagedSeq = this.durableSeq = this.#live.seq
    this.#session = new Uint8Array(options.slotCount)
    for (const block of this.#live.blocks.values()) this.#giveRow(block)
    this.#tag = options.queue.register('memory store', (row) => {
      const call = this.#calls.get(row)
      this.#calls.delete(row)
      if (!this.#dead) call?.()
    })
  }

  get rows(): ChannelRows {
    return this.#live.rows
  }
  get lastHigh(): Uint32Array {
    return this.#live.lastHigh
  }
  get lastLow(): Uint32Array {
    return this.#live.lastLow
  }
  get usedBytes(): number {
    return this.#live.blocks.size * BLOCK_BYTES
  }
  readonly rejectReason = ''
  get rejectCreate(): boolean {
    return this.#blocksLeft <= this.#blocksKept
  }
  get #blocksLeft(): number {
    return Math.floor((this.capacityBytes - this.usedBytes) / BLOCK_BYTES)
  }
  get #blocksKept(): number {
    return this.#options.keptBlocks ?? 0
  }

  // ---- faults ----------------------------------------------------------------------------------------------------------

  /** SIGKILL: what was staged survives, and `keep` of the records after it. The store is dead; mount the image with a new one. */
  kill(keep = 0): MemoryImage {
    return this.#crash(this.stagedSeq + keep, false)
  }

  /** Power loss: what was durable survives, and `keep` of the records after it. */
  powerLoss(keep = 0): MemoryImage {
    return this.#crash(this.durableSeq + keep, true)
  }

  /** The next mount finds this page's content changed, its CRC not. */
  rot(block: BlockRow, page: number): void {
    const of = this.#block(block)
    const old = of.pages[page]
    assert(old?.bytes != null, `page ${page} has no data`)
    const bytes = old.bytes.slice()
    bytes[7] = bytes[7]! ^ 0x10
    of.pages[page] = { ...old, bytes }
  }

  /** A leaf of the page table is gone, and with it what is known of its pages: now, and at the next mount. */
  loseLeaf(volume: number, layer: number, index: number, leaf: number): void {
    for (const state of [this.#live, this.#durable]) {
      const { pages } = state.blocks.get(keyOf(volume, layer, index))!
      const count = PAGES_PER_BLOCK / 4
      pages.fill({ idHigh: 0, idLow: 0, crc: 0, flag: PageFlag.DATA | PAGE_LOST, bytes: null }, leaf * count, (leaf + 1) * count)
    }
  }

  /** From now on the disk fails. */
  fail(reason: string): void {
    if (this.failed || this.#dead) return
    this.failed = true
    this.#events.onFailed(reason)
    for (const flush of this.#flushes.splice(0)) this.#later(0, () => flush.done(flush.row, Status.WRITE_FAILED, 0))
  }

  /** Reads end with READ_FAILED while set. */
  failReads(on: boolean): void {
    this.#injected = on
  }

  #crash(upTo: number, lostPower: boolean): MemoryImage {
    assert(!this.#dead, 'crashed twice')
    this.#dead = true
    const state = this.#durable
    for (const entry of this.#entries) if (entry.seq <= upTo) this.#applyTo(state, entry)
    const isClosed = this.sealed && this.durableSeq === this.#live.seq
    const isLost = lostPower && !isClosed
    return { state, lostPower: isLost || this.lostPower, servedSince: isLost ? new Set() : this.#servedSince }
  }

  // ---- hot path --------------------------------------------------------------------------------------------------------

  findBlock(volume: number, layer: number, index: number): BlockRow {
    const block = this.#live.blocks.get(keyOf(volume, layer, index))
    return (block === undefined ? NO_BLOCK : this.#rowOf.get(block)!) as BlockRow
  }

  admit(record: StageRecord, fromHead: boolean): number {
    if (this.failed) return Status.WRITE_FAILED
    if (this.sealed) return Status.BUSY
    if (record.clientHigh !== 0 && !this.rows.hasRoomFor(record.clientHigh, record.clientLow)) return Status.BUSY
    if (this.#live.seq - this.stagedSeq >= (fromHead ? RECORDS_MAX / 2 : RECORDS_MAX)) return Status.BUSY
    const isFull = fromHead ? this.rejectCreate : this.#blocksLeft <= 0
    if (record.kind === RecordKind.WRITE && isFull && this.findBlock(record.volume, record.layer, record.index) === NO_BLOCK) return Status.INSUFFICIENT_SPACE
    return Status.SUCCESS
  }

  onRoom(fn: () => void): void {
    this.#room.push(fn)
  }

  stage(r: StageRecord): number {
    const { kind, slot, idHigh, idLow, volume, layer, index, firstPage, pageCount, payloadPage, clientHigh, clientLow, channel, seq } = r
    assert(slot < this.slotCount, `slot ${slot}`)
    assert(
      this.#session[slot] === 1 || compareIds(idHigh, idLow, this.lastHigh[slot]!, this.lastLow[slot]!) > 0,
      `slot ${slot}: id ${idHigh}:${idLow} staged after ${this.lastHigh[slot]}:${this.lastLow[slot]}`,
    )
    assert(firstPage >= 0 && firstPage + pageCount <= PAGES_PER_BLOCK, `pages ${firstPage}+${pageCount}`)
    assert(pageCount > 0 || kind === RecordKind.EMPTY || kind === RecordKind.REMOVE, `kind ${kind} of no pages`)
    const pages: Page[] = []
    for (let i = 0; i < pageCount; i++) {
      if (kind === RecordKind.WRITE) pages.push({ idHigh, idLow, crc: r.crcs[r.crcFirst + i]!, flag: PageFlag.DATA, bytes: this.#copy(payloadPage + i) })
      else pages.push({ idHigh, idLow, crc: 0, flag: PageFlag.ZERO, bytes: null })
    }
    const wallMs = this.#wallMs()
    const apply = (state: State): void => {
      const key = keyOf(volume, layer, index)
      let block = state.blocks.get(key)
      if (kind === RecordKind.REMOVE) this.#drop(state, key)
      else if (kind !== RecordKind.EMPTY) {
        if (block === undefined && kind === RecordKind.WRITE) block = this.#create(state, volume, layer, index, slot)
        if (block !== undefined) {
          for (let i = 0; i < pageCount; i++) block.pages[firstPage + i] = pages[i]
          block.updateHigh = idHigh
          block.updateLow = idLow
          block.timestampMs = wallMs
        }
      }
      state.raiseLast(slot, idHigh, idLow)
      if (clientHigh !== 0) state.rows.set(clientHigh, clientLow, channel, seq, slot, idHigh, idLow)
    }
    return this.#enter(r.durable, apply, () => this.#allUnchanged(pages, payloadPage))
  }

  newestId(block: BlockRow, firstPage: number, pageCount: number, outId: Uint32Array): void {
    outId[0] = outId[1] = 0
    if (block === NO_BLOCK) return
    for (const page of this.#block(block).pages.slice(firstPage, firstPage + pageCount)) {
      if (page !== undefined && compareIds(page.idHigh, page.idLow, outId[0]!, outId[1]!) > 0) {
        outId[0] = page.idHigh
        outId[1] = page.idLow
      }
    }
  }

  read(block: BlockRow, firstPage: number, pageCount: number, bufferPage: number, done: Call, row: number): void {
    assert(firstPage >= 0 && pageCount > 0 && firstPage + pageCount <= PAGES_PER_BLOCK, `pages ${firstPage}+${pageCount}`)
    const pages = block === NO_BLOCK ? new Array<undefined>(pageCount) : this.#block(block).pages.slice(firstPage, firstPage + pageCount)
    this.#later(this.#options.readMs ?? 0.1, () => {
      const bad = this.#fill(pages, bufferPage)
      done(row, this.#injected ? Status.READ_FAILED : bad < 0 ? Status.SUCCESS : Status.BLOCK_CORRUPTED, bad < 0 ? 0 : firstPage + bad)
    })
  }

  flush(done: Call, row: number): void {
    if (this.failed) this.#later(0, () => done(row, Status.WRITE_FAILED, 0))
    else if (this.#live.seq === this.durableSeq) this.#later(0, () => done(row, Status.SUCCESS, 0))
    else {
      this.#flushes.push({ seq: this.#live.seq, done, row })
      this.#syncSoon()
    }
  }

  pageCrc(block: BlockRow, page: number): number {
    return this.#block(block).pages[page]?.crc ?? 0
  }

  // ---- resync, sweeping, introspection -----------------------------------------------------------------------------------

  startSession(slot: number): number {
    this.#session[slot] = 1
    const apply = (state: State): void => {
      state.lastHigh[slot] = state.lastLow[slot] = 0
      state.incomplete.add(slot)
      state.rows.clearHeld(slot)
    }
    return this.#enter(true, apply, () => {})
  }

  completeSession(slot: number): number {
    const [idHigh, idLow] = [this.lastHigh[slot]!, this.lastLow[slot]!]
    const apply = (state: State): void => {
      state.raiseLast(slot, idHigh, idLow)
      state.incomplete.delete(slot)
    }
    return this.#enter(true, apply, () => {})
  }

  isIncomplete(slot: number): boolean {
    return this.#live.incomplete.has(slot)
  }

  setLast(slot: number, idHigh: number, idLow: number): void {
    assert(this.#session[slot] === 1, `slot ${slot} is in no session`)
    this.lastHigh[slot] = idHigh
    this.lastLow[slot] = idLow
  }

  raiseLast(slot: number, idHigh: number, idLow: number): void {
    this.#live.raiseLast(slot, idHigh, idLow)
  }

  endSession(slot: number): void {
    this.#session[slot] = 0
  }

  blocksOf(slot: number): BlockRow[] {
    const blocks = [...this.#live.blocks.values()].filter((block) => block.slot === slot)
    blocks.sort((a, b) => a.volume - b.volume || a.layer - b.layer || a.index - b.index)
    return blocks.map((block) => this.#rowOf.get(block) as BlockRow)
  }

  blockIdentity(row: BlockRow): { volume: number; layer: number; index: number; slot: number } {
    const { volume, layer, index, slot } = this.#block(row)
    return { volume, layer, index, slot }
  }

  slotDigest(slot: number): [number, number] {
    const sum = new DigestSum()
    for (const row of this.blocksOf(slot)) {
      const block = this.#block(row)
      sum.block(block.volume, block.layer, block.index)
      block.pages.forEach((page, i) => {
        if (page !== undefined) sum.page(i, page.idHigh, page.idLow, page.crc, page.flag & ~PAGE_LOST)
      })
    }
    return sum.value()
  }

  capture(row: BlockRow): BlockCapture {
    const block = this.#block(row)
    const capture = {
      row,
      idHigh: new Uint32Array(PAGES_PER_BLOCK),
      idLow: new Uint32Array(PAGES_PER_BLOCK),
      crc: new Uint32Array(PAGES_PER_BLOCK),
      flags: new Uint8Array(PAGES_PER_BLOCK),
      pages: block.pages.slice(),
    }
    capture.pages.forEach((page, i) => {
      if (page === undefined) return
      capture.idHigh[i] = page.idHigh
      capture.idLow[i] = page.idLow
      capture.crc[i] = page.crc
      capture.flags[i] = page.flag
    })
    this.#captures++
    return capture
  }

  readCaptured(capture: BlockCapture, firstPage: number, pageCount: number, bufferPage: number): Promise<number> {
    const { pages } = capture as BlockCapture & { pages: Array<Page | undefined> }
    return this.#async(this.#options.readMs ?? 0.1, () => {
      if (this.#injected) return Status.READ_FAILED
      return this.#fill(pages.slice(firstPage, firstPage + pageCount), bufferPage) < 0 ? Status.SUCCESS : Status.BLOCK_CORRUPTED
    })
  }

  release(_capture: BlockCapture): void {
    assert(this.#captures > 0, 'a capture released twice')
    this.#captures--
  }

  /** Captures not yet released: zero at the end of a clean stop. */
  get captures(): number {
    return this.#captures
  }

  install(given: BlockInstall): number {
    const { slot, volume, layer, index, lastHigh, lastLow, remove } = given
    const { pages, payloadPage } = given
    const rows = given.rows.slice()
    checkPackedRows(rows)
    const contents: Page[] = []
    let payload = payloadPage
    pages.forEach((_page, i) => {
      const flag = given.flags[i]!
      const bytes = flag === PageFlag.DATA ? this.#copy(payload++) : null
      contents.push({ idHigh: given.idHigh[i]!, idLow: given.idLow[i]!, crc: given.crc[i]!, flag, bytes })
    })
    const numbers = Uint16Array.from(pages)
    const creates = !remove && contents.some((page) => page.flag !== PageFlag.NEVER)
    if (creates && this.#blocksLeft <= this.#blocksKept / 2 && this.findBlock(volume, layer, index) === NO_BLOCK)
      throw new XsanError('INSUFFICIENT_SPACE', `disk ${this.disk} has no extent for a block of volume ${volume}`)
    const wallMs = this.#wallMs()
    const apply = (state: State): void => {
      const key = keyOf(volume, layer, index)
      if (remove) this.#drop(state, key)
      let block = state.blocks.get(key)
      if (block === undefined && creates) block = this.#create(state, volume, layer, index, slot)
      if (block !== undefined) {
        for (const [i, page] of contents.entries()) block.pages[numbers[i]!] = page.flag === PageFlag.NEVER ? undefined : page
        newestOf(block)
        block.timestampMs = wallMs
      }
      state.rows.merge(slot, rows)
      if (lastHigh !== 0 || lastLow !== 0) state.raiseLast(slot, lastHigh, lastLow)
    }
    const data = contents.filter((page) => page.flag === PageFlag.DATA)
    return this.#enter(true, apply, () => this.#allUnchanged(data, payloadPage))
  }

  async repairPage(
    row: BlockRow,
    page: number,
    idHigh: number,
    idLow: number,
    payloadPage: number,
    crc: number,
    flag: number = PageFlag.DATA,
  ): Promise<boolean> {
    const { volume, layer, index } = this.#block(row)
    const key = keyOf(volume, layer, index)
    const old = this.#block(row).pages[page]
    if (old === undefined) return false
    const isUnknown = (old.flag & PAGE_LOST) !== 0 && old.idHigh === 0 && old.idLow === 0
    const isSame = compareIds(old.idHigh, old.idLow, idHigh, idLow) === 0 && old.crc === crc && flag === PageFlag.DATA
    if (!isUnknown && !isSame) return false
    const repaired = flag === PageFlag.NEVER ? undefined : { idHigh, idLow, crc, flag, bytes: flag === PageFlag.DATA ? this.#copy(payloadPage) : null }
    const seq = this.#enter(
      true,
      (state) => {
        const block = state.blocks.get(key)
        if (block !== undefined) block.pages[page] = repaired
      },
      () => repaired !== undefined && this.#unchanged(repaired, payloadPage),
    )
    while (this.durableSeq < seq && !this.failed) await this.#async(0.5, () => {})
    return true
  }

  async ioEnded(): Promise<void> {}

  async forgetPowerLoss(): Promise<void> {
    this.lostPower = false
    this.#servedSince.clear()
  }

  async forgetPowerLossOf(slots: readonly number[]): Promise<void> {
    for (const slot of slots) this.#servedSince.add(slot)
  }

  hasLostPower(slot: number): boolean {
    return this.lostPower && !this.#servedSince.has(slot)
  }

  async seal(): Promise<void> {
    this.sealed = true
    this.flush(() => {}, 0)
    while (this.durableSeq < this.#live.seq && !this.failed) await this.#async(0.5, () => {})
  }

  isLost(row: BlockRow, page: number): boolean {
    return ((this.#block(row).pages[page]?.flag ?? 0) & PAGE_LOST) !== 0
  }

  hasLostPages(row: BlockRow): boolean {
    return this.#block(row).pages.some((page) => page !== undefined && (page.flag & PAGE_LOST) !== 0)
  }

  lostPages(limit: number): ReadonlyArray<{ readonly block: BlockRow; readonly page: number }> {
    const lost: Array<{ block: BlockRow; page: number }> = []
    for (const block of this.#live.blocks.values()) {
      block.pages.forEach((each, page) => {
        if (each !== undefined && each.flag & PAGE_LOST && lost.length < limit) lost.push({ block: this.#rowOf.get(block) as BlockRow, page })
      })
    }
    return lost
  }

  async sweep(isGarbage: (volume: number, slot: number) => boolean): Promise<number> {
    const gone = [...this.#live.blocks].filter(([, block]) => isGarbage(block.volume, block.slot))
    for (const [key] of gone)
      this.#enter(
        false,
        (state) => this.#drop(state, key),
        () => {},
      )
    await this.#async(0, () => {})
    return gone.length
  }

  describe(row: BlockRow): ReturnType<ReplicaStore['describe']> {
    const block = this.#block(row)
    return {
      updateHigh: block.updateHigh,
      updateLow: block.updateLow,
      checksum: this.#checksum(block),
      state: block.updateSeq > this.stagedSeq ? 'DIRTY' : 'CLEAN',
      timestampMs: block.timestampMs,
      sizeBytes: block.pages.reduce((max, page, i) => (page !== undefined && page.flag & PageFlag.DATA ? i + 1 : max), 0) * PAGE_BYTES,
      pages: block.pages.filter((page) => page !== undefined && page.flag & PageFlag.DATA).length,
      extent: row,
    }
  }

  listBlocks(volume: number, from: number, limit: number): number[] {
    const indexes = [...this.#live.blocks.values()].filter((block) => block.volume === volume && block.index >= from).map((block) => block.index)
    return indexes.sort((a, b) => a - b).slice(0, limit)
  }

  async close(): Promise<void> {
    while (this.durableSeq < this.#live.seq && !this.failed) {
      this.#syncSoon()
      await this.#async(0.5, () => {})
    }
    this.#dead = true
  }

  /** A store closed in peace, for the next mount. */
  image(): MemoryImage {
    return { state: this.#durable, lostPower: this.lostPower, servedSince: this.#servedSince }
  }

  // ---- below ---------------------------------------------------------------------------------------------------------------

  #block(row: BlockRow): Block {
    const block = this.#rowBlocks[row]
    assert(block !== undefined, `block row ${row} is not in use`)
    return block
  }

  #create(state: State, volume: number, layer: number, index: number, slot: number): Block {
    const block = new Block(volume, layer, index, slot)
    state.blocks.set(keyOf(volume, layer, index), block)
    if (state === this.#live) this.#giveRow(block)
    return block
  }

  #giveRow(block: Block): void {
    const row = this.#freeRows.pop() ?? this.#rowBlocks.length
    this.#rowBlocks[row] = block
    this.#rowOf.set(block, row)
  }

  #drop(state: State, key: string): void {
    const block = state.blocks.get(key)
    if (block === undefined) return
    state.blocks.delete(key)
    if (state !== this.#live) return
    const row = this.#rowOf.get(block)!
    this.#rowBlocks[row] = undefined
    this.#rowOf.delete(block)
    this.#freeRows.push(row)
  }

  #copy(page: number): Uint8Array {
    return this.#queue.arena.bytes.slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
  }

  #unchanged(page: Page, payloadPage: number): void {
    if (page.bytes === null) return
    const { bytes } = this.#queue.arena
    const now = new Uint32Array(bytes.buffer, bytes.byteOffset + payloadPage * PAGE_BYTES, PAGE_BYTES / 4)
    const then = new Uint32Array(page.bytes.buffer, page.bytes.byteOffset, PAGE_BYTES / 4)
    for (let i = 0; i < now.length; i++) if (now[i] !== then[i]) assert(false, `payload page ${payloadPage} changed before it was staged`)
  }

  #allUnchanged(pages: readonly Page[], payloadPage: number): void {
    for (const [i, page] of pages.entries()) this.#unchanged(page, payloadPage + i)
  }

  #fill(pages: ReadonlyArray<Page | undefined>, bufferPage: number): number {
    const { arena } = this.#queue
    let bad = -1
    for (let i = 0; i < pages.length; i++) {
      const at = (bufferPage + i) * PAGE_BYTES
      const page = pages[i]
      if (page?.bytes == null) {
        arena.bytes.fill(0, at, at + PAGE_BYTES)
        if (bad < 0 && page !== undefined && page.flag & PAGE_LOST) bad = i
      } else {
        arena.bytes.set(page.bytes, at)
        if (bad < 0 && arena.crc32c(bufferPage + i, 0, PAGE_BYTES) !== page.crc) bad = i
      }
    }
    return bad
  }

  #checksum(block: Block): number {
    const crcs = Uint32Array.from(block.pages, (page) => page?.crc ?? 0)
    const flags = Uint8Array.from(block.pages, (page) => page?.flag ?? PageFlag.NEVER)
    return blockChecksum(crcs, flags, 0)
  }

  #wallMs(): number {
    return this.#options.wallMs?.() ?? 0
  }

  #applyTo(state: State, entry: Entry): void {
    entry.apply(state)
    state.seq = entry.seq
  }

  #enter(durable: boolean, apply: Entry['apply'], check: Entry['check']): number {
    assert(!this.#dead, 'staged on a store that is gone')
    const entry = { seq: this.#live.seq + 1, durable, apply, check }
    this.#entries.push(entry)
    this.#applyTo(this.#live, entry)
    if (!this.#staging) {
      this.#staging = true
      this.#later(this.#options.stageMs ?? 0.1, () => this.#onStaged())
    }
    return entry.seq
  }

  #onStaged(): void {
    this.#staging = false
    if (this.failed) return
    const before = this.stagedSeq
    const staged = this.#entries.filter((entry) => entry.seq > before)
    for (const entry of staged) entry.check()
    this.stagedSeq = this.#live.seq
    this.#events.onStaged(this.stagedSeq)
    if (this.#options.volatile) this.#makeDurable(this.stagedSeq)
    else if (staged.some((entry) => entry.durable) || this.#flushes.length > 0) this.#syncSoon()
    for (const fn of this.#room.splice(0)) fn()
  }

  #syncSoon(): void {
    if (this.#syncing || this.stagedSeq === this.durableSeq) return
    this.#syncing = true
    const upTo = this.stagedSeq
    const { onSync, durableMs } = this.#options
    const end = () => {
      this.#syncing = false
      if (this.failed) return
      this.#makeDurable(upTo)
      if (this.#flushes.length > 0 || this.#entries.some((entry) => entry.durable && entry.seq <= this.stagedSeq)) this.#syncSoon()
    }
    if (onSync === undefined) this.#later(durableMs ?? 0.5, end)
    else onSync(this.disk, () => this.#later(0, end))
  }

  #makeDurable(upTo: number): void {
    for (const entry of this.#entries) if (entry.seq <= upTo) this.#applyTo(this.#durable, entry)
    this.#entries = this.#entries.filter((entry) => entry.seq > upTo)
    this.durableSeq = upTo
    this.#events.onDurable(upTo)
    const ready = this.#flushes.filter((flush) => flush.seq <= upTo)
    this.#flushes = this.#flushes.filter((flush) => flush.seq > upTo)
    for (const flush of ready) flush.done(flush.row, Status.SUCCESS, 0)
  }

  #later(delayMs: number, fn: () => void): void {
    const call = this.#nextCall
    this.#nextCall = (this.#nextCall % 0x7fff_fffe) + 1
    this.#calls.set(call, fn)
    this.#queue.timeout(delayMs, this.#tag, call)
  }

  #async<T>(delayMs: number, fn: () => T): Promise<T> {
    return new Promise((resolve) => {
      this.#later(delayMs, () => {
        this.#queue.asyncPending = true
        resolve(fn())
      })
    })
  }
}

/** After an install the block's own id is the newest of its pages: pages were replaced wholesale, older ones among them. */
function newestOf(block: Block): void {
  block.updateHigh = block.updateLow = 0
  for (const page of block.pages) {
    if (page === undefined || compareIds(page.idHigh, page.idLow, block.updateHigh, block.updateLow) <= 0) continue
    block.updateHigh = page.idHigh
    block.updateLow = page.idLow
  }
}
