/**
 * The coordinator: what the Raft leader does beyond Raft. It grants leases, believes things of nodes (View), and turns evidence and reports
 * into chain changes, one Raft command for all slots.
 *
 * All of it is volatile and begins anew with every term, but for how long nodes have been away, which is noted (`nodes.away`). Invariants (protocol 26 to 32):
 * - It begins when all earlier entries are applied, and takes every node to hold a lease until its own election + the longest L that any
 *   process has registered with, but for those that a leader has outlived (leases-settle). It grants no longer one itself (nodes take L from their own
 *   files, which may differ for a while).
 * - A grant follows a read-index round that began after the request arrived, and goes to the registered incarnation only.
 * - From proposing a change that drops a node until that is applied or known to be dead, the node is granted nothing.
 * - A renewal makes a node UP only if it was sent after the newest evidence against anybody: it names the number drawn for that. One that only arrived
 *   after it may have waited in the network while its sender died. A node that is DOWN gets no lease without becoming UP.
 * - The leader counts a lease from the arrival of the request (the node from its sending), longer by the drift bound.
 */
import { messageOf, XsanError } from '../base/errors.ts'
import type { ChainVersion, DiskNumber, Incarnation, NodeNumber, SlotIndex } from '../base/ids.ts'
import { CLOCK_DRIFT_MAX } from '../base/units.ts'
import type { Clock, Log, TimerId } from '../env/control.ts'
import { type Chain, type ChainEntry, DiskUse, entryOf, LastIdFlag, ReplicaState } from '../placement/chain.ts'
import { givenUpBeside } from '../placement/moves.ts'
import { CoordinatorView, View, type ViewRow } from '../placement/view.ts'
import type { Raft } from '../raft/driver.ts'
import { type ArgsOf, encodeCommand, OPERATIONS, type OperationName, type ResultOf, refuseAboveLevel, resultValue } from './command.ts'
import { Members } from './members.ts'
import { OneAtATime } from './one-at-a-time.ts'
import { type ChainsStepArgs, chainChanges, changesAny, type SlotFacts } from './ops/chains-step.ts'
import type { NodeAway } from './ops/nodes-away.ts'
import { Rebalancer } from './rebalance.ts'
import { booleanSetting, numberSetting, type OwnSettings } from './settings.ts'
import type { ClusterState } from './state.ts'

const RETRY_MS = 50
/** Numbers of doubts are 53 bits: 29 of the term, 24 within it. */
const DOUBTS_PER_TERM = 2 ** 24
/** Longest and shortest time between two looks at leases and plans: a lease is looked at when it ends. At most L/8 (see `#tick`). */
const TICK_MS_MAX = 250
const TICK_MS_MIN = 10
const REPLACE_VOTER_AFTER_MS = 600_000
const LOOK_EVERY_MS = 2000
/** For how long nodes are away is noted when that has grown by so much, and by an eighth; what is shorter is none. */
const NOTE_AWAY_MS = 5000
/** While nobody is in doubt, a renewal waits so long for those of other nodes: one read-index round confirms them all. */
const GATHER_MS = 4
const ROUND_TIMEOUT_MS = 1000
/** Beyond a lease, until nodes that do not reach each other are taken apart. */
const APART_MARGIN_MS = 500
/** Quiet time after a loss before anything is moved. */
const CALM_AFTER_MS = 2000
const PROPOSE_TIMEOUT_MS = 5000
/** A node that goes and comes is held off its chains: not at all, then this long, doubling. */
const HOLD_FIRST_MS = 1000
const HOLD_MAX_MS = 60_000
/** Losses older than this are forgotten. */
const LOSSES_FORGOTTEN_MS = 10 * 60_000
/** Facts of one command: keeps it below the largest one, whatever they are. */
export const FACTS_MAX = 1024

export interface Grant {
  readonly granted: boolean
  /** Why not. */
  readonly reason: string
  readonly leaseMs: number
  readonly tableRevision: number
  /** When the next renewal is wanted, from the sending of this answer. */
  readonly renewInMs: number
  /** What a renewal has to name to be a sign of life. */
  readonly doubt: number
}

export interface CoordinatorOptions {
  readonly raft: Raft
  readonly state: ClusterState
  readonly clock: Clock
  readonly log: Log
  readonly own: OwnSettings
  readonly leaseMs: number
  readonly virtualNodesPerPhysical?: number | undefined
  /** Asks a node to renew at once, naming `doubt`. */
  readonly nudge: (node: NodeNumber, doubt: number) => void
}

interface NodeLease {
  /** Leader's clock. */
  endMs: number
  /** Nodes that its data plane does not reach, since when it says so. */
  unreachable: ReadonlyMap<NodeNumber, number>
  /** When this process was first heard, or was UP again after having been DOWN. */
  backSinceMs: number
  /** The revision its data plane has confirmed, and of which incarnation. */
  confirmed: number
  incarnation: Incarnation
  /** Revisions it was told and has not confirmed: since when. */
  told: Array<{ revision: number; sinceMs: number }>
  losses: number
  lastLossMs: number
  holdUntilMs: number
  /** When it went DOWN; undefined while it is not. */
  downSinceMs: number | undefined
  seenMs: number
}

