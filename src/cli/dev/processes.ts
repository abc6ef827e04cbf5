/** Starting, watching and ending the processes of a playground. They outlive the command that starts them. */
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { closeSync, existsSync, fstatSync, openSync, readdirSync, readFileSync, realpathSync } from 'node:fs'
import { createServer, type Server } from 'node:net'
import { constants } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { XsanError } from '../../base/errors.ts'
import { Status, type StatusName } from '../../base/status.ts'
import { sleep, UsageError } from '../program.ts'
import { configPath, type DevNode, type DevProcess, logPath, logTail, nodeDir, readProcess, writeProcess } from './files.ts'

const DAEMON = fileURLToPath(new URL('../xsand.ts', import.meta.url))
/** Longest time another `dev start` of the same node may hold its lock. */
const LOCK_WAIT_MS = 30_000
const POLL_MS = 20

export type ProcessState = 'running' | 'frozen' | 'dead'

/** Of the node's last process. A zombie (nobody has collected its exit code) is dead. */
export function processState(dir: string, id: string): { readonly state: ProcessState; readonly pid: number } {
  const process = readProcess(dir, id)
  if (process === undefined) return { state: 'dead', pid: 0 }
  const now = procStat(process.pid)
  if (now === undefined || now.startTicks !== process.startTicks || now.state === 'Z' || now.state === 'X') return { state: 'dead', pid: process.pid }
  return { state: now.state === 'T' || now.state === 't' ? 'frozen' : 'running', pid: process.pid }
}

/** Starts the node's daemon unless it runs. Returns at once; {@link processState} and its gRPC port tell how it goes. */
export async function startProcess(dir: string, node: DevNode): Promise<DevProcess> {
  return withStartLock(dir, node.id, async () => {
    const { state } = processState(dir, node.id)
    if (state === 'frozen') throw new XsanError('BUSY', `${node.id} is frozen`, `xsan dev kill ${node.id} --signal CONT --dir ${dir}`)
    if (state === 'running') return readProcess(dir, node.id)!
    if (!existsSync(configPath(dir, node.id)))
      throw new XsanError('NOT_FOUND', `${configPath(dir, node.id)} is gone`, `What is left can only be wiped: xsan dev down --wipe --dir ${dir}`)
    const log = openSync(logPath(dir, node.id), 'a')
    const logBytes = fstatSync(log).size
    const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', '--expose-gc', DAEMON, '--config', configPath(dir, node.id)], {
      cwd: nodeDir(dir, node.id),
      detached: true,
      stdio: ['ignore', log, log],
    })
    closeSync(log)
    child.on('error', () => {})
    const stat = child.pid === undefined ? undefined : procStat(child.pid)
    if (child.pid === undefined || stat === undefined) throw new XsanError('NODE_UNREACHABLE', `${node.id} did not start`, `Look at ${logPath(dir, node.id)}`)
    child.unref()
    const started = { pid: child.pid, startTicks: stat.startTicks, logBytes }
    writeProcess(dir, node.id, started)
    return started
  })
}

/** Sends a signal, and waits for what it does: KILL and TERM end the process, STOP freezes it. A dead one is left alone. */
export async function signalProcess(dir: string, id: string, signal: NodeJS.Signals, timeoutMs: number): Promise<void> {
  const { state, pid } = processState(dir, id)
  if (state === 'dead') return
  send(pid, signal, id)
  const wanted: Partial<Record<NodeJS.Signals, ProcessState>> = { SIGKILL: 'dead', SIGTERM: 'dead', SIGINT: 'dead', SIGSTOP: 'frozen', SIGCONT: 'running' }
  const goal = wanted[signal]
  // A frozen process gets a TERM only once it goes on
  if (goal === undefined || (state === 'frozen' && (signal === 'SIGTERM' || signal === 'SIGINT'))) return
  if (!(await until(() => processState(dir, id).state === goal, timeoutMs))) {
    throw new XsanError(
      'NETWORK_TIMEOUT',
      `${id} (PID ${pid}) is still ${processState(dir, id).state} ${timeoutMs / 1000} s after ${signal}`,
      `Look at ${logPath(dir, id)}`,
    )
  }
}

/** It may end meanwhile. */
function send(pid: number, signal: NodeJS.Signals, id: string): void {
  try {
    process.kill(pid, signal)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ESRCH') return
    if (code !== 'EPERM') throw error
    throw new XsanError('PERMISSION_DENIED', `PID ${pid} (${id}) belongs to another user`, 'Do it as that user, or as root.', { cause: error })
  }
}

