/**
 * Every outcome of the data path and every code of the command line, in one closed table.
 * 0-3, 100-102, 200-202, 300-302 are fixed by the product documents (checklist 4.15); the rest extend their ranges.
 * The control plane throws {@link XsanError} with one of these names; the data path returns the number.
 */
export const Status = {
  SUCCESS: 0,
  NOMEM: 1,
  INVALID_PARAM: 2,
  NOT_FOUND: 3,
  ALREADY_EXISTS: 4,
  BUSY: 5,
  STOPPING: 6,
  PERMISSION_DENIED: 7,
  NOT_SUPPORTED: 8,
  PROTOCOL_ERROR: 9,
  RESTART_REQUIRED: 10,
  INTERNAL: 11,
  BUFFER_SIZE_EXCEEDED: 12,
  NO_BUFFER: 13,
  UNAVAILABLE_IN_CURRENT_STATUS: 14,
  /** A disk that hangs may still write what was read into the buffer: nobody may use it while it `isHeld`. */
  BUFFER_LOST: 15,

  NODE_UNREACHABLE: 100,
  CLUSTER_NOT_READY: 101,
  CONSENSUS_FAILED: 102,
  NOT_LEADER: 103,
  WRONG_CLUSTER: 104,
  NODE_NOT_FOUND: 105,
  LEASE_EXPIRED: 106,

  VOLUME_NOT_FOUND: 200,
  BLOCK_CORRUPTED: 201,
  INSUFFICIENT_SPACE: 202,
  VOLUME_EXISTS: 203,
  DISK_NOT_FOUND: 204,
  DISK_FOREIGN: 205,
  DISK_INCOMPATIBLE: 206,
  DISK_CORRUPTED: 207,
  READ_ONLY: 208,
  VOLUME_UNAVAILABLE: 209,

  READ_FAILED: 300,
  WRITE_FAILED: 301,
  NETWORK_TIMEOUT: 302,
  /** The replica asked is not the head of the chain ("non-head node receive a client update request"). */
  NOT_HEAD: 303,
  /** The sender's chain version is older than the receiver's: refresh the routing, try again. */
  ROUTING_STALE: 304,
  /** The sender's chain version is newer than the receiver's: the receiver refreshes, the sender tries again. */
  CHAIN_VERSION_MISMATCH: 305,
  /** The replica's state does not allow the operation (not SERVING, draining, in resync). */
  REQUEST_REFUSED: 306,
  /** An update with a sequence number below its channel's row: never applied by this answer. */
  DUPLICATE_OLD: 307,
  /** The update's remaining life ran out before it was ordered: it never takes effect. */
  WRITE_EXPIRED: 308,
  /** A write that was cancelled and is known not to take effect. */
  WRITE_CANCELLED: 309,
  CHECKSUM_MISMATCH: 310,
  NO_CREDIT: 311,
  CONNECTION_LOST: 312,
  REQUEST_TOO_LARGE: 313,
  NO_SUCCESSOR: 314,
} as const

export type StatusName = keyof typeof Status
export type StatusCode = (typeof Status)[StatusName]

const NAMES = new Map<number, StatusName>(Object.entries(Status).map(([name, code]) => [code, name as StatusName]))

export function statusName(code: number): StatusName | `UNKNOWN_${number}` {
  return NAMES.get(code) ?? `UNKNOWN_${code}`
}
