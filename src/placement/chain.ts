/**
 * The chain of one slot: its version and its ordered replicas, and the one pure function that changes it.
 *
 *   position   0 .................................................................... n-1
 *              SERVING and DRAINING, in their places | SYNCING | LASTSRV | WAITING | OFFLINE
 *              ^ head: orders writes      last of them ^ tail, or source of the SYNCING one
 *
 * A step (`nextChain`) applies one row of {@link TRANSITIONS} and raises the version by 1. `settle` repeats it until no row applies.
 * Rules: protocol.md 2, 3 and 26 to 32. Printed for people by tools/print-transitions.ts.
 *
 * Invariants (`invalidChain`, asserted at every step): the order above; at most one DRAINING and one SYNCING; a SYNCING or DRAINING entry
 * only beside a SERVING one; LASTSRV exists -> no SERVING exists; versions only rise, by 1; an entry of an older process leaves
 * SERVING, DRAINING and SYNCING only through OFFLINE or LASTSRV.
 */
import { assert } from '../base/assert.ts'
import type { ChainVersion, DiskNumber, Incarnation, NodeNumber, SlotIndex } from '../base/ids.ts'
import { type NodeViews, View } from './view.ts'

/** The numbers are the order within a chain, except that DRAINING keeps its place among the SERVING. Stored and sent: never renumber. */
export const ReplicaState = {
  /** Reads and writes. */
  SERVING: 0,
  /** Stages, forwards, acknowledges and commits in its place; orders nothing, answers nothing. */
  DRAINING: 1,
  /** Receives and acknowledges every write while it catches up. */
  SYNCING: 2,
  /** Was among the last that served: one of them holds everything. */
  LASTSRV: 3,
  /** Alive, waits for its turn to resync. */
  WAITING: 4,
  OFFLINE: 5,
} as const
export type ReplicaState = (typeof ReplicaState)[keyof typeof ReplicaState]
export type ReplicaStateName = keyof typeof ReplicaState
export const REPLICA_STATE_NAMES = ['SERVING', 'DRAINING', 'SYNCING', 'LASTSRV', 'WAITING', 'OFFLINE'] as const satisfies readonly ReplicaStateName[]

const { SERVING, DRAINING, SYNCING, LASTSRV, WAITING, OFFLINE } = ReplicaState

/** One replica of the slot: the slot's share of one disk. */
export interface ChainEntry {
  readonly disk: DiskNumber
  readonly node: NodeNumber
  readonly state: ReplicaState
  /** The chain version at which it entered this state (SERVING <-> DRAINING does not change it). */
  readonly since: ChainVersion
  /** The node's registered incarnation at that moment. */
  readonly incarnation: Incarnation
}

/** Never mutated: a step makes a new one. */
export interface Chain {
  readonly version: ChainVersion
  readonly entries: readonly ChainEntry[]
}

export const CHAIN_ENTRIES_MAX = 16
/** Copies that may be asked for: with one that comes and one that goes, the places in the write path that records have credit for (HOPS of src/chain/credits.ts). */
export const REPLICAS_MAX = 6
/** Chain versions have 24 bits in an update's id. */
export const CHAIN_VERSION_MAX = 0xff_ffff

/** What the cluster wants of a disk (replicated state). */
export const DiskUse = {
  NORMAL: 0,
  /** Being emptied: no replica on it starts (again); those that serve go on until they are drained one by one. */
  LEAVING: 1,
  /** Its node has stopped serving every replica on it, and reported it afterwards. */
  FAILED: 2,
} as const
export type DiskUse = (typeof DiskUse)[keyof typeof DiskUse]

