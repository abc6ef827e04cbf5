/** xsan.v1.Node, of a member (Local is in plane.ts: it answers without a cluster). */
import { nodeStatuses } from './cluster.ts'
import { page } from './pages.ts'
import { type AdminService, atLeader, fresh } from './service.ts'

export const nodeService: AdminService = {
  List: atLeader(async (context, request) => {
    const coordinator = await fresh(context)
    const { items, nextPageToken } = page(nodeStatuses(context, coordinator), (node) => Number(node['number']), request)
    return { nodes: items, nextPageToken }
  }),
}