/** One term of leadership. Stopped for good when the term ends. */
export class Coordinator {
  readonly view = new CoordinatorView()
  readonly #options: CoordinatorOptions
  readonly #raft: Raft
  readonly #state: ClusterState
  readonly #clock: Clock
  readonly #leases = new Map<NodeNumber, NodeLease>()
  readonly #members: Members
  readonly #rebalancer: Rebalancer
  readonly #upToDate = new Map<SlotIndex, readonly [DiskNumber, ChainVersion, Incarnation]>()
  readonly #lastIds = new Map<SlotIndex, Map<DiskNumber, readonly [DiskNumber, Incarnation, ChainVersion, number, number, number]>>()
  /** Failures of disks that are not in the log yet. */
  readonly #failures = new Map<DiskNumber, ArgsOf<'disk.failed'>>()
  readonly #electedMs: number
  readonly #term: number
  #ready = false
  #stopped = false
  readonly #started: Promise<void>
  /** Raised by each new evidence: a renewal that was sent before says nothing of now. */
  #generation = 0
  readonly #stoppedProcesses = new Map<NodeNumber, Incarnation>()
  /** Nodes that the change under way drops. */
  #blocked: ReadonlySet<NodeNumber> = new Set()
  /** Nodes that are DOWN and whose peers were told to close their connections, by this leader. */
  readonly #told = new Set<NodeNumber>()
  /** The one change of the chains under way. */
  readonly #changing = new OneAtATime(() => this.#change())
  readonly #housekeeping = new OneAtATime(() => this.#keepHouse())
  /** The views have news: every slot has to be looked at. */
  #lookAtAll = true
  #disksRevision = -1
  #nodesRevision = -1
  #timer: TimerId | undefined
  #tickMs: number
  /** Nodes that do not reach each other, as last logged. */
  #apartText = ''
  /** The newest evidence against anybody, or the election. */
  #doubtedMs: number
  #seenRevision = -1
  #lookedMs = 0
  /** Slots that nobody serves, since when. */
  readonly #unserved = new Map<SlotIndex, number>()
  /** Those of them whose missing last servers the operator has given up (`without`: all that was missing then); `loss`: with the acknowledged writes that only they hold. */
  readonly #givenUp = new Map<SlotIndex, { readonly loss: boolean; readonly without: ReadonlySet<DiskNumber> }>()
  /** The renewals that are being gathered: resolves when their round may start. */
  #gathering: Promise<void> | undefined

