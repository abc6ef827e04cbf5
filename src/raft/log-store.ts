/**
 * The durable side of a Raft node: its records in Kv, and the batch that is being gathered for them.
 *
 *   raft/state        JSON {@link StoredState}: written with every batch, so that a batch always leaves a whole picture
 *   raft/log/<hex>    one record per entry (checksummed by the core); <hex> = index, 16 digits, so that key order is log order
 *   raft/went-back    UTF-8: how a leader found out that this log is an older one; it is not opened any more
 *
 * Ops are gathered with `add` and stored by `flush` in one synced batch. What need not be durable before a message leaves (the state
 * machine's ops, the commit index) may stay gathered until the next flush: a crash then applies those entries again.
 */

import { XsanError } from '../base/errors.ts'
import type { NodeNumber } from '../base/ids.ts'
import type { Kv, KvOp } from '../env/control.ts'
import type { HardState, LogPosition, LogRecord, Members } from '../env/raft-core.ts'

const STATE_KEY = 'raft/state'
const LOG_PREFIX = 'raft/log/'
const WENT_BACK_KEY = 'raft/went-back'
const STORED_FORMAT = 1

export interface StoredState {
  readonly node: NodeNumber
  readonly hardState: HardState
  readonly applied: number
  /** The last entry that is no longer in the log. */
  readonly truncated: LogPosition
  /** As of `applied`. */
  readonly members: Members
}

const REJOIN = 'Remove this node from the cluster and let it join again with an empty data directory.'

function damaged(what: string): XsanError {
  return new XsanError('DISK_CORRUPTED', `the stored Raft log is damaged: ${what}`, REJOIN)
}

/** To go on would be to forget promises: a vote given, an entry acknowledged. */
export function wentBack(how: string): XsanError {
  return new XsanError('DISK_CORRUPTED', `the metadata of this node was put back as it was earlier: ${how}`, REJOIN)
}

function logKey(index: number): string {
  return LOG_PREFIX + index.toString(16).padStart(16, '0')
}

function isIndex(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0
}

function numberOf(record: Record<string, unknown>, name: string): number {
  const value = record[name]
  if (!isIndex(value)) throw damaged(`${name} is ${JSON.stringify(value)}`)
  return value
}

function nodesOf(record: Record<string, unknown>, name: string): NodeNumber[] {
  const value = record[name]
  if (!Array.isArray(value) || !value.every(isIndex)) throw damaged(`${name} is ${JSON.stringify(value)}`)
  return value as unknown as NodeNumber[]
}

function objectOf(record: Record<string, unknown>, name: string): Record<string, unknown> {
  const value = record[name]
  if (typeof value !== 'object' || value === null) throw damaged(`${name} is ${JSON.stringify(value)}`)
  return value as Record<string, unknown>
}

function decodeState(bytes: Uint8Array): StoredState {
  let json: Record<string, unknown>
  try {
    json = objectOf({ state: JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes)) }, 'state')
  } catch (error) {
    if (error instanceof XsanError) throw error
    throw damaged('the state record cannot be read')
  }
  const format = numberOf(json, 'format')
  if (format !== STORED_FORMAT) {
    throw new XsanError('DISK_INCOMPATIBLE', `the stored Raft log has format ${format}, this version reads ${STORED_FORMAT}`, 'Start a newer version of xsand.')
  }
  const truncated = objectOf(json, 'truncated')
  const members = objectOf(json, 'members')
  return {
    node: numberOf(json, 'node') as NodeNumber,
    hardState: { term: numberOf(json, 'term'), vote: numberOf(json, 'vote'), commit: numberOf(json, 'commit') },
    applied: numberOf(json, 'applied'),
    truncated: { index: numberOf(truncated, 'index'), term: numberOf(truncated, 'term') },
    members: {
      voters: nodesOf(members, 'voters'),
      learners: nodesOf(members, 'learners'),
      votersOutgoing: nodesOf(members, 'votersOutgoing'),
      learnersNext: nodesOf(members, 'learnersNext'),
      autoLeave: members['autoLeave'] === true,
    },
  }
}

function encodeState(state: StoredState): Uint8Array {
  const { term, vote, commit } = state.hardState
  const { node, applied, truncated, members } = state
  return new TextEncoder().encode(JSON.stringify({ format: STORED_FORMAT, node, term, vote, commit, applied, truncated, members }))
}

