/**
 * The Raft core as the driver (`src/raft`) sees it: pure mechanism, no I/O, no clock, no randomness of its own. It wraps RawNode of
 * TiKV's `raft` crate (pre-vote, check-quorum, joint consensus, read index); `src/env/native/raft.ts` loads it. The real and the
 * simulated environment share it.
 *
 * Rules:
 * - After `ready()` nothing but `applyMembers` may be called until `advance()`; after `advance()` nothing but `applyMembers` until
 *   `advanceApply()`. Breaking this throws.
 * - Whatever a `Ready` holds in `entries`, `state` and `snapshot` is on stable storage before `advance()` is called and before any of
 *   `persistedMessages` is sent. `messages` may be sent at once.
 * - `random` is a u32 from Entropy: it becomes the election timeout if the call made the core draw a new one. So two runs with the
 *   same inputs are the same.
 * - A panic of the crate becomes a thrown Error; every later call throws the same: the process has to end.
 * - Numbers of nodes, terms and indexes are u53.
 */
import type { NodeNumber } from '../base/ids.ts'

/** A configuration of the group. `votersOutgoing` is not empty while it is joint: both majorities are needed. */
export interface Members {
  readonly voters: readonly NodeNumber[]
  readonly learners: readonly NodeNumber[]
  readonly votersOutgoing: readonly NodeNumber[]
  /** Voters of the outgoing half that become learners when it is left. */
  readonly learnersNext: readonly NodeNumber[]
  /** The leader leaves the joint configuration by itself. */
  readonly autoLeave: boolean
}

export interface HardState {
  readonly term: number
  /** Node voted for in `term`, 0 = none. */
  readonly vote: number
  readonly commit: number
}

/** Position in the log; (0, 0) is the start of an empty one. */
export interface LogPosition {
  readonly index: number
  readonly term: number
}

export interface RaftCoreOptions {
  readonly id: NodeNumber
  /** The election timeout is drawn from [electionTicksMin, electionTicksMax); also the time without a quorum's answers after which a leader steps down. */
  readonly electionTicksMin: number
  readonly electionTicksMax: number
  readonly heartbeatTicks: number
  /** Draws the first election timeout. */
  readonly random: number
  /** Last index whose effect is in the state machine. */
  readonly applied: number
  readonly hardState: HardState
  /** The configuration as of `applied`. */
  readonly members: Members
  /** The last entry that is no longer in the log. */
  readonly truncated: LogPosition
  /** Records as `Ready.entries` gave them, without gaps from truncated.index + 1 on. Throws naming the index when one is damaged or out of place. */
  readonly records: readonly Uint8Array[]
  /** Entries of one append message are at most this (one entry may be more). */
  readonly messageBytesMax: number
  readonly inflightMessagesMax: number
  /** Proposals are dropped while this much is appended and not yet committed. */
  readonly uncommittedBytesMax: number
  /** Committed entries of one Ready are at most this (one entry may be more). */
  readonly committedBytesMax: number
}

export const RaftRole = { FOLLOWER: 0, CANDIDATE: 1, LEADER: 2, PRE_CANDIDATE: 3 } as const
export type RaftRole = (typeof RaftRole)[keyof typeof RaftRole]

/** What an entry to apply is. MEMBERS: give `data` to `applyMembers`. */
export const EntryKind = { COMMAND: 0, MEMBERS: 1 } as const
export type EntryKind = (typeof EntryKind)[keyof typeof EntryKind]

export interface CommittedEntry {
  readonly index: number
  readonly term: number
  readonly kind: EntryKind
  /** Empty COMMAND: the entry with which a leader starts its term; nothing to apply. */
  readonly data: Uint8Array
}

export interface LogRecord {
  readonly index: number
  readonly term: number
  /** What to store: crc32c (u32, little endian) of what follows, then the entry in the protobuf form of the crate. */
  readonly record: Uint8Array
}

export interface OutgoingMessage {
  readonly to: NodeNumber
  readonly bytes: Uint8Array
  /** It carries a snapshot: report its fate with `reportSnapshot`, or that node gets nothing more. */
  readonly isSnapshot: boolean
}

export interface RaftSnapshot {
  readonly index: number
  readonly term: number
  readonly members: Members
  readonly data: Uint8Array
}

export interface RaftSoftState {
  readonly role: RaftRole
  /** 0 = none known. */
  readonly leader: NodeNumber
}

