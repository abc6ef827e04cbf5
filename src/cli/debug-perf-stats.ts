import { Option } from 'commander'
import type { Message } from '../env/control.ts'
import { table } from './output.ts'
import { command } from './program.ts'

export const debugPerfStats = command<{ node?: string }>({
  usage: 'perf-stats',
  description: 'counters of operations, bytes, latencies and queues',
  options: [new Option('--node <id>', 'only of this node')],
  async run({ client, options }) {
    const { nodes } = (await client.call('Debug/PerfStats', { nodeId: options.node ?? '' })) as { nodes: Array<Message & { counters: Record<string, number> }> }
    return {
      data: { nodes },
      table() {
        const names = [...new Set(nodes.flatMap((node) => Object.keys(node.counters)))].sort()
        return table(
          ['counter', ...nodes.map((node) => String(node['nodeId']))],
          names.map((name) => [name, ...nodes.map((node) => node.counters[name])]),
        )
      },
    }
  },
})
