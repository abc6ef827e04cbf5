import { Option } from 'commander'
import { loadConfig } from '../node/config.ts'
import { table } from './output.ts'
import { command } from './program.ts'

interface Options {
  node?: string
  file?: string
  origin?: boolean
}

export const configShow = command<Options>({
  usage: 'show',
  description: 'every key, its value, and whether it changes without a restart',
  options: [
    new Option('--node <id>', 'of this node; default: the node asked'),
    new Option('--file <path>', 'of this file, without a node'),
    new Option('--origin', 'show where each value comes from'),
  ],
  async run({ client, options }) {
    const items = options.file === undefined ? await remote() : loadConfig(options.file).items.map((item) => ({ ...item }))
    async function remote() {
      const { items: shown } = await client.call('Config/Show', { nodeId: options.node ?? '' })
      return (shown as Array<Record<string, unknown>>).map(({ valueJson, ...item }) => ({ ...item, value: JSON.parse(String(valueJson)) as unknown }))
    }
    return {
      data: { items },
      table: () =>
        table(
          ['key', 'value', 'changes', ...(options.origin ? ['origin'] : []), 'meaning'],
          (items as Array<Record<string, unknown>>).map((item) => [
            String(item['key']),
            JSON.stringify(item['value']),
            item['hot'] ? 'at once' : 'at restart',
            ...(options.origin ? [String(item['origin'])] : []),
            String(item['description']),
          ]),
        ),
    }
  },
})
