/**
 * The configuration of a node: xsan.json in the schema of the product documents, then the files of xsan.json.d in name order, each
 * overriding what came before (objects are merged, lists replaced).
 *
 * Invariants:
 * - One schema gives types, defaults, limits, what may change at run time (hot), and the text of `xsan config show`.
 * - An unknown key or a wrong value is an error that names key, place, file, and the nearest known key. Nothing is guessed.
 * - Times are milliseconds; sizes are bytes, or text such as "4G" (binary units).
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { z } from 'zod'
import { messageOf, XsanError } from '../base/errors.ts'
import { BLOCK_BYTES, formatSize, GiB, MiB, parseSize } from '../base/units.ts'
import { REPLICAS_MAX } from '../placement/chain.ts'

export { REPLICAS_MAX }

export const DEFAULT_CONFIG_PATH = '/etc/xsan/xsan.json'
/** Of network.max_connections: three operations each are a good part of what an io queue takes. */
export const CONNECTIONS_MAX = 8192
/** Listens on all addresses of the host; nobody can be told it. */
export const ANY_ADDRESS = '0.0.0.0'
/** A path of a UNIX socket must fit sun_path with its closing zero. */
const SOCKET_PATH_BYTES_MAX = 107

const size = (bytes: { min: number; max: number }) =>
  z.preprocess(
    (value) => (typeof value === 'string' ? sizeOrNaN(value) : value),
    z
      .number('must be a size: a number of bytes, or text such as "4G"')
      .int('must be a whole number of bytes')
      .min(bytes.min, `must be at least ${formatSize(bytes.min)}`)
      .max(bytes.max, `must be at most ${formatSize(bytes.max)}`),
  )
const port = (byDefault: number) => z.number().int().min(0).max(65535).default(byDefault)
const ms = (limits: { min: number; max: number; byDefault: number }) =>
  z.number('must be a number of milliseconds').int('must be a whole number of milliseconds').min(limits.min).max(limits.max).default(limits.byDefault)
const ipv4 = z.ipv4('must be an IPv4 address')
const name = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/, 'must be letters, digits, ".", "_", "-", at most 63, beginning with a letter or digit')

const device = z.strictObject({
  path: z.string().min(1).describe('Block device, or file on a file system.'),
  type: z.enum(['ssd', 'hdd']).describe('What it is made of: ssd or hdd.'),
  role: z.enum(['cache', 'capacity']).describe('capacity: holds blocks; cache: for journal and hot data of the capacity disks, not used by this version.'),
  size: size({ min: 64 * MiB, max: 2 ** 50 })
    .optional()
    .describe('For a path that does not exist yet: create a sparse file of this size.'),
})

