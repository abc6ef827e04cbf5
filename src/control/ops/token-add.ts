import { XsanError } from '../../base/errors.ts'
import type { NodeNumber } from '../../base/ids.ts'
import type { Operation } from './operation.ts'

const TOKENS_MAX = 1000

export interface TokenAddArgs {
  readonly hash: string
  /** '' = any node. */
  readonly nodeId: string
  readonly expiresAtMs: number
  readonly wallMs: number
}

/** A token that lets one node in, once. Old ones go. */
export const tokenAdd: Operation<TokenAddArgs, null> = {
  feature: 1,
  apply(state, args) {
    state.theCluster
    const known = args.nodeId === '' ? undefined : state.nodeById(args.nodeId)
    if (known !== undefined) {
      throw new XsanError(
        'ALREADY_EXISTS',
        `${args.nodeId} is a member already`,
        'Give the new node a node_id of its own, or remove the old one with `xsan cluster remove`.',
      )
    }
    const old = [...state.tokens.values()].filter((token) => token.expiresAtMs < args.wallMs)
    if (state.tokens.size - old.length >= TOKENS_MAX)
      throw new XsanError('BUSY', `${TOKENS_MAX} tokens wait to be used`, 'Use them, or wait until they expire.')
    for (const token of old) state.removeToken(token.hash)
    state.putToken({ hash: args.hash, nodeId: args.nodeId, expiresAtMs: args.expiresAtMs, usedBy: 0 as NodeNumber })
    return null
  },
}
