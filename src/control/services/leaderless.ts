/**
 * `cluster status` while no leader answers: what the node asked finds out by itself, now. It asks every node that it knows how it stands, and tells who
 * answers, whom those follow and hear, who is missing, and what to do next. Of chains, copies and space only a leader knows the present state, and the last
 * that this node has heard of them may be long past: they are said to be unknown, never shown as if they were current.
 */
import { messageOf } from '../../base/errors.ts'
import type { NodeNumber } from '../../base/ids.ts'
import type { Message } from '../../env/control.ts'
import type { ResyncStats } from '../../placement/messages.ts'
import type { NodeAgent } from '../node-agent.ts'
import type { ClusterState, NodeRecord } from '../state.ts'
import { type ChainCounts, countEntry, HEARD_MS, nodeFacts } from './cluster.ts'
import type { ServiceContext } from './service.ts'

/** What a node says of itself, without anybody else. JSON. */
export interface Standing {
  /** Whom it follows in Raft; 0: nobody. */
  readonly leader: NodeNumber
  readonly term: number
  /** Its process is registered and its data plane has its table. */
  readonly ready: boolean
  /** Left of its lease: it serves so long. */
  readonly leaseMs: number
  /** Whose heartbeats it receives. */
  readonly hears: readonly NodeNumber[]
  readonly chains: Readonly<ChainCounts>
  readonly usedBytes: number
  readonly resync: Pick<ResyncStats, 'blocksLeft' | 'bytesMoved' | 'bytesNeeded'>
}

export function standingOf({ state, self, raft, heartbeats, env }: Omit<ServiceContext, 'ask'>, agent: NodeAgent | undefined): Standing {
  const leaseMs = Math.round(agent?.leaseMs ?? 0)
  const nowMs = env.clock.nowMs()
  const { resync, disks } = agent?.stats ?? {}
  return {
    leader: raft.leader,
    term: raft.term,
    ready: agent?.tableApplied ?? false,
    leaseMs,
    hears: [...(heartbeats()?.heard ?? [])].filter(([, { atMs }]) => nowMs - atMs < HEARD_MS).map(([node]) => node),
    chains: leaseMs > 0 ? servedBy(state, self) : { headed: 0, serving: 0, syncing: 0 },
    usedBytes: (disks ?? []).reduce((sum, disk) => sum + disk.usedBytes, 0),
    resync: { blocksLeft: resync?.blocksLeft ?? 0, bytesMoved: resync?.bytesMoved ?? 0, bytesNeeded: resync?.bytesNeeded ?? 0 },
  }
}

/** By the table that the node holds a lease for. */
function servedBy(state: ClusterState, node: NodeNumber): ChainCounts {
  const counts = { headed: 0, serving: 0, syncing: 0 }
  for (const { entries } of state.chains) {
    entries.forEach((entry, at) => {
      if (entry.node === node && entry.incarnation === state.incarnation(node)) countEntry(counts, entry.state, at)
    })
  }
  return counts
}

interface Asked {
  readonly node: NodeRecord
  readonly standing: Standing | undefined
  /** Why there is no answer. */
  readonly why: string
}

export async function leaderlessStatus(context: ServiceContext, timeoutMs: number): Promise<Message> {
  const { state, raft } = context
  const nodes = [...state.nodes.values()].sort((a, b) => a.node - b.node)
  const asked = await Promise.all(nodes.map((node) => askStanding(context, node, timeoutMs)))
  const rows = asked.map((of) => nodeRow(context, of))
  const answers = asked.flatMap(({ standing }) => (standing === undefined ? [] : [standing]))
  const sum = (of: (standing: Standing) => number) => answers.reduce((total, standing) => total + of(standing), 0)
  return {
    clusterId: state.cluster?.id ?? '',
    clusterUuid: state.cluster?.uuid ?? '',
    leaderless: true,
    health: 'unavailable',
    reasons: leaderlessReasons(context, asked),
    leader: '',
    term: raft.term,
    appliedIndex: raft.applied,
    tableRevision: state.revision,
    nodes: rows,
    resync: {
      blocksLeft: sum(({ resync }) => resync.blocksLeft),
      bytesMoved: sum(({ resync }) => resync.bytesMoved),
      bytesNeeded: sum(({ resync }) => resync.bytesNeeded),
      slotsLeft: sum(({ chains }) => chains.syncing),
    },
    chains: { total: state.chains.length, full: 0, degraded: 0, unavailable: 0, unknown: state.chains.length },
    capacityBytes: rows.reduce((total, { capacityBytes }) => total + capacityBytes, 0),
    usedBytes: sum(({ usedBytes }) => usedBytes),
    volumes: state.volumes.size,
    featureLevel: state.featureLevel,
  }
}

async function askStanding({ ask }: ServiceContext, node: NodeRecord, timeoutMs: number): Promise<Asked> {
  try {
    return { node, standing: (await ask(node.node, { kind: 'standing' }, timeoutMs)) as Standing, why: '' }
  } catch (error) {
    return { node, standing: undefined, why: messageOf(error) }
  }
}

