/**
 * The process of a node: the one place where the real environment meets the logic. The order of the start is the order of `startNode`;
 * each stage is logged when it begins, and a failing one is named.
 *
 *   directory -> native engine -> disks -> metadata -> admin port -> control plane -> (once a member) reactor: mount, data plane, exports
 *
 * Invariants:
 * - The process is the failure unit: an uncaught error, a dead reactor or failing metadata end it at once.
 * - `/readyz` says ready only while this node holds its lease and has everything loaded.
 */
import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { messageOf, XsanError } from '../base/errors.ts'
import { FlightEvent } from '../base/flight.ts'
import type { ControlConfig, Registration } from '../control/options.ts'
import { ControlPlane } from '../control/plane.ts'
import { LogLevel, type LogLevelName } from '../env/control.ts'
import { loadAddon } from '../env/native/addon.ts'
import { createRaftCore } from '../env/native/raft.ts'
import { NodeClock } from '../env/node/clock.ts'
import { NodeDatagram } from '../env/node/datagram.ts'
import { NodeEntropy } from '../env/node/entropy.ts'
import { LevelKv } from '../env/node/kv.ts'
import { NodeLog } from '../env/node/log.ts'
import { GrpcRpc } from '../env/node/rpc.ts'
import type { ReactorToControl } from '../placement/messages.ts'
import { serveAdminHttp } from './admin-http.ts'
import { ANY_ADDRESS, CONNECTIONS_MAX, type Config, describeKey, type LoadedConfig } from './config.ts'
import { makeDirectory } from './directories.ts'
import { type FoundDisk, findDisks, METADATA_DIR, overcommitted, rememberFailed, rememberFormatted, replaced } from './disks.ts'
import { FlightRecorders } from './flight-file.ts'
import { createHmacSha256 } from './hmac.ts'
import { LateTurns } from './late-turns.ts'
import { tooFewFiles } from './limits.ts'
import { metricsText } from './metrics.ts'
import { type ReactorHost, startReactor } from './reactor-host.ts'
import { ServiceManager } from './service-manager.ts'

export const VERSION = '0.1.0'
/** Slots of a new cluster. */
const SLOT_COUNT = 4096
/** A turn of the main thread may not be longer. */
const TURN_MS_MAX = 50
const TURN_CHECK_MS = 5000

export interface RunningNode {
  readonly log: NodeLog
  readonly flight: FlightRecorders
  /** Drains, hands over, closes. A second call waits for the first. */
  stop(): Promise<void>
}

export interface StartOptions {
  readonly loaded: LoadedConfig
  /** The process has to end. */
  readonly onFatal: (error: unknown) => void
}

