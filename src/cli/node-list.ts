import { nodeTable } from './cluster-status.ts'
import { command } from './program.ts'

export const nodeList = command({
  usage: 'list',
  description: 'the nodes and what they hold',
  watchable: true,
  async run({ client }) {
    const nodes = await client.list('Node/List', 'nodes')
    return { data: { nodes }, table: () => nodeTable(nodes) }
  },
})
