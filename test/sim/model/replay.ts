/**
 * Replays a schedule of the protocol model (test/model) against the real chains: three nodes with real `DataPlane`s (replicas, writes, forwarding, resync,
 * sessions, tables) and stores over the simulated network, in which nothing of consequence happens by itself. After every step what the model says is compared
 * with what the code holds.
 *
 * DRIVEN, per step of the model (numbers are the model's: node i is node i + 1 here, with one disk of the same number):
 *
 *   begin, giveup, resend   nothing: what a client decides. A write's content is a page made from (slot, channel, seq)
 *   order n s c q b         the update (a Cancel's empty record for b = blocks) is put before `Writes` of n with n's version; it must not be answered before it is committed
 *   answer n s c q b        the update is asked for again at n: its channel row must answer SUCCESS, at once
 *   old n s c q b           a late copy arrives at n: ordered if and only if the model orders it
 *   forward s a b cv id w   forwards and acknowledgements that arrive are held at the receiver, per slot and sender; this one is handed to `Forwarding.receive`. Held ones in front
 *                           of it must be of no effect (older versions, records that are there already) and are handed over first
 *   ack s a b cv sv         the same with `onAcks`; acknowledgements are cumulative, so of one that says more, as much is handed over
 *   learn n s v             that version of the chain goes to n as a table; what is held there of older versions is handed over, to be refused
 *   renew n                 n gets the newest chains of all slots, then a lease; the view of n is UP
 *   expire n, dead n        evidence against n (rule 26); expire: the lease of n ends. leader: all views are MAYBE
 *   chain s                 the coordinator's step: its conditions must hold in `TRANSITIONS`, and the chain that results must be the model's
 *   reported s n since      the same, for an up-to-date report, which the code must have sent
 *   kill n, power n k       the process ends; of the unsynced changes of its journal all (the first ones) survive. restart n: its next process, with the table its node had
 *   register n              n's incarnation is registered, and told to everybody. break a b: the session ends, and is built anew
 *   sync n                  the journal of n becomes durable (schedules with power losses; else staged is durable)
 *   compare, compared       the source answers the digests or the block list of a slot; the answer arrives. block, install: the same for one block. Calls are held at both points
 *   report s n since        the journal is synced, and the code must come to report
 *
 * CHECKED after each step, on every live node: chain version, own state, last id of the slot, committed sequence number, id and content of every block's page,
 * channel rows (seq, slot, held, id). At the end: every live replica serves and holds the committed history; each write has the model's outcome.
 *
 * Time passes a fraction of a millisecond per step, and all retries are far away, so that no timer decides anything.
 */
import { assert } from '../../../src/base/assert.ts'
import { Status } from '../../../src/base/status.ts'
import { CHAIN_OP_PAGES_MAX, PAGE_BYTES } from '../../../src/base/units.ts'
import type { DataPlane } from '../../../src/chain/data-plane.ts'
import { idHighOf, idLowOf, NONE, svOf } from '../../../src/chain/records.ts'
import type { SimArena } from '../../../src/env/sim/arena.ts'
import type { Chain, ChainEntry, ChainEvent, LastId } from '../../../src/placement/chain.ts'
import { nextStep, packChains, REPLICA_STATE_NAMES, ReplicaState, TRANSITIONS, unmetConditions } from '../../../src/placement/chain.ts'
import type { ReactorToControl } from '../../../src/placement/messages.ts'
import { slotOf } from '../../../src/placement/ring.ts'
import { View } from '../../../src/placement/view.ts'
import { ChannelRows } from '../../../src/store/channel-rows.ts'
import { NO_BLOCK, RecordKind } from '../../../src/store/store.ts'
import { Ack, CallKind, FRAME_BYTES } from '../../../src/wire/peer.ts'
import { ChainCluster, type ChainNode, pattern, VOLUME } from '../../support/chain-cluster.ts'
import { CallsGate, type HeldCall } from './calls-gate.ts'
import type { ModelSchedule, Step } from './schedule.ts'

/** Passes after each step that a message or a completion may take. */
const STEP_MS = 3
/** After one that the control plane's word takes part in. */
const CONTROL_MS = 4
const NEVER_MS = 1e9
/** Low halves of the channel's clients: nobody's incarnation, so that no fence touches their rows. */
const CLIENT_HIGH = 200 << 8
const CLIENT_LOW = 1

const LETTERS: Readonly<Record<string, ReplicaState>> = {
  S: ReplicaState.SERVING,
  D: ReplicaState.DRAINING,
  Y: ReplicaState.SYNCING,
  L: ReplicaState.LASTSRV,
  W: ReplicaState.WAITING,
  O: ReplicaState.OFFLINE,
}

/** As it is in the source, also while a test has planted another. */
const { lookup } = ChannelRows.prototype

/** Model and code differ. */
export class Divergence extends Error {
  readonly schedule: string
  readonly stepIndex: number
  constructor(schedule: ModelSchedule, stepIndex: number, detail: string) {
    const step = schedule.steps[stepIndex]
    super(`schedule ${schedule.seed}, step ${stepIndex + 1} of ${schedule.steps.length} (${step?.text ?? 'end'}): ${detail}`)
    this.schedule = schedule.seed
    this.stepIndex = stepIndex
  }
}

interface HeldForward {
  readonly slot: number
  readonly from: number
  readonly row: number
  readonly version: number
  readonly sv: number
  readonly idHigh: number
  readonly idLow: number
}
interface HeldAck {
  readonly slot: number
  readonly from: number
  readonly peer: number
  readonly version: number
  readonly sv: number
}

/** What the model says of a node. */
interface ModelNode {
  up: boolean
  incarnation: number
  lease: boolean
  /** Changes of its journal that are not durable, and one. */
  states: number
}
interface ModelReplica {
  version: number
  state: ReplicaState
  committed: number
  last: string
  session: number
  phase: number
  /** Per block `cv.sv:channel.seq`, or -. */
  blocks: string[]
}

/** Names a process of a node. */
interface Process {
  readonly node: ChainNode
  plane: DataPlane | undefined
}

