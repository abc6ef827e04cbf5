/**
 * One node of the Raft group: a thin deterministic driver on the core of `src/env/raft-core.ts`.
 *
 * Invariants:
 * - What a message promises (a vote, an appended entry) is on stable storage before the message leaves.
 * - One pump: the core is never entered while a batch is being stored; what arrives meanwhile waits in bounded queues.
 * - Entries are applied in order, each once; what the state machine stores and the index it stands for are one batch.
 * - Commands are never proposed again by the driver: a caller that gets CONSENSUS_FAILED does not know, and must make retries harmless.
 *
 * Stored in Kv:
 *   raft/state              JSON: format, node, term, vote, commit, applied, truncated {index, term}, members
 *   raft/log/<16 hex>       one record per entry of the log, key = index
 *   <stateMachine.prefix>…  the state machine's own
 */
import type { NodeNumber } from '../base/ids.ts'
import type { Clock, Entropy, Kv, KvOp, Log } from '../env/control.ts'
import type { Members, RaftCoreFactory, RaftProgress, RaftRole } from '../env/raft-core.ts'

export interface StateMachine {
  /** Its keys in Kv start with this; not "raft/". */
  readonly prefix: string
  /** Once, before anything else: all that `apply` and `restore` stored, in key order; empty on first start. */
  load(stored: ReadonlyArray<{ readonly key: string; readonly value: Uint8Array }>): void
  /**
   * Applies one command: deterministic, never throws for a bad command (that is a result). What it throws halts the node.
   * `ops` are stored in one batch with the applied index, at the latest a tick later. Runs on every node; `result` reaches the proposer only.
   */
  apply(entry: { readonly index: number; readonly term: number; readonly command: Uint8Array }): { readonly result: unknown; readonly ops: readonly KvOp[] }
  /** The whole state as of the last applied entry. */
  snapshot(): Uint8Array
  /** Replaces the state by a snapshot as of entry `index`. Returns the ops that make Kv hold it, deletions of what vanished included. */
  restore(snapshot: Uint8Array, index: number): readonly KvOp[]
}

export interface RaftTransport {
  /** Best effort, in order per node where it can; never throws, never calls back at once. The receiver calls `receive` of its RaftNode. */
  send(to: NodeNumber, messages: readonly Uint8Array[]): void
}

export interface LeaderChange {
  /** 0 = none known. */
  readonly leader: NodeNumber
  readonly term: number
  readonly isSelf: boolean
}

export interface RaftEvents {
  /** Leader or term of the leader changed, as this node sees it. */
  onLeaderChange?(change: LeaderChange): void
  /** A configuration was applied. When this node is in no part of it any more, it was removed. */
  onMembersChange?(members: Members): void
  /** After entries were applied (index of the last one). */
  onApplied?(index: number): void
  /** After `restore` replaced the state machine. */
  onRestored?(index: number): void
  /** The node cannot go on (storage failed, the core broke, `apply` threw): end the process. Called once. */
  onFatal(error: unknown): void
}

export interface RaftNodeOptions {
  readonly id: NodeNumber
  readonly createCore: RaftCoreFactory
  readonly kv: Kv
  readonly clock: Clock
  readonly entropy: Entropy
  readonly log: Log
  readonly transport: RaftTransport
  readonly stateMachine: StateMachine
  readonly events: RaftEvents
  /**
   * What an empty Kv means. `voters`: the first start of a new group of exactly these (the same list on each; usually one node that grows
   * later). 'join': wait, empty, to be added by a leader. A node that lost its Kv must join under a new number: it forgot whom it voted for.
   */
  readonly start: { readonly voters: readonly NodeNumber[] } | 'join'
  /** Election timeouts are drawn from [t, 2t); a leader without a quorum's answers for t steps down. Default 1000. */
  readonly electionTimeoutMs?: number
  /** Default 50. */
  readonly tickMs?: number
  /** Default: every 2 ticks. */
  readonly heartbeatMs?: number
  /** The log is cut when it holds more than this many applied entries. Default 10000. */
  readonly compactAfterEntries?: number
  /** Applied entries that are kept when the log is cut; a node further behind gets a snapshot. Default 1000. */
  readonly keepEntries?: number
  /** A snapshot sent is taken for lost after this. Default 10 s. */
  readonly snapshotTimeoutMs?: number
}

