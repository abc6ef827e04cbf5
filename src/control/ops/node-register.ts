import { XsanError } from '../../base/errors.ts'
import type { DiskNumber, Incarnation, NodeNumber } from '../../base/ids.ts'
import { type ChainEntry, ReplicaState } from '../../placement/chain.ts'
import type { ClusterState, DiskRecord, NodeAddresses } from '../state.ts'
import type { Operation } from './operation.ts'

export interface RegisterDisk {
  readonly uuid: string
  readonly path: string
  readonly type: string
  readonly role: string
  readonly capacityBytes: number
}

export interface NodeRegisterArgs extends NodeAddresses {
  readonly node: NodeNumber
  readonly zone: string
  readonly rack: string
  readonly version: string
  readonly dataDir: string
  readonly bootId: string
  readonly featureMax: number
  readonly disks: readonly RegisterDisk[]
  /** The longest lease it would grant as leader. */
  readonly leaseMs?: number
  /** See RegisterRequest of peer.proto. */
  readonly start?: number
}

/** Reason of a disk that counts as failed because the process of its node started without it; it is used again once it is back. */
export const DISK_GONE = 'its node started without it'

/** From this feature level on an older copy counts; before, all nodes have to do alike what an older one does. */
const TRIES_OLDER_COPIES = 4

/**
 * Whether nobody serves a slot that this disk has a copy of: what it holds, though it be an older copy, may be had nowhere else, so it is tried again,
 * whatever it had failed with.
 */
function isNeeded(state: ClusterState, disk: DiskNumber): boolean {
  const serves = (of: ChainEntry) =>
    of.state === ReplicaState.SERVING && of.incarnation === state.incarnation(of.node) && state.disks.get(of.disk)?.state !== 'failed'
  const isUnserved = (own: ChainEntry, entries: readonly ChainEntry[]) =>
    own.state === ReplicaState.LASTSRV || (state.featureLevel >= TRIES_OLDER_COPIES && !entries.some(serves))
  for (const { entries } of state.distinctChains) {
    const own = entries.find((of) => of.disk === disk)
    if (own !== undefined && isUnserved(own, entries)) return true
  }
  return false
}

/** A process of a member has started: a new incarnation, which fences the earlier ones. Its disks get their numbers. */
export const nodeRegister: Operation<NodeRegisterArgs, { incarnation: Incarnation; disks: DiskNumber[] }> = {
  feature: 1,
  apply(state, args) {
    const node = state.nodes.get(args.node)
    if (node === undefined) {
      throw new XsanError('NODE_NOT_FOUND', `node ${args.node} is not a member (any more)`, 'Empty its data_dir and join again with a new token.')
    }
    if (args.featureMax < state.featureLevel) {
      throw new XsanError(
        'NOT_SUPPORTED',
        `the cluster is at feature level ${state.featureLevel}, the node knows ${args.featureMax}`,
        'Install the version the other nodes run.',
      )
    }
    if (args.start !== undefined && args.start < (node.start ?? 0)) {
      throw new XsanError(
        'PERMISSION_DENIED',
        `a later process of ${node.id} has registered (start ${node.start}, this is ${args.start})`,
        'If its data_dir was put back as it was earlier: remove the node from the cluster and let it join again with an empty data_dir.',
      )
    }
    const known = new Map([...state.disks.values()].map((disk) => [disk.uuid, disk]))
    for (const { uuid, path } of args.disks) {
      const owner = known.get(uuid)
      if (owner !== undefined && owner.node !== args.node) {
        const other = state.nodes.get(owner.node)?.id ?? `node ${owner.node}`
        throw new XsanError('DISK_FOREIGN', `the disk ${path} (${uuid}) belongs to ${other}`, 'Take it out of storage.devices, or wipe it.')
      }
    }
    const { grpc, data, nbd, nbdSocket, admin, zone, rack, version, dataDir, bootId, featureMax } = args
    const incarnation = (node.incarnation + 1) as Incarnation
    const { leaseMs: _, ...before } = node
    const lease = args.leaseMs === undefined ? {} : { leaseMs: args.leaseMs }
    const start = args.start === undefined ? {} : { start: args.start }
    state.putNode({ ...before, ...lease, ...start, incarnation, grpc, data, nbd, nbdSocket, admin, zone, rack, version, dataDir, bootId, featureMax })
    state.noteLease(args.leaseMs ?? 0)
    const disks = args.disks.map(({ uuid, path, type, role, capacityBytes }) => {
      const old = known.get(uuid)
      const disk = old?.disk ?? state.takeDiskNumber()
      const isBack = old === undefined || (old.state === 'failed' && (old.reason === DISK_GONE || isNeeded(state, disk)))
      const next: DiskRecord = {
        disk,
        node: args.node,
        uuid,
        path,
        type,
        role,
        capacityBytes,
        state: isBack ? 'ok' : old.state,
        reason: isBack ? '' : old.reason,
      }
      if (JSON.stringify(next) !== JSON.stringify(old)) state.putDisk(next)
      return disk
    })
    // one that had failed before and was taken out now is no failure any more, once its copies are elsewhere
    const gone = [...state.disks.values()].filter((of) => of.node === args.node && of.reason !== DISK_GONE && !disks.includes(of.disk))
    for (const disk of gone.sort((a, b) => a.disk - b.disk)) state.putDisk({ ...disk, state: 'failed', reason: DISK_GONE })
    return { incarnation, disks }
  },
}
