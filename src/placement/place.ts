/**
 * The desired disks of every slot: balanced by weight, apart in failure domains, close to where the replicas are now.
 *
 *   quotas      how many replicas each disk should hold: its share by weight, as far as the failure domains allow
 *   keep        what is there and still allowed stays
 *   fill        missing replicas go where the ring points first among the disks below their quota
 *   even out    disks above their quota hand over to disks below it, slot by slot, through others where they cannot directly
 *   heads       each node heads its share: the first disk of a slot is the head
 *
 * Invariants: never two replicas of a slot on one node; of one rack or zone no more than needed; the same input gives the same output on
 * every machine; a disk moves only when its quota, a failure domain or the replica count says so.
 *
 * It runs on the leader's thread, where leases are renewed and elections begin after a second: a leader that needs longer is replaced by one that does the same.
 */
import { assert } from '../base/assert.ts'
import type { DiskNumber, NodeNumber } from '../base/ids.ts'
import { buildRing, firstPoint, hashPair, isSlotCount, type Ring, SLOTS_MAX } from './ring.ts'

const NONE = -1

export interface PlacementDisk {
  readonly disk: DiskNumber
  readonly node: NodeNumber
  /** Share of the data relative to other disks: its capacity. Above 0. */
  readonly weight: number
  /** Of the node: the same on all its disks. A rack's name counts within its zone. */
  readonly rack?: string | undefined
  readonly zone?: string | undefined
}

export interface PlaceOptions {
  readonly slotCount: number
  readonly replicas: number
  /** Where the replicas of each slot are now, in chain order. */
  readonly previous?: ReadonlyArray<readonly DiskNumber[]> | undefined
  readonly virtualNodesPerPhysical?: number | undefined
}

/** Disks of each slot, head first: `replicas` of them, fewer only when there are fewer nodes. */
export function placeSlots(disks: readonly PlacementDisk[], options: PlaceOptions): DiskNumber[][] {
  const { slotCount, replicas } = options
  assert(isSlotCount(slotCount), `${slotCount} slots: not a power of two up to ${SLOTS_MAX}`)
  assert(Number.isInteger(replicas) && replicas >= 1, `${replicas} replicas`)
  if (disks.length === 0) return Array.from({ length: slotCount }, () => [])
  const layout = new Layout(disks, slotCount, replicas)
  if (options.previous !== undefined) layout.keep(options.previous)
  layout.fill(buildRing(layout.disks, options.virtualNodesPerPhysical))
  layout.evenOut()
  layout.chooseHeads()
  return layout.slots.map((members) => members.map((d) => layout.disks[d]!.disk))
}

/** A zone, a rack or a node, with what it may and should hold. */
interface Domain {
  readonly key: string
  /** Replicas of one slot it may hold. */
  perSlotMax: number
  readonly children: readonly Domain[]
  /** Of a node: indexes of its disks. */
  readonly disks: readonly number[]
  readonly nodeCount: number
}

class Layout {
  /** By disk number. Everything below names disks by their index here. */
  readonly disks: readonly PlacementDisk[]
  readonly slots: number[][]
  readonly quota: Int32Array
  readonly load: Int32Array
  readonly #replicas: number
  readonly #nodeOf: Int32Array
  readonly #rackOf: Int32Array
  readonly #zoneOf: Int32Array
  readonly #nodeCount: number
  readonly #rackMax: number
  readonly #zoneMax: number

