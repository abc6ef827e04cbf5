/**
 * The data plane alone under faults: real chains, clients and volume layer of several nodes, memory stores, and the dumb coordinator of
 * the chain tests. Finds what is wrong in replication before the whole cluster is needed for it; `cluster.ts` is the whole.
 */
import type { VolumeNumber } from '../../src/base/ids.ts'
import { Prng } from '../../src/base/prng.ts'
import { BLOCK_BYTES, PAGE_BYTES } from '../../src/base/units.ts'
import { ReplicaState } from '../../src/placement/chain.ts'
import { View } from '../../src/placement/view.ts'
import { VolumeLayer } from '../../src/volume/volume.ts'
import { ChainCluster, type ChainNode, RELAXED_VOLUME, VOLUME } from '../support/chain-cluster.ts'
import { describeFault, type Fault, makeSchedule, type Profile, type Schedule } from './faults.ts'
import { History, type Violation } from './history.ts'
import { type ClientSeat, SimClient } from './workload.ts'

export interface RunResult {
  readonly seed: number
  readonly hash: string
  readonly virtualSeconds: number
  readonly events: number
  readonly operations: number
  readonly succeeded: number
  readonly undecided: number
  readonly violations: Violation[]
  readonly faults: readonly string[]
}

const VOLUME_BYTES = 3 * BLOCK_BYTES
const LEASE_MS = 2000
const WRITE_LIFE_MS = 4000
/** After healing, everything pending completes within this. */
const LIVENESS_MS = 60_000
/** Faults that need a coordinator with a mind of its own, or disks. */
const WITHOUT = ['isolate', 'disk-slow', 'disk-hang', 'disk-eio', 'bit-rot', 'datagram-loss', 'drift', 'power-all'] as const

export function chainSchedule(seed: number, profile: Profile, nodes = 3, durationMs = 15_000): Schedule {
  return makeSchedule(new Prng(seed).fork('schedule'), { seed, profile, nodes, durationMs, without: WITHOUT })
}

