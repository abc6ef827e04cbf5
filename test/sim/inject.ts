/** What each kind of fault does to a simulated cluster, and how it ends. */
import { XsanError } from '../../src/base/errors.ts'
import { BLOCK_BYTES, PAGES_PER_BLOCK } from '../../src/base/units.ts'
import { FEATURE_LEVEL } from '../../src/control/state.ts'
import { kvStore } from '../../src/env/sim/control.ts'
import { ReplicaState } from '../../src/placement/chain.ts'
import { slotOf } from '../../src/placement/ring.ts'
import { Lane } from '../../src/wire/peer.ts'
import type { SimCluster, SimVolume } from './cluster.ts'
import { describeFault, type Fault } from './faults.ts'
import type { History } from './history.ts'
import type { SimNode } from './node.ts'
import { NEWER_FORMS, OlderBinary } from './older-binary.ts'
import { SimClient } from './workload.ts'

/** Longer ones may be a dead disk by design, which stays out until it is replaced: only where others serve all that is on it. */
const DISK_HANG_MAX_MS = 1000
/** After a clock was off by more than the bound, leases that were counted by it may go on for so long. */
const UNTRUSTED_MS = 5000
const NODES_MAX = 5
const VOLUME_BLOCKS_MAX = 6
/** A step of a rolling upgrade waits so long for health before the next node's turn. */
const UPGRADE_STEP_MS = 10_000
const CHURN_CLIENT = { opsMax: 60, depth: 2, readShare: 0.4, thinkMs: 20 }
const WRITE_LIFE_MS = 4500
/** How long, and how often, the moment of an aimed fault is looked for. */
const AIMED_WAIT_MS = 5000
const AIMED_LOOK_MS = 1
/** A way that becomes slow bit by bit does so that often. */
const SLOWER_EVERY_MS = 50
/** The stream of forwards from each source stands still for so long while it is SYNCING: what comes by the other connections is newer. */
const STALL_MS = 500
/** Each answer of a source takes so much longer; a lease can still be renewed. */
const SLOW_RESYNC_MS = 1200
/** Until there is a session. */
const STALL_TRIES = 100
/** How often it is looked for whether others serve what a fault would take. */
const SERVED_LOOK_MS = 50

/** Settings that may change at any time without breaking a promise: a value of the first list for a while, then the second. */
const SETTINGS: ReadonlyArray<readonly [key: string, during: string, after: string]> = [
  ['failover.trust_refused', 'false', 'true'],
  ['failover.rebuild_after', '500', '600000'],
  ['forward.retry_first_wait', '1', '100'],
  ['forward.retry_max_wait', '20', '1000'],
  ['forward.retry_total_time', '500', '20000'],
  ['storage.read_only', 'true', 'false'],
  ['storage.sync_when_write', 'false', 'true'],
  ['storage.default_replica_count', '2', '3'],
]

/** The cast of a run, as faults need to know it. */
export interface Stage {
  readonly cluster: SimCluster
  readonly history: History
  readonly volumes: readonly SimVolume[]
  readonly clients: readonly SimClient[]
  /** Clients that come and go with their volumes. */
  readonly guests: SimClient[]
}

/**
 * By slot: some copy serves on a running node other than these, and what was not flushed is still in its memory. Undefined: nobody knows. One whose lease is
 * over may have been dropped, though nobody has heard of it.
 */
function servedElsewhere(cluster: SimCluster, lost: readonly SimNode[]): boolean[] | undefined {
  const { state } = cluster
  return state?.chains.map((chain) =>
    chain.entries.some((entry) => {
      const node = cluster.nodes.find((candidate) => candidate.control?.member?.node === entry.node)
      return (
        entry.state === ReplicaState.SERVING &&
        node?.running === true &&
        node.plane?.table.leaseValid(node.process!.bootMs()) === true &&
        node.control?.member?.incarnation === entry.incarnation &&
        // who hangs may be found to have failed before anybody else is back, and who has failed may count as serving for a moment yet
        node.bays.every(({ disk, lostPower }) => !disk.gone && !disk.isHung && !lostPower) &&
        node.bays.find(({ uuid }) => uuid === state.disks.get(entry.disk)?.uuid)?.wasAway === false &&
        !lost.includes(node)
      )
    }),
  )
}

