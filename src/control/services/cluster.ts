/** xsan.v1.Cluster, of a member (Init and Join of a node that is none are in plane.ts). */
import { XsanError } from '../../base/errors.ts'
import type { DiskNumber, NodeNumber } from '../../base/ids.ts'
import { BLOCK_BYTES } from '../../base/units.ts'
import type { Message } from '../../env/control.ts'
import { type ChainEntry, ReplicaState } from '../../placement/chain.ts'
import { slotOf } from '../../placement/ring.ts'
import { View } from '../../placement/view.ts'
import { toHex } from '../auth.ts'
import { fullDisksOf, healthOf, lostPagesOf } from '../health.ts'
import { NODE_ID } from '../identity.ts'
import type { Coordinator } from '../leader.ts'
import { replicaCount } from '../settings.ts'
import type { ClusterState, NodeRecord } from '../state.ts'
import { encodeToken, hashSecret } from '../token.ts'
import { isTakenOut } from './disk.ts'
import { type AdminService, atLeader, flag, fresh, here, number, reportsOf, type ServiceContext, text, tryOut } from './service.ts'

/** A heartbeat of a process that died may still arrive for so long after its death is known. */
const BEAT_LATE_MS = 250
/** Who was heard within this is heard now. */
export const HEARD_MS = 5000
const TOKEN_VALID_MS = 24 * 3600_000
const TOKEN_VALID_MS_MAX = 30 * TOKEN_VALID_MS

const alreadyMember = here(async ({ state }) => {
  throw new XsanError(
    'ALREADY_EXISTS',
    `this node belongs to the cluster ${state.cluster?.id ?? '(being started)'} already`,
    'See it with `xsan cluster status`.',
  )
})

export const clusterService: AdminService = {
  Init: alreadyMember,
  Join: alreadyMember,

  AddNode: atLeader(async (context, request, call) => {
    const { env, hmac, state } = context
    const coordinator = await fresh(context)
    const cluster = state.theCluster
    const nodeId = text(request, 'nodeId')
    if (nodeId !== '' && !NODE_ID.test(nodeId))
      throw new XsanError(
        'INVALID_PARAM',
        `${JSON.stringify(nodeId)} cannot be a node_id`,
        'Use letters, digits, ".", "_" and "-", at most 63, a letter or digit first.',
      )
    const validMs = number(request, 'validMs') || TOKEN_VALID_MS
    if (validMs > TOKEN_VALID_MS_MAX)
      throw new XsanError('INVALID_PARAM', `a token that is good for ${validMs} ms`, `Take at most ${TOKEN_VALID_MS_MAX} (30 days).`)
    // drawn from the request's id, so that a repeated request gives the same token
    const secret = toHex(hmac(new TextEncoder().encode(`${cluster.key} join token`), new TextEncoder().encode(call.requestId)))
    const expiresAtMs = env.clock.wallMs() + validMs
    const hash = hashSecret(hmac, cluster.uuid, secret)
    // once only: to add it again would make a used one good again
    if (!state.tokens.has(hash)) await coordinator.propose('token.add', { hash, nodeId, expiresAtMs, wallMs: env.clock.wallMs() }, call.requestId)
    const leaderFirst = [...state.nodes.values()].sort((a, b) => Number(b.node === context.self) - Number(a.node === context.self) || a.node - b.node)
    const addresses = leaderFirst.map((node) => node.grpc).filter((address) => address !== '')
    return {
      token: encodeToken({ clusterId: cluster.id, clusterUuid: cluster.uuid, addresses, secret }),
      expiresAtMs: state.tokens.get(hash)?.expiresAtMs ?? expiresAtMs,
    }
  }),

  Status: atLeader(async (context) => clusterStatus(context, await fresh(context))),

  Recover: atLeader(async (context, request) => {
    const coordinator = await fresh(context)
    const { slots, waitsFor, olderCopies } = missing(context, coordinator)
    const unfinished = coordinator.unfinishedCopies().map((node) => context.state.nodes.get(node)?.id ?? String(node))
    if (!flag(request, 'dryRun') && flag(request, 'asShown')) {
      refuseMore(waitsFor, request['waitsFor'], 'waited for, too')
      if (flag(request, 'acceptDataLoss')) refuseMore(olderCopies, request['olderCopies'], 'away as well, with older copies')
    }
    if (!flag(request, 'dryRun') && slots > 0) {
      context.env.log.log('WARN', 'the operator goes on without the missing nodes', {
        slots,
        without: waitsFor,
        acceptDataLoss: flag(request, 'acceptDataLoss'),
        ...(flag(request, 'acceptDataLoss') && olderCopies.length > 0 ? { olderCopies } : {}),
      })
      coordinator.recover({ loss: flag(request, 'acceptDataLoss') })
    }
    return { slots, slotsTotal: context.state.chains.length, waitsFor, olderCopies, unfinished, volumes: slots === 0 ? [] : volumesIn(context, coordinator) }
  }),

  RemoveNode: atLeader(async (context, request, call) => {
    const { state } = context
    const coordinator = await fresh(context)
    const nodeId = text(request, 'nodeId')
    const node = state.nodeById(nodeId)
    // asked again after its answer was lost: what was asked for is so
    if (node === undefined && !flag(request, 'cancel') && state.wasRemovedById(nodeId)) return { nodeId, chains: 0, removed: true }
    if (node === undefined) throw new XsanError('NODE_NOT_FOUND', `there is no node ${nodeId}`, 'See `xsan node list`.')
    const args = { node: node.node, ...(flag(request, 'force') ? {} : { copies: replicaCount(state) }) }
    const chains = state.chains.filter(({ entries }) => entries.some((entry) => entry.node === node.node)).length
    if (flag(request, 'cancel')) {
      if (!flag(request, 'dryRun')) await coordinator.propose('node.stay', { node: node.node }, call.requestId)
      return { nodeId, chains }
    }
    if (flag(request, 'dryRun')) tryOut(state, 'node.leave', args)
    else await coordinator.propose('node.leave', args, call.requestId)
    return { nodeId, chains }
  }),
}

