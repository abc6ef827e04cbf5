import { Option } from 'commander'
import { sizeCell, table } from './output.ts'
import { command } from './program.ts'

export const diskList = command<{ node?: string; all?: boolean }>({
  usage: 'list',
  description: 'the disks of the cluster',
  watchable: true,
  options: [new Option('--node <id>', 'only of this node'), new Option('--all', 'also those that were taken out for good')],
  async run({ client, options }) {
    const disks = await client.list('Disk/List', 'disks', { nodeId: options.node ?? '', all: options.all ?? false })
    return {
      data: { disks },
      table: () =>
        table(
          ['disk', 'node', 'state', 'type', 'role', 'used', 'capacity', 'journal', 'replicas', 'path', 'reason'],
          disks.map((disk) => [
            Number(disk['number']),
            String(disk['nodeId']),
            String(disk['state']),
            String(disk['type']),
            String(disk['role']),
            sizeCell(disk['usedBytes']),
            sizeCell(disk['capacityBytes']),
            `${sizeCell(disk['journalUsedBytes'])}/${sizeCell(disk['journalBytes'])}`,
            Number(disk['replicas']),
            String(disk['path']),
            String(disk['reason']),
          ]),
        ),
    }
  },
})
