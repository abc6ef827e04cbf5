/**
 * The Raft group follows the replicated list of nodes: every member of the cluster is in the group, an odd number of them (up to five) votes.
 * The leader looks again and again, so that whatever was interrupted is completed. Who is removed gives its vote up first.
 *
 * A voter that stays away (`failover.replace_voter_after`) gives its vote to a learner that lives; where there is none, and two of five are away, both only
 * learn until they are back: the three left may then lose one more. A joint change each time, so that a majority of the old voters and of the new ones
 * agree; the voters that live are never fewer than before, and three at least stay. Who returns is a learner, and votes again when a vote is free.
 * How long each has been silent is noted in the replicated state now and then (leader.ts), and a new leader goes on from there.
 */
import { messageOf } from '../base/errors.ts'
import type { NodeNumber } from '../base/ids.ts'
import type { Clock, Log } from '../env/control.ts'
import type { Raft } from '../raft/driver.ts'
import { encodeCommand } from './command.ts'
import type { AwayRecord, ClusterState, NodeRecord } from './state.ts'

export const VOTERS_MAX = 5
const VOTERS_MIN = 3
/** A learner this near to the end of the log may vote. */
const CAUGHT_UP_ENTRIES = 100
const CHANGE_TIMEOUT_MS = 5000
/** Looks are at most a quarter of a second apart; one that comes so late tells that this process stood still, and has heard nobody for that. */
const LOOK_LATE_MS = 5000

export interface MembersOptions {
  readonly raft: Raft
  readonly state: ClusterState
  readonly clock: Clock
  readonly log: Log
  readonly isUp: (node: NodeNumber) => boolean
  /** After which a voter is replaced; 0: never. */
  readonly replaceAfterMs: () => number
}

/** How many of `nodes` should vote: an even number would not survive more losses than the odd one below it. */
export function votersWanted(nodes: number): number {
  const most = Math.min(VOTERS_MAX, nodes)
  return most % 2 === 1 ? most : Math.max(1, most - 1)
}

/** How many voters may still be lost when so many of them live. */
const sparesOf = (voters: number, living: number) => living - (Math.floor(voters / 2) + 1)

/** What becomes of the voters that are `away` for long: `ready` learners take their places; without one they go where that saves the others a loss. */
export function replacement(
  voters: readonly NodeNumber[],
  away: readonly NodeNumber[],
  ready: readonly NodeNumber[],
): { readonly addVoters: readonly NodeNumber[]; readonly addLearners: readonly NodeNumber[] } {
  const living = voters.length - away.length
  const count = Math.min(away.length, ready.length)
  if (count > 0) return { addVoters: ready.slice(0, count), addLearners: away.slice(0, count) }
  // odd stays odd, and three are the fewest that survive a loss
  if (away.length >= 2 && living >= VOTERS_MIN && living % 2 === 1 && sparesOf(living, living) > sparesOf(voters.length, living))
    return { addVoters: [], addLearners: away }
  return { addVoters: [], addLearners: [] }
}

export class Members {
  readonly #options: MembersOptions
  #running = false
  #lastError = ''
  /** When each other member answered Raft last, or this node began to lead. A data plane that is long in replay costs nobody a vote: leases say nothing here. */
  readonly #heardMs = new Map<NodeNumber, number>()
  #sinceMs: number
  /** For how long others had been silent by then, as noted. Taken at the first look: then all that was noted before is applied. */
  #silentBefore: ReadonlyMap<NodeNumber, AwayRecord> | undefined
  #lookedMs: number

  constructor(options: MembersOptions) {
    this.#options = options
    this.#sinceMs = this.#lookedMs = options.clock.nowMs()
  }

  /** One change at a time; at once back when there is nothing to do or one is under way. */
  reconcile(): void {
    const nowMs = this.#options.clock.nowMs()
    if (nowMs - this.#lookedMs > LOOK_LATE_MS) {
      this.#heardMs.clear()
      this.#sinceMs = nowMs
      this.#silentBefore = undefined
    }
    this.#silentBefore ??= new Map(this.#options.state.away)
    this.#lookedMs = nowMs
    for (const { node, active } of this.#options.raft.status().progress) if (active) this.#heardMs.set(node, nowMs)
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

  /** For how long that node has not answered Raft. */
  silentMs(node: NodeNumber): number {
    const nowMs = this.#options.clock.nowMs()
    const heardMs = node === this.#options.raft.id ? nowMs : this.#heardMs.get(node)
    return heardMs === undefined ? nowMs - this.#sinceMs + (this.#silentBefore?.get(node)?.silentMs ?? 0) : nowMs - heardMs
  }

  #next(): (() => Promise<unknown>) | undefined {
    const { raft, state, log } = this.#options
    const { voters, learners, votersOutgoing } = raft.members
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
    const emptied = nodes.filter((node) => node.state === 'leaving' && !this.#holdsCopies(node.node))
    const votes = ({ node }: NodeRecord) => voters.includes(node) || votersOutgoing.includes(node)
    const free = emptied.find((node) => !votes(node))
    if (free !== undefined) return () => raft.propose(encodeCommand('node.remove', { node: free.node }), timeout)
    return this.#nextVoter() ?? this.#release(emptied[0]?.node)
  }

  /** Its process ends as soon as it hears that it is removed: while it has a vote, a majority may need it. */
  #release(node: NodeNumber | undefined): (() => Promise<unknown>) | undefined {
    if (node === undefined) return undefined
    return node === this.#options.raft.id
      ? this.#handOver()
      : this.#change({ addVoters: [], addLearners: [node] }, 'INFO', 'a node that is removed does not vote any more')
  }

  /** It answers Raft: it lives, as far as votes are concerned. */
  #isHeard(node: NodeNumber): boolean {
    const { raft } = this.#options
    return node === raft.id || raft.status().progress.some((of) => of.node === node && of.active)
  }

