/**
 * What must hold of a whole cluster beside what its clients see: looked at again and again while it runs (`Watch`), and once when everything
 * has come to rest (`leftovers`). Every checker has a test that shows that it can fail.
 */
import { ReplicaState } from '../../src/placement/chain.ts'
import { PageFlag, type ReplicaStore } from '../../src/store/store.ts'
import type { SimCluster } from './cluster.ts'
import type { Violation } from './history.ts'

const SAMPLE_MS = 100
const STATES_KEPT = 2000
/** Resync may move so much more than what differs. */
export const RESYNC_OVERHEAD = 1.1

/**
 * - Lease exclusion: no node that may answer by its own clock and table (valid lease, SERVING) has been dropped from that chain by the
 *   replicated state. (Nodes whose clock is beyond the bound are out of it: design 4.)
 * - State machines: all replicas of the replicated state have the same content at the same index.
 */
export class Watch {
  readonly violations: Violation[] = []
  readonly #cluster: SimCluster
  readonly #contents = new Map<number, { readonly node: string; readonly text: string }>()
  readonly #seen = new Map<string, number>()
  samples = 0
  #stopped = false

  constructor(cluster: SimCluster) {
    this.#cluster = cluster
  }

  start(): void {
    this.#cluster.world.schedule(SAMPLE_MS, 'watch', () => {
      if (this.#stopped) return
      this.sample()
      this.start()
    })
  }

  stop(): void {
    this.#stopped = true
  }

  sample(): void {
    this.samples++
    this.#leases()
    this.#states()
  }

  #leases(): void {
    const { state, world, nodes } = this.#cluster
    if (!state?.cluster) return
    for (const node of nodes) {
      const { plane, process } = node
      if (!plane || process?.state !== 'running' || world.nowMs < node.untrustedUntilMs) continue
      const { table } = plane
      if (table.slotCount === 0 || !table.leaseValid(process.bootMs())) continue
      const number = node.control?.member?.node
      for (const [slot, chain] of state.chains.entries()) {
        if (table.ownState[slot] !== ReplicaState.SERVING || table.version[slot]! >= chain.version) continue
        const entry = chain.entries.find((of) => of.node === number)
        if (entry !== undefined && entry.state <= ReplicaState.DRAINING) continue
        this.#found(
          'nobody serves without a lease',
          `${node.id} may answer for slot ${slot} in version ${table.version[slot]}, of which version ${chain.version} has dropped it, at ${world.nowMs.toFixed(0)} ms`,
        )
      }
    }
  }

  #states(): void {
    for (const node of this.#cluster.nodes) {
      const member = node.running ? node.control?.member : undefined
      if (!member?.raft) continue
      const index = member.raft.applied
      if (this.#seen.get(node.id) === index) continue
      this.#seen.set(node.id, index)
      const text = contentOf(member.state)
      const other = this.#contents.get(index)
      if (other === undefined) this.#contents.set(index, { node: node.id, text })
      else if (other.text !== text) {
        this.#found(
          'all replicas of the replicated state are equal',
          `${node.id} and ${other.node} differ at index ${index}: ${firstDifference(text, other.text)}`,
        )
      }
      if (this.#contents.size > STATES_KEPT) this.#contents.delete(this.#contents.keys().next().value!)
    }
  }

  #found(promise: string, detail: string): void {
    if (!this.violations.some((violation) => violation.promise === promise)) this.violations.push({ promise, detail })
  }
}

function firstDifference(a: string, b: string): string {
  let i = 0
  while (i < a.length && a[i] === b[i]) i++
  return `...${a.slice(Math.max(0, i - 40), i + 60)}... and ...${b.slice(Math.max(0, i - 40), i + 60)}...`
}

type ReplicatedState = NonNullable<SimCluster['state']>

/** The whole content of a state machine as text. */
export function contentOf(state: ReplicatedState): string {
  const { revision, chains, nodes, disks, volumes, settings, tokens, featureLevel } = state
  const maps = [nodes, disks, volumes, settings, tokens] as ReadonlyArray<ReadonlyMap<unknown, unknown>>
  return JSON.stringify([revision, featureLevel, chains, maps.map((map) => [...map].map(canonical).sort())])
}

/** An entry of a map as text that does not depend on the order of fields. */
function canonical([key, value]: readonly [unknown, unknown]): string {
  const fields = typeof value === 'object' && value !== null ? Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)) : value
  return JSON.stringify([key, fields])
}

/** What is still in use on healthy, idle nodes without clients. */
export function leftovers(cluster: SimCluster): string[] {
  const found: string[] = []
  for (const node of cluster.members()) {
    if (!node.running || !node.plane) continue
    const all: Record<string, number> = { ...node.plane.resources, nbdRequests: node.nbd?.requestCount ?? 0, nbdConnections: node.nbd?.connectionCount ?? 0 }
    for (const [what, count] of Object.entries(all)) if (count !== 0) found.push(`${node.id}: ${what} ${count} in use`)
  }
  return found
}

/** Bytes of pages of a slot whose id differs between two stores: what resync of the one from the other has to move. */
export function differingBytes(slot: number, from: ReplicaStore, to: ReplicaStore, pageBytes: number): number {
  let bytes = 0
  for (const block of from.blocksOf(slot)) {
    const { volume, layer, index } = from.blockIdentity(block)
    const there = to.findBlock(volume, layer, index)
    const source = from.capture(block)
    const own = there < 0 ? undefined : to.capture(there)
    for (let page = 0; page < source.flags.length; page++) {
      if (source.flags[page] !== PageFlag.DATA) continue
      if (own === undefined || own.idHigh[page] !== source.idHigh[page] || own.idLow[page] !== source.idLow[page]) bytes += pageBytes
    }
    from.release(source)
    if (own !== undefined) to.release(own)
  }
  return bytes
}