export const configSchema = z.strictObject({
  cluster: z.strictObject({
    cluster_id: name.describe('Name of the cluster.'),
    node_id: name.describe('Name of this node, unique in the cluster.'),
    bind_ip: ipv4.describe('Address of this node for the other nodes and for commands.'),
    bind_port: port(8080).describe('Port of control (gRPC). UDP heartbeats by unicast come to the same number.'),
    data_dir: z.string().min(1).default('/var/lib/xsan').describe('Directory of the metadata of this node.'),
    zone: name.optional().describe('Failure domain above the rack.'),
    rack: name.optional().describe('Failure domain above the node.'),
  }),
  storage: z
    .strictObject({
      devices: z.array(device).max(256).default([]).describe('Disks given to XSAN; a node without any is a witness: it votes and stores nothing.'),
      block_size: z
        .literal(BLOCK_BYTES, 'must be 4194304 (4 MiB): the unit of placement cannot be changed')
        .default(BLOCK_BYTES)
        .describe('Unit of placement and replication.'),
      default_replica_count: z.number().int().min(1).max(REPLICAS_MAX).default(2).describe('Copies of a volume created without --replicas.'),
      sync_when_write: z
        .boolean()
        .default(true)
        .describe('A write is acknowledged when every copy is on stable storage; false: when it is in the memory of all of them.'),
      read_only: hot(z.boolean().default(false)).describe('Refuse writes, serve reads.'),
    })
    .prefault({}),

  network: z
    .strictObject({
      heartbeat_interval: ms({ min: 50, max: 60_000, byDefault: 1000 }).describe('Between two heartbeats.'),
      election_timeout: ms({ min: 200, max: 120_000, byDefault: 5000 }).describe('Without a leader for this long, a node stands for election.'),
      max_connections: hot(z.number().int().min(1).max(CONNECTIONS_MAX).default(1000)).describe('Clients of one listener; the next one is refused.'),
      data_port: port(8000).describe('Port of the data plane, for the other nodes.'),
      admin_port: port(9000).describe('Port of /metrics, /healthz and /readyz.'),
      admin_ip: ipv4.optional().describe('Address of the admin port; default: bind_ip. 0.0.0.0: all of this host.'),
      heartbeat_group: z
        .union([ipv4.regex(/^(22[4-9]|23\d)\./, 'must be a multicast address, such as 239.255.88.10'), z.literal('')])
        .default('239.255.88.10')
        .describe('Multicast group of the heartbeats; "": unicast only.'),
      heartbeat_port: port(8088).describe('Port of the multicast group.'),
    })
    .prefault({}),

  nbd: z
    .strictObject({
      bind_ip: ipv4.default('127.0.0.1').describe('Address of the NBD export. 0.0.0.0: all of this host; URIs name cluster.bind_ip then.'),
      port: port(10809).describe('Port of the NBD export.'),
      socket: z.string().default('/run/xsan/nbd.sock').describe('UNIX socket of the NBD export; "": none.'),
    })
    .prefault({}),
  failover: z
    .strictObject({
      lease: ms({ min: 500, max: 60_000, byDefault: 2000 }).describe(
        'A node serves I/O for this long after its last renewal; what a lost or frozen host costs.',
      ),
      trust_refused: hot(z.boolean().default(true)).describe(
        "Take a refused connection for the proof that a process is dead. Switch it off where a firewall answers with a reset in a host's place.",
      ),
      rebuild_after: hot(ms({ min: 0, max: 7 * 24 * 3600_000, byDefault: 600_000 })).describe('Copies of a node that is away this long are built elsewhere.'),
      replace_voter_after: hot(ms({ min: 0, max: 7 * 24 * 3600_000, byDefault: 600_000 })).describe(
        'A node that votes and is away this long gives its vote to one that lives and has none; 0: never.',
      ),
      recover_wait: hot(ms({ min: 0, max: 7 * 24 * 3600_000, byDefault: 0 })).describe(
        'After the loss of all copies, go on without the missing ones after this long; 0: wait for all.',
      ),
    })
    .prefault({}),
  forward: z
    .strictObject({
      retry_first_wait: hot(ms({ min: 1, max: 60_000, byDefault: 100 })).describe(
        'First wait before a forward to the next copy is tried again; doubles each time.',
      ),
      retry_max_wait: hot(ms({ min: 1, max: 60_000, byDefault: 1000 })).describe('Longest of these waits.'),
      retry_total_time: hot(ms({ min: 1, max: 3600_000, byDefault: 60_000 })).describe('Time of all tries together.'),
    })
    .prefault({}),
  reactor: z
    .strictObject({
      arena_size: size({ min: 32 * MiB, max: 64 * GiB })
        .default(256 * MiB)
        .describe('Payload memory of a reactor.'),
      spin: hot(z.number().int().min(0).max(100_000).default(0)).describe('Microseconds to poll before sleeping: lower latency for a busy core.'),
      credits: z.number().int().min(8).max(256).default(128).describe('Updates that one node may have under way at another, for each place in the chain.'),
    })
    .prefault({}),
  log: z
    .strictObject({
      level: hot(z.enum(['FATAL', 'ERROR', 'WARN', 'INFO', 'DEBUG', 'TRACE']).default('INFO')).describe('The least important lines that are written.'),
    })
    .prefault({}),
})

export type Config = z.infer<typeof configSchema>
export type DeviceConfig = Config['storage']['devices'][number]

