/**
 * The node's side of the cluster: registers the process, keeps its lease, gives table and lease to the data plane, carries what the data plane
 * has to say to whoever leads.
 *
 *   register -> data plane opened -> whole table -> (data plane ready) -> renew every L/4 -> lease
 *
 * Invariants:
 * - The table comes from this node's own copy of the replicated state, in order of revision; a lease is passed on only after a table of at
 *   least its revision (protocol 28), and counts from the sending of the request.
 * - No renewal while the data plane is not ready or a reactor does not turn.
 * - Reports are facts bound to incarnations and versions; they are repeated until they are seen in the replicated state or pointless.
 */
import { messageOf, XsanError } from '../base/errors.ts'
import type { ChainVersion, DiskNumber, Incarnation, NodeNumber, SlotIndex } from '../base/ids.ts'
import type { Clock, Log, Message, TimerId } from '../env/control.ts'
import { ReplicaState } from '../placement/chain.ts'
import type { ControlPort, DiskStats, ReactorQuery, ReactorToControl, ResyncStats } from '../placement/messages.ts'
import type { Raft } from '../raft/driver.ts'
import type { LeaderClient } from './leader-client.ts'
import { OneAtATime } from './one-at-a-time.ts'
import { booleanSetting, effectiveSettings, type OwnSettings } from './settings.ts'
import type { ClusterState } from './state.ts'
import { tableSince } from './table.ts'
import type { ToldLosses } from './told-losses.ts'

/** Renewals under way at one time (a trigger does not wait for an answer that may never come). */
const RENEWALS_MAX = 4
const REPEAT_MS = 500
const FETCH_TIMEOUT_MS = 1000
const QUERY_TIMEOUT_MS = 2000
/** Statistics go to the leader when they have changed, and so often in any case; never oftener than the other. */
const STATS_AGAIN_MS = 5000
const STATS_EVERY_MS = 500
/** Of all counters the leader wants only these; people ask the node itself for the others. */
const LEADER_COUNTERS = 'nbd_connections'
const FIRST_RANK = 0.2
const RANKS_APART = 2

export interface AgentStats {
  readonly counters: Readonly<Record<string, number>>
  readonly disks: readonly DiskStats[]
  readonly resync: ResyncStats
}

export interface NodeAgentOptions {
  readonly node: NodeNumber
  readonly incarnation: Incarnation
  readonly state: ClusterState
  readonly toldLosses: ToldLosses
  readonly raft: Raft
  readonly leaderClient: LeaderClient
  readonly clock: Clock
  readonly log: Log
  readonly own: OwnSettings
  readonly port: ControlPort
  readonly leaseMs: number
  readonly reactorTurning: () => boolean
  /** The data plane is ready; its ports. */
  readonly onReady: (ports: { readonly dataPort: number; readonly nbdPort: number }) => void
  readonly onFatal: (error: unknown) => void
}

export const REMOVED = 'this node was removed from the cluster'
export function removedError(): XsanError {
  return new XsanError('PERMISSION_DENIED', REMOVED, 'Empty its data_dir to join again.')
}

