import { command } from './program.ts'

export const clusterJoin = command({
  usage: 'join <token>',
  description: 'said to a new node: join the cluster that gave the token',
  async run({ client, args }) {
    const made = await client.call('Cluster/Join', { token: args[0] }, 90_000)
    return { data: made, table: () => `${String(made['nodeId'])} is a member of ${String(made['clusterId'])}` }
  },
})
