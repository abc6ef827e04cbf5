import { Option } from 'commander'
import { properties } from './output.ts'
import { command } from './program.ts'

export const clusterInit = command<{ clusterId?: string }>({
  usage: 'init',
  description: 'make this node the first one of a new cluster',
  options: [new Option('--cluster-id <name>', 'name of the cluster; default: cluster.cluster_id of the configuration')],
  async run({ client, options }) {
    const made = await client.call('Cluster/Init', { clusterId: options.clusterId ?? '' }, 60_000)
    return {
      data: made,
      table: () =>
        properties([
          ['Cluster', String(made['clusterId'])],
          ['First node', String(made['nodeId'])],
          ['UUID', String(made['clusterUuid'])],
          ['Next', 'xsan cluster add   (prints a token for the next node)'],
        ]),
    }
  },
})