function allServedElsewhere(cluster: SimCluster, node: SimNode): boolean {
  return servedElsewhere(cluster, [node])?.every((served) => served) === true
}

/** What none but these nodes held in memory may be gone; or not, when others have power (they may serve what nobody knows that they do). */
export function powerLost(
  cluster: SimCluster,
  history: History,
  lost: readonly SimNode[],
  mayBeNone = cluster.nodes.some((node) => node.host.up && !lost.includes(node)),
): void {
  const served = servedElsewhere(cluster, lost) ?? []
  const isLost = (volume: number, page: number) => served[slotOf(volume, Math.floor(page / PAGES_PER_BLOCK), served.length)] !== true
  history.allPowerLost(cluster.world.nowMs, served.length === 0 ? undefined : isLost, mayBeNone)
}

/** Acts once, when others serve all that the node has; not at all when that does not come in time. */
function onceServedElsewhere(cluster: SimCluster, node: SimNode, act: () => void): void {
  const { world } = cluster
  const untilMs = world.nowMs + AIMED_WAIT_MS
  const look = () => {
    if (cluster.isHealed) return
    if (allServedElsewhere(cluster, node)) act()
    else if (world.nowMs < untilMs) world.schedule(SERVED_LOOK_MS, 'is it served elsewhere?', look)
  }
  look()
}

