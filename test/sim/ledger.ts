/**
 * What was written to the journal of one disk, and what the disk must therefore hold when it is mounted again: a simple model beside the store.
 *
 *   record of position 1, 2, 3, ... as encoded ──> kept here in order
 *   mount: the journal was read up to position S ──> the records up to S are applied to the model, the others have never been
 *
 * Then, by the store's own contract (src/store/store.ts): S is at least the last record that was durable and, if the host kept its power, the last
 * that was staged; and blocks, page ids, channel rows and `last` of the store are those of the model. (Content is what the history looks at.)
 * A repair of a page is looked at when it is written: it brings content for the id that the page has by then, not for one that it had. Channel rows are
 * looked at when some expire: only those of clients that have been fenced go (protocol 7).
 */
import { PAGES_PER_BLOCK } from '../../src/base/units.ts'
import { svOf } from '../../src/chain/records.ts'
import { type ChannelRows, ROW_WORDS } from '../../src/store/channel-rows.ts'
import type { DiskStore } from '../../src/store/disk-store.ts'
import { INSTALL_ENTRY_BYTES, InstallFlag, JournalKind, RecordHeader } from '../../src/store/layout.ts'
import { type BlockRow, PAGE_LOST, PageFlag } from '../../src/store/store.ts'

const TWO_32 = 0x1_0000_0000

interface Op {
  readonly position: number
  readonly kind: number
  readonly flags: number
  readonly slot: number
  readonly volume: number
  readonly layer: number
  readonly index: number
  readonly firstPage: number
  readonly pageCount: number
  readonly idHigh: number
  readonly idLow: number
  readonly clientHigh: number
  readonly clientLow: number
  readonly channel: number
  readonly seq: number
  /** Of an install: {page | flag << 16, crc, idHigh, idLow} each, or packed rows. */
  readonly words: Uint32Array | undefined
}

interface BlockModel {
  readonly slot: number
  readonly idHigh: Uint32Array
  readonly idLow: Uint32Array
}

interface RowModel {
  seq: number
  slot: number
  held: boolean
  idHigh: number
  idLow: number
}

interface LogEntry {
  readonly idHigh: number
  readonly sv: number
  readonly volume: number
  readonly position: number
}

export interface BlockName {
  readonly volume: number
  readonly layer: number
  readonly index: number
}

export class Ledger {
  /** Behind `#base`, in order. */
  #ops: Op[] = []
  /** Position up to which the model holds everything. */
  #base = 0
  readonly #blocks = new Map<string, BlockModel>()
  readonly #rows = new Map<string, RowModel>()
  readonly #last = new Map<number, { high: number; low: number }>()
  readonly #incomplete = new Set<number>()
  #parts: Op[] = []
  /** By client: rows of incarnations below have gone. */
  readonly #expired = new Map<number, number>()
  /** The store that wrote to it, and the boot of its host. */
  #store: DiskStore | undefined
  #powerCycles = -1
  #lostPowerMs = Number.NEGATIVE_INFINITY
  /** By slot: what was staged as a record of the slot's log, in order, and the sv up to which resync has brought the slot. */
  readonly #logs = new Map<number, LogEntry[]>()
  readonly #resynced = new Map<number, number>()
  /** And the position that says so, and that of the beginning of the last one. */
  readonly #resyncedAt = new Map<number, number>()
  readonly #resyncBegan = new Map<number, number>()

  /** Told of what is wrong as it happens. */
  onBroken: ((promise: string, detail: string) => void) | undefined
  /** Pages whose leaf is lost, as of the last try to repair them: they take any id. */
  readonly #unknown = new Set<string>()