export class NodeAgent {
  readonly #options: NodeAgentOptions
  readonly #clock: Clock
  readonly #state: ClusterState
  /** Revision of the last table sent to the data plane, and the last one it has confirmed. */
  #sentRevision = 0
  #appliedRevision = 0
  #settingsRevision = -1
  #ready = false
  #stopped = false
  #leaseUntilMs = 0
  /** A grant whose table is not here yet. */
  #grant: { untilMs: number; revision: number } | undefined
  #renewals = 0
  /** The newest that a leader has told (see RenewRequest of peer.proto). */
  #doubt = 0
  #renewAgain = false
  #renewTimer: TimerId | undefined
  #repeatTimer: TimerId | undefined
  #refusalLogged = ''
  /** Registered incarnations as of the last look: an older one's connections are closed. */
  readonly #incarnations = new Map<NodeNumber, Incarnation>()
  /** Processes proven dead: told once to each leader, while it is news. `followed`: a later process of that node has sent something of Raft since. */
  readonly #refused = new Map<NodeNumber, { incarnation: Incarnation; atMs: number; told: boolean; followed: boolean }>()
  /** Nodes without a session of the data plane. */
  #unreachable: readonly NodeNumber[] = []
  readonly #upToDate = new Map<SlotIndex, { since: ChainVersion; incarnation: Incarnation }>()
  /** By disk and slot: chain version, id high, id low, LastIdFlag. */
  readonly #lastIds = new Map<DiskNumber, Map<SlotIndex, readonly [ChainVersion, number, number, number]>>()
  readonly #diskFailures = new Map<DiskNumber, string>()
  readonly #catchingUp = new OneAtATime(() => this.#catchUp())
  readonly #reporting = new OneAtATime(() => this.#sendReports())
  #stats: AgentStats | undefined
  #statsSentMs = 0
  #statsSent = ''
  #queryId = 0
  readonly #queries = new Map<number, (answer: unknown) => void>()
  #resolveStopped: (() => void) | undefined
  #addresses: { data: string; nbd: string } | undefined

  constructor(options: NodeAgentOptions) {
    this.#options = options
    this.#clock = options.clock
    this.#state = options.state
  }

