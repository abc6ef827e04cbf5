/**
 * The control plane of a node that belongs to a cluster: opens Raft, registers the process, starts the data plane, and from then on keeps all
 * parts in step. One object per process life.
 *
 *   Raft events -> Coordinator (while this node leads)      replicated state -> NodeAgent -> data plane
 *   calls of people -> the leader (Peer/Forward) -> services    calls of nodes -> Peer
 */
import { assert } from '../base/assert.ts'
import { crc32c } from '../base/crc32c.ts'
import { messageOf, XsanError } from '../base/errors.ts'
import type { Incarnation, NodeNumber, SlotIndex } from '../base/ids.ts'
import { BLOCK_BYTES } from '../base/units.ts'
import type { CallContext, Message, MethodHandler } from '../env/control.ts'
import { packChains } from '../placement/chain.ts'
import { View } from '../placement/view.ts'
import { type LeaderChange, type Raft, RaftNode } from '../raft/driver.ts'
import { Authenticator, fromHex } from './auth.ts'
import { Heartbeats } from './heartbeat.ts'
import { countStart, type Identity } from './identity.ts'
import { Coordinator } from './leader.ts'
import { LeaderClient } from './leader-client.ts'
import { LoadMeter } from './load.ts'
import { ControlStateMachine } from './machine.ts'
import { type AgentStats, NodeAgent, REMOVED, removedError } from './node-agent.ts'
import { chainChanges } from './ops/chains-step.ts'
import type { ControlOptions, Registration } from './options.ts'
import { RpcRaftTransport } from './raft-transport.ts'
import { clusterService } from './services/cluster.ts'
import { configItems, configService } from './services/config.ts'
import { debugService } from './services/debug.ts'
import { diskService } from './services/disk.ts'
import { exportService } from './services/export.ts'
import { leaderlessStatus, standingOf } from './services/leaderless.ts'
import { nodeService } from './services/node.ts'
import { LEADER_PEER_METHODS, PEER_METHODS, type PeerSender } from './services/peer.ts'
import type { AdminService, NodeQuery, ServiceContext } from './services/service.ts'
import { volumeService } from './services/volume.ts'
import { effectiveSettings, type OwnSettings, ownSettings } from './settings.ts'
import { FEATURE_LEVEL } from './state.ts'
import { ToldLosses } from './told-losses.ts'

const PEER = 'xsan.v1.Peer'
const LEASE_MS = 2000
const REGISTER_TRY_MS = 5000
/** Why a process cannot be registered now and may be later: none of them is a reason to end it. */
const PASSING: ReadonlySet<string> = new Set(['CLUSTER_NOT_READY', 'CONSENSUS_FAILED', 'BUSY'])
const REGISTER_AGAIN_MS = 500
/** From this feature level on every node knows the field: one that does not could not check the signature. */
const TELLS_START = 4
/** How often it is looked whether the replicated state has come. */
const STATE_LOOK_MS = 5
/** A node without a leader asks the others by itself after so long, and waits so long for their answers; of shorter calls these shares. */
const STATUS_PATIENCE_MS = 2500
const STATUS_PATIENCE_SHARE = 0.6
const STANDING_TIMEOUT_MS = 800
const STANDING_SHARE = 0.25
const STOP_PATIENCE_MS = 12_000
const STOPPED_PATIENCE_MS = 500
const NUDGE_TIMEOUT_MS = 500
/** A node that starts asks who leads so often and so many times; then it waits for what comes. */
const HELLO_EVERY_MS = 80
const HELLOS_MAX = 10
/** Whether it was removed, by a node that knows no leader. */
const ASK_EVERY_MS = 2000
const REQUEST_ID_MAX = 128
const REHEARSAL_SLOTS = 128
const REHEARSAL_EVERY_MS = 40
const REHEARSAL_PASSES = 2

export const ADMIN_SERVICES: Readonly<Record<string, AdminService>> = {
  'xsan.v1.Cluster': clusterService,
  'xsan.v1.Node': nodeService,
  'xsan.v1.Volume': volumeService,
  'xsan.v1.Disk': diskService,
  'xsan.v1.Export': exportService,
  'xsan.v1.Config': configService,
  'xsan.v1.Debug': debugService,
}

