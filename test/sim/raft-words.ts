/**
 * What a node says in Raft is on its stable storage by then: who comes back without it would say something else (vote twice in one term, lack entries of
 * which the leader was told that they are there). Every message is looked at as it leaves, beside what the node's store holds in that moment.
 *
 *   CRC-32C (4 bytes) | eraftpb.Message: 1 type, 2 to, 4 term, 6 index, 10 reject
 */
import type { Rpc } from '../../src/env/control.ts'
import type { SimKvStore } from '../../src/env/sim/control.ts'

const CRC_BYTES = 4
const Field = { TYPE: 1, TO: 2, TERM: 4, INDEX: 6, REJECT: 10 } as const
const Type = { APPEND: 3, APPEND_RESPONSE: 4, REQUEST_VOTE: 5, REQUEST_VOTE_RESPONSE: 6, REQUEST_PRE_VOTE: 17, REQUEST_PRE_VOTE_RESPONSE: 18 } as const

interface Stored {
  readonly node: number
  readonly term: number
  readonly vote: number
  readonly truncated: { readonly index: number }
  readonly members: { readonly voters: readonly number[]; readonly votersOutgoing: readonly number[] }
}

const NOTHING: Stored = { node: 0, term: 0, vote: 0, truncated: { index: 0 }, members: { voters: [], votersOutgoing: [] } }

/** From now on all that the node says in Raft is looked at; `store` is its metadata. */
export function watchRaftWords(rpc: Rpc, store: SimKvStore, found: (detail: string) => void): void {
  const { call } = rpc
  rpc.call = (address, method, request, options) => {
    if (method === 'xsan.v1.Peer/RaftStep') {
      const state = store.entries.get('raft/state')
      const stored = state ? (JSON.parse(new TextDecoder().decode(state)) as Stored) : NOTHING
      const holds = (index: number) => index <= stored.truncated.index || store.entries.has(`raft/log/${index.toString(16).padStart(16, '0')}`)
      for (const bytes of request['messages'] as readonly Uint8Array[]) {
        const why = brokenWord(numbersOf(bytes.subarray(CRC_BYTES)), stored, holds)
        if (why !== '') found(why)
      }
    }
    return call.call(rpc, address, method, request, options)
  }
}

/** What of the message its sender would not know when it came back; '' when it would. */
export function brokenWord(message: ReadonlyMap<number, number>, stored: Stored, holds: (index: number) => boolean): string {
  const [type, to, term, index, reject] = [Field.TYPE, Field.TO, Field.TERM, Field.INDEX, Field.REJECT].map((field) => message.get(field) ?? 0) as [
    number,
    number,
    number,
    number,
    number,
  ]
  // these ask, and say, what would be
  if (type === Type.REQUEST_PRE_VOTE || type === Type.REQUEST_PRE_VOTE_RESPONSE) return ''
  // who votes alone leads at once, and the same again when it comes back: its learners are sent the empty entry that a term begins with
  const { voters, votersOutgoing } = stored.members
  if (type === Type.APPEND && term > stored.term && votersOutgoing.length === 0 && voters.every((voter) => voter === stored.node)) return ''
  if (term > stored.term) return `a message of type ${type} of term ${term}, and term ${stored.term} is stored`
  // what was said in an earlier term may have been overtaken
  if (term < stored.term || reject === 1) return ''
  if (type === Type.APPEND_RESPONSE && !holds(index)) return `entry ${index} is acknowledged in term ${term}, and is not stored`
  const candidate = type === Type.REQUEST_VOTE ? stored.node : type === Type.REQUEST_VOTE_RESPONSE ? to : stored.vote
  return candidate === stored.vote ? '' : `a vote for node ${candidate} in term ${term}, and one for node ${stored.vote} is stored`
}

/** The fields of a protobuf message that are numbers; it has none of fixed size. */
function numbersOf(bytes: Uint8Array): ReadonlyMap<number, number> {
  const numbers = new Map<number, number>()
  let at = 0
  const varint = (): number => {
    let value = 0
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[at++]!
      value += (byte & 127) * scale
      if (byte < 128) return value
    }
  }
  while (at < bytes.length) {
    const tag = varint()
    const value = varint()
    if ((tag & 7) === 2) at += value
    else numbers.set(tag >>> 3, value)
  }
  return numbers
}
