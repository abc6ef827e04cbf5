import { clusterStatusOutput } from './cluster-status.ts'
import { command } from './program.ts'

export const debugClusterStatus = command({
  usage: 'cluster-status',
  description: 'health, leader, nodes, chains and resync',
  watchable: true,
  async run({ client }) {
    return clusterStatusOutput(await client.call('Cluster/Status'))
  },
})
