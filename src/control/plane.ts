/**
 * The control plane of one node, from the first start: uninitialized until `cluster init` or `cluster join`, a member from then on.
 * Owns no resources of the environment but what it opens: closes Rpc and Datagram at `stop`, never the Kv.
 */
import { messageOf, XsanError } from '../base/errors.ts'
import type { NodeNumber } from '../base/ids.ts'
import type { CallContext, Message, MethodHandler } from '../env/control.ts'
import { SLOT_COUNT_DEFAULT } from '../placement/ring.ts'
import { fromHex, toHex } from './auth.ts'
import { type Identity, joinIdOf, loadIdentity, storeIdentity } from './identity.ts'
import { ADMIN_SERVICES, admitRequest, Member } from './member.ts'
import type { ControlOptions, ControlStatus } from './options.ts'
import { text } from './services/service.ts'
import { decodeToken } from './token.ts'

const PEER_METHOD_NAMES = ['RaftStep', 'Admit', 'Register', 'Renew', 'FetchTable', 'Report', 'Forward', 'Query', 'Nudge'] as const
const ADMIT_TRY_MS = 5000

export class ControlPlane {
  readonly #options: ControlOptions
  #member: Member | undefined
  #state: ControlStatus['state'] = 'starting'
  #detail = ''
  #grpcAddress = ''
  /** An init or a join is under way. */
  #becoming = false
  #stopping: Promise<void> | undefined

  constructor(options: ControlOptions) {
    this.#options = options
  }

  /** Resolves when calls are answered; a member goes on starting in the background (see `status`). Rejects with XsanError. */
  async start(): Promise<void> {
    const { env, config } = this.#options
    const identity = await loadIdentity(env.kv, config)
    for (const [service, methods] of Object.entries(ADMIN_SERVICES)) {
      const handlers: Record<string, MethodHandler> = {}
      for (const method of Object.keys(methods)) handlers[method] = (request, context) => this.#admin(service, method, request, context)
      if (service === 'xsan.v1.Node') handlers['Local'] = async () => this.#local()
      env.rpc.serve(service, handlers)
    }
    const peerHandlers: Record<string, MethodHandler> = {}
    for (const method of PEER_METHOD_NAMES) {
      peerHandlers[method] = async (request, context) => {
        const member = this.#member
        if (member === undefined) throw this.#noMember()
        return member.peer(method)(request, context)
      }
    }
    env.rpc.serve('xsan.v1.Peer', peerHandlers)
    const { port } = await env.rpc.listen(config.listen)
    const { grpc } = config.addresses
    this.#grpcAddress = grpc.endsWith(':0') ? `${grpc.slice(0, -2)}:${port}` : grpc
    if (identity === undefined) {
      this.#state = 'uninitialized'
      env.log.log('INFO', 'this node belongs to no cluster yet', { next: '`xsan cluster init`, or `xsan cluster join TOKEN`' })
      return
    }
    await this.#become(identity)
  }