  constructor(disks: readonly PlacementDisk[], slotCount: number, replicas: number) {
    this.disks = [...disks].sort((a, b) => a.disk - b.disk)
    this.slots = Array.from({ length: slotCount }, () => [])
    this.load = new Int32Array(disks.length)
    this.#nodeOf = indexBy(this.disks, (disk) => String(disk.node))
    this.#rackOf = indexBy(this.disks, (disk) => JSON.stringify([disk.zone ?? '', disk.rack ?? '']))
    this.#zoneOf = indexBy(this.disks, (disk) => disk.zone ?? '')
    for (let d = 1; d < this.disks.length; d++) {
      const sibling = this.#nodeOf.indexOf(this.#nodeOf[d]!)
      assert(this.#rackOf[d] === this.#rackOf[sibling], `node ${this.disks[d]!.node} is in two racks or zones`)
    }
    this.#nodeCount = Math.max(...this.#nodeOf) + 1
    this.#replicas = Math.min(replicas, this.#nodeCount)

    const nodesOf = (rack: number) => this.#group(this.#nodeOf, (d) => this.#rackOf[d] === rack).map((list) => this.#domain('node', [], list))
    const racksOf = (zone: number) =>
      this.#group(this.#rackOf, (d) => this.#zoneOf[d] === zone).map((list) => this.#domain('rack', nodesOf(this.#rackOf[list[0]!]!), []))
    const zones = this.#group(this.#zoneOf, () => true).map((list) => this.#domain('zone', racksOf(this.#zoneOf[list[0]!]!), []))
    const cluster = this.#domain('cluster', zones, [])
    cluster.perSlotMax = this.#replicas
    for (const domain of [...zones, ...zones.flatMap((zone) => zone.children)]) domain.perSlotMax = domain.nodeCount
    // a level is as strict as it can be while a slot still finds all its replicas, zones first
    this.#zoneMax = strictest(zones, cluster, this.#replicas)
    this.#rackMax = strictest(
      zones.flatMap((zone) => zone.children),
      cluster,
      this.#replicas,
    )
    this.quota = this.#quotas(cluster)
  }