  /** Call when the disk has been mounted, before the store is used: says what is wrong with it, and listens to it from now on. */
  mounted(store: DiskStore, view: DataView, powerCycles: number, nowMs: number): string[] {
    const found: string[] = []
    const [before, position] = [this.#store, store.stagedSeq]
    const newest = this.#base + this.#ops.length
    if (position > newest) found.push(`record ${position} came back, and ${newest} is the last that was written`)
    if (before && position < before.durableSeq) found.push(`what was written ends with record ${position}, and ${before.durableSeq} was durable`)
    if (before && !before.failed && powerCycles === this.#powerCycles && position < before.stagedSeq)
      found.push(`what was written ends with record ${position} though the power stayed, and ${before.stagedSeq} was staged`)
    this.#apply(position)
    if (found.length === 0) this.#compare(store, found)
    if (before && powerCycles !== this.#powerCycles) this.#lostPowerMs = nowMs
    this.#store = store
    this.#powerCycles = powerCycles
    this.#listen(store, view)
    return found.map((what) => `disk ${store.disk}, mount ${store.generation}: ${what}`)
  }

  get store(): DiskStore | undefined {
    return this.#store
  }
  /** When it was last mounted after a loss of power: what was in memory alone may be gone since. -Infinity: never. */
  get lostPowerMs(): number {
    return this.#lostPowerMs
  }
  get disk(): number {
    return this.#store?.disk ?? 0
  }
  /** Positions up to which all is in the kernel, and on stable storage. */
  get staged(): number {
    return this.#store?.stagedSeq ?? 0
  }
  get durable(): number {
    return this.#store?.durableSeq ?? 0
  }

  /** Position of the record with that id, if it was staged here and is not lost. */
  positionOf(slot: number, idHigh: number, idLow: number): number | undefined {
    const log = this.#logs.get(slot) ?? []
    const sv = svOf(idHigh, idLow)
    for (let i = log.length - 1; i >= 0; i--) if (log[i]!.sv === sv && log[i]!.idHigh === idHigh) return log[i]!.position
    return undefined
  }

  /** What the slot held up to that sv when a resync of it ended came as blocks, not as records. */
  resyncedTo(slot: number): number {
    return this.#resynced.get(slot) ?? 0
  }

  /** Position of the newest record of the volume up to that sv; 0: there is none. */
  newestOf(slot: number, volume: number, sv: number): number {
    const log = this.#logs.get(slot) ?? []
    for (let i = log.length - 1; i >= 0; i--) if (log[i]!.volume === volume && log[i]!.sv <= sv) return log[i]!.position
    return 0
  }

  /** Position of the record that says that the slot's resync has ended: behind all that it brought. 0: there is none. */
  endOfResync(slot: number): number {
    return this.#resyncedAt.get(slot) ?? 0
  }

  /** Position of the record that says that a resync of the slot has begun, the last one; 0: there is none. */
  beginOfResync(slot: number): number {
    return this.#resyncBegan.get(slot) ?? 0
  }

  /** Pages of records that are not yet durable, newest record first; not of repairs, which leave the page's id as it is. */
  notDurable(look: (block: BlockName, position: number, page: number, idHigh: number, idLow: number) => void): void {
    const { durable } = this
    for (let i = this.#ops.length - 1; i >= 0 && this.#ops[i]!.position > durable; i--) {
      const op = this.#ops[i]!
      if (op.kind === JournalKind.WRITE || op.kind === JournalKind.ZERO) {
        for (let page = op.firstPage; page < op.firstPage + op.pageCount; page++) look(op, op.position, page, op.idHigh, op.idLow)
      } else if (op.kind === JournalKind.INSTALL_PAGES && (op.flags & InstallFlag.REPAIR) === 0) {
        for (let w = 0; w < op.words!.length; w += 4) look(op, op.position, op.words![w]! & 0xffff, op.words![w + 2]!, op.words![w + 3]!)
      }
    }
  }

  /** Whether the slot's log has a removal of the block behind that sv, or one that belongs to no log. */
  isRemovedAfter({ volume, layer, index }: BlockName, sv: number): boolean {
    return this.#ops.some((op) => {
      if (op.volume !== volume || op.index !== index || op.layer !== layer) return false
      if (op.kind === JournalKind.REMOVE) return (op.idHigh === 0 && op.idLow === 0) || svOf(op.idHigh, op.idLow) > sv
      return op.kind === JournalKind.INSTALL_PAGES && (op.flags & InstallFlag.REMOVE) !== 0
    })
  }

  /** Id of the page as the records staged so far leave it. */
  #newestId(op: Op, page: number): { readonly idHigh: number; readonly idLow: number } {
    for (let i = this.#ops.length - 1; i >= 0; i--) {
      const { kind, flags, volume, layer, index, firstPage, pageCount, idHigh, idLow, words } = this.#ops[i]!
      if (index !== op.index || volume !== op.volume || layer !== op.layer) continue
      if (kind === JournalKind.REMOVE) return { idHigh: 0, idLow: 0 }
      if (kind === JournalKind.INSTALL_PAGES) {
        for (let w = 0; w < words!.length; w += 4) if ((words![w]! & 0xffff) === page) return { idHigh: words![w + 2]!, idLow: words![w + 3]! }
        if (flags & InstallFlag.REMOVE) return { idHigh: 0, idLow: 0 }
      } else if (kind <= JournalKind.ZERO && page >= firstPage && page < firstPage + pageCount) return { idHigh, idLow }
    }
    const block = this.#blocks.get(keyOf(op))
    return { idHigh: block?.idHigh[page] ?? 0, idLow: block?.idLow[page] ?? 0 }
  }

