/**
 * From actual chains to desired placement, one step per slot at a time: a new replica joins at the tail and catches up; only when every
 * desired replica serves does a surplus one drain and leave; last, a head that should not be one drains and comes back at the tail.
 *
 * Invariants: no step while a slot recovers or a step of it is under way; a step never takes the last serving replica; of the replicas of a slot on
 * one node at most one takes part in writes. So the only serving replica of a slot does not move to another disk of its own node: it would have to forward to itself
 * there, which nobody does (and every write of the slot would wait for it).
 */
import type { DiskNumber, NodeNumber, SlotIndex } from '../base/ids.ts'
import { CHAIN_ENTRIES_MAX, type Chain, type ChainEntry, isMember, ReplicaState } from './chain.ts'

const { SERVING, DRAINING, SYNCING, LASTSRV, WAITING, OFFLINE } = ReplicaState

export type Move =
  | { readonly kind: 'add'; readonly slot: SlotIndex; readonly disk: DiskNumber; readonly node: NodeNumber }
  /** `leave`: goes out of the chain when drained; otherwise it comes back at the tail, so that the next one is the head. */
  | { readonly kind: 'drain'; readonly slot: SlotIndex; readonly disk: DiskNumber; readonly leave: boolean }
  | { readonly kind: 'remove'; readonly slot: SlotIndex; readonly disk: DiskNumber }

export interface PlanOptions {
  readonly reorderHeads: boolean
  /** So many are wanted of each slot, though there may be places for fewer. */
  readonly copies: number
  /** Whether a replica that is away stays in the chain while fewer serve than are wanted: it may come to be the best there is. */
  readonly isKept: (disk: DiskNumber) => boolean
}
const PLAN_DEFAULTS: PlanOptions = { reorderHeads: true, copies: 0, isKept: () => false }

/** The next step of every slot that needs one: those with the fewest serving replicas first. The caller applies as many as its rate allows. */
export function planMoves(
  chains: readonly Chain[],
  desired: ReadonlyArray<readonly DiskNumber[]>,
  nodeOf: (disk: DiskNumber) => NodeNumber,
  options: Partial<PlanOptions> = {},
): Move[] {
  const moves: Array<{ move: Move; serving: number }> = []
  const plan = { ...PLAN_DEFAULTS, ...options }
  chains.forEach((chain, slot) => {
    const move = planSlot(chain, slot as SlotIndex, desired[slot] ?? [], nodeOf, plan)
    if (move !== null) moves.push({ move, serving: chain.entries.filter((entry) => entry.state === SERVING).length })
  })
  return moves.sort((a, b) => a.serving - b.serving || a.move.slot - b.move.slot).map(({ move }) => move)
}

/**
 * A replica that does not serve beside one of its node that does. A copy that was given up has begun anew there on another disk; back as the tail, the old
 * one would be forwarded to by its own node, which nobody does: so it goes at once, before it can return.
 */
export function givenUpBeside({ entries }: Chain): ChainEntry | undefined {
  return entries.find((entry) => !isMember(entry.state) && entries.some((other) => other.node === entry.node && isMember(other.state)))
}

function planSlot(
  chain: Chain,
  slot: SlotIndex,
  desired: readonly DiskNumber[],
  nodeOf: (disk: DiskNumber) => NodeNumber,
  { reorderHeads, copies, isKept }: PlanOptions,
): Move | null {
  const { entries } = chain
  const serving = entries.filter((entry) => entry.state === SERVING)
  if (desired.length === 0 || serving.length === 0 || entries.some(({ state }) => state === DRAINING || state === LASTSRV)) return null
  const remove = (entry: ChainEntry): Move => ({ kind: 'remove', slot, disk: entry.disk })
  const isDesired = (entry: ChainEntry) => desired.includes(entry.disk)
  const catchesUp = (entry: ChainEntry) => entry.state === SYNCING || entry.state === WAITING
  const isSpare = (entry: ChainEntry) => entry.state === OFFLINE && serving.length < copies && isKept(entry.disk)

  // a surplus replica that still catches up only keeps others waiting
  const inTheWay = entries.find((entry) => catchesUp(entry) && !isDesired(entry))
  if (inTheWay !== undefined) return remove(inTheWay)
  if (entries.some(catchesUp)) return null

  const missing = desired.filter((disk) => entries.every((entry) => entry.disk !== disk))
  if (missing.length > 0) {
    const siblingOf = (disk: DiskNumber) => entries.find((entry) => entry.node === nodeOf(disk) && !isDesired(entry) && !isSpare(entry))
    // first what gives a copy more, or costs none
    const alone = missing.find((disk) => siblingOf(disk) === undefined)
    if (alone !== undefined) {
      // one place after another was lost before it had caught up: without room nobody could be added ever again
      const longestAway = entries.length < CHAIN_ENTRIES_MAX ? undefined : entries.find((entry) => entry.state === OFFLINE && !isDesired(entry))
      return longestAway === undefined ? { kind: 'add', slot, disk: alone, node: nodeOf(alone) } : remove(longestAway)
    }
    const siblings = missing.map((disk) => siblingOf(disk)!)
    const idle = siblings.find(({ state }) => !isMember(state))
    if (idle !== undefined) return remove(idle)
    return serving.length > 1 ? { kind: 'drain', slot, disk: siblings[0]!.disk, leave: true } : null
  }

  if (serving.filter(isDesired).length < desired.length) return null
  const surplus = entries.findLast((entry) => !isDesired(entry) && !isSpare(entry))
  if (surplus !== undefined) return surplus.state === SERVING ? { kind: 'drain', slot, disk: surplus.disk, leave: true } : remove(surplus)
  const head = entries[0]!.disk
  if (reorderHeads && head !== desired[0] && serving.length > 1) return { kind: 'drain', slot, disk: head, leave: false }
  return null
}
