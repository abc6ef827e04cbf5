/**
 * One run: a whole cluster, its clients and a schedule of faults from a seed; then everything is healed, and all promises are checked.
 *
 * Phase 1: faults, safety. Phase 2: no faults, liveness: everything pending completes and every replica serves within LIVENESS_MS of
 * virtual time; then every page is read once more, replicas are compared, and nothing may be left allocated.
 */
import { Status } from '../../src/base/status.ts'
import { BLOCK_BYTES, KiB, PAGE_BYTES, PAGES_PER_BLOCK } from '../../src/base/units.ts'
import { kvStore } from '../../src/env/sim/control.ts'
import { type Seed, seededPrng } from '../../src/env/sim/world.ts'
import { ReplicaState } from '../../src/placement/chain.ts'
import { slotOf } from '../../src/placement/ring.ts'
import { leftovers, Watch } from './checkers.ts'
import { SimCluster, type SimClusterOptions, type SimVolume, usedBytes } from './cluster.ts'
import { type Effect, type FocusName, makeSchedule, type Profile, type Schedule } from './faults.ts'
import { focusedSchedule, focusOf, type Mix } from './focus.ts'
import { History, type Violation } from './history.ts'
import { inject, powerLost } from './inject.ts'
import { NbdInitiator } from './nbd-client.ts'
import type { SimNode } from './node.ts'
import { isEagerOf, largeShareOf, nodesOf, PLAIN_SHAPE, removeShareOf, shapeOf } from './shape.ts'
import { SimClient } from './workload.ts'

export interface RunResult {
  readonly seed: Seed
  readonly profile: Profile
  readonly hash: string
  readonly virtualSeconds: number
  readonly events: number
  readonly operations: number
  readonly succeeded: number
  /** Pages whose history was too much work to decide. */
  readonly undecided: number
  readonly longestMs: number
  readonly ends: Readonly<Record<string, number>>
  readonly violations: readonly Violation[]
  /** Faults that took effect, and what came of them. */
  readonly effects: readonly Effect[]
  /** The last lines the nodes logged. */
  readonly log: readonly string[]
}

export interface RunOptions {
  readonly trace?: ((line: string) => void) | undefined
  readonly traceArena?: boolean
  /** Errors carry the call stack they came from: costs a tenth of the time. */
  readonly stacks?: boolean
  readonly onHistory?: ((history: History) => void) | undefined
  readonly onCluster?: ((cluster: SimCluster) => void) | undefined
}

const DURATION_MS = 15_000
const VOLUME_BLOCKS = 3
const WRITE_LIFE_MS = 4000
/** What a crashed client's write may take beyond its life until it is ordered or refused. */
const LIFE_SLACK_MS = 500
export const LIVENESS_MS = 120_000
/** How long clients go on once every replica serves again; what they have under way then is completed. */
const HEALTHY_SERVICE_MS = 1500
/** The health of the cluster costs much to find out. */
const LOOK_MS = 20
/** What background work still has to do then. */
const QUIET_MS = 5000
/** What a flush costs on the disks of a run, as a mean: nothing, as with protected caches, or what common drives need. */
const FLUSH_MS = [0, 0, 1, 4, 15] as const
const FINAL_READ_PAGES_MAX = 64
/** Blocks of deleted volumes, and of copies that have moved away, are gone by then. */
const SWEPT_MS = 12_000
/** Buffers of one lane to a peer. */
const CONNECTION_BYTES = 128 * KiB
const SPARE_CONNECTIONS_MAX = 32
/** Clients that give up, and after how long. */
const IMPATIENT_SHARE = 0.3
const PATIENCE_MS = [150, 2500] as const
/** A server counts from its last turn before it saw that its client has gone: one that stood still just before that turn may be so much later. */
const NBD_SLACK_MS = 600

export function scheduleOf(seed: Seed, profile: Profile): Schedule {
  return makeSchedule(seededPrng(seed).fork('schedule'), { seed, profile, nodes: nodesOf(seed), durationMs: DURATION_MS })
}

