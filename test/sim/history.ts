/**
 * What clients saw, and whether one copy of each page could have given it: linearizability per page.
 *
 * Every write carries a stamp of its own in each 512-byte sector, so a read tells which write each sector of a page came from.
 * A page is a register of eight sectors: a write replaces some of them at one instant between its call and its return, a read sees all
 * that it asked for at one instant.
 *
 * What is not acknowledged is handled exactly:
 * - failed, said by the cluster: took effect between call and return, or never (protocol 16);
 * - its client died: ordered in its slot's log before the end of its life (`deadlineMs`), or never. Who was ordered may have to wait for its
 *   chain, and then takes effect before every write that was called after the deadline;
 * - acknowledged without flush (`sync_when_write: false`) before all power was lost: a page goes back to a content it had, not older than
 *   what was flushed;
 * - read and not acknowledged, and on no disk when the last that served it ended: a page goes back to a content it had, not older than what was
 *   acknowledged (protocol 33).
 *
 * The search is that of Wing and Gong with Lowe's memory of seen configurations, per page, with a bound on the work, and with short cuts that
 * take nothing away (search.test.ts compares it with one that has none of them); a page that is beyond the bound is looked at sector by sector.
 */
import { assert } from '../../src/base/assert.ts'
import { BLOCK_BYTES, PAGE_BYTES, PAGES_PER_BLOCK, SECTOR_BYTES, SECTORS_PER_PAGE } from '../../src/base/units.ts'

/** Sectors never written, and zeroed ones. */
export const STAMP_ZERO = 0
/** Bytes that no write ever put there. */
export const STAMP_GARBAGE = -1
/** In a search: of a write that no read ever saw there. Contents that differ in nothing else have the same future. */
const STAMP_UNSEEN = -2

export type Outcome = 'ok' | 'failed' | 'unknown'

export interface PageOp {
  /** loss: of what is not durable, or (`keepsAcknowledged`) of what is not acknowledged. */
  readonly kind: 'read' | 'write' | 'loss'
  readonly id: number
  readonly client: string
  readonly callMs: number
  returnMs: number
  outcome: Outcome
  /** Sectors of the page it touches. */
  readonly mask: number
  /** write: its stamp. read: filled in on return. */
  readonly stamps: Int32Array
  /** write: nothing can undo it (acknowledged as durable, or flushed; not acknowledged: its volume is durable before anybody sees it). */
  durable: boolean
  /** write: called before a loss of power that may have taken it. */
  maybeLost?: boolean
  /** write of a client that died, and may have waited for its chain: the end of its life. It goes before every write that was called later. */
  readonly deadlineMs?: number
  readonly keepsAcknowledged?: boolean
  /** loss: somebody's memory may hold what there is all the same, so that the next loss may take it. */
  readonly mayBeNone?: boolean
  /** write, not acknowledged: that it took effect up to then and was lost is said by another operation. */
  lostUntilMs?: number
}

export interface Violation {
  readonly promise: string
  readonly detail: string
}

const SHOWN_OF_EACH = 3

/** For people: what breaks a promise often breaks it on many pages. The first of each, and how many there are more. */
export function shownOf(violations: readonly Violation[]): Violation[] {
  const shown: Violation[] = []
  for (const promise of new Set(violations.map((violation) => violation.promise))) {
    const all = violations.filter((violation) => violation.promise === promise)
    const more = all.length - SHOWN_OF_EACH
    shown.push(...all.slice(0, SHOWN_OF_EACH), ...(more > 0 ? [{ promise, detail: `and ${more} more` }] : []))
  }
  return shown
}

/** One operation of a client, as `History` numbers it. */
export interface OpenOp {
  readonly id: number
  readonly kind: 'read' | 'write'
  readonly volume: number
  readonly offsetBytes: number
  readonly lengthBytes: number
  readonly pages: Array<{ readonly key: string; readonly op: PageOp }>
}

const CONFIGURATIONS_MAX = 1_000_000
const SECTOR_WORDS = SECTOR_BYTES / 4

export class History {
  readonly #pages = new Map<string, PageOp[]>()
  /** By block: writes of zeros to all of it. Each is one operation to all pages, also to those that nobody has touched yet. */
  readonly #blockZeros = new Map<string, PageOp[]>()
  readonly #open = new Set<OpenOp>()
  readonly #unflushed = new Map<number, PageOp[]>()
  /** The same, acknowledged before a loss of power that may have taken them; whose client has not been told of it. */
  readonly #untold = new Map<number, PageOp[]>()
  /** By client: what its flushes and those of others on it are told together. */
  readonly #seats = new Map<string, object>()
  /** What each loss of power may have taken. */
  readonly #losses: Array<(volume: number, page: number) => boolean> = []
  #isGivenUp = false
  /** Flushes that failed, of volumes that had lost nothing. */
  readonly #groundless: string[] = []
  #nextId = 1
  garbage: string[] = []
  /** Volumes with `sync_when_write: false`. */
  readonly relaxedVolumes = new Set<number>()
  opCount = 0
  okCount = 0
  /** Told in words of what clients begin and see, for the trace. */
  tell: ((text: string) => void) | undefined

