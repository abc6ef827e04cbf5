/**
 * From the chains as they are to the desired placement, at a limited rate. Repairs (a slot with fewer replicas than wanted) are not limited;
 * moves for balance and changes of head are.
 *
 * Until a volume was ever created nothing can have been written: then the chains are simply made anew when disks come.
 */
import type { DiskNumber, NodeNumber, SlotIndex } from '../base/ids.ts'
import type { Clock, Log } from '../env/control.ts'
import { DiskUse, ReplicaState } from '../placement/chain.ts'
import { type Move, planMoves } from '../placement/moves.ts'
import { type PlacementDisk, placeSlots } from '../placement/place.ts'
import { type NodeViews, View } from '../placement/view.ts'
import type { ChainsCreateArgs } from './ops/chains-create.ts'
import type { SlotFacts } from './ops/chains-step.ts'
import { numberSetting, type OwnSettings, replicaCount } from './settings.ts'
import type { ClusterState } from './state.ts'

/** Slots that move for balance at one time. */
const MOVING_SLOTS_MAX = 32
/** Repairs of one command. */
const REPAIRS_MAX = 2048
/** Heads are set right when a node has more than this times its share. */
const HEADS_UNEVEN = 1.25
/** Not right after a return: who has just come back may go again, and a change of head makes writers wait. */
const HEADS_AFTER_MS = 30_000
const REBUILD_AFTER_MS = 10 * 60_000

export interface RebalancerOptions {
  readonly state: ClusterState
  readonly clock: Clock
  readonly log: Log
  readonly own: OwnSettings
  readonly view: NodeViews
  /** Since when a node is DOWN, or undefined. */
  readonly downSinceMs: (node: NodeNumber) => number | undefined
  readonly virtualNodesPerPhysical?: number | undefined
}

export class Rebalancer {
  readonly #options: RebalancerOptions
  /** Disks that have been seen up, or hold replicas: they count until their node is away too long. */
  readonly #included = new Set<DiskNumber>()
  #first: DiskNumber[][] = []
  #firstKey = ''
  #desired: DiskNumber[][] = []
  #desiredKey = ''
  readonly #planned = new Set<SlotIndex>()

  constructor(options: RebalancerOptions) {
    this.#options = options
  }

  /** Slots on their way by a plan that is no repair. */
  get planned(): ReadonlySet<SlotIndex> {
    return this.#planned
  }