export interface RaftReady {
  /** Present when it changed. `mustSync` is false when nothing but the commit index is new: then it may be stored later. */
  readonly hardState?: HardState
  readonly mustSync: boolean
  readonly softState?: RaftSoftState
  /** Replaces the log and the state machine; `entries` come after it, `committedEntries` are empty. */
  readonly snapshot?: RaftSnapshot
  /** To store; an entry replaces that of its index and removes all behind it. */
  readonly entries: readonly LogRecord[]
  /** To apply, in order; already on stable storage here. */
  readonly committedEntries: readonly CommittedEntry[]
  readonly messages: readonly OutgoingMessage[]
  readonly persistedMessages: readonly OutgoingMessage[]
  readonly readStates: ReadonlyArray<{ readonly index: number; readonly context: Uint8Array }>
}

export interface RaftLightReady {
  /** The commit index when it moved; may be stored later. */
  readonly commit?: number
  readonly messages: readonly OutgoingMessage[]
  readonly committedEntries: readonly CommittedEntry[]
}

export type MemberChangeKind = 'voter' | 'learner' | 'remove'
export interface MemberChange {
  readonly kind: MemberChangeKind
  readonly node: NodeNumber
}

export const ProgressState = { PROBE: 0, REPLICATE: 1, SNAPSHOT: 2 } as const
export interface RaftProgress {
  readonly node: NodeNumber
  /** Highest index known to be stored on that node. */
  readonly matched: number
  readonly state: (typeof ProgressState)[keyof typeof ProgressState]
  /** It answered since the last check of the quorum. */
  readonly active: boolean
}

export interface RaftStatus {
  readonly id: NodeNumber
  readonly role: RaftRole
  readonly term: number
  readonly leader: NodeNumber
  readonly commit: number
  readonly applied: number
  /** Index of the first entry still in the log, and of the last one. */
  readonly firstIndex: number
  readonly lastIndex: number
  /** An entry of the present term is committed (only then does a leader know what is committed). */
  readonly committedInTerm: boolean
  /** A change of members is (or may be) in the log and not applied. */
  readonly membersPending: boolean
  /** Target of the transfer under way, 0 = none. */
  readonly transferee: NodeNumber
  /** Empty unless leader. */
  readonly progress: readonly RaftProgress[]
}

export interface RaftCore {
  tick(random: number): void
  /** A message of another node. Throws RaftRefused when the bytes are no message, are not of `from`, or are not for this node. */
  step(from: NodeNumber, message: Uint8Array, random: number): void
  /** Leader only. Returns the position it got, or undefined when dropped: not leader, removed, too much uncommitted, or a transfer under way. */
  propose(data: Uint8Array): LogPosition | undefined
  /**
   * Leader only. No changes = leave the joint configuration. One learner added is a plain change, all else is joint (left by itself).
   * Undefined when dropped; the entry may turn out empty when a change is pending: check `status().membersPending` first.
   */
  proposeMembers(changes: readonly MemberChange[]): LogPosition | undefined
  /** For each committed entry of kind MEMBERS, when it is applied. Returns the configuration from then on. */
  applyMembers(data: Uint8Array): Members
  /** Starts a read-index round (forwarded to the leader). `context` must never repeat, not even after a restart. It may be lost: start again. */
  readIndex(context: Uint8Array): void
  /** Pre-vote, then election. Nothing when not a voter or already leader. */
  campaign(random: number): void
  /** Leader only: hands over to a voter; ends by itself after an election timeout. */
  transferLeader(to: NodeNumber): void
  /** Follower without a leader, in the same term: a leader proven dead is dropped, so that votes are given at once. */
  dropLeader(random: number): void
  reportUnreachable(node: NodeNumber): void
  reportSnapshot(node: NodeNumber, received: boolean): void
  hasReady(): boolean
  ready(): RaftReady
  advance(): RaftLightReady
  advanceApply(): void
  /** Forgets entries up to `index` (at most the applied one). Returns the position truncated at. */
  compact(index: number): LogPosition
  /** Bytes of commands in the log. */
  readonly logBytes: number
  /** A follower needs a snapshot: the driver gives one with `provideSnapshot`. */
  readonly snapshotWanted: boolean
  /** State machine and members as of `index` (the applied one). Kept in memory until the next `compact`. */
  provideSnapshot(snapshot: { index: number; members: Members; data: Uint8Array }): void
  status(): RaftStatus
  /** Frees the native memory; any later call throws. */
  close(): void
}

export type RaftCoreFactory = (options: RaftCoreOptions) => RaftCore

/** `step` was given something that is no message for this node: the sender's fault. */
export class RaftRefused extends Error {
  override name = 'RaftRefused'
}

/** The leader has this node's word for more than is stored here: what was stored has gone back. The core is broken. */
export class RaftWentBack extends Error {
  override name = 'RaftWentBack'
}
