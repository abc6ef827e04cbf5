import { Option } from 'commander'
import { confirmed, yesOption } from './confirm.ts'
import { command } from './program.ts'

export const clusterRemove = command<{ force?: boolean; yes?: boolean }>({
  usage: 'remove <node-id>',
  description: 'take a node out of the cluster',
  options: [new Option('--force', 'the node is gone for good: do not wait for it'), yesOption()],
  async run({ client, options, args }) {
    await confirmed(options.yes, `Remove ${args[0]} from the cluster?`)
    const made = await client.call('Cluster/RemoveNode', { nodeId: args[0], force: options.force ?? false }, 60_000)
    return { data: made, table: () => `${String(made['nodeId'])} is removed` }
  },
})
