/**
 * What the reactors of two nodes say to each other: frames on three TCP connections (lanes), little-endian.
 *
 *   0       4        6      7         8             10        12               16
 *   | crc32c | magic  | type | version | headBytes    | reserved | payloadBytes  | fields of the type | list ... | payload ... |
 *   |        |<------------------------ covered by crc32c: headBytes - 4 ------------------------------------->|
 *
 * The head (frame header, fields of its type, list of fixed-size entries) is at most HEAD_BYTES_MAX and always looked at in one piece.
 * The payload follows it without padding; its checksums are in the head (per page where it is pages, else one).
 *
 * Invariants: a frame that does not pass `frameInvalid`, or whose list does not fill its head exactly, ends the connection.
 * A lane's frames are handled in order; nothing is said about the order between lanes.
 */
import { CHAIN_OP_BYTES_MAX } from '../base/units.ts'
import { bytes, note, struct, u8, u16, u32, u53, u64, zero } from './struct.ts'

export const PEER_MAGIC = 0x5058
/**
 * Versions of this protocol that this build speaks.
 *
 *   1  the first
 *   2  questions of a resync name the disk of the source, lists of blocks come in parts
 *   3  nodes tell which of their disks take no new blocks
 *   4  who has nothing to say on the lane of forwards says so (ALIVE)
 *   5  ALIVE tells the clock; an update names the moment, on its receiver's clock, until which it may be ordered
 */
export const PEER_PROTOCOL_MIN = 5
export const PEER_PROTOCOL_MAX = 5
export const FRAME_BYTES = 16
/** Largest head: a call with the page ids of one block (8 KiB) and room to grow. */
export const HEAD_BYTES_MAX = 16 * 1024
/** Largest payload of one frame. */
export const PAYLOAD_BYTES_MAX = CHAIN_OP_BYTES_MAX

export const Lane = { FORWARD: 0, ACK: 1, BULK: 2 } as const
export type Lane = (typeof Lane)[keyof typeof Lane]
export const LANES = 3

export const PeerFrame = {
  HELLO: 1,
  HELLO_ANSWER: 2,
  PROOF: 3,
  WELCOME: 4,
  REFUSAL: 5,
  FORWARD: 16,
  ACKS: 17,
  CREDITS: 18,
  FORWARD_REFUSALS: 19,
  UPDATE: 20,
  UPDATE_ANSWERS: 21,
  READ: 22,
  READ_ANSWER: 23,
  CALL: 24,
  CALL_DATA: 25,
  FULL_DISKS: 26,
  ALIVE: 27,
} as const
export type PeerFrame = (typeof PeerFrame)[keyof typeof PeerFrame]

const source = 'design.md 6, protocol.md 5'
const little = (size: number) => ({ size, endian: 'little' as const, source })

export const FrameHeader = struct('FrameHeader', little(FRAME_BYTES), {
  crc: note(u32, 'crc32c of the rest of the head'),
  magic: u16,
  type: u8,
  version: note(u8, 'format version of this frame type'),
  headBytes: u16,
  reserved: zero(2),
  payloadBytes: u32,
})

/** First frame of a connection, from its dialer; the acceptor's HELLO_ANSWER has the same fields. */
export const Hello = struct('Hello', little(140), {
  protocolMin: u8,
  protocolMax: u8,
  lane: u8,
  reactor: u8,
  node: u32,
  incarnation: u32,
  session: note(u32, 'number the dialer gives the three connections that belong together'),
  features: u64,
  slotCount: note(u32, '0: not known yet'),
  blockBytes: u32,
  clusterId: note(bytes(64), 'UTF-8, padded with zeros'),
  nonce: bytes(16),
  reserved: zero(28),
})
/** HELLO_ANSWER: Hello of the acceptor, then this. PROOF: this alone. */
export const Mac = struct('Mac', little(32), { mac: note(bytes(32), "HMAC-SHA256 with the cluster's key over role byte, both hellos") })
export const Refusal = struct('Refusal', little(132), { status: u32, reason: note(bytes(128), 'UTF-8, padded with zeros') })