export function inject(stage: Stage, fault: Fault): void {
  const { cluster, history } = stage
  const { world, network } = cluster
  const node = cluster.nodes[fault.node]!
  const other = cluster.nodes[fault.other]!
  const bay = node.bays[fault.other % node.bays.length]!
  const { disk } = bay
  const areRunning = node.running && other.running
  world.note('fault', () => describeFault(fault))
  const later = (fn: () => void) => world.schedule(fault.durationMs, 'fault ends', fn)
  const took = () => cluster.effects.add(fault.kind)
  const losePower = (lost: readonly SimNode[], straggler?: SimNode) => {
    powerLost(cluster, history, lost)
    if (lost.some(({ host }) => host.up)) took()
    for (const each of lost) each.host.losePower(fault.unflushed)
    later(() => {
      for (const each of lost) if (each !== straggler) each.restart()
    })
    if (straggler) world.schedule(fault.durationMs + fault.amount, 'fault ends', () => straggler.restart())
  }
  switch (fault.kind) {
    case 'last-copy':
    case 'late-stream':
      took()
      lastCopy(stage, fault, losePower)
      return
    case 'remove-syncing': {
      if (cluster.members().length > NODES_MAX) return
      const added = cluster.addNode()
      // Its resync takes seconds, so that the placement without it is known before that ends
      slowTo(added, SLOW_RESYNC_MS)
      world.schedule(4 * AIMED_WAIT_MS, 'fault ends', () => slowTo(added, 0))
      cluster.operate(`add ${added.id}`, () => cluster.join(added))
      when(cluster, { node: added, state: ReplicaState.SYNCING, withinMs: 4 * AIMED_WAIT_MS }, () => {
        took()
        removeNode(cluster, added)
      })
      return
    }
    case 'remove-returning':
      node.process?.kill()
      later(() => node.restart())
      slowTo(node, SLOW_RESYNC_MS)
      world.schedule(fault.durationMs + 2 * AIMED_WAIT_MS, 'fault ends', () => slowTo(node, 0))
      when(cluster, { node, state: ReplicaState.SYNCING, withinMs: fault.durationMs + AIMED_WAIT_MS }, () => {
        took()
        removeNode(cluster, node)
      })
      return
    case 'remove-draining':
      removeNode(cluster, node)
      when(cluster, { node, state: ReplicaState.DRAINING, withinMs: fault.durationMs + AIMED_WAIT_MS }, (others) => {
        took()
        killFor(others, fault.amount)
      })
      return
    case 'remove-late': {
      const leader = cluster.nodes.find((of) => of.running && of.control?.member?.raft?.isLeader === true)
      if (leader && leader !== node) {
        took()
        const link = network.link(node.host, leader.host)
        link.extraDelayMs = fault.amount
        later(() => {
          link.extraDelayMs = 0
        })
      }
      removeNode(cluster, node)
      return
    }
    case 'kill':
      if (node.running) took()
      node.process?.kill()
      later(() => node.restart())
      return
    case 'freeze': {
      const { process } = node
      if (node.running) took()
      process?.freeze()
      later(() => process?.thaw())
      return
    }
    case 'power':
      losePower([node])
      return
    case 'power-all':
      losePower(cluster.nodes)
      return
    case 'straggler':
      losePower(cluster.nodes, node)
      return
    case 'isolate':
      if (node.running) took()
      node.isolate()
      later(() => node.rejoin())
      return
    case 'cut':
      if (areRunning) took()
      network.cut(node.host, other.host)
      later(() => network.heal(node.host, other.host))
      return
    case 'reset':
      if (network.resetConnections(node.host, fault.amount) > 0) took()
      return
    case 'metadata-fails': {
      const store = kvStore(node.host, 'kv')
      if (node.running) took()
      store.failing = true
      later(() => {
        store.failing = false
      })
      return
    }
    case 'far-link': {
      const links = [network.link(node.host, other.host), network.link(other.host, node.host)]
      if (areRunning) took()
      for (const link of links) link.extraDelayMs = fault.amount
      later(() => {
        for (const link of links) link.extraDelayMs = 0
      })
      return
    }
    case 'slow-link': {
      const link = network.link(node.host, other.host)
      if (areRunning) took()
      link.extraDelayMs = fault.amount
      later(() => {
        link.extraDelayMs = 0
      })
      return
    }
    case 'slowing-link': {
      const link = network.link(node.host, other.host)
      const endMs = world.nowMs + fault.durationMs
      const slower = (delayMs: number) => {
        // all has been healed meanwhile, or another fault is at this link
        if (link.extraDelayMs !== delayMs) return
        const isOver = world.nowMs >= endMs
        const nextMs = isOver ? 0 : delayMs + (fault.amount * SLOWER_EVERY_MS) / 1000
        link.extraDelayMs = nextMs
        if (!isOver) world.schedule(SLOWER_EVERY_MS, 'slower', () => slower(nextMs))
      }
      slower(link.extraDelayMs)
      return
    }
    case 'bad-wire': {
      const link = network.link(node.host, other.host)
      link.flip = fault.amount
      later(() => {
        link.flip = 0
      })
      return
    }
    case 'slow-reads': {
      const { faults } = disk
      if (node.running) took()
      faults.readMs = fault.amount
      later(() => {
        faults.readMs = 0
      })
      return
    }
    case 'disk-slow': {
      const { faults } = disk
      if (node.running) took()
      faults.slow = 0.3
      faults.slowMs = fault.amount
      later(() => {
        faults.slow = 0
      })
      return
    }
    case 'disk-hang': {
      const isDead = fault.durationMs > DISK_HANG_MAX_MS && allServedElsewhere(cluster, node)
      if (isDead) bay.suffered = true
      if (node.running) took()
      disk.hang()
      world.schedule(isDead ? fault.durationMs : Math.min(fault.durationMs, DISK_HANG_MAX_MS), 'fault ends', () => {
        disk.resume()
        if (!isDead || !node.diskFailed(bay)) return
        node.serviceDisk(bay)
        node.restart()
      })
      return
    }
    case 'disk-eio':
      onceServedElsewhere(cluster, node, () => {
        const { faults, shown } = disk
        const { failures } = shown
        bay.suffered = true
        faults.readEio = faults.writeEio = faults.flushEio = fault.amount
        later(() => {
          faults.readEio = faults.writeEio = faults.flushEio = 0
          if (shown.failures > failures) took()
          if (!node.diskFailed(bay)) return
          node.serviceDisk(bay)
          node.restart()
        })
      })
      return
    case 'disk-again':
      for (const each of fault.unflushed === 'random' ? [node] : cluster.members()) {
        // where there are more nodes than copies one goes on, and is told by the others of what is lost
        if (each !== other || cluster.nodes.length <= 3) failWrites(stage, each, fault)
      }
      return
    case 'disk-gone':
      // Not the last copy's: that is a matter for people (xsan cluster recover)
      onceServedElsewhere(cluster, node, () => {
        took()
        disk.gone = bay.suffered = true
        later(() => {
          if (!disk.gone) return
          node.serviceDisk(bay)
          node.restart()
        })
      })
      return
    case 'disk-full': {
      const { stores } = node
      if (node.running && stores.length > 0) took()
      for (const store of stores) Object.defineProperty(store, 'rejectCreate', { value: true, configurable: true })
      later(() => {
        for (const store of stores) Reflect.deleteProperty(store, 'rejectCreate')
      })
      return
    }
    case 'bit-rot':
      // A page whose only copy rots is lost
      onceServedElsewhere(cluster, node, () => {
        took()
        node.rot(fault.amount, bay)
      })
      return
    case 'misdirect':
      disk.faults.misdirect = fault.amount
      // what no other node has would be lost
      disk.misdirectWithin = () => (allServedElsewhere(cluster, node) ? node.extents : undefined)
      later(() => {
        disk.faults.misdirect = 0
      })
      return
    case 'drift':
      took()
      node.host.setDrift(fault.amount)
      return
    case 'pauses': {
      const { queue } = node
      if (!queue) return
      took()
      queue.faults.pauses = 0.01
      queue.faults.pauseMs = fault.amount
      later(() => {
        queue.faults.pauses = 0
      })
      return
    }
    case 'datagram-loss': {
      const { datagramFaults } = cluster.control
      took()
      datagramFaults.loss = fault.amount
      datagramFaults.duplicate = datagramFaults.late = fault.amount / 2
      later(() => {
        datagramFaults.loss = datagramFaults.duplicate = datagramFaults.late = 0
      })
      return
    }
    case 'late-timers': {
      const { clock } = node.env ?? {}
      if (!clock) return
      took()
      clock.lateMs = fault.amount
      later(() => {
        clock.lateMs = 1
      })
      return
    }
    case 'drift-beyond':
      took()
      node.host.setDrift(fault.amount)
      node.untrustedUntilMs = Math.max(node.untrustedUntilMs, world.nowMs + fault.durationMs + UNTRUSTED_MS)
      later(() => node.host.setDrift(0))
      return
    case 'clock-fast':
      took()
      node.host.setDrift(fault.amount)
      // Led by it, any node may still hold a lease that is counted as over: what they answer meanwhile is no promise. All else is.
      for (const each of cluster.nodes) each.untrustedUntilMs = Math.max(each.untrustedUntilMs, world.nowMs + fault.durationMs + UNTRUSTED_MS)
      later(() => node.host.setDrift(0))
      return
    case 'stop': {
      const { process } = node
      if (!process?.alive) return
      took()
      process.onEnd(() => later(() => node.restart()))
      node.stop()
      return
    }
    case 'upgrade':
      cluster.operate('upgrade', () => upgradeAll(cluster).then(took))
      return
    case 'older-binary':
      cluster.operate(`an older version on ${node.id}`, () => startOlder(cluster, node, fault))
      return
    case 'node-add': {
      if (cluster.members().length >= NODES_MAX) return
      const added = cluster.addNode()
      cluster.operate(`add ${added.id}`, () => cluster.join(added).then(took))
      return
    }
    case 'node-remove':
      cluster.operate(`remove ${node.id}`, () => retire(cluster, node))
      return
    case 'volume-churn':
      cluster.operate('volume comes and goes', () => churn(stage, fault).then(took))
      return
    case 'volume-grow':
      cluster.operate('volume grows', async () => {
        if (await grow(stage, stage.volumes[fault.node % stage.volumes.length]!)) took()
      })
      return
    case 'setting': {
      const [key, during, after] = SETTINGS[fault.amount % SETTINGS.length]!
      const set = (valueJson: string) => cluster.insist('xsan.v1.Config/Set', { key, valueJson })
      cluster.operate(`${key} is changed`, async () => {
        await set(during)
        took()
        await cluster.pause(fault.durationMs)
        await set(after)
      })
      return
    }
  }
}

