/** What `formatStore` and `mountStore` (mount.ts) are given. */
import type { DiskNumber } from '../base/ids.ts'
import type { AsyncIo } from '../env/async-io.ts'
import type { StoreEvents } from './store.ts'

/** Who a disk belongs to. Each at most 63 bytes of UTF-8: uuids or names, compared exactly. */
export interface StoreIdentity {
  readonly clusterId: string
  readonly nodeId: string
}

export interface FormatOptions {
  /** File or block device. */
  readonly path: string
  /** Creates the file with this many bytes (sparse but for the journal); without it the file or device must exist. */
  readonly createBytes?: number
  readonly identity: StoreIdentity
  /** 32 hex digits or a uuid, drawn by the caller: two of them, of the disk and of its journal, never used before. */
  readonly diskUuid: string
  readonly journalUuid: string
  readonly disk: DiskNumber
  /** Slots of the cluster's hash space. */
  readonly slotCount: number
  /** Bytes of the journal; default a 32nd of the disk within 64 MiB .. 8 GiB (less on tiny disks). */
  readonly journalBytes?: number
  /** Bytes of one journal segment; default scales with the journal, 4 .. 64 MiB. */
  readonly segmentBytes?: number
  /** Overwrite what is there, whatever it is. */
  readonly force?: boolean
  /** As that of a mount. */
  readonly hungMs?: number
}

/** Of a file now. */
export interface FileSpace {
  /** What its file system can spare for data: the rest is for others, such as the metadata of the node that may lie there too. */
  readonly spareBytes: number
  /** Of the file; 0 if unknown. */
  readonly allocatedBytes: number
}

export interface MountOptions {
  readonly io: AsyncIo
  readonly path: string
  readonly identity: StoreIdentity
  readonly slotCount: number
  readonly events: StoreEvents
  /** Of this boot of the host (/proc/sys/kernel/random/boot_id): tells a power loss from a mere kill. */
  readonly bootId: string
  /** The drive may have been without power since the disk was mounted last, though its host was not. */
  readonly wasAway?: boolean
  /** Wall clock, ms since 1970, for the timestamps in block headers: for people, never for decisions. */
  readonly wallMs: () => number
  /** When given, the disk must carry this number, or have none yet. */
  readonly disk?: DiskNumber
  /** Wait this long for another process (a dying predecessor) to release the disk; default 10 s. */
  readonly lockWaitMs?: number
  /** An I/O older than this means that the disk hangs; default 2 s. */
  readonly hungMs?: number
  /** Disks that share the arena, this one included; default: it alone. */
  readonly disks?: number
  /** Without it the file system gives what it has. */
  readonly space?: (path: string) => FileSpace
  /** One line for people: what replay found, what the background work met. */
  readonly onNote?: (message: string, fields?: Readonly<Record<string, unknown>>) => void
}
