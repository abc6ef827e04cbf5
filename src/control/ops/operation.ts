/** What one operation of the replicated state is: a pure change. */
import type { ClusterState } from '../state.ts'

export interface Operation<Args, Value> {
  /** Feature level from which the cluster knows it. */
  readonly feature: number
  /**
   * Deterministic: only `state` and `args`, no order of a Map. Throws XsanError before it changes anything, or changes everything it has to.
   * The value is plain JSON.
   */
  apply(state: ClusterState, args: Args): Value
}