/** Resolves when the node answers calls; becoming ready goes on in the background. Throws XsanError naming the stage. */
export async function startNode({ loaded, onFatal }: StartOptions): Promise<RunningNode> {
  const { config } = loaded
  const log = new NodeLog({ level: config.log.level, fields: { node: config.cluster.node_id } })
  const stage = stages(log)
  const dataDir = config.cluster.data_dir

  const tooFew = tooFewFiles(config.network.max_connections)
  if (tooFew !== undefined) log.log('WARN', tooFew, { next: 'Raise the limit (ulimit -n, LimitNOFILE of the unit), or lower network.max_connections.' })
  await stage('directory', () => prepareDirectories(config))
  const addon = await stage('native engine', () => loadEngine())
  const flight = new FlightRecorders({ version: VERSION, node: config.cluster.node_id, directory: dataDir, bootMs: () => addon.bootTimeMs() })
  const entropy = new NodeEntropy()
  const { disks, leftOut } = await stage('disks', () => findDisks(config.storage.devices, dataDir, () => entropy.uuid()))
  for (const error of leftOut)
    log.log('ERROR', 'a disk is left out, this node goes on with its others: to the cluster it has failed', { error: error.message, next: error.nextStep })
  for (const { path } of disks.filter(({ role }) => role === 'cache'))
    log.log('WARN', 'a disk has the role cache, which this version does not use: it is formatted and watched, and holds no data', { path })
  for (const warning of replaced(disks))
    log.log('WARN', 'a new disk takes the place of another one', {
      warning,
      next: 'If that is not meant (a file system is not mounted): stop this node, bring the old one back, start it.',
    })
  for (const warning of overcommitted(disks))
    log.log('WARN', 'a disk may fill up underneath', { warning, next: 'Make it smaller, or give it a file system of its own.' })
  const kv = await stage('metadata', () => LevelKv.open(join(dataDir, METADATA_DIR)))
  const clock = new NodeClock(() => addon.bootTimeMs())
  const bootId = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()

  let reactor: ReactorHost | undefined
  let stats: Extract<ReactorToControl, { type: 'stats' }> | undefined
  const control = new ControlPlane({
    env: { rpc: new GrpcRpc({ log }), datagram: new NodeDatagram({ log }), kv, clock, entropy, log },
    config: controlConfig(loaded, disks, bootId),
    createCore: createRaftCore,
    hmac: createHmacSha256(),
    async openDataPlane(registration) {
      const unusable = new Set<FoundDisk>()
      const failed = (disk: FoundDisk) => {
        unusable.add(disk)
        try {
          rememberFailed(disk, dataDir)
        } catch (error) {
          log.log('WARN', 'that a disk has failed is not remembered', { disk: disk.path, error: messageOf(error) })
        }
      }
      reactor = await startReactor({
        flight,
        config: reactorConfig(config, registration, disks, bootId),
        nowMs: () => clock.nowMs(),
        onMessage(message) {
          if (message.type === 'stats') stats = message
          else if (message.type === 'diskFailed') failed(disks[registration.disks.indexOf(message.disk)]!)
          else if (message.type === 'ready') rememberFormatted(disks, dataDir, (disk) => unusable.has(disk))
        },
        onFatal,
      })
      return reactor.port
    },
    dumpFlight: (reason) => writeFlight(flight, log, reason),
    reactorTurning: () => reactor?.turning() ?? true,
    onSettings(settings) {
      const level = settings['log.level']
      if (typeof level === 'string' && Object.hasOwn(LogLevel, level)) log.level = level as LogLevelName
    },
    onFatal,
  })

  const admin = await stage('admin port', () =>
    serveAdminHttp({
      host: config.network.admin_ip ?? config.cluster.bind_ip,
      port: config.network.admin_port,
      notReady() {
        return control.isReady ? undefined : statusLine(control)
      },
      metrics: () =>
        metricsText({
          version: VERSION,
          nodeId: config.cluster.node_id,
          counters: () => ({ ...stats?.counters, ...control.counters() }),
          disks: () => stats?.disks ?? [],
          resync: () => stats?.resync ?? { blocksLeft: 0, bytesMoved: 0, bytesNeeded: 0, lostPages: 0 },
          state: () => control.status.state,
        }),
    }),
  )
  await stage('control plane', () => control.start())
  const stopWatching = watchTurns(log, clock, flight, () => reactor?.turning() ?? true)
  const manager = new ServiceManager({
    env: process.env,
    pid: process.pid,
    send: (socket, message) => addon.notifyService(socket, message),
    log,
    isAlive: () => reactor?.turning() ?? true,
    status: () => statusLine(control),
  })
  manager.ready()
  log.log('INFO', 'answering calls', { grpc: `${config.cluster.bind_ip}:${config.cluster.bind_port}`, state: control.status.state })

  let stopping: Promise<void> | undefined
  const stop = async () => {
    log.log('INFO', 'stopping')
    manager.stopping()
    stopWatching()
    await control.stop()
    await admin.close()
    await reactor?.end()
    await kv.close()
    manager.end()
    log.log('INFO', 'stopped')
  }
  return {
    log,
    flight,
    stop() {
      stopping ??= stop()
      return stopping
    },
  }
}

/** Logs where it is. Returns the path; throws WRITE_FAILED when it cannot be written. */
export function writeFlight(flight: FlightRecorders, log: NodeLog, reason: string): string {
  const dumped = flight.dump(reason)
  if ('error' in dumped) {
    log.log('ERROR', 'the flight recorder could not be written', { reason, error: dumped.error })
    throw new XsanError('WRITE_FAILED', `the flight recorder could not be written: ${dumped.error}`, 'Look at the space and permissions of cluster.data_dir.')
  }
  log.log('WARN', 'the flight recorder was written', {
    path: dumped.path,
    reason: reason.split('\n')[0],
    next: `xsan-debug flight-recorder show ${dumped.path}`,
  })
  return dumped.path
}

function statusLine(control: ControlPlane): string {
  const { state, stage, detail } = control.status
  return [state, stage, detail].filter(Boolean).join(': ')
}

function stages(log: NodeLog) {
  return async <T>(name: string, body: () => T | Promise<T>): Promise<T> => {
    log.log('INFO', `start: ${name}`)
    try {
      return await body()
    } catch (error) {
      const known = error instanceof XsanError ? error : new XsanError('INTERNAL', messageOf(error), '', { cause: error })
      throw new XsanError(known.status, `start failed at "${name}": ${known.message}`, known.nextStep, { cause: error })
    }
  }
}

