import { Option } from 'commander'
import { command, parseDuration, UsageError } from './program.ts'
import { type RequestIdOptions, requestIdOf, requestIdOption } from './request-id.ts'

export const clusterAdd = command<RequestIdOptions & { validFor?: number }>({
  usage: 'add [node-id]',
  description: 'print a token with which one new node may join',
  options: [new Option('--valid-for <time>', 'how long the token is good; default: one day').argParser(parseDuration), requestIdOption()],
  examples: ['token=$(xsan cluster add node-2)', 'xsan --server 10.0.0.2:8080 cluster join "$token"'],
  async run({ client, options, args }) {
    if (options.validFor === 0) throw new UsageError('a token that is good for no time', 'Write --valid-for 1h, or leave it out: one day.')
    const made = await client.call('Cluster/AddNode', { nodeId: args[0] ?? '', validMs: options.validFor ?? 0, ...requestIdOf(options) })
    return { data: made, table: () => String(made['token']) }
  },
})
