/**
 * xsan.v1.Peer: what nodes say to each other. Signed with the cluster's key; the sender names cluster, number and incarnation.
 * Those marked `leader` are answered by the leader only (NOT_LEADER: the caller looks for the next one).
 */
import { messageOf, XsanError } from '../../base/errors.ts'
import type { ChainVersion, DiskNumber, Incarnation, NodeNumber, SlotIndex } from '../../base/ids.ts'
import { BLOCK_BYTES } from '../../base/units.ts'
import type { Message } from '../../env/control.ts'
import { toHex } from '../auth.ts'
import { NODE_ID } from '../identity.ts'
import type { AgentStats } from '../node-agent.ts'
import { unknownToken } from '../ops/node-admit.ts'
import type { RegisterDisk } from '../ops/node-register.ts'
import { tableSince } from '../table.ts'
import { decodeToken, hashSecret } from '../token.ts'
import { flag, fresh, number, type ServiceContext, text } from './service.ts'

export interface PeerSender {
  readonly node: NodeNumber
  readonly incarnation: Incarnation
}

export interface PeerCall {
  readonly sender: PeerSender
  readonly timeoutMs: number
}

export type PeerHandler = (context: ServiceContext, request: Message, call: PeerCall) => Promise<Message>

const list = (request: Message, field: string): readonly unknown[] => (Array.isArray(request[field]) ? (request[field] as unknown[]) : [])