  constructor(options: CoordinatorOptions) {
    this.#options = options
    this.#raft = options.raft
    this.#term = options.raft.term
    this.#state = options.state
    this.#clock = options.clock
    this.#electedMs = this.#doubtedMs = this.#tickMs = options.clock.nowMs()
    this.#members = new Members({
      raft: options.raft,
      state: options.state,
      log: options.log,
      clock: options.clock,
      isUp: (node) => this.view.view(node) === View.UP,
      replaceAfterMs: () => numberSetting(options.state, options.own, 'failover.replace_voter_after', REPLACE_VOTER_AFTER_MS),
    })
    this.#rebalancer = new Rebalancer({
      state: options.state,
      clock: options.clock,
      log: options.log,
      own: options.own,
      view: this.view,
      downSinceMs: (node) => this.#leases.get(node)?.downSinceMs,
      virtualNodesPerPhysical: options.virtualNodesPerPhysical,
    })
    this.#started = this.#start()
    // a caller that waits for it sees the reason; nobody else has to
    this.#started.catch(() => undefined)
  }

  /** Resolves when it serves; rejects when the term ends before. */
  get started(): Promise<void> {
    return this.#started
  }

  get ready(): boolean {
    return this.#ready && !this.#stopped
  }

  stop(): void {
    this.#stopped = true
    this.#changing.stop()
    this.#housekeeping.stop()
    if (this.#timer !== undefined) this.#clock.clearTimer(this.#timer)
  }

  async #start(): Promise<void> {
    while (!this.#stopped) {
      try {
        // an answer means: an entry of this term is committed, and all up to it are applied
        await this.#raft.readIndex({ asLeader: true, timeoutMs: ROUND_TIMEOUT_MS })
        break
      } catch (error) {
        if (error instanceof XsanError && (error.status === 'NOT_LEADER' || error.status === 'STOPPING')) throw error
        // it may have been refused at once (Raft has failed): nobody else would have a turn, not even who ends the process
        await this.#sleep(RETRY_MS)
      }
    }
    if (this.#stopped) throw notLeader()
    this.view.newLeader([...this.#state.nodes.values()].filter((node) => node.incarnation > 0).map((node) => [node.node, node.incarnation] as const))
    const endMs = this.#electedMs + Math.max(this.#options.leaseMs, this.#state.leaseMsMax) * (1 + CLOCK_DRIFT_MAX)
    for (const node of this.#state.nodes.values()) if (node.incarnation > 0) this.#lease(node.node).endMs = endMs
    this.#ready = true
    this.#tickMs = this.#clock.nowMs()
    this.#options.log.log('INFO', 'this node coordinates the cluster', { term: this.#raft.term, nodes: this.#state.nodes.size })
    this.#arm()
    this.#nudgeAll()
    this.wake()
  }

  // ---- what nodes say -----------------------------------------------------------------------------------------------------

  /** Protocol 28, 29. Throws NOT_LEADER, PERMISSION_DENIED (fenced), CONSENSUS_FAILED. */
  async renew(
    node: NodeNumber,
    incarnation: Incarnation,
    { tableRevision, doubt, unreachable }: { readonly tableRevision: number; readonly doubt: number; readonly unreachable: readonly NodeNumber[] },
  ): Promise<Grant> {
    const arrivedMs = this.#clock.nowMs()
    this.#checkSender(node, incarnation)
    if (this.ready && this.view.rows().every((row) => row.view === View.UP)) await this.#gather()
    await this.#confirmLeadership()
    if (this.#stopped) throw notLeader()
    this.#checkSender(node, incarnation)
    const lease = this.#lease(node)
    lease.seenMs = arrivedMs
    this.#confirm(lease, incarnation, tableRevision)
    this.#noteUnreachable(lease, unreachable, arrivedMs)
    const leaseMs = this.#grantMs()
    const answer = () => ({ leaseMs, tableRevision: this.#state.revision, renewInMs: this.#renewInMs(), doubt: this.#doubt })
    const refuse = (reason: string): Grant => ({ granted: false, reason, ...answer() })
    // a renewal that was overtaken by its own end
    if (this.#stoppedProcesses.get(node) === incarnation) return refuse('it has stopped')
    if (this.#blocked.has(node)) return refuse('a change of the chains without this node is under way')
    const oldest = lease.told[0]
    if (tableRevision < this.#state.revision && oldest !== undefined && arrivedMs - oldest.sinceMs > leaseMs / 2) {
      return refuse(`its data plane has not taken over table revision ${oldest.revision}`)
    }
    if (tableRevision < this.#state.revision && lease.told.at(-1)?.revision !== this.#state.revision) {
      lease.told.push({ revision: this.#state.revision, sinceMs: arrivedMs })
    }
    // A node that was found down after it had sent this is about to be dropped: it must hold no lease then. Its next renewal counts.
    const isAlive = doubt === this.#doubt
    if (!isAlive && this.view.view(node) === View.DOWN) return refuse('it was found to be down meanwhile')
    lease.endMs = Math.max(lease.endMs, arrivedMs + leaseMs * (1 + CLOCK_DRIFT_MAX))
    if (isAlive && this.view.view(node) !== View.UP && this.view.renewal(node, incarnation)) this.#cameUp(node, lease)
    return { granted: true, reason: '', ...answer() }
  }

  /** Proofs of death, bound to incarnations (design 4). */
  refused(against: ReadonlyArray<{ readonly node: NodeNumber; readonly incarnation: Incarnation }>): void {
    if (!booleanSetting(this.#state, this.#options.own, 'failover.trust_refused', true)) return
    this.#evidence(against, 'its host refuses connections')
  }

  /** That process has said itself, after giving up its lease, that it serves nothing any more: as good as a proof of death. */
  stopped(node: NodeNumber, incarnation: Incarnation): void {
    this.#checkSender(node, incarnation)
    this.#stoppedProcesses.set(node, incarnation)
    this.#evidence([{ node, incarnation }], 'it has stopped')
  }

  /** Protocol 24, 31. Several disks of one node never hold one slot in the same state, so the entry's `since` tells which is meant. */
  upToDate(node: NodeNumber, reports: ReadonlyArray<{ readonly slot: SlotIndex; readonly since: ChainVersion; readonly incarnation: Incarnation }>): void {
    for (const { slot, since, incarnation } of reports) {
      const entry = this.#state.chains[slot]?.entries.find((of) => of.node === node && of.state === ReplicaState.SYNCING)
      if (entry === undefined || entry.since !== since || entry.incarnation !== incarnation) continue
      this.#upToDate.set(slot, [entry.disk, since, incarnation])
    }
    if (this.#upToDate.size > 0) this.wake()
  }

  lastIds(
    node: NodeNumber,
    incarnation: Incarnation,
    disk: DiskNumber,
    ids: ReadonlyArray<{ readonly slot: SlotIndex; readonly version: ChainVersion; readonly hi: number; readonly lo: number; readonly flags: number }>,
  ): void {
    if (this.#state.disks.get(disk)?.node !== node) return
    for (const { slot, version, hi, lo, flags } of ids) {
      if (!(slot >= 0 && slot < this.#state.chains.length)) continue
      let ofSlot = this.#lastIds.get(slot)
      if (ofSlot === undefined) {
        ofSlot = new Map()
        this.#lastIds.set(slot, ofSlot)
      }
      // a process that ends and comes back finds a disk that was in use by this boot: what its predecessor said of it stays so
      const before = (ofSlot.get(disk)?.[5] ?? 0) & LastIdFlag.LOST_POWER
      ofSlot.set(disk, [disk, incarnation, version, hi, lo, flags | before])
    }
    if (ids.length > 0) this.wake()
  }

  /**
   * The node has stopped serving the disk. It goes into the log before the next change of the chains is thought of: what the operator gives up must not
   * come to mean this disk as well because its failure, of which neither knew, was applied in between. The node says it again until it is seen.
   */
  diskFailed(failure: ArgsOf<'disk.failed'>): void {
    this.#failures.set(failure.disk, failure)
    this.wake()
  }

  /** The node's data plane has applied the table of that revision (also said by every renewal). */
  confirm(node: NodeNumber, incarnation: Incarnation, tableRevision: number): void {
    if (this.#state.incarnation(node) === incarnation) this.#confirm(this.#lease(node), incarnation, tableRevision)
  }

  // ---- what the operator says ---------------------------------------------------------------------------------------------

  /**
   * Go on without the LASTSRV that are away; with `loss` even from copies that may lack acknowledged writes. For the slots that nobody serves now,
   * until they are served, in this term: what is lost later has to be given up anew.
   */
  recover(options: { readonly loss: boolean }): void {
    this.#lookForUnserved(this.#clock.nowMs())
    for (const slot of this.#unserved.keys()) {
      // who gives up nothing now takes back no loss accepted before, and adds none to it
      if (!options.loss && this.#givenUp.has(slot)) continue
      const missing = this.#state.chains[slot]!.entries.filter((entry) => !this.isThere(entry)).map(({ disk }) => disk)
      this.#givenUp.set(slot, { loss: options.loss, without: new Set(missing) })
    }
    this.wake()
  }

  /** What the replica holds may be had, as far as is known. */
  isThere({ node, disk }: ChainEntry): boolean {
    return this.view.view(node) === View.UP && this.#state.diskUse(disk) !== DiskUse.FAILED
  }

  /** The operator gives up what those alone hold that were not there when he said so; not what anybody held who was, though it be an older copy. */
  #isLossAccepted(slot: SlotIndex): boolean {
    const given = this.#givenUp.get(slot)
    if (given?.loss !== true) return false
    return this.#state.chains[slot]!.entries.every((entry) => this.isThere(entry) || given.without.has(entry.disk))
  }

  /** Nodes whose copies would serve now if the loss were accepted, although their resync never ended: old and new content is mixed in them. */
  unfinishedCopies(): NodeNumber[] {
    const { facts, ...known } = this.#event()
    const factsOf = new Map(facts.map((of) => [of.slot, of]))
    const unserved = [...this.#unserved.keys()].map((slot) => factsOf.get(slot) ?? { slot })
    const args: ChainsStepArgs = { ...known, facts: unserved, factsOnly: true, recoverWithoutAll: true, acceptDataLoss: true }
    return unserved.length === 0 ? [] : this.#unfinishedOf(chainChanges(this.#state, args))
  }

  #unfinishedOf(served: ReadonlyArray<{ readonly slot: SlotIndex; readonly chain: Chain }>): NodeNumber[] {
    const nodes = new Set<NodeNumber>()
    for (const { slot, chain } of served) {
      const server = chain.entries.find((entry) => entry.state === ReplicaState.SERVING)
      if (server !== undefined && ((this.#lastIds.get(slot)?.get(server.disk)?.[5] ?? 0) & LastIdFlag.INCOMPLETE) !== 0) nodes.add(server.node)
    }
    return [...nodes].sort((a, b) => a - b)
  }

  // ---- what status shows --------------------------------------------------------------------------------------------------

  leaseOf(node: NodeNumber): {
    readonly leaseMs: number
    readonly seenMs: number
    readonly view: View
    readonly confirmed: number
    readonly downSinceMs?: number | undefined
  } {
    const lease = this.#leases.get(node)
    return {
      leaseMs: lease === undefined ? 0 : Math.max(0, Math.round(lease.endMs - this.#clock.nowMs())),
      seenMs: lease?.seenMs ?? 0,
      view: this.view.view(node),
      confirmed: lease?.confirmed ?? 0,
      downSinceMs: lease?.downSinceMs,
    }
  }

  /** Slots that are on their way by plan (rebalance, change of head). */
  get planned(): ReadonlySet<SlotIndex> {
    return this.#rebalancer.planned
  }

  // ---- commands -----------------------------------------------------------------------------------------------------------

  /**
   * Rejects with the operation's own error, or: NOT_LEADER, STOPPING (certainly not applied), CONSENSUS_FAILED (not known: repeat with the same id).
   * An id that was answered BUSY is tried anew: that answer was for then, and changed nothing.
   */
  async propose<N extends OperationName>(op: N, args: ArgsOf<N>, id?: string): Promise<ResultOf<N>> {
    refuseAboveLevel(this.#state, op, OPERATIONS[op].feature)
    let result: unknown
    let named = id
    while (named !== undefined && this.#state.recentResult(named)?.error?.status === 'BUSY') named += '+'
    try {
      result = await this.#raft.propose(encodeCommand(op, args, named), { timeoutMs: PROPOSE_TIMEOUT_MS })
    } catch (error) {
      // the log is busy, or leadership is being handed over: not to be taken for a refusal of the operation
      if (error instanceof XsanError && error.status === 'BUSY') throw new XsanError('CONSENSUS_FAILED', error.message, error.nextStep, { cause: error })
      throw error
    }
    return resultValue(op, result)
  }

  // ---- driver's events ----------------------------------------------------------------------------------------------------

  /** After entries were applied. */
  onApplied(): void {
    if (!this.ready) return
    let news = false
    for (const node of this.#state.nodes.values()) {
      if (node.incarnation > this.view.incarnation(node.node)) {
        const isFirst = this.view.incarnation(node.node) === 0
        this.view.registered(node.node, node.incarnation)
        // DOWN until its first renewal; it is the older process whose connections have to go, and its peers know that by themselves
        this.#told.add(node.node)
        if (!isFirst) this.#wentDown(node.node)
        news = true
      }
    }
    for (const node of this.#leases.keys()) {
      if (this.#state.nodes.has(node)) continue
      this.view.forget(node)
      this.#leases.delete(node)
    }
    if (news) this.#doubted()
    if (this.#state.nodesRevision !== this.#nodesRevision) {
      this.#nodesRevision = this.#state.nodesRevision
      this.#members.reconcile()
      // one that was to be removed may stay
      this.#lookAtAll = true
      this.wake()
    }
    if (this.#state.disksRevision !== this.#disksRevision) {
      this.#disksRevision = this.#state.disksRevision
      this.#lookAtAll = true
      this.wake()
    }
  }

  // ---- inside -------------------------------------------------------------------------------------------------------------

  #checkSender(node: NodeNumber, incarnation: Incarnation): void {
    const registered = this.#state.nodes.get(node)
    if (registered === undefined)
      throw new XsanError('NODE_NOT_FOUND', `node ${node} is not a member (any more)`, 'Empty its data_dir and join again with a new token.')
    if (registered.incarnation !== incarnation) {
      throw new XsanError(
        'PERMISSION_DENIED',
        `process ${incarnation} of ${registered.id} is fenced: process ${registered.incarnation} has registered`,
        'End the older process.',
      )
    }
  }

  #lease(node: NodeNumber): NodeLease {
    let lease = this.#leases.get(node)
    if (lease === undefined) {
      lease = {
        endMs: 0,
        confirmed: 0,
        incarnation: 0 as Incarnation,
        told: [],
        unreachable: new Map(),
        backSinceMs: this.#clock.nowMs(),
        losses: 0,
        lastLossMs: 0,
        holdUntilMs: 0,
        downSinceMs: undefined,
        seenMs: 0,
      }
      this.#leases.set(node, lease)
    }
    return lease
  }

  #confirm(lease: NodeLease, incarnation: Incarnation, revision: number): void {
    if (lease.incarnation !== incarnation) {
      lease.incarnation = incarnation
      lease.confirmed = 0
      lease.told = []
      lease.unreachable = new Map()
      lease.backSinceMs = this.#clock.nowMs()
    }
    if (revision <= lease.confirmed) return
    lease.confirmed = revision
    lease.told = lease.told.filter((told) => told.revision > revision)
    if (this.#hasDraining()) this.wake()
  }

  #noteUnreachable(lease: NodeLease, nodes: readonly NodeNumber[], nowMs: number): void {
    const before = lease.unreachable
    if (nodes.length === before.size && nodes.every((node) => before.has(node))) return
    lease.unreachable = new Map(nodes.map((node) => [node, before.get(node) ?? nowMs]))
    // at once when they reach each other again; when they do not, `#tick` looks when it is time
    if (nodes.length < before.size) this.#lookAtAll = true
    this.wake()
  }

  /**
   * Pairs of nodes that do not reach each other although both are UP: so for longer than a lease, in which whoever had died would have gone DOWN.
   * Ascending.
   */
  apart(): Array<readonly [NodeNumber, NodeNumber]> {
    const beforeMs = this.#clock.nowMs() - this.#grantMs() * (1 + CLOCK_DRIFT_MAX) - APART_MARGIN_MS
    const pairs = new Map<string, readonly [NodeNumber, NodeNumber]>()
    for (const [node, { unreachable, backSinceMs }] of this.#leases) {
      if (unreachable.size === 0 || this.view.view(node) !== View.UP) continue
      for (const [other, sinceMs] of unreachable) {
        if (this.view.view(other) !== View.UP || Math.max(sinceMs, backSinceMs, this.#lease(other).backSinceMs) > beforeMs) continue
        const pair = [Math.min(node, other) as NodeNumber, Math.max(node, other) as NodeNumber] as const
        pairs.set(pair.join(), pair)
      }
    }
    return [...pairs.values()].sort(([a, b], [c, d]) => a - c || b - d)
  }

  #hasDraining(): boolean {
    for (const chain of this.#state.distinctChains) if (chain.entries.some((entry) => entry.state === ReplicaState.DRAINING)) return true
    return false
  }

  #grantMs(): number {
    const { leaseMs } = this.#options
    return this.#state.leaseMsMax > 0 ? Math.min(leaseMs, this.#state.leaseMsMax) : leaseMs
  }

  #gather(): Promise<void> {
    this.#gathering ??= this.#sleep(GATHER_MS).then(() => {
      this.#gathering = undefined
    })
    return this.#gathering
  }

  /** To the next multiple of L/4 on this node's clock, the same moment for all nodes. */
  #renewInMs(): number {
    const everyMs = this.#grantMs() / 4
    const leftMs = everyMs - (this.#clock.nowMs() % everyMs)
    return Math.ceil(leftMs < everyMs / 4 ? leftMs + everyMs : leftMs)
  }

  /** A read-index round that starts after this call (calls of the same turn share one), never behind an older round: a loss must not wait for that. */
  async #confirmLeadership(): Promise<void> {
    await this.#started
    if (!this.ready) throw notLeader()
    await this.#raft.readIndex({ asLeader: true, timeoutMs: ROUND_TIMEOUT_MS })
  }

  #evidence(against: ReadonlyArray<{ readonly node: NodeNumber; readonly incarnation: Incarnation }>, why: string): void {
    if (!this.ready) return
    const down = this.view.evidence(against)
    if (down.length === 0) return
    for (const node of down) {
      this.#options.log.log('WARN', 'a node is down', { node: this.#state.nodes.get(node)?.id, incarnation: this.view.incarnation(node), why })
      this.#wentDown(node)
    }
    this.#doubted()
  }

  #doubted(): void {
    this.#doubtedMs = this.#clock.nowMs()
    this.#generation++
    this.#lookAtAll = true
    this.#nudgeAll()
    this.wake()
  }

  /** Higher than any of an earlier leader. */
  get #doubt(): number {
    return this.#term * DOUBTS_PER_TERM + this.#generation
  }

  #nudgeAll(): void {
    for (const row of this.view.rows()) if (row.view !== View.DOWN) this.#options.nudge(row.node, this.#doubt)
  }

  #wentDown(node: NodeNumber): void {
    const lease = this.#lease(node)
    if (lease.downSinceMs !== undefined) return
    const nowMs = this.#clock.nowMs()
    if (nowMs - lease.lastLossMs > LOSSES_FORGOTTEN_MS) lease.losses = 0
    // who has been away since before this leader began is not waited for once more from the beginning
    lease.downSinceMs = nowMs - (lease.seenMs === 0 ? (this.#state.away.get(node)?.downMs ?? 0) : 0)
    lease.lastLossMs = nowMs
    lease.losses++
  }

  #cameUp(node: NodeNumber, lease: NodeLease): void {
    if (lease.downSinceMs !== undefined) {
      const holdMs = lease.losses <= 1 ? 0 : Math.min(HOLD_MAX_MS, HOLD_FIRST_MS * 2 ** (lease.losses - 2))
      lease.holdUntilMs = this.#clock.nowMs() + holdMs
      lease.downSinceMs = undefined
      lease.backSinceMs = this.#clock.nowMs()
      this.#options.log.log('INFO', 'a node is up', { node: this.#state.nodes.get(node)?.id, incarnation: this.view.incarnation(node), holdMs })
    }
    this.#lookAtAll = true
    this.wake()
  }

  #arm(): void {
    const nowMs = this.#clock.nowMs()
    let dueMs = nowMs + Math.min(TICK_MS_MAX, this.#options.leaseMs / 8)
    for (const row of this.view.rows()) {
      const lease = this.#lease(row.node)
      if (row.view !== View.DOWN) dueMs = Math.min(dueMs, lease.endMs)
      if (lease.holdUntilMs > nowMs) dueMs = Math.min(dueMs, lease.holdUntilMs)
    }
    this.#timer = this.#clock.setTimer(Math.max(TICK_MS_MIN, dueMs - nowMs), () => {
      if (this.#stopped) return
      this.#tick()
      if (!this.#stopped) this.#arm()
    })
  }

  #tick(): void {
    const nowMs = this.#clock.nowMs()
    const { leaseMs } = this.#options
    // This process was away itself: renewals wait in its sockets. To take a lease for longer than it is costs time, never safety.
    if (nowMs - this.#tickMs > leaseMs / 4) {
      for (const lease of this.#leases.values()) if (lease.endMs > this.#tickMs) lease.endMs = Math.max(lease.endMs, nowMs + leaseMs / 2)
    }
    const over: Array<{ node: NodeNumber; incarnation: Incarnation }> = []
    for (const row of this.view.rows()) {
      if (row.view !== View.DOWN && this.#lease(row.node).endMs <= nowMs) over.push({ node: row.node, incarnation: row.incarnation })
    }
    if (over.length > 0) this.#evidence(over, 'its lease is over')
    for (const lease of this.#leases.values()) {
      if (lease.holdUntilMs > this.#tickMs && lease.holdUntilMs <= nowMs) {
        this.#lookAtAll = true
        this.wake()
      }
    }
    this.#tickMs = nowMs
    this.#members.reconcile()
    this.#housekeeping.ask()
    this.#lookForUnserved(nowMs)
    this.#lookForApart()
    // between changes only the passing of time can call for something
    if (this.#state.revision !== this.#seenRevision || nowMs - this.#lookedMs >= LOOK_EVERY_MS) {
      this.#seenRevision = this.#state.revision
      this.#lookedMs = nowMs
      this.wake()
    }
  }

  /** Changes that nobody asks for; again at a later look when one fails. */
  async #keepHouse(): Promise<void> {
    try {
      if (this.#isLevelToRaise()) await this.propose('feature.raise', { level: this.#state.featureMax })
      else if (this.#areLeasesToSettle(this.#clock.nowMs())) await this.propose('leases.settle', {})
      else {
        const nodes = this.#awayToNote()
        if (nodes.length > 0) await this.propose('nodes.away', { nodes })
      }
    } catch (error) {
      if (!this.#stopped) this.#options.log.log('DEBUG', 'a change of the cluster failed, trying again', { error: messageOf(error) })
    }
  }

  /** All nodes that have ever run here know more than the cluster uses. */
  #isLevelToRaise(): boolean {
    const { cluster, featureLevel, featureMax } = this.#state
    if (cluster === undefined || featureLevel >= featureMax) return false
    for (const node of this.#state.nodes.values()) if (node.featureMax < featureMax) return false
    return true
  }

  /**
   * `failover.lease` was lowered everywhere, and what earlier leaders have granted is over: this one has led for longer than that. Its own grants count as
   * those of a registered process only once it is registered with its own length.
   */
  #areLeasesToSettle(nowMs: number): boolean {
    const { featureLevel, leaseMsMax, longestRegisteredLeaseMs: longestMs } = this.#state
    if (featureLevel < 2 || longestMs === undefined || longestMs >= leaseMsMax) return false
    const own = this.#state.nodes.get(this.#raft.id)
    return (own?.leaseMs ?? 0) >= this.#options.leaseMs && nowMs - this.#electedMs > leaseMsMax * (1 + CLOCK_DRIFT_MAX)
  }

  /** What has to be noted, so that another leader knows well enough for how long who has been away. */
  #awayToNote(): NodeAway[] {
    if (this.#state.featureLevel < 3) return []
    const nowMs = this.#clock.nowMs()
    const next = (ms: number, noted: number) => {
      const longMs = ms < NOTE_AWAY_MS ? 0 : Math.round(ms)
      return longMs < noted || longMs - noted >= Math.max(NOTE_AWAY_MS, noted / 8) ? longMs : noted
    }
    const notes: NodeAway[] = []
    for (const { node, view } of this.view.rows()) {
      const noted = this.#state.away.get(node) ?? { downMs: 0, silentMs: 0 }
      const { downSinceMs } = this.#lease(node)
      // nothing is known of a node that is MAYBE: what was noted of it stays
      const downMs = view === View.UP ? next(0, noted.downMs) : downSinceMs === undefined ? noted.downMs : next(nowMs - downSinceMs, noted.downMs)
      const silentMs = next(this.#members.silentMs(node), noted.silentMs)
      if (downMs !== noted.downMs || silentMs !== noted.silentMs) notes.push([node, downMs, silentMs])
    }
    return notes
  }

  #lookForApart(): void {
    const text = this.apart()
      .map(([a, b]) => `${this.#state.nodes.get(a)?.id} and ${this.#state.nodes.get(b)?.id}`)
      .join(', ')
    if (text === this.#apartText) return
    if (text === '') this.#options.log.log('INFO', 'all nodes reach each other again')
    else this.#options.log.log('WARN', 'nodes do not reach the data ports of each other: they work around it', { nodes: text })
    this.#apartText = text
    this.#lookAtAll = true
    this.wake()
  }

  #lookForUnserved(nowMs: number): void {
    const unserved = new Set<Chain>()
    for (const chain of this.#state.distinctChains) if (!this.#isServed(chain)) unserved.add(chain)
    if (unserved.size === 0) {
      this.#unserved.clear()
      this.#givenUp.clear()
      this.#lastIds.clear()
      return
    }
    this.#state.chains.forEach((chain, at) => {
      const slot = at as SlotIndex
      if (unserved.has(chain)) {
        if (!this.#unserved.has(slot)) this.#unserved.set(slot, nowMs)
      } else if (this.#unserved.delete(slot)) {
        this.#givenUp.delete(slot)
        // what is said of the next loss stands for itself
        this.#lastIds.delete(slot)
      }
    })
  }

  #isServed({ entries }: Chain): boolean {
    return entries.some((entry) => entry.state === ReplicaState.SERVING && this.view.view(entry.node) !== View.DOWN)
  }

  // ---- the one change of the chains under way -----------------------------------------------------------------------------

  /** Something may call for a change of the chains. What comes in the same turn goes into the same command. */
  wake(): void {
    if (this.ready) this.#changing.ask()
  }

  async #change(): Promise<void> {
    if (!this.ready) return
    try {
      await this.#changeOnce()
    } catch (error) {
      if (this.#stopped) return
      this.#options.log.log('WARN', 'a change of the chains failed, trying again', { error: messageOf(error) })
      await this.#sleep(RETRY_MS)
      this.#lookAtAll = true
      this.wake()
    }
  }

  async #changeOnce(): Promise<void> {
    for (const [disk, failure] of this.#failures) {
      this.#failures.delete(disk)
      await this.#proposeBlocking('disk.failed', failure, new Set())
    }
    const create = this.#rebalancer.firstChains()
    if (create !== undefined) {
      await this.#proposeBlocking('chains.create', create, new Set())
      this.#lookAtAll = true
      this.wake()
      return
    }
    const known = this.#event()
    // whoever goes, goes in favour of one that is UP; and nothing begins on a node that is not
    if (!known.views.some((row) => row.view === View.UP)) return
    const recovery = this.#recovery(known)
    if (recovery !== undefined) {
      const unfinished = this.#unfinishedOf(chainChanges(this.#state, recovery)).map((node) => this.#state.nodes.get(node)?.id)
      const { changed } = await this.#proposeBlocking('chains.step', recovery, downNodes(recovery))
      this.#options.log.log('WARN', 'parts of the data are served again without all that served them last', {
        slots: changed,
        acceptDataLoss: recovery.acceptDataLoss === true,
        ...(unfinished.length > 0 ? { fromUnfinishedCopiesOn: unfinished } : {}),
      })
      this.wake()
      return
    }
    if (!known.factsOnly) this.#lookAtAll = false
    let { facts } = known
    if (facts.length > FACTS_MAX) {
      // only those that count now; the others come with the next command
      const changing = new Set(chainChanges(this.#state, { ...known, factsOnly: true }).map(({ slot }) => slot))
      facts = facts.filter(({ slot }) => changing.has(slot)).slice(0, FACTS_MAX)
    }
    const gone = this.#newlyGone(known.views)
    const args = { ...known, facts, ...(gone.length > 0 ? { gone } : {}) }
    if (gone.length === 0 && !changesAny(this.#state, args)) return
    const down = downNodes(args)
    const { changed } = await this.#proposeBlocking('chains.step', args, down)
    for (const node of gone) this.#told.add(node)
    for (const slot of this.#upToDate.keys()) this.#forgetDone(slot)
    const level = args.factsOnly ? 'DEBUG' : 'INFO'
    this.#options.log.log(level, 'chains changed', {
      slots: changed,
      without: [...down].map((node) => this.#state.nodes.get(node)?.id),
      revision: this.#state.revision,
    })
    // a step may make the next one possible
    this.wake()
  }

  /** The slots that need not wait for all of their last servers any longer, if that changes any: a command of their own, so that it says nothing of others. */
  #recovery(known: ChainsStepArgs): ChainsStepArgs | undefined {
    if (this.#unserved.size === 0) return undefined
    const waitMs = numberSetting(this.#state, this.#options.own, 'failover.recover_wait', 0)
    const nowMs = this.#clock.nowMs()
    const factsOf = new Map(known.facts.map((facts) => [facts.slot, facts]))
    for (const acceptDataLoss of [true, false]) {
      const facts: SlotFacts[] = []
      for (const [slot, sinceMs] of this.#unserved) {
        const isMeant = acceptDataLoss ? this.#isLossAccepted(slot) : this.#givenUp.has(slot) || (waitMs > 0 && nowMs - sinceMs >= waitMs)
        if (!isMeant) continue
        const known = factsOf.get(slot) ?? { slot }
        const anew = acceptDataLoss && !this.#mayRecover(slot) ? this.#rebalancer.substitute(slot) : undefined
        facts.push(anew === undefined ? known : { ...known, add: [anew.disk, anew.node] })
      }
      if (facts.length === 0) continue
      const args: ChainsStepArgs = { ...known, facts, factsOnly: true, recoverWithoutAll: true, ...(acceptDataLoss ? { acceptDataLoss } : {}) }
      const changing = new Set(chainChanges(this.#state, args).map(({ slot }) => slot))
      if (changing.size > 0) return { ...args, facts: facts.filter(({ slot }) => changing.has(slot)).slice(0, FACTS_MAX) }
    }
    return undefined
  }

  /** Somebody who holds a copy, however old, is or may be there. */
  #mayRecover(slot: SlotIndex): boolean {
    return this.#state.chains[slot]!.entries.some(({ node, disk }) => this.view.view(node) !== View.DOWN && this.#state.diskUse(disk) !== DiskUse.FAILED)
  }

  /** Processes found DOWN of which the others have not been told yet; one that has been UP since counts anew. */
  #newlyGone(views: readonly ViewRow[]): NodeNumber[] {
    for (const { node, view } of views) if (view !== View.DOWN) this.#told.delete(node)
    return views.filter(({ node, view, incarnation }) => view === View.DOWN && incarnation !== 0 && !this.#told.has(node)).map(({ node }) => node)
  }

  #forgetDone(slot: SlotIndex): void {
    const report = this.#upToDate.get(slot)
    const chain = this.#state.chains[slot]
    if (report === undefined || chain === undefined) return
    const entry = entryOf(chain, report[0])
    if (entry?.state !== ReplicaState.SYNCING || entry.since !== report[1]) this.#upToDate.delete(slot)
  }

  /** What is known now. */
  #event(): ChainsStepArgs {
    const nowMs = this.#clock.nowMs()
    this.#lookForUnserved(nowMs)
    const facts = new Map<SlotIndex, SlotFacts>()
    const add = (slot: SlotIndex, fact: Omit<SlotFacts, 'slot'>) => {
      facts.set(slot, { slot, ...facts.get(slot), ...fact })
    }
    let unavailable = 0
    this.#state.chains.forEach((chain, at) => {
      const slot = at as SlotIndex
      let serving = false
      for (const entry of chain.entries) {
        if (entry.state === ReplicaState.SERVING) serving = true
        else if (entry.state === ReplicaState.DRAINING) {
          const lease = this.#leases.get(entry.node)
          const confirmed = lease !== undefined && lease.incarnation === entry.incarnation && lease.confirmed >= this.#state.slotRevision(slot)
          // without a confirmation the table may still say that its process is gone
          const leave = this.#rebalancer.leaves(slot, entry.disk)
          add(slot, confirmed ? { drained: [entry.disk, chain.version, entry.incarnation], leave } : { leave })
        }
      }
      const givenUp = givenUpBeside(chain)
      if (givenUp !== undefined) add(slot, { remove: givenUp.disk })
      if (!serving) {
        unavailable++
        const ids = this.#lastIds.get(slot)
        if (ids !== undefined) add(slot, { lastIds: [...ids.values()].sort((a, b) => a[0] - b[0]) })
      }
    })
    for (const [slot, upToDate] of this.#upToDate) {
      this.#forgetDone(slot)
      if (this.#upToDate.has(slot) && this.view.view(this.#nodeOf(upToDate[0])) === View.UP) add(slot, { upToDate })
    }
    const apart = this.apart()
    if (this.#isCalm(nowMs)) {
      for (const move of this.#rebalancer.moves(nowMs - this.#doubtedMs, { repairsOnly: unavailable > 0 || apart.length > 0 })) add(move.slot, move.fact)
    }
    return {
      views: this.view.rows(),
      heldDown: [...this.#leases]
        .filter(([, lease]) => lease.holdUntilMs > nowMs)
        .map(([node]) => node)
        .sort((a, b) => a - b),
      facts: [...facts.values()],
      factsOnly: !this.#lookAtAll,
      ...(apart.length > 0 ? { apart } : {}),
    }
  }

  /** Nothing is moved in the middle of a loss, or before a new leader has heard everybody. */
  #isCalm(nowMs: number): boolean {
    return nowMs - this.#doubtedMs >= CALM_AFTER_MS && this.view.rows().every((row) => row.view !== View.MAYBE)
  }

  #nodeOf(disk: DiskNumber): NodeNumber {
    return this.#state.disks.get(disk)?.node ?? (0 as NodeNumber)
  }

  /** Proposes; returns when it is applied. The `blocked` nodes are granted nothing until its fate is known. */
  async #proposeBlocking<N extends OperationName>(op: N, args: ArgsOf<N>, blocked: ReadonlySet<NodeNumber>): Promise<ResultOf<N>> {
    this.#blocked = blocked
    try {
      return await this.propose(op, args)
    } catch (error) {
      if (error instanceof XsanError && error.status === 'CONSENSUS_FAILED') await this.#fateKnown()
      throw error
    } finally {
      this.#blocked = new Set()
    }
  }

  /** Everything in the log now is applied, or this term is over. */
  async #fateKnown(): Promise<void> {
    const { lastIndex, term } = this.#raft.status()
    while (!this.#stopped && this.#raft.term === term && this.#raft.applied < lastIndex) await this.#sleep(RETRY_MS)
  }

  #sleep(delayMs: number): Promise<void> {
    return new Promise((resolve) => {
      this.#clock.setTimer(delayMs, resolve)
    })
  }
}

function downNodes({ views }: ChainsStepArgs): Set<NodeNumber> {
  return new Set(views.filter((row) => row.view === View.DOWN).map((row) => row.node))
}

function notLeader(): XsanError {
  return new XsanError('NOT_LEADER', 'this node does not lead the cluster', 'Try again: the leader is being found.')
}
