/**
 * What the control plane (main thread) and the data plane (a reactor) of one node say to each other.
 * Plain structured-clonable values. Order is kept in each direction; nothing is lost while the process lives (the process is the failure unit).
 * Both sides take `Port`, so that the simulator can stand in the middle.
 */
import type { ChainVersion, DiskNumber, Incarnation, NodeNumber, SlotIndex, TableRevision, VolumeNumber } from '../base/ids.ts'

export interface Port<Out, In> {
  send(message: Out): void
  onMessage(handler: (message: In) => void): void
}
export type ControlPort = Port<ControlToReactor, ReactorToControl>
export type ReactorPort = Port<ReactorToControl, ControlToReactor>

export interface TableNode {
  readonly node: NodeNumber
  readonly id: string
  /** The registered one: lower ones of this node are fenced (their channel rows may go, their connections are refused). */
  readonly incarnation: Incarnation
  /** "host:port" of the data plane. */
  readonly dataAddress: string
}

export interface TableVolume {
  readonly volume: VolumeNumber
  readonly name: string
  readonly sizeBytes: number
  readonly replicas: number
  /** false: acknowledged from memory of all replicas, durable at FLUSH / FUA. */
  readonly syncWhenWrite: boolean
  readonly readOnly: boolean
  /** Writes are ordered only while that many replicas of the chain hold everything (SERVING or DRAINING). Absent: 1. */
  readonly minCopies?: number
  /** How often acknowledged writes that no flush covered may have been lost with the memory of all replicas of a slot. Absent: 0. */
  readonly losses?: number
  /** In the first table of a process: those that clients of this node have been told of, or that were before it. Its clients may come back. */
  readonly lossesTold?: number
}

export interface TableDisk {
  readonly disk: DiskNumber
  readonly node: NodeNumber
}

/** The replicated table as of `revision`. Deltas apply on top of exactly the table the reactor has or of a newer one (they are absolute per slot). */
export interface TableMessage {
  readonly type: 'table'
  readonly revision: TableRevision
  readonly slotCount: number
  /** Chains that changed since the last table message (all of them in the first), packed by `packChains`. */
  readonly chains: Int32Array
  /** Complete lists, when they changed (always in the first). */
  readonly nodes?: readonly TableNode[]
  readonly disks?: readonly TableDisk[]
  readonly volumes?: readonly TableVolume[]
  /** With `volumes`: the number the next one will get. What is below and not among them was deleted. */
  readonly nextVolume?: number
  /** With `volumes`: no lease is longer. Who held one by an older table, and knows a volume to be smaller, holds none any more after that. */
  readonly leaseMsMax?: number
}

/** A line for the node's log, which the main thread writes. */
export type ReactorLog = (level: 'ERROR' | 'WARN' | 'INFO' | 'DEBUG', message: string, fields: Readonly<Record<string, unknown>>) => void

export type ControlToReactor =
  | TableMessage
  /** The lease: I/O may be served until `untilMs` (boot-time clock) once the reactor's table is at `revision` or newer. */
  | { readonly type: 'lease'; readonly untilMs: number; readonly revision: TableRevision }
  /** That process is dead or its lease is over: close its connections, now. */
  | { readonly type: 'peerDown'; readonly node: NodeNumber; readonly incarnation: Incarnation }
  /** Hot settings, by key of the configuration. */
  | { readonly type: 'settings'; readonly settings: Readonly<Record<string, number | boolean | string>> }
  /** SIGTERM: refuse updates (STOPPING), drain forwards, flush, answer `stopped`. */
  | { readonly type: 'stop' }
  | { readonly type: 'query'; readonly queryId: number; readonly query: ReactorQuery }

export type ReactorQuery =
  | { readonly kind: 'block'; readonly volume: VolumeNumber; readonly index: number }
  | { readonly kind: 'blocks'; readonly volume: VolumeNumber; readonly from: number; readonly limit: number }
  | { readonly kind: 'stats' }
  /** Pairs [volume, blocks] of the slots this node heads. */
  | { readonly kind: 'allocated' }
  | { readonly kind: 'digest'; readonly slot: SlotIndex }

export type ReactorToControl =
  /** Everything is mounted and listening (addresses for people and peers). */
  | { readonly type: 'ready'; readonly dataPort: number; readonly nbdPort: number }
  | { readonly type: 'tableApplied'; readonly revision: TableRevision }
  /** A client was told that unflushed writes of the volume were lost, of all losses up to that one. */
  | { readonly type: 'lossesTold'; readonly volume: VolumeNumber; readonly losses: number }
  /** A stale or newer table was met: fetch the table at least at... (0: just fetch). */
  | { readonly type: 'needTable'; readonly slot: SlotIndex; readonly version: ChainVersion }
  /** Rule 24 reports: triples slot, since, incarnation, packed. */
  | { readonly type: 'upToDate'; readonly reports: Int32Array }
  /** For slots that nobody serves and whose entry here is LASTSRV or WAITING: slot, chain version, id high, id low, LastIdFlag; packed. */
  | { readonly type: 'lastIds'; readonly disk: DiskNumber; readonly ids: Int32Array }
  /** Proof of death (design 4): established connections of that incarnation closed and a fresh connect was refused by its host. */
  | { readonly type: 'peerRefused'; readonly node: NodeNumber; readonly incarnation: Incarnation }
  /** Nodes of the table with which no session has been up for a while; again whenever that changes. */
  | { readonly type: 'unreachable'; readonly nodes: readonly NodeNumber[] }
  | { readonly type: 'diskFailed'; readonly disk: DiskNumber; readonly reason: string }
  | { readonly type: 'stopped' }
  | { readonly type: 'failed'; readonly message: string; readonly nextStep: string }
  | { readonly type: 'log'; readonly level: Parameters<ReactorLog>[0]; readonly message: string; readonly fields: Readonly<Record<string, unknown>> }
  /** Once a second: counters for metrics, perf-stats and cluster status. */
  | { readonly type: 'stats'; readonly counters: Readonly<Record<string, number>>; readonly disks: ReadonlyArray<DiskStats>; readonly resync: ResyncStats }
  | { readonly type: 'answer'; readonly queryId: number; readonly answer: unknown }

export interface DiskStats {
  readonly disk: DiskNumber
  readonly capacityBytes: number
  readonly usedBytes: number
  readonly journalUsedBytes: number
  readonly journalBytes: number
  /** New blocks are refused. */
  readonly rejectCreate: boolean
  /** Why, when it is not that the disk is full of blocks; else ''. */
  readonly rejectReason: string
}

export interface ResyncStats {
  /** Slots of this node in SYNCING, not yet reported up to date. */
  readonly slotsLeft: number
  readonly blocksLeft: number
  /** Payload bytes moved, and payload bytes that really differed, since the last time nothing was left. */
  readonly bytesMoved: number
  readonly bytesNeeded: number
  /** Pages of this node whose content is gone and on no other replica, and some of them by name. */
  readonly lostPages: number
  readonly lost: readonly LostPage[]
}

/** Page `page` (0 to 1023) of a block. */
export interface LostPage {
  readonly slot: number
  readonly volume: number
  readonly layer: number
  readonly index: number
  readonly page: number
}