/**
 * Calls `act` once, with the other nodes that serve a chain in which the node's present process has a copy of that state, when they are as wished;
 * not at all when that does not come in time.
 */
function when(
  cluster: SimCluster,
  options: { readonly node: SimNode; readonly state: ReplicaState; readonly withinMs: number; readonly isDue?: (others: readonly SimNode[]) => boolean },
  act: (others: readonly SimNode[]) => void,
): void {
  const { world } = cluster
  const { node, isDue = (others) => others.length > 0 } = options
  const untilMs = world.nowMs + options.withinMs
  let revision = -1
  const look = () => {
    const own = node.running ? node.control?.member : undefined
    const state = own === undefined ? undefined : cluster.state
    const isNews = state !== undefined && state.revision !== revision
    if (isNews) ({ revision } = state)
    for (const { entries } of isNews ? state.chains : []) {
      if (!entries.some((entry) => entry.state === options.state && entry.node === own!.node && entry.incarnation === own!.incarnation)) continue
      const serving = entries.filter((entry) => entry.state === ReplicaState.SERVING)
      const others = cluster.nodes.filter((other) => other !== node && serving.some((entry) => entry.node === other.control?.member?.node))
      if (!isDue(others)) continue
      act(others)
      return
    }
    if (world.nowMs < untilMs) world.schedule(AIMED_LOOK_MS, 'is it time?', look)
  }
  look()
}