  start(): void {
    for (const node of this.#state.nodes.values()) this.#incarnations.set(node.node, node.incarnation)
    // the data plane knows nobody before its first table
    this.#state.takeDropped()
    this.#options.port.onMessage((message) => {
      this.#onMessage(message)
    })
    this.#publish()
    this.#repeat()
  }

  get leaseMs(): number {
    return Math.max(0, this.#leaseUntilMs - this.#clock.nowMs())
  }

  get ready(): boolean {
    return this.#ready
  }

  get tableApplied(): boolean {
    return this.#ready && this.#appliedRevision > 0
  }

  get stats(): AgentStats | undefined {
    return this.#stats
  }

  /** Says to the leader that the data plane listens elsewhere than was registered. */
  announce(addresses: { data: string; nbd: string }): void {
    this.#addresses = addresses
    this.#report()
  }

  /** Asks the data plane; rejects with NETWORK_TIMEOUT. */
  query(query: ReactorQuery): Promise<unknown> {
    const queryId = ++this.#queryId
    return new Promise((resolve, reject) => {
      const timer = this.#clock.setTimer(QUERY_TIMEOUT_MS, () => {
        this.#queries.delete(queryId)
        reject(new XsanError('NETWORK_TIMEOUT', 'the data plane did not answer', 'See the log of that node.'))
      })
      this.#queries.set(queryId, (answer) => {
        this.#clock.clearTimer(timer)
        this.#queries.delete(queryId)
        resolve(answer)
      })
      this.#options.port.send({ type: 'query', queryId, query })
    })
  }

  /** Drains the data plane; resolves when it says so, or with false. Renewals go on until then. */
  stopDataPlane(timeoutMs: number): Promise<boolean> {
    return new Promise((resolve) => {
      const timer = this.#clock.setTimer(timeoutMs, () => resolve(false))
      this.#resolveStopped = () => {
        this.#clock.clearTimer(timer)
        resolve(true)
      }
      this.#options.port.send({ type: 'stop' })
    })
  }

  /** After {@link stopDataPlane}: lets the cluster go on without this process at once. A courtesy; without it the closed ports tell. */
  async announceStopped(timeoutMs: number): Promise<void> {
    this.stop()
    await this.#options.leaderClient.call('Report', { stopped: true }, { timeoutMs })
  }

  stop(): void {
    this.#stopped = true
    this.#catchingUp.stop()
    this.#reporting.stop()
    for (const timer of [this.#renewTimer, this.#repeatTimer]) if (timer !== undefined) this.#clock.clearTimer(timer)
  }

  // ---- events of the control plane ----------------------------------------------------------------------------------------

  /** The replicated state has changed. */
  onApplied(): void {
    if (!this.#stopped) this.#publish()
  }

  onLeaderChange(): void {
    const { raft, node } = this.#options
    const { leader } = raft
    if (this.#stopped || leader === 0) return
    if (leader !== node && this.#isProvenDead(leader)) {
      // a late message of it: there is nobody to renew with, nor to report to
      this.#leaveDeadLeader(leader)
      return
    }
    // a new leader knows nothing of what its predecessor was told
    for (const proof of this.#refused.values()) proof.told = false
    this.#statsSent = ''
    this.renewNow()
    this.#report()
  }

  /** A message of Raft is about to be taken from that process; 0: it is not registered yet. It may lead before it is: the proof of its predecessor's death says nothing of it. */
  heardRaft(node: NodeNumber, incarnation: Incarnation): void {
    const proof = this.#refused.get(node)
    if (proof !== undefined && (incarnation === 0 || incarnation > proof.incarnation)) proof.followed = true
  }

  /** The leader wants to hear from us, or we have news for it. `doubt`: what it wants to hear named. */
  renewNow(doubt = 0): void {
    this.#doubt = Math.max(this.#doubt, doubt)
    if (!this.#ready || this.#stopped) return
    this.#renewAgain = true
    this.#startRenewal()
  }

  // ---- table and lease to the data plane ----------------------------------------------------------------------------------

  #publish(): void {
    const { port } = this.#options
    if (this.#state.settingsRevision !== this.#settingsRevision) {
      this.#settingsRevision = this.#state.settingsRevision
      port.send({ type: 'settings', settings: effectiveSettings(this.#state, this.#options.own) })
    }
    if (this.#state.revision > this.#sentRevision) {
      const table = tableSince(this.#state, this.#sentRevision, this.#sentRevision === 0 ? this.#options.toldLosses : undefined)
      if (table !== undefined) {
        this.#sentRevision = table.revision
        port.send(table)
      }
      this.#dropFinished()
    }
    for (const { node, incarnation } of this.#state.nodes.values()) {
      const known = this.#incarnations.get(node) ?? (0 as Incarnation)
      if (incarnation <= known) continue
      this.#incarnations.set(node, incarnation)
      if (known > 0 && node !== this.#options.node) port.send({ type: 'peerDown', node, incarnation: known })
    }
    for (const { node, incarnation } of this.#state.takeDropped()) if (node !== this.#options.node) port.send({ type: 'peerDown', node, incarnation })
    const own = this.#state.nodes.get(this.#options.node)
    if (own === undefined || own.incarnation > this.#options.incarnation) {
      const newer = `a newer process of this node (${own?.incarnation}) has registered`
      this.#options.onFatal(own === undefined ? removedError() : new XsanError('PERMISSION_DENIED', newer, 'Only one xsand may run on a data_dir.'))
      return
    }
    this.#usePendingGrant()
  }

  #usePendingGrant(): void {
    const grant = this.#grant
    if (grant === undefined || this.#sentRevision < grant.revision) return
    this.#grant = undefined
    if (grant.untilMs <= this.#leaseUntilMs) return
    this.#leaseUntilMs = grant.untilMs
    this.#options.port.send({ type: 'lease', untilMs: grant.untilMs, revision: grant.revision as never })
  }

  // ---- renewals -----------------------------------------------------------------------------------------------------------

  #armRenewal(delayMs = this.#options.leaseMs / 4): void {
    if (this.#renewTimer !== undefined) this.#clock.clearTimer(this.#renewTimer)
    this.#renewTimer = this.#clock.setTimer(delayMs, () => {
      this.#renewTimer = undefined
      this.renewNow()
      this.#armRenewal()
    })
  }

  #startRenewal(): void {
    if (this.#renewals >= RENEWALS_MAX) return
    this.#renewAgain = false
    this.#renewals++
    void this.#renew().finally(() => {
      this.#renewals--
      if (this.#renewAgain && !this.#stopped) this.#startRenewal()
    })
  }

  async #renew(): Promise<void> {
    const { leaderClient, leaseMs, log, reactorTurning } = this.#options
    if (!reactorTurning()) {
      this.#logRefusal('a reactor does not turn: the lease is not renewed')
      return
    }
    const sentMs = this.#clock.nowMs()
    try {
      const answer = await leaderClient.call(
        'Renew',
        { tableRevision: this.#appliedRevision, doubt: this.#doubt, unreachable: this.#unreachable },
        { timeoutMs: leaseMs / 2, once: true },
      )
      if (this.#stopped) return
      // there was news that this renewal had not heard of: it counts for the lease, not as a sign of life
      const doubt = Number(answer['doubt'] ?? 0)
      const hasNews = doubt > this.#doubt
      if (hasNews) this.renewNow(doubt)
      if (answer['granted'] !== true) {
        // the one that has heard of it is on its way: so it goes at every start
        if (!hasNews) this.#logRefusal(`the lease is not renewed: ${String(answer['reason'])}`)
        this.#publish()
        return
      }
      if (this.#refusalLogged !== '') log.log('INFO', 'the lease is renewed again')
      this.#refusalLogged = ''
      // all nodes at the same moment, as the leader wishes; without its wish, or until its answer, every L/4
      const renewInMs = Number(answer['renewInMs'])
      if (this.#renewTimer !== undefined && renewInMs > 0 && renewInMs <= (leaseMs * 5) / 16 + 1) this.#armRenewal(renewInMs)
      const untilMs = sentMs + Number(answer['leaseMs'])
      const revision = Number(answer['tableRevision'])
      if (this.#grant === undefined || untilMs > this.#grant.untilMs) this.#grant = { untilMs, revision }
      this.#publish()
    } catch (error) {
      if (this.#stopped) return
      if (error instanceof XsanError && error.status === 'NODE_NOT_FOUND') this.#options.onFatal(removedError())
      else if (error instanceof XsanError && error.status === 'PERMISSION_DENIED') this.#options.onFatal(error)
      else this.#logRefusal(`the lease could not be renewed: ${messageOf(error)}`)
    }
  }

  #logRefusal(text: string): void {
    if (this.#refusalLogged === text) return
    this.#refusalLogged = text
    // a change of leader costs a try or two; it matters when the lease runs out
    const { leaseMs, log } = this.#options
    log.log(this.leaseMs > leaseMs / 4 ? 'DEBUG' : 'WARN', text, { leaseMs: Math.round(this.leaseMs) })
  }

  // ---- what the data plane says -------------------------------------------------------------------------------------------

  #onMessage(message: ReactorToControl): void {
    const { log, onFatal } = this.#options
    switch (message.type) {
      case 'ready':
        this.#ready = true
        this.#options.onReady(message)
        this.renewNow()
        this.#armRenewal()
        return
      case 'tableApplied':
        if (message.revision <= this.#appliedRevision) return
        this.#appliedRevision = message.revision
        // the leader waits for this one
        if (this.#drainingHere()) this.renewNow()
        return
      case 'lossesTold':
        this.#options.toldLosses.note(message.volume, message.losses).catch(onFatal)
        return
      case 'needTable':
        this.#fetchTable(message.slot, message.version)
        return
      case 'upToDate':
        for (let i = 0; i + 2 < message.reports.length; i += 3) {
          const slot = message.reports[i] as SlotIndex
          this.#upToDate.set(slot, { since: message.reports[i + 1] as ChainVersion, incarnation: (message.reports[i + 2]! >>> 0) as Incarnation })
        }
        this.#report()
        return
      case 'lastIds': {
        const ids = this.#lastIds.get(message.disk) ?? new Map<SlotIndex, readonly [ChainVersion, number, number, number]>()
        for (let i = 0; i + 4 < message.ids.length; i += 5) {
          ids.set(message.ids[i] as SlotIndex, [message.ids[i + 1] as ChainVersion, message.ids[i + 2]! >>> 0, message.ids[i + 3]! >>> 0, message.ids[i + 4]!])
        }
        this.#lastIds.set(message.disk, ids)
        this.#report()
        return
      }
      case 'peerRefused':
        this.#peerRefused(message.node, message.incarnation)
        return
      case 'unreachable':
        this.#unreachable = message.nodes
        this.renewNow()
        return
      case 'diskFailed':
        log.log('ERROR', 'a disk failed', { disk: message.disk, reason: message.reason })
        this.#diskFailures.set(message.disk, message.reason)
        this.#report()
        return
      case 'stats':
        this.#stats = { counters: message.counters, disks: message.disks, resync: message.resync }
        if (this.#statsToSend() !== undefined) this.#report()
        return
      case 'answer':
        this.#queries.get(message.queryId)?.(message.answer)
        return
      case 'log':
        log.log(message.level, message.message, message.fields)
        return
      case 'stopped':
        this.#resolveStopped?.()
        return
      case 'failed':
        onFatal(new XsanError('INTERNAL', message.message, message.nextStep))
        return
    }
  }

  #drainingHere(): boolean {
    const { node } = this.#options
    for (const chain of this.#state.distinctChains) {
      if (chain.entries.some((entry) => entry.node === node && entry.state === ReplicaState.DRAINING)) return true
    }
    return false
  }

  /** Proof of death (design 4): to the leader, or, when it is the leader, to Raft. */
  #peerRefused(node: NodeNumber, incarnation: Incarnation): void {
    if (this.#state.incarnation(node) !== incarnation || !booleanSetting(this.#state, this.#options.own, 'failover.trust_refused', true)) return
    const { raft, log } = this.#options
    this.#refused.set(node, { incarnation, atMs: this.#clock.nowMs(), told: false, followed: false })
    if (raft.leader === node) {
      log.log('WARN', 'the process of the leader is dead', { node: this.#state.nodes.get(node)?.id, incarnation })
      this.#leaveDeadLeader(node)
    }
    this.#report()
  }

  #leaveDeadLeader(leader: NodeNumber): void {
    const { raft, node } = this.#options
    const survivors = raft.members.voters.filter((voter) => !this.#isProvenDead(voter)).sort((a, b) => a - b)
    // in units of 50 ms: even the first waits until the others have their proof (before, they would refuse the vote), and it gets time to store its votes
    raft.leaderProvenDead(leader, FIRST_RANK + RANKS_APART * Math.max(0, survivors.indexOf(node)))
  }

  /** As a member of the Raft group. */
  #isProvenDead(node: NodeNumber): boolean {
    const proof = this.#refused.get(node)
    return proof !== undefined && !proof.followed && this.#isProof(node, proof)
  }

  /** Two leases later that process serves nothing anyway; and a proof that was wrong must come to an end. */
  #isProof(of: NodeNumber, { incarnation, atMs }: { readonly incarnation: Incarnation; readonly atMs: number }): boolean {
    return this.#state.incarnation(of) === incarnation && this.#clock.nowMs() - atMs <= 2 * this.#options.leaseMs
  }

  #fetchTable(slot: SlotIndex, version: ChainVersion): void {
    if ((this.#state.chains[slot]?.version ?? 0) >= version && this.#sentRevision >= this.#state.revision) return
    this.#catchingUp.ask()
  }

  /** The replicated state is up to date when it resolves, for all slots that were asked for before; `onApplied` has published it then. */
  async #catchUp(): Promise<void> {
    await this.#options.raft.readIndex({ timeoutMs: FETCH_TIMEOUT_MS }).catch(() => undefined)
  }

  // ---- reports ------------------------------------------------------------------------------------------------------------

  /** Drops what the replicated state shows to be done or pointless. */
  #dropFinished(): void {
    const { node } = this.#options
    for (const [slot, { since }] of this.#upToDate) {
      const entry = this.#state.chains[slot]?.entries.find((of) => of.node === node && of.since === since)
      if (entry?.state !== ReplicaState.SYNCING) this.#upToDate.delete(slot)
    }
    for (const [disk, ids] of this.#lastIds) {
      for (const slot of ids.keys()) {
        if (this.#state.chains[slot]?.entries.some((entry) => entry.state === ReplicaState.SERVING) !== false) ids.delete(slot)
      }
      if (ids.size === 0) this.#lastIds.delete(disk)
    }
    for (const [peer, proof] of this.#refused) if (!this.#isProof(peer, proof)) this.#refused.delete(peer)
    for (const disk of this.#diskFailures.keys()) if (this.#state.disks.get(disk)?.state !== 'ok') this.#diskFailures.delete(disk)
  }

  #repeat(): void {
    this.#repeatTimer = this.#clock.setTimer(REPEAT_MS, () => {
      if (this.#stopped) return
      const untold = [...this.#refused.values()].some((proof) => !proof.told)
      if (untold || this.#upToDate.size + this.#lastIds.size + this.#diskFailures.size > 0 || this.#addresses !== undefined) this.#report()
      this.#repeat()
    })
  }

  #report(): void {
    if (!this.#stopped) this.#reporting.ask()
  }

  /** Everything there is to say, in one call as a rule. */
  async #sendReports(): Promise<void> {
    const { leaderClient, log, raft } = this.#options
    this.#dropFinished()
    try {
      const { leader } = raft
      const addresses = this.#addresses
      const told = [...this.#refused.values()].filter((proof) => !proof.told)
      for (const request of this.#requests()) await leaderClient.call('Report', request, { timeoutMs: REPEAT_MS, once: true })
      // not those that came meanwhile
      if (this.#addresses === addresses) this.#addresses = undefined
      // whoever has proof of a death is wanted by the leader as a witness that it lives itself
      if (told.length > 0) this.renewNow()
      // a leader that came meanwhile has not heard it
      if (raft.leader === leader) for (const proof of told) proof.told = true
    } catch (error) {
      log.log('DEBUG', 'a report did not reach the leader', { error: messageOf(error) })
    }
  }

  #statsToSend(): string | undefined {
    const sinceMs = this.#clock.nowMs() - this.#statsSentMs
    if (this.#stats === undefined || sinceMs < STATS_EVERY_MS) return undefined
    const counters = Object.fromEntries(Object.entries(this.#stats.counters).filter(([name]) => name.startsWith(LEADER_COUNTERS)))
    const stats = JSON.stringify({ ...this.#stats, counters })
    return stats !== this.#statsSent || sinceMs >= STATS_AGAIN_MS ? stats : undefined
  }

  #requests(): Message[] {
    const common: Record<string, unknown> = { appliedRevision: this.#appliedRevision }
    const refused = [...this.#refused].filter(([, { told }]) => !told).map(([node, { incarnation }]) => ({ node, incarnation }))
    if (refused.length > 0) common['refused'] = refused
    if (this.#upToDate.size > 0) common['upToDate'] = [...this.#upToDate].flatMap(([slot, { since, incarnation }]) => [slot, since, incarnation])
    if (this.#addresses !== undefined) Object.assign(common, this.#addresses)
    const nowMs = this.#clock.nowMs()
    const stats = this.#statsToSend()
    if (stats !== undefined) {
      this.#statsSentMs = nowMs
      this.#statsSent = stats
      common['statsJson'] = stats
    }
    const requests: Message[] = [common]
    for (const [disk, ids] of this.#lastIds) {
      if (ids.size > 0) requests.push({ disk, lastIds: [...ids].flatMap(([slot, about]) => [slot, ...about]) })
    }
    for (const [disk, reason] of this.#diskFailures) requests.push({ disk, diskFailedReason: reason || 'failed' })
    return requests
  }
}
