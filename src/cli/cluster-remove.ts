import { Option } from 'commander'
import type { Message } from '../env/control.ts'
import { confirmed, yesOption } from './confirm.ts'
import { asDryRun, dryRunOption } from './dry-run.ts'
import { command } from './program.ts'
import { type RequestIdOptions, requestIdOf, requestIdOption } from './request-id.ts'

export const clusterRemove = command<RequestIdOptions & { force?: boolean; cancel?: boolean; yes?: boolean; dryRun?: boolean }>({
  usage: 'remove <node-id>',
  description: 'take a node out of the cluster',
  options: [
    new Option('--force', 'although fewer nodes stay than copies are wanted; or because the node is gone for good'),
    new Option('--cancel', 'call a removal off that has not ended: the node stays'),
    yesOption(),
    requestIdOption(),
    dryRunOption(),
  ],
  async run({ client, options, args }) {
    const request = { nodeId: args[0], force: options.force ?? false, ...requestIdOf(options) }
    if (options.cancel) {
      const kept = await client.call('Cluster/RemoveNode', { ...request, cancel: true, dryRun: options.dryRun ?? false })
      return asDryRun(options.dryRun, { data: kept, table: () => `${String(kept['nodeId'])} stays` })
    }
    if (options.dryRun) {
      const found = await client.call('Cluster/RemoveNode', { ...request, dryRun: true })
      return asDryRun(true, {
        data: found,
        table: () =>
          found['removed'] ? alreadyGone(found) : `${String(found['nodeId'])} would be removed; ${Number(found['chains'])} chains have a copy on it`,
      })
    }
    await confirmed(options.yes, `Remove ${args[0]} from the cluster?`)
    const made = await client.call('Cluster/RemoveNode', request, 60_000)
    return {
      data: made,
      table: () =>
        made['removed']
          ? alreadyGone(made)
          : `${String(made['nodeId'])} is being removed: ${Number(made['chains'])} chains have a copy on it, which moves first. See: xsan cluster status`,
    }
  },
})

const alreadyGone = (answer: Message) => `${String(answer['nodeId'])} is removed: it is in the cluster no more`
