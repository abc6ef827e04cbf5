import { Option } from 'commander'
import type { Message } from '../env/control.ts'
import { table } from './output.ts'
import { command, parseCount } from './program.ts'
import { volumeOutput } from './volume-output.ts'

/** Blocks fetched in one call. */
const PAGE_SIZE = 1000
const LIMIT_DEFAULT = 10_000

export const debugVolumeInfo = command<{ limit: number }>({
  usage: 'volume-info <volume>',
  description: 'a volume, by id or name, and the blocks that hold its data',
  options: [new Option('--limit <n>', 'list at most this many blocks').argParser(parseCount).default(LIMIT_DEFAULT)],
  async run({ client, args, options }) {
    const blocks: Message[] = []
    let volume: Message
    let firstBlock = 0
    do {
      const page = await client.call('Debug/VolumeInfo', {
        volume: args[0],
        firstBlock,
        pageSize: Math.min(PAGE_SIZE, Math.max(1, options.limit - blocks.length)),
      })
      volume = page['volume'] as Message
      blocks.push(...(page['blocks'] as Message[]))
      firstBlock = Number(page['nextBlock'])
    } while (firstBlock !== 0 && blocks.length < options.limit)
    const output = volumeOutput(volume)
    return {
      data: { ...volume, blocks, nextBlock: firstBlock },
      table() {
        const rows = blocks.map((block) => [String(block['blockId']), Number(block['index']), Number(block['slot'])])
        return `${output.table()}\n\n${table(['block', 'index', 'slot'], rows)}${firstBlock === 0 ? '' : `\nmore from block ${firstBlock} on: --limit`}`
      },
    }
  },
})
