/** Running programs from tests and benchmarks: bounded, with their output, and nothing left behind. */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const OUTPUT_BYTES_MAX = 64 * 1024 * 1024
/** e2fsck and mke2fs live where a plain user's PATH does not look; nbdsh needs the system's Python. */
export const PATH = `/usr/bin:/bin:/usr/sbin:/sbin:${process.env['PATH'] ?? ''}`

export interface Ran {
  /** -1: ended by a signal, or not started. */
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

export interface RunOptions {
  readonly timeoutMs?: number
  readonly cwd?: string
  readonly env?: Readonly<Record<string, string>>
  readonly input?: string
}

/** Programs that {@link run} has started and that have not ended. */
const running = new Set<ChildProcess>()

/** Ends them all: for a program that is itself interrupted. */
export async function endRunning(): Promise<void> {
  await Promise.all([...running].map(endChild))
}

/** Never rejects; a program that takes too long is killed. */
export function run(command: string, args: readonly string[], options: RunOptions = {}): Promise<Ran> {
  return new Promise((resolve) => {
    const child = spawn(command, args, {
      cwd: options.cwd ?? tmpdir(),
      env: { ...process.env, PATH, ...options.env },
      stdio: [options.input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
      timeout: options.timeoutMs ?? 60_000,
      killSignal: 'SIGKILL',
    })
    running.add(child)
    const stdout: Buffer[] = []
    const stderr: Buffer[] = []
    let left = OUTPUT_BYTES_MAX
    const keep = (into: Buffer[]) => (chunk: Buffer) => {
      left -= chunk.length
      if (left > 0) into.push(chunk)
    }
    child.stdout?.on('data', keep(stdout))
    child.stderr?.on('data', keep(stderr))
    child.stdin?.on('error', () => {})
    if (options.input !== undefined) child.stdin?.end(options.input)
    child.on('error', (error) => {
      running.delete(child)
      resolve({ code: -1, stdout: '', stderr: error.message })
    })
    child.on('close', (code, signal) => {
      running.delete(child)
      resolve({
        code: code ?? -1,
        stdout: Buffer.concat(stdout).toString(),
        stderr: `${Buffer.concat(stderr)}${signal === null ? '' : `(ended by ${signal})`}`,
      })
    })
  })
}

/** As {@link run}; throws with everything the program said unless it exits 0. */
export async function must(command: string, args: readonly string[], options: RunOptions = {}): Promise<Ran> {
  const ran = await run(command, args, options)
  if (ran.code !== 0) throw new Error(`${command} ${args.join(' ')} exited ${ran.code}:\n${ran.stdout}${ran.stderr}`)
  return ran
}

/** `xsan`, `xsand` or `xsan-debug` of this clone. */
export const bin = (name: string) => join(ROOT, 'packaging/bin', name)

export function xsan(...args: readonly string[]): Promise<Ran> {
  return run(bin('xsan'), args, { timeoutMs: 180_000 })
}

export async function xsanJson<T = Record<string, unknown>>(...args: readonly string[]): Promise<T> {
  const { stdout } = await must(bin('xsan'), [...args, '-o', 'json'], { timeoutMs: 180_000 })
  return JSON.parse(stdout) as T
}

/** A new directory of its own, removed by {@link removeDirectory}. */
export function makeDirectory(parent: string = tmpdir(), prefix = 'xsan-'): string {
  return mkdtempSync(join(parent, prefix))
}

export function removeDirectory(path: string): void {
  rmSync(path, { recursive: true, force: true })
}

export const sleep = (delayMs: number) => new Promise<void>((resolve) => setTimeout(resolve, delayMs))

/** Polls; throws `what` when the time is over. */
export async function until(what: string, timeoutMs: number, condition: () => boolean | Promise<boolean>, pollMs = 50): Promise<void> {
  const endMs = performance.now() + timeoutMs
  while (!(await condition())) {
    if (performance.now() > endMs) throw new Error(`not within ${timeoutMs} ms: ${what}`)
    await sleep(pollMs)
  }
}

/** Ends a process that was started here, and waits for it. */
export async function endChild(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  child.kill('SIGKILL')
  await gone
}

/** User and system time of a process with all its threads, in seconds (utime + stime of /proc/PID/stat, at 100 ticks per second). */
export function cpuSeconds(pid: number): number {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
    return (Number(fields[11]) + Number(fields[12])) / 100
  } catch {
    return Number.NaN
  }
}
