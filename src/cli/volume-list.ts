import { command } from './program.ts'
import { volumeTable } from './volume-output.ts'

export const volumeList = command({
  usage: 'list',
  description: 'the volumes of the cluster',
  watchable: true,
  async run({ client }) {
    const volumes = await client.list('Volume/List', 'volumes')
    return { data: { volumes }, table: () => volumeTable(volumes) }
  },
})