/** The id of a replica's last staged update, reported while it is LASTSRV (or WAITING, before data loss is accepted). */
export interface LastId {
  readonly disk: DiskNumber
  /** Of the process that reports: the registered one, or the report is void. */
  readonly incarnation: Incarnation
  /** The chain version that process had applied for the slot: the replica has staged nothing since. */
  readonly version: ChainVersion
  /** The u64 id as two unsigned halves. */
  readonly hi: number
  readonly lo: number
  /** Its host lost power since it served: of equal ids another is preferred. */
  readonly powerLost?: boolean
  /** A resync of it began and did not end: the id says how far its source had come, and its blocks are of different times. Any other is preferred. */
  readonly incomplete?: boolean
  /** Its disk has lost a part of a page table: which updates some pages have seen is known to other replicas only. Who served with it is preferred. */
  readonly damaged?: boolean
}

/** How the bits of a LastId travel. Stored and sent: never renumber. */
export const LastIdFlag = { LOST_POWER: 1, INCOMPLETE: 2, DAMAGED: 4 } as const

/** What the coordinator knows when it considers a step. Every fact but `views` may be absent. Facts that fit no row change nothing. */
export interface ChainEvent {
  readonly views: NodeViews
  /** NORMAL when absent. */
  readonly diskUse?: ((disk: DiskNumber) => DiskUse) | undefined
  /** A SYNCING replica holds everything, durably (protocol 24, 31). */
  readonly upToDate?: { readonly disk: DiskNumber; readonly since: ChainVersion; readonly incarnation: Incarnation } | undefined
  readonly lastIds?: readonly LastId[] | undefined
  /** `recover.wait` is over, or the operator does not want to wait for the LASTSRV that are away. */
  readonly recoverWithoutAll?: boolean | undefined
  /** The operator gives up what only the lost LASTSRV replicas hold. */
  readonly acceptDataLoss?: boolean | undefined
  /** Take this replica out of service, while another serves. */
  readonly drain?: DiskNumber | undefined
  /** The DRAINING replica's process has applied the table that holds the chain in this version. */
  readonly drained?: { readonly disk: DiskNumber; readonly version: ChainVersion; readonly incarnation: Incarnation } | undefined
  /** Whether a replica that ends DRAINING leaves the chain for good. */
  readonly leave?: boolean | undefined
  /** A new replica: starts OFFLINE, comes by itself to SYNCING at the tail. */
  readonly add?: { readonly disk: DiskNumber; readonly node: NodeNumber } | undefined
  /** Take a replica that does not serve out of the chain. */
  readonly remove?: DiskNumber | undefined
  /** Nodes that live and do not reach each other. */
  readonly apart?: Apart | undefined
}

/** What keeps two neighbours of a chain from working together although both hold their leases. */
export interface Apart {
  has(a: NodeNumber, b: NodeNumber): boolean
  /** How many nodes it does not reach. */
  count(node: NodeNumber): number
}

/** Of pairs of nodes that do not reach each other. */
export function apartFromPairs(pairs: ReadonlyArray<readonly [NodeNumber, NodeNumber]>): Apart {
  const others = new Map<NodeNumber, Set<NodeNumber>>()
  for (const [a, b] of [...pairs, ...pairs.map(([a, b]) => [b, a] as const)]) {
    const of = others.get(a)
    if (of === undefined) others.set(a, new Set([b]))
    else of.add(b)
  }
  return { has: (a, b) => others.get(a)?.has(b) === true, count: (node) => others.get(node)?.size ?? 0 }
}

// ---- conditions -------------------------------------------------------------------------------------------------------

/** An entry that takes part in writes under an older process: no longer its node's own (protocol 3). */
function isRestarted(entry: ChainEntry, event: ChainEvent): boolean {
  return inWritePath(entry.state) && entry.incarnation !== event.views.incarnation(entry.node)
}

function isOffline(entry: ChainEntry, event: ChainEvent): boolean {
  return event.views.view(entry.node) === View.DOWN || isRestarted(entry, event)
}

function isFailed(entry: ChainEntry, event: ChainEvent): boolean {
  return event.diskUse?.(entry.disk) === DiskUse.FAILED
}

function isUp(entry: ChainEntry, event: ChainEvent): boolean {
  return event.views.view(entry.node) === View.UP && !isRestarted(entry, event) && !isFailed(entry, event)
}