export interface ConfigItem {
  /** As in "network.heartbeat_interval". */
  readonly key: string
  readonly value: unknown
  /** Path of the file it comes from, or "default". */
  readonly origin: string
  /** May change at run time. */
  readonly hot: boolean
  readonly description: string
}

export interface LoadedConfig {
  readonly config: Config
  readonly items: readonly ConfigItem[]
}

/** Reads `path` and the *.json files of `path`.d. Throws INVALID_PARAM or NOT_FOUND with everything that is wrong, one per line. */
export function loadConfig(path: string): LoadedConfig {
  if (!existsSync(path))
    throw new XsanError('NOT_FOUND', `there is no configuration file ${path}`, 'Name one with --config FILE; conf/sample-004.json shows the form.')
  const overrides = existsSync(`${path}.d`)
    ? readdirSync(`${path}.d`)
        .filter((file) => file.endsWith('.json'))
        .sort()
        .map((file) => `${path}.d/${file}`)
    : []
  const sources = [path, ...overrides].map((file) => ({ file, json: parseFile(file) }))
  return resolveConfig(sources, dirname(resolve(path)))
}

/** Merges, validates, fills in defaults. Relative paths are taken from `baseDirectory`. */
export function resolveConfig(sources: ReadonlyArray<{ readonly file: string; readonly json: unknown }>, baseDirectory: string): LoadedConfig {
  const origins = new Map<string, string>()
  let merged: unknown
  for (const { file, json } of sources) merged = merge(merged, json, file, [], origins)
  const result = configSchema.safeParse(merged)
  const problems = result.success ? crossChecks(result.data) : result.error.issues.flatMap((issue) => describeIssue(issue, merged))
  if (!result.success || problems.length > 0) {
    const lines = problems.map(({ path, text }) => `${text} (${originOf(path, origins) ?? sources[0]?.file})`)
    throw new XsanError('INVALID_PARAM', `the configuration is wrong:\n  ${lines.join('\n  ')}`, 'Correct these keys; `xsan config show` lists all of them.')
  }
  const config = result.data
  config.cluster.data_dir = resolve(baseDirectory, config.cluster.data_dir)
  if (config.nbd.socket !== '') config.nbd.socket = resolve(baseDirectory, config.nbd.socket)
  for (const entry of config.storage.devices) entry.path = resolve(baseDirectory, entry.path)
  return { config, items: listItems(config, origins) }
}

/** One key set on the command line: `text` is JSON, or else a string. The result is a source for {@link resolveConfig}. */
export function assignment(text: string): { readonly file: string; readonly json: unknown } {
  const equals = text.indexOf('=')
  const key = text.slice(0, equals).trim()
  if (equals < 1 || key === '')
    throw new XsanError('INVALID_PARAM', `"${text}" is not of the form key=value`, 'For example: --set network.heartbeat_interval=200')
  const json = key.split('.').reduceRight<unknown>((inner, part) => ({ [part]: inner }), parseValue(text.slice(equals + 1)))
  return { file: `--set ${text}`, json }
}

export function parseValue(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}

/** The key's place in the schema; NOT_FOUND naming the nearest key. */
export function describeKey(key: string): { readonly hot: boolean; readonly description: string; readonly parse: (value: unknown) => unknown } {
  const leaf = LEAVES.find((candidate) => candidate.key === key)
  if (leaf === undefined) throw new XsanError('NOT_FOUND', `there is no configuration key ${key}${nearestHint(key)}`, 'xsan config show')
  return {
    hot: leaf.hot,
    description: leaf.description,
    parse(value) {
      const result = leaf.schema.safeParse(value)
      if (result.success) return result.data
      throw new XsanError(
        'INVALID_PARAM',
        `${key}: ${result.error.issues.map((issue) => issueText(issue, value)).join('; ')}`,
        `xsan config show says: ${leaf.description}`,
      )
    },
  }
}

// ---- the schema, walked once --------------------------------------------------------------------------------------------------

