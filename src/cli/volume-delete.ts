import { confirmed, yesOption } from './confirm.ts'
import { asDryRun, dryRunOption } from './dry-run.ts'
import { sizeCell } from './output.ts'
import { command } from './program.ts'
import { type RequestIdOptions, requestIdOf, requestIdOption } from './request-id.ts'

export const volumeDelete = command<RequestIdOptions & { yes?: boolean; dryRun?: boolean }>({
  usage: 'delete <volume>',
  description: 'delete a volume and all its data',
  options: [yesOption(), requestIdOption(), dryRunOption()],
  async run({ client, options, args }) {
    if (options.dryRun) {
      const found = await client.call('Volume/Delete', { volume: args[0], dryRun: true })
      return asDryRun(true, { data: found, table: () => `volume ${String(found['name'])} and ${sizeCell(found['allocatedBytes'])} of data would be deleted` })
    }
    await confirmed(options.yes, `Delete volume ${args[0]} and all its data?`)
    const deleted = await client.call('Volume/Delete', { volume: args[0], ...requestIdOf(options) })
    return { data: deleted, table: () => `volume ${String(deleted['name'])} is deleted` }
  },
})
