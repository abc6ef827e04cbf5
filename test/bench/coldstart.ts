/** Three nodes from nothing running to the first block read through each of them: a new cluster, and one that has data. */
import { makeDirectory, removeDirectory } from '../support/commands.ts'
import { DevCluster } from '../support/dev-cluster.ts'
import { median, parseArgs, print } from './report.ts'

const VOLUME = 'bench'

export async function main(argv: readonly string[]): Promise<void> {
  const args = parseArgs(argv, { seconds: 1, rounds: 3 })
  const directory = makeDirectory('/dev/shm', 'xsan-bench-')
  let cluster: DevCluster | undefined
  try {
    let startMs = performance.now()
    cluster = await DevCluster.up({ nodes: 3, replicas: 3, parent: directory, diskSize: '2G' })
    const formed = performance.now() - startMs
    await cluster.createVolume(VOLUME, '64M')
    const client = await cluster.nbd('node-1', VOLUME)
    for (let offset = 0; offset < client.sizeBytes; offset += 1 << 20) await client.write(offset, Buffer.alloc(1 << 20, 7))
    await client.close()
    const restarts: number[] = []
    for (let round = 0; round < args.rounds; round++) {
      await cluster.down()
      startMs = performance.now()
      await cluster.resume()
      for (const { id } of cluster.nodes) {
        const reader = await cluster.nbd(id, VOLUME)
        await reader.read(0, 4096)
        await reader.close()
      }
      restarts.push(performance.now() - startMs)
    }
    print(
      {
        name: 'coldstart',
        setting: `three nodes, three copies, tmpfs, with the time of the commands themselves; median of ${args.rounds}`,
        rows: [
          { figure: 'nothing to a serving new cluster', xsan: formed, unit: 'ms' },
          { figure: 'stopped cluster to a read through each node', xsan: median(restarts), unit: 'ms' },
        ],
      },
      args.json,
    )
  } finally {
    await cluster?.end()
    removeDirectory(directory)
  }
}
