import { Option } from 'commander'
import { confirmed, yesOption } from './confirm.ts'
import { asDryRun, dryRunOption } from './dry-run.ts'
import { command } from './program.ts'

export const clusterRemove = command<{ force?: boolean; yes?: boolean; dryRun?: boolean }>({
  usage: 'remove <node-id>',
  description: 'take a node out of the cluster',
  options: [new Option('--force', 'the node is gone for good: do not wait for it'), yesOption(), dryRunOption()],
  async run({ client, options, args }) {
    const request = { nodeId: args[0], force: options.force ?? false }
    if (options.dryRun) {
      const found = await client.call('Cluster/RemoveNode', { ...request, dryRun: true })
      return asDryRun(true, { data: found, table: () => `${String(found['nodeId'])} would be removed; ${Number(found['chains'])} chains have a copy on it` })
    }
    await confirmed(options.yes, `Remove ${args[0]} from the cluster?`)
    const made = await client.call('Cluster/RemoveNode', request, 60_000)
    return { data: made, table: () => `${String(made['nodeId'])} is removed` }
  },
})