/** The node returns; as soon as one of its copies serves, those it came from are gone, and then its own memory. */
function lastCopy({ cluster }: Stage, fault: Fault, losePower: (lost: readonly SimNode[]) => void): void {
  const { world } = cluster
  const node = cluster.nodes[fault.node]!
  node.process?.kill()
  world.schedule(fault.durationMs, 'fault ends', () => node.restart())
  const withinMs = fault.durationMs + AIMED_WAIT_MS
  if (fault.kind === 'late-stream') {
    when(cluster, { node, state: ReplicaState.SYNCING, withinMs }, (others) => {
      for (const other of others) stallForwards(other, node)
    })
  }
  when(cluster, { node, state: ReplicaState.SERVING, withinMs }, (others) => {
    killFor(others, fault.amount)
    if (fault.unflushed === 'keep') return
    when(cluster, { node, state: ReplicaState.SERVING, withinMs: AIMED_WAIT_MS, isDue: (left) => left.length === 0 }, () => losePower([node]))
  })
}

function killFor(nodes: readonly SimNode[], ms: number): void {
  for (const node of nodes) {
    const { world } = node.cluster
    world.note('fault', () => `${node.id} is killed for ${ms} ms`)
    node.process?.kill()
    world.schedule(ms, 'fault ends', () => node.restart())
  }
}

/** A packet is lost on the connection that carries forwards: what is sent there comes late, and everything else in time. */
function stallForwards(from: SimNode, to: SimNode, triesLeft = STALL_TRIES): void {
  const { plane, queue, running } = from
  const number = to.control?.member?.node
  const peer = running && plane && number ? plane.peers.indexOf(number) : -1
  const connection = peer < 0 ? undefined : plane!.peers.peers[peer]!.lanes[Lane.FORWARD]
  if (connection !== undefined) queue!.endOf(connection.handle)?.stall(STALL_MS)
  else if (triesLeft > 0) from.host.world.schedule(1, 'session?', () => stallForwards(from, to, triesLeft - 1))
}

function slowTo(node: SimNode, extraDelayMs: number): void {
  const { network, nodes } = node.cluster
  for (const other of nodes) if (other !== node) network.link(other.host, node.host).extraDelayMs = extraDelayMs
}

function removeNode(cluster: SimCluster, { id }: SimNode): void {
  cluster.operate(`remove ${id}`, () => cluster.insist('xsan.v1.Cluster/RemoveNode', { nodeId: id }))
}

/**
 * What a drive had not put on stable storage when a write or flush of it failed may be gone, though it works again, and its host knows nothing of that. Nobody
 * looks at what is on the disk then: its node takes it up again if nobody else has that, and else leaves it out until it is replaced. */
function failWrites({ cluster }: Stage, node: SimNode, fault: Fault): void {
  const bay = node.bays[fault.other % node.bays.length]!
  const { faults, shown } = bay.disk
  const { failures } = shown
  bay.suffered = true
  faults.writeEio = faults.flushEio = fault.amount
  bay.onFailed = () => {
    if (fault.unflushed !== 'keep') bay.drop(fault.unflushed)
  }
  cluster.world.schedule(fault.durationMs, 'fault ends', () => {
    faults.writeEio = faults.flushEio = 0
    bay.onFailed = undefined
    if (shown.failures > failures) cluster.effects.add(fault.kind)
    if (!node.diskFailed(bay)) return
    if (cluster.hasLastCopy(bay)) cluster.effects.add('disk-tried-again')
    node.process?.kill()
    node.restart()
  })
}

