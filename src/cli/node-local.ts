import { properties } from './output.ts'
import { command } from './program.ts'

export const nodeLocal = command({
  usage: 'local',
  description: 'the node asked, also before it belongs to a cluster',
  async run({ client }) {
    const node = await client.call('Node/Local')
    return {
      data: node,
      table: () =>
        properties([
          ['Node', String(node['nodeId'])],
          ['State', String(node['state'])],
          ['Stage', [node['stage'], node['detail']].filter(Boolean).join(': ')],
          ['Cluster', String(node['clusterId'])],
          ['Leader', String(node['leader'])],
          ['Version', String(node['version'])],
          ['Control', String(node['grpc'])],
          ['Data', String(node['data'])],
          ['NBD', String(node['nbd'])],
          ['NBD socket', String(node['nbdSocket'])],
          ['Admin', String(node['admin'])],
        ]),
    }
  },
})
