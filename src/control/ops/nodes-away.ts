import type { NodeNumber } from '../../base/ids.ts'
import type { Operation } from './operation.ts'

/** node, ms without a lease, ms without an answer to Raft. */
export type NodeAway = readonly [NodeNumber, number, number]

/**
 * For so long nodes are away, as the leader has counted: the next one, of this term or after a restart of all, goes on from there. Times that have passed,
 * not moments, because no clock of one node means anything on another; what passes while nobody leads does not count.
 */
export const nodesAway: Operation<{ readonly nodes: readonly NodeAway[] }, null> = {
  feature: 3,
  apply(state, { nodes }) {
    // one that was removed meanwhile is waited for no more
    for (const [node, downMs, silentMs] of nodes) if (state.nodes.has(node)) state.putAway(node, { downMs, silentMs })
    return null
  },
}
