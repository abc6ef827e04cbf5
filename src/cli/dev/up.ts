import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Option } from 'commander'
import { XsanError } from '../../base/errors.ts'
import { formatSize, GiB } from '../../base/units.ts'
import { AdminClient } from '../../node/admin-client.ts'
import { assignment, loadConfig, resolveConfig } from '../../node/config.ts'
import { makeDirectory } from '../../node/directories.ts'
import { command, parseCount, parsePositive, parseSizeArgument, sleep, UsageError, usage } from '../program.ts'
import { clusterExists, configPath, type DevCluster, type DevNode, nodeDir, readCluster, socketPath, unmake, wipe, writeCluster, writeJson } from './files.ts'
import { dirOption, timeoutOption } from './options.ts'
import { freePorts, PORTS_PER_NODE, requireFree } from './ports.ts'
import { endedError, endProcess, processState, startProcess, until, withDirLock } from './processes.ts'
import { startNodes } from './start.ts'
import { clusterOutput, waitState } from './view.ts'

const HOST = '127.0.0.1'
const NODES_MAX = 64
const NODES_DEFAULT = 3
const DISK_BYTES_DEFAULT = 4 * GiB
const PORT_MAX = 65_535
const OPEN_MS = 30_000
const JOIN_MS = 60_000
const END_MS = 3000
/** Where there are three nodes: so that any one of them may be lost. */
const VOTERS_MIN = 3
const POLL_MS = 100
/** Elections of one host need not allow for a network. */
const DEV_NETWORK = { heartbeat_interval: 900, election_timeout: 1000 }

interface Options {
  nodes?: number
  dir: string
  replicas?: number
  diskSize?: number
  basePort?: number
  set: string[]
  timeout: number
}

export const devUp = command<Options>({
  usage: 'up',
  description: 'start a cluster of real nodes on this host; returns when it serves',
  options: [
    new Option('--nodes <n>', `how many, 1 to ${NODES_MAX}; default: ${NODES_DEFAULT}, or as many as there are`).argParser(parseNodes),
    dirOption(),
    new Option('--replicas <r>', 'copies of a volume by default; default: one per node, at most 3').argParser(parsePositive),
    new Option('--disk-size <size>', 'of the one disk of each node, a sparse file; default: 4G').argParser(parseSizeArgument),
    new Option('--base-port <p>', `first of ${PORTS_PER_NODE} ports per node; default: free ones`).argParser(parsePositive),
    new Option('--set <key=value>', 'a key of the configuration of every node; may be given again')
      .argParser((text: string, before: string[]) => {
        parseSet(text)
        return [...before, text]
      })
      .default([], 'none'),
    timeoutOption('120s'),
  ],
  examples: ['xsan dev up --nodes 3 --dir /tmp/play', 'xsan dev up --nodes 1 --dir /tmp/one --set storage.sync_when_write=false'],
  versioned: false,
  async run({ options, progress }) {
    if (!clusterExists(options.dir)) checkOptions(options)
    const made = makeDirectory(options.dir, 'the directory of the playground')
    return withDirLock(options.dir, options.timeout, async () => {
      if (clusterExists(options.dir)) made.unshift(...(await clearUnformed(options.dir)))
      const cluster = clusterExists(options.dir)
        ? resume(options, progress)
        : await lay(options, made).catch((error: unknown) => throwUnmade(options.dir, made, error))
      return endedWhenInterrupted(cluster, progress, async () => {
        if (cluster.formed) await startNodes(cluster, cluster.nodes, options.timeout)
        else await form(cluster, options, progress)
        await waitServing(cluster, options.timeout)
        return clusterOutput(cluster)
      })
    })
  },
})

/** Nothing came of it: what was made for it goes. */
function throwUnmade(dir: string, made: readonly string[], error: unknown): never {
  if (clusterExists(dir)) wipe(dir, readCluster(dir).nodes)
  unmake(made)
  throw error
}

