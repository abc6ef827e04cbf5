import { Option } from 'commander'
import { XsanError } from '../../base/errors.ts'
import { command } from '../program.ts'
import { type DevCluster, nodeDirectories, readCluster, socketPath, unmake, wipe } from './files.ts'
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
    const { dir } = options
    const cluster = known(dir, options.wipe)
    return withDirLock(dir, LOCK_WAIT_MS, async () => {
      const nodes = cluster?.nodes ?? nodeDirectories(dir).map((id) => ({ id, nbdSocket: socketPath(dir, id) }))
      await Promise.all(nodes.map((node) => endProcess(dir, node.id, GRACE_MS)))
      const output = cluster && (await clusterOutput(cluster))
      if (options.wipe) {
        wipe(dir, nodes)
        unmake(cluster?.made ?? [])
      }
      return output
    })
  },
})

/** undefined: its description is damaged. Then all that can be done is to wipe it. */
function known(dir: string, wipes: boolean | undefined): DevCluster | undefined {
  try {
    return readCluster(dir)
  } catch (error) {
    if (wipes && error instanceof XsanError && error.status === 'INVALID_PARAM') return undefined
    throw error
  }
}
