import { command } from './program.ts'
import { volumeOutput } from './volume-output.ts'

export const volumeInfo = command({
  usage: 'info <volume>',
  description: 'one volume, by name or id',
  async run({ client, args }) {
    return volumeOutput(await client.call('Volume/Info', { volume: args[0] }))
  },
})