/** Where schedules come from: a profile, or a short, aimed run. */
export type Plan = { readonly profile: Profile } | { readonly focus: FocusName }

export function scheduleFor(seed: Seed, plan: Plan): Schedule {
  if ('profile' in plan) return scheduleOf(seed, plan.profile)
  return focusedSchedule(seededPrng(seed).fork(`schedule ${plan.focus}`), { seed, focus: plan.focus })
}

/** As options of `xsan sim`. */
export function planText(plan: Plan): string {
  return 'profile' in plan ? `--profile ${plan.profile}` : `--focus ${plan.focus}`
}

export async function runSchedule(schedule: Schedule, options: RunOptions = {}): Promise<RunResult> {
  const { stackTraceLimit } = Error
  if (options.stacks === false) Error.stackTraceLimit = 0
  try {
    return await runOnce(schedule, options)
  } finally {
    Error.stackTraceLimit = stackTraceLimit
  }
}

async function runOnce(schedule: Schedule, options: RunOptions): Promise<RunResult> {
  const violations: Violation[] = []
  const history = new History()
  const cluster = new SimCluster({
    seed: schedule.seed,
    nodes: schedule.nodes,
    ...clusterOf(schedule),
    trace: options.trace,
    writeLifeMs: WRITE_LIFE_MS,
    traceArena: options.traceArena ?? false,
  })
  options.onCluster?.(cluster)
  const { world } = cluster
  if (world.tracing) history.tell = (text) => world.say(text)
  cluster.onUnstagedLost = (isLost, keptPower) => {
    const isPageLost = (volume: number, page: number) => isLost[slotOf(volume, Math.floor(page / PAGES_PER_BLOCK), isLost.length)] === true
    history.unacknowledgedLost(world.nowMs, isPageLost, keptPower)
  }
  cluster.onGivenUp = () => history.givenUp()
  cluster.onDiskFailed = (node) => powerLost(cluster, history, [node], true)
  const clients: SimClient[] = []
  const watch = new Watch(cluster)
  const initiators: NbdInitiator[] = []
  // What a promise of a node is rejected with and nobody handles ends its process: a bug, and the end of the simulation
  const unhandled = (error: unknown) => world.fail(error)
  process.on('unhandledRejection', unhandled)
  try {
    await cluster.form()
    await cluster.healthy()
    const sizeBytes = ((schedule.focus && focusOf(schedule.focus).volumeBlocks) ?? VOLUME_BLOCKS) * BLOCK_BYTES
    const volumes = [await cluster.createVolume('safe', { sizeBytes }), await cluster.createVolume('relaxed', { sizeBytes, syncWhenWrite: false })]
    history.relaxedVolumes.add(volumes[1]!.volume)
    const { settings = {} } = schedule.focus === undefined ? {} : focusOf(schedule.focus)
    for (const [key, valueJson] of Object.entries(settings)) await cluster.settle(cluster.insist('xsan.v1.Config/Set', { key, valueJson }))
    const flushMs = world.random('disks').pick(mixOf(schedule)?.flushMs ?? FLUSH_MS)
    for (const node of cluster.nodes) {
      for (const { disk } of node.bays) disk.faults.flushMs = flushMs
      kvStore(node.host, 'kv').slowMs += flushMs
    }
    // Connections to all peers stand and hold their buffers: so much is in use on an idle node
    const idleBytes = Math.max(...cluster.nodes.map((node) => usedBytes(node.queue!)))
    startClients(cluster, schedule, volumes, history, clients, initiators)
    const guests: SimClient[] = []
    watch.start()
    const stage = { cluster, history, volumes, clients, guests }
    for (const fault of schedule.faults) world.scheduleAt(world.nowMs + fault.atMs, 'fault', () => inject(stage, fault))
    await world.runFor(schedule.durationMs)
    cluster.heal()
    const healedMs = world.nowMs
    const leftMs = () => healedMs + LIVENESS_MS - world.nowMs
    await world.run(
      nowAndThen(cluster, () => cluster.unhealthy() === ''),
      leftMs(),
    )
    // who gives up in less time than what was on its way may take has no such promise
    const isPatient = cluster.options.retryTotalMs === undefined
    if (isPatient && cluster.unhealthy() === '' && cluster.operations.size === 0) for (const client of clients) client.wellSinceMs = world.nowMs
    // a while of service as ever; most of what is worth seeing was before
    await world.runFor(Math.min(HEALTHY_SERVICE_MS, leftMs()))
    for (const client of [...clients, ...guests]) client.stop()
    const live = await world.run(
      nowAndThen(cluster, () => [...clients, ...guests].every((client) => client.done) && cluster.unhealthy() === '' && cluster.quiet),
      leftMs(),
    )
    for (const client of clients) {
      if (client.denied.length > 0)
        violations.push({ promise: 'what is asked for once all is well succeeds', detail: `${client.options.name}: ${client.denied.join(', ')}` })
    }
    if (!live) {
      violations.push({
        promise: `after healing, everything pending completes within ${LIVENESS_MS} ms`,
        detail: `${cluster.unhealthy()}; quiet ${cluster.quiet} ${[...cluster.operations].join(', ')}; ${[...clients, ...guests].map((client) => `${client.options.name}: ${client.describe()}`).join('; ')}`,
      })
    } else {
      for (const initiator of initiators) initiator.close()
      await world.run(
        nowAndThen(cluster, () => cluster.orphans().length === 0),
        SWEPT_MS,
      )
      // by each node, which reads its own copy
      for (const node of cluster.members()) for (const volume of volumes) await readAll(cluster, history, node, volume)
      await world.run(
        // copies may have moved meanwhile
        nowAndThen(cluster, () => cluster.quiet && leftovers(cluster).length === 0 && cluster.orphans().length === 0),
        QUIET_MS + SWEPT_MS,
      )
      watch.stop()
      for (const detail of cluster.inspect()) violations.push({ promise: 'replicas are equal and nothing is left over once quiescent', detail })
      for (const node of cluster.members()) {
        const more = node.queue ? usedBytes(node.queue) - idleBytes : 0
        // Buffers of connections that overlapped are kept for the next ones
        const leaked = more <= SPARE_CONNECTIONS_MAX * CONNECTION_BYTES ? more % CONNECTION_BYTES : more
        if (leaked > 0) violations.push({ promise: 'no arena range is leaked', detail: `${node.id}: ${leaked} bytes` })
      }
    }
    world.assertNothingReal()
  } catch (error) {
    violations.push({ promise: 'nothing fails that must not', detail: error instanceof Error ? (error.stack ?? error.message) : String(error) })
  } finally {
    process.off('unhandledRejection', unhandled)
  }
  options.onHistory?.(history)
  violations.push(...watch.violations)
  const checked = history.check()
  violations.push(...checked.violations)
  const ends: Record<string, number> = {}
  for (const client of clients) for (const [name, count] of client.ends) ends[name] = (ends[name] ?? 0) + count
  cluster.countEffects()
  cluster.retire()
  return {
    seed: schedule.seed,
    profile: schedule.profile,
    hash: world.hash,
    virtualSeconds: Math.round(world.nowMs) / 1000,
    events: world.eventCount,
    operations: history.opCount,
    succeeded: history.okCount,
    undecided: checked.undecided,
    longestMs: Math.round(Math.max(0, ...clients.map((client) => client.longestMs))),
    ends,
    violations,
    effects: [...cluster.effects],
    log: cluster.logLines,
  }
}