function lastIdOf(chain: Chain, entry: ChainEntry, event: ChainEvent): LastId | undefined {
  return event.lastIds?.find(
    (id) => id.disk === entry.disk && id.incarnation === event.views.incarnation(entry.node) && id.version >= entry.since && id.version <= chain.version,
  )
}

/** It serves next to one it does not reach: who reaches fewer nodes goes, of equals the later in the chain. */
function isToYield(chain: Chain, entry: ChainEntry, { apart }: ChainEvent): boolean {
  if (apart === undefined) return false
  const members = chain.entries.filter((of) => isMember(of.state))
  const at = members.indexOf(entry)
  const [before, after] = [members[at - 1], members[at + 1]]
  return (
    (before !== undefined && apart.has(entry.node, before.node) && apart.count(entry.node) >= apart.count(before.node)) ||
    (after !== undefined && apart.has(entry.node, after.node) && apart.count(entry.node) > apart.count(after.node))
  )
}

/** A replica at the end of the chain hears of writes from the last that serves. */
function reachesSource(chain: Chain, entry: ChainEntry, { apart }: ChainEvent): boolean {
  const source = chain.entries.findLast((of) => isMember(of.state))
  return source === undefined || apart === undefined || !apart.has(entry.node, source.node)
}

/**
 * A copy of one time, however old; one of different times; none. Who served last is complete even when nothing was ever written; and every one of them
 * holds all that was acknowledged, so that of two the undamaged one loses least, whichever has the higher id.
 */
function worth(id: LastId, state: ReplicaState): number {
  if (id.incomplete === true) return 1
  if (state === LASTSRV) return id.damaged === true ? 2 : 3
  return id.hi !== 0 || id.lo !== 0 ? 2 : 0
}

/** Whether `a` is to be preferred to `b` as the one that serves again: the complete one, the undamaged one, the higher id; of equals the one whose host kept its power. */
function isBetter(a: LastId, b: LastId, state: ReplicaState): boolean {
  const [worthOfA, worthOfB] = [worth(a, state), worth(b, state)]
  if (worthOfA !== worthOfB) return worthOfA > worthOfB
  if (isHigher(a, b) || isHigher(b, a)) return isHigher(a, b)
  return !a.powerLost && !!b.powerLost
}

function isHigher(a: LastId, b: LastId): boolean {
  return a.hi !== b.hi ? a.hi > b.hi : a.lo > b.lo
}

/** `entry` is up and its id is known, and it is the best such entry of its state; the first of equals. */
function isBest(chain: Chain, entry: ChainEntry, event: ChainEvent): boolean {
  const own = isUp(entry, event) ? lastIdOf(chain, entry, event) : undefined
  if (own === undefined) return false
  let before = true
  for (const other of chain.entries) {
    if (other === entry) before = false
    else if (other.state === entry.state && isUp(other, event)) {
      const id = lastIdOf(chain, other, event)
      if (id !== undefined && (isBetter(id, own, entry.state) || (before && !isBetter(own, id, entry.state)))) return false
    }
  }
  return true
}

const has = (chain: Chain, state: ReplicaState) => chain.entries.some((entry) => entry.state === state)

type Condition = (chain: Chain, entry: ChainEntry, event: ChainEvent) => boolean