/** Ctrl-C: what was not running before does not run on, and the command ends by the signal, as shells expect it. */
async function endedWhenInterrupted<T>(cluster: DevCluster, progress: (line: string) => void, work: () => Promise<T>): Promise<T> {
  const { dir, nodes } = cluster
  const started = nodes.filter(({ id }) => processState(dir, id).state === 'dead')
  const signals = ['SIGINT', 'SIGTERM'] as const
  let stop: (signal: NodeJS.Signals) => void = () => {}
  const interrupted = new Promise<NodeJS.Signals>((resolve) => {
    stop = resolve
    for (const signal of signals) process.once(signal, stop)
  })
  const working = work()
  try {
    const signal = await Promise.race([working.then(() => undefined), interrupted])
    if (signal === undefined) return await working
    working.catch(() => {})
    progress('interrupted; ending what was started')
    await Promise.all(started.map(({ id }) => endProcess(dir, id, END_MS)))
    process.kill(process.pid, signal)
    return await new Promise<never>(() => {})
  } finally {
    for (const signal of signals) process.removeListener(signal, stop)
  }
}

/** What an interrupted `up` left is of no use: a token may be spent, a disk half formatted. Returns the directories it had made for it, which stay. */
async function clearUnformed(dir: string): Promise<readonly string[]> {
  const cluster = readCluster(dir)
  if (cluster.formed) return []
  await Promise.all(cluster.nodes.map((node) => endProcess(dir, node.id, END_MS)))
  wipe(dir, cluster.nodes)
  return cluster.made ?? []
}

/** The playground that is already there; the options must not ask for another one. */
function resume(options: Options, progress: (line: string) => void): DevCluster {
  const cluster = readCluster(options.dir)
  const { config } = loadConfig(configPath(cluster.dir, cluster.nodes[0]!.id))
  const differs = (asked: number | undefined, is: number, what: string) => {
    if (asked === undefined || asked === is) return
    throw new XsanError(
      'ALREADY_EXISTS',
      `${options.dir} holds a playground ${what}`,
      `Leave that option out to go on with it; for another one: xsan dev down --wipe --dir ${options.dir}, or another --dir`,
    )
  }
  differs(options.nodes, cluster.nodes.length, `of ${cluster.nodes.length} nodes`)
  differs(options.basePort, config.cluster.bind_port, `whose first port is ${config.cluster.bind_port}`)
  differs(options.replicas, config.storage.default_replica_count, `whose volumes have ${config.storage.default_replica_count} copies by default`)
  const sizeBytes = config.storage.devices[0]?.size ?? 0
  differs(options.diskSize, sizeBytes, `with disks of ${formatSize(sizeBytes)}`)
  if (options.set.length > 0) {
    for (const { id } of cluster.nodes) {
      const { config } = loadConfig(configPath(cluster.dir, id))
      resolveConfig([{ file: configPath(cluster.dir, id), json: config }, ...options.set.map(assignment)], nodeDir(cluster.dir, id))
      writeSet(cluster.dir, id, options.set)
    }
    const running = cluster.nodes.filter(({ id }) => processState(cluster.dir, id).state !== 'dead').map(({ id }) => id)
    if (running.length > 0) progress(`${running.join(', ')} run already: --set holds for them from their next start on`)
  }
  return cluster
}

/** What a new playground is to be. Throws before anything is written. */
function checkOptions(options: Options): { readonly count: number; readonly replicas: number; readonly ports: number } {
  const count = options.nodes ?? NODES_DEFAULT
  const replicas = options.replicas ?? Math.min(3, count)
  if (replicas > count) throw new UsageError(`${replicas} copies need as many nodes, there are ${count}`, `--replicas ${count}`)
  const ports = count * PORTS_PER_NODE
  if (options.basePort !== undefined && options.basePort + ports - 1 > PORT_MAX) {
    throw new UsageError(
      `${ports} ports from ${options.basePort} on are needed, and the last port is ${PORT_MAX}`,
      `--base-port ${PORT_MAX - ports + 1} or less`,
    )
  }
  return { count, replicas, ports }
}

function parseNodes(text: string): number {
  const count = parseCount(text)
  if (count < 1 || count > NODES_MAX) throw new UsageError(`a playground has 1 to ${NODES_MAX} nodes`, '--nodes 3')
  return count
}

/** What `up` gives each node of its own: no value would be right for all of them. */
const OWN_KEYS: Readonly<Record<string, string>> = {
  'cluster.node_id': 'each node has its own',
  'cluster.data_dir': 'each node has its own, in --dir',
  'cluster.bind_port': 'use --base-port',
  'network.data_port': 'use --base-port',
  'network.admin_port': 'use --base-port',
  'nbd.port': 'use --base-port',
  'nbd.socket': 'each node has its own, in --dir',
}