/** What the operator agrees to is what he was shown, and no more. */
function refuseMore(now: readonly string[], shown: unknown, how: string): void {
  const more = now.filter((name) => !Array.isArray(shown) || !shown.includes(name))
  if (more.length === 0) return
  const what = `by now ${more.join(', ')} ${more.length === 1 ? 'is' : 'are'} ${how}`
  throw new XsanError('BUSY', `${what}: nothing was done`, 'Look again: xsan cluster recover --dry-run')
}

/** Nodes, and disks of nodes that are there. */
interface Missing {
  /** Slots without a serving replica. */
  readonly slots: number
  /** Have the last copies of them. */
  readonly waitsFor: string[]
  /** Have older copies, where no last one is there: what they hold counts for nothing if the loss is accepted without them. */
  readonly olderCopies: string[]
}

function missing({ state }: ServiceContext, coordinator: Coordinator): Missing {
  const last = new Set<DiskNumber>()
  const older = new Set<DiskNumber>()
  const isLast = (entry: ChainEntry) => entry.state <= ReplicaState.LASTSRV
  let slots = 0
  for (const { entries } of state.chains) {
    if (isServed(entries, coordinator)) continue
    slots++
    const isLastThere = entries.some((entry) => isLast(entry) && coordinator.isThere(entry))
    for (const entry of entries) {
      if (coordinator.isThere(entry)) continue
      if (isLast(entry)) last.add(entry.disk)
      else if (!isLastThere) older.add(entry.disk)
    }
  }
  const of = (disk: DiskNumber) => state.disks.get(disk)?.node ?? (0 as NodeNumber)
  const nameOf = (disk: DiskNumber) => {
    const node = state.nodes.get(of(disk))?.id ?? String(of(disk))
    return coordinator.view.view(of(disk)) === View.UP ? `${node} (disk ${state.disks.get(disk)!.path})` : node
  }
  const namesOf = (disks: ReadonlySet<DiskNumber>) => [...new Set([...disks].sort((a, b) => of(a) - of(b) || a - b).map(nameOf))]
  return { slots, waitsFor: namesOf(last), olderCopies: namesOf(older) }
}

function isServed(entries: ClusterState['chains'][number]['entries'], coordinator: Coordinator): boolean {
  return entries.some((entry) => entry.state === ReplicaState.SERVING && coordinator.view.view(entry.node) !== View.DOWN)
}

/** Blocks of a volume that are looked at, spread over it, before their number is estimated. */
const LOOKED_AT_MAX = 65_536

/** What of each volume lies in slots that cannot be used; whether anything was written there, only the missing copies know. */
function volumesIn({ state }: ServiceContext, coordinator: Coordinator): Message[] {
  const { slotCount } = state.theCluster
  const unserved = state.chains.map(({ entries }) => !isServed(entries, coordinator))
  return [...state.volumes.values()]
    .sort((a, b) => a.volume - b.volume)
    .map(({ volume, name, sizeBytes }) => {
      const blocks = Math.ceil(sizeBytes / BLOCK_BYTES)
      const step = Math.max(1, Math.ceil(blocks / LOOKED_AT_MAX))
      let missing = 0
      for (let index = 0; index < blocks; index += step) if (unserved[slotOf(volume, index, slotCount)]) missing += Math.min(step, blocks - index)
      return { id: volume, name, blocks, blocksMissing: missing }
    })
    .filter(({ blocksMissing }) => blocksMissing > 0)
}