interface Leaf {
  readonly key: string
  readonly schema: z.ZodType
  readonly hot: boolean
  readonly description: string
}

/** For the manual: every key, with its default (undefined: it must be given). Devices are shown by the keys of one. */
export function configKeys(): ReadonlyArray<{ readonly key: string; readonly description: string; readonly byDefault: unknown; readonly hot: boolean }> {
  const shown = (of: readonly Leaf[], prefix = '') =>
    of.map(({ key, schema, description, hot: isHot }) => {
      const missing = schema.safeParse(undefined)
      return { key: `${prefix}${key}`, description, byDefault: missing.success ? (missing.data ?? null) : undefined, hot: isHot }
    })
  return shown(LEAVES).flatMap((item) => (item.key === 'storage.devices' ? [item, ...shown(leavesOf(device, []), 'storage.devices[].')] : [item]))
}

function hot<T extends z.ZodType>(schema: T): T {
  return schema.meta({ hot: true })
}

function leavesOf(schema: z.ZodType, path: readonly string[]): Leaf[] {
  const inner = schema instanceof z.ZodPrefault ? (schema.unwrap() as z.ZodType) : schema
  if (inner instanceof z.ZodObject) return Object.entries(inner.shape).flatMap(([key, child]) => leavesOf(child as z.ZodType, [...path, key]))
  const meta = schema.meta()
  return [{ key: path.join('.'), schema, hot: meta?.['hot'] === true, description: schema.description ?? '' }]
}

const LEAVES: readonly Leaf[] = leavesOf(configSchema, [])
const DEVICE_KEYS: readonly string[] = Object.keys(device.shape)
const SECTIONS: readonly string[] = Object.keys(configSchema.shape)

function listItems(config: Config, origins: ReadonlyMap<string, string>): ConfigItem[] {
  return LEAVES.map(({ key, hot, description }) => {
    const value = key.split('.').reduce<unknown>((inner, part) => (inner as Record<string, unknown> | undefined)?.[part], config)
    return { key, value: value ?? null, origin: origins.get(key) ?? 'default', hot, description }
  })
}

// ---- files ----------------------------------------------------------------------------------------------------------------------