/** What `up` and `status` say of addresses must be true. */
const ADDRESS_KEYS: Readonly<Record<string, readonly string[]>> = {
  'cluster.bind_ip': [HOST],
  'network.admin_ip': [HOST],
  'nbd.bind_ip': [HOST, '0.0.0.0'],
}

function parseSet(text: string): void {
  const { json } = usage(() => assignment(text))
  const given = (key: string) =>
    key.split('.').reduce<unknown>((inner, part) => (typeof inner === 'object' ? (inner as Record<string, unknown> | null)?.[part] : undefined), json)
  for (const [key, why] of Object.entries(OWN_KEYS)) {
    if (given(key) !== undefined) throw new UsageError(`--set ${text}: ${key} cannot be set for a playground`, `Leave it out: ${why}.`)
  }
  for (const [key, addresses] of Object.entries(ADDRESS_KEYS)) {
    const value = given(key)
    if (value !== undefined && !addresses.includes(String(value)))
      throw new UsageError(`--set ${text}: a playground is reached at ${HOST}`, `Leave it out, or set it to ${addresses.join(' or ')}.`)
  }
}

/** Directories and configurations; nothing runs yet. */
async function lay(options: Options, made: readonly string[]): Promise<DevCluster> {
  const { dir } = options
  const { count, replicas, ports } = checkOptions(options)
  if (options.basePort !== undefined) await requireFree(options.basePort, ports)
  const base = options.basePort ?? (await freePorts(ports))
  const clusterId = `dev-${base}`
  const nodes = Array.from({ length: count }, (_, index): DevNode => {
    const id = `node-${index + 1}`
    const [grpc, data, nbd, admin] = [0, 1, 2, 3].map((offset) => `${HOST}:${base + index * PORTS_PER_NODE + offset}`) as [string, string, string, string]
    return { id, grpc, data, nbd: `nbd://${nbd}`, nbdSocket: socketPath(dir, id), admin: `http://${admin}`, dataDir: join(nodeDir(dir, id), 'data') }
  })
  const set = options.set.map(assignment)
  const configs = nodes.map((node, index) => {
    const first = base + index * PORTS_PER_NODE
    return {
      cluster: { cluster_id: clusterId, node_id: node.id, bind_ip: HOST, bind_port: first, data_dir: node.dataDir },
      storage: {
        devices: [{ path: join(nodeDir(dir, node.id), 'disk-0'), type: 'ssd', role: 'capacity', size: options.diskSize ?? DISK_BYTES_DEFAULT }],
        default_replica_count: replicas,
      },
      network: { ...DEV_NETWORK, data_port: first + 1, admin_port: first + 3, heartbeat_port: base },
      nbd: { bind_ip: HOST, port: first + 2, socket: node.nbdSocket },
    }
  })
  // Wrong --set: say so before anything is written or starts
  const resolved = nodes.map(({ id }, index) => resolveConfig([{ file: configPath(dir, id), json: configs[index] }, ...set], nodeDir(dir, id)).config)
  const cluster = { clusterId: resolved[0]!.cluster.cluster_id, dir, made, formed: false, nodes }
  const foreign = nodes.find(({ id }) => existsSync(nodeDir(dir, id)))
  if (foreign !== undefined)
    throw new XsanError('ALREADY_EXISTS', `${nodeDir(dir, foreign.id)} is there already, and of no playground`, 'Move it away, or choose another --dir.')
  // first of all: whatever happens from here on, it is known what to wipe
  writeCluster(cluster)
  for (const [index, node] of nodes.entries()) {
    makeDirectory(node.dataDir, 'the directory of the playground')
    writeJson(configPath(dir, node.id), configs[index])
    if (options.set.length > 0) writeSet(dir, node.id, options.set)
  }
  return cluster
}