export async function runChainTorture(
  schedule: Schedule,
  options: { trace?: (line: string) => void; onHistory?: (history: History) => void } = {},
): Promise<RunResult> {
  const { nodes } = schedule
  const seed = Number(schedule.seed)
  const violations: Violation[] = []
  const history = new History()
  history.relaxedVolumes.add(RELAXED_VOLUME)
  const cluster = new ChainCluster({
    seed,
    nodes,
    slots: 4,
    network: { fragment: 0.2, tcpTimeoutMs: 20_000, connectTimeoutMs: 5000 },
    plane: { settings: { retryTotalMs: 20_000, writeLifeMs: WRITE_LIFE_MS } },
    ...(options.trace ? { trace: options.trace } : {}),
  })
  const { world, network } = cluster
  const random = world.random('torture')
  const seats = new Map<object, ClientSeat>()
  const baseline = new Map<object, number>()
  const usedBytes = (node: ChainNode) => node.queue.arena.stats().usedBytes.reduce((a, b) => a + b, 0)
  const seatOf = (node: ChainNode): ClientSeat | undefined => {
    if (!node.up) return undefined
    let seat = seats.get(node.plane)
    if (!seat) {
      seat = { process: node.process, queue: node.queue, volumes: new VolumeLayer(node.plane.client, node.queue.arena) }
      seats.set(node.plane, seat)
    }
    return seat
  }
  const down = new Set<number>()
  const clients: SimClient[] = []
  const summary = () => clients.map((client) => `${client.options.name}: ${client.describe()}`).join('; ')

  const restart = (number: number) => {
    if (cluster.node(number).up) return
    cluster.restart(number)
    down.delete(number)
    baseline.set(cluster.node(number).plane, usedBytes(cluster.node(number)))
  }
  const stopped = (number: number) => {
    const { incarnation } = cluster.node(number)
    world.schedule(20, 'fence', () => {
      const node = cluster.node(number)
      if (!node.up && node.incarnation === incarnation) cluster.fence(node)
    })
  }
  /** Every slot has a serving replica on another running node, which holds what was not flushed. */
  const servedElsewhere = (lost: ChainNode) =>
    cluster.chains.every((chain) =>
      chain.entries.some((entry) => entry.state === ReplicaState.SERVING && entry.node !== lost.number && cluster.node(entry.node).up),
    )
  const inject = (fault: Fault) => {
    const node = cluster.node(fault.node + 1)
    const other = cluster.node(fault.other + 1)
    world.note('fault', () => describeFault(fault))
    const later = (label: string, fn: () => void) => world.schedule(Math.max(60, fault.durationMs), label, fn)
    switch (fault.kind) {
      case 'kill':
      case 'power':
        if (!node.up) return
        // A dumb coordinator knows no waiting for the last server: one is left at least
        if (down.size + 1 >= nodes && nodes > 1) return
        down.add(node.number)
        if (fault.kind === 'kill') node.kill()
        else {
          node.losePower()
          if (!servedElsewhere(node)) history.allPowerLost(world.nowMs)
        }
        stopped(node.number)
        later('restart', () => restart(node.number))
        return
      case 'freeze': {
        // Shorter than a lease: the dumb coordinator takes nobody's lease away
        const { process } = node
        if (!node.up) return
        process.freeze()
        world.schedule(Math.min(fault.durationMs, LEASE_MS * 0.4), 'thaw', () => process.thaw())
        return
      }
      case 'cut':
        network.cut(node.host, other.host)
        later('heal', () => network.heal(node.host, other.host))
        return
      case 'slow-link': {
        const link = network.link(node.host, other.host)
        link.extraDelayMs = fault.amount
        later('fast again', () => {
          link.extraDelayMs = 0
        })
        return
      }
      case 'pauses':
        if (!node.up) return
        node.queue.faults.pauses = 0.01
        node.queue.faults.pauseMs = fault.amount
        return
      default:
        return
    }
  }

  try {
    await cluster.start()
    for (const node of cluster.nodes) baseline.set(node.plane, usedBytes(node))
    for (let c = 0; c < schedule.clients; c++) {
      const volume = (c % 3 === 2 ? RELAXED_VOLUME : VOLUME) as VolumeNumber
      const client = new SimClient({
        name: `c${c + 1}`,
        history,
        random: world.random(`client ${c}`),
        volume,
        sizeBytes: VOLUME_BYTES,
        syncWhenWrite: volume === VOLUME,
        opsMax: schedule.opsPerClient,
        depth: random.between(1, 4),
        readShare: random.chance(0.3) ? 0.98 : 0.4,
        thinkMs: schedule.durationMs / schedule.opsPerClient / 2,
        seat: () => {
          const running = cluster.nodes.filter((node) => node.up)
          return running.length > 0 ? seatOf(random.pick(running)) : undefined
        },
      })
      clients.push(client)
      client.start(world, WRITE_LIFE_MS + LEASE_MS)
    }
    for (const fault of schedule.faults) world.scheduleAt(world.nowMs + fault.atMs, 'inject', () => inject(fault))
    await world.runFor(schedule.durationMs)

    // Heal, and demand that everything pending ends
    network.healAll()
    for (const node of cluster.nodes) {
      node.process.thaw()
      node.queue.faults.pauses = 0
      restart(node.number)
    }
    for (let i = 0; i < nodes; i++) cluster.views[i] = View.UP
    const live = await world.run(() => clients.every((client) => client.done) && cluster.allServing && cluster.quiet, LIVENESS_MS)
    if (!live) {
      const chains = cluster.chains.map((chain, slot) => `${slot}: ${chain.entries.map((entry) => `${entry.node}/${entry.state}`).join(' ')}`).join(', ')
      violations.push({ promise: `after healing, everything pending completes within ${LIVENESS_MS} ms`, detail: `${summary()}; chains ${chains}` })
    } else {
      await readAll(cluster, history, seatOf(cluster.node(1))!)
      cluster.assertEqual()
      for (const node of cluster.nodes) {
        if (node.plane.replicas.records.inUse > 0)
          violations.push({ promise: 'no row is leaked', detail: `node ${node.number}: ${node.plane.replicas.records.inUse} records` })
        const leaked = usedBytes(node) - (baseline.get(node.plane) ?? 0)
        if (leaked > 0) violations.push({ promise: 'no arena range is leaked', detail: `node ${node.number}: ${leaked} bytes` })
      }
    }
    world.assertNothingReal()
  } catch (error) {
    violations.push({ promise: 'no assertion fails', detail: error instanceof Error ? (error.stack ?? error.message) : String(error) })
  }
  options.onHistory?.(history)
  const checked = history.check()
  violations.push(...checked.violations)
  return {
    seed,
    hash: world.hash,
    virtualSeconds: world.nowMs / 1000,
    events: world.eventCount,
    operations: history.opCount,
    succeeded: history.okCount,
    undecided: checked.undecided,
    violations,
    faults: schedule.faults.map((fault) => `${fault.atMs} ms: ${describeFault(fault)}`),
  }
}

/** Every page that was ever touched is read once more, so that the final content is part of the history. */
async function readAll(cluster: ChainCluster, history: History, seat: ClientSeat): Promise<void> {
  const { world } = cluster
  for (const volume of [VOLUME, RELAXED_VOLUME]) {
    for (const page of history.pagesOf(volume)) {
      const buffer = seat.queue.arena.alloc(PAGE_BYTES)
      const open = history.beginRead({ client: 'final', volume, offsetBytes: page * PAGE_BYTES, lengthBytes: PAGE_BYTES, nowMs: world.nowMs })
      let status = -1
      seat.process.schedule(0, 'final read', () => {
        seat.volumes.read(
          volume,
          page * PAGE_BYTES,
          PAGE_BYTES,
          buffer,
          (_row, result) => {
            status = result
          },
          0,
        )
        cluster.node(1).plane.settle()
      })
      if (!(await world.run(() => status >= 0, 10_000))) throw new Error(`final read of page ${page} does not end`)
      history.endRead(open, status === 0 ? seat.queue.arena.bytes : undefined, buffer * PAGE_BYTES, world.nowMs)
      if (status !== 0) throw new Error(`final read of page ${page}: status ${status}`)
      seat.queue.arena.free(buffer as never)
    }
  }
}
