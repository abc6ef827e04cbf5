import { XsanError } from '../../base/errors.ts'
import type { Operation } from './operation.ts'

/** From now on commands of that level may be in the log. Every node can apply them, or it is refused. */
export const featureRaise: Operation<{ readonly level: number }, { level: number }> = {
  feature: 1,
  apply(state, { level }) {
    for (const node of [...state.nodes.values()].sort((a, b) => a.node - b.node)) {
      if (node.featureMax < level)
        throw new XsanError('NOT_SUPPORTED', `node ${node.id} knows feature level ${node.featureMax} only`, `Upgrade ${node.id} first.`)
    }
    if (level > state.featureLevel) state.setFeatureLevel(level)
    return { level: state.featureLevel }
  },
}