/** By the words the table is printed with. */
export const CONDITIONS = {
  offline: (_, entry, event) => isOffline(entry, event),
  'not offline': (_, entry, event) => !isOffline(entry, event),
  'offline, or its disk failed': (_, entry, event) => isOffline(entry, event) || isFailed(entry, event),
  'offline, or its disk failed, or it does not reach its source': (chain, entry, event) =>
    isOffline(entry, event) || isFailed(entry, event) || !reachesSource(chain, entry, event),
  'it reaches its source': (chain, entry, event) => reachesSource(chain, entry, event),
  'online, its disk not leaving or failed': (_, entry, event) => isUp(entry, event) && event.diskUse?.(entry.disk) !== DiskUse.LEAVING,
  // where nobody serves, a copy on a disk that is to be emptied may be the last one
  'online, its disk not failed, nor leaving while a SERVING exists': (chain, entry, event) =>
    isUp(entry, event) && (event.diskUse?.(entry.disk) !== DiskUse.LEAVING || !has(chain, SERVING)),
  'another SERVING is UP': (chain, entry, event) => chain.entries.some((other) => other !== entry && other.state === SERVING && isUp(other, event)),
  'all SERVING offline (or their disks failed)': (chain, _, event) =>
    chain.entries.every((other) => other.state !== SERVING || isOffline(other, event) || isFailed(other, event)),
  'the DRAINING one is UP': (chain, _, event) => chain.entries.some((other) => other.state === DRAINING && isUp(other, event)),
  'no DRAINING, or it is offline (or its disk failed)': (chain, _, event) =>
    chain.entries.every((other) => other.state !== DRAINING || isOffline(other, event) || isFailed(other, event)),
  'a SERVING exists': (chain) => has(chain, SERVING),
  'no SERVING': (chain) => !has(chain, SERVING),
  'no SYNCING': (chain) => !has(chain, SYNCING),
  'no DRAINING': (chain) => !has(chain, DRAINING),
  'all LASTSRV online with known ids, or (recover.wait is over, or the operator says so) offline (or their disks failed)': (chain, _, event) =>
    chain.entries.every(
      (other) =>
        other.state !== LASTSRV ||
        (isUp(other, event) && lastIdOf(chain, other, event) !== undefined) ||
        (event.recoverWithoutAll === true && (isOffline(other, event) || isFailed(other, event))),
    ),
  'all others WAITING online with known ids, or offline (or their disks failed)': (chain, _, event) =>
    chain.entries.every(
      (other) =>
        other.state === LASTSRV ||
        isOffline(other, event) ||
        isFailed(other, event) ||
        (other.state === WAITING && isUp(other, event) && lastIdOf(chain, other, event) !== undefined),
    ),
  'online, the best of those (complete, undamaged, then the highest id)': (chain, entry, event) => isBest(chain, entry, event),
  'the operator accepts data loss': (_, __, event) => event.acceptDataLoss === true,
  'all LASTSRV offline (or their disks failed)': (chain, _, event) =>
    chain.entries.every((other) => other.state !== LASTSRV || isOffline(other, event) || isFailed(other, event)),
  'valid up-to-date report': (_, entry, event) =>
    event.upToDate !== undefined &&
    event.upToDate.disk === entry.disk &&
    event.upToDate.since === entry.since &&
    event.upToDate.incarnation === entry.incarnation &&
    isUp(entry, event),
  'drain asked, or its disk failed, or it yields to a neighbour it does not reach': (chain, entry, event) =>
    event.drain === entry.disk || isFailed(entry, event) || isToYield(chain, entry, event),
  'its node confirmed the table, or it is offline': (chain, entry, event) =>
    isOffline(entry, event) ||
    (event.drained !== undefined &&
      event.drained.disk === entry.disk &&
      event.drained.version === chain.version &&
      event.drained.incarnation === entry.incarnation),
  'it stays in the chain': (_, __, event) => event.leave !== true,
  'it leaves the chain': (_, __, event) => event.leave === true,
  'removal asked': (_, entry, event) => event.remove === entry.disk,
  'addition asked, not in the chain': (chain, entry, event) =>
    event.remove !== entry.disk && chain.entries.length < CHAIN_ENTRIES_MAX && chain.entries.every((other) => other.disk !== entry.disk),
} as const satisfies Record<string, Condition>
export type ConditionName = keyof typeof CONDITIONS

// ---- the table --------------------------------------------------------------------------------------------------------

/** Where an entry goes; GONE: out of the chain. */
export const GONE = -1
type Target = ReplicaState | typeof GONE

export interface Transition {
  readonly name: string
  /** State of the entry looked at; GONE: the entry of `event.add`. */
  readonly from: Target
  /** All of them must hold. */
  readonly when: readonly ConditionName[]
  /** Where the entry goes. */
  readonly to: Target
  /** Where all *other* entries of a state go in the same step. */
  readonly others?: { readonly [S in ReplicaStateName]?: ReplicaState }
}