/** The node goes for good; another one comes first where the copies would have no other place. */
async function retire(cluster: SimCluster, node: SimNode): Promise<void> {
  if (cluster.members().length <= (cluster.options.replicas ?? 3)) await cluster.join(cluster.addNode())
  await cluster.insist('xsan.v1.Cluster/RemoveNode', { nodeId: node.id })
}

/** Every node in turn: stopped, started with the next version, and given some time to catch up. */
async function upgradeAll(cluster: SimCluster): Promise<void> {
  for (const node of [...cluster.nodes]) {
    if (node.removed) continue
    node.version++
    node.featureMax = FEATURE_LEVEL
    if (node.running) {
      const { process } = node
      node.stop()
      while (process?.alive) await cluster.pause(50)
    }
    node.restart()
    for (let waitedMs = 0; waitedMs < UPGRADE_STEP_MS && cluster.unhealthy() !== ''; waitedMs += 250) await cluster.pause(250)
  }
}

/** The node goes down, comes back with the older binary, and after a while with its own again. */
async function startOlder(cluster: SimCluster, node: SimNode, fault: Fault): Promise<void> {
  if (node.removed || node.older !== undefined) return
  // what its last process had begun is in the kernel, which goes on with it
  while (node.running || node.bays.some(({ disk }) => disk.underWay > 0)) {
    if (cluster.isHealed) return
    node.process?.kill()
    await cluster.pause(10)
  }
  node.older = OlderBinary.install(node, NEWER_FORMS[fault.amount]!)
  node.restart()
  await cluster.pause(fault.durationMs)
  node.installNewer()
  node.restart()
}

async function churn({ cluster, history, guests }: Stage, fault: Fault): Promise<void> {
  const { world } = cluster
  const name = `guest-${guests.length + 1}`
  const sizeBytes = 2 * BLOCK_BYTES
  const syncWhenWrite = fault.unflushed !== 'keep'
  const answer = await cluster.insist('xsan.v1.Volume/Create', { name, sizeBytes, replicas: 3, syncWhenWrite }).catch(async (error: unknown) => {
    // Repeated after its answer was lost
    if (error instanceof XsanError && error.status === 'VOLUME_EXISTS') return cluster.insist('xsan.v1.Volume/Info', { volume: name })
    throw error
  })
  const volume = Number(answer['id']) as SimVolume['volume']
  if (!syncWhenWrite) history.relaxedVolumes.add(volume)
  const random = world.random(`guest ${guests.length + 1}`)
  const client = new SimClient({
    ...CHURN_CLIENT,
    name,
    history,
    random,
    volume,
    sizeBytes,
    syncWhenWrite,
    seat: () => {
      const seats = cluster.nodes.flatMap((node) => (node.seat?.volumes.open(name) ? [node.seat] : []))
      return seats.length > 0 ? random.pick(seats) : undefined
    },
  })
  guests.push(client)
  client.start(world, WRITE_LIFE_MS)
  await cluster.pause(fault.durationMs)
  client.forsake()
  await cluster.insist('xsan.v1.Volume/Delete', { volume: name }).catch((error: unknown) => {
    if (!(error instanceof XsanError && error.status === 'VOLUME_NOT_FOUND')) throw error
  })
}

/** Returns whether it has grown: it does so up to a few blocks. */
async function grow({ cluster, clients }: Stage, volume: SimVolume): Promise<boolean> {
  const sizeBytes = volume.sizeBytes + BLOCK_BYTES
  if (sizeBytes > VOLUME_BLOCKS_MAX * BLOCK_BYTES) return false
  await cluster.insist('xsan.v1.Volume/Resize', { volume: volume.name, sizeBytes })
  if (volume.sizeBytes >= sizeBytes) return true
  volume.sizeBytes = sizeBytes
  for (const client of clients) if (client.options.volume === volume.volume) client.grow(sizeBytes)
  return true
}
