import { Option } from 'commander'
import { table } from './output.ts'
import { command } from './program.ts'

export const exportList = command<{ node?: string; volume?: string }>({
  usage: 'list',
  description: 'the ways to reach the volumes',
  watchable: true,
  options: [new Option('--node <id>', 'only of this node'), new Option('--volume <name>', 'only of this volume')],
  async run({ client, options }) {
    const exports = await client.list('Export/List', 'exports', { nodeId: options.node ?? '', volume: options.volume ?? '' })
    return {
      data: { exports },
      table: () =>
        table(
          ['volume', 'node', 'protocol', 'clients', 'uri'],
          exports.map((row) => [String(row['volume']), String(row['nodeId']), String(row['protocol']), Number(row['connections']), String(row['uri'])]),
        ),
    }
  },
})