  /** A write (zeroes with `zero`) was called. Its stamp is its id, or 0. */
  beginWrite(options: { client: string; volume: number; offsetBytes: number; lengthBytes: number; nowMs: number; zero?: boolean }): OpenOp {
    return this.#begin('write', options, options.zero ? STAMP_ZERO : this.#nextId)
  }

  /** A whole block was called to be zeros. */
  beginBlockZero({ client, volume, block, nowMs }: { client: string; volume: number; block: number; nowMs: number }): OpenOp {
    const id = this.#nextId++
    this.opCount++
    const op: PageOp = {
      kind: 'write',
      id,
      client,
      callMs: nowMs,
      returnMs: Number.POSITIVE_INFINITY,
      outcome: 'unknown',
      mask: (1 << SECTORS_PER_PAGE) - 1,
      stamps: new Int32Array(SECTORS_PER_PAGE),
      durable: !this.relaxedVolumes.has(volume),
    }
    for (let page = block * PAGES_PER_BLOCK; page < (block + 1) * PAGES_PER_BLOCK; page++) this.#pages.get(`${volume}:${page}`)?.push(op)
    const key = `${volume}:${block}`
    const zeros = this.#blockZeros.get(key)
    if (zeros) zeros.push(op)
    else this.#blockZeros.set(key, [op])
    const open: OpenOp = { id, kind: 'write', volume, offsetBytes: block * BLOCK_BYTES, lengthBytes: BLOCK_BYTES, pages: [{ key, op }] }
    this.#open.add(open)
    this.tell?.(`${client} begins write ${id}: zeros in all of block ${key}`)
    return open
  }

  beginRead(options: { client: string; volume: number; offsetBytes: number; lengthBytes: number; nowMs: number }): OpenOp {
    return this.#begin('read', options, STAMP_ZERO)
  }

  /** `durable`: the acknowledgement stands for stable storage (FUA, or a volume with sync_when_write). */
  endWrite(op: OpenOp, outcome: 'ok' | 'failed', nowMs: number, durable = true): void {
    this.#open.delete(op)
    this.tell?.(`write ${op.id} of ${op.pages[0]?.op.client} ends: ${outcome}${outcome === 'ok' && !durable ? ', until a flush in memory alone' : ''}`)
    for (const { op: page } of op.pages) {
      page.returnMs = nowMs
      page.outcome = outcome
      if (outcome === 'ok') page.durable = durable
      if (outcome === 'ok' && !durable && !page.maybeLost) {
        const list = this.#unflushed.get(op.volume)
        if (list) list.push(page)
        else this.#unflushed.set(op.volume, [page])
      }
    }
    if (outcome === 'ok') this.okCount++
  }

  /** `bytes` holds what was read, from `start` on. A failed read saw nothing. */
  endRead(op: OpenOp, bytes: Uint8Array | undefined, start: number, nowMs: number): void {
    this.#open.delete(op)
    if (!bytes) {
      for (const { key, op: page } of op.pages) {
        const list = this.#pages.get(key)!
        list.splice(list.indexOf(page), 1)
      }
      return
    }
    this.okCount++
    const words = wordsOf(bytes)
    let at = wordAt(bytes, start)
    let offset = op.offsetBytes
    for (const { op: page } of op.pages) {
      page.returnMs = nowMs
      page.outcome = 'ok'
      for (let s = 0; s < SECTORS_PER_PAGE; s++) {
        if (!(page.mask & (1 << s))) continue
        const stamp = readStamp(words, at, op.volume, offset)
        if (stamp === STAMP_GARBAGE)
          this.garbage.push(
            `read ${op.id} by ${page.client}: volume ${op.volume} sector at ${offset} holds bytes nobody wrote there: ${hex(bytes, start + offset - op.offsetBytes)}`,
          )
        page.stamps[s] = stamp
        at += SECTOR_WORDS
        offset += SECTOR_BYTES
      }
    }
    for (const { key, op: page } of this.tell ? op.pages : []) this.tell!(`page ${key}: ${textOf(page)}`)
  }

  /** From now on flushes on the seat tell the client of what is lost. */
  seated(client: string, seat: object): void {
    this.#seats.set(client, seat)
  }

