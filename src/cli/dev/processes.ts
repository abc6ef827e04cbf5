/** Starting, watching and ending the processes of a playground. They outlive the command that starts them. */
import { spawn } from 'node:child_process'
import { closeSync, openSync, readdirSync, readFileSync, rmSync, writeSync } from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { XsanError } from '../../base/errors.ts'
import { sleep } from '../program.ts'
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
    const log = openSync(logPath(dir, node.id), 'a')
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
    const started = { pid: child.pid, startTicks: stat.startTicks }
    writeProcess(dir, node.id, started)
    return started
  })
}

/** Sends a signal, and waits for what it does: KILL and TERM end the process, STOP freezes it. A dead one is left alone. */
export async function signalProcess(dir: string, id: string, signal: NodeJS.Signals, timeoutMs: number): Promise<void> {
  const { state, pid } = processState(dir, id)
  if (state === 'dead') return
  process.kill(pid, signal)
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

/** Ends it: gently, and when that takes too long, not. */
export async function endProcess(dir: string, id: string, graceMs: number): Promise<void> {
  await endKnown(dir, id, graceMs)
  // one whose starter was killed before it could write down the pid
  const strays = straysOf(configPath(dir, id))
  for (const pid of strays) process.kill(pid, 'SIGKILL')
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

/** An error that shows why a node's process ended. */
export function endedError(dir: string, id: string): XsanError {
  const tail = logTail(dir, id)
  return new XsanError(
    'NODE_UNREACHABLE',
    `the process of ${id} ended while it was starting${tail ? `; the end of its log:\n${tail}` : ''}`,
    `Look at ${logPath(dir, id)}`,
  )
}

export async function until(condition: () => boolean, timeoutMs: number): Promise<boolean> {
  const endMs = performance.now() + timeoutMs
  while (!condition()) {
    if (performance.now() >= endMs) return false
    await sleep(POLL_MS)
  }
  return true
}

export function toSignal(text: string): NodeJS.Signals {
  const name = `SIG${text.toUpperCase().replace(/^SIG/, '')}`
  if (!Object.hasOwn(constants.signals, name)) throw new XsanError('INVALID_PARAM', `"${text}" is not a signal`, 'For example: --signal STOP')
  return name as NodeJS.Signals
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
  return withLock(join(dir, 'up.lock'), waitMs, `another command has been starting or ending the playground in ${dir}`, body)
}

/** One starter of a node at a time. */
function withStartLock<T>(dir: string, id: string, body: () => Promise<T>): Promise<T> {
  return withLock(join(nodeDir(dir, id), 'start.lock'), LOCK_WAIT_MS, `another command has been starting ${id}`, body)
}

/** A lock whose owner is gone is taken over. */
async function withLock<T>(path: string, waitMs: number, why: string, body: () => Promise<T>): Promise<T> {
  const took = await until(() => tryLock(path), waitMs)
  if (!took) throw new XsanError('BUSY', `${why} for ${waitMs / 1000} s`, `Remove ${path} if there is none.`)
  try {
    return await body()
  } finally {
    rmSync(path, { force: true })
  }
}

function tryLock(path: string): boolean {
  try {
    const fd = openSync(path, 'wx')
    writeSync(fd, String(process.pid))
    closeSync(fd)
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    const owner = Number(readText(path))
    if (owner > 0 && procStat(owner) === undefined) rmSync(path, { force: true })
    return false
  }
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}
