/** The verdict of `cluster status`: computed from what is known, never a stored flag; each reason a sentence. */
import type { DiskNumber, NodeNumber, SlotIndex, VolumeNumber } from '../base/ids.ts'
import { BLOCK_BYTES, PAGE_BYTES } from '../base/units.ts'
import { isMember, ReplicaState } from '../placement/chain.ts'
import type { DiskStats, LostPage, ResyncStats } from '../placement/messages.ts'
import { View } from '../placement/view.ts'
import { votersWanted } from './members.ts'
import { DISK_GONE } from './ops/node-register.ts'
import { replicaCount } from './settings.ts'
import type { ClusterState } from './state.ts'

/** Pages whose content is on no replica, as the nodes that serve them have found. */
export interface LostPages {
  readonly count: number
  /** Some of them; nothing when there are none. */
  readonly named: ReadonlyArray<{ readonly volume: number; readonly index: number; readonly page: number }>
}

export interface HealthInput {
  readonly state: ClusterState
  /** UP: holds a lease, as far as is known. */
  readonly view: (node: NodeNumber) => View
  /** Slots that lack a replica for a moment by plan. */
  readonly planned: ReadonlySet<SlotIndex>
  /** For how long a node has been DOWN, if that is known. */
  readonly downMs?: (node: NodeNumber) => number | undefined
  readonly lostPages?: LostPages
  /** Disks that take no new blocks, as their nodes say, and why. */
  readonly fullDisks?: ReadonlyMap<DiskNumber, string>
  /** Who votes in Raft, as the leader has applied it. */
  readonly voters?: readonly NodeNumber[]
  /** Pairs of nodes that live and do not reach the data ports of each other. */
  readonly apart?: ReadonlyArray<readonly [NodeNumber, NodeNumber]>
}

export interface ChainCounts {
  readonly total: number
  readonly full: number
  readonly degraded: number
  readonly unavailable: number
}

export interface Health {
  readonly health: 'safe' | 'at-risk' | 'unavailable'
  readonly reasons: string[]
  readonly chains: ChainCounts
}

const LOST_NAMED = 8

const plural = (count: number, one: string, many: string) => `${count} ${count === 1 ? one : many}`

export function healthOf({ state, view, planned, downMs, lostPages, fullDisks, apart, voters }: HealthInput): Health {
  const reasons: string[] = []
  const wanted = replicaCount(state)
  let full = 0
  let degraded = 0
  let unavailable = 0
  let lost = 0
  state.chains.forEach((chain, slot) => {
    const serving = chain.entries.filter(
      (entry) => entry.state === ReplicaState.SERVING && view(entry.node) !== View.DOWN && entry.incarnation === state.incarnation(entry.node),
    )
    if (serving.length === 0) {
      unavailable++
      if (!chain.entries.some((entry) => isMember(entry.state))) lost++
    } else if (serving.length >= wanted || (planned.has(slot as SlotIndex) && serving.length >= wanted - 1)) full++
    else degraded++
  })
  const chains = { total: state.chains.length, full, degraded, unavailable }
  const nodes = [...state.nodes.values()].sort((a, b) => a.node - b.node)
  if (chains.total === 0) reasons.push('No disk serves yet.')
  if (unavailable > 0) {
    const why = lost > 0 ? 'all copies went down together; the nodes that held them last are waited for' : 'no node with a copy serves now'
    reasons.push(`${plural(unavailable, 'part', 'parts')} of ${chains.total} of the data cannot be used: ${why}.`)
  }
  for (const node of nodes) {
    if (node.incarnation === 0 || view(node.node) !== View.DOWN) continue
    const ms = downMs?.(node.node)
    reasons.push(`Node ${node.id} is down${ms === undefined ? '' : `, for ${Math.round(ms / 1000)} s now`}.`)
  }
  for (const [a, b] of apart ?? []) {
    const [one, other] = [a, b].map((node) => state.nodes.get(node)?.id ?? String(node))
    reasons.push(`Nodes ${one} and ${other} do not reach the data ports of each other; clients of each cannot write to parts that the other heads.`)
  }
  if (voters !== undefined) reasons.push(...voterReasons(state, voters))
  for (const node of nodes) if (node.state === 'leaving') reasons.push(`Node ${node.id} is being emptied, to be removed.`)
  const named = new Set(state.chains.flatMap((chain) => chain.entries.map((entry) => entry.disk)))
  // one that was taken out matters until its copies are elsewhere
  const failed = [...state.disks.values()]
    .filter((disk) => disk.state === 'failed' && (disk.reason !== DISK_GONE || named.has(disk.disk)))
    .sort((a, b) => a.disk - b.disk)
  for (const disk of failed) reasons.push(`Disk ${disk.path} of ${state.nodes.get(disk.node)?.id ?? disk.node} failed: ${disk.reason}.`)
  for (const [number, why] of [...(fullDisks ?? [])].sort(([a], [b]) => a - b)) {
    const disk = state.disks.get(number)
    if (disk === undefined || disk.state === 'failed' || view(disk.node) === View.DOWN) continue
    reasons.push(`Disk ${disk.path} of ${state.nodes.get(disk.node)?.id ?? disk.node} takes no new blocks: ${why}.`)
  }
  const withDisks = state.nodesWithDisks().size
  if (chains.total > 0 && withDisks < wanted)
    reasons.push(`${plural(wanted, 'copy is', 'copies are')} wanted, only ${plural(withDisks, 'node has', 'nodes have')} disks.`)
  if (degraded > 0)
    reasons.push(
      `${plural(degraded, 'part', 'parts')} of ${chains.total} of the data ${degraded === 1 ? 'has' : 'have'} fewer than ${plural(wanted, 'copy', 'copies')}.`,
    )
  const health = chains.total === 0 || unavailable > 0 ? 'unavailable' : reasons.length > 0 ? 'at-risk' : 'safe'
  return withLostPages({ health, reasons, chains }, state, lostPages)
}