/** Protocol 30, in the order in which rows are tried; of several entries the first in the chain. */
export const TRANSITIONS = [
  { name: 'drop', from: SERVING, when: ['offline', 'another SERVING is UP'], to: OFFLINE },
  {
    name: 'rescue',
    from: DRAINING,
    when: ['all SERVING offline (or their disks failed)', 'the DRAINING one is UP'],
    to: SERVING,
    others: { SERVING: OFFLINE },
  },
  {
    name: 'lose',
    from: SERVING,
    when: ['all SERVING offline (or their disks failed)', 'no DRAINING, or it is offline (or its disk failed)'],
    to: LASTSRV,
    others: { SERVING: LASTSRV, DRAINING: LASTSRV, SYNCING: WAITING },
  },
  {
    name: 'recover',
    from: LASTSRV,
    when: [
      'no SERVING',
      'all LASTSRV online with known ids, or (recover.wait is over, or the operator says so) offline (or their disks failed)',
      'online, the best of those (complete, undamaged, then the highest id)',
    ],
    to: SERVING,
    others: { LASTSRV: WAITING },
  },
  {
    name: 'accept loss',
    from: WAITING,
    when: [
      'no SERVING',
      'the operator accepts data loss',
      'all LASTSRV offline (or their disks failed)',
      'all others WAITING online with known ids, or offline (or their disks failed)',
      'online, the best of those (complete, undamaged, then the highest id)',
    ],
    to: SERVING,
    others: { LASTSRV: OFFLINE },
  },
  { name: 'stop syncing', from: SYNCING, when: ['offline, or its disk failed, or it does not reach its source'], to: OFFLINE },
  { name: 'stop waiting', from: WAITING, when: ['offline, or its disk failed'], to: OFFLINE },
  { name: 'up to date', from: SYNCING, when: ['valid up-to-date report'], to: SERVING },
  {
    name: 'drain',
    from: SERVING,
    when: ['drain asked, or its disk failed, or it yields to a neighbour it does not reach', 'no DRAINING', 'another SERVING is UP', 'not offline'],
    to: DRAINING,
  },
  {
    name: 'drained',
    from: DRAINING,
    when: ['its node confirmed the table, or it is offline', 'another SERVING is UP', 'it stays in the chain'],
    to: OFFLINE,
  },
  {
    name: 'drained, leaves',
    from: DRAINING,
    when: ['its node confirmed the table, or it is offline', 'another SERVING is UP', 'it leaves the chain'],
    to: GONE,
  },
  { name: 'remove syncing', from: SYNCING, when: ['removal asked'], to: GONE },
  { name: 'remove waiting', from: WAITING, when: ['removal asked'], to: GONE },
  { name: 'remove offline', from: OFFLINE, when: ['removal asked'], to: GONE },
  { name: 'add', from: GONE, when: ['addition asked, not in the chain'], to: OFFLINE },
  { name: 'return', from: OFFLINE, when: ['online, its disk not failed, nor leaving while a SERVING exists'], to: WAITING },
  { name: 'sync', from: WAITING, when: ['online, its disk not leaving or failed', 'a SERVING exists', 'no SYNCING', 'it reaches its source'], to: SYNCING },
] as const satisfies readonly Transition[]
export type TransitionName = (typeof TRANSITIONS)[number]['name']

// ---- steps ------------------------------------------------------------------------------------------------------------

export interface ChainStep {
  readonly transition: TransitionName
  /** Whose row it was. */
  readonly disk: DiskNumber
  readonly chain: Chain
}

/** The one step that follows from what is known, or null. */
export function nextStep(chain: Chain, event: ChainEvent): ChainStep | null {
  for (const row of ROWS) {
    if (row.from === GONE) {
      const entry = addedEntry(chain, event)
      if (entry !== null && holds(row, chain, entry, event)) return apply(row.transition, chain, entry, event)
      continue
    }
    for (const entry of chain.entries) {
      if (entry.state === row.from && holds(row, chain, entry, event)) return apply(row.transition, chain, entry, event)
    }
  }
  return null
}

