/**
 * The NBD protocol's bytes: fixed newstyle negotiation and transmission. All integers big-endian.
 * Source: the NBD project's doc/proto.md ("proto" below).
 *
 *   negotiation   S: NBDMAGIC IHAVEOPT flags(u16)   C: flags(u32)
 *                 C: IHAVEOPT option(u32) length(u32) data...   S: OptionReply data...   (repeated)
 *   transmission  C: Request [payload]   S: SimpleReply [payload] | StructuredReply [offset payload]
 */
import { struct, u16, u32, u53, u64 } from './struct.ts'

export const NBD_MAGIC = { high: 0x4e42444d, low: 0x41474943 } as const
export const IHAVEOPT = { high: 0x49484156, low: 0x454f5054 } as const
export const OPTION_REPLY_MAGIC = { high: 0x0003e889, low: 0x045565a9 } as const
export const REQUEST_MAGIC = 0x25609513
export const SIMPLE_REPLY_MAGIC = 0x67446698
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef

export const HandshakeFlag = { FIXED_NEWSTYLE: 1, NO_ZEROES: 2 } as const

export const TransmissionFlag = {
  HAS_FLAGS: 1 << 0,
  READ_ONLY: 1 << 1,
  SEND_FLUSH: 1 << 2,
  SEND_FUA: 1 << 3,
  SEND_TRIM: 1 << 5,
  SEND_WRITE_ZEROES: 1 << 6,
  SEND_DF: 1 << 7,
  CAN_MULTI_CONN: 1 << 8,
} as const

export const Option = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
} as const

export const OptionReplyType = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  ERR_UNSUP: 0x80000001,
  ERR_POLICY: 0x80000002,
  ERR_INVALID: 0x80000003,
  ERR_UNKNOWN: 0x80000006,
  ERR_SHUTDOWN: 0x80000007,
  ERR_TOO_BIG: 0x80000009,
} as const

export const InfoType = { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 } as const

export const Command = { READ: 0, WRITE: 1, DISC: 2, FLUSH: 3, TRIM: 4, CACHE: 5, WRITE_ZEROES: 6, BLOCK_STATUS: 7 } as const
export const CommandFlag = { FUA: 1, NO_HOLE: 2, DF: 4, REQ_ONE: 8, FAST_ZERO: 16 } as const

export const ReplyChunk = { NONE: 0, OFFSET_DATA: 1, OFFSET_HOLE: 2, ERROR: 0x8001 } as const
export const REPLY_FLAG_DONE = 1

/** Error numbers on the wire (proto "Error values"). */
export const NbdErrno = { OK: 0, EPERM: 1, EIO: 5, ENOMEM: 12, EINVAL: 22, ENOSPC: 28, EOVERFLOW: 75, ENOTSUP: 95, ESHUTDOWN: 108 } as const

const source = 'NBD proto.md'

export const NbdGreeting = struct('NbdGreeting', { size: 18, endian: 'big', source }, { magic: u64, optionMagic: u64, flags: u16 })
export const NbdClientFlags = struct('NbdClientFlags', { size: 4, endian: 'big', source }, { flags: u32 })
export const NbdOption = struct('NbdOption', { size: 16, endian: 'big', source }, { magic: u64, option: u32, length: u32 })
export const NbdOptionReply = struct('NbdOptionReply', { size: 20, endian: 'big', source }, { magic: u64, option: u32, type: u32, length: u32 })
export const NbdInfoExport = struct('NbdInfoExport', { size: 12, endian: 'big', source }, { type: u16, size: u53, flags: u16 })
export const NbdInfoBlockSize = struct('NbdInfoBlockSize', { size: 14, endian: 'big', source }, { type: u16, minimum: u32, preferred: u32, maximum: u32 })
export const NbdRequest = struct(
  'NbdRequest',
  { size: 28, endian: 'big', source },
  { magic: u32, flags: u16, type: u16, cookie: u64, offset: u53, length: u32 },
)
export const NbdSimpleReply = struct('NbdSimpleReply', { size: 16, endian: 'big', source }, { magic: u32, error: u32, cookie: u64 })
export const NbdStructuredReply = struct(
  'NbdStructuredReply',
  { size: 20, endian: 'big', source },
  { magic: u32, flags: u16, type: u16, cookie: u64, length: u32 },
)
/** The chunk header of read data, with the offset that begins its payload. */
export const NbdOffsetData = struct(
  'NbdOffsetData',
  { size: 28, endian: 'big', source },
  { magic: u32, flags: u16, type: u16, cookie: u64, length: u32, offset: u53 },
)
/** An error chunk without a message. */
export const NbdErrorChunk = struct(
  'NbdErrorChunk',
  { size: 26, endian: 'big', source },
  { magic: u32, flags: u16, type: u16, cookie: u64, length: u32, error: u32, messageLength: u16 },
)