/** A process of a node, with what is held back from it. */
class Side {
  readonly process: Process
  readonly node: ChainNode
  readonly plane: DataPlane
  readonly forwards: HeldForward[] = []
  readonly acks: HeldAck[] = []
  leased = false
  /** Of the newest table that was sent to it. */
  revision = 0
  /** The process has been given a lease. */
  granted = false
  /** Tries that were answered SUCCESS. */
  readonly answered = new Set<number>()
  readonly #receive: (row: number) => string | null
  readonly #onAcks: (peer: number, at: number, headBytes: number) => string | null

  constructor(process: Process) {
    const { node } = process
    this.process = process
    this.node = node
    this.plane = node.plane
    const { forwarding, replicas, peers, table } = this.plane
    this.#receive = forwarding.receive.bind(forwarding)
    this.#onAcks = forwarding.onAcks.bind(forwarding)
    forwarding.receive = (row) => {
      const { records } = replicas
      this.forwards.push({
        slot: records.slot[row]!,
        from: peers.nodeOf(records.peer[row]!),
        row,
        version: records.chainVersion[row]!,
        sv: records.sv[row]!,
        idHigh: records.idHigh[row]!,
        idLow: records.idLow[row]!,
      })
      return null
    }
    forwarding.onAcks = (peer, at, headBytes) => {
      const { view } = node.queue.arena
      for (let entry = at + FRAME_BYTES; entry < at + headBytes; entry += Ack.size) {
        this.acks.push({
          slot: Ack.get.slot(view, entry),
          from: peers.nodeOf(peer),
          peer,
          version: Ack.get.chainVersion(view, entry),
          sv: Ack.get.sv(view, entry),
        })
      }
      return null
    }
    const leaseValid = table.leaseValid.bind(table)
    table.leaseValid = (nowMs) => this.leased && leaseValid(nowMs)
    const client = node.client as unknown as {
      onAnswer(row: number, generation: number, status: number, version: number): void
      pin(operation: number): void
      unpin(operation: number): void
    }
    client.onAnswer = (row, _generation, status) => {
      if (status === Status.SUCCESS) this.answered.add(row)
    }
    client.pin = client.unpin = () => undefined
  }

  deliverForward(held: HeldForward): string | null {
    this.forwards.splice(this.forwards.indexOf(held), 1)
    return this.#receive(held.row)
  }

  /** Acknowledges up to `sv`: what it says beyond that is kept for later. */
  deliverAck(held: HeldAck, sv = held.sv): string | null {
    if (sv >= held.sv) this.acks.splice(this.acks.indexOf(held), 1)
    const { view } = this.node.queue.arena
    const page = this.node.queue.arena.alloc(PAGE_BYTES)
    assert(page !== -1, 'the arena is full')
    const at = page * PAGE_BYTES
    Ack.set.slot(view, at + FRAME_BYTES, held.slot)
    Ack.set.chainVersion(view, at + FRAME_BYTES, held.version)
    Ack.set.sv(view, at + FRAME_BYTES, Math.min(sv, held.sv))
    const reason = this.#onAcks(held.peer, at, FRAME_BYTES + Ack.size)
    this.node.queue.arena.free(page)
    return reason
  }

  /** What is under way from that node is lost. */
  loseFrom(number: number): void {
    for (const held of this.forwards.filter((each) => each.from === number)) {
      this.forwards.splice(this.forwards.indexOf(held), 1)
      this.plane.replicas.abandon(held.row)
    }
    for (const held of this.acks.filter((each) => each.from === number)) this.acks.splice(this.acks.indexOf(held), 1)
  }
}

/** Hands out nothing by itself, and keeps what it is told. */
class SteeredCluster extends ChainCluster {
  readonly reports: Array<{ node: number; slot: number; since: number; incarnation: number }> = []
  readonly lastIds: LastId[] = []
  readonly errors: string[] = []

  override heard(node: ChainNode, incarnation: number, message: ReactorToControl): void {
    if (message.type === 'upToDate') {
      for (let i = 0; i < message.reports.length; i += 3) {
        const [slot, since, by] = message.reports.subarray(i, i + 3)
        this.reports.push({ node: node.number, slot: slot!, since: since!, incarnation: by! >>> 0 })
      }
    } else if (message.type === 'lastIds') {
      for (let i = 0; i < message.ids.length; i += 5) {
        const [slot, version, hi, lo] = message.ids.subarray(i, i + 5)
        const id = { disk: message.disk, incarnation: incarnation as never, version: version as never, hi: hi! >>> 0, lo: lo! >>> 0 }
        this.lastIds.unshift({ ...id, slot } as LastId)
      }
    } else if (message.type === 'log' && message.level === 'ERROR')
      this.errors.push(`node ${node.number}: ${message.message} ${JSON.stringify(message.fields)}`)
  }
}

export interface ReplayCounts {
  steps: number
  /** Chain steps whose whole result came from `nextStep`; the others were checked against its conditions alone. */
  chainSteps: number
  chainStepsSettled: number
  acknowledged: number
  resyncs: number
}

export class Replay {
  readonly counts: ReplayCounts = { steps: 0, chainSteps: 0, chainStepsSettled: 0, acknowledged: 0, resyncs: 0 }
  readonly #schedule: ModelSchedule
  readonly #cluster: SteeredCluster
  readonly #gate: CallsGate
  readonly #arenas: SimArena[] = []
  readonly #sides: Side[] = []
  readonly #facts = new Map<string, string>()
  readonly #nodes: ModelNode[] = []
  readonly #replicas: ModelReplica[][] = []
  /** Per slot, by version - 1. */
  readonly #history: Chain[][] = []
  readonly #registered: number[] = []
  readonly #blockIndex: number[][] = []
  readonly #crcs = new Map<string, number>()
  readonly #acknowledged = new Set<string>()
  /** Per node: ends the sync under way. */
  readonly #syncs: Array<(() => void) | undefined> = []
  /** Per node: journal position of each of the model's states of its disk, the durable one first. */
  readonly #marks: number[][] = [[0], [0], [0]]
  #stepIndex = 0
  /** Updates that were put before a head, by number. */
  readonly #tries: Array<{ slot: number; channel: number; seq: number }> = []
  #revision = 1
  readonly #trace: ((line: string) => void) | undefined