function parseFile(file: string): unknown {
  let text: string
  try {
    text = readFileSync(file, 'utf8')
  } catch (error) {
    throw new XsanError('INVALID_PARAM', `cannot read ${file}: ${messageOf(error)}`, 'Name a file that this user may read.', { cause: error })
  }
  try {
    return JSON.parse(text)
  } catch (error) {
    throw new XsanError('INVALID_PARAM', `${file} is not JSON: ${messageOf(error)}`, 'Look for a missing comma or quote just before that place.', {
      cause: error,
    })
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function merge(below: unknown, above: unknown, file: string, path: readonly string[], origins: Map<string, string>): unknown {
  origins.set(path.join('.'), file)
  if (!isObject(above)) return above
  const result: Record<string, unknown> = isObject(below) ? { ...below } : {}
  for (const [key, value] of Object.entries(above)) {
    Object.defineProperty(result, key, {
      value: merge(result[key], value, file, [...path, key], origins),
      enumerable: true,
      writable: true,
      configurable: true,
    })
  }
  return result
}

function originOf(path: ReadonlyArray<PropertyKey>, origins: ReadonlyMap<string, string>): string | undefined {
  for (let length = path.length; length >= 0; length--) {
    const origin = origins.get(path.slice(0, length).join('.'))
    if (origin !== undefined) return origin
  }
  return undefined
}

// ---- what is wrong ----------------------------------------------------------------------------------------------------------------

interface Problem {
  readonly path: ReadonlyArray<PropertyKey>
  readonly text: string
}

function describeIssue(issue: z.core.$ZodIssue, json: unknown): Problem[] {
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map((key) => {
      const path = [...issue.path, key]
      return { path, text: `unknown key ${dotted(path)}${nearestHint(dotted(path))}` }
    })
  }
  const value = issue.path.reduce<unknown>((inner, part) => (inner as Record<PropertyKey, unknown> | undefined)?.[part], json)
  return [{ path: issue.path, text: `${dotted(issue.path) || 'the file'}: ${issueText(issue, value)}` }]
}

function issueText(issue: z.core.$ZodIssue, value: unknown): string {
  if (value === undefined) return 'is missing'
  return `${issue.message.replace(/^Invalid input: /, '')}, found ${JSON.stringify(value)}`
}

function dotted(path: ReadonlyArray<PropertyKey>): string {
  return path.reduce<string>((text, part) => (typeof part === 'number' ? `${text}[${part}]` : text ? `${text}.${String(part)}` : String(part)), '')
}

/** "; did you mean x?" when something close enough is known: the same name in another section, or a name a few letters away. */
function nearestHint(key: string): string {
  const plain = key.replace(/\[\d+\]/g, '')
  const known = [...LEAVES.map((leaf) => leaf.key), ...SECTIONS, ...DEVICE_KEYS.map((name) => `storage.devices.${name}`)]
  const last = plain.split('.').at(-1)!
  const scored = known.map((candidate) => {
    const distance = Math.min(editDistance(plain, candidate), editDistance(last, candidate.split('.').at(-1)!) + 0.5)
    return { candidate, distance }
  })
  scored.sort((a, b) => a.distance - b.distance)
  const best = scored[0]
  if (best === undefined || best.distance > Math.max(2, last.length / 2)) return ''
  return `; did you mean ${best.candidate.replace('storage.devices.', 'storage.devices[].')}?`
}

/** Levenshtein. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)))
    row = next
  }
  return row[b.length]!
}

function crossChecks(config: Config): Problem[] {
  const problems: Problem[] = []
  const { cluster, storage, network, nbd } = config
  if (cluster.bind_ip === ANY_ADDRESS) {
    problems.push({
      path: ['cluster', 'bind_ip'],
      text: `cluster.bind_ip: the other nodes are told it, so it must be one address of this host, not ${ANY_ADDRESS}`,
    })
  }
  if (network.election_timeout <= network.heartbeat_interval) {
    problems.push({
      path: ['network', 'election_timeout'],
      text: `network.election_timeout (${network.election_timeout}) must be more than network.heartbeat_interval (${network.heartbeat_interval})`,
    })
  }
  const paths = new Map<string, number>()
  storage.devices.forEach(({ path }, index) => {
    const first = paths.get(path)
    if (first !== undefined)
      problems.push({ path: ['storage', 'devices'], text: `storage.devices[${index}].path: ${path} is already storage.devices[${first}]` })
    else paths.set(path, index)
  })
  if (storage.devices.length > 0 && !storage.devices.some(({ role }) => role === 'capacity')) {
    problems.push({ path: ['storage', 'devices'], text: 'storage.devices: none has the role capacity, so there is no place for data' })
  }
  if (Buffer.byteLength(nbd.socket) > SOCKET_PATH_BYTES_MAX) {
    problems.push({
      path: ['nbd', 'socket'],
      text: `nbd.socket: a socket path has at most ${SOCKET_PATH_BYTES_MAX} bytes, this one ${Buffer.byteLength(nbd.socket)}`,
    })
  }
  const listeners: Array<readonly [key: string, ip: string, port: number]> = [
    ['cluster.bind_port', cluster.bind_ip, cluster.bind_port],
    ['network.data_port', cluster.bind_ip, network.data_port],
    ['network.admin_port', network.admin_ip ?? cluster.bind_ip, network.admin_port],
    ['nbd.port', nbd.bind_ip, nbd.port],
  ]
  listeners.forEach(([key, ip, port], index) => {
    const same = listeners
      .slice(0, index)
      .find((other) => port !== 0 && other[2] === port && (other[1] === ip || other[1] === ANY_ADDRESS || ip === ANY_ADDRESS))
    if (same) problems.push({ path: key.split('.'), text: `${key}: port ${port} is already ${same[0]}` })
  })
  return problems
}

function sizeOrNaN(text: string): number {
  try {
    return parseSize(text)
  } catch {
    return Number.NaN
  }
}
