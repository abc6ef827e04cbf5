/** Three copies on a real file system, acknowledged = on stable storage of all three, against quorum with cache=writethrough. */
import { tmpdir } from 'node:os'
import { makeDirectory, removeDirectory } from '../support/commands.ts'
import { DevCluster } from '../support/dev-cluster.ts'
import { compareJobs, MiB, xsanTarget } from './compare.ts'
import { type Peer, quorum } from './peers.ts'
import { parseArgs, print } from './report.ts'

const SIZE_BYTES = 256 * MiB

export async function main(argv: readonly string[]): Promise<void> {
  const args = parseArgs(argv, { seconds: 4, rounds: 3 })
  const directory = makeDirectory(tmpdir(), 'xsan-bench-')
  let cluster: DevCluster | undefined
  let peer: Peer | undefined
  try {
    peer = await quorum(directory, SIZE_BYTES, 'writethrough')
    cluster = await DevCluster.up({ nodes: 3, replicas: 3, parent: directory, diskSize: '2G' })
    const target = await xsanTarget(cluster, { sizeBytes: SIZE_BYTES, replicas: 3, socket: true })
    const { write32, write1 } = await compareJobs(
      target,
      peer,
      { write1: { rw: 'randwrite', blockSize: '4k', depth: 1 }, write32: { rw: 'randwrite', blockSize: '4k', depth: 32 } },
      args,
    )
    print(
      {
        name: 'durable',
        setting: `three copies in files of ${tmpdir()}, durable, against qemu quorum with cache=writethrough; UNIX socket, fio nbd, ${args.seconds} s, median of ${args.rounds}`,
        rows: [
          { figure: '4k random write, depth 1', xsan: write1.xsan.iops, peer: write1.peer.iops, unit: 'IOPS', goal: { at: '>=', value: 1.2 } },
          { figure: '4k random write, depth 32', xsan: write32.xsan.iops, peer: write32.peer.iops, unit: 'IOPS', goal: { at: '>=', value: 2 } },
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
