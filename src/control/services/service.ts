/** What the handlers of the admin services stand on, and where a call is answered. */
import type { Incarnation, NodeNumber } from '../../base/ids.ts'
import type { ControlEnv, Message } from '../../env/control.ts'
import type { ReactorQuery } from '../../placement/messages.ts'
import { View } from '../../placement/view.ts'
import type { Raft } from '../../raft/driver.ts'
import { type ArgsOf, OPERATIONS, type OperationName, type ResultOf } from '../command.ts'
import type { Heartbeats } from '../heartbeat.ts'
import type { Coordinator } from '../leader.ts'
import type { AgentStats } from '../node-agent.ts'
import type { Operation } from '../ops/operation.ts'
import type { ControlConfig, Hmac } from '../options.ts'
import { ClusterState } from '../state.ts'

/** Questions a node answers: to its data plane, or to its control plane. */
export type NodeQuery = ReactorQuery | { readonly kind: 'config' } | { readonly kind: 'perf' } | { readonly kind: 'flight' } | { readonly kind: 'standing' }

/** Of a member. */
export interface ServiceContext {
  readonly env: ControlEnv
  readonly config: ControlConfig
  readonly hmac: Hmac
  readonly state: ClusterState
  readonly raft: Raft
  readonly self: NodeNumber
  /** This node's, once it serves; rejects with NOT_LEADER. */
  coordinator(): Promise<Coordinator>
  /** The last that each node has reported, and when (own clock). */
  readonly stats: Map<NodeNumber, { readonly incarnation: Incarnation; readonly atMs: number; readonly stats: AgentStats }>
  readonly heartbeats: () => Heartbeats | undefined
  /** Rejects with XsanError when the node does not answer. */
  ask(node: NodeNumber, query: NodeQuery, timeoutMs: number): Promise<unknown>
}

export interface AdminCall {
  readonly timeoutMs: number
  /** The same in every repetition of one request. */
  readonly requestId: string
}

export type AdminHandler = (context: ServiceContext, request: Message, call: AdminCall) => Promise<Message>

/** Answered by the leader (others carry the call there), or by the node asked. */
export interface AdminMethod {
  readonly at: 'leader' | 'here'
  readonly handler: AdminHandler
}

export type AdminService = Readonly<Record<string, AdminMethod>>

export const atLeader = (handler: AdminHandler): AdminMethod => ({ at: 'leader', handler })
export const here = (handler: AdminHandler): AdminMethod => ({ at: 'here', handler })

/** State as new as anything acknowledged before the call; on the leader. */
export async function fresh(context: ServiceContext): Promise<Coordinator> {
  const coordinator = await context.coordinator()
  await context.raft.readIndex({ asLeader: true, timeoutMs: 2000 })
  return coordinator
}

/** What the nodes that live have reported last: what others said before they went is true no more. */
export function reportsOf(
  { state, stats }: Pick<ServiceContext, 'state' | 'stats'>,
  { view }: Pick<Coordinator, 'view'>,
): Map<NodeNumber, { readonly stats: AgentStats }> {
  return new Map([...stats].filter(([node]) => state.nodes.has(node) && view.view(node) !== View.DOWN))
}

/** Says what a command would do, or throws what it would be refused with: applied to a copy of the state, and nothing is kept. */
export function tryOut<N extends OperationName>(state: ClusterState, op: N, args: ArgsOf<N>): ResultOf<N> {
  const copy = new ClusterState(state.featureMax)
  copy.load(state.pairs())
  copy.begin(Number.MAX_SAFE_INTEGER)
  return (OPERATIONS[op] as Operation<ArgsOf<N>, ResultOf<N>>).apply(copy, args)
}

export const text = (request: Message, field: string): string => {
  const value = request[field]
  return typeof value === 'string' ? value : ''
}
export const number = (request: Message, field: string): number => {
  const value = Number(request[field] ?? 0)
  return Number.isFinite(value) ? value : 0
}
export const flag = (request: Message, field: string): boolean => request[field] === true
