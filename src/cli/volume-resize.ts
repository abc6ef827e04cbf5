import { XsanError } from '../base/errors.ts'
import { yesOption } from './confirm.ts'
import { asDryRun, dryRunOption } from './dry-run.ts'
import { command, parseSizeArgument } from './program.ts'
import { type RequestIdOptions, requestIdOf, requestIdOption } from './request-id.ts'
import { volumeOutput } from './volume-output.ts'

export const volumeResize = command<RequestIdOptions & { yes?: boolean; dryRun?: boolean }>({
  usage: 'resize <volume> <size>',
  description: 'make a volume larger',
  options: [yesOption(), requestIdOption(), dryRunOption()],
  async run({ client, options, args }) {
    const [volume, size] = args
    const sizeBytes = parseSizeArgument(size!)
    if (sizeBytes === 0) throw new XsanError('INVALID_PARAM', 'a volume has at least one sector', 'Delete it instead: xsan volume delete NAME')
    return asDryRun(
      options.dryRun,
      volumeOutput(await client.call('Volume/Resize', { volume, sizeBytes, dryRun: options.dryRun ?? false, ...requestIdOf(options) })),
    )
  },
})
