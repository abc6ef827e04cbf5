/**
 * One node of the Raft group: a thin deterministic driver on the core of `src/env/raft-core.ts`.
 *
 * Invariants:
 * - What a message promises (a vote, an appended entry) is on stable storage before the message leaves.
 * - One pump: the core is never entered while a batch is being stored; what arrives meanwhile waits in bounded queues.
 * - Entries are applied in order, each once; what the state machine stores and the index it stands for are one batch.
 * - Commands are never proposed again by the driver: a caller that gets CONSENSUS_FAILED does not know, and must make retries harmless.
 *
 * A turn of the pump:
 *   inputs (messages, tick, proposals, reads) -> core
 *   ready -> send what may go | apply what is committed | store, synced | send what had to wait -> advance
 *   light ready -> send | apply -> answer proposals and reads
 */
import { assert } from '../base/assert.ts'
import { messageOf, XsanError } from '../base/errors.ts'
import { NODE_NONE, type NodeNumber } from '../base/ids.ts'
import { MiB } from '../base/units.ts'
import type { Clock, Entropy, Kv, KvOp, Log, TimerId } from '../env/control.ts'
import {
  type CommittedEntry,
  EntryKind,
  type LogPosition,
  type MemberChange,
  type Members,
  type OutgoingMessage,
  type RaftCore,
  type RaftCoreFactory,
  type RaftProgress,
  type RaftReady,
  RaftRefused,
  RaftRole,
  type RaftSnapshot,
  RaftWentBack,
} from '../env/raft-core.ts'
import { LogStore, type StoredState, wentBack } from './log-store.ts'

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
  /** Default: a tenth of the election timeout, from 10 to 100. An idle node wakes up for each. */
  readonly tickMs?: number
  /** Of the leader. Default: a fifth of the election timeout, whole ticks. */
  readonly heartbeatMs?: number
  /** The log is cut when it holds more than this many applied entries (or 64 MiB of commands). Default 10000. */
  readonly compactAfterEntries?: number
  /** Applied entries that are kept at least when the log is cut for their number; a node further behind gets a snapshot. Default 1000. */
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
  /** Per other node; empty unless leader. `active`: has sent something within the last few heartbeats (the core itself looks once in an election timeout). */
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

/** Rejects what only a leader can do; the command was not and will not be applied. */
export class NotLeaderError extends XsanError {
  /** Whom to ask instead; 0 = not known. */
  readonly leader: NodeNumber
  constructor(leader: NodeNumber, message = leader === NODE_NONE ? 'no leader is known' : `node ${leader} leads`) {
    super('NOT_LEADER', message, leader === NODE_NONE ? 'Try again shortly; if it stays, a majority of the voters is not running.' : `Ask node ${leader}.`)
    this.leader = leader
  }
}

const ELECTION_TIMEOUT_MS = 1000
const TICK_MS_MIN = 10
const TICK_MS_MAX = 100
const COMPACT_AFTER_ENTRIES = 10_000
const KEEP_ENTRIES = 1000
const SNAPSHOT_TIMEOUT_MS = 10_000
const CALL_TIMEOUT_MS = 5000

const INBOX_MESSAGES_MAX = 4096
const INBOX_BYTES_MAX = 64 * MiB
const PROPOSALS_MAX = 1024
const READERS_MAX = 4096
/** Read-index rounds under way. */
const ROUNDS_MAX = 64
const CONTROLS_MAX = 1024
const LOG_BYTES_MAX = 64 * MiB
/** Entries cut from the log in one turn. */
const CUT_ENTRIES_MAX = 2000
const GATHERED_OPS_MAX = 4096
/** Who has sent nothing during so many is not active. */
const SILENT_HEARTBEATS = 3
/** A round without an answer (a lost message, a leader that has committed nothing in its term yet) is asked again after this. */
const ROUND_RETRY_TICKS = 2
const RANK_DELAY_MS = 50
/** After a leader was proven dead: campaign again while no leader is known. */
const CAMPAIGN_RETRY_MS = 150

/** Someone who waits for an answer until a deadline. */
interface Waiter<T> {
  readonly deadlineMs: number
  readonly resolve: (value: T) => void
  readonly reject: (error: XsanError) => void
  settled: boolean
}

interface Proposal extends Waiter<unknown> {
  readonly command: Uint8Array
  position: LogPosition | undefined
}

interface Reader extends Waiter<number> {
  /** The term in which this node must lead throughout; 0 = no matter who leads. */
  readonly leaderTerm: number
}

interface ReadRound {
  readonly context: Uint8Array
  readonly readers: readonly Reader[]
  askedTick: number
}

interface Change extends Waiter<Members> {
  readonly changes: readonly MemberChange[]
  position: LogPosition | undefined
  applied: boolean
}

