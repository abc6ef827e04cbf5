/** A block client without replication: volumes in a byte array, completions through the queue's timers. For tests of the layers above it. */
import type { VolumeNumber } from '../../src/base/ids.ts'
import type { Done } from '../../src/base/request.ts'
import { Status } from '../../src/base/status.ts'
import { BLOCK_BYTES, CHAIN_OP_PAGES_MAX, PAGE_BYTES, PAGES_PER_BLOCK } from '../../src/base/units.ts'
import type { BlockClient } from '../../src/chain/block-client.ts'
import type { IoQueue, Tag } from '../../src/env/ioqueue.ts'

export interface MemoryVolume {
  readonly name: string
  readonly volume: VolumeNumber
  readonly bytes: Uint8Array
  readOnly: boolean
}

export class MemoryBlockClient implements BlockClient {
  readonly volumes = new Map<number, MemoryVolume>()
  /** Status of the next operations on a block index, for tests of failures. */
  readonly failing = new Map<number, number>()
  readonly calls: string[] = []
  losses = 0
  /** Those of them that a client which connects now may have been there for. */
  recentLosses = 0
  readonly ready = true
  /** While set, no operation ends. */
  #holding = false
  operationsMax = 16384
  readonly #queue: IoQueue
  readonly #waiting: Array<() => void> = []
  readonly #tag: Tag
  #armed = false
  #underWay = 0

  constructor(queue: IoQueue) {
    this.#queue = queue
    this.#tag = queue.register('memory block client', () => {
      this.#armed = false
      for (const finish of this.#waiting.splice(0)) finish()
    })
  }

  add(name: string, sizeBytes: number, readOnly = false): VolumeNumber {
    const volume = (this.volumes.size + 1) as VolumeNumber
    this.volumes.set(volume, { name, volume, bytes: new Uint8Array(sizeBytes), readOnly })
    return volume
  }

  read(volume: VolumeNumber, index: number, firstPage: number, pageCount: number, bufferPage: number, done: Done, row: number): void {
    this.calls.push(`read ${index}:${firstPage}+${pageCount}`)
    this.#within(firstPage, pageCount, CHAIN_OP_PAGES_MAX)
    this.#finish(volume, index, done, row, (bytes) => {
      const from = index * BLOCK_BYTES + firstPage * PAGE_BYTES
      const to = this.#queue.arena.bytes.subarray(bufferPage * PAGE_BYTES, (bufferPage + pageCount) * PAGE_BYTES)
      to.fill(0)
      to.set(bytes.subarray(from, from + pageCount * PAGE_BYTES))
    })
  }

  write(volume: VolumeNumber, index: number, offsetBytes: number, lengthBytes: number, bufferPage: number, _flags: number, done: Done, row: number): void {
    this.calls.push(`write ${index}:${offsetBytes}+${lengthBytes}`)
    const firstPage = Math.floor(offsetBytes / PAGE_BYTES)
    this.#within(firstPage, Math.ceil((offsetBytes + lengthBytes) / PAGE_BYTES) - firstPage, CHAIN_OP_PAGES_MAX)
    this.#finish(volume, index, done, row, (bytes) => {
      const from = bufferPage * PAGE_BYTES + (offsetBytes % PAGE_BYTES)
      bytes.set(this.#queue.arena.bytes.subarray(from, from + lengthBytes), index * BLOCK_BYTES + offsetBytes)
    })
  }

  zero(volume: VolumeNumber, index: number, firstPage: number, pageCount: number, _flags: number, done: Done, row: number): void {
    this.calls.push(`zero ${index}:${firstPage}+${pageCount}`)
    this.#within(firstPage, pageCount, PAGES_PER_BLOCK)
    this.#finish(volume, index, done, row, (bytes) =>
      bytes.fill(0, index * BLOCK_BYTES + firstPage * PAGE_BYTES, index * BLOCK_BYTES + (firstPage + pageCount) * PAGE_BYTES),
    )
  }

  flush(volume: VolumeNumber, done: Done, row: number): void {
    this.calls.push('flush')
    this.#finish(volume, -1, done, row, () => {})
  }

  isHeld(): boolean {
    return false
  }

  lossCount(): number {
    return this.losses
  }

  pastLossCount(): number {
    return this.losses - this.recentLosses
  }

  orphan(_done: Done, row: number): void {
    this.calls.push(`orphan ${row}`)
  }

  volumeByName(name: string): { volume: VolumeNumber; sizeBytes: number; readOnly: boolean; syncWhenWrite: boolean } | undefined {
    for (const v of this.volumes.values())
      if (v.name === name) return { volume: v.volume, sizeBytes: v.bytes.length, readOnly: v.readOnly, syncWhenWrite: true }
    return undefined
  }

  sizeBytes(volume: VolumeNumber): number {
    return this.volumes.get(volume)?.bytes.length ?? -1
  }

  volumeNames(): readonly string[] {
    return [...this.volumes.values()].map((v) => v.name)
  }

  #within(firstPage: number, pageCount: number, pagesMax: number): void {
    if (pageCount < 1 || pageCount > pagesMax || firstPage < 0 || firstPage + pageCount > PAGES_PER_BLOCK)
      throw new Error(`pages ${firstPage}+${pageCount} break the contract`)
  }

  #finish(volume: VolumeNumber, index: number, done: Done, row: number, effect: (bytes: Uint8Array) => void): void {
    if (this.#underWay === this.operationsMax) throw new Error(`more than ${this.operationsMax} operations break the contract`)
    this.#underWay++
    this.#waiting.push(() => {
      this.#underWay--
      const found = this.volumes.get(volume)
      const status = found === undefined ? Status.VOLUME_NOT_FOUND : (this.failing.get(index) ?? Status.SUCCESS)
      if (found !== undefined && status === Status.SUCCESS) effect(found.bytes)
      done(row, status)
    })
    this.#arm()
  }

  get holding(): boolean {
    return this.#holding
  }

  set holding(holding: boolean) {
    this.#holding = holding
    if (this.#waiting.length > 0) this.#arm()
  }

  #arm(): void {
    if (this.#armed || this.#holding) return
    this.#armed = true
    this.#queue.timeout(0, this.#tag, 0)
  }
}