/** `holds`, looked at every LOOK_MS of virtual time instead of after every event. */
function nowAndThen({ world }: SimCluster, holds: () => boolean): () => boolean {
  let nextMs = world.nowMs
  return () => {
    if (world.nowMs < nextMs) return false
    nextMs = world.nowMs + LOOK_MS
    return holds()
  }
}

/** What the cluster of a run looks like. */
function clusterOf({ seed, focus }: Schedule): Partial<SimClusterOptions> {
  if (focus === undefined) return shapeOf(seed)
  const { shape, retryTotalMs } = focusOf(focus)
  return { ...PLAIN_SHAPE, ...shape, ...(retryTotalMs === undefined ? {} : { retryTotalMs }) }
}

function mixOf({ focus }: Schedule): Mix | undefined {
  return focus === undefined ? undefined : focusOf(focus).mix
}

function startClients(
  cluster: SimCluster,
  schedule: Schedule,
  volumes: readonly SimVolume[],
  history: History,
  clients: SimClient[],
  initiators: NbdInitiator[],
): void {
  const { world } = cluster
  const random = world.random('clients')
  const shift = random.below(cluster.nodes.length)
  // All on one volume, or both: durable writes of the one would flush the other's along
  const mix = mixOf(schedule)
  const drawn = random.below(3)
  const only = mix?.volumes === 'safe' ? 0 : mix?.volumes === 'relaxed' ? 1 : drawn
  for (let c = 0; c < schedule.clients; c++) {
    const volume = volumes[only < 2 ? only : c % 2]!
    const depth = !mix && random.chance(0.1) ? random.between(5, 24) : random.between(...(mix?.depth ?? ([1, 4] as const)))
    const home = cluster.nodes[(c + shift) % cluster.nodes.length]!
    const seat = () => {
      if (home.seat && random.chance(mix?.home ?? 0.7)) return home.seat
      const seats = cluster.nodes.flatMap((node) => (node.seat ? [node.seat] : []))
      return seats.length > 0 ? random.pick(seats) : undefined
    }
    const isNbd = cluster.options.nbd === true && random.chance(0.7)
    const initiator = isNbd ? initiatorOf(cluster, volume, c, home) : undefined
    if (initiator) initiators.push(initiator)
    const client = new SimClient({
      name: `c${c + 1}`,
      history,
      random: world.random(`client ${c}`),
      volume: volume.volume,
      sizeBytes: volume.sizeBytes,
      syncWhenWrite: volume.syncWhenWrite,
      opsMax: schedule.opsPerClient,
      depth,
      // Some do little but read: they are the ones to see what is stale
      readShare: mix ? random.pick(mix.readShares) : random.chance(0.4) ? 0.98 : 0.4,
      ...(mix
        ? {
            hotPages: mix.hotPages,
            largeShare: mix.largeShare ?? 0,
            removeShare: mix.removeShare ?? 0,
            wholeShare: mix.wholeShare ?? 0,
            ...(mix.flushShare === undefined ? {} : { flushShare: mix.flushShare }),
            ...(mix.fuaShare === undefined ? {} : { fuaShare: mix.fuaShare }),
          }
        : { largeShare: largeShareOf(schedule.seed), removeShare: removeShareOf(schedule.seed), isEager: isEagerOf(schedule.seed) }),
      // So that they are at work all the time
      thinkMs: (depth * schedule.durationMs) / schedule.opsPerClient,
      patienceMs: mix ? mix.patienceMs && random.between(...mix.patienceMs) : patienceOf(cluster),
      seat: initiator?.seat ?? seat,
    })
    clients.push(client)
    client.start(world, WRITE_LIFE_MS + LIFE_SLACK_MS + (isNbd ? NBD_SLACK_MS : 0))
  }
}

