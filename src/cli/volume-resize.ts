import { XsanError } from '../base/errors.ts'
import { parseSize } from '../base/units.ts'
import { yesOption } from './confirm.ts'
import { command } from './program.ts'
import { volumeOutput } from './volume-output.ts'

export const volumeResize = command<{ yes?: boolean }>({
  usage: 'resize <volume> <size>',
  description: 'make a volume larger',
  options: [yesOption()],
  async run({ client, args }) {
    const [volume, size] = args
    const sizeBytes = parseSize(size!)
    if (sizeBytes === 0) throw new XsanError('INVALID_PARAM', 'a volume has at least one sector', 'Delete it instead: xsan volume delete NAME')
    return volumeOutput(await client.call('Volume/Resize', { volume, sizeBytes }))
  },
})
