/** xsan.v1.Disk */
import { XsanError } from '../../base/errors.ts'
import type { DiskNumber } from '../../base/ids.ts'
import { View } from '../../placement/view.ts'
import { DISK_GONE } from '../ops/node-register.ts'
import type { DiskRecord } from '../state.ts'
import { page } from './pages.ts'
import { type AdminService, atLeader, flag, fresh, text } from './service.ts'

/** Out of the configuration, or replaced by another one. Once no chain names it any more, nobody needs to hear of it. */
export const isTakenOut = (disk: DiskRecord) => disk.state === 'failed' && disk.reason === DISK_GONE

export const diskService: AdminService = {
  List: atLeader(async (context, request) => {
    const { state, stats } = context
    const coordinator = await fresh(context)
    const nodeId = text(request, 'nodeId')
    if (nodeId !== '' && state.nodeById(nodeId) === undefined) throw new XsanError('NODE_NOT_FOUND', `there is no node ${nodeId}`, 'See `xsan node list`.')
    const replicas = new Map<DiskNumber, number>()
    for (const chain of state.chains) for (const { disk } of chain.entries) replicas.set(disk, (replicas.get(disk) ?? 0) + 1)
    const isRemoved = (disk: DiskRecord) => isTakenOut(disk) && !replicas.has(disk.disk)
    const wanted = flag(request, 'all') ? [...state.disks.values()] : [...state.disks.values()].filter((disk) => !isRemoved(disk))
    const disks = wanted.filter((disk) => nodeId === '' || state.nodes.get(disk.node)?.id === nodeId).sort((a, b) => a.disk - b.disk)
    const { items, nextPageToken } = page(disks, (disk) => disk.disk, request)
    return {
      disks: items.map((disk) => {
        const reported = stats.get(disk.node)?.stats.disks.find((of) => of.disk === disk.disk)
        const leaving = disk.state === 'leaving' || state.nodes.get(disk.node)?.state === 'leaving'
        const up = coordinator.view.view(disk.node) !== View.DOWN
        return {
          number: disk.disk,
          uuid: disk.uuid,
          nodeId: state.nodes.get(disk.node)?.id ?? '',
          path: disk.path,
          type: disk.type,
          role: disk.role,
          state: isRemoved(disk)
            ? 'removed'
            : disk.state === 'failed'
              ? 'failed'
              : !up
                ? 'offline'
                : leaving
                  ? 'draining'
                  : reported?.rejectCreate === true
                    ? 'full'
                    : 'ok',
          reason: disk.reason || (reported?.rejectReason ?? ''),
          capacityBytes: disk.capacityBytes,
          usedBytes: reported?.usedBytes ?? 0,
          journalBytes: reported?.journalBytes ?? 0,
          journalUsedBytes: reported?.journalUsedBytes ?? 0,
          replicas: replicas.get(disk.disk) ?? 0,
        }
      }),
      nextPageToken,
    }
  }),
}