export class Member {
  readonly identity: Identity
  /** Where the start is, for people. */
  stage = 'opening the metadata'
  detail = ''
  readonly #options: ControlOptions
  readonly #leaseMs: number
  readonly #own: OwnSettings
  readonly #authenticator: Authenticator
  readonly #machine: ControlStateMachine
  readonly #transport: RpcRaftTransport
  readonly #leaderClient: LeaderClient
  readonly #context: ServiceContext
  readonly #stats = new Map<NodeNumber, { incarnation: Incarnation; atMs: number; stats: AgentStats }>()
  readonly #addresses: { grpc: string; data: string; nbd: string }
  #raft: Raft | undefined
  #coordinator: Coordinator | undefined
  #coordinatorTerm = -1
  #agent: NodeAgent | undefined
  #heartbeats: Heartbeats | undefined
  readonly #load = new LoadMeter()
  #incarnation = 0 as Incarnation
  #stopped = false
  #asking = false
  #fatal = false
  /** Last known grpc addresses: of members when this node joined, then as the replicated state says, or they themselves; a node just removed is still told so. */
  readonly #grpcOf: Map<NodeNumber, string>
  #nodesRevision = 0
  /** Members that are being called at an address they were heard from. */
  readonly #greeted = new Set<NodeNumber>()
  #registered: () => void = () => undefined
  /** Resolves when this process is registered. */
  readonly registered = new Promise<void>((resolve) => {
    this.#registered = resolve
  })

