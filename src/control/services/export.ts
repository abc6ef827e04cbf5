/** xsan.v1.Export: every node exports every volume. */
import { XsanError } from '../../base/errors.ts'
import { page } from './pages.ts'
import { type AdminService, atLeader, fresh, reportsOf, text } from './service.ts'
import { nbdUris, theVolume } from './volume.ts'

/** Far above any number of a node; with the numbers of volumes below 2^31 keys of pages are exact. */
const NODE_NUMBERS = 2 ** 20
/** At one node. */
const WAYS_MAX = 2

export const exportService: AdminService = {
  List: atLeader(async (context, request) => {
    const { state } = context
    const reports = reportsOf(context, await fresh(context))
    const nodeId = text(request, 'nodeId')
    const volumeName = text(request, 'volume')
    if (nodeId !== '' && state.nodeById(nodeId) === undefined) throw new XsanError('NODE_NOT_FOUND', `there is no node ${nodeId}`, 'See `xsan node list`.')
    const volumes = volumeName === '' ? [...state.volumes.values()].sort((a, b) => a.volume - b.volume) : [theVolume(context, volumeName)]
    const nodes = [...state.nodes.values()].filter((node) => nodeId === '' || node.id === nodeId).sort((a, b) => a.node - b.node)
    const all = volumes.flatMap((volume) =>
      nodes.flatMap((node) => {
        const connections = reports.get(node.node)?.stats.counters[`nbd_connections{volume=${volume.volume}}`] ?? 0
        return nbdUris(node, volume.name).map((uri, way) => ({
          // not its place in the list: that is another one's when a volume was deleted between two pages
          key: (volume.volume * NODE_NUMBERS + node.node) * WAYS_MAX + way,
          item: { volume: volume.name, nodeId: node.id, protocol: 'nbd', uri, connections },
        }))
      }),
    )
    const { items, nextPageToken } = page(all, ({ key }) => key, request)
    return { exports: items.map(({ item }) => item), nextPageToken }
  }),
}
