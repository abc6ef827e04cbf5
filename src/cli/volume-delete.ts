import { confirmed, yesOption } from './confirm.ts'
import { command } from './program.ts'

export const volumeDelete = command<{ yes?: boolean }>({
  usage: 'delete <volume>',
  description: 'delete a volume and all its data',
  options: [yesOption()],
  async run({ client, options, args }) {
    await confirmed(options.yes, `Delete volume ${args[0]} and all its data?`)
    const deleted = await client.call('Volume/Delete', { volume: args[0] })
    return { data: deleted, table: () => `volume ${String(deleted['name'])} is deleted` }
  },
})
