/** Three nodes, three copies, files in tmpfs, against qemu's quorum over three nbdkit. Both are reached through a UNIX socket. */
import { makeDirectory, removeDirectory } from '../support/commands.ts'
import { DevCluster } from '../support/dev-cluster.ts'
import { compareJobs, MiB, xsanTarget } from './compare.ts'
import { type Peer, quorum } from './peers.ts'
import { parseArgs, print } from './report.ts'

const SIZE_BYTES = 256 * MiB

export async function main(argv: readonly string[]): Promise<void> {
  const args = parseArgs(argv, { seconds: 3, rounds: 3 })
  const directory = makeDirectory('/dev/shm', 'xsan-bench-')
  let cluster: DevCluster | undefined
  let peer: Peer | undefined
  try {
    peer = await quorum(directory, SIZE_BYTES, 'writeback')
    cluster = await DevCluster.up({ nodes: 3, replicas: 3, parent: directory, diskSize: '2G' })
    const target = await xsanTarget(cluster, { sizeBytes: SIZE_BYTES, replicas: 3, socket: true })
    const results = await compareJobs(
      target,
      peer,
      {
        write32: { rw: 'randwrite', blockSize: '4k', depth: 32 },
        write1: { rw: 'randwrite', blockSize: '4k', depth: 1 },
        read32: { rw: 'randread', blockSize: '4k', depth: 32 },
        read1: { rw: 'randread', blockSize: '4k', depth: 1 },
        sequential: { rw: 'write', blockSize: '1m', depth: 8 },
      },
      args,
    )
    const { write32, write1, read32, read1, sequential } = results
    print(
      {
        name: 'replication',
        setting: `three nodes, three copies, tmpfs, against qemu quorum over three nbdkit; UNIX socket, fio nbd, ${args.seconds} s, median of ${args.rounds}`,
        rows: [
          { figure: '4k random write, depth 32', xsan: write32.xsan.iops, peer: write32.peer.iops, unit: 'IOPS', goal: { at: '>=', value: 2 } },
          { figure: '  CPU of all servers per operation', xsan: write32.xsan.cpuUs, peer: write32.peer.cpuUs, unit: 'us' },
          { figure: '4k random write, depth 1: latency', xsan: write1.xsan.latencyUs, peer: write1.peer.latencyUs, unit: 'us', goal: { at: '<=', value: 1 } },
          { figure: '4k random read, depth 32', xsan: read32.xsan.iops, peer: read32.peer.iops, unit: 'IOPS' },
          { figure: '4k random read, depth 1', xsan: read1.xsan.iops, peer: read1.peer.iops, unit: 'IOPS' },
          {
            figure: '1 MiB sequential write, depth 8',
            xsan: sequential.xsan.bytesPerSecond / MiB,
            peer: sequential.peer.bytesPerSecond / MiB,
            unit: 'MiB/s',
            goal: { at: '>=', value: 1.5 },
          },
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
