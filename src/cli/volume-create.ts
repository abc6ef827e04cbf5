import { Option } from 'commander'
import { REPLICAS_MAX } from '../node/config.ts'
import { asDryRun, dryRunOption } from './dry-run.ts'
import { command, parsePositive, parseSizeArgument } from './program.ts'
import { type RequestIdOptions, requestIdOf, requestIdOption } from './request-id.ts'
import { volumeOutput } from './volume-output.ts'

interface Options extends RequestIdOptions {
  replicas?: number
  minCopies?: number
  sync?: 'on' | 'off'
  dryRun?: boolean
}

export const volumeCreate = command<Options>({
  usage: 'create <name> <size>',
  description: 'create a thin volume',
  options: [
    new Option('--replicas <n>', `copies, 1 to ${REPLICAS_MAX}; default: storage.default_replica_count`).argParser(parsePositive),
    new Option('--min-copies <n>', 'copies that must be there for a write to be accepted').argParser(parsePositive),
    new Option('--sync <mode>', 'acknowledge a write when it is on stable storage (on) or in memory of all copies (off)').choices(['on', 'off']),
    requestIdOption(),
    dryRunOption(),
  ],
  examples: ['xsan volume create db1 100G --replicas 3'],
  async run({ client, options, args }) {
    const [name, size] = args
    const volume = await client.call('Volume/Create', {
      name,
      sizeBytes: parseSizeArgument(size!),
      replicas: options.replicas ?? 0,
      minCopies: options.minCopies ?? 0,
      dryRun: options.dryRun ?? false,
      ...requestIdOf(options),
      ...(options.sync === undefined ? {} : { syncWhenWrite: options.sync === 'on' }),
    })
    return asDryRun(options.dryRun, volumeOutput(volume))
  },
})