  /** Chains for the nodes that are up, while nothing was ever written; undefined: those that exist are right. */
  firstChains(): ChainsCreateArgs | undefined {
    const { state, view } = this.#options
    if (state.cluster === undefined || (state.everHadVolumes && state.chains.length > 0)) return undefined
    const usable = this.#usable()
    const up = usable.filter(({ node }) => view.view(node) === View.UP)
    if (up.length === 0 || (state.chains.length > 0 && up.length < usable.length)) return undefined
    const key = JSON.stringify([replicaCount(state), up])
    if (key !== this.#firstKey) {
      this.#firstKey = key
      this.#first = placeSlots(up, {
        slotCount: state.cluster.slotCount,
        replicas: replicaCount(state),
        virtualNodesPerPhysical: this.#options.virtualNodesPerPhysical,
      })
    }
    const slots = this.#first
    const right =
      state.chains.length > 0 &&
      state.chains.every(({ entries }, slot) => {
        const disks = slots[slot]!
        return (
          entries.length === disks.length &&
          entries.every((entry, i) => entry.disk === disks[i] && entry.state === ReplicaState.SERVING && entry.incarnation === view.incarnation(entry.node))
        )
      })
    return right ? undefined : { slots }
  }

  /** Whether a replica that drains leaves the chain for good. */
  leaves(slot: SlotIndex, disk: DiskNumber): boolean {
    const { state } = this.#options
    const others = state.chains[slot]!.entries.filter((entry) => entry.disk !== disk && entry.state === ReplicaState.SERVING)
    if (state.diskUse(disk) === DiskUse.FAILED && this.#isKept(disk) && others.length < replicaCount(state)) return false
    const wanted = this.#desired[slot]
    if (wanted !== undefined && wanted.length > 0) return !wanted.includes(disk)
    // A leader that has made no plan yet: with all the copies it takes beside it, the one before was moving this one away. It would come back, copy what
    // it lacks, and be removed.
    return others.length >= Math.min(replicaCount(state), state.nodesWithDisks().size)
  }

  /** What is on it may be wanted yet, should the others be lost before there are as many copies as wanted. */
  #isKept(disk: DiskNumber): boolean {
    const { state } = this.#options
    const node = state.disks.get(disk)?.node
    return node !== undefined && state.nodes.get(node)?.state === 'member'
  }

  /** A disk on which a slot may begin anew that nobody who could serve it is left of, if there is one. */
  substitute(slot: SlotIndex): { readonly disk: DiskNumber; readonly node: NodeNumber } | undefined {
    const { state, view } = this.#options
    const { entries } = state.chains[slot]!
    this.#place()
    const wanted = this.#desired[slot] ?? []
    const free = this.#usable().filter(
      ({ disk, node }) =>
        view.view(node) === View.UP &&
        entries.every((entry) => entry.disk !== disk && (entry.node !== node || state.disks.get(entry.disk)?.state === 'failed')),
    )
    return free.find(({ disk }) => wanted.includes(disk)) ?? free[slot % Math.max(1, free.length)]
  }

  /** Next steps, as many as may be taken now; at most one of a slot. `calmMs`: time since the last loss or return. */
  moves(calmMs: number, { repairsOnly }: { readonly repairsOnly: boolean }): Array<{ slot: SlotIndex; fact: Omit<SlotFacts, 'slot'> }> {
    const { state } = this.#options
    if (!state.everHadVolumes || state.chains.length === 0) return []
    this.#place()
    if (this.#desired.length === 0) return []
    const plan = planMoves(state.chains, this.#desired, (disk) => state.disks.get(disk)!.node, {
      reorderHeads: calmMs >= HEADS_AFTER_MS && this.#headsUneven(),
      copies: replicaCount(state),
      isKept: (disk) => this.#isKept(disk),
    })
    const waiting = new Set(plan.map(({ slot }) => slot))
    for (const slot of this.#planned) {
      // what is kept of a place that is gone waits for nothing
      const isDone = state.chains[slot]!.entries.every(({ state: of }) => of === ReplicaState.SERVING || of === ReplicaState.OFFLINE)
      if (!waiting.has(slot) && isDone) this.#planned.delete(slot)
    }
    const taken: Array<{ slot: SlotIndex; fact: Omit<SlotFacts, 'slot'> }> = []
    let repairs = 0
    for (const move of plan) {
      const isRepair = move.kind !== 'drain' && this.#serving(move.slot) < this.#desired[move.slot]!.length
      if (isRepair) {
        if (++repairs > REPAIRS_MAX) continue
      } else if (repairsOnly) continue
      else if (!this.#planned.has(move.slot)) {
        if (this.#planned.size >= MOVING_SLOTS_MAX) continue
        this.#planned.add(move.slot)
      }
      taken.push({ slot: move.slot, fact: factOf(move) })
    }
    return taken
  }

  #serving(slot: SlotIndex): number {
    return this.#options.state.chains[slot]!.entries.filter((entry) => entry.state === ReplicaState.SERVING).length
  }

  #usable(): PlacementDisk[] {
    const { state } = this.#options
    const disks: PlacementDisk[] = []
    for (const { disk, node, role, state: use, capacityBytes } of [...state.disks.values()].sort((a, b) => a.disk - b.disk)) {
      const owner = state.nodes.get(node)
      if (role !== 'capacity' || use !== 'ok' || owner?.state !== 'member' || capacityBytes <= 0) continue
      disks.push({ disk, node, weight: capacityBytes, rack: owner.rack || undefined, zone: owner.zone || undefined })
    }
    return disks
  }

  #place(): void {
    const { state, own, view, clock, downSinceMs } = this.#options
    const rebuildAfterMs = numberSetting(state, own, 'failover.rebuild_after', REBUILD_AFTER_MS)
    if (this.#desired.length === 0) for (const chain of state.chains) for (const entry of chain.entries) this.#included.add(entry.disk)
    const usable = this.#usable()
    for (const { disk, node } of usable) {
      const downMs = downSinceMs(node)
      if (view.view(node) === View.UP) this.#included.add(disk)
      else if (downMs !== undefined && clock.nowMs() - downMs > rebuildAfterMs) this.#included.delete(disk)
    }
    const disks = usable.filter(({ disk }) => this.#included.has(disk))
    const replicas = replicaCount(state)
    const key = JSON.stringify([replicas, disks])
    if (key === this.#desiredKey) return
    this.#desiredKey = key
    if (disks.length === 0) {
      this.#desired = []
      return
    }
    const previous = state.chains.map((chain) => chain.entries.map((entry) => entry.disk))
    this.#desired = placeSlots(disks, { slotCount: state.chains.length, replicas, previous, virtualNodesPerPhysical: this.#options.virtualNodesPerPhysical })
    this.#options.log.log('INFO', 'desired placement computed', { disks: disks.length, replicas })
  }

  #headsUneven(): boolean {
    const { state, view } = this.#options
    const heads = new Map<NodeNumber, number>()
    for (const [slot, { entries }] of state.chains.entries()) {
      const head = entries[0]
      const wanted = this.#desired[slot]?.[0]
      // not while anybody is away: a change of head costs a replica for a moment
      if (
        head === undefined ||
        wanted === undefined ||
        (!this.#planned.has(slot as SlotIndex) && entries.some((entry) => entry.state !== ReplicaState.SERVING && this.#desired[slot]!.includes(entry.disk)))
      )
        return false
      heads.set(head.node, (heads.get(head.node) ?? 0) + 1)
    }
    const wanted = new Map<NodeNumber, number>()
    for (const disks of this.#desired) {
      const node = state.disks.get(disks[0]!)!.node
      if (view.view(node) !== View.UP) return false
      wanted.set(node, (wanted.get(node) ?? 0) + 1)
    }
    return [...wanted].some(([node, share]) => (heads.get(node) ?? 0) > share * HEADS_UNEVEN + 1)
  }
}

function factOf(move: Move): Omit<SlotFacts, 'slot'> {
  if (move.kind === 'add') return { add: [move.disk, move.node] }
  return move.kind === 'remove' ? { remove: move.disk } : { drain: move.disk, leave: move.leave }
}