  #lookAtRepair(op: Op): void {
    for (let w = 0; w < op.words!.length; w += 4) {
      const page = op.words![w]! & 0xffff
      const [high, low] = [op.words![w + 2]!, op.words![w + 3]!]
      const { idHigh, idLow } = this.#newestId(op, page)
      if ((idHigh === high && idLow === low) || this.#unknown.has(`${keyOf(op)} ${page}`)) continue
      this.onBroken?.(
        'a repair brings what the page holds',
        `page ${page} of block ${op.volume}:${op.index} of disk ${this.disk} is repaired as of ${high}:${low}, and it is ${idHigh}:${idLow}`,
      )
    }
  }

  #enter({ kind, slot, idHigh, idLow, volume, position }: Op): void {
    if (kind === JournalKind.SESSION) this.#resyncBegan.set(slot, position)
    if (kind === JournalKind.COMPLETE) {
      this.#resynced.set(slot, svOf(idHigh, idLow))
      this.#resyncedAt.set(slot, position)
    }
    if (kind > JournalKind.REMOVE) return
    const log = this.#logs.get(slot)
    const entry = { idHigh, sv: svOf(idHigh, idLow), volume, position }
    if (log === undefined) this.#logs.set(slot, [entry])
    else log.push(entry)
  }

  #listen(store: DiskStore, view: DataView): void {
    const { journal, rows } = store
    const { begin, commit } = journal
    const { expire, expireAll } = rows
    let at = -1
    journal.begin = (bytes, payloadPages) => {
      at = begin.call(journal, bytes, payloadPages)
      return at
    }
    journal.commit = (bytes, payloadPage, payloadPages, durable) => {
      const op = parse(view, at, journal.nextSeq)
      if (op.kind === JournalKind.INSTALL_PAGES && (op.flags & InstallFlag.REPAIR) !== 0) this.#lookAtRepair(op)
      const position = commit.call(journal, bytes, payloadPage, payloadPages, durable)
      this.#ops.push(op)
      this.#enter(op)
      return position
    }
    const { repairPage } = store
    store.repairPage = (block, page, ...given) => {
      const id = new Uint32Array(2)
      store.newestId(block, page, 1, id)
      if (id[0] === 0 && id[1] === 0) this.#unknown.add(`${keyOf(store.blockIdentity(block))} ${page}`)
      return repairPage.call(store, block, page, ...given)
    }
    rows.expire = (clientHigh, below) => {
      this.#expired.set(clientHigh, Math.max(below, this.#expired.get(clientHigh) ?? 0))
      const before = rows.count
      expire.call(rows, clientHigh, below)
      if (rows.count < before) this.#lookAtRows(rows)
    }
    rows.expireAll = (isGone) => {
      for (const key of this.#rows.keys()) this.#noteGone(Number(key.split(' ')[0]), isGone)
      for (const { kind, clientHigh, words } of this.#ops) {
        if (kind === JournalKind.INSTALL_ROWS) for (let w = 0; w < words!.length; w += ROW_WORDS) this.#noteGone(words![w]!, isGone)
        else this.#noteGone(clientHigh, isGone)
      }
      expireAll.call(rows, isGone)
    }
  }

  /** Rows have gone: none that its client may still ask for. */
  #lookAtRows(rows: ChannelRows): void {
    const look = (client: number, incarnation: number, channel: number) => {
      if (client === 0 || incarnation < (this.#expired.get(client) ?? 0) || rows.lookup(client, incarnation, channel) >= 0) return
      const detail = `the row of channel ${channel} of client ${client}.${incarnation} has gone from disk ${this.disk}`
      this.onBroken?.('a channel row stays while its client may ask again', detail)
    }
    for (const key of this.#rows.keys()) look(...(key.split(' ').map(Number) as [number, number, number]))
    for (const { kind, clientHigh, clientLow, channel } of this.#ops) if (kind <= JournalKind.REMOVE) look(clientHigh, clientLow, channel)
  }

  #noteGone(clientHigh: number, isGone: (clientHigh: number) => boolean): void {
    if (clientHigh !== 0 && isGone(clientHigh)) this.#expired.set(clientHigh, Number.POSITIVE_INFINITY)
  }

  // ---- the model -----------------------------------------------------------------------------------------------------------

  #apply(position: number): void {
    for (const op of this.#ops) if (op.position <= position) this.#applyOp(op)
    this.#ops = []
    this.#parts = []
    this.#base = position
    for (const [slot, began] of this.#resyncBegan) if (began > position) this.#resyncBegan.delete(slot)
    for (const [slot, log] of this.#logs)
      this.#logs.set(
        slot,
        log.filter((entry) => entry.position <= position),
      )
  }

  #applyOp(op: Op): void {
    const { kind, slot } = op
    if (kind === JournalKind.INSTALL_PAGES || kind === JournalKind.INSTALL_ROWS) {
      if (op.flags & InstallFlag.FIRST) this.#parts = []
      this.#parts.push(op)
      if ((op.flags & InstallFlag.LAST) === 0) return
      for (const part of this.#parts.splice(0)) this.#applyPart(part)
      return
    }
    this.#parts = []
    if (kind === JournalKind.SESSION) {
      this.#last.set(slot, { high: 0, low: 0 })
      this.#incomplete.add(slot)
      for (const row of this.#rows.values()) if (row.slot === slot) row.held = false
      return
    }
    if (kind === JournalKind.COMPLETE) this.#incomplete.delete(slot)
    else if (kind === JournalKind.REMOVE) this.#blocks.delete(keyOf(op))
    else if (kind === JournalKind.WRITE || kind === JournalKind.ZERO) {
      const block = kind === JournalKind.WRITE ? this.#blockOf(op) : this.#blocks.get(keyOf(op))
      block?.idHigh.fill(op.idHigh, op.firstPage, op.firstPage + op.pageCount)
      block?.idLow.fill(op.idLow, op.firstPage, op.firstPage + op.pageCount)
    }
    this.#raiseLast(slot, op.idHigh, op.idLow)
    if (op.clientHigh === 0) return
    const key = `${op.clientHigh} ${op.clientLow} ${op.channel}`
    if (op.seq < (this.#rows.get(key)?.seq ?? 0)) return
    this.#rows.set(key, { seq: op.seq, slot, held: true, idHigh: op.idHigh, idLow: op.idLow })
  }

  #applyPart(op: Op): void {
    const words = op.words!
    if (op.kind === JournalKind.INSTALL_ROWS) {
      for (let w = 0; w < words.length; w += ROW_WORDS) this.#mergeRow(op.slot, words, w)
      this.#raiseLast(op.slot, op.idHigh, op.idLow)
      return
    }
    if (op.flags & InstallFlag.REMOVE) this.#blocks.delete(keyOf(op))
    if (op.pageCount === 0) return
    const block = op.flags & InstallFlag.REPAIR ? this.#blocks.get(keyOf(op)) : this.#blockOf(op)
    if (block === undefined) return
    for (let w = 0; w < words.length; w += 4) {
      const page = words[w]! & 0xffff
      block.idHigh[page] = words[w + 2]!
      block.idLow[page] = words[w + 3]!
    }
  }

  #mergeRow(slot: number, words: Uint32Array, w: number): void {
    const key = `${words[w]} ${words[w + 1]} ${words[w + 2]}`
    const seq = words[w + 3]! * TWO_32 + words[w + 4]!
    const rowSlot = words[w + 5]! & 0x7fff_ffff
    const held = words[w + 5]! >= 0x8000_0000 && rowSlot === slot
    const before = this.#rows.get(key)
    if (before && (seq < before.seq || (seq === before.seq && (!held || before.held)))) return
    this.#rows.set(key, { seq, slot: rowSlot, held, idHigh: words[w + 6]!, idLow: words[w + 7]! })
  }

  #blockOf(op: Op): BlockModel {
    const key = keyOf(op)
    const known = this.#blocks.get(key)
    if (known) return known
    const block = { slot: op.slot, idHigh: new Uint32Array(PAGES_PER_BLOCK), idLow: new Uint32Array(PAGES_PER_BLOCK) }
    this.#blocks.set(key, block)
    return block
  }

  #raiseLast(slot: number, high: number, low: number): void {
    const last = this.#last.get(slot)
    if (last === undefined) this.#last.set(slot, { high, low })
    else if (high > last.high || (high === last.high && low > last.low)) Object.assign(last, { high, low })
  }

  // ---- compared with the store -----------------------------------------------------------------------------------------------

  #compare(store: DiskStore, found: string[]): void {
    let blocks = 0
    for (let slot = 0; slot < store.slotCount; slot++) {
      const incomplete = this.#incomplete.has(slot)
      if (store.isIncomplete(slot) !== incomplete) found.push(`slot ${slot} is ${incomplete ? 'complete, and its resync had not ended' : 'incomplete'}`)
      const { high, low } = this.#last.get(slot) ?? { high: 0, low: 0 }
      // in a session `last` is the position in the stream, and not journaled
      if (!incomplete && (store.lastHigh[slot] !== high || store.lastLow[slot] !== low))
        found.push(`slot ${slot} ends with ${store.lastHigh[slot]}:${store.lastLow[slot]}, not with ${high}:${low}`)
      for (const row of store.blocksOf(slot)) {
        blocks++
        this.#compareBlock(store, row, found)
      }
    }
    if (blocks !== this.#blocks.size) found.push(`it holds ${blocks} blocks, and ${this.#blocks.size} had been written`)
    this.#compareRows(store, found)
  }

  #compareBlock(store: DiskStore, row: BlockRow, found: string[]): void {
    const { volume, layer, index } = store.blockIdentity(row)
    const block = this.#blocks.get(`${volume} ${layer} ${index}`)
    if (block === undefined) {
      found.push(`it holds block ${volume}:${index}, which had been removed`)
      return
    }
    const capture = store.capture(row)
    const { flags, idHigh, idLow } = capture
    store.release(capture)
    for (let page = 0; page < PAGES_PER_BLOCK; page++) {
      if (idHigh[page] === block.idHigh[page] && idLow[page] === block.idLow[page]) continue
      // the leaf that told its id has rotted
      if ((flags[page]! & PAGE_LOST) !== 0 && idHigh[page] === 0 && idLow[page] === 0) continue
      const was = `${block.idHigh[page]}:${block.idLow[page]}`
      found.push(`page ${page} of block ${volume}:${index} has id ${idHigh[page]}:${idLow[page]}${flags[page] === PageFlag.ZERO ? ' (zeros)' : ''}, not ${was}`)
      return
    }
  }

  #compareRows({ rows }: DiskStore, found: string[]): void {
    for (const [key, model] of this.#rows) {
      const [client, incarnation, channel] = key.split(' ').map(Number) as [number, number, number]
      const isExpired = incarnation < (this.#expired.get(client) ?? 0)
      const row = rows.lookup(client, incarnation, channel)
      const [seq, slot, held] = row < 0 ? [0, -1, false] : [rows.seq[row]!, rows.slot[row]!, rows.held[row] === 1]
      const isEqual = row >= 0 && seq === model.seq && slot === model.slot && held === model.held
      // those of a fenced client are dropped in memory alone, and may be back from a peer's; held they are only with their record
      if (isEqual || (isExpired && (seq !== model.seq || !held || model.held))) continue
      const is = row < 0 ? 'is gone' : `says seq ${seq} of slot ${slot}, ${held ? '' : 'not '}held`
      const was = `seq ${model.seq} of slot ${model.slot}, ${model.held ? '' : 'not '}held`
      found.push(`the row of channel ${channel} of client ${client}.${incarnation} ${is}; it was ${was}`)
      return
    }
  }
}

