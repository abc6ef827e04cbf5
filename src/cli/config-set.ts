import type { Message } from '../env/control.ts'
import { describeKey, parseValue } from '../node/config.ts'
import { asDryRun, dryRunOption } from './dry-run.ts'
import { command } from './program.ts'
import { type RequestIdOptions, requestIdOf, requestIdOption } from './request-id.ts'

export const configSet = command<RequestIdOptions & { dryRun?: boolean }>({
  usage: 'set <key> <value>',
  description: 'change a key that may change at run time',
  options: [requestIdOption(), dryRunOption()],
  async run({ client, options, args }) {
    const [key, text] = args
    const value = describeKey(key!).parse(parseValue(text!))
    const { item } = await client.call('Config/Set', { key, valueJson: JSON.stringify(value), dryRun: options.dryRun ?? false, ...requestIdOf(options) })
    return asDryRun(options.dryRun, {
      data: { key, value },
      table: () => `${key} is ${String((item as Message | null)?.['valueJson'] ?? JSON.stringify(value))}`,
    })
  },
})
