/**
 * How even placement is and how much a join or a leave moves, over clusters of 3 to 200 disks, 4096 slots, three copies.
 * Goals: the fullest disk within 5 % of the mean (by weight); one node joining N - 1 others moves at most 1.05/N of the replicas.
 */
import type { DiskNumber, NodeNumber } from '../../src/base/ids.ts'
import { type PlacementDisk, placeSlots } from '../../src/placement/place.ts'
import { SLOT_COUNT_DEFAULT } from '../../src/placement/ring.ts'

const REPLICAS = 3

interface Shape {
  readonly nodes: number
  readonly disksPerNode: number
  /** Capacity of a node's disks. */
  readonly weight: (node: number) => number
  readonly name: string
}

const equal = () => 1
const SHAPES: readonly Shape[] = [
  { nodes: 3, disksPerNode: 1, weight: equal, name: 'equal' },
  { nodes: 4, disksPerNode: 1, weight: equal, name: 'equal' },
  { nodes: 4, disksPerNode: 4, weight: equal, name: 'equal' },
  { nodes: 6, disksPerNode: 4, weight: (node) => 1 + (node % 2), name: '1 : 2' },
  { nodes: 10, disksPerNode: 1, weight: equal, name: 'equal' },
  { nodes: 10, disksPerNode: 8, weight: equal, name: 'equal' },
  { nodes: 20, disksPerNode: 5, weight: (node) => 1 + (node % 4), name: '1 : 2 : 3 : 4' },
  { nodes: 50, disksPerNode: 1, weight: equal, name: 'equal' },
  { nodes: 25, disksPerNode: 8, weight: equal, name: 'equal' },
  { nodes: 50, disksPerNode: 4, weight: (node) => 1 + (node % 2), name: '1 : 2' },
  { nodes: 200, disksPerNode: 1, weight: equal, name: 'equal' },
]

type Slots = ReadonlyArray<readonly DiskNumber[]>

function disksOf(shape: Shape, nodes: number): PlacementDisk[] {
  return Array.from({ length: nodes * shape.disksPerNode }, (_, i) => {
    const node = Math.floor(i / shape.disksPerNode) + 1
    return { disk: (i + 1) as DiskNumber, node: node as NodeNumber, weight: shape.weight(node) }
  })
}

/** Replicas per weight of the fullest disk, over the mean. */
function fullest(slots: Slots, disks: readonly PlacementDisk[]): number {
  const load = new Map<DiskNumber, number>()
  for (const members of slots) for (const disk of members) load.set(disk, (load.get(disk) ?? 0) + 1)
  const replicas = [...load.values()].reduce((a, b) => a + b, 0)
  const weight = disks.reduce((sum, disk) => sum + disk.weight, 0)
  return Math.max(...disks.map((disk) => (load.get(disk.disk) ?? 0) / disk.weight)) / (replicas / weight)
}

/** Slots headed by the busiest node, per replica it holds, over the mean. */
function busiestHead(slots: Slots, disks: readonly PlacementDisk[]): number {
  const nodeOf = new Map(disks.map((disk) => [disk.disk, disk.node]))
  const heads = new Map<NodeNumber, number>()
  const replicas = new Map<NodeNumber, number>()
  for (const members of slots) {
    members.forEach((disk, position) => {
      const node = nodeOf.get(disk)!
      replicas.set(node, (replicas.get(node) ?? 0) + 1)
      if (position === 0) heads.set(node, (heads.get(node) ?? 0) + 1)
    })
  }
  return Math.max(...[...replicas].map(([node, count]) => (heads.get(node) ?? 0) / count)) * Math.min(REPLICAS, replicas.size)
}

function movedShare(from: Slots, to: Slots): number {
  let moved = 0
  to.forEach((members, slot) => {
    for (const disk of members) if (!from[slot]!.includes(disk)) moved++
  })
  return moved / (to.length * REPLICAS)
}

export function main(): void {
  const columns = [
    'disks',
    'nodes',
    'capacity',
    'fullest',
    'heads',
    'join: fullest',
    'moved',
    'of fair share',
    'leave: fullest',
    'moved',
    'of fair share',
    'ms',
  ]
  console.log(`${SLOT_COUNT_DEFAULT} slots, ${REPLICAS} copies. fullest: replicas per capacity of the fullest disk over the mean (goal <= 1.05).`)
  console.log("moved: share of all replicas that move when one node joins or leaves; fair share: that node's share of the replicas (goal <= 1.05).\n")
  console.log(columns.map((title) => title.padStart(Math.max(title.length, 7))).join('  '))
  let worstFullest = 0
  let worstMoved = 0
  for (const shape of SHAPES) {
    const options = { slotCount: SLOT_COUNT_DEFAULT, replicas: REPLICAS }
    const few = disksOf(shape, shape.nodes)
    const many = disksOf(shape, shape.nodes + 1)
    const startMs = performance.now()
    const fresh = placeSlots(few, options)
    const joined = placeSlots(many, { ...options, previous: fresh })
    const left = placeSlots(few, { ...options, previous: joined })
    const elapsedMs = (performance.now() - startMs) / 3
    const weight = (disks: readonly PlacementDisk[]) => disks.reduce((sum, disk) => sum + disk.weight, 0)
    const share = (weight(many) - weight(few)) / weight(many)
    const figures = {
      fullest: [fullest(fresh, few), fullest(joined, many), fullest(left, few)],
      moved: [movedShare(fresh, joined), movedShare(joined, left)],
    }
    worstFullest = Math.max(worstFullest, ...figures.fullest)
    worstMoved = Math.max(worstMoved, ...figures.moved.map((moved) => moved / share))
    const cells = [
      few.length,
      shape.nodes,
      shape.name,
      figures.fullest[0]!.toFixed(3),
      busiestHead(fresh, few).toFixed(3),
      figures.fullest[1]!.toFixed(3),
      figures.moved[0]!.toFixed(4),
      (figures.moved[0]! / share).toFixed(3),
      figures.fullest[2]!.toFixed(3),
      figures.moved[1]!.toFixed(4),
      (figures.moved[1]! / share).toFixed(3),
      elapsedMs.toFixed(0),
    ]
    console.log(cells.map((cell, i) => String(cell).padStart(Math.max(columns[i]!.length, 7))).join('  '))
  }
  console.log(`\nworst: fullest ${worstFullest.toFixed(3)} of the mean (goal <= 1.05), moved ${worstMoved.toFixed(3)} of the fair share (goal <= 1.05)`)
}
