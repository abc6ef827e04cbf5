/** fio's NBD engine as the load of the benchmarks: one job, one connection. */
import { cpuSeconds, must } from '../support/commands.ts'

export interface Job {
  readonly rw: 'randread' | 'randwrite' | 'read' | 'write'
  readonly blockSize: '4k' | '1m'
  readonly depth: number
}

export interface Target {
  readonly uri: string
  readonly sizeBytes: number
  /** The processes that serve it: their CPU time is what an operation costs. */
  readonly pids: readonly number[]
}

export interface Measured {
  readonly iops: number
  readonly bytesPerSecond: number
  /** Mean completion time. */
  readonly latencyUs: number
  /** Of the serving processes, per operation. */
  readonly cpuUs: number
}

interface FioSide {
  readonly iops: number
  readonly bw_bytes: number
  readonly total_ios: number
  readonly lat_ns: { readonly mean: number }
}

/** Throws when fio reports an error: a figure with failed operations is none. */
export async function fio(target: Target, job: Job, seconds: number): Promise<Measured> {
  const before = target.pids.map(cpuSeconds)
  const { stdout } = await must(
    'fio',
    [
      '--name=bench',
      '--ioengine=nbd',
      `--uri=${target.uri}`,
      `--rw=${job.rw}`,
      `--bs=${job.blockSize}`,
      `--iodepth=${job.depth}`,
      `--size=${target.sizeBytes}`,
      '--time_based',
      `--runtime=${seconds}`,
      '--randrepeat=0',
      '--norandommap',
      '--output-format=json',
    ],
    { timeoutMs: seconds * 1000 + 60_000 },
  )
  const cpu = target.pids.reduce((sum, pid, i) => sum + cpuSeconds(pid) - before[i]!, 0)
  const result = (JSON.parse(stdout.slice(stdout.indexOf('{'))) as { jobs: Array<{ error: number; read: FioSide; write: FioSide }> }).jobs[0]!
  if (result.error !== 0) throw new Error(`fio: error ${result.error} at ${target.uri}`)
  const side = job.rw.endsWith('read') ? result.read : result.write
  return { iops: side.iops, bytesPerSecond: side.bw_bytes, latencyUs: side.lat_ns.mean / 1000, cpuUs: (cpu * 1e6) / side.total_ios }
}

/** Writes every byte once, so that reads find data and space is allocated on both sides. */
export async function fill(target: Target): Promise<void> {
  await must(
    'fio',
    [
      '--name=fill',
      '--ioengine=nbd',
      `--uri=${target.uri}`,
      '--rw=write',
      '--bs=1m',
      '--iodepth=8',
      `--size=${target.sizeBytes}`,
      '--end_fsync=0',
      '--output-format=json',
    ],
    { timeoutMs: 180_000 },
  )
}
