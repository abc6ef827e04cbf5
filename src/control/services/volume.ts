/** xsan.v1.Volume */
import { XsanError } from '../../base/errors.ts'
import { BLOCK_BYTES } from '../../base/units.ts'
import type { Message } from '../../env/control.ts'
import { View } from '../../placement/view.ts'
import { fullDisksOf, type Health, healthOf, lostPagesOf, withLostPages } from '../health.ts'
import type { Coordinator } from '../leader.ts'
import type { AgentStats } from '../node-agent.ts'
import { checkName } from '../ops/volume-create.ts'
import { booleanSetting, defaultReplicas, NO_OWN, replicaCount } from '../settings.ts'
import type { VolumeRecord } from '../state.ts'
import { page } from './pages.ts'
import { type AdminService, atLeader, flag, fresh, number, reportsOf, type ServiceContext, text, tryOut } from './service.ts'

const COUNT_TIMEOUT_MS = 1500

export const volumeService: AdminService = {
  Create: atLeader(async (context, request, call) => {
    const { state, env, config } = context
    const coordinator = await fresh(context)
    const syncWhenWrite = request['syncWhenWrite']
    // here as well: what is refused by the operation is kept with its answer, in the log and the state of every node
    checkName(text(request, 'name'))
    const args = {
      name: text(request, 'name'),
      sizeBytes: number(request, 'sizeBytes'),
      replicas: number(request, 'replicas') || fewer(defaultReplicas(state), state.nodesWithDisks().size),
      minCopies: number(request, 'minCopies') || 1,
      syncWhenWrite: typeof syncWhenWrite === 'boolean' ? syncWhenWrite : booleanSetting(state, NO_OWN, 'storage.sync_when_write', config.syncWhenWrite),
      readOnly: false,
      createdAtMs: env.clock.wallMs(),
    }
    if (flag(request, 'dryRun')) return { ...volumeInfo(context, coordinator, tryOut(state, 'volume.create', args), new Map()), id: 0 }
    return volumeInfo(context, coordinator, await coordinator.propose('volume.create', args, call.requestId), new Map())
  }),

  List: atLeader(async (context, request) => {
    const coordinator = await fresh(context)
    const volumes = [...context.state.volumes.values()].sort((a, b) => a.volume - b.volume)
    const { items, nextPageToken } = page(volumes, (volume) => volume.volume, request)
    const allocated = await allocatedBlocks(context, coordinator)
    const common = ofAllVolumes(context, coordinator)
    return { volumes: items.map((volume) => volumeInfo(context, coordinator, volume, allocated, common)), nextPageToken }
  }),

  Info: atLeader(async (context, request) => {
    const coordinator = await fresh(context)
    const record = theVolume(context, text(request, 'volume'))
    return volumeInfo(context, coordinator, record, await allocatedBlocks(context, coordinator))
  }),

  Resize: atLeader(async (context, request, call) => {
    const coordinator = await fresh(context)
    const { volume } = theVolume(context, text(request, 'volume'))
    const args = { volume, sizeBytes: number(request, 'sizeBytes') }
    const record = flag(request, 'dryRun') ? tryOut(context.state, 'volume.resize', args) : await coordinator.propose('volume.resize', args, call.requestId)
    return volumeInfo(context, coordinator, record, await allocatedBlocks(context, coordinator))
  }),

  Delete: atLeader(async (context, request, call) => {
    const coordinator = await fresh(context)
    const name = text(request, 'volume')
    if (flag(request, 'dryRun')) {
      const { volume } = tryOut(context.state, 'volume.delete', { volume: theVolume(context, name).volume })
      const allocated = await allocatedBlocks(context, coordinator)
      return { id: volume, name: theVolume(context, name).name, allocatedBytes: (allocated.get(volume) ?? 0) * BLOCK_BYTES }
    }
    // repeated after its answer was lost: the volume is gone, the result is not
    const repeated = context.state.recentResult(call.requestId)?.value as VolumeRecord | undefined
    const record = repeated ?? (await coordinator.propose('volume.delete', { volume: theVolume(context, name).volume }, call.requestId))
    return { id: record.volume, name: record.name }
  }),
}

