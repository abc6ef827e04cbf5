/**
 * One event for all chains (protocol 30): the command carries what the leader believed of each node and the facts about single slots;
 * every node runs the same table over the same chains.
 *
 * The views are those of one moment. If a node has registered anew since, that is evidence newer than they are (protocol 26: UP must mean
 * renewed after the evidence), and the whole command changes nothing: the leader comes again.
 */
import { XsanError } from '../../base/errors.ts'
import type { ChainVersion, DiskNumber, Incarnation, NodeNumber, SlotIndex } from '../../base/ids.ts'
import { BLOCK_BYTES } from '../../base/units.ts'
import {
  apartFromPairs,
  type Chain,
  type ChainEvent,
  DiskUse,
  inWritePath,
  type LastId,
  LastIdFlag,
  mayHaveLostUnflushed,
  settle,
} from '../../placement/chain.ts'
import { slotOf } from '../../placement/ring.ts'
import { View, type ViewRow, viewsFromRows } from '../../placement/view.ts'
import type { ClusterState } from '../state.ts'
import type { Operation } from './operation.ts'

/** Facts about one slot; tuples keep the command small. */
export interface SlotFacts {
  readonly slot: SlotIndex
  /** disk, since, incarnation */
  readonly upToDate?: readonly [DiskNumber, ChainVersion, Incarnation]
  /** disk, chain version, incarnation */
  readonly drained?: readonly [DiskNumber, ChainVersion, Incarnation]
  readonly leave?: boolean
  readonly drain?: DiskNumber
  /** disk, node */
  readonly add?: readonly [DiskNumber, NodeNumber]
  readonly remove?: DiskNumber
  /** disk, incarnation, chain version, id high, id low, LastIdFlag */
  readonly lastIds?: ReadonlyArray<readonly [DiskNumber, Incarnation, ChainVersion, number, number, number]>
}

export interface ChainsStepArgs {
  readonly views: readonly ViewRow[]
  /** Nodes that come and go: nothing starts on them yet. */
  readonly heldDown: readonly NodeNumber[]
  /** At most one per slot. */
  readonly facts: readonly SlotFacts[]
  /** Only the slots of `facts`: the views have no news for the others. */
  readonly factsOnly: boolean
  readonly recoverWithoutAll?: boolean
  readonly acceptDataLoss?: boolean
  /** Pairs of nodes that live and do not reach each other. */
  readonly apart?: ReadonlyArray<readonly [NodeNumber, NodeNumber]>
  /** Nodes that are DOWN and were not before, with replicas or without: their peers close their connections (protocol 16). */
  readonly gone?: readonly NodeNumber[]
}

export interface ChainsStepValue {
  readonly changed: number
}

export const chainsStep: Operation<ChainsStepArgs, ChainsStepValue> = {
  feature: 1,
  apply(state, args) {
    const registered = new Map(args.views.map((row) => [row.node, row.incarnation]))
    for (const node of state.nodes.values()) {
      if (node.incarnation !== 0 && registered.get(node.node) !== node.incarnation) {
        throw new XsanError('BUSY', 'a process has registered since the views were taken')
      }
    }
    for (const { add } of args.facts) {
      if (add !== undefined && state.disks.get(add[0])?.node !== add[1]) throw new XsanError('BUSY', `disk ${add[0]} is not of node ${add[1]} (any more)`)
    }
    const changes = chainChanges(state, args)
    const down = new Map(args.views.filter(({ view }) => view === View.DOWN).map((row) => [row.node, row]))
    const dropped = new Set(args.gone?.filter((node) => down.has(node)))
    const factsOf = new Map(args.facts.map((facts) => [facts.slot, facts]))
    const lostSlots = new Set<SlotIndex>()
    for (const { slot, chain } of changes) {
      if (mayHaveLostUnflushed(state.chains[slot]!, chain, lastIdsOf(factsOf.get(slot)))) lostSlots.add(slot)
      for (const { node, state: was } of state.chains[slot]!.entries) if (inWritePath(was) && down.has(node)) dropped.add(node)
      state.setChain(slot, chain)
    }
    for (const node of [...dropped].sort((a, b) => a - b)) state.noteDropped(node, down.get(node)!.incarnation)
    if (lostSlots.size > 0) noteLosses(state, lostSlots)
    return { changed: changes.length }
  },
}