const NO_MEMBERS: Members = { voters: [], learners: [], votersOutgoing: [], learnersNext: [], autoLeave: false }

export class RaftNode implements Raft {
  readonly id: NodeNumber
  readonly #core: RaftCore
  readonly #store: LogStore
  readonly #clock: Clock
  readonly #entropy: Entropy
  readonly #log: Log
  readonly #transport: RaftTransport
  readonly #machine: StateMachine
  readonly #events: RaftEvents
  readonly #tickMs: number
  readonly #silentMs: number
  readonly #electionTimeoutMs: number
  readonly #compactAfterEntries: number
  readonly #keepEntries: number
  readonly #snapshotTimeoutMs: number

  #role: RaftRole = RaftRole.FOLLOWER
  #leader: NodeNumber = NODE_NONE
  #announced: { leader: NodeNumber; term: number } = { leader: NODE_NONE, term: 0 }

  #inbox: Array<{ from: NodeNumber; bytes: Uint8Array }> = []
  #inboxBytes = 0
  readonly #complainedOf = new Set<NodeNumber>()
  /** When each other node has sent something last. */
  readonly #heardMs = new Map<NodeNumber, number>()
  #controls: Array<() => void> = []
  #tickDue = false
  #tickCount = 0
  #tickTimer: TimerId | undefined
  #campaignTimer: TimerId | undefined

  #unproposed: Proposal[] = []
  readonly #proposed = new Map<number, Proposal>()
  /** Not in a round yet. */
  #readers: Reader[] = []
  readonly #rounds = new Map<number, ReadRound>()
  /** Their round is answered; they wait until that index is applied. */
  #unappliedReads: Array<{ index: number; reader: Reader }> = []
  #roundCount = 0
  /** The term in which this leader is known to have committed an entry of its own: before that the core drops reads. */
  #committedTerm = 0
  readonly #roundPrefix: Uint8Array
  #change: Change | undefined
  #transfer: Waiter<void> | undefined
  readonly #snapshotDeadlines = new Map<NodeNumber, number>()

  #pumping: Promise<void> | undefined
  #failed = false
  #stopping = false
  /** The core is gone. */
  #isClosed = false

  /** Reads and checks what is stored, loads the state machine, and starts. Rejects with XsanError: DISK_CORRUPTED, DISK_INCOMPATIBLE, INVALID_PARAM. */
  static async open(options: RaftNodeOptions): Promise<RaftNode> {
    const { id, kv, stateMachine } = options
    assert(!stateMachine.prefix.startsWith('raft/') && stateMachine.prefix.length > 0, 'the state machine needs a prefix of its own')
    const { store, records, isNew } = await LogStore.open(kv, initialState(options), stateMachine.prefix)
    const state = store.state
    const { electionTicks, heartbeatTicks } = ticksOf(options)
    let core: RaftCore
    try {
      core = options.createCore({
        id,
        electionTicksMin: electionTicks,
        electionTicksMax: 2 * electionTicks,
        heartbeatTicks,
        random: options.entropy.u32(),
        applied: state.applied,
        hardState: state.hardState,
        members: state.members,
        truncated: state.truncated,
        records,
        messageBytesMax: 1 * MiB,
        inflightMessagesMax: 64,
        uncommittedBytesMax: 64 * MiB,
        committedBytesMax: 4 * MiB,
      })
    } catch (error) {
      throw new XsanError('DISK_CORRUPTED', messageOf(error), 'Remove this node from the cluster and let it join again with an empty data directory.', {
        cause: error,
      })
    }
    stateMachine.load(await kv.scan(stateMachine.prefix))
    const node = new RaftNode(options, core, store)
    options.log.log('INFO', isNew ? 'Raft starts with an empty log' : 'Raft continues from its log', {
      term: state.hardState.term,
      applied: state.applied,
      lastIndex: store.lastIndex,
      voters: state.members.voters,
    })
    node.#start()
    return node
  }

  private constructor(options: RaftNodeOptions, core: RaftCore, store: LogStore) {
    this.id = options.id
    this.#core = core
    this.#store = store
    this.#clock = options.clock
    this.#entropy = options.entropy
    this.#log = options.log
    this.#transport = options.transport
    this.#machine = options.stateMachine
    this.#events = options.events
    const { tickMs, heartbeatTicks } = ticksOf(options)
    this.#tickMs = tickMs
    this.#silentMs = SILENT_HEARTBEATS * heartbeatTicks * tickMs
    this.#electionTimeoutMs = options.electionTimeoutMs ?? ELECTION_TIMEOUT_MS
    this.#compactAfterEntries = options.compactAfterEntries ?? COMPACT_AFTER_ENTRIES
    this.#keepEntries = options.keepEntries ?? KEEP_ENTRIES
    this.#snapshotTimeoutMs = options.snapshotTimeoutMs ?? SNAPSHOT_TIMEOUT_MS
    this.#roundPrefix = options.entropy.bytes(12)
  }