  /**
   * A flush that was called at `callMs` succeeded: writes acknowledged before are durable. Of those that a loss of power may have taken in between: the ones of
   * clients on the same seat, which would have been told otherwise.
   */
  flushed(volume: number, callMs: number, seat?: object): void {
    this.tell?.(`volume ${volume} is flushed, as asked for at ${callMs.toFixed(3)} ms`)
    const list = this.#unflushed.get(volume) ?? []
    for (const op of list) if (op.returnMs <= callMs) op.durable = true
    this.#unflushed.set(
      volume,
      list.filter((op) => !op.durable),
    )
    for (const op of this.#untold.get(volume) ?? []) if (op.returnMs <= callMs && seat !== undefined && this.#seats.get(op.client) === seat) op.durable = true
  }

  /** Clients on the seat were told that something acknowledged from memory is lost. */
  toldOfLoss(volume: number, seat: object): void {
    const list = this.#untold.get(volume) ?? []
    this.#untold.set(
      volume,
      list.filter((op) => this.#seats.get(op.client) !== seat),
    )
  }

  /** Somebody was told that something of the volume is lost: something of one of its slots was, of this volume or another (it may not have been written there, nor been there yet). */
  assertLoss(volume: number, sizeBytes: number, nowMs: number): void {
    this.tell?.(`volume ${volume} is said to have lost what was not flushed`)
    if (this.#isGivenUp) return
    for (let page = 0; page < sizeBytes / PAGE_BYTES; page += PAGES_PER_BLOCK) if (this.#losses.some((isLost) => isLost(volume, page))) return
    this.#groundless.push(`volume ${volume}, at ${nowMs.toFixed(0)} ms`)
  }

  /** An operator has the cluster go on without copies that are gone, or with a last one that had failed: what that cost is not known, and told as a loss. */
  givenUp(): void {
    this.#isGivenUp = true
  }

  /** Nobody knows the outcome of a write: it may take effect until `deadlineMs`, later only before any write begun after that, or never. */
  endUnknown(op: OpenOp, deadlineMs: number): void {
    this.#open.delete(op)
    this.tell?.(`write ${op.id} of ${op.pages[0]?.op.client} ends: nobody knows how`)
    for (const { op: page } of op.pages) page.returnMs = deadlineMs
  }

  /** The client is gone; what it had under way may take effect until `deadlineMs`, or never. */
  clientDied(client: string, deadlineMs: number): void {
    this.tell?.(`${client} is gone; what it had begun takes effect by ${deadlineMs.toFixed(3)} ms, or never`)
    for (const op of [...this.#open]) {
      if (op.pages[0]?.op.client !== client) continue
      this.#open.delete(op)
      for (const { key, op: page } of op.pages) {
        if (op.kind === 'read') {
          const list = this.#pages.get(key)!
          list.splice(list.indexOf(page), 1)
        } else page.returnMs = deadlineMs
      }
    }
  }

  /**
   * Every replica lost its power at once: of all pages, or of those in slots that nobody else is known to serve. `mayBeNone`: somebody who kept its power may
   * serve them all the same.
   */
  allPowerLost(nowMs: number, isLost: (volume: number, page: number) => boolean = () => true, mayBeNone = false): void {
    const lost = this.#listsOf(isLost)
    this.#losses.push(isLost)
    // Also of writes under way: a piece may be acknowledged within the cluster, and lost, before the whole of it is
    for (const op of lost.flat()) op.maybeLost = true
    for (const [volume, list] of this.#unflushed) {
      this.#untold.set(volume, [...(this.#untold.get(volume) ?? []), ...list.filter((op) => op.maybeLost)])
      this.#unflushed.set(
        volume,
        list.filter((op) => !op.maybeLost),
      )
    }
    for (const list of lost) list.push(this.#loss(nowMs, { mayBeNone }))
  }

  /**
   * The last server of these pages ended, and its disk had never got the records that its dead successors had shown: what nobody was told is done may be gone,
   * though it was read (protocol 33). Its retry may bring it again, as another write. `keepsAcknowledged`: its host has not lost its power since, so that what
   * was acknowledged from memory is there.
   */
  unacknowledgedLost(nowMs: number, isLost: (volume: number, page: number) => boolean, keepsAcknowledged: boolean): void {
    for (const list of this.#listsOf(isLost)) {
      let found = false
      for (const op of [...list]) {
        if (op.kind !== 'write' || op.outcome === 'ok') continue
        found = true
        const returnMs = Math.min(op.returnMs, nowMs)
        if (returnMs <= (op.lostUntilMs ?? Number.NEGATIVE_INFINITY)) continue
        op.lostUntilMs = returnMs
        // of a client that died before, it may have waited for its chain: until then, and no longer than the loss
        const outcome = op.outcome === 'unknown' && op.returnMs < nowMs ? 'unknown' : 'failed'
        list.push({ ...op, id: this.#nextId++, outcome, durable: false, returnMs, lostUntilMs: Number.POSITIVE_INFINITY })
      }
      if (found) list.push(this.#loss(nowMs, { keepsAcknowledged }))
    }
  }

  #listsOf(isWanted: (volume: number, page: number) => boolean): PageOp[][] {
    return [...this.#pages].filter(([key]) => isWanted(...placeOf(key))).map(([, list]) => list)
  }

  #loss(nowMs: number, kind: { readonly keepsAcknowledged: boolean } | { readonly mayBeNone: boolean }): PageOp {
    return {
      kind: 'loss',
      ...kind,
      id: this.#nextId++,
      client: 'power',
      callMs: nowMs,
      returnMs: nowMs,
      outcome: 'ok',
      mask: 0,
      stamps: new Int32Array(SECTORS_PER_PAGE),
      durable: true,
    }
  }

  /** Its volume was deleted: no answer means anything any more. */
  forget(volume: number): void {
    for (const map of [this.#pages, this.#blockZeros]) for (const key of [...map.keys()]) if (key.startsWith(`${volume}:`)) map.delete(key)
    this.#unflushed.delete(volume)
    this.#untold.delete(volume)
  }

  /** Page numbers of a volume that any operation touched, ascending. */
  pagesOf(volume: number): number[] {
    const prefix = `${volume}:`
    return [...this.#pages.keys()]
      .filter((key) => key.startsWith(prefix))
      .map((key) => Number(key.slice(prefix.length)))
      .sort((a, b) => a - b)
  }

  /** All operations on a page in words, in the order of their calls. */
  describePage(key: string): string[] {
    return [...(this.#pages.get(key) ?? [])].sort((a, b) => a.callMs - b.callMs).map(textOf)
  }

  /** All operations, once each, in the order of their calls; `returnMs` of one without an end is Infinity. */
  operations(): Array<{
    id: number
    kind: string
    client: string
    volume: number
    offsetBytes: number
    lengthBytes: number
    callMs: number
    returnMs: number
    outcome: Outcome
  }> {
    const seen = new Map<number, ReturnType<History['operations']>[number]>()
    for (const [key, ops] of this.#pages) {
      const [volume = 0, page = 0] = key.split(':').map(Number)
      for (const { id, kind, client, callMs, returnMs, outcome, mask } of ops) {
        if (kind === 'loss') continue
        const firstSector = 31 - Math.clz32(mask & -mask)
        const offsetBytes = page * PAGE_BYTES + firstSector * SECTOR_BYTES
        const lengthBytes = bitCount(mask) * SECTOR_BYTES
        const known = seen.get(id)
        if (known) {
          known.offsetBytes = Math.min(known.offsetBytes, offsetBytes)
          known.lengthBytes += lengthBytes
        } else seen.set(id, { id, kind, client, volume, offsetBytes, lengthBytes, callMs, returnMs, outcome })
      }
    }
    return [...seen.values()].sort((a, b) => a.id - b.id)
  }

  /** Operations called and not ended. */
  get openCount(): number {
    return this.#open.size
  }

  openOf(client: string): number {
    let count = 0
    for (const op of this.#open) if (op.pages[0]?.op.client === client) count++
    return count
  }

  /** Every violation, and how many pages were too much work to decide (for each so many configurations are looked at). */
  check(configurationsMax = CONFIGURATIONS_MAX): { violations: Violation[]; undecided: number; pages: number } {
    const violations: Violation[] = this.garbage.slice(0, 3).map((detail) => ({ promise: 'a read gives what was written', detail }))
    for (const detail of this.#groundless) violations.push({ promise: 'who is told of a loss has lost something', detail })
    let undecided = 0
    for (const [key, ops] of this.#pages) {
      let result = checkPage(ops, configurationsMax)
      if (result === 'undecided') result = checkSectors(ops, configurationsMax)
      if (typeof result === 'string' && result !== 'undecided') {
        const waited = orderedAndWaiting(ops)
        if (waited !== undefined) result = checkPage(waited, configurationsMax)
      }
      if (result === 'undecided') undecided++
      else if (result !== undefined) violations.push({ promise: 'reads and writes of a page are linearizable', detail: `page ${key}: ${result}` })
    }
    return { violations, undecided, pages: this.#pages.size }
  }

  #begin(kind: 'read' | 'write', options: { client: string; volume: number; offsetBytes: number; lengthBytes: number; nowMs: number }, stamp: number): OpenOp {
    const { client, volume, offsetBytes, lengthBytes, nowMs } = options
    assert(offsetBytes % SECTOR_BYTES === 0 && lengthBytes % SECTOR_BYTES === 0 && lengthBytes > 0, 'whole sectors')
    const id = this.#nextId++
    this.opCount++
    const op: OpenOp = { id, kind, volume, offsetBytes, lengthBytes, pages: [] }
    for (let offset = offsetBytes; offset < offsetBytes + lengthBytes; ) {
      const page = Math.floor(offset / PAGE_BYTES)
      const first = (offset - page * PAGE_BYTES) / SECTOR_BYTES
      const count = Math.min(SECTORS_PER_PAGE - first, (offsetBytes + lengthBytes - offset) / SECTOR_BYTES)
      const mask = ((1 << count) - 1) << first
      offset += count * SECTOR_BYTES
      const key = `${volume}:${page}`
      const stamps = new Int32Array(SECTORS_PER_PAGE)
      if (kind === 'write') for (let s = 0; s < SECTORS_PER_PAGE; s++) stamps[s] = stamp
      const pageOp: PageOp = {
        kind,
        id,
        client,
        callMs: nowMs,
        returnMs: Number.POSITIVE_INFINITY,
        outcome: 'unknown',
        mask,
        stamps,
        durable: !this.relaxedVolumes.has(volume),
      }
      op.pages.push({ key, op: pageOp })
      const list = this.#pages.get(key)
      if (list) list.push(pageOp)
      else this.#pages.set(key, [...(this.#blockZeros.get(`${volume}:${Math.floor(page / PAGES_PER_BLOCK)}`) ?? []), pageOp])
    }
    this.#open.add(op)
    this.tell?.(`${client} begins ${kind} ${id}: ${lengthBytes} bytes at ${offsetBytes} of volume ${volume}, pages ${op.pages.map(({ key }) => key).join(' ')}`)
    return op
  }
}

/** Volume, and page or block of it. */
function placeOf(key: string): [volume: number, index: number] {
  return key.split(':').map(Number) as [number, number]
}

// ---- contents ----------------------------------------------------------------------------------------------------------
/** Fills whole sectors so that each names its write, its volume and its place. */
export function writeStamps(bytes: Uint8Array, start: number, op: OpenOp): void {
  const words = wordsOf(bytes)
  let at = wordAt(bytes, start)
  for (let done = 0; done < op.lengthBytes; done += SECTOR_BYTES, at += SECTOR_WORDS) stampSector(words, at, op.id, op.volume, op.offsetBytes + done)
}

/** `at`: index of its first word. */
function stampSector(words: Int32Array, at: number, stamp: number, volume: number, offsetBytes: number): void {
  let x = patternSeed(stamp, volume, offsetBytes)
  words[at] = stamp
  for (let i = at + 1; i < at + SECTOR_WORDS; i++) {
    x = (Math.imul(x, 0x19660d) + 0x3c6ef35f) | 0
    words[i] = x
  }
}

/** `at`: index of its first word. */
function readStamp(words: Int32Array, at: number, volume: number, offsetBytes: number): number {
  const stamp = words[at]!
  if (stamp === STAMP_ZERO) {
    for (let i = at + 1; i < at + SECTOR_WORDS; i++) if (words[i] !== 0) return STAMP_GARBAGE
    return stamp
  }
  let x = patternSeed(stamp, volume, offsetBytes)
  for (let i = at + 1; i < at + SECTOR_WORDS; i++) {
    x = (Math.imul(x, 0x19660d) + 0x3c6ef35f) | 0
    if (words[i] !== x) return STAMP_GARBAGE
  }
  return stamp
}

/** All of the memory under these bytes, as words of this machine. */
function wordsOf({ buffer }: Uint8Array): Int32Array {
  return new Int32Array(buffer, 0, buffer.byteLength >>> 2)
}

/** Index of the word at that byte of them. */
function wordAt({ byteOffset }: Uint8Array, start: number): number {
  assert((byteOffset + start) % 4 === 0, 'sectors begin at words')
  return (byteOffset + start) / 4
}

function patternSeed(stamp: number, volume: number, offsetBytes: number): number {
  return (Math.imul(stamp, 0x9e3779b1) ^ Math.imul(volume, 0x85ebca6b) ^ Math.imul(offsetBytes / SECTOR_BYTES, 0xc2b2ae35)) | 0
}

function bitCount(mask: number): number {
  let count = 0
  for (let rest = mask; rest !== 0; rest &= rest - 1) count++
  return count
}

function hex(bytes: Uint8Array, at: number): string {
  return [...bytes.subarray(at, at + 16)].map((byte) => byte.toString(16).padStart(2, '0')).join(' ')
}

// ---- the search --------------------------------------------------------------------------------------------------------
interface Node {
  readonly op: number
  readonly isCall: boolean
  previous: Node | undefined
  next: Node | undefined
  /** Of a call: its return, if it has one. */
  match: Node | undefined
}

/** Content of a page, and the older contents a loss of all power may bring back (newest last); to the first `firm` of them nothing else goes back. */
interface State {
  readonly stamps: Int32Array
  readonly older: readonly Int32Array[]
  readonly firm: number
  readonly key: string
}

function keyOf(stamps: Int32Array): string {
  let key = ''
  for (let s = 0; s < SECTORS_PER_PAGE; s++) key += `${stamps[s]},`
  return key
}

function makeState(stamps: Int32Array, older: readonly Int32Array[], firm = 0): State {
  let key = keyOf(stamps)
  for (const o of older) key += `/${keyOf(o)}`
  if (firm > 0) key += `:${firm}`
  return { stamps, older, firm, key }
}

/**
 * What can follow from `state` by this op, whose stamps those are: several states, in the order to try. Empty: impossible here. `isFinal`: no loss is
 * to come, so that it does not matter what one would bring back.
 */
function step(state: State, op: PageOp, own: Int32Array, isFinal: boolean): State[] {
  switch (op.kind) {
    case 'read':
      for (let s = 0; s < SECTORS_PER_PAGE; s++) if (op.mask & (1 << s) && own[s] !== state.stamps[s]) return []
      return [state]
    case 'write': {
      const stamps = state.stamps.slice()
      for (let s = 0; s < SECTORS_PER_PAGE; s++) if (op.mask & (1 << s)) stamps[s] = own[s]!
      // Undone together with what came before it, or not at all
      const isAcknowledged = op.outcome === 'ok'
      const final = isFinal || (op.durable && (isAcknowledged || state.older.length === 0))
      const older = final ? [] : [...state.older, state.stamps]
      const written = makeState(stamps, older, isFinal ? 0 : isAcknowledged ? older.length : state.firm)
      return isAcknowledged ? [written] : [written, state]
    }
    case 'loss': {
      const { older, firm } = state
      if (op.keepsAcknowledged !== true && op.mayBeNone !== true) return [state.stamps, ...[...older].reverse()].map((stamps) => makeState(stamps, []))
      const back = older.map((stamps, i) => makeState(stamps, older.slice(0, i), Math.min(firm, i)))
      return [state, ...back.slice(op.keepsAcknowledged === true ? firm : 0).reverse()]
    }
  }
}

/** The same, with writes of clients that died taking effect up to the first acknowledged write called after their deadline; undefined: there are none. */
function orderedAndWaiting(ops: readonly PageOp[]): PageOp[] | undefined {
  let found = false
  const copies = ops.map((op) => {
    if (op.kind !== 'write' || op.outcome !== 'unknown' || op.returnMs === Number.POSITIVE_INFINITY) return op
    found = true
    const next = ops.filter((of) => of.kind === 'write' && of.outcome === 'ok' && of.callMs > op.returnMs).map((of) => of.returnMs)
    return { ...op, deadlineMs: op.returnMs, returnMs: Math.min(Number.POSITIVE_INFINITY, ...next) }
  })
  return found ? copies : undefined
}

/** A stamp in a sector as one number. */
function sighting(stamp: number, sector: number): number {
  return stamp * SECTORS_PER_PAGE + sector
}

/** What reads saw, and where. */
function seenBy(ops: readonly PageOp[]): ReadonlySet<number> {
  const seen = new Set<number>()
  for (const op of ops) {
    if (op.kind !== 'read') continue
    for (let s = 0; s < SECTORS_PER_PAGE; s++) if (op.mask & (1 << s)) seen.add(sighting(op.stamps[s]!, s))
  }
  return seen
}

/** Some read saw something of this write. */
function isSeen({ mask, stamps }: PageOp, seen: ReadonlySet<number>): boolean {
  for (let s = 0; s < SECTORS_PER_PAGE; s++) if (mask & (1 << s) && seen.has(sighting(stamps[s]!, s))) return true
  return false
}

/** Its stamps, as far as reads could tell them apart. */
function seenStamps({ stamps }: PageOp, seen: ReadonlySet<number>): Int32Array {
  const known = new Int32Array(SECTORS_PER_PAGE)
  for (let s = 0; s < SECTORS_PER_PAGE; s++) known[s] = seen.has(sighting(stamps[s]!, s)) ? stamps[s]! : STAMP_UNSEEN
  return known
}

/**
 * As checkPage, of a page that was too much work as a whole: each of its sectors by itself has fewer operations, and fewer contents that tell them apart. That
 * what one operation wrote is seen as one is not asked then.
 */
function checkSectors(ops: readonly PageOp[], configurationsMax: number): string | undefined | 'undecided' {
  let undecided: 'undecided' | undefined
  for (let sector = 0; sector < SECTORS_PER_PAGE; sector++) {
    const bit = 1 << sector
    const result = checkPage(
      ops.filter(({ kind, mask }) => kind === 'loss' || mask & bit).map((op) => ({ ...op, mask: op.mask & bit })),
      configurationsMax,
    )
    if (result === 'undecided') undecided = result
    else if (result !== undefined) return `sector ${sector}: ${result}`
  }
  return undecided
}

/** Undefined: linearizable. Else why not. */
export function checkPage(all: readonly PageOp[], configurationsMax = CONFIGURATIONS_MAX): string | undefined | 'undecided' {
  const seenIn = seenBy(all)
  // A write that nobody acknowledged and no read saw may as well never have happened: what it covered until the next write was not looked at
  const ops = all.filter((op) => op.kind !== 'write' || op.outcome === 'ok' || isSeen(op, seenIn))
  const stampsOf = ops.map((op) => (op.kind === 'write' ? seenStamps(op, seenIn) : op.stamps))
  const events: Array<{ atMs: number; order: number; op: number; isCall: boolean }> = []
  let mustEnd = 0
  for (let i = 0; i < ops.length; i++) {
    const op = ops[i]!
    events.push({ atMs: op.callMs, order: 0, op: i, isCall: true })
    if (op.returnMs !== Number.POSITIVE_INFINITY) {
      events.push({ atMs: op.returnMs, order: 1, op: i, isCall: false })
      mustEnd++
    }
  }
  events.sort((a, b) => a.atMs - b.atMs || a.order - b.order || a.op - b.op)
  const head: Node = { op: -1, isCall: false, previous: undefined, next: undefined, match: undefined }
  let tail = head
  const calls = new Array<Node | undefined>(ops.length)
  const callOrder: number[] = []
  const rankOf = new Int32Array(ops.length)
  for (const event of events) {
    const node: Node = { op: event.op, isCall: event.isCall, previous: tail, next: undefined, match: undefined }
    tail.next = node
    tail = node
    if (!event.isCall) {
      calls[event.op]!.match = node
      continue
    }
    calls[event.op] = node
    rankOf[event.op] = callOrder.length
    callOrder.push(event.op)
  }
  const done = new Uint8Array(ops.length)
  const waiting = [...ops.keys()].filter((i) => ops[i]!.deadlineMs !== undefined)
  /** A write that was ordered before the end of its life is not placed yet, and this one was called later: it comes behind it, if it had an effect at all. */
  const isTooEarly = (i: number): boolean => ops[i]!.kind === 'write' && waiting.some((w) => !done[w] && ops[w]!.deadlineMs! < ops[i]!.callMs)
  const isOptional = ops.map((op) => op.kind === 'write' && op.outcome !== 'ok')
  const isHidden = ops.map((op) => op.kind === 'write' && op.outcome === 'ok' && !isSeen(op, seenIn))
  let lossesLeft = ops.filter(({ kind }) => kind === 'loss').length
  const seen = new Set<string>()
  const stack: Array<{ nodes: readonly Node[]; choices: State[]; state: State }> = []
  let state = makeState(new Int32Array(SECTORS_PER_PAGE), [])
  let furthest = -1
  let furthestText = ''
  let current: Node | undefined = head.next
  let configurations = 0
  let doneCount = 0

  /** `last`: an optional write, of which not everything may follow (see isVain); or -1. */
  const remember = (next: State, last: number): boolean => {
    // The configuration: which ops are done, as those that are not before the last of them, and the content
    let key = ''
    let r = 0
    for (let left = doneCount; left > 0; r++) {
      if (done[callOrder[r]!]) left--
      else key += `${r},`
    }
    key += `${r}|${last}|${next.key}`
    if (seen.has(key)) return false
    seen.add(key)
    return true
  }
  const place = ({ op, match }: Node, sign: 1 | -1): void => {
    done[op] = sign === 1 ? 1 : 0
    doneCount += sign
    if (match) mustEnd -= sign
    if (ops[op]!.kind === 'loss') lossesLeft -= sign
  }
  /** Takes the first choice that leads somewhere new. */
  const advance = (nodes: readonly Node[], choices: State[], before: State): boolean => {
    for (const node of nodes) place(node, 1)
    while (choices.length > 0) {
      const next = choices.shift()!
      if (!remember(next, next !== before && isOptional[nodes[0]!.op] ? nodes[0]!.op : -1)) continue
      stack.push({ nodes, choices, state: before })
      for (const node of nodes) lift(node)
      state = next
      current = head.next
      return true
    }
    for (const node of nodes) place(node, -1)
    return false
  }
  /** A read that fits may as well be placed at once: whatever follows from placing it later follows from now. */
  const fittingRead = (): Node | undefined => {
    for (let node = head.next; node?.isCall; node = node.next) {
      if (ops[node.op]!.kind === 'read' && step(state, ops[node.op]!, stampsOf[node.op]!, true).length > 0) return node
    }
    return undefined
  }
  /** A write without an acknowledgement that something else hides at once, or that may as well come behind that, need not have had an effect. */
  const isVain = (next: number): boolean => {
    const top = stack[stack.length - 1]
    if (top === undefined || state === top.state || lossesLeft > 0 || waiting.length > 0 || ops[next]!.kind !== 'write') return false
    const last = top.nodes[0]!.op
    if (!isOptional[last]) return false
    const both = ops[last]!.mask & ops[next]!.mask
    if (both === ops[last]!.mask) return true
    // of two such writes the earlier one goes first
    return both === 0 && ops[next]!.callMs < ops[last]!.returnMs && (!isOptional[next] || rankOf[next]! < rankOf[last]!)
  }
  /** What nobody saw may as well be placed right before what covers all of it (but for a loss, which would bring it back): those, and `last`. */
  const withHidden = (last: Node): readonly Node[] => {
    const { kind, outcome, mask } = ops[last.op]!
    if (kind !== 'write' || outcome !== 'ok' || lossesLeft > 0) return [last]
    const nodes: Node[] = []
    for (let node = head.next; node?.isCall; node = node.next) {
      if (node !== last && isHidden[node.op] && (ops[node.op]!.mask & ~mask) === 0 && !isTooEarly(node.op)) nodes.push(node)
    }
    nodes.push(last)
    return nodes
  }

  const choicesOf = (i: number): State[] => {
    const op = ops[i]!
    if (isTooEarly(i)) return op.outcome === 'ok' ? [] : [state]
    const choices = step(state, op, stampsOf[i]!, lossesLeft === 0)
    return isOptional[i] && waiting.length === 0 ? choices.filter((next) => next !== state) : choices
  }

  while (mustEnd > 0) {
    if (++configurations > configurationsMax) return 'undecided'
    const read = current === head.next ? fittingRead() : undefined
    if (read !== undefined && advance([read], [state], state)) continue
    // else what follows from the read was looked at before, and led nowhere
    if (read === undefined && current?.isCall) {
      if (!isVain(current.op)) {
        const choices = choicesOf(current.op)
        if (choices.length > 0 && advance(withHidden(current), choices, state)) continue
      }
      current = current.next
      continue
    }
    // it had no effect, which may as well be said at its end
    if (read === undefined && current !== undefined && isOptional[current.op] && waiting.length === 0 && advance([calls[current.op]!], [state], state)) continue
    // A return of something not yet placed (or the end): the last decision was wrong
    const stuck = current ? rankOf[current.op]! : callOrder.length
    if (read === undefined && stuck > furthest) {
      furthest = stuck
      furthestText = explain(ops, current ? ops[current.op]! : undefined, state, done)
    }
    let resumed = false
    while (stack.length > 0) {
      const { nodes, choices, state: before } = stack.pop()!
      for (let i = nodes.length - 1; i >= 0; i--) {
        unlift(nodes[i]!)
        place(nodes[i]!, -1)
      }
      state = before
      const last = nodes[nodes.length - 1]!
      if (ops[last.op]!.kind === 'read') continue
      resumed = true
      if (!advance(nodes, choices, before)) current = last.next
      break
    }
    if (!resumed) return furthestText
  }
  return undefined
}

function lift(call: Node): void {
  for (const node of [call, call.match]) {
    if (!node) continue
    node.previous!.next = node.next
    if (node.next) node.next.previous = node.previous
  }
}

function unlift(call: Node): void {
  for (const node of [call.match, call]) {
    if (!node) continue
    node.previous!.next = node
    if (node.next) node.next.previous = node
  }
}

function explain(ops: readonly PageOp[], stuck: PageOp | undefined, state: State, done: Uint8Array): string {
  if (!stuck) return 'no order of the operations explains the reads'
  const near = ops
    .filter((op) => op !== stuck && op.callMs <= stuck.returnMs && op.returnMs >= stuck.callMs - 2000)
    .sort((a, b) => a.callMs - b.callMs)
    .slice(-24)
  const lines = near.map((op) => `    ${textOf(op)}${done[ops.indexOf(op)] ? ' (placed before)' : ''}`)
  return `${textOf(stuck)} cannot be: the page holds [${[...state.stamps].map((stamp) => (stamp === STAMP_UNSEEN ? 'unseen' : stamp)).join(' ')}] by then\n${lines.join('\n')}`
}

function textOf(op: PageOp): string {
  const sectors = [...op.stamps].map((stamp, s) => (op.mask & (1 << s) ? stamp : '.')).join(' ')
  const end = op.returnMs === Number.POSITIVE_INFINITY ? 'never' : op.returnMs.toFixed(3)
  return `${op.kind} ${op.id} by ${op.client} [${sectors}] ${op.callMs.toFixed(3)}..${end}${op.outcome === 'ok' ? '' : ` ${op.outcome}`}${op.kind === 'write' && op.outcome === 'ok' && !op.durable ? ' unflushed' : ''}`
}