/** The chain after one step, or null when nothing changes. */
export function nextChain(chain: Chain, event: ChainEvent): Chain | null {
  return nextStep(chain, event)?.chain ?? null
}

/** Steps until no row applies (several versions may pass). Returns `chain` itself when nothing changes. */
export function settle(chain: Chain, event: ChainEvent): Chain {
  // every entry moves at most once along each of: leave service, OFFLINE -> WAITING -> SYNCING; more steps would be a cycle in the table
  const stepsMax = 4 * (CHAIN_ENTRIES_MAX + 1)
  for (let steps = 0; steps < stepsMax; steps++) {
    const next = nextChain(chain, event)
    if (next === null) return chain
    chain = next
  }
  throw new Error(`transition table cycles at ${formatChain(chain)}`)
}

/** The conditions of a row that do not hold for an entry: empty when the row applies. For `cluster status` ("why is it not serving?") and tests. */
export function unmetConditions(transition: Transition, chain: Chain, entry: ChainEntry, event: ChainEvent): ConditionName[] {
  return transition.when.filter((name) => !CONDITIONS[name](chain, entry, event))
}

/** The first chain of a slot nobody has written to: every replica serves. */
export function firstChain(replicas: ReadonlyArray<{ readonly disk: DiskNumber; readonly node: NodeNumber; readonly incarnation: Incarnation }>): Chain {
  const version = 1 as ChainVersion
  const chain = { version, entries: replicas.map(({ disk, node, incarnation }) => ({ disk, node, state: SERVING, since: version, incarnation })) }
  const reason = invalidChain(chain)
  assert(reason === null, `first chain: ${reason}`)
  return chain
}

/** The table with its conditions looked up: a node event walks it for every slot, on the main thread. */
interface Row {
  readonly transition: (typeof TRANSITIONS)[number]
  readonly from: Target
  readonly conditions: readonly Condition[]
}
const ROWS: readonly Row[] = TRANSITIONS.map((transition) => ({
  transition,
  from: transition.from,
  conditions: transition.when.map((name) => CONDITIONS[name]),
}))

function holds(row: Row, chain: Chain, entry: ChainEntry, event: ChainEvent): boolean {
  for (const condition of row.conditions) if (!condition(chain, entry, event)) return false
  return true
}

function addedEntry(chain: Chain, event: ChainEvent): ChainEntry | null {
  if (event.add === undefined) return null
  const { disk, node } = event.add
  return { disk, node, state: OFFLINE, since: chain.version, incarnation: event.views.incarnation(node) }
}

function apply(transition: Transition & { readonly name: TransitionName }, chain: Chain, entry: ChainEntry, event: ChainEvent): ChainStep {
  assert(chain.version < CHAIN_VERSION_MAX, 'chain versions are used up')
  const version = (chain.version + 1) as ChainVersion
  const stay: ChainEntry[] = []
  const goneOffline: ChainEntry[] = []
  for (const old of chain.entries) {
    const to = old === entry ? transition.to : (transition.others?.[REPLICA_STATE_NAMES[old.state]] ?? old.state)
    if (to === GONE) continue
    if (to === old.state) stay.push(old)
    // DRAINING and back: the same term of service
    else if (isMember(to) && isMember(old.state)) stay.push({ ...old, state: to })
    else (to === OFFLINE ? goneOffline : stay).push({ ...old, state: to, since: version, incarnation: event.views.incarnation(old.node) })
  }
  if (transition.from === GONE) goneOffline.push({ ...entry, since: version })
  // stable: within a state everybody keeps its place, who goes OFFLINE goes last
  const entries = [...stay, ...goneOffline].sort((a, b) => place(a.state) - place(b.state))
  const next = { version, entries }
  const reason = invalidChain(next)
  // the sentence is made only when it is needed: 4096 slots pass here in one turn
  if (reason !== null) assert(false, `chain step "${transition.name}" of disk ${entry.disk}: ${reason}: ${formatChain(chain)} -> ${formatChain(next)}`)
  return { transition: transition.name, disk: entry.disk, chain: next }
}

