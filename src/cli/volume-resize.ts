import { Option } from 'commander'
import { XsanError } from '../base/errors.ts'
import { parseSize } from '../base/units.ts'
import { command } from './program.ts'
import { volumeOutput } from './volume-output.ts'

export const volumeResize = command<{ allowShrink?: boolean; yes?: boolean }>({
  usage: 'resize <volume> <size>',
  description: 'change the size of a volume',
  options: [new Option('--allow-shrink', 'let go of the data beyond a smaller size'), new Option('-y, --yes', 'do not ask')],
  async run({ client, options, args }) {
    const [volume, size] = args
    const sizeBytes = parseSize(size!)
    if (sizeBytes === 0) throw new XsanError('INVALID_PARAM', 'a volume has at least one sector', 'Delete it instead: xsan volume delete NAME')
    return volumeOutput(await client.call('Volume/Resize', { volume, sizeBytes, allowShrink: options.allowShrink ?? false }))
  },
})