  #holdsCopies(node: NodeNumber): boolean {
    return this.#options.state.chains.some(({ entries }) => entries.some((entry) => entry.node === node))
  }

  /** Undefined when those that would vote then and live are no majority: it could not be completed, nor anything after it. */
  #change(
    { addVoters, addLearners }: { readonly addVoters: readonly NodeNumber[]; readonly addLearners: readonly NodeNumber[] },
    level: 'INFO' | 'WARN',
    what: string,
    fields: Readonly<Record<string, unknown>> = {},
  ): (() => Promise<unknown>) | undefined {
    const { raft, state, log } = this.#options
    const next = [...raft.members.voters.filter((node) => !addLearners.includes(node)), ...addVoters]
    if (2 * next.filter((node) => this.#isHeard(node)).length <= next.length) return undefined
    const names = (nodes: readonly NodeNumber[]) => nodes.map((node) => state.nodes.get(node)?.id)
    log.log(level, what, { vote: names(addVoters), doNot: names(addLearners), ...fields })
    return () => raft.changeMembers({ addVoters, addLearners }, { timeoutMs: CHANGE_TIMEOUT_MS })
  }

  /**
   * As many of those that stay vote as should; who leaves votes until it is replaced, or has nothing left to give: that may take hours, in which the others
   * have to survive a loss. A leader that leaves goes last: it cannot give up
   * its own vote, so it needs an heir that has one.
   */
  #nextVoter(): (() => Promise<unknown>) | undefined {
    const { raft, state, isUp } = this.#options
    const { voters, learners } = raft.members
    const eligible = new Set([...state.nodes.values()].filter((node) => node.incarnation > 0 && node.state === 'member').map(({ node }) => node))
    const emptying = [...state.nodes.values()].filter(({ node, state: of }) => of === 'leaving' && !this.#isAway(node) && this.#holdsCopies(node))
    const wanted = votersWanted(eligible.size + emptying.length)
    const staying = voters.filter((node) => eligible.has(node))
    if (staying.length < wanted) {
      const ready = this.#readyToVote(learners.filter((node) => eligible.has(node))).slice(0, wanted - staying.length)
      // from odd to odd: two at a time where that is what it takes
      const count = (staying.length + ready.length) % 2 === 1 ? ready.length : ready.length - 1
      if (count <= 0) return this.#replaceAway(staying, ready)
      const addVoters = ready.slice(0, count)
      const addLearners = voters.filter((node) => node !== raft.id && state.nodes.get(node)?.state === 'leaving')
      return this.#change({ addVoters, addLearners }, 'INFO', 'nodes become voters')
    }
    if (state.nodes.get(raft.id)?.state === 'leaving') return this.#handOver()
    if (voters.length > wanted) {
      const order = voters
        .filter((node) => node !== raft.id)
        .sort((a, b) => Number(eligible.has(a)) - Number(eligible.has(b)) || Number(isUp(a)) - Number(isUp(b)) || b - a)
      return this.#change({ addVoters: [], addLearners: order.slice(0, voters.length - wanted) }, 'INFO', 'nodes do not vote any more')
    }
    return this.#replaceAway(staying, this.#readyToVote(learners.filter((node) => eligible.has(node))))
  }

  /** Who may vote at once, of these. */
  #readyToVote(learners: readonly NodeNumber[]): NodeNumber[] {
    const { raft, isUp } = this.#options
    const status = raft.status()
    return learners
      .filter((node) => isUp(node))
      .filter((node) => status.progress.some((of) => of.node === node && of.active && of.matched + CAUGHT_UP_ENTRIES >= status.lastIndex))
      .sort((a, b) => a - b)
  }

  #replaceAway(voters: readonly NodeNumber[], ready: readonly NodeNumber[]): (() => Promise<unknown>) | undefined {
    const away = voters.filter((node) => this.#isAway(node))
    const { addVoters, addLearners } = replacement(voters, away, ready)
    if (addLearners.length === 0) return undefined
    return this.#change({ addVoters, addLearners }, 'WARN', 'voters that stay away do not vote any more', { afterMs: this.#options.replaceAfterMs() })
  }

  /** For so long that it is not waited for. */
  #isAway(node: NodeNumber): boolean {
    const { raft, replaceAfterMs } = this.#options
    const afterMs = replaceAfterMs()
    return afterMs !== 0 && node !== raft.id && this.silentMs(node) >= afterMs
  }

  #handOver(): (() => Promise<unknown>) | undefined {
    const { raft, state, isUp } = this.#options
    const heir = raft.members.voters.find((node) => node !== raft.id && isUp(node) && state.nodes.get(node)?.state === 'member')
    return heir === undefined ? undefined : () => raft.transferLeader(heir)
  }
}