/** Fwd{cv, prev, record} (protocol 11); list: one u32 crc per payload page; payload: the pages of a WRITE. */
export const Forward = struct('Forward', little(88), {
  slot: u32,
  chainVersion: u32,
  disk: note(u32, 'the replica it is for'),
  hop: note(u8, 'position of the receiver in the chain'),
  kind: u8,
  flags: u16,
  prev: u64,
  id: u64,
  volume: u53,
  layer: u32,
  index: u32,
  firstPage: u16,
  pageCount: u16,
  clientHigh: u32,
  clientLow: u32,
  channel: u32,
  seq: u53,
  reserved: zero(16),
})
export const ForwardFlag = {
  /** Acknowledge only when durable. */
  DURABLE: 1,
} as const

/** ACKS: list of these. Cumulative per slot (protocol 12). */
export const Ack = struct('Ack', little(16), { slot: u32, chainVersion: u32, sv: u53 })
/** CREDITS: list of these. Counts since the session began; they only grow. */
export const Credit = struct('Credit', little(24), { hop: u32, reserved: zero(4), rows: u53, bytes: u53 })
/** FULL_DISKS: list of these: the sender's disks that take no new blocks, all of them. */
export const FullDisk = struct('FullDisk', little(4), { disk: u32 })
/** FORWARD_REFUSALS: list of these; `chainVersion` is the refuser's. */
export const ForwardRefusal = struct('ForwardRefusal', little(16), { slot: u32, chainVersion: u32, status: u32, disk: u32 })

/** ALIVE: said every now and then, whatever else is. */
export const Alive = struct('Alive', little(8), { clockMs: note(u53, "the sender's boot-time clock had come so far") })

/** Write{channel, seq, life, cv, block, pages, data, crc} (protocol 5); the client is the connection's node and incarnation. List: one crc per touched page, over the bytes of the operation in it. */
export const Update = struct('Update', little(72), {
  requestRow: u32,
  requestGeneration: u32,
  slot: u32,
  chainVersion: u32,
  channel: u32,
  kind: u8,
  flags: u8,
  reserved: zero(2),
  seq: u53,
  untilMs: note(u53, "on the receiver's clock (ALIVE): not to be ordered from then on"),
  volume: u53,
  layer: u32,
  index: u32,
  offsetBytes: u32,
  lengthBytes: u32,
  reserved2: zero(8),
})
export const UpdateFlag = {
  DURABLE: 1,
} as const
/** UPDATE_ANSWERS: list of these. */
export const UpdateAnswer = struct('UpdateAnswer', little(16), { requestRow: u32, requestGeneration: u32, status: u32, chainVersion: u32 })

export const Read = struct('Read', little(48), {
  requestRow: u32,
  requestGeneration: u32,
  slot: u32,
  chainVersion: u32,
  volume: u53,
  layer: u32,
  index: u32,
  firstPage: u32,
  pageCount: u32,
  reserved: zero(8),
})
/** Payload: the pages, when status is SUCCESS. */
export const ReadAnswer = struct('ReadAnswer', little(24), {
  requestRow: u32,
  requestGeneration: u32,
  status: u32,
  chainVersion: u32,
  payloadCrc: u32,
  detail: note(u32, 'BLOCK_CORRUPTED: the page'),
})

/** A request of the plain async code (resync, flush, repair); its arguments are the rest of the head. */
export const Call = struct('Call', little(16), {
  requestRow: u32,
  requestGeneration: u32,
  kind: u32,
  capacityBytes: note(u32, 'room the caller has for the answer'),
})
export const CallKind = { DIGESTS: 1, LIST_BLOCKS: 2, BLOCK: 3, FLUSH: 4, PAGE: 5 } as const
/** A piece of the answer, to be placed at `offsetBytes` of the caller's buffer. The last piece carries the status and the whole length. */
export const CallData = struct('CallData', little(32), {
  requestRow: u32,
  requestGeneration: u32,
  offsetBytes: u32,
  payloadCrc: u32,
  last: u8,
  reserved: zero(3),
  status: u32,
  lengthBytes: u32,
  reserved2: zero(4),
})