/** Ends it: gently, and when that takes too long, not. */
export async function endProcess(dir: string, id: string, graceMs: number): Promise<void> {
  await endKnown(dir, id, graceMs)
  // one whose starter was killed before it could write down the pid
  const strays = straysOf(configPath(dir, id))
  for (const pid of strays) send(pid, 'SIGKILL', id)
  await until(() => strays.every((pid) => 'ZX'.includes(procStat(pid)?.state ?? 'X')), graceMs)
}

/** Daemons that run with this configuration. */
function straysOf(config: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((name) => {
      const args = readText(`/proc/${name}/cmdline`).split('\0')
      return args.includes(DAEMON) && args[args.indexOf('--config') + 1] === config
    })
    .map(Number)
}

async function endKnown(dir: string, id: string, graceMs: number): Promise<void> {
  if (processState(dir, id).state === 'frozen') await signalProcess(dir, id, 'SIGCONT', graceMs)
  try {
    await signalProcess(dir, id, 'SIGTERM', graceMs)
  } catch (error) {
    if (!(error instanceof XsanError)) throw error
    await signalProcess(dir, id, 'SIGKILL', graceMs)
  }
}

/** An error that shows why a node's process ended: the one it ended with, when it said so. */
export function endedError(dir: string, id: string): XsanError {
  const tail = logTail(dir, id)
  const look = `Look at ${logPath(dir, id)}`
  const [, name, said] = /^error XSAN-\d+ ([A-Z_]+): ([\s\S]*)/m.exec(tail) ?? []
  if (name !== undefined && said !== undefined && Object.hasOwn(Status, name)) {
    const [message, ...nextSteps] = said.trimEnd().split(' Try: ')
    return new XsanError(name as StatusName, `${id}: ${message}`, [...nextSteps, look].join(' '))
  }
  return new XsanError('NODE_UNREACHABLE', `the process of ${id} ended while it was starting${tail ? `; the end of its log:\n${tail}` : ''}`, look)
}

export async function until(condition: () => boolean, timeoutMs: number): Promise<boolean> {
  const endMs = performance.now() + timeoutMs
  while (!condition()) {
    if (performance.now() >= endMs) return false
    await sleep(POLL_MS)
  }
  return true
}

/** By name or number, as kill(1) takes them. */
export function toSignal(text: string): NodeJS.Signals {
  const known = Object.entries(constants.signals)
  const name = `SIG${text.toUpperCase().replace(/^SIG/, '')}`
  const found = known.find(([signal, number]) => signal === name || String(number) === text)
  if (found === undefined) throw new UsageError(`"${text}" is not a signal`, 'For example: --signal STOP')
  return found[0] as NodeJS.Signals
}

/** State letter and start time; the command name in between may hold anything, so count from its closing parenthesis. */
function procStat(pid: number): { state: string; startTicks: string } | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
    return { state: fields[0]!, startTicks: fields[19]! }
  } catch {
    return undefined
  }
}

/** One `up` or `down` of a playground at a time; the next waits, and finds what the first has made. */
export function withDirLock<T>(dir: string, waitMs: number, body: () => Promise<T>): Promise<T> {
  return withLock(dir, waitMs, `another command has been starting or ending the playground in ${dir}`, body)
}

/** One starter of a node at a time. */
function withStartLock<T>(dir: string, id: string, body: () => Promise<T>): Promise<T> {
  return withLock(nodeDir(dir, id), LOCK_WAIT_MS, `another command has been starting ${id}`, body)
}

/** The lock of a directory ends with the process that holds it, and leaves no file. */
async function withLock<T>(dir: string, waitMs: number, why: string, body: () => Promise<T>): Promise<T> {
  const name = `\0xsan-dev-${createHash('sha256').update(realPath(dir)).digest('hex').slice(0, 32)}`
  const endMs = performance.now() + waitMs
  let lock = await listen(name)
  while (lock === undefined) {
    if (performance.now() >= endMs) throw new XsanError('BUSY', `${why} for ${waitMs / 1000} s`, 'Wait for it, or end it: pgrep -af "xsan.* dev "')
    await sleep(POLL_MS)
    lock = await listen(name)
  }
  try {
    return await body()
  } finally {
    lock.close()
  }
}

/** However a directory is named, it is one; its last name may be of one that is not there yet, or no more. */
function realPath(dir: string): string {
  try {
    return realpathSync(dir)
  } catch {
    return join(realPath(dirname(dir)), basename(dir))
  }
}

/** At an abstract UNIX socket: one process of this host has the name, and the kernel takes it back. */
function listen(name: string): Promise<Server | undefined> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => socket.destroy())
    server.once('error', (error: NodeJS.ErrnoException) => (error.code === 'EADDRINUSE' ? resolve(undefined) : reject(error)))
    server.listen(name, () => resolve(server.unref()))
  })
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}