/** Some clients of the profiles give up what takes too long, and go on by another node; most wait for ever. */
function patienceOf({ world }: SimCluster): number | undefined {
  const random = world.random('patience')
  const patienceMs = random.between(...PATIENCE_MS)
  return random.chance(IMPATIENT_SHARE) ? patienceMs : undefined
}

/** Connects to its home most of the time, to any node that runs otherwise. */
function initiatorOf(cluster: SimCluster, volume: SimVolume, client: number, home: SimNode): NbdInitiator {
  const random = cluster.world.random(`initiator ${client}`)
  const choose = () => {
    if (home.nbd && home.running && random.chance(0.7)) return home
    const nodes = cluster.nodes.filter((node) => node.running && node.nbd)
    return nodes.length > 0 ? random.pick(nodes) : undefined
  }
  return new NbdInitiator(cluster, { name: `initiator-${client + 1}`, number: client + 1, volume: volume.name, random, choose })
}

/** Every page that was ever touched is read once more, neighbours together, so that the final content is part of the history. */
async function readAll(cluster: SimCluster, history: History, node: SimNode, volume: SimVolume): Promise<void> {
  if (!node.seat) throw new Error(`${node.id} has no data plane`)
  const pages = history.pagesOf(volume.volume)
  for (let i = 0; i < pages.length; ) {
    const first = pages[i]!
    let count = 1
    while (count < FINAL_READ_PAGES_MAX && pages[i + count] === first + count) count++
    i += count
    if (await readRange(cluster, history, node, volume, first, count)) continue
    // among them are bad ones: each by itself is good, or on no replica
    for (let page = first; page < first + count; page++) {
      if (await readRange(cluster, history, node, volume, page, 1)) continue
      const holder = await holderOf(cluster, volume, page)
      if (holder !== undefined) throw new Error(`the final read of page ${page} of ${volume.name} finds it bad, and ${holder} holds it`)
    }
  }
}

