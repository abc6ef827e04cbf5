/** The replicated state as the Raft driver's state machine, and a look at what changed for those who follow it. */
import { assert } from '../base/assert.ts'
import type { KvOp } from '../env/control.ts'
import type { StateMachine } from '../raft/driver.ts'
import { applyCommand } from './command.ts'
import { ClusterState, STATE_PREFIX } from './state.ts'

const encoder = new TextEncoder()
const decoder = new TextDecoder()

export class ControlStateMachine implements StateMachine {
  readonly prefix = STATE_PREFIX
  readonly state: ClusterState

  constructor(featureMax?: number) {
    this.state = new ClusterState(featureMax)
  }

  load(stored: ReadonlyArray<{ readonly key: string; readonly value: Uint8Array }>): void {
    this.state.load(stored)
  }

  apply(entry: { readonly index: number; readonly term: number; readonly command: Uint8Array }): { readonly result: unknown; readonly ops: readonly KvOp[] } {
    const result = applyCommand(this.state, entry.index, entry.command)
    return { result, ops: this.state.takeOps() }
  }

  snapshot(): Uint8Array {
    return packPairs(this.state.pairs())
  }

  restore(snapshot: Uint8Array, _index: number): readonly KvOp[] {
    const pairs = unpackPairs(snapshot)
    const present = new Set(pairs.map(({ key }) => key))
    const gone = this.state.pairs().filter(({ key }) => !present.has(key))
    this.state.load(pairs)
    this.state.noteUnseen()
    return [...gone.map(({ key }): KvOp => ({ type: 'delete', key })), ...pairs.map(({ key, value }): KvOp => ({ type: 'put', key, value }))]
  }
}

/** Per pair: u32 key length, u32 value length (little-endian), key, value. */
export function packPairs(pairs: ReadonlyArray<{ readonly key: string; readonly value: Uint8Array }>): Uint8Array {
  const keys = pairs.map(({ key }) => encoder.encode(key))
  const bytes = new Uint8Array(pairs.reduce((sum, { value }, i) => sum + 8 + keys[i]!.length + value.length, 0))
  const view = new DataView(bytes.buffer)
  let at = 0
  pairs.forEach(({ value }, i) => {
    const key = keys[i]!
    view.setUint32(at, key.length, true)
    view.setUint32(at + 4, value.length, true)
    bytes.set(key, at + 8)
    bytes.set(value, at + 8 + key.length)
    at += 8 + key.length + value.length
  })
  return bytes
}

export function unpackPairs(bytes: Uint8Array): Array<{ key: string; value: Uint8Array }> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const pairs: Array<{ key: string; value: Uint8Array }> = []
  let at = 0
  while (at < bytes.length) {
    assert(at + 8 <= bytes.length, 'snapshot is cut short')
    const keyLength = view.getUint32(at, true)
    const valueLength = view.getUint32(at + 4, true)
    assert(at + 8 + keyLength + valueLength <= bytes.length, 'snapshot is cut short')
    const key = decoder.decode(bytes.subarray(at + 8, at + 8 + keyLength))
    pairs.push({ key, value: bytes.slice(at + 8 + keyLength, at + 8 + keyLength + valueLength) })
    at += 8 + keyLength + valueLength
  }
  return pairs
}
