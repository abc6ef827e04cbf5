/**
 * A node goes while a client writes and reads 4 KiB pages at random through a node that stays: the node that is Raft leader and, as far as that can be
 * had at once, heads most chains. By default kill -9; with `--restart` a SIGTERM (it drains and hands over). Then it comes back. The stall is the
 * longest time any request waited for its answer.
 */
import { makeDirectory, removeDirectory, sleep } from '../support/commands.ts'
import { DevCluster } from '../support/dev-cluster.ts'
import { VerifiedLoad } from '../support/verified-load.ts'
import { median, parseArgs, print } from './report.ts'

const VOLUME = 'bench'
const SIZE_BYTES = 128 * 1024 * 1024
const DEPTH = 16
/** Under load before something happens, and after the cluster is healthy again. */
const CALM_MS = 1500

export async function main(argv: readonly string[]): Promise<void> {
  const args = parseArgs(argv, { seconds: 4, rounds: 5 })
  const restart = argv.includes('--restart')
  const directory = makeDirectory('/dev/shm', 'xsan-bench-')
  const [before, going, coming, rejoin]: [number[], number[], number[], number[]] = [[], [], [], []]
  let errors = 0
  let violations = 0
  let cluster: DevCluster | undefined
  let load: VerifiedLoad | undefined
  try {
    cluster = await DevCluster.up({ nodes: 3, replicas: 3, parent: directory, diskSize: '2G' })
    await cluster.createVolume(VOLUME, String(SIZE_BYTES))
    for (let round = 0; round < args.rounds; round++) {
      const leader = await cluster.leader()
      const [survivor] = cluster.others(leader)
      load = new VerifiedLoad({
        endpoints: [cluster.endpoint(survivor!.id)],
        exportName: VOLUME,
        sizeBytes: SIZE_BYTES,
        seed: round,
        depth: DEPTH,
        patienceMs: 30_000,
        requestBytesMax: 4096,
        firstSequence: round * 1_000_000,
      })
      load.start()
      await sleep(CALM_MS)
      before.push(load.longestMs)
      load.mark()
      if (restart) cluster.signal(leader, 'SIGTERM')
      else await cluster.kill(leader)
      await sleep(args.seconds * 1000)
      going.push(load.longestMs)
      load.mark()
      const startMs = performance.now()
      await cluster.start(leader)
      await cluster.healthy()
      rejoin.push(performance.now() - startMs)
      await sleep(CALM_MS)
      coming.push(load.longestMs)
      await load.stop()
      errors += Object.values(load.stats.errors).reduce((sum, count) => sum + count, 0) + load.stats.retries
      violations += load.violations.length
      load.close()
    }
    const list = (stalls: readonly number[]) => stalls.map((ms) => ms.toFixed(0)).join(', ')
    print(
      {
        name: restart ? 'failover --restart' : 'failover',
        setting: `${restart ? 'SIGTERM' : 'kill -9'} of the Raft leader under 4k load (depth ${DEPTH}, 40 % reads) through a survivor, tmpfs, ${args.rounds} rounds: stalls ${list(going)} ms, at its return ${list(coming)} ms`,
        rows: [
          {
            figure: 'longest wait for an answer, median',
            xsan: median(going),
            unit: 'ms',
            goal: { at: '<', value: restart ? 100 : 500 },
          },
          { figure: 'longest wait for an answer, worst', xsan: Math.max(...going), unit: 'ms' },
          { figure: 'longest wait at its return, median', xsan: median(coming), unit: 'ms', goal: { at: '<', value: 100 } },
          { figure: 'longest wait at its return, worst', xsan: Math.max(...coming), unit: 'ms' },
          { figure: 'longest wait before, median', xsan: median(before), unit: 'ms' },
          { figure: 'errors seen by the client', xsan: errors, unit: '', goal: { at: '<=', value: 0 } },
          { figure: 'wrong data', xsan: violations, unit: '', goal: { at: '<=', value: 0 } },
          { figure: 'start of the node to healthy, median', xsan: median(rejoin), unit: 'ms' },
        ],
      },
      args.json,
    )
  } finally {
    load?.close()
    await cluster?.end()
    removeDirectory(directory)
  }
}