/** Starts the processes and makes them one cluster, the way people do it: init, then a token for each of the others. */
async function form(cluster: DevCluster, options: Options, progress: (line: string) => void): Promise<void> {
  const { dir, nodes } = cluster
  const endMs = performance.now() + options.timeout
  const leftMs = (most: number) => Math.max(0, Math.min(most, endMs - performance.now()))
  try {
    await Promise.all(nodes.map((node) => startProcess(dir, node)))
    await Promise.all(nodes.map((node) => waitState(dir, node, leftMs(OPEN_MS), ({ state }) => state !== 'unresponsive')))
    const [first, ...others] = nodes as readonly [DevNode, ...DevNode[]]
    // on a busy machine the answer itself may come after the time was over
    if (leftMs(OPEN_MS) === 0)
      throw new XsanError('NETWORK_TIMEOUT', `${first.id} is not ready after ${(options.timeout / 1000).toFixed(1)} s`, `Look at ${dir}/${first.id}/xsand.log`)
    const client = new AdminClient(first.grpc)
    try {
      await client.call('Cluster/Init', {}, JOIN_MS)
      for (const node of others) {
        const { token } = await client.call('Cluster/AddNode', { nodeId: node.id }, JOIN_MS)
        const joining = new AdminClient(node.grpc)
        await joining.call('Cluster/Join', { token }, JOIN_MS).finally(() => joining.close())
      }
    } finally {
      await client.close()
    }
    await Promise.all(nodes.map((node) => waitState(dir, node, leftMs(options.timeout), ({ state }) => state === 'ready')))
    writeCluster({ ...cluster, formed: true })
  } catch (error) {
    const why = await whyEnded(dir, nodes, error)
    progress('ending what was started')
    await Promise.all(nodes.map((node) => endProcess(dir, node.id, END_MS)))
    // the wait is over and so is the work: not "timed out, but still running"
    if (error instanceof XsanError && error.status === 'NETWORK_TIMEOUT')
      throw new XsanError('CLUSTER_NOT_READY', error.message, `${error.nextStep}; or give it longer: --timeout`, { cause: error })
    throw why
  }
}

/** A call breaks off when the process it was made to ends: what that has ended with says more. */
async function whyEnded(dir: string, nodes: readonly DevNode[], error: unknown): Promise<unknown> {
  if (!(error instanceof XsanError) || error.status !== 'NODE_UNREACHABLE') return error
  const isDead = ({ id }: DevNode) => processState(dir, id).state === 'dead'
  await until(() => nodes.some(isDead), END_MS)
  const dead = nodes.find(isDead)
  return dead === undefined ? error : endedError(dir, dead.id)
}

/** Every node knows the leader, and the cluster says that nothing is unavailable. */
async function waitServing(cluster: DevCluster, timeoutMs: number): Promise<void> {
  const client = new AdminClient(cluster.nodes[0]!.grpc)
  const endMs = performance.now() + timeoutMs
  let why = ''
  try {
    for (;;) {
      try {
        const status = await client.call('Cluster/Status', {}, 2000)
        const nodes = status['nodes'] as Array<{ state: string; raftRole: string }>
        const voters = nodes.filter(({ raftRole }) => raftRole === 'voter').length
        const serves = status['health'] !== 'unavailable' && nodes.length >= cluster.nodes.length && nodes.every(({ state }) => state === 'ready')
        if (serves && voters >= Math.min(VOTERS_MIN, nodes.length - 1 + (nodes.length % 2))) return
        why = `${String(status['health'])}: ${(status['reasons'] as string[]).join(' ')}; nodes: ${nodes.map(({ state }) => state).join(', ')}`
      } catch (error) {
        if (!(error instanceof XsanError)) throw error
        why = error.message
      }
      if (performance.now() >= endMs)
        throw new XsanError(
          'NETWORK_TIMEOUT',
          `the cluster does not serve after ${timeoutMs / 1000} s (${why})`,
          `xsan --server ${client.address} cluster status`,
        )
      await sleep(POLL_MS)
    }
  } finally {
    await client.close()
  }
}

/** Beside what was set before. */
function writeSet(dir: string, id: string, set: readonly string[]): void {
  const path = join(nodeDir(dir, id), 'xsan.json.d', '50-set.json')
  const before: unknown = existsSync(path) ? JSON.parse(readFileSync(path, 'utf8')) : {}
  writeJson(
    path,
    set.map((text) => assignment(text).json).reduce<unknown>((merged, json) => deepMerge(merged, json), before),
  )
}

function deepMerge(below: unknown, above: unknown): unknown {
  const isObject = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null && !Array.isArray(value)
  if (!isObject(below) || !isObject(above)) return above
  return Object.fromEntries([
    ...Object.entries(below),
    ...Object.entries(above).map(([key, value]) => [key, key in below ? deepMerge(below[key], value) : value] as const),
  ])
}