function prepareDirectories({ cluster, nbd }: Config): void {
  makeDirectory(cluster.data_dir, 'cluster.data_dir')
  if (nbd.socket !== '') makeDirectory(dirname(nbd.socket), 'the directory of nbd.socket')
}

function loadEngine() {
  try {
    return loadAddon()
  } catch (error) {
    throw new XsanError('NOT_SUPPORTED', messageOf(error), 'tools/bootstrap', { cause: error })
  }
}

function controlConfig({ config, items }: LoadedConfig, disks: readonly FoundDisk[], bootId: string): ControlConfig {
  const { cluster, storage, network, nbd, failover } = config
  const told = (ip: string) => (ip === ANY_ADDRESS ? cluster.bind_ip : ip)
  return {
    nodeId: cluster.node_id,
    clusterId: cluster.cluster_id,
    listen: { host: cluster.bind_ip, port: cluster.bind_port },
    addresses: {
      grpc: `${cluster.bind_ip}:${cluster.bind_port}`,
      data: `${cluster.bind_ip}:${network.data_port}`,
      nbd: `${told(nbd.bind_ip)}:${nbd.port}`,
      nbdSocket: nbd.socket,
      admin: `${told(network.admin_ip ?? cluster.bind_ip)}:${network.admin_port}`,
    },
    zone: cluster.zone ?? '',
    rack: cluster.rack ?? '',
    version: VERSION,
    dataDir: cluster.data_dir,
    bootId,
    pid: process.pid,
    disks: disks.map(({ uuid, path, type, role, capacityBytes }) => ({ uuid, path, type, role, capacityBytes })),
    replicas: storage.default_replica_count,
    syncWhenWrite: storage.sync_when_write,
    slotCount: SLOT_COUNT,
    leaseMs: failover.lease,
    electionTimeoutMs: network.election_timeout,
    heartbeat: {
      host: cluster.bind_ip,
      port: cluster.bind_port,
      multicastGroup: network.heartbeat_group,
      multicastPort: network.heartbeat_port,
      intervalMs: network.heartbeat_interval,
    },
    entries: items,
    describeKey,
  }
}

function reactorConfig(config: Config, registration: Registration, disks: readonly FoundDisk[], bootId: string) {
  const { cluster, network, nbd, reactor, log } = config
  const { clusterId, clusterUuid, clusterKey, node, nodeId, incarnation, slotCount } = registration
  return {
    clusterId,
    clusterUuid,
    clusterKey,
    node,
    nodeId,
    incarnation,
    slotCount,
    disks: disks.map((disk, index) => ({ ...disk, number: registration.disks[index]! })),
    bootId,
    data: { host: cluster.bind_ip, port: network.data_port },
    nbd: { host: nbd.bind_ip, port: nbd.port, socket: nbd.socket, connectionsMax: network.max_connections, connectionRowsMax: CONNECTIONS_MAX },
    arenaBytes: reactor.arena_size,
    credits: reactor.credits,
    spinUs: reactor.spin,
    logLevel: log.level,
  }
}

/**
 * Says so when something held the main thread too long: a lease is renewed on it. What tells is how late its timers are (Raft's tick is never far
 * away); a timer of its own that looks often enough would cost more than all the rest of an idle node.
 */
function watchTurns(log: NodeLog, clock: NodeClock, flight: FlightRecorders, reactorTurns: () => boolean): () => void {
  clock.takeLatestMs()
  let stuckSeen = false
  const late = new LateTurns(TURN_MS_MAX)
  const timer = setInterval(() => {
    const longestMs = clock.takeLatestMs()
    if (!reactorTurns() && !stuckSeen) {
      // once: what it did last is still in its recorder
      stuckSeen = true
      log.log('ERROR', 'the reactor stands still: this node serves nothing until it goes on')
      const dumped = flight.dump('the reactor stands still')
      log.log('WARN', 'the flight recorder of the reactor', { ...dumped })
    }
    if (longestMs > TURN_MS_MAX) flight.record(FlightEvent.MAIN_TURN_LATE, longestMs)
    const line = late.look(clock.nowMs(), longestMs)
    if (line !== undefined) log.log('WARN', 'a turn of the main thread took too long', { ...line, limit: TURN_MS_MAX })
  }, TURN_CHECK_MS)
  timer.unref()
  return () => clearInterval(timer)
}
