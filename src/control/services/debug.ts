/** xsan.v1.Debug: looks into the data planes of all nodes. */
import { withDocumentNames } from '../../base/counter-names.ts'
import { messageOf, XsanError } from '../../base/errors.ts'
import type { NodeNumber } from '../../base/ids.ts'
import { BLOCK_BYTES } from '../../base/units.ts'
import { isMember, REPLICA_STATE_NAMES } from '../../placement/chain.ts'
import { slotOf } from '../../placement/ring.ts'
import { type AdminService, atLeader, fresh, here, number, type ServiceContext, text } from './service.ts'
import { allocatedBlocks, theVolume, volumeInfo } from './volume.ts'

const ASK_TIMEOUT_MS = 2500
const BLOCKS_DEFAULT = 100
const BLOCKS_MAX = 1000

/** What a data plane says of one block on one of its disks. */
interface ReplicaAnswer {
  readonly disk: number
  readonly exists?: boolean
  /** chain version << 40 | slot sequence, as two u32. */
  readonly updateVersion?: readonly [number, number]
  readonly updateSv?: number
  readonly committedSv?: number
  readonly state?: string | null
  readonly checksum?: number
  readonly timestampMs?: number
  readonly sizeBytes?: number
  readonly pages?: number
  readonly lostPages?: readonly number[]
}

export const debugService: AdminService = {
  VolumeInfo: atLeader(async (context, request) => {
    const coordinator = await fresh(context)
    const record = theVolume(context, text(request, 'volume'))
    const from = number(request, 'firstBlock')
    const limit = Math.min(BLOCKS_MAX, number(request, 'pageSize') || BLOCKS_DEFAULT)
    const indexes = new Set<number>()
    const [answers, allocated] = await Promise.all([
      askAll(context, { kind: 'blocks', volume: record.volume, from, limit: limit + 1 }),
      allocatedBlocks(context, coordinator),
    ])
    for (const { answer } of answers) {
      if (Array.isArray(answer)) for (const index of answer) indexes.add(Number(index))
    }
    const inOrder = [...indexes].sort((a, b) => a - b)
    const blocks = inOrder.slice(0, limit).map((index) => ({
      blockId: `${record.volume}:${index}`,
      index,
      slot: slotOf(record.volume, index, context.state.theCluster.slotCount),
    }))
    return {
      volume: volumeInfo(context, coordinator, record, allocated),
      blocks,
      nextBlock: inOrder.length > limit ? inOrder[limit] : 0,
    }
  }),

  BlockLocation: atLeader(async (context, request) => {
    const { state } = context
    await fresh(context)
    const { record, index } = parseBlock(context, text(request, 'block'))
    const slot = slotOf(record.volume, index, state.theCluster.slotCount)
    const chain = state.chains[slot]
    if (chain === undefined) throw new XsanError('CLUSTER_NOT_READY', 'no disk serves yet', 'Add a node with disks.')
    const nodes = [...new Set(chain.entries.map((entry) => entry.node))]
    const answers = new Map(
      await Promise.all(nodes.map(async (node) => [node, await askOne(context, node, { kind: 'block', volume: record.volume, index })] as const)),
    )
    const members = chain.entries.filter((entry) => isMember(entry.state)).length
    return {
      blockId: `${record.volume}:${index}`,
      volume: record.name,
      volumeId: record.volume,
      index,
      slot,
      chainVersion: chain.version,
      replicas: chain.entries.map((entry, position) => {
        const { answer, error } = answers.get(entry.node)!
        const mine = Array.isArray(answer) ? (answer as ReplicaAnswer[]).find((of) => of.disk === entry.disk) : undefined
        const [hi, lo] = mine?.updateVersion ?? [0, 0]
        const chainVer = hi >>> 8
        const updateSv = mine?.updateSv ?? (hi & 0xff) * 2 ** 32 + lo
        const committedSv = Math.min(updateSv, mine?.committedSv ?? 0)
        const present = mine?.exists ?? false
        return {
          disk: entry.disk,
          nodeId: state.nodes.get(entry.node)?.id ?? '',
          state: REPLICA_STATE_NAMES[entry.state],
          since: entry.since,
          incarnation: entry.incarnation,
          answered: mine !== undefined,
          present,
          updateVer: present ? `${chainVer}.${updateSv}` : '',
          commitVer: present ? (mine?.state === 'COMMIT' ? `${chainVer}.${updateSv}` : `${chainVer}.${committedSv}`) : '',
          chainVer: present ? chainVer : 0,
          blockState: mine?.state ?? '',
          timestampMs: mine?.timestampMs ?? 0,
          checksum: mine?.checksum ?? 0,
          sizeBytes: mine?.sizeBytes ?? 0,
          pages: mine?.pages ?? 0,
          lostPages: mine?.lostPages ?? [],
          role: position >= members ? 'none' : position === 0 ? 'head' : position === members - 1 ? 'tail' : 'middle',
          error,
        }
      }),
    }
  }),

  FlightRecorder: here(async (context, request) => {
    const nodeId = text(request, 'nodeId')
    const node = nodeId === '' ? context.state.nodes.get(context.self) : context.state.nodeById(nodeId)
    if (node === undefined) throw new XsanError('NODE_NOT_FOUND', `there is no node ${nodeId}`, 'See `xsan node list`.')
    return { nodeId: node.id, path: await context.ask(node.node, { kind: 'flight' }, ASK_TIMEOUT_MS) }
  }),

  PerfStats: atLeader(async (context, request) => {
    await fresh(context)
    const nodeId = text(request, 'nodeId')
    if (nodeId !== '' && context.state.nodeById(nodeId) === undefined)
      throw new XsanError('NODE_NOT_FOUND', `there is no node ${nodeId}`, 'See `xsan node list`.')
    const all = await askAll(context, { kind: 'perf' }, nodeId)
    return {
      nodes: all.map(({ node, answer, error }) => ({
        nodeId: context.state.nodes.get(node)?.id ?? '',
        counters: withDocumentNames((answer as Record<string, number> | undefined) ?? {}),
        error,
      })),
    }
  }),
}

interface Answer {
  readonly node: NodeNumber
  readonly answer: unknown
  readonly error: string
}

async function askOne(context: ServiceContext, node: NodeNumber, query: Parameters<ServiceContext['ask']>[1]): Promise<Answer> {
  try {
    return { node, answer: await context.ask(node, query, ASK_TIMEOUT_MS), error: '' }
  } catch (error) {
    return { node, answer: undefined, error: messageOf(error) }
  }
}

function askAll(context: ServiceContext, query: Parameters<ServiceContext['ask']>[1], nodeId = ''): Promise<Answer[]> {
  const nodes = [...context.state.nodes.values()].filter((node) => nodeId === '' || node.id === nodeId).sort((a, b) => a.node - b.node)
  return Promise.all(nodes.map((node) => askOne(context, node.node, query)))
}

/** VOLUME:INDEX, the volume by name or number. */
function parseBlock(context: ServiceContext, block: string): { record: ReturnType<typeof theVolume>; index: number } {
  const match = /^(.+):(\d{1,10})$/.exec(block)
  if (match === null) throw new XsanError('INVALID_PARAM', `"${block}" is no block id`, 'Write VOLUME:INDEX, as `xsan-debug volume-info` lists them.')
  const record = theVolume(context, match[1]!)
  const index = Number(match[2])
  const blocks = Math.ceil(record.sizeBytes / BLOCK_BYTES)
  if (index >= blocks) throw new XsanError('NOT_FOUND', `${record.name} has ${blocks} blocks, there is none with index ${index}`, `Take 0 to ${blocks - 1}.`)
  return { record, index }
}