function keyOf({ volume, layer, index }: BlockName): string {
  return `${volume} ${layer} ${index}`
}

/** The record that was encoded there. */
function parse(view: DataView, at: number, position: number): Op {
  const { get } = RecordHeader
  const kind = get.kind(view, at)
  const pageCount = get.pageCount(view, at)
  const rowCount = get.rowCount(view, at)
  let words: Uint32Array | undefined
  if (kind === JournalKind.INSTALL_PAGES || kind === JournalKind.INSTALL_ROWS) {
    const count = kind === JournalKind.INSTALL_PAGES ? (pageCount * INSTALL_ENTRY_BYTES) / 4 : rowCount * ROW_WORDS
    words = new Uint32Array(count)
    for (let w = 0; w < count; w++) words[w] = view.getUint32(at + RecordHeader.size + w * 4, true)
  }
  return {
    position,
    kind,
    flags: get.flags(view, at),
    slot: get.slot(view, at),
    volume: get.volume(view, at),
    layer: get.layer(view, at),
    index: get.index(view, at),
    firstPage: get.firstPage(view, at),
    pageCount,
    idHigh: get.idHigh(view, at),
    idLow: get.idLow(view, at),
    clientHigh: get.clientHigh(view, at),
    clientLow: get.clientLow(view, at),
    channel: get.channel(view, at),
    seq: get.seq(view, at),
    words,
  }
}
