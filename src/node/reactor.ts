/**
 * Thread of one reactor: mounts its disks, puts the data plane together and runs it (design 2). The worker entry of `reactor-host.ts`.
 *
 * Order: io queue -> disks (waiting for their locks, then replay) -> data plane -> exports -> `ready`. A stage that fails is named in a
 * `failed` message and ends the process: the process is the failure unit.
 */
import { createHmac, randomBytes } from 'node:crypto'
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import { assert } from '../base/assert.ts'
import { messageOf, XsanError } from '../base/errors.ts'
import { FlightEvent, FlightRecorder } from '../base/flight.ts'
import type { DiskNumber, Incarnation, NodeNumber } from '../base/ids.ts'
import { MiB } from '../base/units.ts'
import { DataPlane } from '../chain/data-plane.ts'
import { type MountedStore, mountAll, StoreRelay } from '../chain/store-relay.ts'
import { AsyncIo } from '../env/async-io.ts'
import { LogLevel, type LogLevelName } from '../env/control.ts'
import { IoError } from '../env/ioqueue.ts'
import { CRCS_MAX, NativeIoQueue, OPS_MAX } from '../env/node/ioqueue.ts'
import { NodeLog } from '../env/node/log.ts'
import { ReactorCounter, runReactor } from '../env/node/reactor-loop.ts'
import { NbdServer } from '../export/nbd/server.ts'
import type { ControlToReactor, ReactorPort } from '../placement/messages.ts'
import { arenaBytesOf, formatStore, mountStore } from '../store/mount.ts'
import { CRCS_PER_DISK, OPERATIONS_PER_DISK } from '../store/read.ts'
import { VolumeLayer } from '../volume/volume.ts'
import { portHolder } from './admin-client.ts'
import { spaceOf } from './disks.ts'
import { MESSAGE_TYPES, type Posted, type ReactorConfig, type ReactorMessage, type ReactorStart } from './reactor-messages.ts'

const { config, counters, flight: flightMemory } = workerData as ReactorStart
assert(parentPort !== null, 'reactor.ts runs as a worker')
const channel = parentPort
const log = new NodeLog({ level: config.logLevel, fields: { node: config.nodeId, tag: 'reactor' } })
const disks = config.disks.length
const queue = new NativeIoQueue({
  arenaBytes: config.arenaBytes,
  opsMax: OPS_MAX + disks * OPERATIONS_PER_DISK,
  crcsMax: Math.max(CRCS_MAX, disks * CRCS_PER_DISK),
  flight: new FlightRecorder(flightMemory),
})
const asyncIo = new AsyncIo(queue)
const port = wakingPort()
const loop = runReactor(queue, { counters, spinUs: config.spinUs })
post({ type: 'running', wakeId: queue.wakeId })

/** Of the arena, for what disks take at least. */
const DISKS_SHARE = 0.375

let stage = 'starting'
try {
  await run()
} catch (error) {
  const known = error instanceof XsanError ? error : undefined
  if (!known && !(error instanceof IoError)) throw error
  post({ type: 'failed', message: `${stage}: ${messageOf(error)}`, nextStep: known?.nextStep ?? '', status: known?.status ?? 'INTERNAL' })
}

async function run(): Promise<void> {
  const leastBytes = arenaBytesOf(disks, config.slotCount) / DISKS_SHARE
  if (disks > 1 && config.arenaBytes < leastBytes) {
    const least = `${Math.ceil(leastBytes / MiB)}M`
    throw new XsanError('INVALID_PARAM', `${disks} disks need more memory than reactor.arena_size`, `Set reactor.arena_size to "${least}" or more.`)
  }
  const stores = await mountAll(config.disks, mount, (disk, error) => {
    log.log('ERROR', 'a disk cannot be used, this node goes on with its others', { disk: disk.path, error: error.message, next: error.nextStep })
    port.send({ type: 'diskFailed', disk: disk.number as DiskNumber, reason: error.message })
  })
  stage = 'starting the data plane'
  const dataPlane = new DataPlane({
    queue,
    asyncIo,
    port,
    stores,
    identity: { clusterId: config.clusterUuid, node: config.node as NodeNumber, incarnation: config.incarnation as Incarnation, reactor: 0 },
    listen: config.data,
    limits: { creditRows: config.credits },
    authenticate: {
      hmac: (bytes) => createHmac('sha256', config.clusterKey).update(bytes).digest(),
      nonce: () => randomBytes(16),
    },
  })
  await listening('network.data_port', config.data, () => dataPlane.start())
  const volumes = new VolumeLayer(dataPlane.client, queue.arena)
  stage = 'opening the NBD export'
  const nbd = new NbdServer({ queue, asyncIo, volumes, log, ...config.nbd })
  const waits = (): Record<string, number> => {
    const counters: Record<string, number> = {}
    const { readQueue, updateQueue, otherQueue, credit, batch, reply } = queue.waits
    readQueue.addTo(counters, 'storage.read.queue_latency')
    updateQueue.addTo(counters, 'storage.update.queue_latency')
    otherQueue.addTo(counters, 'storage.default.queue_latency')
    credit.addTo(counters, 'storage.wait_sem', queue.nowMs)
    batch.addTo(counters, 'storage.wait_batch', queue.nowMs)
    reply.addTo(counters, 'storage.wait_post', queue.nowMs)
    const { submitted, completed, failed, enqueueMs, waitMs } = queue.fileIo
    return {
      ...counters,
      'storage.aio_enqueue.count': submitted,
      'storage.aio_enqueue.sum_us': Math.round(enqueueMs * 1000),
      'storage.wait_aio.count': completed,
      'storage.wait_aio.sum_us': Math.round(waitMs * 1000),
      'storage.wait_aio.failed': failed,
      'storage.wait_aio.in_flight': submitted - completed,
    }
  }
  dataPlane.stopExports = () => nbd.stop()
  const loopCount = (counter: number) => Atomics.load(loop.counters, counter) >>> 0
  dataPlane.exportCounters = () => ({
    ...volumes.stats.snapshot(),
    connections: nbd.connectionCount,
    requests_in_flight: nbd.requestCount,
    aio_completed: loopCount(ReactorCounter.COMPLETIONS),
    reactor_turns: loopCount(ReactorCounter.TURNS),
    reactor_clock_ms: Math.round(queue.nowMs),
    ...waits(),
    ...nbd.connectionsByVolume(),
  })
  dataPlane.watchSettings((settings) => {
    const connectionsMax = settings['network.max_connections']
    if (typeof connectionsMax === 'number') nbd.connectionsMax = connectionsMax
    const spin = settings['reactor.spin']
    if (typeof spin === 'number') loop.spinUs = spin
    const level = settings['log.level']
    if (typeof level === 'string' && Object.hasOwn(LogLevel, level)) log.level = level as LogLevelName
  })
  const nbdPort = await listening('nbd.port', config.nbd, () => nbd.listenTcp(config.nbd.host, config.nbd.port))
  if (config.nbd.socket !== '') await listening('nbd.socket', undefined, () => nbd.listenUnix(config.nbd.socket))
  post({ type: 'tags', tags: queue.tagNames })
  port.send({ type: 'ready', dataPort: dataPlane.dataPort, nbdPort })
}