/** The leader's answer; without one see leaderless.ts. */
function clusterStatus(context: ServiceContext, coordinator: Coordinator): Message {
  const { state, raft } = context
  const cluster = state.cluster
  const reports = [...reportsOf(context, coordinator).values()]
  const { health, reasons, chains } = healthOf({
    state,
    view: (node) => coordinator.view.view(node),
    planned: coordinator.planned,
    lostPages: lostPagesOf(reports, state),
    fullDisks: fullDisksOf(reports),
    apart: coordinator.apart(),
    voters: raft.members.voters,
    downMs(node) {
      const since = coordinator.leaseOf(node).downSinceMs
      return since === undefined ? undefined : context.env.clock.nowMs() - since
    },
  })
  const nodes = nodeStatuses(context, coordinator)
  const resync = { blocksLeft: 0, bytesMoved: 0, bytesNeeded: 0, slotsLeft: 0 }
  for (const { stats: of } of reports) {
    resync.blocksLeft += of.resync.blocksLeft
    resync.bytesMoved += of.resync.bytesMoved
    resync.bytesNeeded += of.resync.bytesNeeded
  }
  for (const chain of state.chains) for (const entry of chain.entries) if (entry.state === ReplicaState.SYNCING) resync.slotsLeft++
  return {
    clusterId: cluster?.id ?? '',
    clusterUuid: cluster?.uuid ?? '',
    health,
    reasons,
    leader: state.nodes.get(raft.leader)?.id ?? '',
    term: raft.term,
    appliedIndex: raft.applied,
    tableRevision: state.revision,
    nodes,
    resync,
    chains,
    capacityBytes: nodes.reduce((sum, node) => sum + node.capacityBytes, 0),
    usedBytes: nodes.reduce((sum, node) => sum + node.usedBytes, 0),
    volumes: state.volumes.size,
    featureLevel: state.featureLevel,
  }
}

interface NodeNumbers {
  capacityBytes: number
  usedBytes: number
}

/** What does not change from moment to moment; also known without a leader. */
export function nodeFacts({ state, raft }: Pick<ServiceContext, 'state' | 'raft'>, node: NodeRecord): Message & Pick<NodeNumbers, 'capacityBytes'> {
  const { voters, learners } = raft.members
  const disks = [...state.disks.values()].filter((disk) => disk.node === node.node && disk.role === 'capacity' && !isTakenOut(disk))
  const { id, incarnation, grpc, data, nbd, nbdSocket, admin, version, zone, rack, dataDir } = node
  return {
    ...{ id, number: node.node, incarnation, grpc, data, nbd, nbdSocket, admin, version, zone, rack, dataDir },
    raftRole: voters.includes(node.node) ? 'voter' : learners.includes(node.node) ? 'learner' : 'none',
    leader: raft.leader === node.node,
    disks: disks.length,
    capacityBytes: disks.reduce((sum, disk) => sum + (disk.state === 'failed' ? 0 : disk.capacityBytes), 0),
  }
}

/** Chains in which a node takes part, and how. */
export interface ChainCounts {
  headed: number
  serving: number
  syncing: number
}

/** Adds an entry of the node, the one at `position` of its chain. */
export function countEntry(counts: ChainCounts, state: ReplicaState, position: number): void {
  if (position === 0 && state <= ReplicaState.DRAINING) counts.headed++
  if (state === ReplicaState.SERVING) counts.serving++
  else if (state === ReplicaState.SYNCING) counts.syncing++
}

export function nodeStatuses(context: ServiceContext, coordinator: Coordinator): Array<Message & NodeNumbers> {
  const { state, stats, env } = context
  const nowMs = env.clock.nowMs()
  const counts = new Map<NodeNumber, ChainCounts>()
  for (const node of state.nodes.keys()) counts.set(node, { headed: 0, serving: 0, syncing: 0 })
  for (const { entries } of state.chains) {
    entries.forEach((entry, i) => {
      const count = counts.get(entry.node)
      if (count !== undefined) countEntry(count, entry.state, i)
    })
  }
  return [...state.nodes.values()]
    .sort((a, b) => a.node - b.node)
    .map((node) => {
      const lease = coordinator.leaseOf(node.node)
      const heard = context.heartbeats()?.heard.get(node.node)
      const reported = stats.get(node.node)?.stats
      const load = node.node === context.self ? context.heartbeats()?.own : heard
      const seenMs = Math.max(lease.seenMs, heard?.atMs ?? 0)
      const count = counts.get(node.node)!
      const isHeard = heard?.incarnation === node.incarnation && nowMs - heard.atMs < HEARD_MS && heard.atMs > (lease.downSinceMs ?? 0) + BEAT_LATE_MS
      return {
        ...nodeFacts(context, node),
        state: nodeState(node, coordinator, isHeard),
        leaseMs: lease.leaseMs,
        seenMsAgo: seenMs === 0 ? 0 : Math.max(0, Math.round(nowMs - seenMs)),
        usedBytes: (reported?.disks ?? []).reduce((sum, disk) => sum + disk.usedBytes, 0),
        chainsHeaded: count.headed,
        chainsServing: count.serving,
        chainsSyncing: count.syncing,
        opsPerSecond: load?.opsPerSecond ?? 0,
        bytesPerSecond: load?.bytesPerSecond ?? 0,
        queueDepth: load?.queueDepth ?? 0,
      }
    })
}

function nodeState(node: NodeRecord, coordinator: Coordinator, heard: boolean): string {
  if (node.incarnation === 0) return 'starting'
  const { view, leaseMs } = coordinator.leaseOf(node.node)
  if (view === View.DOWN) return heard ? 'starting' : 'down'
  if (view === View.MAYBE && leaseMs === 0) return 'unknown'
  return node.state === 'leaving' ? 'draining' : 'ready'
}