/** The same verdict where pages are lost besides; of one volume, say. */
export function withLostPages(of: Health, state: ClusterState, lostPages: LostPages | undefined): Health {
  if (lostPages === undefined || lostPages.count === 0) return of
  return { ...of, health: of.health === 'unavailable' ? of.health : 'at-risk', reasons: [...of.reasons, lostReason(state, lostPages)] }
}

/** Nodes that have joined vote a moment later; and a vote may be free for as long as nobody is there to have it. */
function voterReasons(state: ClusterState, voters: readonly NodeNumber[]): string[] {
  const members = [...state.nodes.values()].filter((node) => node.incarnation > 0 && node.state === 'member')
  if (members.length === 0) return []
  const wanted = votersWanted(members.length)
  const voting = voters.filter((node) => members.some((of) => of.node === node))
  const names = voting.map((node) => state.nodes.get(node)?.id).join(', ')
  if (members.length === 2 && voters.length === 1)
    return [`Of two nodes one alone votes (${names}): its loss stops changes and, a lease later, all I/O. A third node, which needs no disks, prevents that.`]
  if (voting.length >= wanted) return []
  const losses = Math.ceil(voting.length / 2)
  return [
    `${voting.length} of ${wanted} nodes that should vote ${voting.length === 1 ? 'does' : 'do'} (${names}): the loss of ${losses === 1 ? 'one' : losses} of them stops changes and, a lease later, all I/O.`,
  ]
}

function lostReason(state: ClusterState, { count, named }: LostPages): string {
  const places = named.flatMap(({ volume, index, page }) => {
    const record = state.volumes.get(volume as VolumeNumber)
    return record === undefined ? [] : [`${record.name} at ${index * BLOCK_BYTES + page * PAGE_BYTES}`]
  })
  const more = count > places.length ? ', and more' : ''
  const what = count === 1 ? 'page of 4 KiB is lost, no copy holds it' : 'pages of 4 KiB are lost, no copy holds them'
  return `${count} ${what}: volume ${places.join(', ')}${more}. Reads fail there until it is written anew.`
}

type Reported<T> = Iterable<{ readonly stats: T }>

export function fullDisksOf(stats: Reported<{ readonly disks: readonly DiskStats[] }>): Map<DiskNumber, string> {
  const full = new Map<DiskNumber, string>()
  for (const { stats: of } of stats) for (const { disk, rejectCreate, rejectReason } of of.disks) if (rejectCreate) full.set(disk, rejectReason || 'it is full')
  return full
}

/** What the nodes say together, of all volumes or one: copies of one page are one loss. */
export function lostPagesOf(
  stats: Reported<{ readonly resync: Partial<Pick<ResyncStats, 'lostPages' | 'lost'>> }>,
  state: ClusterState,
  volume?: number,
): LostPages {
  const named = new Map<string, LostPage>()
  let most = 0
  for (const { stats: of } of stats) {
    const lost = (of.resync.lost ?? []).filter((page) => state.volumes.has(page.volume as VolumeNumber) && (volume === undefined || page.volume === volume))
    for (const page of lost) named.set(`${page.volume}:${page.index}:${page.page}`, page)
    if (lost.length > 0 && volume === undefined) most = Math.max(most, of.resync.lostPages ?? 0)
  }
  const inOrder = [...named.values()].sort((a, b) => a.volume - b.volume || a.index - b.index || a.page - b.page)
  return { count: Math.max(most, inOrder.length), named: inOrder.slice(0, LOST_NAMED) }
}