const place = (state: ReplicaState) => (state === DRAINING ? SERVING : state)

/** Which invariant the chain breaks, or null. */
export function invalidChain(chain: Chain): string | null {
  const { version, entries } = chain
  if (!(version >= 1 && version <= CHAIN_VERSION_MAX)) return `version ${version}`
  if (entries.length > CHAIN_ENTRIES_MAX) return `${entries.length} entries`
  const count = [0, 0, 0, 0, 0, 0]
  for (let i = 0; i < entries.length; i++) {
    const entry = entries[i]!
    if (REPLICA_STATE_NAMES[entry.state] === undefined) return `state ${entry.state}`
    if (!(entry.since >= 1 && entry.since <= version)) return `since ${entry.since} in version ${version}`
    if (i > 0 && place(entries[i - 1]!.state) > place(entry.state)) return 'entries out of order'
    for (let j = 0; j < i; j++) if (entries[j]!.disk === entry.disk) return `disk ${entry.disk} twice`
    count[entry.state]!++
  }
  if (count[DRAINING]! > 1) return 'two DRAINING'
  if (count[SYNCING]! > 1) return 'two SYNCING'
  if (count[SERVING]! > 0 && count[LASTSRV]! > 0) return 'SERVING beside LASTSRV'
  if (count[SERVING] === 0 && count[DRAINING]! > 0) return 'DRAINING without SERVING'
  if (count[SERVING] === 0 && count[SYNCING]! > 0) return 'SYNCING without SERVING'
  return null
}

/**
 * Whether acknowledged writes that no flush covered may be missing in `after`: nobody who took part in writes in `before` goes on, and who serves
 * instead is known neither to have kept its host's memory nor to have all that another has who did. (A process that was only killed left everything
 * it had staged in the kernel. A loss of power takes the end of a journal: who served last and has an id has all that was ordered before it.)
 */
export function mayHaveLostUnflushed(before: Chain, after: Chain, lastIds: readonly LastId[] = []): boolean {
  const server = after.entries.find((entry) => isMember(entry.state))
  if (server === undefined) return false
  for (const entry of after.entries) {
    const was = isMember(entry.state) ? entryOf(before, entry.disk) : undefined
    if (was !== undefined && inWritePath(was.state) && was.incarnation === entry.incarnation) return false
  }
  if (entryOf(before, server.disk)?.state === WAITING) return true
  const id = lastIds.find(({ disk, incarnation }) => disk === server.disk && incarnation === server.incarnation)
  if (id === undefined || id.incomplete === true) return true
  return id.powerLost === true && !lastIds.some((other) => hasKeptAll(before, after, other) && !isHigher(other, id))
}

/** The report is of one who served last in `before`, and as far as is known it has lost nothing of what it had. */
function hasKeptAll(before: Chain, after: Chain, id: LastId): boolean {
  const was = entryOf(before, id.disk)
  const isOfLast = was?.state === LASTSRV && id.version >= was.since && entryOf(after, id.disk)?.incarnation === id.incarnation
  return isOfLast && id.powerLost !== true && id.incomplete !== true
}

// ---- questions --------------------------------------------------------------------------------------------------------

/** SERVING or DRAINING: holds everything committed. */
export function isMember(state: ReplicaState): boolean {
  return state === SERVING || state === DRAINING
}

/** SERVING, DRAINING or SYNCING: receives every write, and writes wait for its acknowledgement. */
export function inWritePath(state: ReplicaState): boolean {
  return state <= SYNCING
}

/** First of SERVING and DRAINING (a DRAINING head orders nothing: clients wait until it has left). */
export function headOf(chain: Chain): ChainEntry | undefined {
  const first = chain.entries[0]
  return first !== undefined && isMember(first.state) ? first : undefined
}

/** The SYNCING entry, if there is one. */
export function syncingOf(chain: Chain): ChainEntry | undefined {
  return chain.entries.find((entry) => entry.state === SYNCING)
}