  constructor(schedule: ModelSchedule, options: { trace?: (line: string) => void } = {}) {
    this.#schedule = schedule
    this.#trace = options.trace
    const arenaBytes = Math.max(2, schedule.slots * schedule.blocks) * ARENA_BYTES_PER_BLOCK
    this.#cluster = new SteeredCluster({
      seed: schedule.seed as never,
      nodes: 3,
      slots: schedule.slots,
      network: { delayMinMs: 0.01, delayMaxMs: 0.01, slow: 0, fragment: 0 },
      queue: {
        arenaBytes,
        arenaMemory: () => {
          const at = SPARE.findIndex((memory) => memory.length === arenaBytes)
          return at < 0 ? new Uint8Array(arenaBytes) : SPARE.splice(at, 1)[0]!
        },
        faults: { late: 0, lateMs: 0, reorder: 0, shortRecv: 0 },
      },
      store: {
        stageMs: 0,
        readMs: 0,
        volatile: !schedule.durable,
        onSync: (disk, end) => {
          this.#syncs[disk - 1] = end
        },
      },
      plane: { limits: LIMITS, settings: { retryFirstMs: NEVER_MS, retryMaxMs: NEVER_MS, retryTotalMs: NEVER_MS, writeLifeMs: NEVER_MS } },
      ...(options.trace ? { trace: options.trace } : {}),
    })
    this.#gate = new CallsGate({
      isFrom: (owner, peerAtOwner, call) => {
        const server = owner as Process
        const caller = call.caller as Process
        return server.plane!.peers.nodeOf(peerAtOwner) === caller.node.number && askedOf(call) === server.node.number
      },
      settled: () => {
        this.#cluster.world.asyncPending = true
      },
    })
  }

  async run(): Promise<ReplayCounts> {
    try {
      await this.#start()
      for (const [i, step] of this.#schedule.steps.entries()) {
        this.#stepIndex = i
        this.#trace?.(`---- ${step.text}`)
        await this.#step(step)
        this.counts.steps++
      }
      this.#stepIndex = this.#schedule.steps.length
      this.#end()
      return this.counts
    } catch (error) {
      if (error instanceof Divergence) throw error
      throw new Divergence(this.#schedule, this.#stepIndex, error instanceof Error ? (error.stack ?? error.message) : String(error))
    } finally {
      this.#gate.close()
      for (const { node } of this.#sides) node.process.kill()
      for (const arena of this.#arenas.slice(0, SPARE_MAX - SPARE.length)) SPARE.push(arena.retire())
    }
  }

  #fail(detail: string): never {
    throw new Divergence(this.#schedule, this.#stepIndex, detail)
  }

  // ---- the model's word ----------------------------------------------------------------------------------------------------

  #takeFacts(facts: ReadonlyMap<string, string>): void {
    for (const [name, value] of facts) {
      this.#facts.set(name, value)
      const [i = 0, j = 0] = name.slice(1).split('.').map(Number)
      if (name[0] === 'n') {
        const [up, incarnation, lease, states] = value.split(',').map(Number)
        this.#nodes[i] = { up: up === 1, incarnation: incarnation!, lease: lease === 1, states: states! }
      } else if (name[0] === 'r') {
        const [version, state, committed, last, session, phase, ...blocks] = value.split(',')
        this.#replicas[i] ??= []
        this.#replicas[i]![j] = {
          version: Number(version),
          state: LETTERS[state!]!,
          committed: Number(committed),
          last: last!,
          session: Number(session),
          phase: Number(phase),
          blocks,
        }
      } else if (name[0] === 'c') {
        this.#history[i] ??= []
        const chain = chainOf(value)
        if (chain.version !== this.#history[i]!.length + 1)
          this.#fail(`the model's chain ${i} goes from version ${this.#history[i]!.length} to ${chain.version}`)
        this.#history[i]!.push(chain)
      }
    }
  }

  #chain(slot: number): Chain {
    return this.#history[slot]!.at(-1)!
  }

  // ---- the cluster ---------------------------------------------------------------------------------------------------------

  async #start(): Promise<void> {
    const { slots, blocks, init } = this.#schedule
    this.#takeFacts(init)
    for (let slot = 0; slot < slots; slot++) {
      const indexes: number[] = []
      for (let index = 0; indexes.length < blocks; index++) if (slotOf(VOLUME, index, slots) === slot) indexes.push(index)
      this.#blockIndex.push(indexes)
    }
    for (const node of this.#cluster.nodes) {
      this.#registered.push(1)
      this.#startProcess(node)
    }
    await this.#connected()
    for (let n = 0; n < 3; n++) this.#grant(n)
    await this.#pass(CONTROL_MS)
    this.#compare()
  }

  #startProcess(node: ChainNode): void {
    const process: Process = { node, plane: undefined }
    this.#gate.during(process, () => node.start())
    process.plane = node.plane
    node.queue.arena.poisonBytesMax = POISON_BYTES_MAX
    this.#arenas.push(node.queue.arena)
    const n = node.number - 1
    this.#sides[n] = new Side(process)
    this.#sendTable(
      n,
      this.#replicas[n]!.map((replica, slot) => [slot, replica.version] as const),
    )
  }

  #sendTable(n: number, versions: ReadonlyArray<readonly [slot: number, version: number]>): void {
    const { nodes } = this.#cluster
    const message = {
      type: 'table',
      revision: ++this.#revision,
      slotCount: this.#schedule.slots,
      chains: packChains(versions.map(([slot, version]) => ({ slot: slot as never, chain: this.#history[slot]![version - 1]! }))),
      nodes: nodes.map((each) => ({
        node: each.number,
        id: `node-${each.number}`,
        incarnation: this.#registered[each.number - 1]!,
        dataAddress: `10.0.0.${each.number}:8000`,
      })),
      disks: nodes.map((each) => ({ disk: each.disk, node: each.number })),
      volumes: [{ volume: VOLUME, name: 'db', sizeBytes: 2 ** 40, replicas: 3, syncWhenWrite: true, readOnly: false }],
    }
    this.#sides[n]!.revision = this.#revision
    this.#cluster.node(n + 1).send(message as never)
  }

  #grant(n: number): void {
    this.#sides[n]!.leased = this.#sides[n]!.granted = true
    this.#cluster.node(n + 1).send({ type: 'lease', untilMs: NEVER_MS, revision: this.#sides[n]!.revision as never })
  }

  /** A process that never had a lease is given one that names a table it has not: it must not use it (rule 28). */
  async #grantTooEarly(n: number): Promise<void> {
    const side = this.#sides[n]!
    side.granted = side.leased = true
    this.#cluster.node(n + 1).send({ type: 'lease', untilMs: NEVER_MS, revision: (this.#revision + 1) as never })
    await this.#pass(CONTROL_MS)
    if (side.plane.table.leaseValid(side.node.queue.nowMs)) this.#fail(`node ${n} uses a lease before its table`)
  }

  async #pass(ms: number): Promise<void> {
    await this.#cluster.world.runFor(ms)
  }

  async #until(what: string, holds: () => boolean, limitMs = 3000): Promise<void> {
    if (!(await this.#cluster.world.run(holds, limitMs))) this.#fail(`it does not come to: ${what}`)
  }

  /** All live processes have sessions with each other. */
  async #connected(): Promise<void> {
    const live = this.#cluster.nodes.filter((node) => node.up)
    const isUp = (node: ChainNode, other: ChainNode) =>
      node.plane.peers.peers.some((peer) => peer.node === other.number && peer.up && peer.incarnation === other.incarnation)
    await this.#until('sessions between all', () => live.every((node) => live.every((other) => node === other || isUp(node, other))))
    await this.#pass(STEP_MS)
  }

  /** Runs inside an event of the process, as a reactor's turn would. */
  #inProcess(n: number, fn: (side: Side) => void): void {
    const side = this.#sides[n]!
    side.node.process.schedule(0, 'model step', () => {
      fn(side)
      side.plane.settle()
    })
  }

  // ---- steps ---------------------------------------------------------------------------------------------------------------

  async #step(step: Step): Promise<void> {
    const { name, args } = step
    const before = this.#registered.map((_, n) => this.#replicas[n]!.map((replica) => ({ ...replica })))
    const chainsBefore = this.#history.map((chains) => chains.length)
    const hadEffect = step.facts.size > 0
    this.#takeFacts(step.facts)
    const [a = 0, b = 0, c = 0, d = 0, e = 0] = args
    switch (name) {
      case 'begin':
      case 'giveup':
      case 'resend':
        return
      case 'order':
      case 'old':
        this.#update(a, b, c, d, e)
        await this.#pass(STEP_MS)
        break
      case 'answer': {
        const attempt = this.#update(a, b, c, d, e)
        await this.#pass(STEP_MS)
        if (!this.#sides[a]!.answered.has(attempt)) this.#fail('the model answers, the code does not')
        if (e < this.#schedule.blocks) this.#acknowledged.add(`${b}.${c}.${d}.${e}`)
        this.counts.acknowledged++
        break
      }
      case 'forward':
        this.#forward(step, hadEffect)
        await this.#pass(STEP_MS)
        break
      case 'ack':
        this.#ack(step, hadEffect)
        await this.#pass(STEP_MS)
        break
      case 'learn':
        this.#sendTable(a, [[b, c]])
        await this.#learned(a, before[a]!)
        break
      case 'renew':
        if (!this.#sides[a]!.granted) await this.#grantTooEarly(a)
        this.#sendTable(
          a,
          this.#history.map((chains, slot) => [slot, chains.length] as const),
        )
        this.#cluster.views[a] = View.UP
        await this.#learned(a, before[a]!)
        this.#grant(a)
        await this.#pass(CONTROL_MS)
        break
      case 'expire':
        this.#sides[a]!.leased = false
        this.#doubt(a)
        // whatever is asked for again there is answered no more
        for (const [channel, row] of this.#facts.get(`w${a}`)!.split(',').entries()) {
          const [seq = 0, slot = 0] = row.split('.').map(Number)
          if (seq > 0) this.#update(a, slot, channel, seq, this.#schedule.blocks)
        }
        await this.#pass(STEP_MS)
        break
      case 'dead':
        this.#doubt(a)
        break
      case 'leader':
        this.#cluster.views.fill(View.MAYBE)
        break
      case 'chain':
        this.#chainStep(a, {})
        break
      case 'reported':
        this.#reported(a, b, c, this.#history[a]!.length > chainsBefore[a]!)
        break
      case 'sync':
        await this.#sync(a)
        break
      case 'power': {
        const { store } = this.#cluster.node(a + 1)
        const kept = this.#marks[a]!.at(-1 - b)!
        this.#cluster.node(a + 1).losePower({ keep: Math.max(0, kept - store.durableSeq) })
        for (const side of this.#sides) side.loseFrom(a + 1)
        // nobody hears anything of it: its connections are closed by the coordinator's word
        const { incarnation } = this.#cluster.node(a + 1)
        for (let n = 0; n < 3; n++) if (this.#cluster.node(n + 1).up) this.#inProcess(n, ({ plane }) => plane.peers.peerDown((a + 1) as never, incarnation))
        await this.#gone(a)
        break
      }
      case 'kill':
        this.#cluster.node(a + 1).kill()
        await this.#gone(a)
        break
      case 'restart':
        for (const side of this.#sides) side.loseFrom(a + 1)
        this.#startProcess(this.#cluster.node(a + 1))
        await this.#connected()
        break
      case 'register':
        this.#registered[a] = this.#nodes[a]!.incarnation
        this.#doubt(a)
        for (let n = 0; n < 3; n++) if (this.#nodes[n]!.up) this.#sendTable(n, [])
        await this.#pass(CONTROL_MS)
        await this.#connected()
        break
      case 'break':
        await this.#break(a, b)
        break
      case 'compare':
      case 'block':
        await this.#serve(b, c, a, name === 'block' ? d : undefined)
        break
      case 'compared':
      case 'install':
        await this.#arrive(b, a, name === 'install' ? c : undefined)
        break
      case 'report':
        await this.#sync(b)
        await this.#until('a report', () => {
          this.#endSync(b)
          if (this.#reportOf(a, b, c) !== undefined) return true
          this.#refuseQuestions(b)
          return false
        })
        break
      default:
        this.#fail(`a step this replay does not know: ${name}`)
    }
    this.#mark()
    this.#compare()
    this.#compareAnswers()
    for (let slot = 0; slot < this.#schedule.slots; slot++) this.#compareCoordinator(slot)
  }

  /** Who was told that its update has taken effect, was told so by a head under a lease that holds it committed (rule 13). */
  #compareAnswers(): void {
    for (const [n, side] of this.#sides.entries()) {
      for (const attempt of side.answered) {
        const { slot, channel, seq } = this.#tries[attempt]!
        const { state, version } = this.#replicas[n]![slot]!
        const isHead = state === ReplicaState.SERVING && this.#history[slot]![version - 1]!.entries[0]!.node === n + 1
        const isCommitted = this.#facts.get(`g${slot}`)!.includes(`:${channel}.${seq}.`)
        if (!isHead || !isCommitted || !this.#nodes[n]!.lease)
          this.#fail(`node ${n} answers update ${channel}.${seq} of slot ${slot}: head ${isHead}, committed ${isCommitted}, lease ${this.#nodes[n]!.lease}`)
      }
      side.answered.clear()
    }
  }

  /** What the coordinator would do of itself now, the model may do. */
  #compareCoordinator(slot: number): void {
    const step = nextStep(this.#chain(slot), this.#event(slot, {}))
    if (step === null) return
    const allowed = this.#facts.get(`e${slot}`)!
    const result = sketch(step.chain)
    if (!allowed.split('|').some((entries) => sketch(chainOf(`${step.chain.version}:${entries}`)) === result))
      this.#fail(`the coordinator would make the step "${step.transition}" to ${result}; the model allows ${allowed || 'none'}`)
  }

  async #sync(n: number): Promise<void> {
    const { store } = this.#cluster.node(n + 1)
    await this.#until('a durable journal', () => {
      this.#endSync(n)
      return store.durableSeq === store.stagedSeq
    })
    await this.#pass(STEP_MS)
  }

  #endSync(n: number): void {
    const end = this.#syncs[n]
    this.#syncs[n] = undefined
    if (end !== undefined) this.#inProcess(n, end)
  }

  /** The changes that this step made to journals have their positions. */
  #mark(): void {
    for (const [n, { states, up }] of this.#nodes.entries()) {
      if (!up) continue
      const marks = this.#marks[n]!
      const { stagedSeq } = this.#cluster.node(n + 1).store
      const added = states - marks.length
      if (states === 1) marks.splice(0, Number.POSITIVE_INFINITY, stagedSeq)
      else if (added < 0) this.#fail(`node ${n}: the model's journal is shorter by ${-added}`)
      else if (added > 1 && stagedSeq - marks.at(-1)! !== added)
        this.#fail(`node ${n}: ${added} changes in the model, ${stagedSeq - marks.at(-1)!} in the journal`)
      else for (let i = 1; i <= added; i++) marks.push(stagedSeq - added + i)
    }
  }

  /** An update arrives at a head; returns the number of the try. */
  #update(n: number, slot: number, channel: number, seq: number, block: number): number {
    const attempt = this.#tries.push({ slot, channel, seq }) - 1
    const isEmpty = block >= this.#schedule.blocks
    this.#inProcess(n, ({ node, plane }) => {
      const { updates, crcs } = plane.writes
      const u = updates.alloc()
      updates.peer[u] = NONE
      updates.session[u] = 0
      updates.requestRow[u] = attempt
      updates.requestGeneration[u] = 0
      updates.slot[u] = slot
      updates.chainVersion[u] = plane.table.version[slot]!
      updates.kind[u] = isEmpty ? RecordKind.EMPTY : RecordKind.WRITE
      updates.durable[u] = 1
      updates.clientHigh[u] = CLIENT_HIGH
      updates.clientLow[u] = CLIENT_LOW
      updates.channel[u] = channel + 1
      updates.seq[u] = seq
      updates.deadlineMs[u] = NEVER_MS
      updates.receivedMs[u] = node.queue.nowMs
      updates.volume[u] = isEmpty ? 0 : VOLUME
      updates.layer[u] = 0
      updates.index[u] = isEmpty ? 0 : this.#blockIndex[slot]![block]!
      updates.offsetBytes[u] = 0
      updates.lengthBytes[u] = isEmpty ? 0 : PAGE_BYTES
      updates.owned[u] = 0
      updates.bufferPage[u] = NONE
      if (!isEmpty) {
        // the page is the client's; nobody gives it back before the end
        const page = node.queue.arena.alloc(PAGE_BYTES)
        node.queue.arena.bytes.set(pattern(slot * 10_000 + channel * 100 + seq), page * PAGE_BYTES)
        updates.bufferPage[u] = page
        crcs[u * CHAIN_OP_PAGES_MAX] = node.queue.arena.crc32c(page, 0, PAGE_BYTES)
        this.#crcs.set(`${slot}:${channel}.${seq}`, crcs[u * CHAIN_OP_PAGES_MAX]!)
      }
      plane.writes.submit(u)
    })
    return attempt
  }

  #forward(step: Step, hadEffect: boolean): void {
    const [slot = 0, from = 0, n = 0, version = 0, idVersion = 0, sv = 0] = step.args
    const side = this.#sides[n]!
    const idHigh = idHighOf(idVersion, sv)
    const idLow = idLowOf(sv)
    const queue = side.forwards.filter((held) => held.slot === slot && held.from === from + 1)
    const at = queue.findIndex((held) => held.version === version && held.idHigh === idHigh && held.idLow === idLow)
    if (at < 0) {
      if (hadEffect) this.#fail(`no such forward is under way; there are ${queue.map((held) => `v${held.version} ${held.sv}`).join(', ') || 'none'}`)
      return
    }
    const { table, replicas } = side.plane
    for (const held of queue.slice(0, at)) {
      const isOld = held.version < table.version[slot]! || table.ownState[slot]! > ReplicaState.SYNCING || held.sv <= replicas.lastSv(slot)
      if (!isOld) this.#fail(`the code has forwarded v${held.version} ${held.sv} before it, the model has not`)
    }
    this.#inProcess(n, () => {
      for (const held of queue.slice(0, at + 1)) {
        const reason = side.deliverForward(held)
        if (reason !== null) this.#fail(`the forward is refused: ${reason}`)
      }
    })
  }

  #ack(step: Step, hadEffect: boolean): void {
    const [slot = 0, from = 0, n = 0, version = 0, sv = 0] = step.args
    const side = this.#sides[n]!
    const queue = side.acks.filter((held) => held.slot === slot && held.from === from + 1)
    const at = queue.findIndex((held) => held.version === version && held.sv >= sv)
    if (at < 0) {
      if (hadEffect) this.#fail(`no such acknowledgement is under way; there are ${queue.map((held) => `v${held.version} ${held.sv}`).join(', ') || 'none'}`)
      return
    }
    this.#inProcess(n, () => {
      for (const held of queue.slice(0, at + 1)) {
        const reason = side.deliverAck(held, sv)
        if (reason !== null) this.#fail(`the acknowledgement is refused: ${reason}`)
      }
    })
  }

  /** Tables under way to the node have arrived: what is held there of older versions is refused, what it asked as of older versions is asked again. */
  async #learned(n: number, before: readonly ModelReplica[]): Promise<void> {
    await this.#pass(CONTROL_MS)
    const side = this.#sides[n]!
    const { table } = side.plane
    const isOld = (held: HeldForward | HeldAck) => held.version < table.version[held.slot]!
    if (side.forwards.some(isOld) || side.acks.some(isOld)) {
      this.#inProcess(n, () => {
        for (const held of side.forwards.filter(isOld)) side.deliverForward(held)
        for (const held of side.acks.filter(isOld)) side.deliverAck(held)
      })
    }
    for (const [slot, replica] of this.#replicas[n]!.entries()) {
      if (replica.version === before[slot]!.version) continue
      const isNewSession = replica.session !== before[slot]!.session || replica.state !== ReplicaState.SYNCING
      for (const call of this.#callsOf(n, slot)) {
        if (call.stage === 'asked') call.serve?.(null)
        else if (isNewSession) call.arrive?.(true)
      }
    }
    await this.#pass(STEP_MS)
  }

  #callsOf(n: number, slot: number): HeldCall[] {
    return [...this.#gate.held].filter((call) => call.caller === this.#sides[n]!.process && versionAsked(call, slot) !== undefined)
  }

  /** What the node asks next in its session: the digests of the slot, the list of its blocks, or a block. */
  #isAsked(call: HeldCall, slot: number, block: number | undefined): boolean {
    if (versionAsked(call, slot) === undefined) return false
    if (block === undefined) return call.kind !== CallKind.BLOCK
    return call.kind === CallKind.BLOCK && wordOf(call, 5) === this.#blockIndex[slot]![block]
  }

  async #serve(source: number, n: number, slot: number, block: number | undefined): Promise<void> {
    const { table } = this.#sides[n]!.plane
    const isWanted = (call: HeldCall) =>
      this.#isAsked(call, slot, block) && call.stage === 'asked' && call.serve !== undefined && versionAsked(call, slot) === table.version[slot]
    const { process } = this.#sides[n]!
    const wanted = () => [...this.#gate.held].find((call) => call.caller === process && isWanted(call))
    await this.#until('a question', () => {
      if (wanted() !== undefined) return true
      // a complete slot's position is journaled by a record of its own, which the model has not
      if (this.#nodes[n]!.states === 1) this.#endSync(n)
      this.#refuseQuestions(n)
      return false
    })
    const call = wanted()!
    if (askedOf(call) !== source + 1) this.#fail(`the code asks node ${askedOf(call) - 1}`)
    call.serve!(call.kind === CallKind.DIGESTS ? aboutSlot(call, slot) : call.args)
    await this.#until('an answer', () => call.stage === 'answered' || call.stage === 'over')
    if (call.stage === 'over') this.#fail('the source does not answer')
    await this.#pass(STEP_MS)
  }

  /** The code ends a round of questions before it begins the next: those under way are asked again, all or none. */
  #refuseQuestions(n: number): void {
    const asked = [...this.#gate.held].filter((call) => call.caller === this.#sides[n]!.process && call.stage === 'asked')
    if (asked.some((call) => call.serve === undefined)) return
    for (const call of asked) call.serve!(null)
  }

  async #arrive(n: number, slot: number, block: number | undefined): Promise<void> {
    const call = this.#callsOf(n, slot).find((each) => this.#isAsked(each, slot, block) && each.stage === 'answered')
    if (call === undefined) this.#fail('there is no such answer')
    call.arrive!(true)
    await this.#pass(STEP_MS)
  }

  #reportOf(slot: number, n: number, since: number) {
    return this.#cluster.reports.find((each) => each.node === n + 1 && each.slot === slot && each.since === since)
  }

  /** The process has ended, and its peers have noticed. */
  async #gone(n: number): Promise<void> {
    const { nodes } = this.#cluster
    this.#sides[n]!.leased = false
    this.#gate.forget(this.#sides[n]!.process)
    await this.#until(
      'the others know that their sessions are over',
      () => nodes.every((node) => !node.up || node.plane.peers.peers.every((peer) => peer.node !== n + 1 || !peer.told)),
      1000,
    )
    this.#loseAnswers((call) => askedOf(call) === n + 1)
    await this.#pass(30)
  }

  #loseAnswers(isLost: (call: HeldCall) => boolean): void {
    for (const call of [...this.#gate.held]) if (call.stage === 'answered' && isLost(call)) call.arrive?.(false)
  }

  async #break(a: number, b: number): Promise<void> {
    const [one, two] = [this.#cluster.node(a + 1), this.#cluster.node(b + 1)]
    const peerOf = (node: ChainNode, other: ChainNode) => node.plane.peers.peers.find((peer) => peer.node === other.number)!
    const sessions = [peerOf(one, two).session, peerOf(two, one).session]
    this.#sides[a]!.loseFrom(b + 1)
    this.#sides[b]!.loseFrom(a + 1)
    this.#inProcess(a, ({ plane }) => plane.peers.peerDown(two.number, two.incarnation))
    await this.#until(
      'a new session',
      () => peerOf(one, two).up && peerOf(two, one).up && peerOf(one, two).session !== sessions[0] && peerOf(two, one).session !== sessions[1],
    )
    this.#loseAnswers((call) => {
      const caller = (call.caller as Process).node
      return (caller === one && askedOf(call) === two.number) || (caller === two && askedOf(call) === one.number)
    })
    await this.#pass(STEP_MS)
  }

  // ---- the coordinator -----------------------------------------------------------------------------------------------------

  #doubt(n: number): void {
    const { views } = this.#cluster
    for (let i = 0; i < 3; i++) if (i !== n && views[i] === View.UP) views[i] = View.MAYBE
    views[n] = View.DOWN
  }

  #event(slot: number, more: Partial<ChainEvent>): ChainEvent {
    return {
      views: { view: (node) => this.#cluster.views[node - 1]!, incarnation: (node) => this.#registered[node - 1]! as never },
      lastIds: this.#cluster.lastIds.filter((id) => (id as LastId & { slot: number }).slot === slot),
      ...more,
    }
  }

  #reported(slot: number, n: number, since: number, isAccepted: boolean): void {
    const report = this.#reportOf(slot, n, since)
    if (report === undefined) this.#fail('the model reports, the code has not')
    const upToDate = { disk: (n + 1) as never, since: since as never, incarnation: report.incarnation as never }
    if (isAccepted) {
      this.#chainStep(slot, { upToDate })
      this.counts.resyncs++
      return
    }
    const chain = this.#chain(slot)
    const row = TRANSITIONS.find((each) => each.name === 'up to date')!
    const entry = chain.entries.find((each) => each.disk === n + 1)!
    if (entry.state === row.from && unmetConditions(row, chain, entry, this.#event(slot, { upToDate })).length === 0)
      this.#fail('the model rejects the report, the code accepts it')
  }

  /** The model has made the last step of the slot's history: the code's table must allow it, with that result. */
  #chainStep(slot: number, more: Partial<ChainEvent>): void {
    const history = this.#history[slot]!
    const from = history.at(-2)!
    const to = history.at(-1)!
    this.counts.chainSteps++
    const reasons: string[] = []
    for (const row of TRANSITIONS) {
      for (const entry of from.entries) {
        const after = to.entries.find((each) => each.disk === entry.disk)
        if (entry.state !== row.from || after?.state !== row.to) continue
        const drain = row.name === 'drain' ? { drain: entry.disk } : {}
        const event = this.#event(slot, { ...more, ...drain, ...(row.name === 'drained' ? this.#confirmation(slot, from, entry) : {}) })
        const unmet = unmetConditions(row, from, entry, event)
        if (unmet.length > 0) {
          reasons.push(`${row.name} of node ${entry.node - 1}: ${unmet.join('; ')}`)
          continue
        }
        const step = nextStep(from, event)
        if (step?.transition !== row.name || step.disk !== entry.disk) return
        if (sketch(step.chain) === sketch(to)) {
          this.counts.chainStepsSettled++
          return
        }
        // several replicas may go the same way in one event, each in a step of its own: another one of them
        reasons.push(`${row.name} of node ${entry.node - 1} gives ${sketch(step.chain)}`)
      }
    }
    this.#fail(`the coordinator does not make this step: ${sketch(from)} -> ${sketch(to)}; ${reasons.join(' | ')}`)
  }

  /** The DRAINING replica's process knows that it is. */
  #confirmation(slot: number, chain: Chain, entry: ChainEntry): Partial<ChainEvent> {
    const side = this.#sides[entry.node - 1]!
    const node = this.#cluster.node(entry.node)
    if (!node.up || side.plane.table.ownState[slot] !== ReplicaState.DRAINING) return {}
    return { drained: { disk: entry.disk, version: chain.version, incarnation: node.incarnation } }
  }

  // ---- what is compared ----------------------------------------------------------------------------------------------------

  #compare(): void {
    const { errors } = this.#cluster
    if (errors.length > 0) this.#fail(`the code reports an error: ${errors[0]}`)
    const { slots } = this.#schedule
    for (const [n, model] of this.#nodes.entries()) {
      const { node, plane } = this.#sides[n]!
      if (model.up !== node.up) this.#fail(`node ${n} is ${node.up ? 'up' : 'down'}`)
      if (!model.up) continue
      if (model.incarnation !== node.incarnation) this.#fail(`node ${n} has incarnation ${node.incarnation}, the model ${model.incarnation}`)
      for (let slot = 0; slot < slots; slot++) {
        const differs = this.#differs(n, slot, plane)
        if (differs !== null) this.#fail(`node ${n}, slot ${slot}: ${differs} (model ${this.#facts.get(`r${n}.${slot}`)})`)
      }
      const differs = this.#rowsDiffer(n, plane)
      if (differs !== null) this.#fail(`node ${n}: ${differs} (model ${this.#facts.get(`w${n}`)})`)
    }
  }

  #differs(n: number, slot: number, plane: DataPlane): string | null {
    const model = this.#replicas[n]![slot]!
    const { table, replicas } = plane
    if (table.version[slot] !== model.version) return `version ${table.version[slot]}`
    const state = table.ownState[slot] as ReplicaState
    if (state !== model.state) return REPLICA_STATE_NAMES[state]
    const committed = replicas.committed[slot]!
    if (committed !== model.committed) return `${committed} is committed`
    const [store] = replicas.stores
    if (state <= ReplicaState.LASTSRV) {
      const last = idText(store!.lastHigh[slot]!, store!.lastLow[slot]!)
      if (last !== model.last) return `the last id is ${last}`
    }
    const id = new Uint32Array(2)
    for (const [i, block] of model.blocks.entries()) {
      const row = store!.findBlock(VOLUME, 0, this.#blockIndex[slot]![i]!)
      store!.newestId(row, 0, 1, id)
      const [expected, write] = block.split(':')
      const own = idText(id[0]!, id[1]!)
      if (own !== (expected === '-' ? '0.0' : expected)) return `block ${i} has id ${own}`
      if (row !== NO_BLOCK && write !== undefined && store!.pageCrc(row, 0) !== this.#crcs.get(`${slot}:${write}`))
        return `block ${i} does not hold what write ${write} wrote`
    }
    return null
  }

  #rowsDiffer(n: number, plane: DataPlane): string | null {
    const [store] = plane.replicas.stores
    const { rows } = store!
    for (const [channel, text] of this.#facts.get(`w${n}`)!.split(',').entries()) {
      const [seq, slot, cv, sv] = text.split('.').map(Number)
      const row = lookup.call(rows, CLIENT_HIGH, CLIENT_LOW, channel + 1)
      const own = row < 0 ? 0 : rows.seq[row]!
      if (own !== seq) return `channel ${channel} is at ${own}`
      if (row < 0) continue
      const isHeld = cv !== 0
      if (rows.slot[row] !== slot || (rows.held[row] === 1) !== isHeld)
        return `channel ${channel} is of slot ${rows.slot[row]}, ${rows.held[row] === 1 ? 'held' : 'not held'}`
      if (isHeld && idText(rows.idHigh[row]!, rows.idLow[row]!) !== `${cv}.${sv}`) return `channel ${channel} names another record`
    }
    return null
  }

  /** Everything is healed: all live replicas serve, are equal, and hold the committed history; outcomes are the model's. */
  #end(): void {
    this.#cluster.chains.splice(0, Number.POSITIVE_INFINITY, ...this.#history.map((chains) => chains.at(-1)!))
    this.#cluster.assertEqual()
    for (const [slot, chains] of this.#history.entries()) {
      const last = this.#facts.get(`g${slot}`)!.split(',').at(-1)!
      for (const entry of chains.at(-1)!.entries) {
        const { replicas } = this.#sides[entry.node - 1]!.plane
        const expected = last === '' ? 0 : Number(last.split(/[.:]/)[1])
        if (replicas.committed[slot] !== expected)
          this.#fail(`node ${entry.node - 1} has committed ${replicas.committed[slot]} of slot ${slot}, the model ${expected}`)
        if (replicas.firstRecord(slot) !== NONE) this.#fail(`node ${entry.node - 1} still holds uncommitted records of slot ${slot}`)
      }
      const applied = new Set(
        this.#facts
          .get(`g${slot}`)!
          .split(',')
          .filter((each) => each !== '')
          .map((each) => each.split(':')[1]!),
      )
      for (const [write, outcome] of this.#schedule.outcomes) {
        if (!write.startsWith(`${slot}.`)) continue
        const isApplied = applied.has(write.slice(write.indexOf('.') + 1))
        if (isApplied === (outcome === 'f')) this.#fail(`write ${write} has outcome ${outcome}, and is ${isApplied ? '' : 'not '}part of the history`)
        if ((outcome === 'a') !== this.#acknowledged.has(write))
          this.#fail(`write ${write} has outcome ${outcome}; the code has ${this.#acknowledged.has(write) ? '' : 'not '}acknowledged it`)
      }
    }
    for (const side of this.#sides) {
      if (side.plane.replicas.records.inUse > 0) this.#fail(`node ${side.node.number - 1} leaks ${side.plane.replicas.records.inUse} records`)
      if (side.plane.writes.updates.inUse > 0) this.#fail(`node ${side.node.number - 1} leaks ${side.plane.writes.updates.inUse} updates`)
    }
  }
}