  keep(previous: ReadonlyArray<readonly DiskNumber[]>): void {
    const indexes = new Map(this.disks.map(({ disk }, index) => [disk, index]))
    this.slots.forEach((members, slot) => {
      for (const disk of previous[slot] ?? []) {
        const d = indexes.get(disk)
        if (d !== undefined && this.#fits(members, d, -1)) this.#put(members, d)
      }
    })
    for (const slot of this.#shuffled(0)) {
      const members = this.slots[slot]!
      while (members.length > this.#replicas) {
        let worst = members.length - 1
        for (let i = worst; i >= 0; i--) if (this.#surplus(members[i]!) > this.#surplus(members[worst]!)) worst = i
        this.load[members[worst]!]!--
        members.splice(worst, 1)
      }
    }
  }

  fill(ring: Ring): void {
    const points = ring.points.length
    /** next[i]: first point from i on whose disk may be below its quota; full disks are skipped for good. */
    const next = Int32Array.from({ length: points + 1 }, (_, i) => i)
    const open = (from: number): number => {
      let i = from
      while (next[i] !== i) i = next[i] = next[next[i]!]!
      return i
    }
    this.slots.forEach((members, slot) => {
      const start = firstPoint(ring, slot, this.slots.length)
      for (const [from, to] of [
        [start, points],
        [0, start],
      ] as const) {
        for (let i = open(from); i < to && members.length < this.#replicas; i = open(i + 1)) {
          const d = ring.owners[i]!
          if (this.load[d]! >= this.quota[d]!) next[i] = i + 1
          else if (this.#fits(members, d, -1)) this.#put(members, d)
        }
      }
      // the disks below their quota are all where this slot has a replica already: anyone allowed, the least loaded first
      while (members.length < this.#replicas) {
        let best = -1
        for (let d = 0; d < this.disks.length; d++) {
          if (this.#fits(members, d, -1) && (best < 0 || this.load[d]! * this.disks[best]!.weight < this.load[best]! * this.disks[d]!.weight)) best = d
        }
        // the limits are nested (node in rack in zone), a matroid: no choice made before can leave a slot stuck
        assert(best >= 0, `no disk for a slot that has ${members.length} of ${this.#replicas} replicas`)
        this.#put(members, best)
      }
    })
  }

  evenOut(): void {
    // directly: a disk below its quota takes over from the fullest disk of a slot, in an order of slots of its own
    for (const d of this.#byNeed()) {
      if (this.#surplus(d) >= 0) continue
      for (const slot of this.#shuffled(this.disks[d]!.disk)) {
        if (this.#surplus(d) >= 0) break
        const members = this.slots[slot]!
        let from = -1
        for (let i = 0; i < members.length; i++) {
          const surplus = this.#surplus(members[i]!)
          if (surplus > 0 && (from < 0 || surplus > this.#surplus(members[from]!)) && this.#fits(members, d, i)) from = i
        }
        if (from >= 0) this.#replace(members, from, d)
      }
    }
    // through others: a takes over from b, b from c ...
    const slotsOf = this.disks.map((): Set<number> => new Set())
    this.slots.forEach((members, slot) => {
      for (const d of members) slotsOf[d]!.add(slot)
    })
    const roundsMax = this.slots.length * this.#replicas
    for (let round = 0; round < roundsMax; round++) {
      const path = shortestPath(
        this.disks.length,
        (d) => this.#surplus(d) > 0,
        (d) => this.#surplus(d) < 0,
        (d, unreached, visit) => {
          for (const slot of slotsOf[d]!) {
            const members = this.slots[slot]!
            const position = members.indexOf(d)
            // disks of one node are neighbours in the list, and to the slot they are the same
            let node = -1
            let isAllowed = false
            for (const other of unreached) {
              if (this.#nodeOf[other] !== node) {
                node = this.#nodeOf[other]!
                isAllowed = this.#fits(members, other, position)
              }
              if (isAllowed && visit(other, slot)) return
            }
          }
        },
      )
      if (path === null || !this.#moveAlong(path, slotsOf)) break
    }
  }

  /**
   * From the end, so that every disk on the way has room when its turn comes; and again as long as the way leads on through other slots, for it costs much
   * more to look for one. Returns whether anything was moved.
   */
  #moveAlong(path: readonly Hop[], slotsOf: ReadonlyArray<Set<number>>): boolean {
    const [first, last] = [path[0]!.to, path.at(-1)!.to]
    const hops = path.slice(1)
    let slots = hops.map(({ slot }) => slot)
    let hasMoved = false
    while (this.#surplus(first) > 0 && this.#surplus(last) < 0 && !slots.includes(NONE)) {
      for (let i = hops.length - 1; i >= 0; i--) {
        const { from, to } = hops[i]!
        const slot = slots[i]!
        const members = this.slots[slot]!
        const position = members.indexOf(from)
        if (position < 0 || !this.#fits(members, to, position)) return hasMoved
        this.#replace(members, position, to)
        slotsOf[from]!.delete(slot)
        slotsOf[to]!.add(slot)
        hasMoved = true
      }
      slots = hops.map(({ from, to }) => this.#slotBetween(slotsOf[from]!, from, to))
    }
    return hasMoved
  }

  /** Of the slots of `from` one that `to` may take over; NONE. */
  #slotBetween(slots: Iterable<number>, from: number, to: number): number {
    for (const slot of slots) {
      const members = this.slots[slot]!
      if (this.#fits(members, to, members.indexOf(from))) return slot
    }
    return NONE
  }

  chooseHeads(): void {
    const loads = new Float64Array(this.#nodeCount)
    for (let d = 0; d < this.disks.length; d++) loads[this.#nodeOf[d]!]! += this.load[d]! / this.#replicas
    const share = apportion(
      this.slots.length,
      loads,
      loads.map(() => this.slots.length),
    )
    const heads = new Int32Array(this.#nodeCount)
    const node = (slot: number, position: number) => this.#nodeOf[this.slots[slot]![position]!]!
    const headed = Array.from({ length: this.#nodeCount }, (): Set<number> => new Set())
    for (let slot = 0; slot < this.slots.length; slot++) {
      heads[node(slot, 0)]!++
      headed[node(slot, 0)]!.add(slot)
    }
    for (;;) {
      const path = shortestPath(
        this.#nodeCount,
        (n) => heads[n]! > share[n]!,
        (n) => heads[n]! < share[n]!,
        (n, unreached, visit) => {
          for (const slot of headed[n]!) {
            for (let i = 1; i < this.slots[slot]!.length; i++) {
              const other = node(slot, i)
              if (unreached.has(other) && visit(other, slot)) return
            }
          }
        },
      )
      if (path === null) break
      for (const { from, to, slot } of path.slice(1)) {
        const members = this.slots[slot]!
        const position = members.findIndex((d) => this.#nodeOf[d] === to)
        members.unshift(...members.splice(position, 1))
        headed[from]!.delete(slot)
        headed[to]!.add(slot)
        heads[from]!--
        heads[to]!++
      }
    }
  }

  /** Whether disk `d` may join `members` (with the one at `except` gone, when that is >= 0). */
  #fits(members: readonly number[], d: number, except: number): boolean {
    let sameRack = 0
    let sameZone = 0
    for (let i = 0; i < members.length; i++) {
      const other = members[i]!
      if (i === except) {
        if (other === d) return false
        continue
      }
      if (this.#nodeOf[other] === this.#nodeOf[d]) return false
      if (this.#rackOf[other] === this.#rackOf[d]) sameRack++
      if (this.#zoneOf[other] === this.#zoneOf[d]) sameZone++
    }
    return sameRack < this.#rackMax && sameZone < this.#zoneMax
  }

  #put(members: number[], d: number): void {
    members.push(d)
    this.load[d]!++
  }

  #replace(members: number[], position: number, d: number): void {
    this.load[members[position]!]!--
    members[position] = d
    this.load[d]!++
  }

  #surplus(d: number): number {
    return this.load[d]! - this.quota[d]!
  }

  /** Disks, those that lack most first. */
  #byNeed(): number[] {
    return this.disks.map((_, d) => d).sort((a, b) => this.#surplus(a) - this.#surplus(b) || a - b)
  }

  /** The slots in an order that looks random and differs by `salt`. Sorted as plain numbers: it is done for every disk that others hand over to. */
  #shuffled(salt: number): number[] {
    const keys = Float64Array.from(this.slots, (_, slot) => hashPair(salt, slot) * SLOTS_MAX + slot).sort()
    return Array.from(keys, (key) => key % SLOTS_MAX)
  }

  #group(by: Int32Array, among: (d: number) => boolean): number[][] {
    const groups = new Map<number, number[]>()
    for (let d = 0; d < this.disks.length; d++) if (among(d)) groups.set(by[d]!, [...(groups.get(by[d]!) ?? []), d])
    return [...groups.values()]
  }

  #domain(key: string, children: readonly Domain[], disks: readonly number[]): Domain {
    return { key, perSlotMax: 1, children, disks, nodeCount: key === 'node' ? 1 : children.reduce((sum, child) => sum + child.nodeCount, 0) }
  }

  #quotas(cluster: Domain): Int32Array {
    const slotCount = this.slots.length
    const quota = new Int32Array(this.disks.length)
    /** What a domain takes when every unit of weight takes `level`. */
    const take = (domain: Domain, level: number): number =>
      Math.min(
        domain.perSlotMax * slotCount,
        domain.disks.reduce((sum, d) => sum + this.disks[d]!.weight * level, 0) + domain.children.reduce((sum, child) => sum + take(child, level), 0),
      )
    const share = (domain: Domain, total: number): void => {
      if (domain.disks.length > 0) {
        const parts = apportion(
          total,
          Float64Array.from(domain.disks, (d) => this.disks[d]!.weight),
          domain.disks.map(() => slotCount),
        )
        domain.disks.forEach((d, i) => {
          quota[d] = parts[i]!
        })
        return
      }
      // raise the level until the children together take the total: those at their limit stop, the others go on by weight
      let low = 0
      let high = 1e-9
      const taken = (level: number) => domain.children.reduce((sum, child) => sum + take(child, level), 0)
      while (taken(high) < total && high < 1e30) high *= 2
      for (let i = 0; i < 100; i++) {
        const half = (low + high) / 2
        if (taken(half) < total) low = half
        else high = half
      }
      const parts = apportion(
        total,
        Float64Array.from(domain.children, (child) => take(child, high)),
        domain.children.map((child) => capacity(child) * slotCount),
      )
      domain.children.forEach((child, i) => {
        share(child, parts[i]!)
      })
    }
    share(cluster, this.#replicas * slotCount)
    return quota
  }
}

/** Replicas of one slot that fit into a domain under the limits of all levels. */
function capacity(domain: Domain): number {
  if (domain.disks.length > 0) return 1
  return Math.min(
    domain.perSlotMax,
    domain.children.reduce((sum, child) => sum + capacity(child), 0),
  )
}

/** Sets the smallest equal limit on `level` under which the cluster still holds `replicas` of a slot, and returns it. */
function strictest(level: readonly Domain[], cluster: Domain, replicas: number): number {
  for (let max = 1; ; max++) {
    for (const domain of level) domain.perSlotMax = max
    if (capacity(cluster) >= replicas) return max
  }
}

/** `total` in whole parts proportional to `ideals`, each at most its cap; remainders go to the largest fractions, then to the first. */
function apportion(total: number, ideals: Float64Array, caps: readonly number[] | Float64Array): Int32Array {
  const sum = ideals.reduce((a, b) => a + b, 0)
  const exact = Array.from(ideals, (ideal) => (sum === 0 ? 0 : (ideal * total) / sum))
  const parts = Int32Array.from(exact, (ideal, i) => Math.min(Math.floor(ideal + 1e-6), caps[i]!))
  let rest = total - parts.reduce((a, b) => a + b, 0)
  const order = exact.map((_, i) => i).sort((a, b) => exact[b]! - parts[b]! - (exact[a]! - parts[a]!) || a - b)
  while (rest > 0) {
    const before = rest
    for (const i of order) {
      if (rest === 0) break
      if (parts[i]! < caps[i]!) {
        parts[i]!++
        rest--
      }
    }
    assert(rest < before, `cannot share ${total} under the caps given`)
  }
  return parts
}

/** Dense numbers for the distinct keys, in order of appearance. */
function indexBy(disks: readonly PlacementDisk[], keyOf: (disk: PlacementDisk) => string): Int32Array {
  const numbers = new Map<string, number>()
  return Int32Array.from(disks, (disk) => {
    const key = keyOf(disk)
    const known = numbers.get(key)
    if (known !== undefined) return known
    numbers.set(key, numbers.size)
    return numbers.size - 1
  })
}

interface Hop {
  readonly from: number
  readonly to: number
  readonly slot: number
}

/**
 * Breadth first from all sources to the nearest target. The first hop returned only names where the path starts. `edges` tells `visit` of those of `unreached`
 * that can be reached from there, until that returns true.
 */
function shortestPath(
  count: number,
  isSource: (i: number) => boolean,
  isTarget: (i: number) => boolean,
  edges: (from: number, unreached: ReadonlySet<number>, visit: (to: number, slot: number) => boolean) => void,
): Hop[] | null {
  const reached: Array<Hop | undefined> = new Array<Hop | undefined>(count).fill(undefined)
  const unreached = new Set<number>()
  const queue: number[] = []
  for (let i = 0; i < count; i++) {
    if (isSource(i)) {
      reached[i] = { from: -1, to: i, slot: -1 }
      queue.push(i)
    } else unreached.add(i)
  }
  for (let at = 0; at < queue.length; at++) {
    const from = queue[at]!
    let found = -1
    edges(from, unreached, (to, slot) => {
      unreached.delete(to)
      reached[to] = { from, to, slot }
      queue.push(to)
      if (isTarget(to)) found = to
      return found >= 0
    })
    if (found < 0) continue
    const path: Hop[] = []
    for (let hop = reached[found]!; ; hop = reached[hop.from]!) {
      path.unshift(hop)
      if (hop.from < 0) return path
    }
  }
  return null
}