  /** Drains the data plane, hands leadership over, closes what was opened. A second call waits for the first. */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop()
    return this.#stopping
  }

  get status(): ControlStatus {
    const { config } = this.#options
    const member = this.#member
    const failed = member?.stage === 'failed'
    const state = this.#state === 'starting' && member?.ready === true ? 'ready' : failed && this.#state !== 'stopping' ? 'failed' : this.#state
    const leaseMs = Math.round(member?.leaseMs ?? 0)
    const isPaused = state === 'ready' && leaseMs === 0
    let stage = member?.stage ?? (state === 'uninitialized' ? 'waiting for cluster init or join' : 'starting')
    let detail = member?.detail || this.#detail
    if (isPaused) {
      stage = 'waiting for a lease'
      detail ||= member?.leaderId === '' ? 'no leader is known: see `xsan cluster status`' : `of the leader, ${member?.leaderId}`
    }
    return {
      state,
      stage,
      detail,
      nodeId: config.nodeId,
      node: member?.node ?? (0 as NodeNumber),
      incarnation: member?.incarnation ?? (0 as ControlStatus['incarnation']),
      clusterId: member?.identity.clusterId ?? '',
      clusterUuid: member?.identity.clusterUuid ?? '',
      leader: member?.leaderId ?? '',
      leaseMs,
    }
  }

  /** May say that this node serves: registered, table applied, lease held. */
  get isReady(): boolean {
    return this.status.state === 'ready' && (this.#member?.leaseMs ?? 0) > 0
  }

  /** Of a member; undefined before. For metrics, tests and the simulator. */
  get member(): Member | undefined {
    return this.#member
  }

  counters(): Record<string, number> {
    return this.#member?.counters() ?? {}
  }

  // ---- becoming a member --------------------------------------------------------------------------------------------------

  async #become(identity: Identity): Promise<Member> {
    this.#state = 'starting'
    const member = new Member(this.#options, identity, this.#grpcAddress)
    this.#member = member
    await member.start()
    return member
  }

  async #init(request: Message): Promise<Message> {
    const { env, config } = this.#options
    const clusterId = text(request, 'clusterId') || config.clusterId
    if (clusterId !== config.clusterId) {
      throw new XsanError(
        'WRONG_CLUSTER',
        `this node is configured for the cluster ${config.clusterId}, not ${clusterId}`,
        'Correct cluster.cluster_id, or leave the name out.',
      )
    }
    const identity: Identity = {
      clusterId,
      clusterUuid: env.entropy.uuid(),
      clusterKey: toHex(env.entropy.bytes(32)),
      node: 1 as NodeNumber,
      nodeId: config.nodeId,
      nodeKey: toHex(env.entropy.bytes(32)),
      founder: true,
      slotCount: config.slotCount || SLOT_COUNT_DEFAULT,
      members: [],
    }
    await storeIdentity(env.kv, identity)
    const member = await this.#become(identity)
    await member.registered
    return { clusterId, nodeId: config.nodeId, clusterUuid: identity.clusterUuid }
  }

  async #join(request: Message, context: CallContext): Promise<Message> {
    const { env, config } = this.#options
    const token = decodeToken(text(request, 'token'))
    if (token.clusterId !== config.clusterId) {
      throw new XsanError(
        'WRONG_CLUSTER',
        `the token is of the cluster ${token.clusterId}, this node is configured for ${config.clusterId}`,
        'Correct cluster.cluster_id of this node, or take a token of its cluster.',
      )
    }
    const answer = await this.#admitted(token.addresses, text(request, 'token'), context)
    const members = answer['members'] as ReadonlyArray<{ node: number; grpc: string }>
    const identity: Identity = {
      clusterId: String(answer['clusterId']),
      clusterUuid: String(answer['clusterUuid']),
      clusterKey: toHex(answer['clusterKey'] as Uint8Array),
      node: Number(answer['nodeNumber']) as NodeNumber,
      nodeId: config.nodeId,
      nodeKey: toHex(answer['nodeKey'] as Uint8Array),
      founder: false,
      slotCount: Number(answer['slotCount']),
      members: members.filter(({ node }) => node !== answer['nodeNumber']).map(({ node, grpc }) => ({ node: node as NodeNumber, grpc })),
    }
    if (identity.node === 0 || fromHex(identity.clusterKey).length !== 32)
      throw new XsanError('PROTOCOL_ERROR', 'the answer of the cluster cannot be understood', 'Use one version on all nodes.')
    await storeIdentity(env.kv, identity)
    const member = await this.#become(identity)
    await member.registered
    return { clusterId: identity.clusterId, nodeId: config.nodeId, nodeNumber: identity.node, clusterUuid: identity.clusterUuid }
  }

  /** The first member that answers; its refusal is final, its absence is not. */
  async #admitted(addresses: readonly string[], token: string, context: CallContext): Promise<Message> {
    const { env } = this.#options
    const joinId = await joinIdOf(env.kv, () => env.entropy.uuid())
    const failures: string[] = []
    for (const address of addresses) {
      try {
        return await env.rpc.call(address, 'xsan.v1.Peer/Admit', admitRequest(this.#options, token, joinId, this.#grpcAddress), {
          timeoutMs: Math.min(ADMIT_TRY_MS, context.timeoutMs),
        })
      } catch (error) {
        if (!(error instanceof XsanError) || !['NODE_UNREACHABLE', 'NETWORK_TIMEOUT', 'CLUSTER_NOT_READY', 'STOPPING'].includes(error.status)) throw error
        failures.push(`${address}: ${messageOf(error)}`)
      }
    }
    throw new XsanError('NODE_UNREACHABLE', `no member answered: ${failures.join('; ')}`, 'Start them, and see that this host reaches their control ports.')
  }

  // ---- calls --------------------------------------------------------------------------------------------------------------

  async #admin(service: string, method: string, request: Message, context: CallContext): Promise<Message> {
    const member = this.#member
    if (member !== undefined) return member.admin(service, method, request, context)
    if (service !== 'xsan.v1.Cluster' || (method !== 'Init' && method !== 'Join')) throw this.#noMember()
    if (this.#becoming) throw new XsanError('BUSY', 'an init or a join of this node is under way', 'Wait for it.')
    this.#becoming = true
    try {
      return method === 'Init' ? await this.#init(request) : await this.#join(request, context)
    } finally {
      this.#becoming = false
    }
  }

  #noMember(): XsanError {
    return new XsanError(
      'CLUSTER_NOT_READY',
      `node ${this.#options.config.nodeId} belongs to no cluster yet`,
      'Start a cluster with `xsan cluster init`, or join one with `xsan cluster join TOKEN`.',
    )
  }

  #local(): Message {
    const { config } = this.#options
    const { state, stage, detail, nodeId, node, incarnation, clusterId, clusterUuid, leader } = this.status
    const { data, nbd, nbdSocket, admin } = config.addresses
    const own = this.#member?.state.nodes.get(node)
    return {
      nodeId,
      clusterId,
      clusterUuid,
      state,
      stage,
      detail,
      leader,
      version: config.version,
      nodeNumber: node,
      incarnation,
      grpc: this.#grpcAddress,
      data: own?.data || data,
      nbd: own?.nbd || nbd,
      nbdSocket,
      admin,
      pid: config.pid,
      dataDir: config.dataDir,
    }
  }

  async #stop(): Promise<void> {
    const { env } = this.#options
    this.#state = 'stopping'
    await this.#member?.stop()
    await env.datagram.close()
    await env.rpc.close()
  }
}
