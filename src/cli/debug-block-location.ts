import type { Message } from '../env/control.ts'
import { properties, sizeCell, table } from './output.ts'
import { command } from './program.ts'

export const debugBlockLocation = command({
  usage: 'block-location <block>',
  description: 'where the copies of a block are, with version, state and checksum of each; a block id, or VOLUME:INDEX',
  examples: ['xsan-debug block-location db1:0'],
  async run({ client, args }) {
    const location = await client.call('Debug/BlockLocation', { block: args[0] })
    return {
      data: location,
      table() {
        const head = properties([
          ['Block', String(location['blockId'])],
          ['Volume', `${String(location['volume'])} (${String(location['volumeId'])})`],
          ['Index', Number(location['index'])],
          ['Slot', Number(location['slot'])],
          ['Chain version', Number(location['chainVersion'])],
        ])
        const replicas = location['replicas'] as Message[]
        const rows = replicas.map((replica) => [
          String(replica['nodeId']),
          Number(replica['disk']),
          String(replica['role']),
          String(replica['state']),
          Number(replica['since']),
          String(replica['updateVer']),
          String(replica['commitVer']),
          Number(replica['chainVer']),
          String(replica['blockState']),
          replica['present'] ? (replica['checksum'] as number).toString(16).padStart(8, '0') : '-',
          sizeCell(replica['sizeBytes']),
          Number(replica['pages']),
          ((replica['lostPages'] as readonly number[] | undefined) ?? []).join(' ') || '-',
          replica['timestampMs'] ? new Date(replica['timestampMs'] as number).toISOString() : '-',
          String(replica['error']),
        ])
        return `${head}\n\n${table(['node', 'disk', 'role', 'state', 'since', 'updateVer', 'commitVer', 'chainVer', 'block', 'checksum', 'size', 'pages', 'lost', 'written', 'error'], rows)}`
      },
    }
  },
})