function nodeRow(context: ServiceContext, { node, standing, why }: Asked): ReturnType<typeof nodeFacts> {
  const { state, self, env, heartbeats } = context
  const beats = heartbeats()
  const heard = beats?.heard.get(node.node)
  const heardMsAgo = heard === undefined ? undefined : Math.round(env.clock.nowMs() - heard.atMs)
  const load = node.node === self ? beats?.own : heardMsAgo !== undefined && heardMsAgo < HEARD_MS ? heard : undefined
  const common = {
    ...nodeFacts(context, node),
    leader: false,
    seenMsAgo: standing === undefined ? (heardMsAgo ?? 0) : 0,
    opsPerSecond: load?.opsPerSecond ?? 0,
    bytesPerSecond: load?.bytesPerSecond ?? 0,
    queueDepth: load?.queueDepth ?? 0,
  }
  if (standing === undefined) {
    const beat = heardMsAgo === undefined ? 'no heartbeat of it was received' : `its last heartbeat came ${seconds(heardMsAgo)} ago`
    return { ...common, state: 'unknown', leaseMs: 0, detail: `does not answer (${why}); ${beat}` }
  }
  const names = (of: readonly NodeNumber[]) => of.map((other) => nameOf(state, other)).join(', ')
  const others = standing.hears.filter((other) => other !== node.node && state.nodes.has(other)).sort((a, b) => a - b)
  const detail = [
    'answers',
    standing.leader === 0 ? 'knows no leader' : `follows ${nameOf(state, standing.leader)}`,
    others.length === 0 ? 'hears no other node' : `hears ${names(others)}`,
    standing.leaseMs > 0 ? `serves for ${seconds(standing.leaseMs)} more` : 'has no lease and serves nothing',
  ]
  return {
    ...common,
    state: standing.leaseMs > 0 ? 'ready' : standing.ready ? 'waiting' : 'starting',
    leaseMs: standing.leaseMs,
    usedBytes: standing.usedBytes,
    chainsHeaded: standing.chains.headed,
    chainsServing: standing.chains.serving,
    chainsSyncing: standing.chains.syncing,
    detail: detail.join('; '),
  }
}

/** Who is missing, what that means, what to do: sentences. */
function leaderlessReasons({ state, raft, self }: ServiceContext, asked: readonly Asked[]): string[] {
  const reasons: string[] = []
  const { voters, votersOutgoing } = raft.members
  const names = (nodes: readonly NodeNumber[]) => nodes.map((node) => nameOf(state, node)).join(', ')
  const silent = asked.filter(({ standing }) => standing === undefined)
  const answering = asked.filter(({ standing }) => standing !== undefined)
  const answers = new Set(answering.map(({ node }) => node.node))
  // of both sets, while one replaces the other
  const short = [voters, votersOutgoing].filter((set) => set.filter((node) => answers.has(node)).length * 2 <= set.length && set.length > 0)
  const led = answering.find(({ node, standing }) => standing!.leader !== 0 && node.node !== self && standing!.leader !== self)
  if (voters.length === 0) reasons.push('No leader: this node has not heard yet who is in the cluster.')
  for (const set of short) {
    const most = Math.floor(set.length / 2) + 1
    const there = set.filter((node) => answers.has(node))
    const missing = set.filter((node) => !answers.has(node))
    const who = there.length === 0 ? 'none answers' : `only ${names(there)} ${there.length === 1 ? 'answers' : 'answer'}`
    const count = most - there.length
    const start = missing.length === count ? names(missing) : `${count} of ${names(missing)}`
    reasons.push(
      set.length === 1
        ? `No leader: ${names(set)} alone votes, and does not answer. Start ${names(set)}, or mend its network.`
        : `No leader: ${most} of the ${set.length} voters (${names(set)}) have to run and reach each other; ${who}. Start ${start}, or mend the network to ${missing.length === 1 ? 'it' : 'them'}.`,
    )
  }
  if (led !== undefined) {
    const leader = state.nodes.get(led.standing!.leader)
    const there = leader === undefined ? '' : `: ask it with --server ${leader.grpc}, and mend the network between ${nameOf(state, self)} and it`
    reasons.push(`Node ${led.node.id} follows ${nameOf(state, led.standing!.leader)} as leader, which does not answer ${nameOf(state, self)}${there}.`)
  } else if (short.length === 0 && voters.length > 0) {
    reasons.push('No leader although enough voters answer: one is being elected. If this stays, they do not reach the control ports of each other.')
  }
  for (const { node, why } of silent) reasons.push(`Node ${node.id} does not answer: ${why}${/[.!?]$/.test(why) ? '' : '.'}`)
  for (const { node, standing } of answering) {
    const deaf = answering.filter((other) => other.node !== node && !standing!.hears.includes(other.node.node) && standing!.ready && other.standing!.ready)
    if (deaf.length > 0) reasons.push(`Node ${node.id} receives no heartbeats of ${deaf.map((other) => other.node.id).join(', ')}.`)
  }
  const serving = answering.filter(({ standing }) => standing!.leaseMs > 0)
  const paused = answering.filter(({ standing }) => standing!.leaseMs === 0)
  if (serving.length > 0) reasons.push(`Until their leases end, in seconds, these serve on: ${serving.map(({ node }) => node.id).join(', ')}.`)
  if (paused.length > 0) reasons.push(`Without a lease, and so without service until there is a leader: ${paused.map(({ node }) => node.id).join(', ')}.`)
  return reasons
}

const nameOf = (state: ClusterState, node: NodeNumber) => state.nodes.get(node)?.id ?? `node ${node}`
const seconds = (ms: number) => (ms < 10_000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 1000)} s`)
