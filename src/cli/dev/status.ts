import { command } from '../program.ts'
import { readCluster } from './files.ts'
import { dirOption } from './options.ts'
import { clusterOutput } from './view.ts'

export const devStatus = command<{ dir: string }>({
  usage: 'status',
  description: 'the nodes of a playground, the dead ones too',
  options: [dirOption()],
  versioned: false,
  run: async ({ options }) => clusterOutput(readCluster(options.dir)),
})
