/**
 * What a playground keeps in its directory:
 *   DIR/dev.json              cluster id, addresses and paths of every node; written by `up`
 *   DIR/NODE/xsan.json        its configuration (xsan.json.d/ takes later --set)
 *   DIR/NODE/run.json         pid and start time of its last process; written by whoever starts it
 *   DIR/NODE/xsand.log        stderr of its processes
 *   DIR/NODE/disk-0, data/    its disk and metadata
 * No file is shared by two nodes but dev.json, so several `dev start` may run at once.
 */
import { createHash } from 'node:crypto'
import { accessSync, constants, existsSync, readdirSync, readFileSync, realpathSync, renameSync, rmdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { messageOf, XsanError } from '../../base/errors.ts'
import { makeDirectory } from '../../node/directories.ts'

export interface DevNode {
  readonly id: string
  readonly grpc: string
  readonly data: string
  readonly nbd: string
  readonly nbdSocket: string
  readonly admin: string
  readonly dataDir: string
}

export interface DevCluster {
  readonly clusterId: string
  readonly dir: string
  /** Directories that `up` has made to have `dir`, outermost first. */
  readonly made?: readonly string[]
  /** false: `up` was interrupted before the nodes were one cluster. */
  readonly formed: boolean
  readonly nodes: readonly DevNode[]
}

/** A process, told apart from a later one of the same pid by its start time. */
export interface DevProcess {
  readonly pid: number
  /** Field 22 of /proc/PID/stat: clock ticks since boot. */
  readonly startTicks: string
  /** Where its part of the log begins. */
  readonly logBytes: number
}

/** Longest path of a UNIX socket. */
const SOCKET_PATH_BYTES_MAX = 107

export const nodeDir = (dir: string, id: string) => join(dir, id)
export const configPath = (dir: string, id: string) => join(dir, id, 'xsan.json')
export const logPath = (dir: string, id: string) => join(dir, id, 'xsand.log')
const clusterPath = (dir: string) => join(dir, 'dev.json')
const runPath = (dir: string, id: string) => join(dir, id, 'run.json')

/** Beside the node's files, or in the temporary directory when that path is too long for a socket. */
export function socketPath(dir: string, id: string): string {
  const near = join(dir, id, 'nbd.sock')
  if (Buffer.byteLength(near) <= SOCKET_PATH_BYTES_MAX) return near
  return join(tmpdir(), `xsan-dev-${createHash('sha256').update(dir).digest('hex').slice(0, 12)}-${id}.sock`)
}

export function clusterExists(dir: string): boolean {
  return existsSync(clusterPath(dir))
}

export function readCluster(dir: string): DevCluster {
  const path = resolve(dir)
  try {
    const cluster = JSON.parse(readFileSync(clusterPath(path), 'utf8')) as DevCluster
    if (!Array.isArray(cluster?.nodes)) throw new Error('it names no nodes')
    const [first] = cluster.nodes
    if (first !== undefined && existsSync(nodeDir(path, first.id))) accessSync(nodeDir(path, first.id), constants.R_OK | constants.X_OK)
    if (!isSame(cluster.dir, path)) throw new Error(`it was made for ${cluster.dir}, as the configurations of its nodes were`)
    return cluster
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ENOTDIR') throw new XsanError('NOT_FOUND', `there is no playground in ${path}`, `xsan dev up --nodes 3 --dir ${path}`)
    if (code === 'EACCES')
      throw new XsanError('PERMISSION_DENIED', `this user may not read ${path}`, 'Do it as the user whose playground it is.', { cause: error })
    throw new XsanError('INVALID_PARAM', `${clusterPath(path)} is of no use: ${messageOf(error)}`, `xsan dev down --wipe --dir ${path}`)
  }
}

/** By whatever names. */
function isSame(a: string, b: string): boolean {
  try {
    return realpathSync(a) === realpathSync(b)
  } catch {
    return false
  }
}

/** Names of what looks like a node's directory, whether or not dev.json can be read. */
export function nodeDirectories(dir: string): string[] {
  return readdirSync(dir).filter((name) => /^node-\d+$/.test(name) && existsSync(configPath(dir, name)))
}

export function writeCluster(cluster: DevCluster): void {
  writeAtomic(clusterPath(cluster.dir), cluster)
}

export function findNode(cluster: DevCluster, id: string): DevNode {
  const node = cluster.nodes.find((candidate) => candidate.id === id)
  if (node === undefined)
    throw new XsanError('NODE_NOT_FOUND', `there is no node ${id}`, `One of: ${cluster.nodes.map((candidate) => candidate.id).join(', ')}`)
  return node
}

export function readProcess(dir: string, id: string): DevProcess | undefined {
  try {
    return JSON.parse(readFileSync(runPath(dir, id), 'utf8')) as DevProcess
  } catch {
    return undefined
  }
}

export function writeProcess(dir: string, id: string, process: DevProcess): void {
  writeAtomic(runPath(dir, id), process)
}

/** The last lines that its last process wrote, for the error that says it did not start. */
export function logTail(dir: string, id: string, lines = 5): string {
  try {
    const text = readFileSync(logPath(dir, id))
      .subarray(readProcess(dir, id)?.logBytes ?? 0)
      .toString()
    return text.trimEnd().split('\n').slice(-lines).join('\n')
  } catch {
    return ''
  }
}

export function wipe(dir: string, nodes: ReadonlyArray<Pick<DevNode, 'id' | 'nbdSocket'>>): void {
  for (const { id, nbdSocket } of nodes) {
    rmSync(nodeDir(dir, id), { recursive: true, force: true })
    rmSync(nbdSocket, { force: true })
  }
  rmSync(clusterPath(dir), { force: true })
}

/** Gives back directories that were made for a playground, where nobody else has begun to use them. */
export function unmake(made: readonly string[]): void {
  for (const path of made.toReversed()) {
    try {
      rmdirSync(path)
    } catch {
      // in use, or gone
    }
  }
}

export function writeJson(path: string, value: unknown): void {
  makeDirectory(join(path, '..'), 'the directory of the playground')
  writeAtomic(path, value)
}

function writeAtomic(path: string, value: unknown): void {
  const temporary = `${path}.${process.pid}.tmp`
  try {
    writeFileSync(temporary, `${JSON.stringify(value, null, 2)}\n`)
    renameSync(temporary, path)
  } catch (error) {
    rmSync(temporary, { force: true })
    throw error
  }
}
