/**
 * The Raft group follows the replicated list of nodes: every member of the cluster is in the group, an odd number of them (up to five) votes.
 * The leader looks again and again, so that whatever was interrupted is completed.
 */
import { messageOf } from '../base/errors.ts'
import type { NodeNumber } from '../base/ids.ts'
import type { Clock, Log } from '../env/control.ts'
import type { Raft } from '../raft/driver.ts'
import { encodeCommand } from './command.ts'
import type { ClusterState } from './state.ts'

export const VOTERS_MAX = 5
/** A learner this near to the end of the log may vote. */
const CAUGHT_UP_ENTRIES = 100
const CHANGE_TIMEOUT_MS = 5000

export interface MembersOptions {
  readonly raft: Raft
  readonly state: ClusterState
  readonly clock: Clock
  readonly log: Log
  readonly isUp: (node: NodeNumber) => boolean
}

/** How many of `nodes` should vote: an even number would not survive more losses than the odd one below it. */
export function votersWanted(nodes: number): number {
  const most = Math.min(VOTERS_MAX, nodes)
  return most % 2 === 1 ? most : Math.max(1, most - 1)
}

export class Members {
  readonly #options: MembersOptions
  #running = false
  #lastError = ''

  constructor(options: MembersOptions) {
    this.#options = options
  }

  /** One change at a time; at once back when there is nothing to do or one is under way. */
  reconcile(): void {
    if (this.#running) return
    const change = this.#next()
    if (change === undefined) return
    this.#running = true
    change()
      .then(
        () => {
          this.#lastError = ''
        },
        (error: unknown) => {
          const text = messageOf(error)
          if (text !== this.#lastError) this.#options.log.log('WARN', 'a change of the Raft group failed, trying again', { error: text })
          this.#lastError = text
        },
      )
      .finally(() => {
        this.#running = false
      })
  }

  #next(): (() => Promise<unknown>) | undefined {
    const { raft, state, log } = this.#options
    const { voters, learners } = raft.members
    const inGroup = new Set([...voters, ...learners])
    const nodes = [...state.nodes.values()].sort((a, b) => a.node - b.node)
    const timeout = { timeoutMs: CHANGE_TIMEOUT_MS }

    const missing = nodes.find(({ node }) => !inGroup.has(node))
    if (missing !== undefined) {
      log.log('INFO', 'a node joins the Raft group', { node: missing.id })
      return () => raft.addLearner(missing.node, timeout)
    }
    const gone = [...inGroup].sort((a, b) => a - b).find((node) => !state.nodes.has(node))
    if (gone !== undefined) {
      if (gone === raft.id) return this.#handOver()
      log.log('INFO', 'a node leaves the Raft group', { node: gone })
      return () => raft.remove(gone, timeout)
    }
    const emptied = nodes.find((node) => node.state === 'leaving' && state.chains.every((chain) => chain.entries.every((entry) => entry.node !== node.node)))
    if (emptied !== undefined) {
      if (emptied.node === raft.id) return this.#handOver()
      return () => raft.propose(encodeCommand('node.remove', { node: emptied.node }), timeout)
    }
    return this.#nextVoter()
  }

  /**
   * As many of those that stay vote as should; who leaves votes no longer than it takes to replace it. A leader that leaves goes last: it cannot give up
   * its own vote, so it needs an heir that has one.
   */
  #nextVoter(): (() => Promise<unknown>) | undefined {
    const { raft, state, log, isUp } = this.#options
    const { voters, learners } = raft.members
    const eligible = new Set([...state.nodes.values()].filter((node) => node.incarnation > 0 && node.state === 'member').map(({ node }) => node))
    const wanted = votersWanted(eligible.size)
    const staying = voters.filter((node) => eligible.has(node))
    if (staying.length < wanted) {
      const status = raft.status()
      const ready = learners
        .filter((node) => eligible.has(node) && isUp(node))
        .filter((node) => status.progress.some((of) => of.node === node && of.active && of.matched + CAUGHT_UP_ENTRIES >= status.lastIndex))
        .sort((a, b) => a - b)
        .slice(0, wanted - staying.length)
      // from odd to odd: two at a time where that is what it takes
      const count = (staying.length + ready.length) % 2 === 1 ? ready.length : ready.length - 1
      if (count <= 0) return undefined
      const addVoters = ready.slice(0, count)
      const addLearners = voters.filter((node) => node !== raft.id && state.nodes.get(node)?.state === 'leaving')
      log.log('INFO', 'nodes become voters', { nodes: addVoters.map((node) => state.nodes.get(node)?.id) })
      return () => raft.changeMembers({ addVoters, addLearners }, { timeoutMs: CHANGE_TIMEOUT_MS })
    }
    if (state.nodes.get(raft.id)?.state === 'leaving') return this.#handOver()
    if (voters.length > wanted) {
      const order = voters
        .filter((node) => node !== raft.id)
        .sort((a, b) => Number(eligible.has(a)) - Number(eligible.has(b)) || Number(isUp(a)) - Number(isUp(b)) || b - a)
      const leaves = order.slice(0, voters.length - wanted)
      log.log('INFO', 'nodes do not vote any more', { nodes: leaves.map((node) => state.nodes.get(node)?.id) })
      return () => raft.changeMembers({ addLearners: leaves }, { timeoutMs: CHANGE_TIMEOUT_MS })
    }
    return undefined
  }

  #handOver(): (() => Promise<unknown>) | undefined {
    const { raft, state, isUp } = this.#options
    const heir = raft.members.voters.find((node) => node !== raft.id && isUp(node) && state.nodes.get(node)?.state === 'member')
    return heir === undefined ? undefined : () => raft.transferLeader(heir)
  }
}
