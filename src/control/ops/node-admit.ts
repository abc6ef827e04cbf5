import { XsanError } from '../../base/errors.ts'
import type { Incarnation, NodeNumber } from '../../base/ids.ts'
import type { NodeAddresses } from '../state.ts'
import type { Operation } from './operation.ts'

export const NODES_MAX = 1024

export interface NodeAdmitArgs extends NodeAddresses {
  readonly tokenHash: string
  /** Of the directory that joins: two of them must never have one number, for each would vote in Raft without knowing what the other has promised. */
  readonly joinId: string
  readonly nodeId: string
  readonly zone: string
  readonly rack: string
  /** Key of its heartbeats, drawn by the leader. */
  readonly key: string
  readonly version: string
  readonly featureMax: number
  /** The leader's clock when it took the request: tokens expire by it. */
  readonly wallMs: number
}

const NEW_TOKEN = 'Get a new one with `xsan cluster add` on a member.'

export const unknownToken = () => new XsanError('PERMISSION_DENIED', 'the cluster does not know this join token', NEW_TOKEN)

/** Lets the bearer of a token in. The answer may get lost: the same directory with the same token gets the same number until it registers. */
export const nodeAdmit: Operation<NodeAdmitArgs, { node: NodeNumber }> = {
  feature: 1,
  apply(state, args) {
    const token = state.tokens.get(args.tokenHash)
    if (token === undefined) throw unknownToken()
    if (token.nodeId !== '' && token.nodeId !== args.nodeId) {
      throw new XsanError('PERMISSION_DENIED', `the token is for ${token.nodeId}, not for ${args.nodeId}`, NEW_TOKEN)
    }
    const known = state.nodeById(args.nodeId)
    if (token.usedBy !== 0) {
      if (known === undefined || known.node !== token.usedBy || known.incarnation !== 0 || token.joinId !== args.joinId) {
        throw new XsanError('PERMISSION_DENIED', 'the join token has been used', NEW_TOKEN)
      }
      return { node: known.node }
    }
    if (token.expiresAtMs < args.wallMs) throw new XsanError('PERMISSION_DENIED', 'the join token has expired', NEW_TOKEN)
    if (known !== undefined) {
      throw new XsanError(
        'ALREADY_EXISTS',
        `a node ${args.nodeId} is a member already`,
        'Give this node a cluster.node_id of its own, or remove the old one with `xsan cluster remove`.',
      )
    }
    if (args.featureMax < state.featureLevel) {
      throw new XsanError(
        'NOT_SUPPORTED',
        `the cluster is at feature level ${state.featureLevel}, the node knows ${args.featureMax}`,
        'Install the version the members run.',
      )
    }
    if (state.nodes.size >= NODES_MAX) throw new XsanError('INSUFFICIENT_SPACE', `the cluster has ${NODES_MAX} nodes`, 'Remove one first.')
    const node = state.takeNodeNumber()
    const { grpc, data, nbd, nbdSocket, admin, zone, rack, key, version, featureMax } = args
    state.putNode({
      node,
      id: args.nodeId,
      incarnation: 0 as Incarnation,
      zone,
      rack,
      key,
      state: 'member',
      version,
      dataDir: '',
      bootId: '',
      featureMax,
      grpc,
      data,
      nbd,
      nbdSocket,
      admin,
    })
    state.putToken({ ...token, usedBy: node, joinId: args.joinId })
    return { node }
  },
}
