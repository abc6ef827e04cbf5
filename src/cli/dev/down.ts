import { Option } from 'commander'
import { command } from '../program.ts'
import { readCluster, wipe } from './files.ts'
import { dirOption } from './options.ts'
import { endProcess, withDirLock } from './processes.ts'
import { clusterOutput } from './view.ts'

const GRACE_MS = 10_000
/** An `up` under way ends by its own timeout. */
const LOCK_WAIT_MS = 120_000

export const devDown = command<{ dir: string; wipe?: boolean }>({
  usage: 'down',
  description: 'end all processes of a playground; `dev up` brings it back with its data',
  options: [dirOption(), new Option('--wipe', 'also delete its files')],
  versioned: false,
  async run({ options }) {
    const cluster = readCluster(options.dir)
    return withDirLock(options.dir, LOCK_WAIT_MS, async () => {
      await Promise.all(cluster.nodes.map((node) => endProcess(options.dir, node.id, GRACE_MS)))
      const output = await clusterOutput(cluster)
      if (options.wipe) wipe(cluster)
      return output
    })
  },
})