/** What volumes acknowledged from memory may be gone in these slots: flushes of those volumes will say so (src/chain/flush.ts). */
function noteLosses(state: ClusterState, slots: ReadonlySet<SlotIndex>): void {
  const { slotCount } = state.theCluster
  for (const volume of [...state.volumes.values()]) {
    if (volume.syncWhenWrite) continue
    const blocks = Math.ceil(volume.sizeBytes / BLOCK_BYTES)
    // a volume with many more blocks than there are slots has some in each
    let isTouched = blocks > slotCount * 16
    for (let index = 0; index < blocks && !isTouched; index++) isTouched = slots.has(slotOf(volume.volume, index, slotCount))
    if (isTouched) state.putVolume({ ...volume, losses: (volume.losses ?? 0) + 1 })
  }
}

/** The chains that change by the event, in slot order. */
export function chainChanges(state: ClusterState, args: ChainsStepArgs): Array<{ slot: SlotIndex; chain: Chain }> {
  return [...changesOf(state, args)]
}

/** Whether any chain would change: for the leader, to see if a command is worth it. */
export function changesAny(state: ClusterState, args: ChainsStepArgs): boolean {
  return changesOf(state, args).next().done !== true
}

function* changesOf(state: ClusterState, args: ChainsStepArgs): Generator<{ slot: SlotIndex; chain: Chain }> {
  const views = viewsFromRows(args.views)
  const held = new Set(args.heldDown)
  // looked up for every entry of every chain: once per disk is enough
  const uses = new Map<DiskNumber, DiskUse>()
  for (const { disk, node } of state.disks.values()) {
    const use = state.diskUse(disk)
    uses.set(disk, use === DiskUse.NORMAL && held.has(node) ? DiskUse.LEAVING : use)
  }
  const diskUse = (disk: DiskNumber): DiskUse => uses.get(disk) ?? DiskUse.LEAVING
  const base: ChainEvent = {
    views,
    diskUse,
    recoverWithoutAll: args.recoverWithoutAll,
    acceptDataLoss: args.acceptDataLoss,
    apart: args.apart && apartFromPairs(args.apart),
  }
  const factsOf = new Map(args.facts.map((facts) => [facts.slot, facts]))
  // most slots have one of few chains (the state keeps equal ones once), and what becomes of equals is equal
  const known = new Map<Chain, Chain>()
  const settled = (chain: Chain): Chain => {
    let next = known.get(chain)
    if (next === undefined) {
      next = settle(chain, base)
      known.set(chain, next)
    }
    return next
  }
  const slots = args.factsOnly ? [...factsOf.keys()].sort((a, b) => a - b) : state.chains.keys()
  for (const at of slots) {
    const slot = at as SlotIndex
    const chain = state.chains[slot]
    if (chain === undefined) continue
    const facts = factsOf.get(slot)
    const next = facts === undefined ? settled(chain) : settle(chain, eventOf(base, facts))
    if (next !== chain) yield { slot, chain: next }
  }
}

function eventOf(base: ChainEvent, facts: SlotFacts): ChainEvent {
  const { upToDate: u, drained: d, add: a } = facts
  return {
    ...base,
    upToDate: u && { disk: u[0], since: u[1], incarnation: u[2] },
    drained: d && { disk: d[0], version: d[1], incarnation: d[2] },
    leave: facts.leave,
    drain: facts.drain,
    add: a && { disk: a[0], node: a[1] },
    remove: facts.remove,
    lastIds: lastIdsOf(facts),
  }
}

function lastIdsOf(facts: SlotFacts | undefined): LastId[] | undefined {
  return facts?.lastIds?.map(
    ([disk, incarnation, version, hi, lo, flags]): LastId => ({
      disk,
      incarnation,
      version,
      hi,
      lo,
      powerLost: (flags & LastIdFlag.LOST_POWER) !== 0,
      incomplete: (flags & LastIdFlag.INCOMPLETE) !== 0,
      damaged: (flags & LastIdFlag.DAMAGED) !== 0,
    }),
  )
}