/** Room for the answer of one block, of which as many are asked for at a time as there are: a quarter is set apart for peers, and stretches in use lie between. */
const ARENA_BYTES_PER_BLOCK = 16 * 1024 * 1024
/** Memory of the arenas of replays that are over: fresh memory costs more than the replay. */
const SPARE: Array<Uint8Array<ArrayBuffer>> = []
const SPARE_MAX = 8
const POISON_BYTES_MAX = 16 * PAGE_BYTES
const LIMITS = { recordsMax: 768, updatesMax: 64, readsMax: 16, clientOpsMax: 16, creditRows: 32, peerPoolBytes: 1024 * 1024 }

function idText(high: number, low: number): string {
  return `${high >>> 8}.${svOf(high, low)}`
}

/** `version:node/state/since/incarnation,..` of the model. */
function chainOf(text: string): Chain {
  const [version, entries = ''] = text.split(':')
  return {
    version: Number(version) as never,
    entries: entries.split(',').map((entry): ChainEntry => {
      const [node, state, since, incarnation] = entry.split('/')
      const number = Number(node) + 1
      return { disk: number as never, node: number as never, state: LETTERS[state!]!, since: Number(since) as never, incarnation: Number(incarnation) as never }
    }),
  }
}

function sketch(chain: Chain): string {
  return `v${chain.version} ${chain.entries.map((entry) => `${entry.node - 1}/${REPLICA_STATE_NAMES[entry.state]}/${entry.since}/${entry.incarnation}`).join(' ')}`
}

