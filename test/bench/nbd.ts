/** One node, one copy, files in tmpfs: the cost of the NBD export and the store, against nbdkit's file plug-in. */
import { makeDirectory, removeDirectory } from '../support/commands.ts'
import { DevCluster } from '../support/dev-cluster.ts'
import { compareJobs, MiB, middle, type Pair, xsanTarget } from './compare.ts'
import { fio, type Measured } from './fio.ts'
import { nbdkitFile, nbdkitNull, type Peer } from './peers.ts'
import { type BenchArgs, parseArgs, print, type Row } from './report.ts'

const SIZE_BYTES = 512 * MiB

export async function main(argv: readonly string[]): Promise<void> {
  const args = parseArgs(argv, { seconds: 3, rounds: 3 })
  const directory = makeDirectory('/dev/shm', 'xsan-bench-')
  let cluster: DevCluster | undefined
  let peer: Peer | undefined
  try {
    peer = await nbdkitFile(directory, SIZE_BYTES)
    cluster = await DevCluster.up({ nodes: 1, replicas: 1, parent: directory, diskSize: '4G' })
    const target = await xsanTarget(cluster, { sizeBytes: SIZE_BYTES, replicas: 1, socket: false })
    const results = await compareJobs(
      target,
      peer,
      {
        read32: { rw: 'randread', blockSize: '4k', depth: 32 },
        write32: { rw: 'randwrite', blockSize: '4k', depth: 32 },
        read1: { rw: 'randread', blockSize: '4k', depth: 1 },
        write1: { rw: 'randwrite', blockSize: '4k', depth: 1 },
      },
      args,
    )
    const iops = (figure: string, { xsan, peer }: Pair, value: number): Row => ({
      figure,
      xsan: xsan.iops,
      peer: peer.iops,
      unit: 'IOPS',
      goal: { at: '>=', value },
    })
    const cpu = (figure: string, { xsan, peer }: Pair, value: number): Row => ({
      figure,
      xsan: xsan.cpuUs,
      peer: peer.cpuUs,
      unit: 'us',
      goal: { at: '<=', value },
    })
    print(
      {
        name: 'nbd',
        setting: `one node, one copy, tmpfs, against nbdkit file; loopback TCP, fio nbd, ${args.seconds} s, median of ${args.rounds}`,
        rows: [
          iops('4k random read, depth 32', results.read32, 1.2),
          cpu('  CPU of the server per operation', results.read32, 0.8),
          ...(await ceiling('randread', args)),
          iops('4k random write, depth 32', results.write32, 1.2),
          cpu('  CPU of the server per operation', results.write32, 0.8),
          ...(await ceiling('randwrite', args)),
          iops('4k random read, depth 1', results.read1, 0.8),
          iops('4k random write, depth 1', results.write1, 0.8),
        ],
      },
      args.json,
    )
  } finally {
    await cluster?.end()
    await peer?.end()
    removeDirectory(directory)
  }
}

/** Depth 32 against a server that does nothing: what the client can drive, and what a request costs whoever only answers it. */
async function ceiling(rw: 'randread' | 'randwrite', args: BenchArgs): Promise<Row[]> {
  const nothing = await nbdkitNull(SIZE_BYTES)
  try {
    const rounds: Measured[] = []
    for (let round = 0; round <= args.rounds; round++) rounds.push(await fio(nothing.target, { rw, blockSize: '4k', depth: 32 }, args.seconds))
    const { iops, cpuUs } = middle(rounds.slice(1))
    return [
      { figure: '  a server that does nothing (nbdkit null)', peer: iops, unit: 'IOPS', note: 'what the client can drive' },
      { figure: '  its CPU per operation', peer: cpuUs, unit: 'us' },
    ]
  } finally {
    await nothing.end()
  }
}
