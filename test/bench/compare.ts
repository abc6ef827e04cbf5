/** Runs the same jobs against XSAN and a peer, taking turns, so that what the machine does beside them hits both. */
import type { DevCluster } from '../support/dev-cluster.ts'
import { fill, fio, type Job, type Measured, type Target } from './fio.ts'
import type { Peer } from './peers.ts'
import { type BenchArgs, median } from './report.ts'

export const MiB = 1024 * 1024
export const VOLUME = 'bench'

export interface Pair {
  readonly xsan: Measured
  readonly peer: Measured
}

/** The volume of a playground as a target; the CPU time of all its nodes counts. */
export async function xsanTarget(cluster: DevCluster, options: { sizeBytes: number; replicas: number; socket: boolean; node?: string }): Promise<Target> {
  await cluster.createVolume(VOLUME, String(options.sizeBytes), '--replicas', String(options.replicas))
  const node = options.node ?? cluster.nodes[0]!.id
  const client = await cluster.nbd(node, VOLUME)
  await client.close()
  const uri = options.socket ? cluster.socketUri(node, VOLUME) : cluster.uri(node, VOLUME)
  return { uri, sizeBytes: options.sizeBytes, pids: cluster.nodes.map(({ pid }) => pid) }
}

/** Each side runs each job once before it counts: compilers and caches of both are warm. */
export async function compareJobs<Name extends string>(
  xsan: Target,
  peer: Peer,
  jobs: Readonly<Record<Name, Job>>,
  args: BenchArgs,
): Promise<Record<Name, Pair>> {
  await fill(xsan)
  await fill(peer.target)
  const results = {} as Record<Name, Pair>
  for (const [name, job] of Object.entries(jobs) as Array<[Name, Job]>) {
    const own: Measured[] = []
    const theirs: Measured[] = []
    for (const target of [xsan, peer.target]) await fio(target, job, args.seconds)
    for (let round = 0; round < args.rounds; round++) {
      own.push(await fio(xsan, job, args.seconds))
      theirs.push(await fio(peer.target, job, args.seconds))
    }
    results[name] = { xsan: middle(own), peer: middle(theirs) }
  }
  return results
}

export function middle(all: readonly Measured[]): Measured {
  const of = (figure: keyof Measured) => median(all.map((one) => one[figure]))
  return { iops: of('iops'), bytesPerSecond: of('bytesPerSecond'), latencyUs: of('latencyUs'), cpuUs: of('cpuUs') }
}