/** False: a page of the range is bad. */
async function readRange(cluster: SimCluster, history: History, node: SimNode, volume: SimVolume, first: number, count: number): Promise<boolean> {
  const { world } = cluster
  const seat = node.seat!
  const lengthBytes = count * PAGE_BYTES
  const buffer = seat.queue.arena.alloc(lengthBytes)
  const open = history.beginRead({ client: 'final', volume: volume.volume, offsetBytes: first * PAGE_BYTES, lengthBytes, nowMs: world.nowMs })
  let status = -1
  const done = (_row: number, result: number) => {
    status = result
  }
  seat.process.schedule(0, 'final read', () => {
    seat.volumes.read(volume.volume, first * PAGE_BYTES, lengthBytes, buffer, done, 0)
    node.plane?.settle()
  })
  if (!(await world.run(() => status >= 0, 30_000))) throw new Error(`the final read of page ${first} of ${volume.name} does not end`)
  history.endRead(open, status === 0 ? seat.queue.arena.bytes : undefined, buffer * PAGE_BYTES, world.nowMs)
  seat.queue.arena.free(buffer as never)
  if (status !== 0 && status !== Status.BLOCK_CORRUPTED) throw new Error(`the final read of page ${first} of ${volume.name} ends with status ${status}`)
  return status === 0
}

/** A disk whose replica serves, and has the page's content. */
async function holderOf(cluster: SimCluster, volume: SimVolume, page: number): Promise<string | undefined> {
  const index = Math.floor(page / PAGES_PER_BLOCK)
  for (const node of cluster.nodes) {
    if (node.queue === undefined) continue
    for (const store of node.stores) {
      const row = store.findBlock(volume.volume, 0, index)
      if (row < 0) continue
      const entry = cluster.state?.chains[store.blockIdentity(row).slot]?.entries.find(({ disk }) => disk === store.disk)
      if (entry?.state !== ReplicaState.SERVING) continue
      const buffer = node.queue.arena.alloc(PAGE_BYTES)
      const capture = store.capture(row)
      const status = await cluster.settle(store.readCaptured(capture, page % PAGES_PER_BLOCK, 1, buffer))
      store.release(capture)
      node.queue.arena.free(buffer as never)
      if (status === Status.SUCCESS) return `disk ${store.disk} of ${node.id}`
    }
  }
  return undefined
}
