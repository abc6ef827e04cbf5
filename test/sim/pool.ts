/** Many runs over several processes: each takes the next task when it has done one, so that the order of the ends says nothing. */
import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import type { Seed } from '../../src/env/sim/world.ts'
import type { Coverage } from './coverage.ts'
import type { Violation } from './history.ts'
import type { Plan } from './run.ts'

export interface Task {
  readonly seed: Seed
  readonly plan: Plan
  readonly canary?: string | undefined
  /** Run twice; the traces must be equal. */
  readonly twice?: boolean
  /** Goes on with the next seeds, up to this one, until one fails. */
  readonly untilFound?: number
}

export interface TaskResult {
  /** Of the last run. */
  readonly seed: Seed
  readonly hash: string
  readonly undecided: number
  readonly runs: number
  readonly events: number
  readonly virtualSeconds: number
  readonly violations: readonly Violation[]
  readonly coverage: Coverage
}

const WORKER = fileURLToPath(new URL('worker.ts', import.meta.url))
/**
 * Short-lived objects die young: fewer and cheaper collections. And typed arrays count as what they are, a small part of all memory: each few dozen MiB
 * of them would bring about a collection of the whole heap, one and more in each run, and each makes V8 forget compiled code. (So does a call of `gc`.)
 */
const NODE_OPTIONS = [
  '--disable-warning=ExperimentalWarning',
  '--min-semi-space-size=32',
  '--max-semi-space-size=32',
  '--external-memory-accounted-in-global-limit',
  '--heap-growing-percent=50',
]

/** Runs all tasks, `jobs` at one time; `done` is called as they end. A task whose worker dies has failed, and the others go on. `stop` ends them all. */
export async function runTasks<T extends Task>(
  tasks: Iterable<T>,
  jobs: number,
  done: (task: T, result: TaskResult) => void,
  stop: AbortSignal = new AbortController().signal,
): Promise<void> {
  const all = tasks[Symbol.iterator]()
  const queue: Iterator<T> = { next: () => (stop.aborted ? { done: true, value: undefined } : all.next()) }
  const one = async () => {
    while (!(await work(queue, done, stop)));
  }
  await Promise.all(Array.from({ length: jobs }, one))
}

/** Returns whether no task is left; if not, its worker has died. */
async function work<T extends Task>(queue: Iterator<T>, done: (task: T, result: TaskResult) => void, stop: AbortSignal): Promise<boolean> {
  let next = queue.next()
  if (next.done) return true
  const child = spawn(process.execPath, [...NODE_OPTIONS, WORKER], { stdio: ['pipe', 'pipe', 'inherit'] })
  const ended = new Promise<string>((resolve) => child.on('close', (code, signal) => resolve(signal ?? String(code))))
  // A worker that has died is noticed by the end of its lines
  child.stdin.on('error', () => undefined)
  const end = () => child.kill()
  stop.addEventListener('abort', end)
  try {
    const send = (task: T) => child.stdin.write(`${JSON.stringify(task)}\n`)
    send(next.value)
    for await (const line of createInterface({ input: child.stdout })) {
      done(next.value, JSON.parse(line) as TaskResult)
      next = queue.next()
      if (next.done) break
      send(next.value)
    }
    if (next.done || stop.aborted) return true
    const detail = `its process ended with ${await ended}`
    const { seed } = next.value
    done(next.value, { seed, hash: '', undecided: 0, runs: 1, events: 0, virtualSeconds: 0, violations: [{ promise: 'a run ends', detail }], coverage: {} })
    return false
  } finally {
    stop.removeEventListener('abort', end)
    child.stdin.end()
    await ended
  }
}