/** Calls that need the leader. */
export const LEADER_PEER_METHODS: Readonly<Record<string, PeerHandler>> = {
  /** The joining node is no member yet: its token speaks for it. */
  async Admit(context, request) {
    const { env, hmac, state } = context
    const coordinator = await fresh(context)
    const cluster = state.theCluster
    const token = decodeToken(text(request, 'token'))
    const wrongToken = 'Get a token from this cluster: `xsan cluster add`.'
    if (token.clusterUuid !== cluster.uuid)
      throw new XsanError('WRONG_CLUSTER', `the token is of the cluster ${token.clusterId} (${token.clusterUuid}), this is ${cluster.id}`, wrongToken)
    if (text(request, 'clusterId') !== cluster.id) {
      throw new XsanError(
        'WRONG_CLUSTER',
        `the node is configured for the cluster ${text(request, 'clusterId')}, this is ${cluster.id}`,
        'Correct cluster.cluster_id of that node.',
      )
    }
    if (number(request, 'blockSize') !== BLOCK_BYTES)
      throw new XsanError('INVALID_PARAM', `the node has block_size ${number(request, 'blockSize')}, the cluster ${BLOCK_BYTES}`)
    if (!NODE_ID.test(text(request, 'nodeId')) || text(request, 'joinId') === '')
      throw new XsanError('INVALID_PARAM', 'the node does not say who it is', 'Set cluster.node_id of that node, and use one version on all nodes.')
    // whoever reaches this port may ask: a stranger must not fill the log
    const tokenHash = hashSecret(hmac, cluster.uuid, token.secret)
    if (!state.tokens.has(tokenHash)) throw unknownToken()
    const { node } = await coordinator.propose('node.admit', {
      tokenHash,
      joinId: text(request, 'joinId'),
      nodeId: text(request, 'nodeId'),
      zone: text(request, 'zone'),
      rack: text(request, 'rack'),
      key: toHex(env.entropy.bytes(32)),
      version: text(request, 'version'),
      featureMax: number(request, 'featureLevelMax'),
      wallMs: env.clock.wallMs(),
      grpc: text(request, 'grpc'),
      data: text(request, 'data'),
      nbd: text(request, 'nbd'),
      nbdSocket: text(request, 'nbdSocket'),
      admin: text(request, 'admin'),
    })
    const { voters } = context.raft.members
    env.log.log('INFO', 'a node was admitted', { node: text(request, 'nodeId'), number: node })
    return {
      clusterId: cluster.id,
      clusterUuid: cluster.uuid,
      nodeNumber: node,
      members: [...state.nodes.values()].map((of) => ({ node: of.node, nodeId: of.id, grpc: of.grpc, voter: voters.includes(of.node) })),
      nodeKey: bytesOf(state.nodes.get(node)!.key),
      slotCount: cluster.slotCount,
      clusterKey: bytesOf(cluster.key),
    }
  },

  async Register(context, request, { sender }) {
    const coordinator = await fresh(context)
    const { incarnation, disks } = await coordinator.propose(
      'node.register',
      {
        node: sender.node,
        zone: text(request, 'zone'),
        rack: text(request, 'rack'),
        version: text(request, 'version'),
        dataDir: text(request, 'dataDir'),
        bootId: text(request, 'bootId'),
        featureMax: number(request, 'featureLevelMax'),
        disks: list(request, 'disks').map((item): RegisterDisk => {
          const disk = item as Message
          return {
            uuid: text(disk, 'uuid'),
            path: text(disk, 'path'),
            type: text(disk, 'type'),
            role: text(disk, 'role'),
            capacityBytes: number(disk, 'capacityBytes'),
          }
        }),
        grpc: text(request, 'grpc'),
        data: text(request, 'data'),
        nbd: text(request, 'nbd'),
        nbdSocket: text(request, 'nbdSocket'),
        admin: text(request, 'admin'),
        leaseMs: number(request, 'leaseMs'),
        ...(number(request, 'start') > 0 ? { start: number(request, 'start') } : {}),
      },
      text(request, 'requestId'),
    )
    return { incarnation, tableRevision: context.state.revision, diskNumbers: disks, leader: context.config.nodeId }
  },

  async Renew(context, request, { sender }) {
    const coordinator = await context.coordinator()
    const asked = {
      tableRevision: number(request, 'tableRevision'),
      doubt: number(request, 'doubt'),
      unreachable: list(request, 'unreachable').map(Number) as NodeNumber[],
    }
    const { granted, reason, leaseMs, tableRevision, renewInMs, doubt } = await coordinator.renew(sender.node, sender.incarnation, asked)
    return { granted, reason, leaseMs, tableRevision, renewInMs, doubt, leader: context.config.nodeId }
  },

  async Report(context, request, { sender }) {
    const { state, env } = context
    const coordinator = await context.coordinator()
    if (state.incarnation(sender.node) !== sender.incarnation)
      throw new XsanError('PERMISSION_DENIED', `process ${sender.incarnation} of node ${sender.node} is fenced`)
    if (flag(request, 'stopped')) {
      coordinator.stopped(sender.node, sender.incarnation)
      return { tableRevision: state.revision }
    }
    coordinator.confirm(sender.node, sender.incarnation, number(request, 'appliedRevision'))
    const refused = list(request, 'refused').map((item) => {
      const peer = item as Message
      return { node: number(peer, 'node') as NodeNumber, incarnation: number(peer, 'incarnation') as Incarnation }
    })
    if (refused.length > 0) coordinator.refused(refused.filter((peer) => peer.node !== sender.node))
    const upToDate = list(request, 'upToDate').map(Number)
    coordinator.upToDate(
      sender.node,
      Array.from({ length: Math.floor(upToDate.length / 3) }, (_, i) => ({
        slot: upToDate[3 * i] as SlotIndex,
        since: upToDate[3 * i + 1] as ChainVersion,
        incarnation: upToDate[3 * i + 2] as Incarnation,
      })),
    )
    const disk = number(request, 'disk') as DiskNumber
    const lastIds = list(request, 'lastIds').map(Number)
    if (lastIds.length > 0) {
      const ids = Array.from({ length: Math.floor(lastIds.length / 5) }, (_, i) => ({
        slot: lastIds[5 * i] as SlotIndex,
        version: lastIds[5 * i + 1] as ChainVersion,
        hi: lastIds[5 * i + 2]!,
        lo: lastIds[5 * i + 3]!,
        flags: lastIds[5 * i + 4]!,
      }))
      coordinator.lastIds(sender.node, sender.incarnation, disk, ids)
    }
    const failedReason = text(request, 'diskFailedReason')
    if (failedReason !== '' && state.disks.get(disk)?.node === sender.node) {
      coordinator.diskFailed({ disk, reason: failedReason, incarnation: sender.incarnation })
    }
    const [data, nbd] = [text(request, 'data'), text(request, 'nbd')]
    const known = state.nodes.get(sender.node)
    if (data !== '' && known !== undefined && (known.data !== data || known.nbd !== nbd)) {
      await coordinator.propose('node.addresses', { node: sender.node, incarnation: sender.incarnation, data, nbd })
    }
    const statsJson = text(request, 'statsJson')
    if (statsJson !== '') {
      try {
        const stats = JSON.parse(statsJson) as AgentStats
        if (Array.isArray(stats.disks) && typeof stats.resync === 'object') {
          context.stats.set(sender.node, { incarnation: sender.incarnation, atMs: env.clock.nowMs(), stats })
        }
      } catch (error) {
        env.log.log('WARN', 'statistics of a node cannot be read', { node: sender.node, error: messageOf(error) })
      }
    }
    return { tableRevision: state.revision }
  },
}

/** Answered by the node asked. */
export const PEER_METHODS: Readonly<Record<string, PeerHandler>> = {
  async FetchTable({ state }, request) {
    const since = number(request, 'sinceRevision')
    const table = tableSince(state, since)
    if (table === undefined) return { revision: state.revision, sinceRevision: since, slotCount: state.theCluster.slotCount }
    const { nodes, disks, volumes } = table
    const chains = new Uint8Array(table.chains.length * 4)
    const view = new DataView(chains.buffer)
    table.chains.forEach((word, i) => {
      view.setInt32(4 * i, word, true)
    })
    return { revision: table.revision, sinceRevision: since, slotCount: table.slotCount, chains, listsJson: JSON.stringify({ nodes, disks, volumes }) }
  },
}

function bytesOf(hex: string): Uint8Array {
  return Uint8Array.from({ length: hex.length >> 1 }, (_, i) => Number.parseInt(hex.slice(2 * i, 2 * i + 2), 16))
}
