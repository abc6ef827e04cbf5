/**
 * What a node says of itself to all others, over UDP: one datagram, little-endian.
 *
 *   0         4         5       6        8                        96                128
 *   | magic   | version | flags | length | who, when, load        | mac             | disks: 8 bytes each ... | grpc address |
 *
 * `length` is the whole datagram's. The mac (HMAC-SHA256 with the sender's key) covers everything but itself.
 * Invariant: of one incarnation the counter only rises; of one node the incarnation only rises. A process that is not registered yet has incarnation 0: it
 * only says where it is.
 */
import { bytes, note, struct, u8, u16, u32, u53, zero } from './struct.ts'

export const HEARTBEAT_MAGIC = 0x42485358
export const HEARTBEAT_VERSION = 2
export const HEARTBEAT_DISKS_MAX = 128
export const HEARTBEAT_ADDRESS_BYTES_MAX = 255

const source = 'design.md 4'

export const HeartbeatHead = struct(
  'HeartbeatHead',
  { size: 128, endian: 'little', source },
  {
    magic: u32,
    version: u8,
    flags: note(u8, '1: its data plane is ready'),
    lengthBytes: u16,
    cluster: note(bytes(16), 'uuid of the cluster'),
    node: u32,
    incarnation: u32,
    counter: note(u53, 'rises with each heartbeat of this process'),
    bootMs: note(u53, 'boot-time clock of the sender, ms'),
    tableRevision: note(u53, 'what its data plane has applied'),
    opsPerSecond: u32,
    bytesPerSecond: note(u32, 'KiB'),
    syncingSlots: note(u32, 'slots it still has to copy'),
    behindBlocks: note(u32, 'blocks it still has to copy'),
    raftTerm: u53,
    disks: u16,
    queueDepth: note(u32, 'requests of clients under way'),
    grpcBytes: note(u8, "of the address at the end: host:port of the sender's control port"),
    reserved: zero(9),
    mac: bytes(32),
  },
)

export const HeartbeatDisk = struct(
  'HeartbeatDisk',
  { size: 8, endian: 'little', source },
  {
    disk: u32,
    state: note(u8, '0 ok, 1 full, 2 failed'),
    usedPercent: u8,
    journalPercent: u8,
    reserved: zero(1),
  },
)
