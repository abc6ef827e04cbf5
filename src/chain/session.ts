/**
 * What a SYNCING replica knows of its resync session (protocol 21, 22): which blocks are installed, and what was acknowledged without storing.
 * Volatile; a new `since` is a new session.
 *
 * Until the list of the source's blocks (or the word that the whole slot is equal) has come, no block is installed. From then on every block
 * is, as it was at `listedSv`, except those in `todo`; a new block for which the disk has no space is in `todo` from then on, too.
 */
export type BlockKey = string
export function blockKey(volume: number, layer: number, index: number): BlockKey {
  return `${volume}/${layer}/${index}`
}

export class SyncSession {
  readonly slot: number
  readonly since: number
  /** The source's `last` in the answer that compared the whole slot; -1: not yet. */
  listedSv = -1
  /** Newest `last` of any answer installed. */
  high = 0
  /** Blocks that differed and are not installed yet. */
  readonly todo = new Map<BlockKey, { readonly volume: number; readonly layer: number; readonly index: number }>()
  /** Newest sv acknowledged without storing, per block. */
  readonly skip = new Map<BlockKey, { sv: number; readonly volume: number; readonly layer: number; readonly index: number }>()
  /** The source's `last` in the answer that installed the block, where later than `listedSv`. */
  readonly #installedSv = new Map<BlockKey, number>()
  /** The digest of the slot has been compared with the source's. */
  compared = false
  /** Answers under way for which the slot's forwards are held back. */
  holds = 0
  /** Why the store took something of it not, the last time it was told. */
  refusal = ''
  /** The report has been sent. */
  reported = false

  constructor(slot: number, since: number) {
    this.slot = slot
    this.since = since
  }

  get allInstalled(): boolean {
    return this.listedSv >= 0 && this.todo.size === 0
  }

  isInstalled(volume: number, layer: number, index: number): boolean {
    return this.allInstalled || (this.listedSv >= 0 && !this.todo.has(blockKey(volume, layer, index)))
  }

  skipped(volume: number, layer: number, index: number, sv: number): void {
    const key = blockKey(volume, layer, index)
    const known = this.skip.get(key)
    if (known === undefined) this.skip.set(key, { sv, volume, layer, index })
    else if (sv > known.sv) known.sv = sv
  }

  /** An installed block that was not there, and is not stored now that it comes: from now on it is one of those to be copied. */
  postponed(volume: number, layer: number, index: number, sv: number): void {
    this.skipped(volume, layer, index, sv)
    this.todo.set(blockKey(volume, layer, index), { volume, layer, index })
  }

  skipOf(volume: number, layer: number, index: number): number {
    return this.skip.get(blockKey(volume, layer, index))?.sv ?? 0
  }

  /** The installed block already holds the record of that sv (rule 22: decided per block). */
  covers(volume: number, layer: number, index: number, sv: number): boolean {
    if (sv > this.high) return false
    return sv <= (this.#installedSv.get(blockKey(volume, layer, index)) ?? this.listedSv)
  }

  /** The slot was compared as of `lastSv` (in parts until `high`): what differs is to be copied; so is what was written to since, unstored. */
  listed(lastSv: number, differing: ReadonlyArray<{ readonly volume: number; readonly layer: number; readonly index: number }>, high = lastSv): void {
    this.listedSv = lastSv
    this.high = Math.max(this.high, high)
    for (const block of differing) this.todo.set(blockKey(block.volume, block.layer, block.index), block)
    for (const [key, block] of this.skip) if (block.sv > lastSv) this.todo.set(key, block)
  }

  installed(volume: number, layer: number, index: number, lastSv: number): void {
    const key = blockKey(volume, layer, index)
    this.todo.delete(key)
    this.#installedSv.set(key, lastSv)
    this.high = Math.max(this.high, lastSv)
  }
}