/** What cannot be listened on is the configuration's fault, or another process's. `at`: undefined for a socket with a path. */
async function listening<T>(key: string, at: { readonly host: string; readonly port: number } | undefined, listen: () => T | Promise<T>): Promise<T> {
  try {
    return await listen()
  } catch (error) {
    if (!(error instanceof IoError)) throw error
    const isTaken = error.code === 'EADDRINUSE'
    const holder = isTaken && at !== undefined ? portHolder(at.port) : undefined
    const message = isTaken && at !== undefined ? `port ${at.port} on ${at.host} is taken${holder ? ` by ${holder}` : ''}` : error.message
    let nextStep = `Set ${key} to a path where a socket can be made, or to "".`
    if (at !== undefined && isTaken) nextStep = `Stop that process, or choose another ${key}.`
    else if (at !== undefined)
      nextStep = `Set ${key === 'nbd.port' ? 'nbd.bind_ip' : 'cluster.bind_ip'} to an address of this host, and ${key} to a port that this user may use.`
    throw new XsanError(isTaken ? 'BUSY' : 'INVALID_PARAM', message, nextStep, { cause: error })
  }
}

/** A blank disk is formatted first; anything else that is not ours is refused by the store, with its reason. */
async function mount(disk: ReactorConfig['disks'][number]): Promise<MountedStore> {
  stage = `mounting ${disk.path}`
  if (disk.broken !== undefined) throw new XsanError(disk.broken.status, disk.broken.message, disk.broken.nextStep)
  const relay = new StoreRelay()
  const identity = { clusterId: config.clusterUuid, nodeId: config.nodeId }
  if (!disk.formatted) {
    await formatStore(asyncIo, {
      path: disk.path,
      ...(disk.createBytes === undefined ? {} : { createBytes: disk.createBytes }),
      identity,
      diskUuid: disk.uuid,
      journalUuid: randomBytes(16).toString('hex'),
      disk: disk.number as DiskNumber,
      slotCount: config.slotCount,
    })
  }
  const store = await mountStore({
    io: asyncIo,
    path: disk.path,
    identity,
    slotCount: config.slotCount,
    events: relay,
    bootId: config.bootId,
    ...(disk.wasAway ? { wasAway: true } : {}),
    wallMs: () => Date.now(),
    disk: disk.number as DiskNumber,
    disks,
    space: spaceOf,
    onNote: (message, fields) => log.log('INFO', message, { disk: disk.path, ...fields }),
  })
  return { store, relay }
}

function post(message: ReactorMessage): void {
  channel.postMessage(message)
}

function recordMessage(message: ControlToReactor, waitedMs: number): void {
  const { flight } = queue
  flight.record(FlightEvent.MESSAGE_IN, MESSAGE_TYPES.indexOf(message.type), waitedMs * 1000)
  if (message.type === 'lease') flight.record(FlightEvent.LEASE, message.untilMs - queue.nowMs, message.revision)
  else if (message.type === 'table') flight.record(FlightEvent.TABLE, message.revision, message.chains.length)
}

/** The main thread posts and wakes; then, between turns, the messages are taken in order. */
function wakingPort(): ReactorPort {
  let handler: ((message: ControlToReactor) => void) | undefined
  const early: ControlToReactor[] = []
  queue.onWake(() => {
    for (let next = receiveMessageOnPort(channel); next !== undefined; next = receiveMessageOnPort(channel)) {
      const { atMs, message } = next.message as Posted
      const waitedMs = Math.max(0, queue.nowMs - atMs)
      queue.waits.otherQueue.record(waitedMs)
      recordMessage(message, waitedMs)
      if (handler) handler(message)
      else early.push(message)
    }
  })
  return {
    send: post,
    onMessage(given) {
      handler = given
      for (const message of early.splice(0)) given(message)
    },
  }
}