export class LogStore {
  readonly #kv: Kv
  /** What `flush` will store beside the gathered ops; set by the driver. */
  state: StoredState
  lastIndex: number
  #ops: KvOp[] = []
  #stateDirty = false

  private constructor(kv: Kv, state: StoredState, lastIndex: number) {
    this.#kv = kv
    this.state = state
    this.lastIndex = lastIndex
  }

  /** Reads and checks what is stored; `initial` is stored first when there is nothing. The records are for the core's own check. */
  static async open(kv: Kv, initial: StoredState, stateMachinePrefix: string): Promise<{ store: LogStore; records: Uint8Array[]; isNew: boolean }> {
    const stored = await kv.scan('raft/')
    const stateEntry = stored.find(({ key }) => key === STATE_KEY)
    if (stateEntry === undefined) {
      if (stored.length > 0) throw damaged(`there are ${stored.length} entries and no state record`)
      if ((await kv.scan(stateMachinePrefix)).length > 0) throw damaged(`there is a state machine under ${stateMachinePrefix} and no log`)
      const store = new LogStore(kv, initial, initial.truncated.index)
      store.touch()
      await store.flush()
      return { store, records: [], isNew: true }
    }
    const mark = stored.find(({ key }) => key === WENT_BACK_KEY)
    if (mark !== undefined) throw wentBack(new TextDecoder().decode(mark.value))
    const state = decodeState(stateEntry.value)
    if (state.node !== initial.node) {
      throw new XsanError(
        'INVALID_PARAM',
        `the data directory belongs to node ${state.node}, this is node ${initial.node}`,
        'Give each node its own data directory.',
      )
    }
    const records: Uint8Array[] = []
    for (const { key, value } of stored) {
      if (key === STATE_KEY) continue
      const index = state.truncated.index + 1 + records.length
      if (key !== logKey(index)) throw damaged(`entry ${index} is missing (found ${key})`)
      records.push(value)
    }
    const lastIndex = state.truncated.index + records.length
    if (state.hardState.commit > lastIndex) throw damaged(`it ends at entry ${lastIndex}, and ${state.hardState.commit} were committed`)
    return { store: new LogStore(kv, state, lastIndex), records, isNew: false }
  }

  /** Only the leader that has its acknowledgements can tell that a log has gone back: the next one would take its votes again. */
  condemn(how: string): Promise<void> {
    return this.#kv.batch([{ type: 'put', key: WENT_BACK_KEY, value: new TextEncoder().encode(how) }])
  }

  get isDirty(): boolean {
    return this.#stateDirty || this.#ops.length > 0
  }

  get gatheredOps(): number {
    return this.#ops.length
  }

  /** The state record has to be stored anew. */
  touch(): void {
    this.#stateDirty = true
  }

  add(ops: readonly KvOp[]): void {
    for (const op of ops) this.#ops.push(op)
    this.#stateDirty = true
  }

  /** Entries replace those of their index and remove all behind the last of them. */
  append(records: readonly LogRecord[]): void {
    const last = records.at(-1)
    if (last === undefined) return
    for (const { index, record } of records) this.#ops.push({ type: 'put', key: logKey(index), value: record })
    for (let index = last.index + 1; index <= this.lastIndex; index++) this.#ops.push({ type: 'delete', key: logKey(index) })
    this.lastIndex = last.index
    this.#stateDirty = true
  }

  /** Removes entries up to `to.index`; those behind it too when `all`. The driver sets `state.truncated`. */
  truncate(to: LogPosition, all: boolean): void {
    const end = all ? this.lastIndex : to.index
    for (let index = this.state.truncated.index + 1; index <= end; index++) this.#ops.push({ type: 'delete', key: logKey(index) })
    if (all) this.lastIndex = to.index
    this.state = { ...this.state, truncated: to }
    this.#stateDirty = true
  }

  /** Everything gathered before the call is on stable storage when it resolves. */
  async flush(): Promise<void> {
    if (!this.isDirty) return
    const ops = this.#ops
    ops.push({ type: 'put', key: STATE_KEY, value: encodeState(this.state) })
    this.#ops = []
    this.#stateDirty = false
    await this.#kv.batch(ops)
  }
}