/** The entry of a disk, whoever's process it means. */
export function entryOf(chain: Chain, disk: DiskNumber): ChainEntry | undefined {
  return chain.entries[indexOf(chain, disk)]
}

/**
 * The entry of a disk as its own process may take it: one that takes part in writes under another incarnation counts as OFFLINE
 * (protocol 3). Undefined: not in the chain.
 */
export function ownEntry(chain: Chain, disk: DiskNumber, incarnation: Incarnation): ChainEntry | undefined {
  const entry = entryOf(chain, disk)
  return entry !== undefined && inWritePath(entry.state) && entry.incarnation !== incarnation ? { ...entry, state: OFFLINE } : entry
}

function indexOf(chain: Chain, disk: DiskNumber): number {
  for (let i = 0; i < chain.entries.length; i++) if (chain.entries[i]!.disk === disk) return i
  return -1
}

/** `v7 [3 SERVING since 1, 5 SYNCING since 7]`, disks by number. */
export function formatChain(chain: Chain): string {
  const entries = chain.entries.map((entry) => `${entry.disk} ${REPLICA_STATE_NAMES[entry.state]} since ${entry.since}`)
  return `v${chain.version} [${entries.join(', ')}]`
}

// ---- packed form ------------------------------------------------------------------------------------------------------

const PACKED_CHAIN = 3
const PACKED_ENTRY = 5

/**
 * Chains between threads and in snapshots: per chain `slot, version, entries`, then per entry `disk, node, state, since, incarnation`
 * (the last a u32 in an i32).
 */
export function packChains(chains: ReadonlyArray<{ readonly slot: SlotIndex; readonly chain: Chain }>): Int32Array {
  let length = 0
  for (const { chain } of chains) length += PACKED_CHAIN + PACKED_ENTRY * chain.entries.length
  const packed = new Int32Array(length)
  // slots that share a chain object share its words
  const known = new Map<Chain, Int32Array>()
  let at = 0
  for (const { slot, chain } of chains) {
    let words = known.get(chain)
    if (words === undefined) {
      words = wordsOf(chain)
      known.set(chain, words)
    }
    packed[at] = slot
    packed.set(words, at + 1)
    at += 1 + words.length
  }
  return packed
}

/** All but the slot. */
function wordsOf({ version, entries }: Chain): Int32Array {
  const words = new Int32Array(PACKED_CHAIN - 1 + PACKED_ENTRY * entries.length)
  words[0] = version
  words[1] = entries.length
  let at = PACKED_CHAIN - 1
  for (const entry of entries) {
    words[at++] = entry.disk
    words[at++] = entry.node
    words[at++] = entry.state
    words[at++] = entry.since
    words[at++] = entry.incarnation
  }
  return words
}

/** Asserts that every chain keeps the invariants. */
export function unpackChains(packed: Int32Array): Array<{ slot: SlotIndex; chain: Chain }> {
  const chains: Array<{ slot: SlotIndex; chain: Chain }> = []
  let at = 0
  while (at < packed.length) {
    const slot = packed[at++] as SlotIndex
    const version = packed[at++] as ChainVersion
    const count = packed[at++] ?? -1
    assert(count >= 0 && count <= CHAIN_ENTRIES_MAX && at + count * PACKED_ENTRY <= packed.length, `packed chain of slot ${slot} is cut short`)
    const entries: ChainEntry[] = []
    for (let i = 0; i < count; i++, at += PACKED_ENTRY) {
      entries.push({
        disk: packed[at] as DiskNumber,
        node: packed[at + 1] as NodeNumber,
        state: packed[at + 2] as ReplicaState,
        since: packed[at + 3] as ChainVersion,
        incarnation: (packed[at + 4]! >>> 0) as Incarnation,
      })
    }
    const chain = { version, entries }
    const reason = invalidChain(chain)
    assert(reason === null, `packed chain of slot ${slot}: ${reason}`)
    chains.push({ slot, chain })
  }
  return chains
}