  #start(): void {
    this.#scheduleTick()
    const { voters, votersOutgoing } = this.members
    if (voters.length === 1 && voters[0] === this.id && votersOutgoing.length === 0) this.#control(() => this.#core.campaign(this.#entropy.u32()))
  }

  // ---- what callers see ----------------------------------------------------------------------------------------------

  get leader(): NodeNumber {
    return this.#leader
  }

  get isLeader(): boolean {
    return this.#role === RaftRole.LEADER
  }

  get term(): number {
    return this.#store.state.hardState.term
  }

  get applied(): number {
    return this.#store.state.applied
  }

  get members(): Members {
    return this.#store.state.members
  }

  receive(from: NodeNumber, messages: readonly Uint8Array[]): void {
    if (this.#failed || this.#stopping) return
    this.#heardMs.set(from, this.#clock.nowMs())
    for (const bytes of messages) {
      // Raft repairs what is lost here.
      if (this.#inbox.length >= INBOX_MESSAGES_MAX || this.#inboxBytes + bytes.length > INBOX_BYTES_MAX) break
      this.#inbox.push({ from, bytes })
      this.#inboxBytes += bytes.length
    }
    this.#kick()
  }

  propose(command: Uint8Array, options?: { timeoutMs?: number }): Promise<unknown> {
    return this.#call<unknown, Proposal>(options?.timeoutMs, (waiter) => {
      if (command.length > COMMAND_BYTES_MAX) {
        throw new XsanError('REQUEST_TOO_LARGE', `a command of ${command.length} bytes, at most ${COMMAND_BYTES_MAX} are possible`, 'Split it.')
      }
      assert(command.length > 0, 'an empty command')
      if (!this.isLeader) throw new NotLeaderError(this.#leader)
      if (this.#unproposed.length + this.#proposed.size >= PROPOSALS_MAX) throw busy(`${PROPOSALS_MAX} commands are under way`)
      const proposal: Proposal = { ...waiter, command, position: undefined }
      this.#unproposed.push(proposal)
      return proposal
    })
  }

  readIndex(options?: { timeoutMs?: number; asLeader?: boolean }): Promise<number> {
    return this.#call<number, Reader>(options?.timeoutMs, (waiter) => {
      const asLeader = options?.asLeader === true
      if (asLeader && !this.isLeader) throw new NotLeaderError(this.#leader)
      if (this.#readers.length >= READERS_MAX) throw busy(`${READERS_MAX} reads wait`)
      const reader: Reader = { ...waiter, leaderTerm: asLeader ? this.term : 0 }
      this.#readers.push(reader)
      return reader
    })
  }

  addLearner(node: NodeNumber, options?: { timeoutMs?: number }): Promise<Members> {
    if (this.members.voters.includes(node)) return Promise.reject(new XsanError('INVALID_PARAM', `node ${node} is a voter already`))
    return this.changeMembers({ addLearners: [node] }, options)
  }

  promote(node: NodeNumber, options?: { timeoutMs?: number }): Promise<Members> {
    return this.changeMembers({ addVoters: [node] }, options)
  }

  remove(node: NodeNumber, options?: { timeoutMs?: number }): Promise<Members> {
    return this.changeMembers({ remove: [node] }, options)
  }

  changeMembers(change: MembersChange, options?: { timeoutMs?: number }): Promise<Members> {
    return this.#call<Members, Change>(options?.timeoutMs, (waiter) => {
      if (!this.isLeader) throw new NotLeaderError(this.#leader)
      if (this.#change !== undefined) throw busy('another change of members is under way')
      const changes = memberChanges(change)
      refuseSenseless(changes, this.members)
      const pending: Change = { ...waiter, changes, position: undefined, applied: false }
      this.#change = pending
      return pending
    })
  }

  transferLeader(to: NodeNumber): Promise<void> {
    return this.#call<void, Waiter<void>>(2 * this.#electionTimeoutMs, (waiter) => {
      if (!this.isLeader) throw new NotLeaderError(this.#leader)
      if (to === this.id || !this.members.voters.includes(to)) throw new XsanError('INVALID_PARAM', `node ${to} is not another voter`)
      if (this.#transfer !== undefined) throw busy('another transfer of leadership is under way')
      this.#transfer = waiter
      this.#control(() => this.#core.transferLeader(to))
      return waiter
    })
  }

  leaderProvenDead(leader: NodeNumber, rank: number): void {
    if (this.#failed || this.#stopping) return
    if (this.isLeader || (this.#leader !== leader && this.#leader !== NODE_NONE)) return
    this.#log.log('INFO', 'the Raft leader is proven dead', { leader, rank, term: this.term })
    const giveUpMs = this.#clock.nowMs() + rank * RANK_DELAY_MS + this.#electionTimeoutMs
    this.#dropLeader(leader)
    this.#campaignAfter(rank * RANK_DELAY_MS, leader, giveUpMs)
  }

  reportUnreachable(node: NodeNumber): void {
    this.#control(() => this.#core.reportUnreachable(node))
  }

  status(): RaftNodeStatus {
    const { applied, members, hardState, truncated } = this.#store.state
    if (this.#isClosed) {
      const { term, commit } = hardState
      const [firstIndex, lastIndex] = [truncated.index + 1, this.#store.lastIndex]
      return { id: this.id, role: RaftRole.FOLLOWER, term, leader: NODE_NONE, commit, applied, firstIndex, lastIndex, members, progress: [] }
    }
    const { id, role, term, leader, commit, firstIndex, lastIndex, progress: known } = this.#core.status()
    const sinceMs = this.#clock.nowMs() - this.#silentMs
    const progress = known.map((of) => ({ ...of, active: of.active && (this.#heardMs.get(of.node) ?? Number.NEGATIVE_INFINITY) >= sinceMs }))
    return { id, role, term, leader, commit, applied, firstIndex, lastIndex, members, progress }
  }

  async stop(): Promise<void> {
    if (this.#stopping) return
    this.#stopping = true
    this.#stopTimers()
    this.#rejectAll(() => new XsanError('STOPPING', 'the node is stopping', 'Ask another node.'))
    await this.#pumping
    if (!this.#failed) await this.#store.flush()
    this.#isClosed = true
    this.#role = RaftRole.FOLLOWER
    this.#leader = NODE_NONE
    this.#core.close()
  }

  // ---- waiting -------------------------------------------------------------------------------------------------------

  /** Makes a waiter; `enqueue` puts it where it belongs or throws why it is refused. */
  #call<T, W extends Waiter<T>>(timeoutMs: number | undefined, enqueue: (waiter: Waiter<T>) => W): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      if (this.#stopping) throw new XsanError('STOPPING', 'the node is stopping', 'Ask another node.')
      if (this.#failed) throw new XsanError('CONSENSUS_FAILED', 'Raft failed on this node', 'See the log of this node.')
      enqueue({ deadlineMs: this.#clock.nowMs() + (timeoutMs ?? CALL_TIMEOUT_MS), resolve, reject, settled: false })
      this.#kick()
    })
  }

  #expire(): void {
    const now = this.#clock.nowMs()
    for (const proposal of this.#unproposed) if (proposal.deadlineMs <= now) fail(proposal, busy('the command was not accepted in time'))
    for (const [index, proposal] of this.#proposed) {
      if (proposal.deadlineMs > now) continue
      this.#proposed.delete(index)
      fail(proposal, unknownOutcome('the command was not committed in time'))
    }
    const lateReader = (reader: Reader) => {
      if (reader.deadlineMs <= now) fail(reader, new XsanError('CONSENSUS_FAILED', 'no majority answered the read in time', 'Look at "xsan cluster status".'))
      return !reader.settled
    }
    this.#readers = this.#readers.filter(lateReader)
    for (const [id, round] of this.#rounds) if (round.readers.filter(lateReader).length === 0) this.#rounds.delete(id)
    this.#unappliedReads = this.#unappliedReads.filter(({ reader }) => lateReader(reader))
    if (this.#change !== undefined && this.#change.deadlineMs <= now) {
      fail(
        this.#change,
        this.#change.position ? unknownOutcome('the change of members did not finish in time') : busy('another change of members is under way'),
      )
      this.#change = undefined
    }
    if (this.#transfer !== undefined && this.#transfer.deadlineMs <= now) {
      fail(this.#transfer, new XsanError('CONSENSUS_FAILED', 'the leadership was not handed over in time', 'Try another node.'))
      this.#transfer = undefined
    }
    for (const [node, deadlineMs] of this.#snapshotDeadlines) {
      if (deadlineMs > now) continue
      this.#snapshotDeadlines.delete(node)
      this.#control(() => this.#core.reportSnapshot(node, false))
    }
  }

  #rejectAll(error: () => XsanError): void {
    for (const waiter of this.#unproposed) fail(waiter, error())
    for (const waiter of this.#proposed.values()) fail(waiter, error())
    for (const waiter of this.#readers) fail(waiter, error())
    for (const round of this.#rounds.values()) for (const waiter of round.readers) fail(waiter, error())
    for (const { reader } of this.#unappliedReads) fail(reader, error())
    if (this.#change) fail(this.#change, error())
    if (this.#transfer) fail(this.#transfer, error())
    this.#unproposed = []
    this.#proposed.clear()
    this.#readers = []
    this.#rounds.clear()
    this.#unappliedReads = []
    this.#change = undefined
    this.#transfer = undefined
  }

  // ---- timers --------------------------------------------------------------------------------------------------------

  #scheduleTick(): void {
    this.#tickTimer = this.#clock.setTimer(this.#tickMs, () => {
      this.#scheduleTick()
      this.#expire()
      // Ticks missed while a batch was being stored are not made up for: messages that waited as long are handled first.
      this.#tickDue = true
      this.#kick()
    })
  }

  #stopTimers(): void {
    if (this.#tickTimer !== undefined) this.#clock.clearTimer(this.#tickTimer)
    if (this.#campaignTimer !== undefined) this.#clock.clearTimer(this.#campaignTimer)
    this.#tickTimer = undefined
    this.#campaignTimer = undefined
  }

  #dropLeader(dead: NodeNumber): void {
    this.#control(() => {
      if (this.#core.status().leader === dead && dead !== this.id) this.#core.dropLeader(this.#entropy.u32())
    })
  }

  #campaignAfter(delayMs: number, dead: NodeNumber, giveUpMs: number): void {
    if (this.#campaignTimer !== undefined) this.#clock.clearTimer(this.#campaignTimer)
    this.#campaignTimer = this.#clock.setTimer(delayMs, () => {
      this.#campaignTimer = undefined
      const leader = this.#leader
      if ((leader !== NODE_NONE && leader !== dead) || this.#clock.nowMs() > giveUpMs) return
      // A late message of the dead leader may have brought it back.
      this.#dropLeader(dead)
      this.#control(() => this.#core.campaign(this.#entropy.u32()))
      this.#campaignAfter(CAMPAIGN_RETRY_MS, dead, giveUpMs)
    })
  }

  // ---- the pump ------------------------------------------------------------------------------------------------------

  #control(action: () => void): void {
    if (this.#controls.length < CONTROLS_MAX) this.#controls.push(action)
    this.#kick()
  }

  #kick(): void {
    if (this.#pumping !== undefined || this.#failed || this.#stopping) return
    this.#pumping = this.#pump().then(
      () => {
        this.#pumping = undefined
      },
      (error: unknown) => {
        this.#pumping = undefined
        this.#fail(error)
      },
    )
  }

  async #pump(): Promise<void> {
    // Callers that arrive in the same turn share it.
    await null
    let ticked = false
    while (!this.#stopping) {
      if (this.#enterInputs()) ticked = true
      if (this.#core.hasReady()) await this.#handleReady()
      else if (!this.#hasInputs()) {
        // What was gathered without need for haste is stored once a tick.
        if (!ticked || !this.#store.isDirty) return
        ticked = false
        await this.#store.flush()
      }
      if (this.#stopping) return
      if (this.#core.snapshotWanted) {
        this.#core.provideSnapshot({ index: this.applied, members: this.members, data: this.#machine.snapshot() })
      }
      this.#cutLog()
      if (this.#store.gatheredOps > GATHERED_OPS_MAX) await this.#store.flush()
    }
  }

  #fail(error: unknown): void {
    if (this.#failed) return
    this.#failed = true
    this.#stopTimers()
    this.#log.log('FATAL', 'Raft cannot go on', { error: messageOf(error) })
    this.#rejectAll(() => new XsanError('CONSENSUS_FAILED', `Raft failed on this node: ${messageOf(error)}`, 'See the log of this node.'))
    if (error instanceof RaftWentBack) void this.#condemn(error)
    else this.#events.onFatal(error)
  }

  async #condemn({ message }: RaftWentBack): Promise<void> {
    await this.#store.condemn(message).catch((error: unknown) => {
      this.#log.log('ERROR', 'that the metadata went back could not be noted', { error: messageOf(error) })
    })
    this.#events.onFatal(wentBack(message))
  }

  #hasInputs(): boolean {
    return this.#inbox.length > 0 || this.#controls.length > 0 || this.#tickDue || this.#unproposed.length > 0 || this.#canStartRound()
  }

  #canStartRound(): boolean {
    return this.#readers.length > 0 && this.#rounds.size < ROUNDS_MAX
  }

  /** Returns whether a tick was among them. */
  #enterInputs(): boolean {
    const controls = this.#controls
    this.#controls = []
    for (const control of controls) control()

    const inbox = this.#inbox
    this.#inbox = []
    this.#inboxBytes = 0
    for (const { from, bytes } of inbox) this.#step(from, bytes)

    const ticked = this.#tickDue
    if (ticked) {
      this.#tickDue = false
      this.#tickCount++
      this.#core.tick(this.#entropy.u32())
      this.#askAgain()
      this.#leaveJoint()
    }

    const unproposed = this.#unproposed
    this.#unproposed = []
    for (const proposal of unproposed) if (!proposal.settled) this.#enterProposal(proposal)
    if (this.#change !== undefined && this.#change.position === undefined) this.#enterChange(this.#change)
    if (this.#canStartRound()) this.#startRound()
    return ticked
  }

  #step(from: NodeNumber, bytes: Uint8Array): void {
    try {
      this.#core.step(from, bytes, this.#entropy.u32())
    } catch (error) {
      if (!(error instanceof RaftRefused)) throw error
      if (this.#complainedOf.has(from)) return
      this.#complainedOf.add(from)
      this.#log.log('WARN', 'a Raft message was refused (further ones of this node are not reported)', { from, reason: error.message })
    }
  }

  #enterProposal(proposal: Proposal): void {
    const position = this.#core.propose(proposal.command)
    if (position === undefined) {
      const { role, leader, transferee } = this.#core.status()
      if (role !== RaftRole.LEADER) fail(proposal, new NotLeaderError(leader))
      else fail(proposal, busy(transferee === NODE_NONE ? 'too much is proposed and not committed' : 'the leadership is being handed over'))
      return
    }
    // An older one at this index was overwritten: this leader's log holds all that was ever committed, and it is not there.
    const older = this.#proposed.get(position.index)
    if (older) fail(older, overwritten(this.#leader))
    proposal.position = position
    this.#proposed.set(position.index, proposal)
  }

  #enterChange(change: Change): void {
    const status = this.#core.status()
    if (status.role !== RaftRole.LEADER) {
      this.#change = undefined
      fail(change, new NotLeaderError(status.leader))
      return
    }
    // A leader of this term's own making, and nothing pending: a change on top of an uncommitted one could elect two leaders.
    if (!status.committedInTerm || status.membersPending || this.members.votersOutgoing.length > 0) return
    change.position = this.#core.proposeMembers(change.changes)
  }

  /** A leader that was deposed between the two halves of a change leaves the second to its successor. */
  #leaveJoint(): void {
    if (this.members.votersOutgoing.length === 0) return
    const status = this.#core.status()
    if (status.role === RaftRole.LEADER && status.committedInTerm && !status.membersPending) this.#core.proposeMembers([])
  }

  async #handleReady(): Promise<void> {
    const ready = this.#core.ready()
    this.#noteState(ready)
    this.#send(ready.messages)
    if (ready.snapshot) this.#install(ready.snapshot)
    this.#store.append(ready.entries)
    this.#apply(ready.committedEntries)
    if (ready.mustSync) await this.#store.flush()
    this.#send(ready.persistedMessages)
    const light = this.#core.advance()
    if (light.commit !== undefined) this.#setState({ hardState: { ...this.#store.state.hardState, commit: light.commit } })
    this.#send(light.messages)
    this.#apply(light.committedEntries)
    this.#core.advanceApply()
    if (light.commit !== undefined || ready.hardState !== undefined) this.#noteFirstCommit()
    this.#answerReads(ready)
    if (ready.snapshot) this.#events.onRestored?.(ready.snapshot.index)
    if (ready.committedEntries.length + light.committedEntries.length > 0) this.#events.onApplied?.(this.applied)
    this.#announceLeader()
    this.#stepDownIfRemoved()
  }

  #setState(part: Partial<StoredState>): void {
    this.#store.state = { ...this.#store.state, ...part }
    this.#store.touch()
  }

  #noteState(ready: RaftReady): void {
    if (ready.hardState) this.#setState({ hardState: ready.hardState })
    if (ready.softState) {
      this.#role = ready.softState.role
      this.#leader = ready.softState.leader
    }
  }

  #send(messages: readonly OutgoingMessage[]): void {
    if (messages.length === 0) return
    const perNode = new Map<NodeNumber, Uint8Array[]>()
    for (const { to, bytes, isSnapshot } of messages) {
      if (isSnapshot) this.#snapshotDeadlines.set(to, this.#clock.nowMs() + this.#snapshotTimeoutMs)
      const list = perNode.get(to)
      if (list) list.push(bytes)
      else perNode.set(to, [bytes])
    }
    for (const [to, list] of perNode) this.#transport.send(to, list)
  }

  #install(snapshot: RaftSnapshot): void {
    const { index, term, members, data } = snapshot
    this.#log.log('INFO', 'the state is taken from a snapshot of the leader', { index, term, bytes: data.length })
    this.#store.add(this.#machine.restore(data, index))
    this.#store.truncate({ index, term }, true)
    this.#setState({ applied: index, members })
    for (const [at, proposal] of this.#proposed) {
      if (at > index) continue
      this.#proposed.delete(at)
      fail(proposal, unknownOutcome('this node fell behind and took a snapshot'))
    }
    this.#noteMembers(members)
  }

  #apply(entries: readonly CommittedEntry[]): void {
    for (const { index, term, kind, data } of entries) {
      assert(index === this.applied + 1, `entry ${index} follows ${this.applied}`)
      const proposal = this.#proposed.get(index)
      if (proposal) this.#proposed.delete(index)
      if (proposal && proposal.position?.term !== term) fail(proposal, overwritten(this.#leader))
      if (kind === EntryKind.MEMBERS) {
        const members = this.#core.applyMembers(data)
        this.#setState({ applied: index, members })
        if (this.#change?.position?.index === index) {
          if (this.#change.position.term === term) this.#change.applied = true
          else this.#refuseChange(this.#change, term)
        }
        this.#noteMembers(members)
        continue
      }
      this.#setState({ applied: index })
      if (this.#change?.position?.index === index) this.#refuseChange(this.#change, term)
      // The first entry of a term, and a change of members that was refused, are empty.
      if (data.length === 0) continue
      const { result, ops } = this.#machine.apply({ index, term, command: data })
      this.#store.add(ops)
      if (proposal) succeed(proposal, result)
    }
  }

  /** The entry at its place is another one. */
  #refuseChange(change: Change, term: number): void {
    this.#change = undefined
    fail(change, change.position?.term === term ? busy('another change of members was under way') : overwritten(this.#leader))
  }

  #noteMembers(members: Members): void {
    const { voters, learners, votersOutgoing } = members
    this.#log.log('INFO', 'members of the Raft group', { voters, learners, votersOutgoing })
    this.#events.onMembersChange?.(members)
    const change = this.#change
    if (change?.applied && votersOutgoing.length === 0) {
      this.#change = undefined
      succeed(change, members)
    } else if (change?.position !== undefined && !change.applied && change.position.index <= this.applied) {
      this.#change = undefined
      fail(change, unknownOutcome('this node no longer knows what became of the change'))
    }
  }

  #stepDownIfRemoved(): void {
    const { voters, votersOutgoing } = this.members
    if (!this.isLeader || voters.includes(this.id) || votersOutgoing.length > 0) return
    this.#log.log('INFO', 'this node leads no more: it is no voter now')
    this.#core.dropLeader(this.#entropy.u32())
  }

  #announceLeader(): void {
    const { leader, term } = { leader: this.#leader, term: this.term }
    if (leader === this.#announced.leader && (leader === NODE_NONE || term === this.#announced.term)) return
    this.#announced = { leader, term }
    const isSelf = this.isLeader
    this.#log.log('INFO', leader === NODE_NONE ? 'no Raft leader' : 'Raft leader', { leader, term })
    if (this.#transfer && leader !== NODE_NONE && !isSelf) {
      succeed(this.#transfer, undefined)
      this.#transfer = undefined
    }
    // What was asked of the old leader may be lost.
    for (const round of this.#rounds.values()) round.askedTick = this.#tickCount - ROUND_RETRY_TICKS
    this.#events.onLeaderChange?.({ leader, term, isSelf })
  }

  #cutLog(): void {
    const { applied, truncated } = this.#store.state
    const held = applied - truncated.index
    const overfull = this.#core.logBytes > LOG_BYTES_MAX
    if (!overfull && (held <= this.#compactAfterEntries || held <= this.#keepEntries)) return
    const end = overfull ? applied - 1 : applied - this.#keepEntries
    const index = Math.min(end, truncated.index + CUT_ENTRIES_MAX)
    if (index > truncated.index) this.#store.truncate(this.#core.compact(index), false)
  }

  // ---- reads ---------------------------------------------------------------------------------------------------------

  #startRound(): void {
    const id = ++this.#roundCount
    const context = new Uint8Array(20)
    context.set(this.#roundPrefix)
    new DataView(context.buffer).setFloat64(12, id)
    this.#rounds.set(id, { context, readers: this.#readers, askedTick: this.#tickCount })
    this.#readers = []
    this.#core.readIndex(context)
  }

  /** Reads that came before a new leader's first commit were dropped by the core: asked again now, not after some ticks. */
  #noteFirstCommit(): void {
    if (!this.isLeader || this.#committedTerm === this.term || !this.#core.status().committedInTerm) return
    this.#committedTerm = this.term
    for (const round of this.#rounds.values()) {
      round.askedTick = this.#tickCount
      this.#core.readIndex(round.context)
    }
  }

  #askAgain(): void {
    for (const round of this.#rounds.values()) {
      if (this.#tickCount - round.askedTick < ROUND_RETRY_TICKS) continue
      round.askedTick = this.#tickCount
      this.#core.readIndex(round.context)
    }
  }

  #answerReads(ready: RaftReady): void {
    for (const { index, context } of ready.readStates) {
      if (context.length !== 20 || this.#roundPrefix.some((byte, i) => context[i] !== byte)) continue
      const id = new DataView(context.buffer, context.byteOffset).getFloat64(12)
      const round = this.#rounds.get(id)
      if (round === undefined) continue
      this.#rounds.delete(id)
      for (const reader of round.readers) this.#unappliedReads.push({ index, reader })
    }
    this.#refuseDeposed(this.#readers)
    for (const round of this.#rounds.values()) this.#refuseDeposed(round.readers)
    if (this.#unappliedReads.length === 0) return
    this.#refuseDeposed(this.#unappliedReads.map(({ reader }) => reader))
    this.#unappliedReads = this.#unappliedReads.filter(({ index, reader }) => {
      if (index <= this.applied) succeed(reader, index)
      return !reader.settled
    })
  }

  #refuseDeposed(readers: readonly Reader[]): void {
    for (const reader of readers) {
      if (reader.leaderTerm !== 0 && (!this.isLeader || reader.leaderTerm !== this.term))
        fail(reader, new NotLeaderError(this.isLeader ? this.id : this.#leader))
    }
  }
}

function ticksOf({ tickMs: given, electionTimeoutMs = ELECTION_TIMEOUT_MS, heartbeatMs }: RaftNodeOptions): {
  readonly tickMs: number
  readonly electionTicks: number
  readonly heartbeatTicks: number
} {
  const tickMs = given ?? Math.max(TICK_MS_MIN, Math.min(TICK_MS_MAX, Math.floor(electionTimeoutMs / 10)))
  const electionTicks = Math.max(3, Math.ceil(electionTimeoutMs / tickMs))
  const heartbeatTicks = Math.min(electionTicks - 1, Math.max(1, Math.floor((heartbeatMs ?? (electionTicks * tickMs) / 5) / tickMs)))
  return { tickMs, electionTicks, heartbeatTicks }
}

function initialState({ id, start }: RaftNodeOptions): StoredState {
  if (start === 'join') {
    return { node: id, hardState: { term: 0, vote: 0, commit: 0 }, applied: 0, truncated: { index: 0, term: 0 }, members: NO_MEMBERS }
  }
  // The first configuration stands behind the beginning of the log, so that a node that joins later must take it from a snapshot.
  assert(start.voters.includes(id), 'a node that starts a group is one of its voters')
  return {
    node: id,
    hardState: { term: 1, vote: 0, commit: 1 },
    applied: 1,
    truncated: { index: 1, term: 1 },
    members: { ...NO_MEMBERS, voters: [...start.voters].sort((a, b) => a - b) },
  }
}

function memberChanges(change: MembersChange): MemberChange[] {
  return [
    ...(change.addVoters ?? []).map((node): MemberChange => ({ kind: 'voter', node })),
    ...(change.addLearners ?? []).map((node): MemberChange => ({ kind: 'learner', node })),
    ...(change.remove ?? []).map((node): MemberChange => ({ kind: 'remove', node })),
  ]
}

function refuseSenseless(changes: readonly MemberChange[], members: Members): void {
  const nodes = changes.map(({ node }) => node)
  if (nodes.length === 0) throw new XsanError('INVALID_PARAM', 'a change of members that changes nothing')
  if (new Set(nodes).size !== nodes.length) throw new XsanError('INVALID_PARAM', 'a node occurs twice in one change of members')
  const voters = new Set(members.voters)
  for (const { kind, node } of changes) {
    if (!Number.isSafeInteger(node) || node <= 0) throw new XsanError('INVALID_PARAM', `${node} is not the number of a node`)
    if (kind === 'remove' && !voters.has(node) && !members.learners.includes(node)) {
      throw new XsanError('NODE_NOT_FOUND', `node ${node} is not in the Raft group`)
    }
    if (kind === 'voter') voters.add(node)
    else voters.delete(node)
  }
  if (voters.size === 0) throw new XsanError('INVALID_PARAM', 'the last voter cannot be removed', 'Add another voter first.')
}

function succeed<T>(waiter: Waiter<T>, value: T): void {
  if (waiter.settled) return
  waiter.settled = true
  waiter.resolve(value)
}

function fail<T>(waiter: Waiter<T>, error: XsanError): void {
  if (waiter.settled) return
  waiter.settled = true
  waiter.reject(error)
}

function busy(why: string): XsanError {
  return new XsanError('BUSY', why, 'Try again shortly.')
}

function overwritten(leader: NodeNumber): NotLeaderError {
  return new NotLeaderError(leader, 'another leader took over before the command was committed')
}

function unknownOutcome(why: string): XsanError {
  return new XsanError('CONSENSUS_FAILED', `${why}; whether it took or will take effect is not known`, 'Look before you try again.')
}