  constructor(options: ControlOptions, identity: Identity, grpcAddress: string) {
    this.#options = options
    this.identity = identity
    const { config, env, hmac } = options
    this.#leaseMs = config.leaseMs ?? LEASE_MS
    this.#own = ownSettings(config.entries)
    this.#addresses = { grpc: grpcAddress, data: config.addresses.data, nbd: config.addresses.nbd }
    this.#machine = new ControlStateMachine(config.featureMax)
    this.#authenticator = new Authenticator(hmac, fromHex(identity.clusterKey))
    this.#grpcOf = new Map(identity.members.map(({ node, grpc }) => [node, grpc]))
    this.#transport = new RpcRaftTransport({
      step: (to, request, timeoutMs) => this.#callPeer(to, 'RaftStep', request, timeoutMs, true),
      onUnreachable: (node) => {
        this.#raft?.reportUnreachable(node)
      },
    })
    this.#leaderClient = new LeaderClient({
      clock: env.clock,
      self: identity.node,
      leader: () => this.#raft?.leader ?? (0 as NodeNumber),
      local: (method, request, timeoutMs) => this.#handlePeer(method, request, { node: identity.node, incarnation: this.#incarnation }, timeoutMs),
      remote: (node, method, request, timeoutMs) => this.#callPeer(node, method, request, timeoutMs),
    })
    const self = this
    this.#context = {
      env,
      config,
      hmac,
      state: this.#machine.state,
      get raft() {
        return self.#openRaft()
      },
      self: identity.node,
      coordinator: () => this.#theCoordinator(),
      stats: this.#stats,
      heartbeats: () => this.#heartbeats,
      ask: (node, query, timeoutMs) => this.#ask(node, query, timeoutMs),
    }
  }

  get state(): ControlStateMachine['state'] {
    return this.#machine.state
  }

  get node(): NodeNumber {
    return this.identity.node
  }

  get incarnation(): Incarnation {
    return this.#incarnation
  }

  get leaderId(): string {
    const leader = this.#raft?.leader ?? 0
    return this.#machine.state.nodes.get(leader as NodeNumber)?.id ?? ''
  }

  get leaseMs(): number {
    return this.#agent?.leaseMs ?? 0
  }

  /** The data plane runs and has its table. */
  get ready(): boolean {
    return this.#agent?.tableApplied === true && !this.#stopped
  }

  /** Of this node's view; for metrics and tests. */
  get raft(): Raft | undefined {
    return this.#raft
  }

  get coordinator(): Coordinator | undefined {
    return this.#coordinator
  }

  get agent(): NodeAgent | undefined {
    return this.#agent
  }

  get heartbeats(): Heartbeats | undefined {
    return this.#heartbeats
  }

  // ---- start and stop -----------------------------------------------------------------------------------------------------

  /** Resolves when Raft runs; the rest follows in the background (a cluster without a quorum must not keep a process from starting). */
  async start(): Promise<void> {
    const { env, config, createCore } = this.#options
    this.#raft = await RaftNode.open({
      id: this.identity.node,
      createCore,
      kv: env.kv,
      clock: env.clock,
      entropy: env.entropy,
      log: env.log,
      transport: this.#transport,
      stateMachine: this.#machine,
      events: {
        onLeaderChange: (change) => {
          this.#onLeaderChange(change)
        },
        onApplied: () => {
          this.#onApplied()
        },
        onRestored: () => {
          this.#onApplied()
        },
        onFatal: (error) => {
          this.#fail(error)
        },
      },
      start: this.identity.founder ? { voters: [this.identity.node] } : 'join',
      // a silent leader must not cost more than the leases of the others last
      electionTimeoutMs: Math.min(config.electionTimeoutMs ?? Number.POSITIVE_INFINITY, this.#leaseMs / 2),
    })
    this.stage = 'waiting for a leader'
    this.#heartbeats = this.#createHeartbeats()
    if (this.state.wasRemoved(this.node)) this.#fail(removedError())
    this.#onLeaderChange({ leader: this.#raft.leader, term: this.#raft.term, isSelf: this.#raft.isLeader })
    void this.#sayHello()
    void this.#heartbeats.start()
    this.#join().catch((error: unknown) => {
      if (!this.#stopped) this.#fail(error)
    })
  }

  async stop(): Promise<void> {
    if (this.#stopped) return
    const raft = this.#raft
    // The order keeps the stall of clients short: while leadership is handed over this node still serves; once it has stopped serving, the new leader
    // hears so from itself and takes it out of the chains. Each step is a courtesy: without it the others find out by themselves.
    if (raft?.isLeader) {
      const coordinator = this.#coordinator
      const heir = raft.members.voters.find((voter) => voter !== this.node && coordinator !== undefined && coordinator.leaseOf(voter).leaseMs > 0)
      if (heir !== undefined) await raft.transferLeader(heir).catch(() => undefined)
    }
    if (this.#agent?.ready) {
      const drained = await this.#agent.stopDataPlane(STOP_PATIENCE_MS)
      if (drained) await this.#agent.announceStopped(STOPPED_PATIENCE_MS).catch(() => undefined)
    }
    this.#stopped = true
    this.#agent?.stop()
    this.#heartbeats?.stop()
    this.#coordinator?.stop()
    this.#leaderClient.stop()
    this.#transport.stop()
    await raft?.stop()
  }

  async #sayHello(): Promise<void> {
    for (let i = 0; i < HELLOS_MAX && !this.#stopped && this.#raft?.leader === 0; i++) {
      for (const node of this.#grpcOfAll().keys()) if (node !== this.node) this.#nudge(node)
      await this.#sleep(HELLO_EVERY_MS)
    }
  }

  /** Registers the process and starts what serves. */
  async #join(): Promise<void> {
    const { env } = this.#options
    const requestId = env.entropy.uuid()
    const start = await countStart(env.kv)
    let answer: Message
    for (;;) {
      if (this.#stopped) return
      try {
        answer = await this.#leaderClient.call('Register', this.#registration(requestId, start), { timeoutMs: REGISTER_TRY_MS })
        break
      } catch (error) {
        if (!(error instanceof XsanError) || !PASSING.has(error.status)) throw error
        // nobody sends anything to a node that was removed while it was away
        await this.#askAllWhetherRemoved()
        this.detail = error.message
        env.log.log('WARN', 'this node waits for the cluster', { error: error.message })
        if (error.status !== 'CLUSTER_NOT_READY') await this.#sleep(REGISTER_AGAIN_MS)
      }
    }
    this.#incarnation = Number(answer['incarnation']) as Incarnation
    this.stage = 'waiting for the replicated state'
    this.detail = ''
    let askAtMs = env.clock.nowMs() + REGISTER_AGAIN_MS
    while (this.state.incarnation(this.node) < this.#incarnation) {
      if (this.#stopped) return
      await this.#sleep(STATE_LOOK_MS)
      if (env.clock.nowMs() < askAtMs) continue
      // removed since: it is sent nothing any more, what is missing here included
      await this.#askAllWhetherRemoved()
      askAtMs = env.clock.nowMs() + REGISTER_AGAIN_MS
    }
    if (this.state.incarnation(this.node) > this.#incarnation)
      throw new XsanError('PERMISSION_DENIED', 'another process of this node has registered', 'Only one xsand may run on a data_dir.')
    const cluster = this.state.theCluster
    const registration: Registration = {
      clusterId: cluster.id,
      clusterUuid: cluster.uuid,
      clusterKey: fromHex(cluster.key),
      node: this.node,
      nodeId: this.identity.nodeId,
      incarnation: this.#incarnation,
      slotCount: cluster.slotCount,
      disks: (answer['diskNumbers'] as number[]).map((disk) => disk as Registration['disks'][number]),
    }
    env.log.log('INFO', 'this process is registered', { node: this.node, incarnation: this.#incarnation, disks: registration.disks })
    this.stage = 'starting the data plane'
    const port = await this.#options.openDataPlane(registration)
    const toldLosses = await ToldLosses.open(env.kv, this.state)
    if (this.#stopped) return
    this.#agent = new NodeAgent({
      node: this.node,
      incarnation: this.#incarnation,
      state: this.state,
      toldLosses,
      raft: this.#openRaft(),
      leaderClient: this.#leaderClient,
      clock: env.clock,
      log: env.log,
      own: this.#own,
      port,
      leaseMs: this.#leaseMs,
      reactorTurning: this.#options.reactorTurning,
      onReady: (ports) => {
        this.#dataPlaneReady(ports)
      },
      onFatal: (error) => {
        this.#fail(error)
      },
    })
    this.#agent.start()
    this.#registered()
    this.#tellSettings()
    void this.#rehearse()
  }

  #createHeartbeats(): Heartbeats {
    const { env, config, hmac } = this.#options
    return new Heartbeats({
      datagram: env.datagram,
      clock: env.clock,
      log: env.log,
      hmac,
      state: this.state,
      node: this.node,
      incarnation: () => this.#incarnation,
      grpc: this.#addresses.grpc,
      ...config.heartbeat,
      // the port is known only here when the configuration leaves it open
      port: config.heartbeat.port || Number(portOf(this.#addresses.grpc)),
      unicastAddress: (node) => this.#grpcOfAll().get(node),
      report: () => this.#heartbeatReport(),
      onAddress: (node, grpc) => {
        void this.#greet(node, grpc)
      },
    })
  }

  /**
   * A member says by a heartbeat that it is somewhere else than is known here. This node calls there, signed and naming its own address: if it is that member,
   * it knows where this one is, and its own calls say so of itself. Nothing is believed because of the heartbeat, which may be an old one.
   */
  async #greet(node: NodeNumber, grpc: string): Promise<void> {
    if (this.#stopped || grpc === '' || grpc === this.#grpcOfAll().get(node) || this.#greeted.has(node)) return
    this.#greeted.add(node)
    await this.#callAt(grpc, 'Nudge', { term: this.#openRaft().term }, NUDGE_TIMEOUT_MS).catch(() => undefined)
    this.#greeted.delete(node)
  }

  #registration(requestId: string, start: number): Message {
    const { config } = this.#options
    const { nbdSocket, admin } = config.addresses
    return {
      ...this.#addresses,
      nbdSocket,
      admin,
      disks: config.disks.map(({ uuid, path, type, role, capacityBytes }) => ({ uuid, path, type, role, capacityBytes })),
      version: config.version,
      featureLevelMax: this.state.featureMax,
      dataDir: config.dataDir,
      bootId: config.bootId,
      requestId,
      zone: config.zone,
      rack: config.rack,
      leaseMs: Math.ceil(this.#leaseMs),
      ...(this.state.featureLevel >= TELLS_START ? { start } : {}),
    }
  }

  #dataPlaneReady({ dataPort, nbdPort }: { readonly dataPort: number; readonly nbdPort: number }): void {
    this.stage = 'serving'
    const data = withPort(this.#addresses.data, dataPort)
    const nbd = nbdPort > 0 ? withPort(this.#addresses.nbd, nbdPort) : this.#addresses.nbd
    if (data === this.#addresses.data && nbd === this.#addresses.nbd) return
    Object.assign(this.#addresses, { data, nbd })
    this.#agent!.announce({ data, nbd })
  }

  // ---- Raft's events ------------------------------------------------------------------------------------------------------

  #onLeaderChange(change: LeaderChange): void {
    if (this.#stopped || this.#raft === undefined) return
    if (change.leader === 0) void this.#askWhileLeaderless()
    if (!change.isSelf || change.term !== this.#coordinatorTerm) {
      this.#coordinator?.stop()
      this.#coordinator = undefined
    }
    if (change.isSelf && this.#coordinator === undefined) {
      this.#coordinatorTerm = change.term
      this.#stats.clear()
      this.#coordinator = new Coordinator({
        raft: this.#raft,
        state: this.state,
        clock: this.#options.env.clock,
        log: this.#options.env.log,
        own: this.#own,
        leaseMs: this.#leaseMs,
        virtualNodesPerPhysical: this.#options.config.virtualNodesPerPhysical,
        nudge: (node, doubt) => {
          this.#nudge(node, doubt)
        },
      })
      if (this.identity.founder) void this.#found(this.#coordinator)
    }
    this.#leaderClient.onLeaderChange()
    this.#agent?.onLeaderChange()
  }

  #onApplied(): void {
    if (this.#stopped) return
    this.#coordinator?.onApplied()
    this.#agent?.onApplied()
    if (this.#agent === undefined && this.state.wasRemoved(this.node)) this.#fail(removedError())
    this.#tellSettings()
  }

  #settingsRevision = -1
  #tellSettings(): void {
    if (this.#incarnation === 0 || this.state.settingsRevision === this.#settingsRevision) return
    this.#settingsRevision = this.state.settingsRevision
    this.#options.onSettings?.(effectiveSettings(this.state, this.#own))
  }

  /** The first command of a new cluster; again after a crash between identity and command. */
  async #found(coordinator: Coordinator): Promise<void> {
    const { env, config } = this.#options
    const { clusterId, clusterUuid, clusterKey, nodeId, nodeKey, slotCount } = this.identity
    try {
      await coordinator.started
      if (this.state.cluster !== undefined) return
      await coordinator.propose('cluster.init', {
        id: clusterId,
        uuid: clusterUuid,
        key: clusterKey,
        slotCount,
        wallMs: env.clock.wallMs(),
        settings: { 'storage.default_replica_count': config.replicas, 'storage.sync_when_write': config.syncWhenWrite },
        firstNode: { id: nodeId, key: nodeKey, zone: config.zone, rack: config.rack },
      })
    } catch (error) {
      if (!this.#stopped) env.log.log('WARN', 'the cluster could not be founded in this term', { error: messageOf(error) })
    }
  }

  async #theCoordinator(): Promise<Coordinator> {
    const coordinator = this.#coordinator
    if (coordinator === undefined)
      throw new XsanError('NOT_LEADER', `${this.identity.nodeId} does not lead the cluster`, 'Try again: the leader is being found.')
    await coordinator.started
    return coordinator
  }

  #openRaft(): Raft {
    assert(this.#raft !== undefined, 'Raft is not open')
    return this.#raft
  }

  #fail(error: unknown): void {
    if (this.#fatal || this.#stopped) return
    this.#fatal = true
    this.stage = 'failed'
    this.detail = messageOf(error)
    this.#options.onFatal(error)
  }

  // ---- calls --------------------------------------------------------------------------------------------------------------

  /** Handlers of the admin services, for `Rpc.serve`: answered here or carried to the leader. */
  async admin(service: string, method: string, request: Message, context: CallContext): Promise<Message> {
    const { at, handler } = ADMIN_SERVICES[service]![method]!
    const name = `${service}/${method}`
    const requestId = requestIdOf(name, request) ?? this.#options.env.entropy.uuid()
    if (at === 'here') return handler(this.#context, request, { timeoutMs: context.timeoutMs, requestId })
    const isStatus = name === 'xsan.v1.Cluster/Status'
    const timeoutMs = isStatus ? Math.min(context.timeoutMs * STATUS_PATIENCE_SHARE, STATUS_PATIENCE_MS) : context.timeoutMs * 0.9
    const forward = { method: name, requestJson: JSON.stringify(request), requestId, timeoutMs: Math.floor(timeoutMs) }
    try {
      const { responseJson } = await this.#leaderClient.call('Forward', forward, { timeoutMs, what: name.replace('xsan.v1.', '') })
      return JSON.parse(String(responseJson)) as Message
    } catch (error) {
      if (isStatus && error instanceof XsanError && (error.status === 'CLUSTER_NOT_READY' || error.status === 'CONSENSUS_FAILED')) {
        return leaderlessStatus(this.#context, Math.floor(Math.min(context.timeoutMs * STANDING_SHARE, STANDING_TIMEOUT_MS)))
      }
      throw error
    }
  }

  /** Handler of one method of Peer, for `Rpc.serve`. */
  peer(method: string): MethodHandler {
    return async (request, context) => {
      const sender = (request['sender'] ?? {}) as Message
      if (method === 'Admit') return this.#leaderOrForward(request, context)
      if (sender['clusterUuid'] !== this.identity.clusterUuid) {
        throw new XsanError(
          'WRONG_CLUSTER',
          `the caller is of another cluster than ${this.identity.clusterId}`,
          'Compare cluster.cluster_id and the data directories of both nodes.',
        )
      }
      this.#authenticator.check(method, request)
      const node = Number(sender['node']) as NodeNumber
      const incarnation = Number(sender['incarnation']) as Incarnation
      this.#noteAddress(node, incarnation, String(sender['grpc'] ?? ''))
      return this.#handlePeer(method, request, { node, incarnation }, context.timeoutMs)
    }
  }

  /**
   * Where a member says that it is, before the replicated state does: a leader that joined while this node was away, and a process that starts at another
   * address than its predecessor had (it registers with whoever leads, and hears who does only when somebody's messages reach it).
   */
  #noteAddress(node: NodeNumber, incarnation: Incarnation, grpc: string): void {
    const isFenced = incarnation !== 0 && incarnation < this.state.incarnation(node)
    if (grpc !== '' && !isFenced && this.#grpcOfAll().get(node) !== grpc) this.#grpcOf.set(node, grpc)
  }

  /** A joining node knows some member, not the leader. */
  #leaderOrForward(request: Message, context: CallContext): Promise<Message> {
    return this.#leaderClient.call('Admit', request, { timeoutMs: context.timeoutMs * 0.9 })
  }

  async #handlePeer(method: string, request: Message, sender: PeerSender, timeoutMs: number): Promise<Message> {
    if (this.#raft === undefined || this.#stopped) throw new XsanError('STOPPING', `${this.identity.nodeId} is starting or stopping`, 'Ask another node.')
    switch (method) {
      case 'RaftStep':
        this.#agent?.heardRaft(sender.node, sender.incarnation)
        this.#raft.receive(sender.node, request['messages'] as Uint8Array[])
        return {}
      case 'Nudge':
        if (this.state.wasRemoved(sender.node)) throw removedError()
        this.#agent?.renewNow(Number(request['doubt'] ?? 0))
        // from a node that starts and knows no leader: a round of reads lets it hear from this one now, not with the next heartbeat
        if (this.#raft.isLeader) this.#raft.readIndex({ timeoutMs: NUDGE_TIMEOUT_MS }).catch(() => undefined)
        return {}
      case 'Query':
        return { answerJson: JSON.stringify((await this.#answer(JSON.parse(String(request['queryJson'])) as NodeQuery)) ?? null) }
      case 'Forward': {
        if (!this.#raft.isLeader) throw new XsanError('NOT_LEADER', `${this.identity.nodeId} does not lead the cluster`)
        const [service = '', name = ''] = String(request['method']).split('/')
        const known = ADMIN_SERVICES[service]?.[name]
        if (known === undefined || known.at !== 'leader')
          throw new XsanError('NOT_SUPPORTED', `${this.identity.nodeId} does not know ${String(request['method'])}`, 'Use one version on all nodes.')
        const response = await known.handler(this.#context, JSON.parse(String(request['requestJson'])) as Message, {
          timeoutMs,
          requestId: String(request['requestId']),
        })
        return { responseJson: JSON.stringify(response) }
      }
    }
    const handler = LEADER_PEER_METHODS[method] ?? PEER_METHODS[method]
    if (handler === undefined) throw new XsanError('NOT_SUPPORTED', `there is no call ${method}`)
    return handler(this.#context, request, { sender, timeoutMs })
  }

  /** Where members can be reached, as far as this node knows. */
  #grpcOfAll(): ReadonlyMap<NodeNumber, string> {
    if (this.state.nodesRevision !== this.#nodesRevision) {
      this.#nodesRevision = this.state.nodesRevision
      for (const { node, grpc } of this.state.nodes.values()) if (grpc !== '') this.#grpcOf.set(node, grpc)
    }
    return this.#grpcOf
  }

  async #callPeer(to: NodeNumber, method: string, request: Message, timeoutMs: number, oneWay = false): Promise<Message> {
    const address = this.#grpcOfAll().get(to)
    if (address === undefined) throw new XsanError('NODE_UNREACHABLE', `the address of node ${to} is not known`)
    return this.#callAt(address, method, request, timeoutMs, oneWay)
  }

  async #callAt(address: string, method: string, request: Message, timeoutMs: number, oneWay = false): Promise<Message> {
    const { env, config } = this.#options
    if (method === 'Admit') return env.rpc.call(address, `${PEER}/${method}`, request, { timeoutMs })
    const { clusterUuid } = this.identity
    const sender = { clusterUuid, node: this.node, incarnation: this.#incarnation, nodeId: config.nodeId, grpc: this.#addresses.grpc }
    return env.rpc.call(address, `${PEER}/${method}`, this.#authenticator.sign(method, { ...request, sender }), { timeoutMs, oneWay })
  }

  /** Whoever was removed while it was cut off hears from no leader again, and its votes are not answered: it has to ask. */
  async #askWhileLeaderless(): Promise<void> {
    if (this.#asking) return
    this.#asking = true
    try {
      for (;;) {
        await this.#sleep(ASK_EVERY_MS)
        if (this.#stopped || this.#raft?.leader !== 0) return
        await this.#askAllWhetherRemoved()
      }
    } catch (error) {
      this.#fail(error)
    } finally {
      this.#asking = false
    }
  }

  async #askAllWhetherRemoved(): Promise<void> {
    await Promise.all([...this.#grpcOfAll().keys()].filter((node) => node !== this.node).map((node) => this.#askWhetherRemoved(node)))
  }

  async #askWhetherRemoved(node: NodeNumber): Promise<void> {
    const error = await this.#callPeer(node, 'Nudge', { term: this.#openRaft().term }, NUDGE_TIMEOUT_MS).then(
      () => undefined,
      (reason: unknown) => reason,
    )
    if (error instanceof XsanError && error.status === 'PERMISSION_DENIED' && error.message.includes(REMOVED)) throw removedError()
  }

  #nudge(node: NodeNumber, doubt = 0): void {
    if (node === this.node) this.#agent?.renewNow(doubt)
    else this.#callPeer(node, 'Nudge', { term: this.#openRaft().term, doubt }, NUDGE_TIMEOUT_MS, true).catch(() => undefined)
  }

  async #ask(node: NodeNumber, query: NodeQuery, timeoutMs: number): Promise<unknown> {
    if (node === this.node) return this.#answer(query)
    const { answerJson } = await this.#callPeer(node, 'Query', { queryJson: JSON.stringify(query) }, timeoutMs)
    return JSON.parse(String(answerJson))
  }

  async #answer(query: NodeQuery): Promise<unknown> {
    if (query.kind === 'config') return configItems(this.#context)
    if (query.kind === 'flight') return this.#dumpFlight()
    if (query.kind === 'standing') return standingOf(this.#context, this.#agent)
    if (query.kind === 'perf') return { ...this.#agent?.stats?.counters, ...this.counters() }
    if (this.#agent === undefined || !this.#agent.ready)
      throw new XsanError('CLUSTER_NOT_READY', `the data plane of ${this.identity.nodeId} is not ready`, 'Wait until it is.')
    return this.#agent.query(query)
  }

  #dumpFlight(): string {
    const { dumpFlight } = this.#options
    if (dumpFlight === undefined) throw new XsanError('NOT_SUPPORTED', `${this.identity.nodeId} has no flight recorder`)
    return dumpFlight('asked for by an operator')
  }

  /** The control plane's own counters, for metrics and perf-stats. */
  counters(): Record<string, number> {
    const beats = this.#heartbeats
    const counters: Record<string, number> = {
      'control.raft_term': this.#raft?.term ?? 0,
      'control.raft_applied_index': this.#raft?.applied ?? 0,
      'control.is_leader': this.#raft?.isLeader ? 1 : 0,
      'control.lease_left_ms': Math.round(this.leaseMs),
      'control.table_revision': this.state.revision,
    }
    if (beats !== undefined) {
      counters['heartbeat.sent'] = beats.sent
      counters['heartbeat.received'] = beats.received
      for (const [reason, count] of Object.entries(beats.refusals))
        counters[`heartbeat.refused_${reason.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)}`] = count
    }
    return counters
  }

  /**
   * Runs the transition table over the chains as if each node were lost, a few slots at a time, changing nothing: the first real loss must
   * not wait for code that has never run.
   */
  async #rehearse(): Promise<void> {
    const { state } = this
    while (!this.#stopped && state.chains.length === 0) await this.#sleep(REHEARSAL_EVERY_MS)
    for (let pass = 0; pass < REHEARSAL_PASSES; pass++) {
      for (let from = 0; from < state.chains.length && !this.#stopped; from += REHEARSAL_SLOTS) {
        await this.#sleep(REHEARSAL_EVERY_MS)
        const nodes = [...state.nodes.values()]
        const lost = nodes[(from / REHEARSAL_SLOTS) % nodes.length]
        const views = nodes.map(({ node, incarnation }) => ({ node, incarnation, view: node === lost?.node ? View.DOWN : View.UP }))
        const facts = Array.from({ length: Math.min(REHEARSAL_SLOTS, state.chains.length - from) }, (_, i) => ({ slot: (from + i) as SlotIndex }))
        packChains(chainChanges(state, { views, heldDown: [], facts, factsOnly: true }))
      }
    }
  }

  #heartbeatReport(): ReturnType<ConstructorParameters<typeof Heartbeats>[0]['report']> {
    const stats = this.#agent?.stats
    return {
      ready: this.ready,
      tableRevision: this.state.revision,
      ...this.#load.load(stats?.counters),
      syncingSlots: stats?.resync.slotsLeft ?? 0,
      behindBlocks: stats?.resync.blocksLeft ?? 0,
      term: this.#raft?.term ?? 0,
      disks: (stats?.disks ?? []).map(({ disk, usedBytes, capacityBytes, journalUsedBytes, journalBytes, rejectCreate }) => ({
        disk,
        state: this.state.disks.get(disk)?.state === 'failed' ? 2 : rejectCreate ? 1 : 0,
        usedPercent: capacityBytes > 0 ? (100 * usedBytes) / capacityBytes : 0,
        journalPercent: journalBytes > 0 ? (100 * journalUsedBytes) / journalBytes : 0,
      })),
    }
  }

  #sleep(delayMs: number): Promise<void> {
    return new Promise((resolve) => {
      this.#options.env.clock.setTimer(delayMs, resolve)
    })
  }
}

/** Of a request that the caller has named: the same for the same content only, so that one name for two requests never gives one the answer of the other. */
function requestIdOf(method: string, request: Message): string | undefined {
  const given = request['requestId']
  if (typeof given !== 'string' || given === '') return undefined
  if (given.length > REQUEST_ID_MAX) throw new XsanError('INVALID_PARAM', `a request_id of ${given.length} characters`, `Take at most ${REQUEST_ID_MAX}.`)
  return `${method} ${given} ${crc32c(new TextEncoder().encode(JSON.stringify(request)))}`
}

/** What a new node says of itself with its token. */
export function admitRequest(options: ControlOptions, token: string, joinId: string, grpcAddress: string): Message {
  const { config } = options
  const { data, nbd, nbdSocket, admin } = config.addresses
  return {
    token,
    joinId,
    nodeId: config.nodeId,
    grpc: grpcAddress,
    data,
    nbd,
    nbdSocket,
    admin,
    zone: config.zone,
    rack: config.rack,
    disks: config.disks.map(({ uuid, path, type, role, capacityBytes }) => ({ uuid, path, type, role, capacityBytes })),
    featureLevelMax: config.featureMax ?? FEATURE_LEVEL,
    version: config.version,
    clusterId: config.clusterId,
    blockSize: BLOCK_BYTES,
    witness: config.disks.length === 0,
  }
}

const portOf = (address: string) => address.slice(address.lastIndexOf(':') + 1)

function withPort(address: string, port: number): string {
  return address === '' ? '' : `${address.slice(0, address.lastIndexOf(':'))}:${port}`
}