const FIELD_BYTES: Readonly<Record<number, readonly [name: string, fields: number, entry: number, payload: boolean]>> = {
  [PeerFrame.HELLO]: ['HELLO', Hello.size, 0, false],
  [PeerFrame.HELLO_ANSWER]: ['HELLO_ANSWER', Hello.size + Mac.size, 0, false],
  [PeerFrame.PROOF]: ['PROOF', Mac.size, 0, false],
  [PeerFrame.WELCOME]: ['WELCOME', 0, 0, false],
  [PeerFrame.REFUSAL]: ['REFUSAL', Refusal.size, 0, false],
  [PeerFrame.FORWARD]: ['FORWARD', Forward.size, 4, true],
  [PeerFrame.ACKS]: ['ACKS', 0, Ack.size, false],
  [PeerFrame.CREDITS]: ['CREDITS', 0, Credit.size, false],
  [PeerFrame.FORWARD_REFUSALS]: ['FORWARD_REFUSALS', 0, ForwardRefusal.size, false],
  [PeerFrame.UPDATE]: ['UPDATE', Update.size, 4, true],
  [PeerFrame.UPDATE_ANSWERS]: ['UPDATE_ANSWERS', 0, UpdateAnswer.size, false],
  [PeerFrame.READ]: ['READ', Read.size, 0, false],
  [PeerFrame.READ_ANSWER]: ['READ_ANSWER', ReadAnswer.size, 0, true],
  [PeerFrame.CALL]: ['CALL', Call.size, 1, false],
  [PeerFrame.CALL_DATA]: ['CALL_DATA', CallData.size, 0, true],
  [PeerFrame.FULL_DISKS]: ['FULL_DISKS', 0, FullDisk.size, false],
  [PeerFrame.ALIVE]: ['ALIVE', Alive.size, 0, false],
}

/** Dense by type: bytes of the head before the list (0: unknown type), bytes of an entry (0: no list), payload allowed. */
const fixedBytes = new Uint16Array(256)
const entryBytes = new Uint16Array(256)
const payloadAllowed = new Uint8Array(256)
for (const [type, [, fields, entry, payload]] of Object.entries(FIELD_BYTES)) {
  fixedBytes[Number(type)] = FRAME_BYTES + fields
  entryBytes[Number(type)] = entry
  payloadAllowed[Number(type)] = payload ? 1 : 0
}

/**
 * Why the frame whose FRAME_BYTES are at `at` cannot be one, or null. Checks all lengths before anything is believed;
 * the crc is the caller's to check once the whole head is there.
 */
export function frameInvalid(view: DataView, at: number): string | null {
  if (FrameHeader.get.magic(view, at) !== PEER_MAGIC) return 'not an XSAN data frame'
  const type = FrameHeader.get.type(view, at)
  const fixed = fixedBytes[type]!
  if (fixed === 0) return `frame type ${type} is unknown`
  if (FrameHeader.get.version(view, at) !== 1) return `frame type ${type} has version ${FrameHeader.get.version(view, at)}, 1 is known`
  const headBytes = FrameHeader.get.headBytes(view, at)
  if (headBytes < fixed || headBytes > HEAD_BYTES_MAX) return `frame type ${type} with a head of ${headBytes} bytes`
  const entry = entryBytes[type]!
  if (entry === 0 ? headBytes !== fixed : (headBytes - fixed) % entry !== 0) return `frame type ${type} with a head of ${headBytes} bytes`
  const payloadBytes = FrameHeader.get.payloadBytes(view, at)
  if (payloadBytes > (payloadAllowed[type] === 1 ? PAYLOAD_BYTES_MAX : 0)) return `frame type ${type} with a payload of ${payloadBytes} bytes`
  return null
}

/** Writes the frame header, all but its crc. */
export function putFrame(view: DataView, at: number, type: PeerFrame, headBytes: number, payloadBytes: number): void {
  FrameHeader.set.magic(view, at, PEER_MAGIC)
  FrameHeader.set.type(view, at, type)
  FrameHeader.set.version(view, at, 1)
  FrameHeader.set.headBytes(view, at, headBytes)
  view.setUint16(at + FrameHeader.offsets.reserved, 0)
  FrameHeader.set.payloadBytes(view, at, payloadBytes)
}

/** Text in a zero-padded field. */
export function paddedText(text: string, size: number): Uint8Array {
  const padded = new Uint8Array(size)
  padded.set(new TextEncoder().encode(text).subarray(0, size))
  return padded
}
export function textOf(padded: Uint8Array): string {
  const end = padded.indexOf(0)
  return new TextDecoder().decode(end < 0 ? padded : padded.subarray(0, end))
}

/** Name of a frame type for logs and the documentation page. */
export function frameName(type: number): string {
  return FIELD_BYTES[type]?.[0] ?? `type ${type}`
}