export function theVolume({ state }: Pick<ServiceContext, 'state'>, nameOrNumber: string): VolumeRecord {
  const record = state.findVolume(nameOrNumber)
  if (record === undefined)
    throw new XsanError('VOLUME_NOT_FOUND', `there is no volume ${nameOrNumber === '' ? 'without a name' : nameOrNumber}`, 'See `xsan volume list`.')
  return record
}

/** Blocks of each volume, each counted once; those of slots whose head does not answer in time are missing. */
export async function allocatedBlocks(context: ServiceContext, coordinator: Coordinator): Promise<Map<number, number>> {
  const counts = new Map<number, number>()
  const nodes = [...context.state.nodes.keys()].filter((node) => coordinator.view.view(node) === View.UP)
  const answers = await Promise.all(nodes.map((node) => context.ask(node, { kind: 'allocated' }, COUNT_TIMEOUT_MS).catch(() => undefined)))
  for (const answer of answers) {
    if (!Array.isArray(answer)) continue
    for (const [volume, blocks] of answer as Array<[number, number]>) counts.set(volume, (counts.get(volume) ?? 0) + blocks)
  }
  return counts
}

/** The default is a wish: a cluster that is still small makes volumes with as many copies as it can keep, and spreads them when it grows. */
const fewer = (wanted: number, nodes: number) => Math.max(1, Math.min(wanted, nodes))

interface OfAllVolumes {
  readonly health: Health
  readonly reports: ReadonlyArray<{ readonly stats: AgentStats }>
  /** Of each block. */
  readonly copies: number
}

/** Takes a look at every chain: once for a whole listing, for leases are renewed on this thread. */
function ofAllVolumes(context: ServiceContext, coordinator: Coordinator): OfAllVolumes {
  const { state } = context
  const reports = [...reportsOf(context, coordinator).values()]
  const health = healthOf({ state, view: (node) => coordinator.view.view(node), planned: coordinator.planned, fullDisks: fullDisksOf(reports) })
  return { health, reports, copies: fewer(replicaCount(state), state.nodesWithDisks().size) }
}

export function volumeInfo(
  context: ServiceContext,
  coordinator: Coordinator,
  record: VolumeRecord,
  allocated: ReadonlyMap<number, number>,
  common = ofAllVolumes(context, coordinator),
): Message {
  const { state } = context
  const { health, reasons } = withLostPages(common.health, state, lostPagesOf(common.reports, state, record.volume))
  const kept = common.copies
  const notes = record.replicas < kept ? [`Kept in ${kept} copies, as all data of this cluster is; this volume calls for ${record.replicas}.`] : []
  return {
    id: record.volume,
    name: record.name,
    sizeBytes: record.sizeBytes,
    replicas: record.replicas,
    syncWhenWrite: record.syncWhenWrite,
    minCopies: record.minCopies,
    readOnly: record.readOnly,
    blockSize: BLOCK_BYTES,
    state: 'ready',
    health,
    reasons: [...(health === 'safe' ? [] : reasons), ...notes],
    uris: volumeUris(context, record.name),
    allocatedBytes: (allocated.get(record.volume) ?? 0) * BLOCK_BYTES,
    createdAtMs: record.createdAtMs,
  }
}

export function volumeUris({ state }: Pick<ServiceContext, 'state'>, name: string): string[] {
  return [...state.nodes.values()].sort((a, b) => a.node - b.node).flatMap((node) => nbdUris(node, name))
}

/** Ways to a volume at one node, as libnbd writes them (nbd-uri(3)); a path may hold anything. */
export function nbdUris({ nbd, nbdSocket }: { readonly nbd: string; readonly nbdSocket: string }, name: string): string[] {
  return [
    ...(nbd === '' ? [] : [`nbd://${nbd.replace(/^nbd:\/\//, '')}/${name}`]),
    ...(nbdSocket === '' ? [] : [`nbd+unix:///${name}?socket=${encodeURIComponent(nbdSocket).replaceAll('%2F', '/')}`]),
  ]
}