export interface RaftNodeStatus {
  readonly id: NodeNumber
  readonly role: RaftRole
  readonly term: number
  readonly leader: NodeNumber
  readonly commit: number
  readonly applied: number
  readonly firstIndex: number
  readonly lastIndex: number
  readonly members: Members
  /** Per other node; empty unless leader. */
  readonly progress: readonly RaftProgress[]
}

/** Largest command; REQUEST_TOO_LARGE beyond. */
export const COMMAND_BYTES_MAX = 1024 * 1024

/** The methods of {@link RaftNode} that the control plane uses. Made by `RaftNode.open(options)`, which starts ticking. */
export interface Raft {
  readonly id: NodeNumber
  /** 0 = none known. */
  readonly leader: NodeNumber
  readonly isLeader: boolean
  readonly term: number
  /** Index of the last applied entry. */
  readonly applied: number
  /** As of the last applied entry. */
  readonly members: Members

  /** Messages of node `from` (authenticated by the transport). Bad ones are refused and logged; none beyond the queue's size are kept. */
  receive(from: NodeNumber, messages: readonly Uint8Array[]): void

  /**
   * Proposes a command; resolves with what `apply` returned on this node. Rejects with XsanError:
   * NOT_LEADER (certainly not applied; `NotLeaderError.leader` is the hint), BUSY (not applied: too much under way, or a transfer),
   * REQUEST_TOO_LARGE, STOPPING, CONSENSUS_FAILED (not known whether it is or will be applied).
   */
  propose(command: Uint8Array, options?: { timeoutMs?: number }): Promise<unknown>

  /**
   * A read-index round that starts after the call; resolves, once the state machine has applied that index, with the index: what is read
   * then is at least as new as anything acknowledged before the call. `asLeader`: only while this node leads without a break from call to
   * answer (protocol 29), else NOT_LEADER. Rejects CONSENSUS_FAILED on timeout, BUSY, STOPPING.
   */
  readIndex(options?: { timeoutMs?: number; asLeader?: boolean }): Promise<number>

  /** Leader only. Resolve when the new configuration is applied here and not joint any more. Errors as `propose`; INVALID_PARAM when it makes no sense. */
  addLearner(node: NodeNumber, options?: { timeoutMs?: number }): Promise<Members>
  /** Makes a learner (or a new node) a voter. Wait until its `progress` is near before. */
  promote(node: NodeNumber, options?: { timeoutMs?: number }): Promise<Members>
  remove(node: NodeNumber, options?: { timeoutMs?: number }): Promise<Members>
  /** Any change at once, through a joint configuration. */
  changeMembers(change: MembersChange, options?: { timeoutMs?: number }): Promise<Members>

  /** Leader only; resolves when another node leads. Rejects CONSENSUS_FAILED when it did not happen within an election timeout. */
  transferLeader(to: NodeNumber): Promise<void>

  /**
   * The process of `leader` is proven dead. If it is whom this node follows, drops it (so that this node votes at once) and, when a voter,
   * campaigns after rank x 50 ms unless a new leader is known by then. rank: 0, 1, ... among the surviving voters.
   */
  leaderProvenDead(leader: NodeNumber, rank: number): void

  /** The transport knows that `node` cannot be reached now. */
  reportUnreachable(node: NodeNumber): void

  status(): RaftNodeStatus
  /** Stores what is pending; rejects all that waits with STOPPING. Does not close the Kv. */
  stop(): Promise<void>
}

export interface MembersChange {
  readonly addVoters?: readonly NodeNumber[]
  readonly addLearners?: readonly NodeNumber[]
  readonly remove?: readonly NodeNumber[]
}