/** Node number of the peer that is asked. */
function askedOf(call: HeldCall): number {
  return (call.caller as Process).plane!.peers.nodeOf(call.peer)
}
function wordOf(call: HeldCall, index: number): number {
  return new DataView(call.args.buffer, call.args.byteOffset).getUint32(index * 4, true)
}
/** Questions begin with slot and version; those for digests are a list of such (of at most two slots here), which may have a third word, the disk. */
const wordsPerSlot = (call: HeldCall) => (call.args.length % 12 === 0 ? 3 : 2)
/** The chain version in which the call asks about the slot; undefined: it does not. */
function versionAsked(call: HeldCall, slot: number): number | undefined {
  const words = wordsPerSlot(call)
  const slots = call.kind === CallKind.DIGESTS ? call.args.length / (words * 4) : 1
  for (let i = 0; i < slots; i++) if (wordOf(call, i * words) === slot) return wordOf(call, i * words + 1)
  return undefined
}
/** The question for digests, as of no version for all other slots: they are asked about again. */
function aboutSlot(call: HeldCall, slot: number): Uint8Array {
  const args = call.args.slice()
  const words = wordsPerSlot(call)
  for (let at = 0; at < args.length / 4; at += words) if (wordOf(call, at) !== slot) new DataView(args.buffer).setUint32(at * 4 + 4, 0, true)
  return args
}
