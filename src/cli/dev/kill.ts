import { Option } from 'commander'
import { command } from '../program.ts'
import { findNode, readCluster } from './files.ts'
import { dirOption, timeoutOption } from './options.ts'
import { signalProcess, toSignal } from './processes.ts'
import { clusterOutput } from './view.ts'

interface Options {
  dir: string
  signal: NodeJS.Signals
  timeout: number
}

export const devKill = command<Options>({
  usage: 'kill <id...>',
  description: 'send a signal to the process of a node, and wait for what it does',
  options: [dirOption(), new Option('--signal <name>', 'for example TERM, STOP, CONT').argParser(toSignal).default('SIGKILL', 'KILL'), timeoutOption('30s')],
  versioned: false,
  async run({ options, args }) {
    const cluster = readCluster(options.dir)
    const nodes = args.map((id) => findNode(cluster, id))
    await Promise.all(nodes.map((node) => signalProcess(options.dir, node.id, options.signal, options.timeout)))
    return clusterOutput(cluster)
  },
})
