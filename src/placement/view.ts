/**
 * What the coordinator (the Raft leader's control plane) believes of each node: DOWN, MAYBE or UP (protocol 26). Volatile.
 *
 * Invariant: a node is UP only if its lease was renewed after the newest evidence against *any* node; so whoever is dropped in favour of
 * an UP survivor is dropped in favour of one that was alive after the loss was known.
 */
import type { Incarnation, NodeNumber } from '../base/ids.ts'

export const View = { DOWN: 0, MAYBE: 1, UP: 2 } as const
export type View = (typeof View)[keyof typeof View]

/** One node, as a Raft command carries it. */
export interface ViewRow {
  readonly node: NodeNumber
  readonly view: View
  /** The registered one. */
  readonly incarnation: Incarnation
}

export interface NodeViews {
  /** MAYBE for a node nobody knows. */
  view(node: NodeNumber): View
  /** The registered incarnation, 0 for a node that never registered. */
  incarnation(node: NodeNumber): Incarnation
}

const NEVER_REGISTERED = 0 as Incarnation

/** Views out of a command. */
export function viewsFromRows(rows: readonly ViewRow[]): NodeViews {
  const byNode = new Map(rows.map((row) => [row.node, row]))
  return {
    view: (node) => byNode.get(node)?.view ?? View.MAYBE,
    incarnation: (node) => byNode.get(node)?.incarnation ?? NEVER_REGISTERED,
  }
}

export class CoordinatorView implements NodeViews {
  readonly #views = new Map<NodeNumber, View>()
  readonly #incarnations = new Map<NodeNumber, Incarnation>()

  /** A leader starts (again): it has seen no renewal yet. `registered` comes from the replicated state. */
  newLeader(registered: Iterable<readonly [NodeNumber, Incarnation]>): void {
    this.#views.clear()
    this.#incarnations.clear()
    for (const [node, incarnation] of registered) {
      this.#views.set(node, View.MAYBE)
      this.#incarnations.set(node, incarnation)
    }
  }

  /** A registration was applied. A newer process proves that the older one is dead. */
  registered(node: NodeNumber, incarnation: Incarnation): void {
    const known = this.incarnation(node)
    if (incarnation <= known) return
    this.#incarnations.set(node, incarnation)
    this.#doubt([node])
  }

  /**
   * Leases that are over, or proofs of death, all found together: one event. Evidence against another incarnation than the registered one
   * says nothing. Returns the nodes that went DOWN by it.
   */
  evidence(against: ReadonlyArray<{ readonly node: NodeNumber; readonly incarnation: Incarnation }>): NodeNumber[] {
    const nodes = against.filter(({ node, incarnation }) => this.#incarnations.get(node) === incarnation).map(({ node }) => node)
    const news = nodes.filter((node) => this.view(node) !== View.DOWN)
    // a second proof of a known death is no news: it must not make survivors renew once more
    if (news.length > 0) this.#doubt(news)
    return news
  }

  /** The lease of that process was renewed after every evidence so far. False (and nothing changes) when it is not the registered one. */
  renewal(node: NodeNumber, incarnation: Incarnation): boolean {
    if (this.#incarnations.get(node) !== incarnation) return false
    this.#views.set(node, View.UP)
    return true
  }

  /** The node has left the cluster. */
  forget(node: NodeNumber): void {
    this.#views.delete(node)
    this.#incarnations.delete(node)
  }

  view(node: NodeNumber): View {
    return this.#views.get(node) ?? View.MAYBE
  }

  incarnation(node: NodeNumber): Incarnation {
    return this.#incarnations.get(node) ?? NEVER_REGISTERED
  }

  /** By node number. */
  rows(): ViewRow[] {
    return [...this.#views].sort(([a], [b]) => a - b).map(([node, view]) => ({ node, view, incarnation: this.incarnation(node) }))
  }

  #doubt(down: readonly NodeNumber[]): void {
    for (const [node, view] of this.#views) if (view === View.UP) this.#views.set(node, View.MAYBE)
    for (const node of down) this.#views.set(node, View.DOWN)
  }
}
